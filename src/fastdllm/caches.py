"""Cache policies: which rows enter the network in a pass, and whose keys and values are reused.

``none`` computes the whole canvas at every pass. Fast-dLLM (arXiv 2505.22618, section 3.2) computes
it once for each block, in the pass that opens the block and also decodes, and then only what may
still change: the block and all behind it (``prefix``), or the block alone (``dual``).

Shapes: B rows of the batch, R rows (positions) of a pass, T canvas length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from fastdllm.canvas import Canvas, Region


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Rows to compute and write back. Host tensors: ``rows`` (B, R) ascending, padded with T; ``counts`` (B,)."""

    rows: Tensor
    counts: Tensor

    def groups(self) -> list[Tensor]:
        """Batch rows that share a pass without much padding: those that compute much, and those that compute little."""
        much = self.counts * 2 > self.counts.max()
        return [g for g in (much.nonzero()[:, 0], (~much).nonzero()[:, 0]) if len(g)]


def span(first: Tensor, last: Tensor, pad: int) -> Plan:
    """The plan of rows [first, last), both (B,)."""
    counts = last - first
    rows = first[:, None] + torch.arange(int(counts.max()))
    return Plan(rows=rows.masked_fill(rows >= last[:, None], pad), counts=counts)


class CachePolicy(Protocol):
    """A frozen dataclass with one verb."""

    stores: ClassVar[bool]
    """Whether keys and values outlive a pass."""

    def plan(self, canvas: Canvas, region: Region) -> Plan:
        """Rows to recompute and write back; they include every row that predicts an open slot of the block."""
        ...


@dataclass(frozen=True, kw_only=True)
class NoCache:
    """Every row at every pass: plain decoding, the reference for all others."""

    stores: ClassVar[bool] = False

    def plan(self, canvas: Canvas, region: Region) -> Plan:
        return span(torch.zeros_like(region.start), region.length, canvas.width)


@dataclass(frozen=True, kw_only=True)
class PrefixCache:
    """Reuse keys and values left of the block (Fast-dLLM's PrefixCache); refreshed as each block opens."""

    stores: ClassVar[bool] = True

    def plan(self, canvas: Canvas, region: Region) -> Plan:
        return span(torch.where(region.step == 0, 0, region.first_row), region.length, canvas.width)


@dataclass(frozen=True, kw_only=True)
class DualCache:
    """Reuse keys and values left and right of the block (Fast-dLLM's DualCache); refreshed as each block opens."""

    stores: ClassVar[bool] = True

    def plan(self, canvas: Canvas, region: Region) -> Plan:
        opens = region.step == 0
        first, last = torch.where(opens, 0, region.first_row), torch.where(opens, region.length, region.end)
        return span(first, last, canvas.width)


CACHES: dict[str, type[CachePolicy]] = {"none": NoCache, "prefix": PrefixCache, "dual": DualCache}
