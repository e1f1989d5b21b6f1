"""``fastdllm report replay``: a page that plays a generation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastdllm.cli import options as opt
from fastdllm.cli.console import note
from fastdllm.cli.subject import Subject, open_subject
from fastdllm.config import GenerationConfig
from fastdllm.errors import CheckpointError, OptionError
from fastdllm.files import write_whole

if TYPE_CHECKING:
    from fastdllm.config import GenerationOptions
    from fastdllm.replay.recording import Recording
    from fastdllm.text import Text

PLAYED = 3
"""Problems that are played when neither prompts nor a trace are given."""
BESIDE_TRACE = ("trace", "out", "model", "revision")

Prompts = Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="Prompts; else the first problems.")]
Trace = Annotated[Path | None, typer.Option(metavar="FILE", help="What fastdllm generate --trace FILE wrote.")]
Page = Annotated[Path, typer.Option(metavar="FILE", help="The page.")]
TraceModel = Annotated[
    str | None, typer.Option("--model", metavar="MODEL", help="Embedded, a folder, or a hub id; else the trace's.")
]


def replay(
    context: typer.Context,
    prompts: Prompts = None,
    trace: Trace = None,
    out: Page = Path("replay.html"),
    model: TraceModel = None,
    revision: opt.Revision = None,
    dtype: opt.Dtype = "auto",
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    gen_length: opt.GenLength = 64,
    block_length: opt.BlockLength = 8,
    cache: opt.Cache = opt.CACHE,
    decoder: opt.Decoder = opt.DECODER,
    temperature: opt.Temperature = GenerationConfig.temperature,
    seed: opt.Seed = opt.SEED,
) -> None:
    """Make a page that plays a trace, or answers to prompts, pass by pass."""
    from fastdllm.replay.page import page

    if trace is not None:
        _refuse_beside_trace(context)
        recording, text = _read(trace, model, revision)
    else:
        options: GenerationOptions = {
            "gen_length": gen_length, "block_length": block_length, "cache": cache, "decoder": decoder,
            "temperature": temperature, "seed": seed,
        }  # fmt: skip
        GenerationConfig(**options)  # refuses wrong options before a model is loaded
        choice = opt.ModelChoice(
            model=model or opt.MODEL, revision=revision, dtype=dtype, device=device, threads=threads
        )
        recording, text = _record(open_subject(context, choice, None, PLAYED, prompts or []), options)
    write_whole(out, page(recording, text))
    note(f"{out} plays {len(recording.prompts)} prompt{'s' * (len(recording.prompts) > 1)}; open it in a browser")


def _refuse_beside_trace(context: typer.Context) -> None:
    """A trace has all that is asked for: refuse what it would overrule."""
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name not in BESIDE_TRACE and source is not None and source.name == "COMMANDLINE":
            given = "PROMPT" if parameter.param_type_name == "argument" else parameter.opts[0]
            raise OptionError(f"--trace and {given} cannot be given together: a trace holds prompt and settings.")


def _read(trace: Path, model: str | None, revision: str | None) -> tuple[Recording, Text | None]:
    """A trace and the tokenizer of its model."""
    from fastdllm.models.checkpoint import resolve
    from fastdllm.replay.recording import read_trace
    from fastdllm.text import load_text

    recording = read_trace(trace)
    named = model or str(recording.settings["model"])
    try:
        return recording, load_text(resolve(named, revision, weights=False))
    except CheckpointError as error:
        raise OptionError(f"the tokenizer of {trace} is not there ({error}) --model says where it is.") from None


def _record(subject: Subject, options: GenerationOptions) -> tuple[Recording, Text | None]:
    """Answer the prompts now, in one batch."""
    from fastdllm.replay.recording import record

    engine = subject.engine
    ids = engine.encode([one.question for one in subject.problems])
    return record(engine, ids, options, chat=engine.uses_template()), engine.text
