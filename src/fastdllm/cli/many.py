"""Many prompts from JSON lines: each result is kept as soon as it is there, and a second run continues."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from fastdllm.cli.console import INTERRUPTED, note
from fastdllm.cli.options import ModelChoice, uses_template
from fastdllm.cli.progress import progress
from fastdllm.cli.prompts import Entry, read_entries
from fastdllm.cli.summary import machine, rows_per_token, strategy
from fastdllm.config import GenerationConfig, GenerationOptions
from fastdllm.errors import OptionError
from fastdllm.record import environment, fingerprint, settings
from fastdllm.results import Results, open_results

if TYPE_CHECKING:
    from fastdllm.cli.generate import Request
    from fastdllm.completion import Completion
    from fastdllm.engine import Engine, Generation


@dataclass
class Tally:
    """Sums over the answers of this run."""

    answers: int = 0
    empty: int = 0
    tokens: int = 0
    passes: int = 0

    def add(self, completion: Completion) -> None:
        self.answers += 1
        self.empty += not completion.tokens
        self.tokens += len(completion.tokens)
        self.passes += completion.nfe


def answer_many(request: Request, choice: ModelChoice, text: str, options: GenerationOptions) -> None:
    """Answer every line of ``text``; everything that can be refused is refused before the first pass."""
    entries, folder = read_entries(text, request.source), choice.resolve()
    engine = choice.load(folder)
    prompts = [_encode(engine, entry, options, request) for entry in entries]
    decides = settings(engine, GenerationConfig(**options), chat=uses_template(engine, request.chat))
    decides |= {"revision": choice.revision, "weights": fingerprint(folder)}
    runs_on = {**environment(engine), "batch_size": request.batch_size}
    with open_results(request.out, {entry.id: entry.prompt for entry in entries}, decides, runs_on) as results:
        at = [i for i, entry in enumerate(entries) if entry.id not in results.finished]
        if results.finished:
            note(f"{len(entries) - len(at)} of {len(entries)} answers are in {request.out} already")
        generation = engine.start([prompts[i] for i in at], batch_size=request.batch_size, **options)
        began = time.perf_counter()
        tally = _run(generation, [entries[i] for i in at], results, total=len(entries))
        seconds = time.perf_counter() - began
    if tally.empty:
        note(f"warning: {tally.empty} of {tally.answers} answers are empty; a temperature above 0 may help")
    if tally.passes:
        speed = f"TPF {tally.tokens / tally.passes:.2f} · {tally.tokens / seconds:.1f} tokens/s"
        how = f"{strategy(options)} · {machine(engine)} · batch_size {request.batch_size}"
        note(f"{tally.answers} answers in {seconds:.1f} s · {tally.tokens} tokens · {speed} · {how}")


def _encode(engine: Engine, entry: Entry, options: GenerationOptions, request: Request) -> list[int]:
    """Token ids of a line's prompt, or a refusal that names the line."""
    try:
        return engine.start(entry.prompts(), chat=request.chat, **options).prompts[0]
    except OptionError as error:
        raise OptionError(f"{request.source} line {entry.line}: {error}") from None


def _run(generation: Generation, entries: list[Entry], results: Results, *, total: int) -> Tally:
    """Write each answer as the pass that ends it is done."""
    tally, before = Tally(), total - len(entries)
    try:
        with progress("answers", total, before) as advance:
            for event in generation:
                for row in event.rows:
                    if row.finish_reason is not None:
                        completion = generation.finished[row.index]
                        results.add(_result(entries[row.index], completion))
                        tally.add(completion)
                        advance()
    except KeyboardInterrupt:
        kept = f" and kept in {results.path}; run the same command again to continue" if results.path else ""
        typer.echo(f"interrupted: {before + tally.answers} of {total} done{kept}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    return tally


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
