"""Numbers of repeated measurements: their middle and spread, ratios of two, and how they grow."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

RESAMPLES = 4000
INTERVAL = 0.95
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Of Student's t at 97.5 %, for 1, 2, ... degrees of freedom."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Repeated measurements in the order they were made: middle, quartiles, extremes."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def least(self) -> float:
        return min(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third."""
        if len(self.values) == 1:
            return self.values[0], self.values[0]
        first, _, third = statistics.quantiles(self.values, n=4, method="inclusive")
        return first, third

    def scaled(self, factor: float) -> Spread:
        """The same measurements in another unit."""
        return Spread(values=tuple(value * factor for value in self.values))

    def as_json(self) -> dict[str, object]:
        first, third = self.quartiles
        return {
            "median": self.median,
            "q1": first,
            "q3": third,
            "min": self.least,
            "max": max(self.values),
            "n": len(self.values),
            "values": list(self.values),
        }


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Of two medians, with its 95 % interval; None where one pair alone was measured."""

    value: float
    interval: tuple[float, float] | None
    pairs: int

    def as_json(self) -> dict[str, object]:
        return {"value": self.value, "interval": self.interval, "pairs": self.pairs}


def ratio(above: Sequence[float], below: Sequence[float], seed: int = 0) -> Ratio:
    """Median of ``above`` over that of ``below``, which were measured in turns: pair by pair on the same machine.

    The interval is the bootstrap's percentile interval over pairs (B. Efron, Annals of Statistics 7, 1-26, 1979):
    drawing pairs keeps what a slow moment did to both of them. With few pairs it is rough.
    """
    pairs = list(zip(above, below, strict=True))
    value = _of_medians(pairs)
    if len(pairs) == 1:
        return Ratio(value=value, interval=None, pairs=1)
    rng = random.Random(seed)
    drawn = sorted(_of_medians(rng.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    edge = int((1 - INTERVAL) / 2 * RESAMPLES)
    return Ratio(value=value, interval=(drawn[edge], drawn[-1 - edge]), pairs=len(pairs))


def _of_medians(pairs: Sequence[tuple[float, float]]) -> float:
    return statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs)


@dataclass(frozen=True, kw_only=True)
class Growth:
    """A power law: cost = factor * size ** exponent."""

    exponent: float
    interval: tuple[float, float] | None
    """95 % interval of the exponent; None for two sizes, through which every power law goes."""
    factor: float
    last: float
    """Exponent between the two largest sizes alone: where fixed costs matter least."""

    def at(self, size: float) -> float:
        return float(self.factor * size**self.exponent)

    def as_json(self) -> dict[str, object]:
        return {"exponent": self.exponent, "interval": self.interval, "factor": self.factor, "last": self.last}


def growth(sizes: Sequence[float], costs: Sequence[float]) -> Growth:
    """Least squares in logarithms over sizes that ascend, one cost each.

    The interval is Student's, from how far the points lie from the line: it is wide where few sizes were measured
    and where the law is no power law, as when a fixed cost is part of it.
    """
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    exponent, offset = statistics.linear_regression(x, y)
    last = (y[-1] - y[-2]) / (x[-1] - x[-2])
    freedom, interval = len(x) - 2, None
    if freedom:
        mean = statistics.fmean(x)
        residual = sum((v - offset - exponent * u) ** 2 for u, v in zip(x, y, strict=True))
        error = math.sqrt(residual / freedom / sum((u - mean) ** 2 for u in x))
        half = T_QUANTILES[min(freedom, len(T_QUANTILES)) - 1] * error
        interval = (exponent - half, exponent + half)
    return Growth(exponent=exponent, interval=interval, factor=math.exp(offset), last=last)
