"""Accuracy against tokens of a pass (Fast-dLLM, arXiv 2505.22618, Figure 5).

With a threshold or a factor the model's confidence says how many slots a pass commits; the baseline fixes the number.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from fastdllm.arena.problems import ProblemSet
from fastdllm.studies.study import PLAIN, Bench, Contest, document, measured
from fastdllm.studies.table import Table

NAME = "thresholds"
THRESHOLDS, QUICK_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99), (0.5, 0.7, 0.9)
SERIES = {"fixed": "topk:k={:g}", "threshold": "threshold:threshold={:g}", "factor": "factor:factor={:g}"}
"""The decoders that are compared, and how their specs are written."""


@dataclass(frozen=True, kw_only=True)
class ThresholdsOptions:
    """Values of each decoder's one parameter, all with the same cache.

    Raises:
        OptionError: a value is not one that its decoder allows.
    """

    cache: str = "none"
    fixed: tuple[int, ...] = (1, 2, 4, 8)
    threshold: tuple[float, ...] = THRESHOLDS
    factor: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)

    @classmethod
    def quick(cls) -> ThresholdsOptions:
        return cls(fixed=(1, 2, 4), threshold=QUICK_THRESHOLDS, factor=(1.0,))

    def labels(self, series: str) -> dict[float, str]:
        """The label of each value of a series, ascending."""
        words = {"fixed": "{:g} a pass", "threshold": "threshold {:g}", "factor": "factor {:g}"}
        return {value: words[series].format(value) for value in sorted(set(getattr(self, series)))}

    @property
    def methods(self) -> dict[str, str]:
        """The methods' texts by their labels, plain decoding first."""
        texts = {} if self.cache == "none" and 1 in self.fixed else {"plain": f"none/{PLAIN}"}
        for series, spec in SERIES.items():
            texts |= {label: f"{self.cache}/{spec.format(value)}" for value, label in self.labels(series).items()}
        return texts


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """One contest of all decoders."""

    title: ClassVar[str] = "Accuracy against tokens of a pass"

    options: ThresholdsOptions
    contest: Contest

    @property
    def tables(self) -> list[Table]:
        return [self.contest.summary()]

    def markdown(self) -> str:
        paragraphs = [self.contest.details().markdown(), measured(self.contest.report)]
        return document(NAME, self.title, paragraphs, [self.contest])

    def as_json(self) -> dict[str, Any]:
        """Everything, JSON-ready."""
        return {"options": asdict(self.options), "contests": [self.contest.as_json()]}


def run(bench: Bench, posed: ProblemSet, options: ThresholdsOptions) -> Thresholds:
    """Answer and time every decoder."""
    return Thresholds(options=options, contest=bench.hold(NAME, posed, options.methods))
