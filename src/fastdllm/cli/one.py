"""One prompt: print its answer, or watch the canvas as it fills."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.live import Live

from fastdllm.cli.canvas_view import canvas_text, frame, legend
from fastdllm.cli.console import note, stdout
from fastdllm.cli.summary import EMPTY, one_line, shown
from fastdllm.cli.trace import trace_file
from fastdllm.replay.recording import Recorder, header

if TYPE_CHECKING:
    from rich.console import Console

    from fastdllm.config import GenerationOptions
    from fastdllm.engine import Engine, Generation
    from fastdllm.events import StepEvent

FRAME_SECONDS = 0.12


@dataclass(frozen=True, kw_only=True)
class Task:
    """One prompt with everything its answer depends on, and the file for its trace."""

    engine: Engine
    question: str
    prompt: list[int]
    options: GenerationOptions
    chat: bool
    trace: Path | None

    def start(self) -> Generation:
        return self.engine.start([self.prompt], **self.options)

    @contextmanager
    def traced(self) -> Iterator[tuple[Generation, Callable[[StepEvent], None]]]:
        """A generation, and what writes its events to the trace: call it once for each, in their order."""
        if self.trace is None:
            yield self.start(), lambda _: None
            return
        recorder = Recorder(self.options)
        head = {**header(self.engine, self.options, chat=self.chat), "prompt_tokens": self.prompt}
        with trace_file(self.trace, head) as write:
            yield self.engine.start([self.prompt], **recorder.options), lambda event: write(recorder.line(event))

    def run(self) -> Generation:
        """The finished generation. Its trace is written afterwards, so that writing does not count as decoding."""
        with self.traced() as (generation, write):
            for event in list(generation):
                write(event)
        return generation


def print_answer(task: Task) -> None:
    """The answer on stdout, its numbers on stderr."""
    (completion,) = task.run().completions
    print(shown(task.engine, completion))
    if not completion.tokens:
        note(EMPTY)
    note(one_line(task.engine, completion, task.options))


def watch(task: Task) -> None:
    """The canvas on stdout after every pass; where stdout is no terminal, as it is after the last."""
    console = stdout()
    if console.is_terminal:
        generation = _watch_live(task, console)
    else:
        generation = task.run()
        console.print(canvas_text(task.engine, generation.drafts[0]))
        console.print(legend(generation.drafts[0].nfe))
    (completion,) = generation.completions
    if not completion.tokens:
        note(EMPTY)
    note(one_line(task.engine, completion, task.options, timed=not console.is_terminal))


def _watch_live(task: Task, console: Console) -> Generation:
    """A frame after each pass, slowly enough to follow."""
    with (
        task.traced() as (generation, write),
        Live(console=console, auto_refresh=False, vertical_overflow="ellipsis") as live,
    ):
        for event in generation:
            write(event)
            live.update(frame(generation, event), refresh=True)
            time.sleep(FRAME_SECONDS)
    return generation
