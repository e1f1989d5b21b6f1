"""dKV-Cache: keys and values of a token are reused once it has stood for a pass (arXiv 2505.15781)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastdllm.caches.plan import Plan, Policy, changed_slots, scattered, sources_of
from fastdllm.canvas import Canvas, Region, to_device
from fastdllm.checks import check_least
from fastdllm.state import RowState


@dataclass(frozen=True, kw_only=True)
class DKVCache(Policy):
    """Reuse keys and values of decoded tokens, with a delay of one pass (dKV-Cache-Decode).

    A pass computes the masks, what the last pass committed (a token's keys change most when it is
    decoded), and the rows that predict either. All rows are computed as a block opens and then at
    every ``refresh``-th pass in it (section 3.3).
    """

    source: ClassVar[str] = "dKV-Cache, arXiv 2505.15781"
    refresh: int = 8

    def __post_init__(self) -> None:
        check_least("refresh", self.refresh, 1)

    def plan(self, canvas: Canvas, region: Region, state: RowState) -> Plan:
        device = canvas.device
        inside = canvas.inside
        moving = ((canvas.tokens == canvas.mask_id) | changed_slots(canvas, state)) & inside
        everything = to_device(region.step % self.refresh == 0, device)[:, None] & inside
        return scattered(moving | sources_of(moving, region.shift) | everything, region.length)
