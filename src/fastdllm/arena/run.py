"""Answers of every method to every problem, each kept as soon as it is there.

Answers come from batches, as a row's answer does not depend on its batch; what depends on it is the
padding in the count of operations, which is why the batch size is among the settings. Counting is slow on
small models, so operations are counted in the first batch of problems alone. (Rows that a stopped
run left in the middle of a batch meet other neighbours when it goes on, so their padding may differ a little.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from fastdllm.arena.flops import Counter, answers
from fastdllm.arena.methods import Method
from fastdllm.arena.problems import Problem
from fastdllm.completion import Completion
from fastdllm.config import GenerationConfig, GenerationOptions
from fastdllm.engine import Engine, Generation
from fastdllm.errors import OptionError
from fastdllm.record import settings
from fastdllm.results import Id, Results, read_results


@dataclass(frozen=True, kw_only=True)
class Arena:
    """Who meets over which problems, and where the results go.

    Args:
        provenance: what the answers depend on beyond engine and options (weights, revision, problems), JSON-ready.
        clocks: where timings go, when not to ``folder``.
        counts_flops: count operations in the first batch of problems.
    """

    engine: Engine
    methods: tuple[Method, ...]
    problems: tuple[Problem, ...]
    shared: GenerationOptions
    provenance: Mapping[str, object]
    chat: bool
    batch_size: int
    folder: Path
    clocks: Path | None = None
    counts_flops: bool = True

    @property
    def answers(self) -> Path:
        return self.folder / "answers.jsonl"

    @property
    def timings(self) -> Path:
        return (self.clocks or self.folder) / "timings.jsonl"

    def settings(self) -> dict[str, object]:
        """What all answers of a folder share; methods and problems may be added to it."""
        config = settings(self.engine, GenerationConfig(**self.shared), chat=self.chat)
        of_methods = ("cache", "decoder")
        common = {name: value for name, value in config.items() if name not in of_methods}
        return {**common, **self.provenance, "batch_size": self.batch_size}

    def settings_of(self, method: Method) -> dict[str, object]:
        """What one method's answers depend on."""
        own = settings(self.engine, method.config, chat=self.chat)
        return {**own, **self.provenance, "batch_size": self.batch_size}

    def asked(self) -> dict[Id, object]:
        """The question under each answer's id."""
        return {answer_id(m, p): p.question for m in self.methods for p in self.problems}

    def check(self) -> None:
        """Refuse options, and problems that are too long for the model, before any is answered."""
        prompts = self.engine.encode([problem.question for problem in self.problems], chat=self.chat)
        for method in self.methods:
            self.engine.start(prompts, **method.options)

    def start(self, method: Method, problems: list[Problem]) -> Generation:
        questions = [problem.question for problem in problems]
        return self.engine.start(questions, batch_size=self.batch_size, chat=self.chat, **method.options)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A finished problem, as a line holds it."""

    id: str
    prompt: str
    text: str
    right: bool
    tokens: int
    """Up to the end token."""
    nfe: int
    rows: int
    """Rows that went through the network for it."""
    flops: int | None
    """Its share of those of the passes it took part in; None where they were not counted."""
    run: int
    """Which run of the sidecar made it."""


def answer_id(method: Method, problem: Problem) -> str:
    return f"{method.key} #{problem.number}"


def answer_all(arena: Arena, results: Results, advance: Callable[[], None]) -> None:
    """Answer what ``results`` lacks, method by method; ``advance`` is called for each answer."""
    first = arena.problems[: arena.batch_size] if arena.counts_flops else ()
    for method in arena.methods:
        left = [p for p in arena.problems if answer_id(method, p) not in results.finished]
        counted, rest = [p for p in left if p in first], [p for p in left if p not in first]
        _answer(arena, method, counted, results, advance, counter=Counter(arena.engine.model))
        _answer(arena, method, rest, results, advance, counter=None)


def _answer(
    arena: Arena, method: Method, problems: list[Problem], results: Results, advance: Callable[[], None],
    *, counter: Counter | None,
) -> None:  # fmt: skip
    for done, flops in answers(arena.start(method, problems), counter):
        problem = problems[done.index]
        results.add(_line(answer_id(method, problem), problem, done, flops))
        advance()


def _line(name: str, problem: Problem, completion: Completion, flops: int | None) -> dict[str, object]:
    return {
        "id": name,
        "prompt": problem.question,
        "text": completion.text,
        "right": problem.solved_by(completion.text),
        "tokens": len(completion.tokens),
        "nfe": completion.nfe,
        "rows": completion.rows_computed,
        "flops": flops,
        "finish_reason": completion.finish_reason,
        "seconds": round(completion.seconds, 4),
    }


def read_answers(arena: Arena) -> dict[str, list[Answer]]:
    """The answers of each method by its key, in the order of the problems."""
    held = {line["id"]: line for line in read_results(arena.answers)}
    names = [field.name for field in fields(Answer)]
    try:
        return {
            method.key: [Answer(**{n: held[answer_id(method, p)][n] for n in names}) for p in arena.problems]
            for method in arena.methods
        }
    except KeyError as error:
        raise OptionError(f"{arena.answers} has an answer without {error}; give another --out.") from None
