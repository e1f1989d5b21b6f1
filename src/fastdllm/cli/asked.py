"""What every study of speed and accuracy can be asked on the command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from fastdllm.cli import options as opt
from fastdllm.cli.arena import BatchSize, Timed
from fastdllm.cli.inspect_reports import FOLDER

if TYPE_CHECKING:
    from fastdllm.arena.problems import ProblemSet
    from fastdllm.config import GenerationOptions

FULL = {"components": 100, "thresholds": 100, "blocks": 100, "sensitivity": 240, "lengths": 10}
QUICK = {"components": 12, "thresholds": 12, "blocks": 12, "sensitivity": 12, "lengths": 3}
"""Problems of each study, and of a quick one. Studies that ask the same share the answers."""
ROUNDS, QUICK_ROUNDS = 3, 1

Count = Annotated[int | None, typer.Option(metavar="N", min=1, help="Problems, from the first [default: by study].")]
Rounds = Annotated[int | None, typer.Option(metavar="N", min=1, help="Rounds of timing [default: 3, quick 1].")]
Quick = Annotated[bool, typer.Option("--quick", help="A first look: few problems, few values.")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Results and answers; run again to continue.")]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What every study of speed and accuracy can be asked."""

    count: Count = None
    quick: Quick = False
    out: Out = FOLDER
    batch_size: BatchSize = 25
    rounds: Rounds = None
    timed: Timed = 3
    model: opt.Model = opt.MODEL
    revision: opt.Revision = None
    dtype: opt.Dtype = "auto"
    device: opt.Device = "auto"
    threads: opt.Threads = None
    gen_length: opt.GenLength = 64
    block_length: opt.BlockLength = 8
    seed: opt.Seed = opt.SEED

    @property
    def shared(self) -> GenerationOptions:
        return {"gen_length": self.gen_length, "block_length": self.block_length, "seed": self.seed}

    @property
    def choice(self) -> opt.ModelChoice:
        return opt.ModelChoice(
            model=self.model, revision=self.revision, dtype=self.dtype, device=self.device, threads=self.threads
        )

    @property
    def timing_rounds(self) -> int:
        return self.rounds or (QUICK_ROUNDS if self.quick else ROUNDS)

    def problems(self, study: str) -> int:
        """How many of a set a study asks."""
        return self.count or (QUICK if self.quick else FULL)[study]

    def of(self, sets: Iterable[ProblemSet], study: str) -> list[ProblemSet]:
        """The problems that a study asks."""
        from fastdllm.studies.study import first

        return [first(posed, self.problems(study)) for posed in sets]


def with_asked(command: Callable[..., None]) -> Callable[..., None]:
    """A command that takes the options of :class:`Asked` after its own, and gets them as its argument ``asked``."""
    hints, shared = get_type_hints(command, include_extras=True), get_type_hints(Asked, include_extras=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    own = [p.replace(kind=kind, annotation=hints[p.name]) for p in inspect.signature(command).parameters.values()]
    more = [inspect.Parameter(f.name, kind, default=f.default, annotation=shared[f.name]) for f in fields(Asked)]
    parameters = [*(p for p in own if p.name != "asked"), *more]

    @wraps(command)
    def run(**given: Any) -> None:
        command(asked=Asked(**{f.name: given.pop(f.name) for f in fields(Asked)}), **given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run
