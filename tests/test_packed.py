"""Packed weights: the same numbers from the same weights, held once, and refused where they cannot be."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import fastdllm
from fastdllm.arena.flops import Counter
from fastdllm.errors import OptionError
from fastdllm.models import packed
from fastdllm.models.checkpoint import read_config, save_checkpoint
from fastdllm.models.packed import PackedLinear, choose_packing, is_packed, lay_out, pack, packs
from fastdllm.models.transformer import Transformer
from fastdllm.models.weights import WEIGHTS, load_weights
from fastdllm.record import environment
from helpers import write_checkpoint, write_zeros
from toys import FAMILIES, prompts_of, toy_engine, toy_model

CPU = torch.device("cpu")
HALVES = (torch.bfloat16, torch.float16)
pytestmark = pytest.mark.skipif(not packs(torch.float32, CPU), reason="torch without oneDNN")


def packed_toy(family="llada", **changes) -> Transformer:
    model = toy_model(family, **changes)
    lay_out(model, pack)
    return model


def of_dtype(dtype: torch.dtype) -> torch.dtype:
    if not packs(dtype, CPU):
        pytest.skip(f"this CPU is not served in {dtype}")
    return dtype


# The numbers


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 48), (2, 7, 48), (33, 48), (1, 200, 48), (2, 0, 48)])
def test_products_are_those_of_the_plain_layer(dtype, bias, shape):
    plain = nn.Linear(48, 100, bias=bias, dtype=of_dtype(dtype)).requires_grad_(False)
    layer = PackedLinear(plain.weight, plain.bias)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    found, expected = layer(x), plain(x)
    assert found.shape == expected.shape
    assert found.dtype == dtype
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, atol=16 * step, rtol=4 * step)


def test_rows_may_lie_apart():
    plain = nn.Linear(48, 100).requires_grad_(False)
    x = torch.randn(2, 9, 48)
    for rows in (x[:, 2:5], x.transpose(0, 1), x[..., :1].expand(2, 9, 48)):
        torch.testing.assert_close(PackedLinear(plain.weight, plain.bias)(rows), plain(rows))


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_the_weight_comes_back_bit_by_bit(dtype):
    weight = torch.randn(100, 48).to(of_dtype(dtype))
    assert torch.equal(PackedLinear(weight, None).weight, weight)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", ["none", "prefix", "dual", "d2cache", "dllm"])
def test_answers_are_those_of_the_plain_network(family, cache):
    plain = toy_engine(family, seed=2)
    engine = toy_engine(family, seed=2)
    lay_out(engine.model, pack)
    assert is_packed(engine.model)
    prompts = prompts_of([11, 30, 2, 18], seed=4)
    options = {"gen_length": 24, "block_length": 8, "cache": cache, "decoder": "threshold:threshold=0.5"}
    expected = [(c.canvas, c.nfe) for c in plain.generate(prompts, **options)]
    assert [(c.canvas, c.nfe) for c in engine.generate(prompts, **options)] == expected
    alone = [engine.generate([prompt], **options)[0] for prompt in prompts]
    assert [(c.canvas, c.nfe) for c in alone] == expected


def test_operations_are_counted_alike():
    counts = []
    for model in (toy_model(), packed_toy()):
        with Counter(model) as counter:
            model.logits(model(torch.zeros(2, 9, dtype=torch.long), torch.arange(9).expand(2, 9)))
        counts.append(counter.total)
    assert counts[0] == counts[1] > 0


# What is held


def test_every_weight_is_held_once():
    model, plain = packed_toy("dream", vocab_size=64), toy_model("dream", vocab_size=64)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, PackedLinear)}
    assert layers.keys() == {name for name, layer in plain.named_modules() if isinstance(layer, nn.Linear)}
    dense = {name for name, _ in plain.named_parameters()} - {f"{name}.weight" for name in layers}
    assert {name for name, _ in model.named_parameters()} == dense
    for layer in layers.values():
        numbers = layer.out_features * layer.in_features
        assert layer.nbytes <= 4 * (numbers + 64 * (layer.in_features + layer.out_features)) + 64
        tensors = [value for value in vars(layer).values() if isinstance(value, torch.Tensor)]
        assert [tensor.is_mkldnn for tensor in tensors] == [True]


def test_a_tied_head_stays_the_embedding():
    model = packed_toy(tie_embeddings=True)
    assert model.head.weight is model.embed.weight
    assert is_packed(model)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_a_packed_model_is_saved_as_the_plain_one(tmp_path, family, tied):
    save_checkpoint(toy_model(family, tie_embeddings=tied), tmp_path / "plain")
    save_checkpoint(packed_toy(family, tie_embeddings=tied), tmp_path / "packed")
    plain, found = (load_file(tmp_path / name / WEIGHTS) for name in ("plain", "packed"))
    assert plain.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in plain.items())
    again = load_weights(tmp_path / "packed", read_config(tmp_path / "packed"), torch.float32, CPU, layout=pack)
    tokens, places = torch.arange(9)[None], torch.arange(9)[None]
    assert torch.equal(again(tokens, places), packed_toy(family, tie_embeddings=tied)(tokens, places))


def test_packed_weights_stay_where_they_are():
    for move in (lambda m: m.to(torch.bfloat16), lambda m: m.to("meta"), lambda m: m.double()):
        with pytest.raises(OptionError, match="load the model with packed=False"):
            move(packed_toy())


MEASURE = """
import sys
from pathlib import Path
import torch
from fastdllm.models.checkpoint import load_weights, read_config
from fastdllm.models.packed import pack
from fastdllm.models.quantized import int8_layout

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

layout = {"packed": pack, "int8": int8_layout()}[sys.argv[2]]
layout(torch.nn.Linear(64, 64, device="meta", bias=False), torch.zeros(64, 64))  # libraries are no weights
folder, before = Path(sys.argv[1]), status("VmRSS")
model = load_weights(folder, read_config(folder), torch.bfloat16, torch.device("cpu"), layout=layout)
linear = sum(layer.nbytes for layer in model.modules() if hasattr(layer, "packed"))
print(status("VmHWM") - before, linear + sum(p.nbytes for p in model.parameters()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize(("kind", "share"), [("packed", 1.0), ("int8", 0.55)])
def test_loading_holds_the_weights_once(tmp_path, kind, share):
    """Of int8 less than the float weights take: half, and the embedding."""
    of_dtype(torch.bfloat16)
    config = replace(
        toy_model().config, vocab_size=8192, hidden_size=1024, num_layers=8, num_heads=16, num_kv_heads=16,
        intermediate_size=4096,
    )  # fmt: skip
    float_bytes = 2 * write_zeros(tmp_path, config, torch.bfloat16)
    command = [sys.executable, "-c", MEASURE, str(tmp_path), kind]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    (tmp_path / WEIGHTS).unlink()
    peak, weights = map(int, run.stdout.split())
    assert float_bytes > 3e8
    assert 0.5 * share * float_bytes < weights <= 1.02 * share * float_bytes
    assert peak <= 1.15 * weights + 150e6  # a tensor in both forms, and what reading and rounding take


# Which are packed


@pytest.fixture
def rule(monkeypatch):
    """The rule of "auto", small weights included, with nothing measured yet; the list has what it is asked."""
    asked: list[tuple[int, ...]] = []

    def tall(weight: torch.Tensor) -> bool:
        asked.append(tuple(weight.shape))
        return weight.shape[0] > weight.shape[1]

    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(packed, "LEAST", 64 * 32)
    monkeypatch.setattr(packed, "_pays", {})
    monkeypatch.setattr(packed, "pays", tall)
    return asked


def test_auto_packs_the_shapes_that_it_pays_for(tmp_path, rule, monkeypatch):
    folder = write_checkpoint(tmp_path)
    dtype = of_dtype(torch.bfloat16)
    model = fastdllm.load(folder, dtype=dtype).model
    plain = fastdllm.load(folder, dtype=dtype, packed=False).model
    layers = {name: layer for name, layer in plain.named_modules() if isinstance(layer, nn.Linear)}
    for name, layer in layers.items():
        expected = layer.weight.numel() >= 64 * 32 and layer.out_features > layer.in_features
        assert isinstance(model.get_submodule(name), PackedLinear) == expected, name
    assert is_packed(model)
    assert len(rule) == len(set(rule)) > 1  # each shape is measured once
    fastdllm.load(folder, dtype=dtype)
    assert len(rule) == len(set(rule))
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert not is_packed(fastdllm.load(folder, dtype=dtype).model)


def test_auto_leaves_float16_plain(tmp_path, rule):
    assert not is_packed(fastdllm.load(write_checkpoint(tmp_path), dtype=of_dtype(torch.float16)).model)
    assert rule == []


def test_auto_packs_float32_unmeasured(tmp_path, rule):
    """Packed products round differently there: a clock must not choose what an answer is."""
    model = fastdllm.load(write_checkpoint(tmp_path), dtype="float32").model
    kinds = {name: isinstance(layer, PackedLinear) for name, layer in model.named_modules()}
    assert kinds["blocks.0.feed_forward.up"]
    assert kinds["blocks.0.feed_forward.down"]
    assert kinds["head"]
    assert not kinds["blocks.0.attention.q"]
    assert rule == []


@pytest.mark.parametrize("rows", [1, 32, 300])
def test_in_bfloat16_packed_and_plain_products_are_the_same_bits(rows):
    """Which of them is used is left to a clock."""
    plain = nn.Linear(256, 384, dtype=of_dtype(torch.bfloat16)).requires_grad_(False)
    x = torch.randn(rows, 256, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    assert torch.equal(PackedLinear(plain.weight, plain.bias)(x), plain(x))


@pytest.mark.parametrize("slow", ["plain", "packed"])
def test_what_pays_is_what_is_faster(slow, monkeypatch):
    """A clock that only products move: the slow ones by 3, the others by 2."""
    now = [0.0]

    def counted(kind, multiply):
        def product(*args):
            now[0] += 3.0 if kind == slow else 2.0
            return multiply(*args)

        return product

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr(packed, "linear", counted("plain", packed.linear))
    monkeypatch.setattr(PackedLinear, "forward", counted("packed", PackedLinear.forward))
    assert packed.pays(torch.randn(64, 48)) == (slow == "plain")


def test_what_wins_by_a_hair_is_chance(monkeypatch):
    monkeypatch.setattr(packed, "race", lambda *ways: [1.04, 1.0])
    assert not packed.pays(torch.randn(64, 48))
    monkeypatch.setattr(packed, "race", lambda *ways: [1.06, 1.0])
    assert packed.pays(torch.randn(64, 48))


def test_the_embedded_model_is_not_packed_in_float32(tiny):
    """Its weights are too small: it would get slower."""
    assert not is_packed(tiny.model)
    assert environment(tiny)["packed"] is False


def test_packed_by_name(model):
    assert not is_packed(fastdllm.load(model, packed=False, dtype="float32").model)
    engine = fastdllm.load(model, packed=True, dtype="float32")
    assert isinstance(engine.model.head, PackedLinear)
    assert engine.dtype == torch.float32
    assert engine.precision == "float32"
    assert environment(engine)["packed"] is True
    assert engine.generate("x", gen_length=8)[0].nfe > 0


def test_refusals(model, monkeypatch):
    with pytest.raises(OptionError, match=r"packed='yes' is not one of True, False, auto\."):
        fastdllm.load(model, packed="yes")
    with pytest.raises(OptionError, match=r"packed=True needs a CPU with oneDNN .* this is float32 on meta\."):
        choose_packing(True, torch.float32, torch.device("meta"))
    with pytest.raises(OptionError, match=r"packed=True does not go with compile=True"):
        fastdllm.load(model, packed=True, compile=True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(OptionError, match="packed=True needs a CPU with oneDNN"):
        fastdllm.load(model, packed=True)
    assert not is_packed(fastdllm.load(model).model)


def test_compiled_networks_are_not_packed(model, monkeypatch):
    monkeypatch.setattr("fastdllm.loading.has_kernels", lambda *_: False)
    assert not is_packed(fastdllm.load(model, compile=True, dtype="bfloat16").model)
