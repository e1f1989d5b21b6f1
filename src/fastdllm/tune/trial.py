"""What is looked for, and what is known about each setting that was tried."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fastdllm.arena.methods import Method
from fastdllm.arena.problems import Problem
from fastdllm.arena.score import Score
from fastdllm.errors import OptionError
from fastdllm.tune.paired import Paired, least_problems

Ask: TypeAlias = Callable[[str, Sequence[Method], Sequence[Problem]], Sequence[Score]]
"""Told what it is for, has methods answer problems and scores them; the first method is the reference."""
Objective: TypeAlias = Literal["speed", "rows"]
OBJECTIVES: tuple[Objective, ...] = ("speed", "rows")
Fate: TypeAlias = Literal["shown", "not shown", "not tested", "no cheaper", "worse"]
FATES: dict[Fate, str] = {
    "shown": "shown to be within the margin on the confirmation problems",
    "not shown": "tested and not shown to be",
    "not tested": "therefore not tested",
    "no cheaper": "no cheaper than a safer one or than plain decoding",
    "worse": "outside the margin in the race",
}
STEP = 0.1
"""Settings whose costs are within this share of one another count as equally cheap: less is not worth a test."""
LEAST_MARGIN = 0.001


@dataclass(frozen=True, kw_only=True)
class Goal:
    """The fastest setting whose accuracy is shown to be less than ``margin`` below plain decoding's.

    Raises:
        OptionError: a value is out of range.
    """

    margin: float
    """A fraction: 0.02 is two points."""
    confidence: float
    objective: Objective

    def __post_init__(self) -> None:
        if not LEAST_MARGIN <= self.margin < 1:
            raise OptionError(f"margin={100 * self.margin:g} must be {100 * LEAST_MARGIN:g} or more, and below 100.")
        if not 0.5 <= self.confidence < 1:
            raise OptionError(f"confidence={self.confidence:g} must be 0.5 or more, and below 1.")
        if self.objective not in OBJECTIVES:
            raise OptionError(f"objective={self.objective!r} is not one of {', '.join(OBJECTIVES)}.")

    @property
    def least(self) -> int:
        """The fewest problems on which this can be shown of any setting."""
        return least_problems(self.confidence, self.margin)

    def costs(self, score: Score) -> tuple[float, ...]:
        """What stands for time while settings are selected, whatever the hardware.

        Rows per token are the compute of a token; passes per token are what small models and single prompts wait for.
        Which of the two decides depends on model and machine, so for speed a setting has to be cheaper in one.
        """
        rows = math.inf if score.rows_per_token is None else score.rows_per_token
        passes = 1 / score.tokens_per_forward if score.tokens_per_forward else math.inf
        return (rows,) if self.objective == "rows" else (rows, passes)

    def cheaper(self, one: Score, other: Score, step: float = STEP) -> bool:
        """Whether ``one`` is cheaper than ``other`` by more than ``step`` in some way."""
        pairs = zip(self.costs(one), self.costs(other), strict=True)
        return any(mine * (1 + step) < theirs for mine, theirs in pairs)


@dataclass(kw_only=True)
class Trial:
    """A setting and what became of it."""

    method: Method
    selection: Score
    """On those of the selection problems that it answered."""
    fate: Fate
    confirmation: Score | None = None
    """On the confirmation problems, where it was tested on them."""
    p: float | None = None
    """Chance of such a score or a better one, if it were worse by the margin; None where the test broke off."""
    bound: float | None = None
    """The difference is above this with the goal's confidence."""


def paired(score: Score) -> Paired:
    """A score's problems against the reference's."""
    return Paired(total=score.problems, gained=score.gained, lost=score.lost)
