"""The dual cache with a refresh that slides along with the block, and does not grow with what lies left or right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastdllm.caches.blockwise import Blockwise
from fastdllm.caches.plan import Plan, span
from fastdllm.canvas import Canvas, Region
from fastdllm.checks import check_least
from fastdllm.state import RowState


@dataclass(frozen=True, kw_only=True)
class SlidingCache(Blockwise):
    """The dual cache, with a pass that opens a block computing only what is near it, and the prompt now and then.

    With several tokens a pass, opening passes are most of what Fast-dLLM's caches compute. What they refresh
    far away hardly changes: the prompt, and blocks that were decoded long ago. ``recent_blocks`` blocks left of
    the opened one are refreshed with it, and older ones stay as they are (with 1, a block is refreshed once more
    when all of it is decoded). ``prompt_every=1,recent_blocks=none,suffix_window=none`` is ``dual``.
    """

    source: ClassVar[str] = "after Fast-dLLM, arXiv 2505.22618; DPad, arXiv 2508.14148"
    prompt_every: int = 8
    recent_blocks: int | None = 1
    suffix_window: int | None = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least("recent_blocks", self.recent_blocks or 0)

    def plan(self, canvas: Canvas, region: Region, state: RowState) -> Plan:
        opens, (_, reach) = region.step == 0, self.opening(region)
        head = torch.where(opens & (region.block % self.prompt_every == 0), region.prompt, 0)
        first = torch.where(opens, self._first(canvas, region), region.first_row)
        return span(torch.maximum(first, head), torch.where(opens, reach, region.end), canvas.width, reach, head)

    def _first(self, canvas: Canvas, region: Region) -> Tensor:
        """First row right of the prompt that an opening pass computes."""
        if self.recent_blocks is None:
            return region.prompt
        oldest = torch.minimum(region.start - self.recent_blocks * canvas.block_length, region.first_row)
        return torch.maximum(oldest, torch.minimum(region.prompt, region.first_row))
