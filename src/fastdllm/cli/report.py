"""``fastdllm report``: studies of a model, each a JSON file, a Markdown page and a picture.

Those of speed and accuracy are here; those that look inside are in :mod:`fastdllm.cli.inspect_reports`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from fastdllm.cli import inspect_reports as inside
from fastdllm.cli.arena import AGAIN
from fastdllm.cli.asked import Asked, with_asked
from fastdllm.cli.command import command_of
from fastdllm.cli.console import INTERRUPTED
from fastdllm.cli.progress import progress
from fastdllm.cli.replay import PLAYED, replay
from fastdllm.cli.subject import Study, write_study
from fastdllm.cli.tune import Confidence, Margin
from fastdllm.errors import OptionError

if TYPE_CHECKING:
    from fastdllm.arena.problems import ProblemSet
    from fastdllm.studies.study import Bench

PAGE = "replay.html"

_T = TypeVar("_T")

Problems = Annotated[
    list[Path] | None,
    typer.Option("--problems", metavar="FILE", help="Or a benchmark; once for each task [default: the model's own]."),
]
OneFile = Annotated[
    Path | None, typer.Option("--problems", metavar="FILE", help="Or a benchmark [default: the model's own].")
]
Cache = Annotated[str | None, typer.Option(metavar="SPEC", help="Of the decoders compared [default: none].")]
Caches = Annotated[
    list[str] | None, typer.Option("--cache", metavar="SPEC", help="Once for each cache [default: prefix and dual].")
]
BlockCaches = Annotated[
    list[str] | None,
    typer.Option("--cache", metavar="SPEC", help="Once for each cache [default: none, prefix and dual]."),
]
Decoder = Annotated[
    str | None, typer.Option(metavar="SPEC", help="The parallel decoder [default: threshold:threshold=0.9].")
]
Values = Annotated[str | None, typer.Option(metavar="N,N,...", help="Values to compare.")]
Shots = Annotated[str | None, typer.Option(metavar="N,N,...", help="Worked examples before a question.")]

report = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Studies of a model: JSON, Markdown and a picture each."
)


def components(
    context: typer.Context, asked: Asked, problems: Problems = None, caches: Caches = None, decoder: Decoder = None
) -> None:
    """Plain decoding, each cache, parallel decoding, both: accuracy and speed."""
    from fastdllm.studies.components import ComponentsOptions, run

    options = changed(ComponentsOptions(), caches=specs(caches), decoder=decoder)
    with bench_of(context, asked, problems, options.methods) as (bench, sets):
        publish("components", run(bench, asked.of(sets, "components"), options), bench)


def lengths(
    context: typer.Context,
    asked: Asked,
    problems: OneFile = None,
    shots: Shots = None,
    gen_lengths: Values = None,
    caches: Caches = None,
    decoder: Decoder = None,
) -> None:
    """Prompts of several lengths x answers of several lengths: speed-up and accuracy."""
    from fastdllm.studies.lengths import LengthsOptions, run

    options = changed(
        LengthsOptions.quick() if asked.quick else LengthsOptions(), shots=numbers("shots", shots, int),
        gen_lengths=numbers("gen-lengths", gen_lengths, int), caches=specs(caches), decoder=decoder,
    )  # fmt: skip
    with bench_of(context, asked, one(problems), options.methods(min(options.gen_lengths))) as (bench, (posed,)):
        publish("lengths", run(bench, posed, asked.problems("lengths"), options), bench)


def blocks(
    context: typer.Context,
    asked: Asked,
    problems: OneFile = None,
    block_lengths: Values = None,
    caches: BlockCaches = None,
    decoder: Decoder = None,
) -> None:
    """Blocks of several lengths with each cache: accuracy, rows and speed."""
    from fastdllm.studies.blocks import BlocksOptions, run

    options = changed(
        BlocksOptions.quick() if asked.quick else BlocksOptions(), caches=specs(caches), decoder=decoder,
        block_lengths=numbers("block-lengths", block_lengths, int),
    )  # fmt: skip
    with bench_of(context, asked, one(problems), options.methods(asked.gen_length)) as (bench, sets):
        publish("blocks", run(bench, asked.of(sets, "blocks")[0], options), bench)


def thresholds(
    context: typer.Context,
    asked: Asked,
    problems: OneFile = None,
    cache: Cache = None,
    threshold: Values = None,
    factor: Values = None,
    fixed: Values = None,
) -> None:
    """Thresholds and factors against a fixed number of tokens a pass."""
    from fastdllm.studies.thresholds import ThresholdsOptions, run

    options = changed(
        ThresholdsOptions.quick() if asked.quick else ThresholdsOptions(), cache=cache,
        threshold=numbers("threshold", threshold, float), factor=numbers("factor", factor, float),
        fixed=numbers("fixed", fixed, int),
    )  # fmt: skip
    with bench_of(context, asked, one(problems), options.methods) as (bench, sets):
        publish("thresholds", run(bench, asked.of(sets, "thresholds")[0], options), bench)


def sensitivity(
    context: typer.Context,
    asked: Asked,
    problems: Problems = None,
    cache: Cache = None,
    threshold: Values = None,
    margin: Margin = 2.0,
    confidence: Confidence = 0.95,
) -> None:
    """Thresholds on several tasks: accuracy, and which threshold is safe."""
    from fastdllm.studies.sensitivity import SensitivityOptions, run

    options = changed(
        SensitivityOptions.quick() if asked.quick else SensitivityOptions(), cache=cache,
        thresholds=numbers("threshold", threshold, float), margin=margin / 100, confidence=confidence,
    )  # fmt: skip
    with bench_of(context, asked, problems, options.methods) as (bench, sets):
        publish("sensitivity", run(bench, asked.of(sets, "sensitivity"), options), bench)


def everything(context: typer.Context, asked: Asked, problems: Problems = None) -> None:
    """Every study with its defaults; those of one task take the first file."""
    from fastdllm.cli.posed import open_problems

    first = problems[0] if problems else None
    components(context, asked, problems)
    thresholds(context, asked, first)
    blocks(context, asked, first)
    lengths(context, asked, first)
    sensitivity(context, asked, problems)
    choice = {"model": asked.model, "revision": asked.revision, "dtype": asked.dtype, "device": asked.device}
    lengths_of = {"gen_length": asked.gen_length, "block_length": asked.block_length, "seed": asked.seed}
    same: dict[str, Any] = {**choice, **lengths_of, "threads": asked.threads}
    inside.similarity(context, problems=first, quick=asked.quick, out=asked.out, **same)
    inside.drift(context, problems=first, quick=asked.quick, out=asked.out, **same)
    inside.order(context, problems=first, out=asked.out, **same)
    posed = open_problems(first, asked.choice.resolve(), asked.model, PLAYED)
    replay(context, prompts=[problem.question for problem in posed.problems], out=asked.out / PAGE, **same)


MEASURING: tuple[Callable[..., None], ...] = (components, lengths, blocks, thresholds, sensitivity)
LOOKING: tuple[Callable[..., None], ...] = (inside.similarity, inside.drift, inside.order, replay)
for command in (*map(with_asked, MEASURING), *LOOKING):
    report.command()(command)
report.command("all")(with_asked(everything))


@contextmanager
def bench_of(
    context: typer.Context, asked: Asked, files: Sequence[Path] | None, methods: Mapping[str, str]
) -> Iterator[tuple[Bench, list[ProblemSet]]]:
    """A bench, and all problems of each file, or of the model; says what is kept when it is interrupted.

    Raises:
        OptionError: a method or a file cannot be read; the model is not loaded then.
    """
    from fastdllm.arena.methods import parse_methods
    from fastdllm.cli.posed import open_problems
    from fastdllm.studies.study import Bench

    parse_methods(methods.values(), asked.shared)
    checkpoint = asked.choice.resolve()
    sets = [open_problems(file, checkpoint, asked.model) for file in (dict.fromkeys(files) if files else (None,))]
    engine = asked.choice.load(checkpoint)
    bench = Bench(
        engine=engine, checkpoint=checkpoint, revision=asked.revision, shared=asked.shared,
        chat=engine.uses_template(), batch_size=asked.batch_size,
        rounds=asked.timing_rounds, timed=asked.timed, folder=asked.out,
        command=command_of(context), watch=progress,
    )  # fmt: skip
    try:
        yield bench, sets
    except KeyboardInterrupt:
        typer.echo(f"interrupted: what is done is kept in {asked.out}; {AGAIN}", err=True)
        raise typer.Exit(INTERRUPTED) from None


def publish(name: str, found: Study, bench: Bench) -> None:
    """Write and print what a study found."""
    write_study(name, found, {"command": bench.command}, [], bench.folder)


def one(file: Path | None) -> list[Path]:
    """The files of a study that takes one."""
    return [file] if file else []


def specs(given: Sequence[str] | None) -> tuple[str, ...] | None:
    """Specs without the ones that come twice; None where none is given."""
    return tuple(dict.fromkeys(given)) if given else None


def numbers(name: str, text: str | None, kind: Callable[[str], _T]) -> tuple[_T, ...] | None:
    """The numbers of an option, ascending and each once; None where it is not given."""
    if text is None:
        return None
    try:
        return tuple(sorted({kind(part) for part in text.split(",")}))  # type: ignore[type-var]
    except ValueError:
        wanted = "whole numbers" if kind is int else "numbers"
        raise OptionError(f"--{name} {text!r} is not {wanted} separated by commas.") from None


def changed(options: _T, **given: object) -> _T:
    """Options with those that were given in place of the defaults."""
    return replace(options, **{name: value for name, value in given.items() if value is not None})  # type: ignore[type-var]
