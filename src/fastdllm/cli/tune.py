"""``fastdllm tune``: the fastest setting that is not worse than plain decoding, written as a preset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from fastdllm.cli import arena
from fastdllm.cli import options as opt
from fastdllm.cli.command import command_of
from fastdllm.cli.console import INTERRUPTED, note, stdout
from fastdllm.cli.progress import progress
from fastdllm.cli.table import print_table

if TYPE_CHECKING:
    from fastdllm.arena.methods import Method
    from fastdllm.arena.run import Arena
    from fastdllm.config import GenerationOptions
    from fastdllm.tune.run import Tuned
    from fastdllm.tune.trial import Goal

Margin = Annotated[float, typer.Option(metavar="POINTS", help="Accuracy that may be lost, in points of 100.")]
Confidence = Annotated[float, typer.Option(metavar="P", help="Of the claim that no more is lost.")]
Aim = Annotated[str, typer.Option("--objective", metavar="AIM", help="speed (tokens/s here) or rows (per token).")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Answers, tables and preset; run again to continue.")]
PresetOut = Annotated[Path | None, typer.Option(metavar="FILE", help="The preset [default: DIR/preset.json].")]


@dataclass(frozen=True, kw_only=True)
class Request(arena.Request):
    """What was asked for beyond the model and the goal."""

    preset: Path
    name: str
    """Of the preset."""


def tune(
    context: typer.Context,
    pairs: arena.Pairs = None,
    problems: arena.ProblemsFile = None,
    methods: arena.MethodsFile = None,
    margin: Margin = 2.0,
    confidence: Confidence = 0.95,
    objective: Aim = "speed",
    count: arena.Count = 500,
    batch_size: arena.BatchSize = 25,
    out: Out = Path("tune"),
    preset_out: PresetOut = None,
    rounds: arena.Rounds = 3,
    timed: arena.Timed = 5,
    model: opt.Model = opt.MODEL,
    revision: opt.Revision = None,
    dtype: opt.Dtype = "auto",
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    gen_length: opt.GenLength = 64,
    block_length: opt.BlockLength = 8,
    seed: opt.Seed = opt.SEED,
) -> None:
    """Find the fastest setting that is no worse than plain decoding on problems."""
    from fastdllm.tune.trial import Goal

    goal = Goal(margin=margin / 100, confidence=confidence, objective=objective)  # type: ignore[arg-type]
    request = Request(
        pairs=pairs or [], methods=methods, problems=problems, count=count, batch_size=batch_size, out=out,
        preset=preset_out or out / "preset.json", name=preset_out.stem if preset_out else f"{Path(model).name}-tuned",
        rounds=rounds, timed=timed, command=command_of(context),
    )  # fmt: skip
    shared: GenerationOptions = {"gen_length": gen_length, "block_length": block_length, "seed": seed}
    choice = opt.ModelChoice(model=model, revision=revision, dtype=dtype, device=device, threads=threads)
    contest = arena.prepare(request, choice, shared, _candidates(request, shared))
    request.preset.parent.mkdir(parents=True, exist_ok=True)
    _publish(_run(contest, goal, request), request)


def _candidates(request: Request, shared: GenerationOptions) -> tuple[Method, ...]:
    """Plain decoding, and after it what was asked for or the usual grid."""
    from fastdllm.arena.methods import parse_methods, parse_usable, read_methods
    from fastdllm.tune.grid import default_texts
    from fastdllm.tune.run import PLAIN

    texts = request.pairs + (read_methods(request.methods) if request.methods else [])
    if texts:
        return parse_methods([PLAIN, *texts], shared)
    methods, refused = parse_usable([PLAIN, *default_texts(shared)], shared)
    for why in refused:
        note(f"left out: {why}")
    return methods


def _run(contest: Arena, goal: Goal, request: Request) -> Tuned:
    from fastdllm.tune.run import tune

    @contextmanager
    def watch(what: str, total: int, before: int) -> Iterator[Callable[[], None]]:
        if total == before:
            yield lambda: None
            return
        with progress(what, total, before) as advance:
            yield advance

    try:
        return tune(contest, goal, rounds=request.rounds, timed=request.timed, command=request.command, watch=watch)
    except KeyboardInterrupt:
        typer.echo(f"interrupted: what is done is kept in {contest.folder}; {arena.AGAIN}", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _publish(tuned: Tuned, request: Request) -> None:
    """Write preset and tables; print what was tested and the verdict."""
    from fastdllm.presets import write_preset
    from fastdllm.tune import report

    report.write(tuned, request.out)
    write_preset(report.preset(tuned, request.name), request.preset)
    rows = report.tested(tuned)
    print_table(report.TESTED, rows, [row[-1] == "chosen" for row in rows], long="setting")
    for line in report.notes(tuned):
        note(line)
    console = stdout()
    console.print(Text(report.verdict(tuned), style="bold"), soft_wrap=not console.is_terminal)
    note(f"{request.preset} holds it for --preset; {request.out / 'tune.md'} has every setting")
