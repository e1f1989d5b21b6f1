"""Options that commands share; those of a generation take their defaults from GenerationConfig."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, cast

import typer

from fastdllm.checks import check_least
from fastdllm.config import GenerationConfig
from fastdllm.errors import OptionError

if TYPE_CHECKING:
    from pathlib import Path

    from fastdllm.engine import Engine

MODEL = "tiny"
SEED = cast(int, GenerationConfig.seed)
CACHE, DECODER = str(GenerationConfig.cache), str(GenerationConfig.decoder)

Model = Annotated[str, typer.Option(metavar="MODEL", help="Embedded, a folder, or a hub id.")]
Revision = Annotated[str | None, typer.Option(metavar="NAME", help="Branch, tag or commit of a hub id.")]
Dtype = Annotated[str, typer.Option(metavar="DTYPE", help="auto, float32, bfloat16, float16.")]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")]
Threads = Annotated[int | None, typer.Option(metavar="N", help="CPU threads.")]
GenLength = Annotated[int, typer.Option(metavar="N", help="Answer slots.")]
BlockLength = Annotated[int, typer.Option(metavar="N", help="Slots of a block.")]
Cache = Annotated[str, typer.Option(metavar="SPEC", help="K/V reuse: dual, prefix, none, ...; fastdllm methods.")]
Decoder = Annotated[str, typer.Option(metavar="SPEC", help="threshold, topk, ...; fastdllm methods.")]
Temperature = Annotated[float, typer.Option(metavar="T", help="0 is greedy.")]
TopP = Annotated[float | None, typer.Option(metavar="P", help="Keep the likeliest, to this probability.")]
TopK = Annotated[int | None, typer.Option(metavar="N", help="Keep this many of the likeliest.")]
CfgScale = Annotated[float, typer.Option(metavar="S", help="Guidance; needs cache none.")]
Seed = Annotated[int, typer.Option(metavar="N", help="Seed of the noise.")]
StopAtEos = Annotated[bool, typer.Option(show_default=False, help="End at an end token (the default).")]


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
            check_least("threads", self.threads, 1)
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
