"""What each component adds: caches, parallel decoding, both (Fast-dLLM, arXiv 2505.22618, Tables 1 and 2, Figure 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from fastdllm.arena.problems import ProblemSet
from fastdllm.studies.study import PARALLEL, PLAIN, Bench, Contest, document, measured
from fastdllm.studies.table import Table

NAME = "components"


@dataclass(frozen=True, kw_only=True)
class ComponentsOptions:
    """The caches and the decoder that are added to plain decoding."""

    caches: tuple[str, ...] = ("prefix", "dual")
    plain: str = PLAIN
    decoder: str = PARALLEL

    @property
    def methods(self) -> dict[str, str]:
        """The methods' texts by their labels: plain decoding, each component alone, and each cache with the decoder."""
        return {
            "plain": f"none/{self.plain}",
            **{f"+ {cache} cache": f"{cache}/{self.plain}" for cache in self.caches},
            "+ parallel": f"none/{self.decoder}",
            **{f"{cache} + parallel": f"{cache}/{self.decoder}" for cache in self.caches},
        }


@dataclass(frozen=True, kw_only=True)
class Components:
    """A contest of all components for each set of problems."""

    title: ClassVar[str] = "Accuracy and speed of each component"

    options: ComponentsOptions
    contests: Sequence[Contest]

    @property
    def tables(self) -> list[Table]:
        """Each set's numbers."""
        return [contest.summary() for contest in self.contests]

    def overview(self) -> Table:
        """A row for each set of problems, a column for each method, as in the paper's tables."""
        labels = list(self.options.methods)
        rows = [[contest.posed.name, *map(contest.cell, labels)] for contest in self.contests]
        return Table(["problems", *labels], rows)

    def markdown(self) -> str:
        about = "Right, % (95 % interval); tokens per second and speed-up over plain decoding:"
        numbers = [f"{contest.posed.name}:\n\n{contest.details().markdown()}" for contest in self.contests]
        paragraphs = [about, self.overview().markdown(), *numbers, measured(self.contests[0].report)]
        return document(NAME, self.title, paragraphs, self.contests)

    def as_json(self) -> dict[str, Any]:
        """Everything, JSON-ready."""
        return {"options": asdict(self.options), "contests": [contest.as_json() for contest in self.contests]}


def run(bench: Bench, sets: Sequence[ProblemSet], options: ComponentsOptions) -> Components:
    """Answer and time every method on every set."""
    return Components(options=options, contests=[bench.hold(NAME, posed, options.methods) for posed in sets])
