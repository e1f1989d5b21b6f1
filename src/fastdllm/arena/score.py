"""One row of numbers for each method, from its answers and the speed of its turns."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fastdllm.arena.methods import Method
from fastdllm.arena.run import Answer

Z = statistics.NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a method's answers were worth, and what they cost."""

    number: int
    """Place in the table, 1 the first."""
    method: Method
    problems: int
    right: int
    gained: int
    """Problems that this method has right and the first method has not."""
    lost: int
    """Problems that the first method has right and this one has not."""
    nfe: float
    """Mean number of forward passes of an answer."""
    tokens_per_forward: float
    rows_per_token: float | None
    """None where every answer is empty."""
    flops_per_token: float | None
    speeds: tuple[float, ...]
    """Answer tokens per second of each round, in their order; empty when it was not timed."""
    front: bool = False
    """No other method is at least as often right for fewer rows, or more often right for as few."""

    @property
    def accuracy(self) -> float:
        """Percent right."""
        return 100 * self.right / self.problems

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy, in percent."""
        return wilson(self.right, self.problems)


def wilson(right: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion, in percent: it stays within 0 and 100 and is sound at both ends."""
    p, zz = right / total, Z * Z
    middle, half = p + zz / (2 * total), Z * math.sqrt(p * (1 - p) / total + zz / (4 * total * total))
    low, high = ((middle + side) / (1 + zz / total) for side in (-half, half))
    return 100 * max(0.0, low), 100 * min(1.0, high)


def sign_test(gained: int, lost: int) -> float:
    """Chance of a split at least this uneven when neither method is better (McNemar's exact test, two-sided)."""
    smaller, split = min(gained, lost), gained + lost
    tail = sum(math.comb(split, k) for k in range(smaller + 1)) / float(2**split)
    return min(1.0, 2 * tail)


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points (cost, worth) no other beats: none is cheaper at the same worth, or worth more at the cost."""
    return [
        not any((c <= cost and w >= worth) and (c < cost or w > worth) for c, w in points) for cost, worth in points
    ]


def scores(
    methods: Sequence[Method], answers: Mapping[str, Sequence[Answer]], speeds: Mapping[str, Sequence[float]]
) -> list[Score]:
    """A score for each method, in their order."""
    first = answers[methods[0].key]
    found = [
        _score(number, method, answers[method.key], first, speeds.get(method.key, ()))
        for number, method in enumerate(methods, start=1)
    ]
    rows = [math.inf if s.rows_per_token is None else s.rows_per_token for s in found]
    front = pareto([(cost, s.right / s.problems) for cost, s in zip(rows, found, strict=True)])
    return [replace(score, front=is_front) for score, is_front in zip(found, front, strict=True)]


def _score(
    number: int, method: Method, answers: Sequence[Answer], first: Sequence[Answer], speeds: Sequence[float]
) -> Score:
    tokens = sum(a.tokens for a in answers)
    counted = [a for a in answers if a.flops is not None]
    counted_tokens = sum(a.tokens for a in counted)
    passes = sum(a.nfe for a in answers)
    pairs = [(a.right, b.right) for a, b in zip(answers, first, strict=True)]
    return Score(
        number=number,
        method=method,
        problems=len(answers),
        right=sum(a.right for a in answers),
        gained=pairs.count((True, False)),
        lost=pairs.count((False, True)),
        nfe=passes / len(answers),
        tokens_per_forward=tokens / passes,
        rows_per_token=sum(a.rows for a in answers) / tokens if tokens else None,
        flops_per_token=sum(a.flops or 0 for a in counted) / counted_tokens if counted_tokens else None,
        speeds=tuple(speeds),
    )
