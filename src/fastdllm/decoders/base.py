"""What decoders are, and the small things most of them share.

Shapes: B rows of the batch, M slots of a pass (padded), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from fastdllm.canvas import Canvas, Delta, Region, to_device
from fastdllm.errors import OptionError
from fastdllm.sampling import Prediction, rank
from fastdllm.state import RowState, Size

MOST = 2**20  # of steps and of tokens in a pass; far above any canvas


@dataclass(frozen=True)
class Turn:
    """What a decoder sees of one pass."""

    canvas: Canvas
    region: Region
    prediction: Prediction
    notes: RowState
    """The decoder's own, carried from pass to pass."""
    leave_one_out: Callable[[], Tensor]
    """Runs the block's slots once more, each with itself masked: logits (B, W, V). For decoders that verify."""


class Decoder(Protocol):
    """A frozen dataclass with one verb; :class:`Ranked` has defaults for the rest."""

    revises: ClassVar[bool]
    """Whether it may write to committed slots, and so wants them predicted, too."""
    verifies: ClassVar[bool]
    """Whether it calls ``leave_one_out``, which needs keys and values to be kept."""
    source: ClassVar[str]
    """The paper."""

    @property
    def looks_beyond(self) -> bool:
        """Whether it wants predictions of the open slots right of the block, too."""
        ...

    def step(self, turn: Turn) -> Delta:
        """Choose the slots to commit."""
        ...

    def check(self, gen_length: int, block_length: int) -> None:
        """Raise OptionError when the decoder cannot fill such a canvas."""
        ...

    def check_vocabulary(self, size: int) -> None:
        """Raise OptionError when what the decoder reads is not for a vocabulary of that size."""
        ...

    def extra_bytes(self, size: Size) -> int:
        """Bytes that its notes hold."""
        ...


class Ranked:
    """The defaults of :class:`Decoder`: any slot at any time, once."""

    source: ClassVar[str] = ""
    revises: ClassVar[bool] = False
    verifies: ClassVar[bool] = False

    @property
    def looks_beyond(self) -> bool:
        return False

    def check(self, gen_length: int, block_length: int) -> None:
        return None

    def check_vocabulary(self, size: int) -> None:
        return None

    def extra_bytes(self, size: Size) -> int:
        return 0


def sure(prediction: Prediction, threshold: float, among: Tensor) -> Tensor:
    """Slots of ``among`` (B, M) with at least that confidence, and always the best of them."""
    return among & ((prediction.confidence >= threshold) | (rank(prediction.confidence, among) == 0))


def commit(prediction: Prediction, chosen: Tensor) -> Delta:
    """The decision to commit the slots ``chosen`` (B, M)."""
    commit = chosen & prediction.candidate
    return Delta(
        positions=prediction.positions,
        tokens=prediction.tokens,
        confidence=prediction.confidence,
        commit=commit,
        remask=torch.zeros_like(commit),
    )


def in_new_block(region: Region, device: torch.device) -> Tensor:
    """True (B, 1) for rows whose block this pass opens."""
    return to_device(region.step == 0, device)[:, None]


def offsets(turn: Turn) -> Tensor:
    """Place of each slot (B, M) in its row's block; W for slots that are not in it or whose row was not computed."""
    prediction, width = turn.prediction, turn.canvas.block_length
    offset = prediction.positions - to_device(turn.region.start[:, None], turn.canvas.device)
    return offset.masked_fill(~(prediction.slots.candidate | prediction.slots.revisable), width)


def check_count(name: str, value: int) -> None:
    if not 1 <= value <= MOST:
        raise OptionError(f"{name}={value} must be from 1 to {MOST}.")
