"""A checkpoint is read as it stands, or refused by one sentence that says what is wrong with it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdllm.errors import CheckpointError
from fastdllm.models.checkpoint import load_weights, read_config, save_checkpoint, stored_dtype
from fastdllm.models.config import Family
from fastdllm.models.transformer import Transformer
from helpers import write_zeros
from toys import EOS, FAMILIES, VOCAB, toy_model

CPU = torch.device("cpu")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Transformer:
    return load_weights(folder, read_config(folder), dtype, CPU)


def shard(folder: Path, count: int = 3) -> list[str]:
    """Split the single file as real checkpoints are split, and give the shards' names."""
    tensors = list(load_file(folder / WEIGHTS).items())
    (folder / WEIGHTS).unlink()
    names = [f"model-{k + 1:05}-of-{count:05}.safetensors" for k in range(count)]
    places: dict[str, str] = {}
    for k, file in enumerate(names):
        part = dict(tensors[k::count])
        save_file(part, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": places}))
    return names


def change_tensor(folder: Path, name: str, value: torch.Tensor | None) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors.pop(name, None)
    save_file(tensors if value is None else {**tensors, name: value}, folder / WEIGHTS)


@pytest.fixture
def llada(tmp_path: Path) -> Path:
    save_checkpoint(toy_model("llada"), tmp_path)
    return tmp_path


# What is written is read back


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("sharded", [False, True])
def test_round_trip(tmp_path: Path, family: Family, tied: bool, sharded: bool) -> None:
    model = toy_model(family, tie_embeddings=tied)
    save_checkpoint(model, tmp_path)
    if sharded:
        shard(tmp_path)
    read = load(tmp_path)
    assert read.config == model.config
    assert read.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(read.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert (read.head.weight is read.embed.weight) == tied
    assert not read.training
    assert not any(parameter.requires_grad for parameter in read.parameters())


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_llada_with_grouped_heads_and_biases(tmp_path: Path, qkv_bias: bool) -> None:
    model = toy_model("llada", num_kv_heads=1, qkv_bias=qkv_bias)
    save_checkpoint(model, tmp_path)
    tokens, positions = torch.arange(8)[None], torch.arange(8)[None]
    assert torch.equal(load(tmp_path)(tokens, positions), model(tokens, positions))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_asked_for(tmp_path: Path, dtype: torch.dtype) -> None:
    model = toy_model()
    save_checkpoint(model, tmp_path, torch.bfloat16)
    assert stored_dtype(tmp_path) is torch.bfloat16
    read = load(tmp_path, dtype)
    stored = model.embed.weight.to(torch.bfloat16).to(dtype)
    assert {parameter.dtype for parameter in read.parameters()} == {dtype}
    assert torch.equal(read.embed.weight, stored)


def test_pieces_join(llada: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdllm.models.weights.PIECE", 700)
    assert torch.equal(load(llada).embed.weight, toy_model("llada").embed.weight)


def test_names_are_those_of_the_published_checkpoints(tmp_path: Path) -> None:
    save_checkpoint(toy_model("llada", layers=1), tmp_path / "llada")
    save_checkpoint(toy_model("dream", layers=1), tmp_path / "dream")
    block = {"attn_norm", "q_proj", "k_proj", "v_proj", "attn_out", "ff_norm", "ff_proj", "up_proj", "ff_out"}
    llada = {f"blocks.0.{name}" for name in block} | {"wte", "ln_f", "ff_out"}
    assert load_file(tmp_path / "llada" / WEIGHTS).keys() == {f"model.transformer.{name}.weight" for name in llada}
    attention = {f"self_attn.{p}_proj.{kind}" for p in "qkv" for kind in ("weight", "bias")}
    rest = {"self_attn.o_proj.weight", "input_layernorm.weight", "post_attention_layernorm.weight"}
    feed_forward = {f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
    dream = {f"model.layers.0.{name}" for name in attention | rest | feed_forward}
    ends = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert load_file(tmp_path / "dream" / WEIGHTS).keys() == dream | ends


def test_saving_replaces_the_files_a_model_was_loaded_from(llada: Path) -> None:
    model = load(llada)
    before = model.embed.weight.clone()
    model.embed.weight.mul_(2)
    save_checkpoint(model, llada)
    assert torch.equal(load(llada).embed.weight, 2 * before)


def test_saving_with_one_end_id_forgets_the_earlier_ones(llada: Path) -> None:
    model = toy_model("llada", eos_ids=(EOS,))
    save_checkpoint(model, llada)
    assert read_config(llada).eos_ids == (EOS,)


def test_a_dream_without_biases_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="qkv_bias=False"):
        save_checkpoint(toy_model("dream", qkv_bias=False), tmp_path)


def test_tied_checkpoint_may_carry_the_head(tmp_path: Path) -> None:
    model = toy_model("llada", tie_embeddings=True)
    save_checkpoint(model, tmp_path)
    change_tensor(tmp_path, "model.transformer.ff_out.weight", torch.zeros(VOCAB, 32))
    assert torch.equal(load(tmp_path).head.weight, model.embed.weight)


# Weights that are not what config.json says


NORM = "model.transformer.ln_f.weight"
HEAD = "model.transformer.ff_out.weight"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        (NORM, None, rf"lacks 1 tensor \({NORM}\), of the 30 that config.json asks for"),
        (HEAD, None, rf"lacks 1 tensor \({HEAD}\)"),
        (
            "model.extra",
            torch.ones(2),
            r"has 1 tensor \(model.extra\) that the network of its config.json has no place for",
        ),
        (
            "model.transformer.blocks.0.q_proj.bias",
            torch.ones(32),
            r"has 1 tensor \(model.transformer.blocks.0.q_proj.bias\)",
        ),
        (NORM, torch.ones(33), rf"{NORM} in .*{WEIGHTS} has shape \[33\]; config.json asks for \[32\]"),
        (NORM, torch.ones(()), r"has shape \[\]"),
        (NORM, torch.ones(32, dtype=torch.int8), f"{NORM} in .* has dtype I8; expected is one of F64, F32, F16, BF16"),
        (NORM, torch.ones(32).to(torch.float8_e4m3fn), "has dtype F8_E4M3"),
    ],
)
def test_tensor_refused(llada: Path, name: str, value: torch.Tensor | None, says: str) -> None:
    change_tensor(llada, name, value)
    with pytest.raises(CheckpointError, match=says):
        load(llada)


def test_many_missing_tensors_are_counted(llada: Path) -> None:
    edit(llada / "config.json", n_layers=5)
    with pytest.raises(
        CheckpointError, match=r"lacks 18 tensors \(model.transformer.blocks.3.attn_norm.weight, .*, \.\.\.\)"
    ):
        load(llada)


def test_weights_stored_as_integers_have_no_dtype(llada: Path) -> None:
    save_file({name: tensor.to(torch.int8) for name, tensor in load_file(llada / WEIGHTS).items()}, llada / WEIGHTS)
    with pytest.raises(CheckpointError, match="stores its weights as I8"):
        stored_dtype(llada)


@pytest.mark.parametrize("keep", [0, 4, 200, 5000, -1])
def test_truncated_file(llada: Path, keep: int) -> None:
    content = (llada / WEIGHTS).read_bytes()
    (llada / WEIGHTS).write_bytes(content[:keep])
    with pytest.raises(CheckpointError, match=f"{WEIGHTS} is truncated, damaged, or not a safetensors file"):
        load(llada)


def test_not_a_safetensors_file(llada: Path) -> None:
    (llada / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load(llada)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickle_refused(llada: Path, name: str) -> None:
    (llada / WEIGHTS).rename(llada / name)
    with pytest.raises(CheckpointError, match=f"{name}, a pickle, which can run code .* convert it to {WEIGHTS}"):
        load(llada)


def test_no_weights(llada: Path) -> None:
    (llada / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=f"has neither {WEIGHTS} nor {INDEX}"):
        load(llada)


def test_no_folder(tmp_path: Path) -> None:
    config = toy_model().config
    with pytest.raises(CheckpointError, match="is not a folder"):
        load_weights(tmp_path / "none", config, torch.float32, CPU)


def test_missing_shard(llada: Path) -> None:
    (llada / shard(llada)[1]).unlink()
    with pytest.raises(
        CheckpointError, match=f"has no model-00002-of-00003.safetensors, one of the 3 shards that {INDEX}"
    ):
        load(llada)


def test_tensor_in_two_shards(llada: Path) -> None:
    first, second, _ = shard(llada)
    save_file({**load_file(llada / first), **load_file(llada / second)}, llada / second)
    with pytest.raises(CheckpointError, match=f"is stored twice, in .*{first} and {second}"):
        load(llada)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ("{", "cannot be read as JSON"),
        ('{"metadata": {}}', "lacks weight_map; it must be an object from tensor names to file names"),
        ('{"weight_map": {"a": 1}}', "weight_map"),
        ('{"weight_map": {"a": "../a.safetensors"}}', "names the shard '../a.safetensors'; expected is a file beside"),
    ],
)
def test_index_refused(llada: Path, index: str, says: str) -> None:
    (llada / WEIGHTS).unlink()
    (llada / INDEX).write_text(index)
    with pytest.raises(CheckpointError, match=says):
        load(llada)


# Memory

MEASURE = """
import sys
from pathlib import Path
import torch
from fastdllm.models.checkpoint import load_weights, read_config

def status(key):
    # VmHWM, not ru_maxrss: the latter starts at the parent's peak when a process is spawned.
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

folder, before = Path(sys.argv[1]), status("VmRSS")
model = load_weights(folder, read_config(folder), getattr(torch, sys.argv[2]), torch.device("cpu"))
print(status("VmHWM") - before, sum(p.numel() * p.element_size() for p in model.parameters()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    ("stored", "wanted", "shards"),
    [("bfloat16", "bfloat16", 1), ("bfloat16", "float32", 3), ("float32", "bfloat16", 1)],
)
def test_loading_holds_the_weights_once(tmp_path: Path, stored: str, wanted: str, shards: int) -> None:
    config = replace(
        toy_model().config, vocab_size=65536, hidden_size=2048, num_layers=4, num_heads=16, num_kv_heads=16,
        intermediate_size=8192,
    )  # fmt: skip
    write_zeros(tmp_path, config, getattr(torch, stored))
    if shards > 1:
        shard(tmp_path, shards)
    command = [sys.executable, "-c", MEASURE, str(tmp_path), wanted]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    peak, weights = map(int, run.stdout.split())
    assert weights > 1e9
    assert peak <= 1.15 * weights + 300e6
