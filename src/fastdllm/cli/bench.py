"""``fastdllm bench``: how fast a model runs here, and how close that is to the machine's limit."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastdllm.cli import options as opt
from fastdllm.cli.command import command_of
from fastdllm.cli.console import note, stderr
from fastdllm.cli.progress import progress
from fastdllm.cli.subject import NO_PLOT, print_measured
from fastdllm.files import write_whole

if TYPE_CHECKING:
    from fastdllm.bench.run import Bench, Request
    from fastdllm.bench.setting import Setting

PROMPT = 512
QUIET = 30  # seconds between two lines that say how much is done
SCALING_PASSES = 4
"""Of each kind in a run of a sweep, where nothing else is asked for."""

ModelName = Annotated[
    str | None, typer.Argument(metavar="MODEL", help=f"Embedded, a folder, or a hub id [default: {opt.MODEL}].")
]
Shape = Annotated[
    str | None,
    typer.Option(metavar="SHAPE", help="Random weights: 220m, 1b, llada-8b, dream-7b or d=1024,layers=12,heads=16,..."),
]
PromptLength = Annotated[
    int | None,
    typer.Option(metavar="N", min=0, help=f"Tokens of each prompt, drawn at random [default: {PROMPT} or less]."),
]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, help="Prompts run together.")]
DecoderSpec = Annotated[str | None, typer.Option(metavar="SPEC", help="[default: the model's; topk:k=1 for a shape].")]
TokensPerPass = Annotated[
    float | None, typer.Option(metavar="N", help="Commit so many a pass, in place of a decoder; may be a fraction.")
]
Trace = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Commit as a trace of fastdllm generate did, in place of a decoder.")
]
Passes = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Time N passes of each kind, and extrapolate [default: all].")
]
Rounds = Annotated[int, typer.Option(metavar="N", min=1, help="Rounds of passes: a full one and four cached.")]
Runs = Annotated[int, typer.Option(metavar="N", min=1, help="Generations of each setting.")]
Dtype = Annotated[str, typer.Option(metavar="DTYPE", help="auto, float32, bfloat16, float16, int8, float8 (GPUs).")]
Packed = Annotated[
    bool | None,
    typer.Option(
        "--packed/--no-packed", help="Lay weights out once at load [default: auto: for kernels, or for oneDNN]."
    ),
]
Attention = Annotated[str, typer.Option(metavar="NAME", help="auto (the fastest), sdpa, matmul, kernels.")]
Plain = Annotated[
    bool | None,
    typer.Option("--plain/--no-plain", help="Time plain nn.Linear, too [default: for shapes on a CPU]."),
]
Compare = Annotated[
    tuple[str, str] | None,
    typer.Option(metavar="A B", help="Two settings in turns, such as 'dual/topk:k=1;dtype=bfloat16' 'cache=none'."),
]
Scaling = Annotated[bool, typer.Option("--scaling", help="Vary each length, batch and model size.")]
Profile = Annotated[bool, typer.Option("--profile", help="Name the operators that take the time.")]
Top = Annotated[int, typer.Option(metavar="N", min=1, help="Operators to name.")]
MemoryOption = Annotated[bool, typer.Option("--memory/--no-memory", help="Measure peak memory.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Everything that was measured.")]
Plot = Annotated[Path | None, typer.Option(metavar="FILE", help="A picture, as .png, .svg or .pdf.")]


def bench(
    context: typer.Context,
    model: ModelName = None,
    shape: Shape = None,
    prompt_length: PromptLength = None,
    gen_length: opt.GenLength = 256,
    block_length: opt.BlockLength = 32,
    batch_size: BatchSize = 1,
    cache: opt.Cache = opt.CACHE,
    decoder: DecoderSpec = None,
    tokens_per_pass: TokensPerPass = None,
    trace: Trace = None,
    passes: Passes = None,
    rounds: Rounds = 9,
    runs: Runs = 3,
    compare: Compare = None,
    scaling: Scaling = False,
    profile: Profile = False,
    top: Top = 12,
    memory: MemoryOption = True,
    plain: Plain = None,
    packed: Packed = None,
    compile: opt.Compile = False,
    attention: Attention = "auto",
    dtype: Dtype = "auto",
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    revision: opt.Revision = None,
    json_file: JsonFile = None,
    plot: Plot = None,
) -> None:
    """Time passes and generations, with memory and the fraction of the machine's limit."""
    from fastdllm.bench.commits import read_schedule
    from fastdllm.bench.run import Request
    from fastdllm.bench.setting import Effort, Load, Setting, parse_setting

    opt.refuse_together({"MODEL": model is not None, "--shape": shape is not None}, why="a shape has random weights")
    named = model or (None if shape else opt.MODEL)
    load = Load(
        model=named, shape=shape, revision=revision, dtype=dtype, device=device,
        packed="auto" if packed is None else packed, compile=compile, attention=attention,
    )  # fmt: skip
    if prompt_length is None:
        prompt_length = max(0, min(PROMPT, load.config().max_length - gen_length))
    setting = Setting(
        load=load, threads=threads, prompt_length=prompt_length, gen_length=gen_length, block_length=block_length,
        batch_size=batch_size, cache=cache, decoder=decoder, tokens_per_pass=tokens_per_pass,
        trace=read_schedule(trace) if trace else None,
    )  # fmt: skip
    settings = tuple(parse_setting(text, setting) for text in compare) if compare else (setting,)
    effort = Effort(rounds=rounds, runs=runs, passes=passes or (SCALING_PASSES if scaling else None))
    request = Request(
        settings=settings, asked=compare or ("",), effort=effort, plain=_wants_plain(plain, setting),
        memory=memory, profile=profile, scaling=scaling, command=command_of(context),
    )  # fmt: skip
    _publish(_run(request), top, json_file, plot)


def _wants_plain(asked: bool | None, setting: Setting) -> bool:
    """Whether the same model with plain weights is timed beside it: as asked, or for shapes on a CPU."""
    from fastdllm.loading import choose_device

    on_cpu = setting.load.shape is not None and choose_device(setting.load.device).type == "cpu"
    return asked if asked is not None else on_cpu


def _run(request: Request) -> Bench:
    """Measure, with a bar where stderr is a terminal, and lines where it is none."""
    from fastdllm.bench.run import bench as measure

    @contextmanager
    def watch(what: str, total: int) -> Iterator[Callable[[], None]]:
        note(f"timing {total} {what}")
        with progress(what, total, 0) as advance:
            yield advance if stderr().is_terminal else _told(what, total)

    return measure(request, watch, note)


def _told(what: str, total: int) -> Callable[[], None]:
    """Says now and then in a line how much is done, where no bar can."""
    done, told = 0, time.monotonic()

    def advance() -> None:
        nonlocal done, told
        done += 1
        if time.monotonic() - told >= QUIET:
            told = time.monotonic()
            note(f"{done} of {total} {what}")

    return advance


def _publish(done: Bench, top: int, json_file: Path | None, plot: Path | None) -> None:
    """Print the tables, and write the files that were asked for."""
    from fastdllm.bench import tables

    print_measured(tables.title(done), tables.all_tables(done, top), tables.sentences(done))
    note(tables.ROOFLINE)
    if json_file is not None:
        write_whole(json_file, json.dumps(done.as_json(), indent=1) + "\n")
        note(f"written: {json_file}")
    if plot is not None:
        try:
            from fastdllm.bench.plot import draw
        except ImportError:
            note(NO_PLOT)
            return
        for drawn in draw(done, plot):
            note(f"drawn: {drawn}")
