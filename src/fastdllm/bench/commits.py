"""Decoders that commit as they are told: what is timed then does not depend on what the weights say.

Random weights are never sure, so a threshold commits one token a pass on them. A replay commits as many as a trained
model did, or as many as are asked for, and chooses the slots as any parallel decoder does: by confidence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from fastdllm.canvas import Delta, to_device
from fastdllm.decoders import Turn
from fastdllm.decoders.base import Ranked, check_count, commit
from fastdllm.errors import OptionError
from fastdllm.sampling import rank

if TYPE_CHECKING:
    from fastdllm.replay.recording import Recording


@dataclass(frozen=True, kw_only=True)
class Replay(Ranked):
    """The best slots of each pass, as many as a schedule says, and never more than the block has open.

    The end of a block cuts a pass short, as it does for every decoder: with 3 tokens a pass and blocks of 32 it takes
    11 passes to fill one, 2.9 tokens a pass.

    Args:
        tokens_per_pass: at least 1; a fraction is met on average, by rounding the sum over a row's passes down.
        trace: tokens of each pass in turn, in place of that; from the beginning again when they are used up.
    """

    source: ClassVar[str] = ""
    tokens_per_pass: float = 1.0
    trace: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.tokens_per_pass < float("inf"):
            raise OptionError(f"tokens_per_pass={self.tokens_per_pass} must be a number of 1 or more.")
        check_count("tokens_per_pass", math.ceil(self.tokens_per_pass))
        if self.trace is not None and not sum(self.trace):
            raise OptionError("a trace that commits nothing cannot be replayed.")

    def quota(self, nfe: int) -> int:
        """Slots that a row may commit in its pass number ``nfe``, 0 the first."""
        if self.trace is not None:
            return self.trace[nfe % len(self.trace)]
        return math.floor((nfe + 1) * self.tokens_per_pass) - math.floor(nfe * self.tokens_per_pass)

    def step(self, turn: Turn) -> Delta:
        prediction = turn.prediction
        quota = torch.tensor([self.quota(nfe) for nfe in turn.region.nfe.tolist()])
        place = rank(prediction.confidence, prediction.candidate)
        return commit(prediction, place < to_device(quota, place.device)[:, None])


@dataclass(frozen=True, kw_only=True)
class Hold(Ranked):
    """Commits nothing, so that every pass predicts the whole block: for timing passes, as it never ends."""

    def step(self, turn: Turn) -> Delta:
        return commit(turn.prediction, torch.zeros_like(turn.prediction.candidate))


def read_schedule(path: Path) -> tuple[int, ...]:
    """Tokens that each pass of a trace committed (``fastdllm generate --trace FILE`` writes one).

    Raises:
        OptionError: the file is no trace, holds no pass, or was made by a decoder that revises what it committed.
    """
    from fastdllm.replay.recording import read_trace

    return schedule_of(read_trace(path), str(path))


def schedule_of(recording: Recording, name: str) -> tuple[int, ...]:
    """Tokens that each pass committed to the one prompt of a recording."""
    (passes,) = recording.passes
    written = [at for done in passes for at in done.event.positions]
    if len(set(written)) < len(written) or any(done.event.remasked for done in passes):
        raise OptionError(
            f"{name} was made by a decoder that revises what it committed; such a schedule cannot be replayed."
        )
    if not written:
        raise OptionError(f"{name} holds no pass that commits a token.")
    return tuple(len(done.event.positions) for done in passes)
