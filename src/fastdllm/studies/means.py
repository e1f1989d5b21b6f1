"""Means of measures under labels, and how sure they are."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

NORMAL = 1.96  # standard deviations to either side that hold 95 %


@dataclass
class Means:
    """Means of several measures at once, apart for each label; measures may be tensors (by layer, say)."""

    names: Sequence[str]
    sums: dict[int, Tensor] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)

    def add(self, labels: Tensor, values: Tensor) -> None:
        """Take in ``values`` (measures, ..., n), each under its label (n,)."""
        for label in labels.unique().tolist():
            chosen = values[..., labels == label].double()
            self.sums[label] = self.sums.get(label, 0.0) + chosen.sum(-1)
            self.counts[label] = self.counts.get(label, 0) + chosen.shape[-1]

    def absorb(self, other: Means) -> None:
        """Take in what another has taken in."""
        for label, total in other.sums.items():
            self.sums[label] = self.sums.get(label, 0.0) + total
            self.counts[label] = self.counts.get(label, 0) + other.counts[label]

    @property
    def labels(self) -> list[int]:
        return sorted(self.sums)

    def mean(self, label: int) -> Tensor:
        """Means (measures, ...) under a label."""
        return self.sums[label] / self.counts[label]

    def flat(self, label: int) -> dict[str, float]:
        """A number for each measure by its name: over the layers, too, where there are layers."""
        mean = self.mean(label)
        return named(self.names, mean.mean(1) if mean.ndim > 1 else mean)

    def as_json(self, name: str, of: Callable[[int], object] = lambda label: label) -> list[dict[str, object]]:
        """For each label, ascending, ``of`` it under ``name``, how many numbers its means are of, and the means."""
        return [{name: of(label), "count": self.counts[label], **self.flat(label)} for label in self.labels]


def named(names: Sequence[str], means: Tensor) -> dict[str, float]:
    """Means by their names, rounded to eight digits: float32 holds no more."""
    return {name: round(mean, 8) for name, mean in zip(names, means.tolist(), strict=True)}


def half_width(values: Sequence[float]) -> float | None:
    """Half the 95 % interval of the mean of independent values, by the normal distribution; None for a single one."""
    return NORMAL * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
