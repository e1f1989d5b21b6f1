"""What a cache policy decides for a pass, and the protocol of those that decide.

Shapes: B rows of the batch, N rows of one group of it, R rows (positions) of a pass, T canvas length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from fastdllm.canvas import Canvas, Region
from fastdllm.kv import BoundStore
from fastdllm.models.transformer import LayerHook
from fastdllm.sampling import Prediction
from fastdllm.state import RowState, Size


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Rows to compute and write back. All but ``rows`` are host tensors (B,)."""

    rows: Tensor
    """Positions (B, R) ascending, padded with T."""
    counts: Tensor
    """How many of them are real."""
    reach: Tensor
    """First slot that the rows do not see; what lies right of it might as well not be there."""
    computed: Tensor
    """Rows charged to the pass: ``counts``, or what a layer hook that skips some of them puts here."""
    phase: Tensor
    """Batch rows of one phase may share a pass through the network."""
    unbroken: bool = False
    """Whether each batch row's positions are known to follow one another; ``rows`` is then a host tensor, too."""

    def groups(self) -> list[Tensor]:
        """Batch rows that go through the network together."""
        return [(self.phase == phase).nonzero()[:, 0] for phase in self.phase.unique().tolist()]


def plan_of(rows: Tensor, counts: Tensor, reach: Tensor, unbroken: bool = False) -> Plan:
    """A plan whose passes pad little: batch rows that compute much go apart from those that compute little."""
    phase = (counts * 2 > counts.max()).long()
    return Plan(rows=rows, counts=counts, reach=reach, computed=counts, phase=phase, unbroken=unbroken)


def span(first: Tensor, last: Tensor, pad: int, reach: Tensor, head: Tensor | None = None) -> Plan:
    """The plan of rows [first, last), and of [0, head) left of them where there is a head; all (B,)."""
    if head is None:
        head = torch.zeros_like(first)
    counts = head + last - first
    places = torch.arange(int(counts.max()))
    rows = places + torch.where(places < head[:, None], 0, (first - head)[:, None])
    return plan_of(rows.masked_fill(places >= counts[:, None], pad), counts, reach, unbroken=not head.any())


def scattered(chosen: Tensor, reach: Tensor) -> Plan:
    """The plan of the rows that are True in ``chosen`` (B, T), on the device; counting them makes the host wait."""
    counts = chosen.sum(1).cpu()
    pad = chosen.shape[1]
    places = torch.arange(pad, device=chosen.device).expand_as(chosen)
    rows = places.masked_fill(~chosen, pad).sort(dim=1).values[:, : int(counts.max())]
    return plan_of(rows, counts, reach)


class CachePolicy(Protocol):
    """A frozen dataclass; ``plan`` is what each must say, the rest has a default in :class:`Policy`."""

    source: ClassVar[str]
    """The paper."""

    @property
    def stores(self) -> bool:
        """Whether keys and values outlive a pass."""
        ...

    @property
    def looks_beyond(self) -> bool:
        """Whether it wants predictions of the open slots right of the block, too."""
        ...

    def plan(self, canvas: Canvas, region: Region, state: RowState) -> Plan:
        """Rows to recompute and write back; they include a row that predicts some open slot of the block."""
        ...

    def layers(self, plan: Plan, group: Tensor, view: BoundStore, state: RowState) -> LayerHook | None:
        """How the batch rows ``group`` (N,) go through the network's layers; None for plainly."""
        ...

    def fresh(self, rows: Tensor, state: RowState) -> Tensor | None:
        """Which of the computed ``rows`` (B, M) the pass brought up to date in every layer; None for all of them."""
        ...

    def observe(self, prediction: Prediction, state: RowState) -> None:
        """Take note of what a pass predicted."""
        ...

    def extra_bytes(self, size: Size) -> int:
        """Bytes that it holds beside keys and values at its widest pass."""
        ...


class Policy:
    """The defaults of :class:`CachePolicy`."""

    source: ClassVar[str] = ""
    stores: ClassVar[bool] = True
    looks_beyond: ClassVar[bool] = False

    def layers(self, plan: Plan, group: Tensor, view: BoundStore, state: RowState) -> LayerHook | None:
        return None

    def fresh(self, rows: Tensor, state: RowState) -> Tensor | None:
        return None

    def observe(self, prediction: Prediction, state: RowState) -> None:
        return None

    def extra_bytes(self, size: Size) -> int:
        return 0


def changed_slots(canvas: Canvas, state: RowState) -> Tensor:
    """Slots (B, T) that hold another token than when this was last asked; all of them at first."""
    tokens, before = canvas.tokens, state.get("tokens")
    state["tokens"] = tokens.clone()
    return torch.ones_like(tokens, dtype=torch.bool) if before is None else tokens != before


def sources_of(slots: Tensor, shift: int) -> Tensor:
    """Rows (B, T) that predict the slots that are True in ``slots`` (B, T); row 0 does for those that have none."""
    if shift == 0:
        return slots
    rows = torch.cat((slots[:, shift:], torch.zeros_like(slots[:, :shift])), dim=1)
    rows[:, 0] |= slots[:, :shift].any(1)
    return rows
