"""``fastdllm report``, the half that looks inside: similarity, drift and order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fastdllm.cli import options as opt
from fastdllm.cli.progress import progress
from fastdllm.cli.subject import open_subject, publish
from fastdllm.errors import OptionError

FOLDER = Path("report")
FULL, QUICK = 20, 3
"""Problems of a study, and of a quick one."""

Problems = Annotated[
    Path | None, typer.Option("--problems", metavar="FILE", help="Or a benchmark [default: the model's own].")
]
Count = Annotated[int | None, typer.Option(metavar="N", min=1, help="Problems, from the first [default: 20].")]
Quick = Annotated[bool, typer.Option("--quick", help="A first look: 3 problems.")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Where JSON, Markdown and picture go.")]
Every = Annotated[int, typer.Option(metavar="N", min=1, help="Look at every so many passes.")]
Layer = Annotated[int | None, typer.Option(metavar="N", help="One layer, 0 the first [default: the mean of all].")]
Slots = Annotated[int, typer.Option(metavar="N", min=1, help="Most prompt slots to look at, spread evenly.")]
Caches = Annotated[list[str] | None, typer.Argument(metavar="CACHE", help="Such as dual or dllm:kr=4.")]
Prompt = Annotated[str | None, typer.Argument(metavar="PROMPT", help="The prompt; else a problem.")]
Number = Annotated[int, typer.Option(metavar="N", min=1, help="Which problem, 1 the first.")]


def similarity(
    context: typer.Context,
    problems: Problems = None,
    count: Count = None,
    quick: Quick = False,
    out: Out = FOLDER,
    layer: Layer = None,
    every: Every = 1,
    slots: Slots = 64,
    model: opt.Model = opt.MODEL,
    revision: opt.Revision = None,
    dtype: opt.Dtype = "auto",
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    gen_length: opt.GenLength = 64,
    block_length: opt.BlockLength = 8,
    cache: opt.Cache = "none",
    decoder: opt.Decoder = "topk:k=1",
    seed: opt.Seed = opt.SEED,
) -> None:
    """How alike keys and values stay from pass to pass: heat maps for the prompt and the last block."""
    from fastdllm.studies.similarity import SimilarityOptions, run

    options = SimilarityOptions(
        gen_length=gen_length, block_length=block_length, cache=cache, decoder=decoder, seed=seed, layer=layer,
        every=every, slots=slots,
    )  # fmt: skip
    choice = opt.ModelChoice(model=model, revision=revision, dtype=dtype, device=device, threads=threads)
    subject = open_subject(context, choice, problems, _count(count, quick))
    with progress("problems", len(subject.problems), 0) as advance:
        found = run(subject.engine, subject.problems, options, advance)
    publish("similarity", found, subject, out)


def drift(
    context: typer.Context,
    caches: Caches = None,
    problems: Problems = None,
    count: Count = None,
    quick: Quick = False,
    out: Out = FOLDER,
    every: Every = 1,
    model: opt.Model = opt.MODEL,
    revision: opt.Revision = None,
    dtype: opt.Dtype = "auto",
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    gen_length: opt.GenLength = 64,
    block_length: opt.BlockLength = 8,
    decoder: opt.Decoder = "topk:k=1",
    seed: opt.Seed = opt.SEED,
) -> None:
    """How far cached keys, values and logits are from recomputation: by layer, distance, age and block."""
    from fastdllm.studies.drift import DriftOptions, run

    options = DriftOptions(
        caches=tuple(caches) if caches else DriftOptions.caches, decoder=decoder, gen_length=gen_length,
        block_length=block_length, seed=seed, every=every,
    )  # fmt: skip
    choice = opt.ModelChoice(model=model, revision=revision, dtype=dtype, device=device, threads=threads)
    subject = open_subject(context, choice, problems, _count(count, quick))
    with progress("answers", len(subject.problems) * len(options.caches), 0) as advance:
        found = run(subject.engine, subject.problems, options, advance)
    publish("drift", found, subject, out)


def order(
    context: typer.Context,
    prompt: Prompt = None,
    problems: Problems = None,
    number: Number = 1,
    out: Out = FOLDER,
    model: opt.Model = opt.MODEL,
    revision: opt.Revision = None,
    dtype: opt.Dtype = "auto",
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    gen_length: opt.GenLength = 64,
    block_length: opt.BlockLength = 8,
    cache: opt.Cache = opt.CACHE,
    decoder: opt.Decoder = opt.DECODER,
    seed: opt.Seed = opt.SEED,
) -> None:
    """In which order one answer is decoded, and how sure the model is of each slot in each pass."""
    from fastdllm.studies.order import OrderOptions, run

    opt.refuse_together({"PROMPT": prompt is not None, "--problems": problems is not None}, why="each says what to ask")
    options = OrderOptions(gen_length=gen_length, block_length=block_length, cache=cache, decoder=decoder, seed=seed)
    choice = opt.ModelChoice(model=model, revision=revision, dtype=dtype, device=device, threads=threads)
    subject = open_subject(context, choice, problems, number, [] if prompt is None else [prompt])
    if prompt is None and len(subject.problems) < number:
        raise OptionError(f"--number {number} is more than the {len(subject.problems)} problems there are.")
    asked = "a prompt of the command" if prompt is not None else f"the last of {subject.asked}"
    one = replace(subject, problems=subject.problems[-1:], asked=asked)
    publish("order", run(one.engine, one.problems, options), one, out)


def _count(count: int | None, quick: bool) -> int:
    return count or (QUICK if quick else FULL)
