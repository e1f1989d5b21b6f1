"""Problems answered one at a time, with a look at every pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from fastdllm.caches import Pass, Watched
from fastdllm.config import GenerationConfig, GenerationOptions
from fastdllm.engine import Engine
from fastdllm.errors import OptionError
from fastdllm.events import RowEvent
from fastdllm.record import settings
from fastdllm.studies.table import Table


class Question(Protocol):
    """What a study needs of a problem."""

    @property
    def question(self) -> str:
        """The prompt, without a chat template."""


def encode(engine: Engine, problems: Sequence[Question], options: GenerationOptions) -> list[list[int]]:
    """The prompts' token ids.

    Raises:
        OptionError: there is no problem, an option is wrong, or a prompt is empty or too long for the model.
    """
    if not problems:
        raise OptionError("there is no problem to look at; give one at least.")
    prompts = engine.start([problem.question for problem in problems], **options).prompts
    for problem, prompt in zip(problems, prompts, strict=True):
        if not prompt:
            raise OptionError(f"the question {problem.question!r} has no token to look at.")
    return prompts


def settings_of(engine: Engine, options: GenerationOptions) -> dict[str, Any]:
    """Everything that decides what is decoded, JSON-ready."""
    chat = engine.uses_template()
    return settings(engine, GenerationConfig(**options), chat=chat)


def caption(settings: dict[str, Any], problems: int, *own: str) -> str:
    """One line for a picture: the model, how many problems, the lengths, and what is its ``own``."""
    lengths = f"gen_length {settings['gen_length']} in blocks of {settings['block_length']}"
    return ", ".join([str(settings["model"]), f"{problems} problem{'s' * (problems != 1)}", lengths, *own])


def watched(
    engine: Engine, prompt: Sequence[int], options: GenerationOptions, see: Callable[[Pass], None]
) -> Iterator[RowEvent]:
    """Answer one prompt: ``see`` is called in every pass, before what it did is yielded.

    Keys and values are kept whatever the cache, so that ``see`` always finds what attention read.
    """
    cache = Watched(GenerationConfig(**options).policy, see, store=True)
    watching: GenerationOptions = {**options, "cache": cache}
    for event in engine.start([prompt], **watching):
        (row,) = event.rows
        yield row


def document(name: str, title: str, tables: Sequence[Table], *paragraphs: str) -> str:
    """The Markdown of a study whose picture lies beside it under the same name."""
    return "\n\n".join([f"![{title}]({name}.png)", *(table.markdown() for table in tables), *paragraphs])
