"""What a pass did: the only thing that surfaces see of a generation at work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class RowEvent:
    """What one pass did to one prompt. Positions count from the first answer slot."""

    index: int
    nfe: int
    block: int
    rows_computed: int
    positions: tuple[int, ...]
    """Slots written; by a revising decoder some of them not for the first time."""
    tokens: tuple[int, ...]
    confidences: tuple[float, ...]
    remasked: tuple[int, ...] = ()
    """Slots opened again."""
    finish_reason: FinishReason | None = None
    failed: bool = False
    """The network's logits for this row were not numbers; it is out of the batch, and this pass wrote nothing."""


@dataclass(frozen=True, kw_only=True)
class StepEvent:
    """One pass over the batch: an entry for each prompt that took part in it."""

    step: int
    rows: tuple[RowEvent, ...]
