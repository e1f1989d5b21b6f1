"""``fastdllm arena``: methods on the same problems, one table."""

from __future__ import annotations

import json
import shlex
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from fastdllm.cli import options as opt
from fastdllm.cli.console import INTERRUPTED, note, stderr, stdout
from fastdllm.cli.progress import progress
from fastdllm.files import write_whole
from fastdllm.results import Results, open_results, read_runs

if TYPE_CHECKING:
    from fastdllm.arena.methods import Method
    from fastdllm.arena.report import Report
    from fastdllm.arena.run import Arena
    from fastdllm.config import GenerationOptions

AGAIN = "run the same command again to continue"
NO_PLOT = f"arena.png is not drawn, as matplotlib is missing: pip install 'fastdllm[viz]', and {AGAIN}"
WIDE = 120  # columns of a terminal that has room for methods beside their numbers

Pairs = Annotated[
    list[str] | None, typer.Argument(metavar="CACHE/DECODER", help="Such as dual/topk:k=2@block_length=16.")
]
MethodsFile = Annotated[Path | None, typer.Option("--methods", metavar="FILE", help="One CACHE/DECODER a line.")]
ProblemsFile = Annotated[
    Path | None, typer.Option("--problems", metavar="FILE", help="JSON lines [default: the model's own].")
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
        rounds=rounds if timing else 0, timed=timed, command=_command(context),
    )  # fmt: skip
    shared: GenerationOptions = {"gen_length": gen_length, "block_length": block_length, "seed": seed}
    choice = opt.ModelChoice(model=model, revision=revision, dtype=dtype, device=device, threads=threads)
    chosen = _methods(request, shared)
    contest = _prepare(request, choice, shared, chosen)
    _run(contest, request)
    _publish(contest, request)


def _command(context: typer.Context) -> str:
    """The command with the options that were given."""
    words, arguments = [], []
    for parameter in context.command.params:
        name = parameter.name or ""
        source, value = context.get_parameter_source(name), context.params.get(name)
        if source is None or source.name != "COMMANDLINE":
            continue
        if parameter.param_type_name == "argument":
            arguments = [str(one) for one in value or []]
        elif isinstance(value, bool):
            words.append(parameter.opts[0] if value else parameter.secondary_opts[0])
        else:
            words += [parameter.opts[0], str(value)]
    return shlex.join(["fastdllm", "arena", *arguments, *words])


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


def _prepare(
    request: Request, choice: opt.ModelChoice, shared: GenerationOptions, methods: tuple[Method, ...]
) -> Arena:
    """Everything that can be refused is refused here, before the first pass."""
    from fastdllm.arena.problems import open_problems
    from fastdllm.arena.run import Arena
    from fastdllm.record import fingerprint

    folder = choice.resolve()
    posed = open_problems(request.problems, folder, choice.model, request.count)
    engine = choice.load(folder)
    contest = Arena(
        engine=engine, methods=methods, problems=posed.problems, shared=shared, folder=request.out,
        provenance={"revision": choice.revision, "weights": fingerprint(folder), "problems": posed.digest},
        chat=opt.uses_template(engine, None), batch_size=request.batch_size,
    )  # fmt: skip
    contest.check()
    request.out.mkdir(parents=True, exist_ok=True)
    return contest


def _run(contest: Arena, request: Request) -> None:
    """Answer and time what the folder lacks."""
    from fastdllm.arena.run import answer_all
    from fastdllm.arena.timing import time_all, timing_settings, turns
    from fastdllm.record import environment

    runs_on, asked = environment(contest.engine), contest.asked()
    to_time = turns(contest, request.rounds, request.timed)
    with ExitStack() as files:
        answers = files.enter_context(open_results(contest.answers, asked, contest.settings(), runs_on))
        timings: Results | None = None
        if request.rounds:
            decides = timing_settings(contest, runs_on, request.timed)
            timings = files.enter_context(open_results(contest.timings, to_time, decides, runs_on))
        before = len(answers.finished & asked.keys())
        if before:
            note(f"{before} of {len(asked)} answers are in {contest.answers} already")
        try:
            with progress("answers", len(asked), before) as advance:
                answer_all(contest, answers, advance)
            if timings is not None:
                with progress("timings", len(to_time), len(timings.finished & to_time.keys())) as advance:
                    time_all(contest, timings, request.rounds, request.timed, advance)
        except KeyboardInterrupt:
            typer.echo(f"interrupted: what is done is kept in {contest.folder}; {AGAIN}", err=True)
            raise typer.Exit(INTERRUPTED) from None


def _publish(contest: Arena, request: Request) -> None:
    """Write and print the table."""
    from fastdllm.arena.report import Report, as_json, markdown
    from fastdllm.arena.run import read_answers
    from fastdllm.arena.score import scores
    from fastdllm.arena.timing import read_speeds

    answers = read_answers(contest)
    runs_of = {key: sorted({answer.run for answer in given}) for key, given in answers.items()}
    speeds = read_speeds(contest, request.rounds) if request.rounds else {}
    report = Report(
        scores=scores(contest.methods, answers, speeds), settings=contest.settings(), runs=read_runs(contest.answers),
        timed=min(request.timed, len(contest.problems)) if request.rounds else 0,
        timing_runs=read_runs(contest.timings) if request.rounds else [], command=request.command,
    )  # fmt: skip
    settings_of = {method.key: contest.settings_of(method) for method in contest.methods}
    write_whole(contest.folder / "arena.json", json.dumps(as_json(report, settings_of, runs_of), indent=2) + "\n")
    write_whole(contest.folder / "arena.md", markdown(report) + "\n")
    _print(report)
    _draw(report, contest.folder / "arena.png")


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

    console, names = stdout(), header(report.scores)
    wide, method = console.width >= WIDE, names.index("method")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names if wide else [name for name in names if name != "method"]:
        broken = name.replace(" (", "\n(").replace("/token", "\n/token")
        if name == "method":
            table.add_column(name, overflow="fold")
        else:
            table.add_column(broken, justify="right", no_wrap=True)
    for score in report.scores:
        texts = [Text(text) for text in cells(score, report.scores)]
        if not wide:
            console.print(Text(f"{score.number:3}  {texts.pop(method)}", style="bold" if score.front else ""))
        table.add_row(*texts, style="bold" if score.front else "")
    console.print(table)
    for line in notes(report):
        stderr().print(Text(line.replace("**", "").replace("`", ""), style="dim"))
