"""Many prompts from JSON lines: each result is kept as soon as it is there, and a second run continues."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import typer

from fastdllm.cli.console import INTERRUPTED, note
from fastdllm.cli.options import ModelChoice
from fastdllm.cli.progress import progress
from fastdllm.cli.prompts import Entry, read_entries
from fastdllm.cli.summary import machine, rows_per_token, strategy
from fastdllm.completion import Completion
from fastdllm.config import GenerationConfig, GenerationOptions
from fastdllm.errors import FastdllmError, OptionError
from fastdllm.processes import from_first
from fastdllm.record import environment, fingerprint, settings
from fastdllm.results import Results, open_results

if TYPE_CHECKING:
    from fastdllm.cli.generate import Request
    from fastdllm.cluster.workers import Workers
    from fastdllm.engine import Engine


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where answers come from: a model in this process, or workers elsewhere."""

    decides: dict[str, object]
    runs_on: dict[str, object]
    machine: str
    answers: Callable[[Sequence[int]], Iterator[tuple[int, Completion | str]]]
    """From numbers of entries to their answers, in any order; a text says why there is none."""


@dataclass
class Tally:
    """Sums over the answers of this run."""

    answers: int = 0
    empty: int = 0
    tokens: int = 0
    passes: int = 0
    unanswered: list[str] = field(default_factory=list)

    def add(self, completion: Completion) -> None:
        self.answers += 1
        self.empty += not completion.tokens
        self.tokens += len(completion.tokens)
        self.passes += completion.nfe


class Unanswered(FastdllmError, RuntimeError):
    """Some prompts of many have no answer."""


def answer_many(
    request: Request, choice: ModelChoice, text: str, options: GenerationOptions, workers: Workers | None = None
) -> None:
    """Answer every line of ``text``; everything that can be refused is refused before the first pass.

    Raises:
        Unanswered: workers could not answer some lines; the others are kept.
    """
    entries = read_entries(text, request.source)
    with _source(request, choice, entries, options, workers) as source:
        asked = {entry.id: entry.prompt for entry in entries}
        with open_results(request.out, asked, source.decides, source.runs_on) as results:
            finished = from_first(lambda: results.finished)
            at = [i for i, entry in enumerate(entries) if entry.id not in finished]
            if finished:
                note(f"{len(entries) - len(at)} of {len(entries)} answers are in {request.out} already")
            began = time.perf_counter()
            tally = _run(source.answers(at) if at else iter(()), entries, results, before=len(entries) - len(at))
            seconds = time.perf_counter() - began
    _sum_up(tally, seconds, f"{strategy(options)} · {source.machine} · batch_size {request.batch_size}")
    if tally.unanswered:
        kept = f"; the others are in {request.out}, and the same command tries these again" if request.out else ""
        raise Unanswered(
            f"{len(tally.unanswered)} of {len(entries)} prompts have no answer ({tally.unanswered[0]}){kept}."
        )


def _source(
    request: Request, choice: ModelChoice, entries: list[Entry], options: GenerationOptions, workers: Workers | None
) -> AbstractContextManager[Source]:
    if workers is None:
        return nullcontext(_here(request, choice, entries, options))
    from fastdllm.cli.offline import on_ray

    return on_ray(request, choice, entries, options, workers)


def _here(request: Request, choice: ModelChoice, entries: list[Entry], options: GenerationOptions) -> Source:
    """A model in this process."""
    folder = choice.resolve()
    engine = choice.load(folder)
    prompts = [_encode(engine, entry, options, request) for entry in entries]
    decides = settings(engine, GenerationConfig(**options), chat=engine.uses_template(request.chat))

    def answers(at: Sequence[int]) -> Iterator[tuple[int, Completion | str]]:
        """Each as the pass that ends it is done."""
        generation = engine.start([prompts[i] for i in at], batch_size=request.batch_size, **options)
        for event in generation:
            for row in event.rows:
                if row.finish_reason is not None:
                    yield at[row.index], generation.finished[row.index]

    return Source(
        decides={**decides, "revision": choice.revision, "weights": fingerprint(folder)},
        runs_on={**environment(engine), "batch_size": request.batch_size},
        machine=machine(engine),
        answers=answers,
    )


def _encode(engine: Engine, entry: Entry, options: GenerationOptions, request: Request) -> list[int]:
    """Token ids of a line's prompt, or a refusal that names the line."""
    try:
        return engine.start(entry.prompts(), chat=request.chat, **options).prompts[0]
    except OptionError as error:
        raise OptionError(f"{request.source} line {entry.line}: {error}") from None


def _run(
    answers: Iterator[tuple[int, Completion | str]], entries: list[Entry], results: Results, *, before: int
) -> Tally:
    """Write each answer as it comes."""
    tally, total = Tally(), len(entries)
    try:
        with progress("answers", total, before) as advance:
            for index, answer in answers:
                if isinstance(answer, Completion):
                    results.add(_result(entries[index], answer))
                    tally.add(answer)
                else:
                    tally.unanswered.append(f"id {entries[index].id!r}: {answer.rstrip('.')}")
                advance()
    except KeyboardInterrupt:
        kept = f" and kept in {results.path}; run the same command again to continue" if results.path else ""
        typer.echo(f"interrupted: {before + tally.answers} of {total} done{kept}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    return tally


def _sum_up(tally: Tally, seconds: float, how: str) -> None:
    if tally.empty:
        note(f"warning: {tally.empty} of {tally.answers} answers are empty; a temperature above 0 may help")
    if tally.passes:
        speed = f"TPF {tally.tokens / tally.passes:.2f} · {tally.tokens / seconds:.1f} tokens/s"
        note(f"{tally.answers} answers in {seconds:.1f} s · {tally.tokens} tokens · {speed} · {how}")


def _result(entry: Entry, completion: Completion) -> dict[str, object]:
    rows = rows_per_token(completion)
    return {
        "id": entry.id,
        "prompt": entry.prompt,
        "text": completion.text,
        "tokens": len(completion.tokens),
        "nfe": completion.nfe,
        "tokens_per_forward": round(completion.tokens_per_forward, 4),
        "rows_per_token": None if rows is None else round(rows, 2),
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "seconds": round(completion.seconds, 4),
    }
