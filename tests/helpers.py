"""A checkpoint folder for tests, with a byte-level tokenizer and a chat template; and the command line run on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from typer.testing import CliRunner

from fastdllm.cli.app import app
from fastdllm.models.checkpoint import save_checkpoint
from fastdllm.models.config import Family, ModelConfig
from fastdllm.models.config_file import config_keys
from fastdllm.models.families import LLADA
from fastdllm.models.transformer import Transformer
from fastdllm.models.weights import WEIGHTS
from toys import toy_model

QUICK = ("--gen-length", "12", "--block-length", "6", "--decoder", "topk:k=2")
SPECIAL = ("<|startoftext|>", "<|endoftext|>", "<|eot_id|>", "<|mdm_mask|>")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'][0] + ':' + m['content'] + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
)


def byte_tokenizer() -> Tokenizer:
    """Every byte is a token, and the special tokens of :data:`SPECIAL` come after them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def write_zeros(folder: Path, config: ModelConfig, dtype: torch.dtype) -> int:
    """A checkpoint of zeros in LLaDA's format, for measuring; the numbers it holds."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Transformer(config).state_dict().items()}
    names = LLADA.tensor_names(config)
    save_file({theirs: torch.zeros(shapes[ours], dtype=dtype) for theirs, ours in names.items()}, folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(config_keys(config)))
    return sum(shape.numel() for shape in shapes.values())


def write_checkpoint(
    folder: Path, *, family: Family = "llada", tokenizer: bool = True, template: bool = True, seed: int = 0,
    max_length: int = 256, dtype: torch.dtype = torch.float32, layers: int = 3,
) -> Path:  # fmt: skip
    """A random checkpoint that :func:`fastdllm.load` reads."""
    text = byte_tokenizer()
    eos, eot, mask = (text.token_to_id(SPECIAL[i]) for i in (1, 2, 3))
    model = toy_model(
        family, layers, seed, vocab_size=264, max_length=max_length, mask_id=mask, eos_ids=(eos, eot), pad_id=eos
    )
    save_checkpoint(model, folder, dtype)
    if tokenizer:
        text.save(str(folder / "tokenizer.json"))
        named = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "pad_token": SPECIAL[1], "mask_token": SPECIAL[3]}
        settings = {**named, **({"chat_template": TEMPLATE} if template else {})}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def run(*args: str | Path, stdin: str | None = None) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args], input=stdin, env={"COLUMNS": "80"})


def refused(*args: str | Path, stdin: str | None = None) -> str:
    """The one sentence with which a run is refused."""
    result = run(*args, stdin=stdin)
    assert result.exit_code == 2, result.output
    assert not result.stdout
    assert result.stderr.startswith("error: ")
    assert result.stderr.endswith(".\n")
    assert result.stderr.count("\n") == 1
    return result.stderr


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
