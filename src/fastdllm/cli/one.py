"""One prompt: print its answer, or watch the canvas as it fills."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.live import Live

from fastdllm.cli.canvas_view import frame
from fastdllm.cli.console import note, stdout
from fastdllm.cli.summary import EMPTY, one_line, shown
from fastdllm.cli.trace import trace_file
from fastdllm.record import environment, settings

if TYPE_CHECKING:
    from fastdllm.config import GenerationOptions
    from fastdllm.engine import Engine, Generation

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

    def run(self) -> Generation:
        """The finished generation, its events written to the trace."""
        generation = self.start()
        with trace_file(self.trace, self.header(generation)) as write:
            for event in generation:
                write(event)
        return generation

    def header(self, generation: Generation) -> dict[str, object]:
        """Everything needed to fold a trace's events into the answer."""
        return {
            "settings": settings(self.engine, generation.config, chat=self.chat),
            "environment": environment(self.engine),
            **{name: getattr(self.engine.config, name) for name in ("mask_id", "eos_ids", "pad_id")},
            "prompt_tokens": self.prompt,
        }


def print_answer(task: Task) -> None:
    """The answer on stdout, its numbers on stderr."""
    (completion,) = task.run().completions
    print(shown(task.engine, completion))
    if not completion.tokens:
        note(EMPTY)
    note(one_line(task.engine, completion, task.options))


def watch(task: Task) -> None:
    """The canvas on stdout after every pass; where stdout is no terminal, as it is after the last."""
    console, generation = stdout(), task.start()
    blocks = math.ceil(generation.config.gen_length / generation.config.block_length)
    with (
        trace_file(task.trace, task.header(generation)) as write,
        Live(console=console, auto_refresh=False, vertical_overflow="ellipsis") as live,
    ):
        for event in generation:
            write(event)
            live.update(frame(task.engine, generation.drafts[0], blocks, event.rows[0].block), refresh=console.is_terminal)
            if console.is_terminal:
                time.sleep(FRAME_SECONDS)
    (completion,) = generation.completions
    if not completion.tokens:
        note(EMPTY)
    note(one_line(task.engine, completion, task.options, timed=not console.is_terminal))
