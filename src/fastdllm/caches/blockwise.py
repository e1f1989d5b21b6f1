"""Caches that refresh block by block: none, and Fast-dLLM's two (arXiv 2505.22618, section 3.2).

``none`` computes the whole canvas at every pass. Fast-dLLM computes it once for each block, in the pass
that opens the block and also decodes, and then only what may still change: the block and all behind it
(``prefix``), or the block alone (``dual``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastdllm.caches.plan import Plan, Policy, span
from fastdllm.canvas import Canvas, Region
from fastdllm.checks import check_least
from fastdllm.errors import OptionError
from fastdllm.state import RowState


@dataclass(frozen=True, kw_only=True)
class NoCache(Policy):
    """Every row at every pass: plain decoding, the reference for all others."""

    source: ClassVar[str] = "LLaDA, arXiv 2502.09992"
    stores: ClassVar[bool] = False

    def plan(self, canvas: Canvas, region: Region, state: RowState) -> Plan:
        return span(torch.zeros_like(region.start), region.length, canvas.width, region.length)


@dataclass(frozen=True, kw_only=True)
class Blockwise(Policy):
    """What Fast-dLLM's caches share: two ways to make the pass that opens a block cheaper.

    Args:
        prompt_every: the prompt's rows are recomputed at every so many blocks only, the first included.
        suffix_window: masks further than this right of the block are not there for it (DPad, arXiv
            2508.14148, without its random thinning; Streaming-dLLM, arXiv 2601.17917): what a block
            costs then no longer grows with gen_length. None sees all.
    """

    source: ClassVar[str] = "Fast-dLLM, arXiv 2505.22618"
    prompt_every: int = 1
    suffix_window: int | None = None

    def __post_init__(self) -> None:
        check_least("prompt_every", self.prompt_every, 1)
        if self.suffix_window is not None and self.suffix_window < 0:
            raise OptionError(f"suffix_window={self.suffix_window} must be 0 or more, or none.")
        check_least("suffix_window", self.suffix_window or 0)

    def opening(self, region: Region) -> tuple[Tensor, Tensor]:
        """First row of the pass that opens a block and the first slot it does not see, (B,) each."""
        first = torch.where(region.block % self.prompt_every == 0, 0, region.prompt)
        reach = region.length
        if self.suffix_window is not None:
            reach = torch.minimum(reach, region.end + self.suffix_window)
        return first, reach


@dataclass(frozen=True, kw_only=True)
class PrefixCache(Blockwise):
    """Reuse keys and values left of the block (Fast-dLLM's PrefixCache); refreshed as each block opens."""

    def plan(self, canvas: Canvas, region: Region, state: RowState) -> Plan:
        first, reach = self.opening(region)
        return span(torch.where(region.step == 0, first, region.first_row), reach, canvas.width, reach)


@dataclass(frozen=True, kw_only=True)
class DualCache(Blockwise):
    """Reuse keys and values left and right of the block (Fast-dLLM's DualCache); refreshed as each block opens."""

    def plan(self, canvas: Canvas, region: Region, state: RowState) -> Plan:
        first, reach = self.opening(region)
        opens = region.step == 0
        rows = torch.where(opens, first, region.first_row), torch.where(opens, reach, region.end)
        return span(*rows, canvas.width, reach)
