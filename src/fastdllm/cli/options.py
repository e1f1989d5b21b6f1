"""Options that commands share; those of a generation take their defaults from GenerationConfig."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, cast

import typer

from fastdllm.config import GenerationConfig
from fastdllm.errors import OptionError

if TYPE_CHECKING:
    from pathlib import Path

    from fastdllm.engine import Engine

MODEL = "tiny"
SEED = cast(int, GenerationConfig.seed)
CACHE, DECODER = str(GenerationConfig.cache), str(GenerationConfig.decoder)

Model = Annotated[str, typer.Option(help="Embedded model, checkpoint folder, or hub id.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; torch's choice when not given.")]
GenLength = Annotated[int, typer.Option(help="Answer slots.")]
BlockLength = Annotated[int, typer.Option(help="Slots of a block; blocks are filled left to right.")]
Cache = Annotated[str, typer.Option(help="K/V reuse: none, prefix or dual.")]
Decoder = Annotated[str, typer.Option(help="topk:k=, threshold:threshold=, factor:factor=, schedule:steps=, timestep:steps=.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopP = Annotated[float | None, typer.Option(help="Keep the likeliest tokens holding this probability.")]
TopK = Annotated[int | None, typer.Option(help="Keep this many of the likeliest tokens.")]
CfgScale = Annotated[float, typer.Option(help="Classifier-free guidance; works with --cache none.")]
Seed = Annotated[int, typer.Option(help="Of the noise, for temperatures above 0 and random orders.")]
StopAtEos = Annotated[bool, typer.Option(help="Stop when no slot left of an end token is open.")]


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Which checkpoint to load, and how."""

    model: str
    revision: str | None
    dtype: str
    device: str
    threads: int | None = None

    def resolve(self) -> Path:
        """The checkpoint's folder."""
        from fastdllm.models.checkpoint import resolve

        return resolve(self.model, self.revision)

    def load(self, folder: Path) -> Engine:
        """The engine, under the name that was asked for."""
        import torch

        from fastdllm.engine import load

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        engine = load(folder, dtype=self.dtype, device=self.device)
        engine.name = self.model
        return engine


def uses_template(engine: Engine, chat: bool | None) -> bool:
    """Whether prompts are wrapped in the chat template: as asked, or when the checkpoint has one."""
    return chat if chat is not None else engine.text is not None and engine.text.has_chat_template


def refuse_together(given: dict[str, bool], *, why: str) -> None:
    """Raise when two or more of ``given`` (flag → was it given) are true."""
    names = [name for name, is_given in given.items() if is_given]
    if len(names) > 1:
        raise OptionError(f"{names[0]} and {names[1]} cannot be given together: {why}.")
