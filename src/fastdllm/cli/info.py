"""``fastdllm info``: what a checkpoint is, and the memory that a generation with it needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text as Line

from fastdllm.cli import options as opt
from fastdllm.cli.console import stdout
from fastdllm.config import GenerationConfig, GenerationOptions
from fastdllm.errors import OptionError

if TYPE_CHECKING:
    from fastdllm.memory import Memory
    from fastdllm.models.config import ModelConfig
    from fastdllm.text import Text

PROMPT_LENGTH = 512
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="Embedded model, checkpoint folder, or hub id.")]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, help="Prompts run together.")]
PromptLength = Annotated[
    int | None, typer.Option(metavar="N", min=0, help=f"Of the longest, in tokens [default: {PROMPT_LENGTH} or less].")
]

Processes = Annotated[
    int, typer.Option("--tensor-parallel", metavar="N", min=1, help="Processes to split the model over.")
]


def info(
    context: typer.Context,
    model: ModelName = opt.MODEL,
    revision: opt.Revision = None,
    batch_size: BatchSize = 1,
    prompt_length: PromptLength = None,
    gen_length: opt.GenLength = GenerationConfig.gen_length,
    preset: opt.PresetName = None,
    block_length: opt.BlockLength = GenerationConfig.block_length,
    cache: opt.Cache = opt.CACHE,
    decoder: opt.Decoder = opt.DECODER,
    dtype: opt.Dtype = "auto",
    device: opt.Device = "auto",
    tensor_parallel: Processes = 1,
) -> None:
    """Sizes, special ids and memory of a checkpoint; reads no weights."""
    from fastdllm.loading import choose_device, choose_dtype
    from fastdllm.memory import available, memory
    from fastdllm.models.checkpoint import read_config, resolve
    from fastdllm.models.config import check_divides
    from fastdllm.models.quantized import quantization
    from fastdllm.text import load_text

    given: GenerationOptions = {
        "gen_length": gen_length, "block_length": block_length, "cache": cache, "decoder": decoder
    }  # fmt: skip
    options, _ = opt.with_preset(context, preset, given)
    lengths = GenerationConfig(**options)
    gen_length = lengths.gen_length
    folder = resolve(model, revision, weights=False)
    config, text, where = read_config(folder), load_text(folder), choose_device(device)
    chosen = choose_dtype(dtype, folder, where)
    check_divides(config, tensor_parallel)
    if prompt_length is None:
        prompt_length = max(0, min(PROMPT_LENGTH, config.max_length - gen_length))
    if prompt_length + gen_length > config.max_length:
        raise OptionError(
            f"prompt_length={prompt_length} with gen_length={gen_length} is longer than the {config.max_length} "
            f"positions of {model}."
        )
    need = memory(
        config, lengths.policy, lengths.rule, batch_size=batch_size, prompt_length=prompt_length,
        gen_length=lengths.gen_length, block_length=lengths.block_length, itemsize=chosen.itemsize,
        tensor_parallel=tensor_parallel, quantized=bool(quantization(dtype)),
    )  # fmt: skip
    console, name = stdout(), quantization(dtype) or str(chosen).removeprefix("torch.")
    console.print(Line(model, style="bold"), soft_wrap=True)
    console.print(_grid(_shape(config, text, folder)))
    batch = f"{batch_size} prompt{'s' * (batch_size > 1)} of {prompt_length} tokens, gen_length {gen_length}"
    each = f"of each of {tensor_parallel} processes, " if tensor_parallel > 1 else ""
    console.print(Line(f"\nMemory {each}for {batch}, {name} on {where}", style="bold"))
    console.print(Line(f"cache {options['cache']}, decoder {options['decoder']}", style="dim"))
    console.print(_grid(_needs(need)))
    here = need.total * (tensor_parallel if where.type == "cpu" else 1)  # on GPUs each process has its own
    console.print(_verdict(here, available(str(where)), str(where)), soft_wrap=True)


def _grid(rows: list[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Line(name), Line(value))
    return table


def _shape(config: ModelConfig, text: Text | None, folder: Path) -> list[tuple[str, str]]:
    from fastdllm.loading import end_ids
    from fastdllm.memory import parameters

    heads = f"{config.num_heads} heads of {config.head_dim}, {config.num_kv_heads} for keys and values"
    tied = "tied" if config.tie_embeddings else "separate head"
    return [
        ("folder", str(folder)),
        ("family", config.family),
        ("parameters", f"{parameters(config):,}"),
        ("layers", str(config.num_layers)),
        ("width", f"{config.hidden_size}, feed-forward {config.intermediate_size}"),
        ("attention", heads),
        ("vocabulary", f"{config.vocab_size:,} ({tied})"),
        ("mask id", _named([config.mask_id], text)),
        ("end ids", _named(list(end_ids(config, text)), text)),
        ("pad id", _named([config.pad_id], text)),
        ("max length", f"{config.max_length} positions, prompt and answer together"),
        ("tokenizer", "yes" if text else "no"),
        ("chat template", "yes" if text and text.has_chat_template else "no"),
    ]


def _named(ids: list[int], text: Text | None) -> str:
    names = [text.token(token) if text else "" for token in ids]
    return ", ".join(f"{token} {name}".rstrip() for token, name in zip(ids, names, strict=True)) or "none"


def _needs(need: Memory) -> list[tuple[str, str]]:
    return [
        ("weights", size(need.weights)),
        ("K/V store", f"{size(need.kv_store)}  (every layer and slot)" if need.kv_store else "none is kept"),
        *([("method", f"{size(need.method)}  (what cache and decoder keep beside it)")] if need.method else []),
        ("logits", f"{size(need.logits)}  (slots predicted in a pass, with the float32 copy)"),
        ("activations", f"{size(need.activations)}  (an estimate)"),
        ("total", size(need.total)),
    ]


def size(count: int) -> str:
    power = max(p for p in range(len(UNITS)) if p == 0 or count >= 1024**p)
    return f"{count / 1024**power:.{1 if power else 0}f} {UNITS[power]}"


def _verdict(total: int, free: int | None, where: str) -> Line:
    if free is None:
        return Line(f"How much is free on {where} cannot be told here.", style="yellow")
    fits = total <= free
    answer = "fits" if fits else "does not fit"
    return Line(f"It {answer} this machine: {size(free)} are free on {where}.", style="green" if fits else "red")
