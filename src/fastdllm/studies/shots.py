"""Worked examples before a question: what makes the prompts of few-shot evaluation long."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from fastdllm.arena.problems import Problem, ProblemSet
from fastdllm.errors import OptionError


@runtime_checkable
class Worked(Protocol):
    """A problem whose set has the answer in full."""

    @property
    def question(self) -> str: ...

    @property
    def answer(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Prefilled:
    """A problem with worked examples before its question."""

    problem: Problem
    examples: str

    @property
    def number(self) -> int:
        return self.problem.number

    @property
    def question(self) -> str:
        return self.examples + self.problem.question

    def solved_by(self, text: str) -> bool:
        return self.problem.solved_by(text)


def are_worked(posed: ProblemSet) -> bool:
    """Whether problems of the set can stand as examples before others."""
    return all(isinstance(problem, Worked) for problem in posed.problems)


def with_examples(posed: ProblemSet, count: int, shots: int, most: int) -> ProblemSet:
    """The first ``count`` problems, or as many as there are, each after ``shots`` of the last ``most`` as examples.

    Examples need a set whose problems are :func:`worked <are_worked>`. No problem is asked that is an example for any
    number of shots up to ``most``, so that all numbers of shots ask the same. An example is question, line break,
    answer, and an empty line.

    Raises:
        OptionError: the set has no problem beyond the examples.
    """
    left = len(posed.problems) - most
    if left < 1:
        raise OptionError(
            f"{most} worked examples and a question take {most + 1} problems, and {posed.name} has "
            f"{len(posed.problems)}; give more problems, or fewer --shots."
        )
    asked, spare = posed.problems[: min(count, left)], posed.problems[left:]
    examples = ""
    for problem in spare[:shots]:
        assert isinstance(problem, Worked)
        examples += f"{problem.question}\n{problem.answer}\n\n"
    if not shots:
        return replace(posed, problems=asked)
    return ProblemSet(
        name=f"{posed.name} after {shots} worked example{'s' * (shots > 1)}",
        problems=tuple(Prefilled(problem=problem, examples=examples) for problem in asked),
        digest=f"{posed.digest}-{shots}of{most}",
    )
