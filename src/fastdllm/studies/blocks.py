"""Accuracy and speed over the length of a block (Fast-dLLM, arXiv 2505.22618, Figure 4).

A cache is filled anew when a block is opened: short blocks keep it fresh and refill it often, long blocks let it grow
stale. Without a cache, the block decides only which slots may be decoded next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from fastdllm.arena.problems import ProblemSet
from fastdllm.arena.report import number
from fastdllm.errors import OptionError
from fastdllm.studies.study import PARALLEL, PLAIN, Bench, Contest, document, measured
from fastdllm.studies.table import Table

NAME = "blocks"


@dataclass(frozen=True, kw_only=True)
class BlocksOptions:
    """The lengths that are compared; those beyond ``gen_length`` mean one block, and are left out."""

    block_lengths: tuple[int, ...] = (4, 8, 16, 32, 64)
    caches: tuple[str, ...] = ("none", "prefix", "dual")
    plain: str = PLAIN
    decoder: str = PARALLEL

    @classmethod
    def quick(cls) -> BlocksOptions:
        return cls(block_lengths=(4, 8, 32))

    def lengths(self, gen_length: int) -> list[int]:
        """Those that answers of this length have room for."""
        found = [length for length in sorted(set(self.block_lengths)) if length <= gen_length]
        if not found:
            raise OptionError(f"block_lengths={self.block_lengths} are all beyond gen_length={gen_length}.")
        return found

    def methods(self, gen_length: int) -> dict[str, str]:
        """The methods' texts by their labels, plain decoding first."""
        return {"plain": f"none/{self.plain}"} | {
            label_of(cache, length): f"{cache}/{self.decoder}@block_length={length}"
            for length in self.lengths(gen_length)
            for cache in self.caches
        }


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """One contest of plain decoding and every cache at every block length."""

    title: ClassVar[str] = "Accuracy, rows and speed over the block length"

    options: BlocksOptions
    lengths: Sequence[int]
    contest: Contest

    @property
    def tables(self) -> list[Table]:
        return [self.contest.summary()]

    def overview(self) -> Table:
        """A row for each block length, a column for each cache."""
        rows = []
        for length in self.lengths:
            labels = [label_of(cache, length) for cache in self.options.caches]
            rows.append([str(length), *map(self._cell, labels)])
        return Table(["block length", *(f"cache {cache}" for cache in self.options.caches)], rows)

    def _cell(self, label: str) -> str:
        rows = number(self.contest.score(label).rows_per_token, 1.0)
        right, *fast = self.contest.cell(label).split("<br>")
        return "<br>".join([right, f"{rows} rows/token", *fast])

    def markdown(self) -> str:
        about = (
            f"Right, % (95 % interval), rows per token, tokens per second and speed-up against plain decoding "
            f"(`none/{self.options.plain}`), all with the decoder `{self.options.decoder}`:"
        )
        paragraphs = [about, self.overview().markdown(), self.contest.details().markdown()]
        return document(NAME, self.title, [*paragraphs, measured(self.contest.report)], [self.contest])

    def as_json(self) -> dict[str, Any]:
        """Everything, JSON-ready."""
        options = {**asdict(self.options), "block_lengths": list(self.lengths)}
        return {"options": options, "contests": [self.contest.as_json()]}


def label_of(cache: str, length: int) -> str:
    """What a table calls a cache with blocks of this length."""
    return f"{cache}, blocks of {length}"


def run(bench: Bench, posed: ProblemSet, options: BlocksOptions) -> Blocks:
    """Answer and time plain decoding and every cache at every block length that is no longer than the answer."""
    gen_length = bench.shared["gen_length"]
    contest = bench.hold(NAME, posed, options.methods(gen_length))
    return Blocks(options=options, lengths=options.lengths(gen_length), contest=contest)
