"""``fastdllm info``: what a checkpoint is, and the memory that a generation with it needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text as Line

from fastdllm.cli import options as opt
from fastdllm.cli.console import stdout
from fastdllm.config import GenerationConfig
from fastdllm.errors import OptionError

if TYPE_CHECKING:
    from fastdllm.memory import Memory
    from fastdllm.models.config import ModelConfig
    from fastdllm.text import Text

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="Embedded model, checkpoint folder, or hub id.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Prompts run together.")]
PromptLength = Annotated[int, typer.Option(min=0, help="Tokens of the longest prompt.")]


def info(
    model: ModelName = opt.MODEL,
    revision: opt.Revision = None,
    batch_size: BatchSize = 1,
    prompt_length: PromptLength = 512,
    gen_length: opt.GenLength = GenerationConfig.gen_length,
    block_length: opt.BlockLength = GenerationConfig.block_length,
    dtype: opt.Dtype = "auto",
    device: opt.Device = "auto",
) -> None:
    """Sizes, special ids and memory of a checkpoint; reads no weights."""
    from fastdllm.engine import choose_device, choose_dtype
    from fastdllm.memory import available, memory
    from fastdllm.models.checkpoint import read_config, resolve
    from fastdllm.text import load_text

    lengths = GenerationConfig(gen_length=gen_length, block_length=block_length)
    folder = resolve(model, revision)
    config, text, where = read_config(folder), load_text(folder), choose_device(device)
    chosen = choose_dtype(dtype, folder, where)
    need = memory(
        config, batch_size=batch_size, prompt_length=prompt_length, gen_length=lengths.gen_length,
        block_length=lengths.block_length, itemsize=chosen.itemsize,
    )  # fmt: skip
    console, name = stdout(), str(chosen).removeprefix("torch.")
    console.print(Line(f"{model} ({folder})" if str(folder) != model else model, style="bold"), soft_wrap=True)
    console.print(_grid(_shape(config, text, folder)))
    batch = f"{batch_size} prompt{'s' * (batch_size > 1)} of {prompt_length} tokens"
    console.print(Line(f"\nMemory for {batch}, gen_length {gen_length}, in {name} on {where}", style="bold"))
    console.print(_grid(_needs(need)))
    console.print(_verdict(need.total, available(str(where)), str(where)))
    if prompt_length + gen_length > config.max_length:
        raise OptionError(
            f"prompt_length={prompt_length} with gen_length={gen_length} is longer than the model's {config.max_length} "
            "positions; it would refuse such prompts."
        )
