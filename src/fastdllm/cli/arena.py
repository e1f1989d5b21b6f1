"""``fastdllm arena``: methods on the same problems, one table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from fastdllm.cli import options as opt
from fastdllm.cli.command import command_of
from fastdllm.cli.console import INTERRUPTED, note, stderr
from fastdllm.cli.progress import progress
from fastdllm.cli.table import print_table

if TYPE_CHECKING:
    from fastdllm.arena.methods import Method
    from fastdllm.arena.report import Report
    from fastdllm.arena.run import Arena
    from fastdllm.config import GenerationOptions

AGAIN = "run the same command again to continue"
NO_PLOT = f"arena.png is not drawn, as matplotlib is missing: pip install 'fastdllm[viz]', and {AGAIN}"

Pairs = Annotated[
    list[str] | None, typer.Argument(metavar="CACHE/DECODER", help="Such as dual/topk:k=2@gen_length=64, or a preset.")
]
MethodsFile = Annotated[Path | None, typer.Option("--methods", metavar="FILE", help="One CACHE/DECODER a line.")]
ProblemsFile = Annotated[
    Path | None, typer.Option("--problems", metavar="FILE", help="Or a benchmark [default: the model's own].")
]
Count = Annotated[int, typer.Option(metavar="N", min=1, help="Problems, from the first.")]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, help="Prompts run together.")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Answers, table and plot; run again to continue.")]
Rounds = Annotated[int, typer.Option(metavar="N", min=1, help="Rounds of timing.")]
Timed = Annotated[int, typer.Option(metavar="N", min=1, help="Problems timed in each round.")]
Timing = Annotated[bool, typer.Option("--timing/--no-timing", help="Measure tokens per second.")]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for beyond the model and the options of all methods."""

    pairs: list[str]
    methods: Path | None
    problems: Path | None
    count: int
    batch_size: int
    out: Path
    rounds: int
    """0 for no timing."""
    timed: int
    command: str


def arena(
    context: typer.Context,
    pairs: Pairs = None,
    methods: MethodsFile = None,
    problems: ProblemsFile = None,
    count: Count = 500,
    batch_size: BatchSize = 25,
    out: Out = Path("arena"),
    rounds: Rounds = 3,
    timed: Timed = 5,
    timing: Timing = True,
    model: opt.Model = opt.MODEL,
    revision: opt.Revision = None,
    dtype: opt.Dtype = "auto",
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    gen_length: opt.GenLength = 64,
    block_length: opt.BlockLength = 8,
    seed: opt.Seed = opt.SEED,
) -> None:
    """Compare methods on problems with known answers: accuracy, cost and speed."""
    request = Request(
        pairs=pairs or [], methods=methods, problems=problems, count=count, batch_size=batch_size, out=out,
        rounds=rounds if timing else 0, timed=timed, command=command_of(context),
    )  # fmt: skip
    shared: GenerationOptions = {"gen_length": gen_length, "block_length": block_length, "seed": seed}
    choice = opt.ModelChoice(model=model, revision=revision, dtype=dtype, device=device, threads=threads)
    chosen = _methods(request, shared)
    contest = prepare(request, choice, shared, chosen)
    _publish(_run(contest, request), request.out)


def _methods(request: Request, shared: GenerationOptions) -> tuple[Method, ...]:
    """The methods that were asked for, or the usual ones."""
    from fastdllm.arena.methods import default_methods, parse_methods, read_methods

    texts = request.pairs + (read_methods(request.methods) if request.methods else [])
    if texts:
        return parse_methods(texts, shared)
    methods, refused = default_methods(shared)
    for why in refused:
        note(f"left out: {why}")
    return methods


def prepare(request: Request, choice: opt.ModelChoice, shared: GenerationOptions, methods: tuple[Method, ...]) -> Arena:
    """The methods over the problems, nothing answered yet."""
    from fastdllm.arena.contest import provenance
    from fastdllm.arena.run import Arena
    from fastdllm.cli.posed import open_problems

    folder = choice.resolve()
    posed = open_problems(request.problems, folder, choice.model, request.count)
    engine = choice.load(folder)
    return Arena(
        engine=engine, methods=methods, problems=posed.problems, shared=shared, folder=request.out,
        provenance=provenance(posed, folder, choice.revision), chat=engine.uses_template(),
        batch_size=request.batch_size,
    )  # fmt: skip


def _run(contest: Arena, request: Request) -> Report:
    """Answer and time what the folder lacks."""
    from fastdllm.arena.contest import hold

    @contextmanager
    def watch(what: str, total: int, before: int) -> Iterator[Callable[[], None]]:
        if before and what == "answers":
            note(f"{before} of {total} answers are in {contest.answers} already")
        with progress(what, total, before) as advance:
            yield advance

    try:
        return hold(contest, rounds=request.rounds, timed=request.timed, command=request.command, watch=watch)
    except KeyboardInterrupt:
        typer.echo(f"interrupted: what is done is kept in {contest.folder}; {AGAIN}", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _publish(report: Report, folder: Path) -> None:
    """Write and print the table."""
    from fastdllm.arena.report import write

    write(report, folder)
    _print(report)
    _draw(report, folder / "arena.png")


def _draw(report: Report, path: Path) -> None:
    try:
        from fastdllm.arena.plot import draw
    except ImportError:
        note(NO_PLOT)
        return
    draw(report, path)


def _print(report: Report) -> None:
    """The table; on a narrow terminal the methods stand above it under their numbers."""
    from fastdllm.arena.report import cells, header, notes

    rows = [cells(score, report.scores) for score in report.scores]
    print_table(header(report.scores), rows, [score.front for score in report.scores], long="method")
    for line in notes(report):
        stderr().print(Text(line.replace("**", "").replace("`", ""), style="dim"))
