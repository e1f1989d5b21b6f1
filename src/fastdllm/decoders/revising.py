"""Decoders that may take back what they committed: LLaDA2.1's editing, Saber, WINO.

They write only to slots whose row was computed in the pass, so that no cache has to answer for a stale one.

Shapes: B rows of the batch, M slots of a pass (padded), W block length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fastdllm.canvas import Delta
from fastdllm.checks import check_least
from fastdllm.decoders.base import MOST, Ranked, Turn, check_count, commit, in_new_block, offsets, sure
from fastdllm.errors import OptionError
from fastdllm.sampling import Prediction, rank


@dataclass(frozen=True, kw_only=True)
class Edit(Ranked):
    """``threshold``, and committed slots of the block that now read otherwise are written again.

    A committed slot whose proposal is another token with more than ``edit_threshold`` is overwritten
    (token-to-token editing of LLaDA2.1). A block without masks stays open until a pass changes nothing, for
    ``post_steps`` passes at most.
    """

    source: ClassVar[str] = "LLaDA2.1, token editing (inclusionAI)"
    revises: ClassVar[bool] = True
    threshold: float = 0.9
    edit_threshold: float = 0.9
    post_steps: int = 16

    def __post_init__(self) -> None:
        for name in ("threshold", "edit_threshold"):
            check_least(name, getattr(self, name))
        if not 0 <= self.post_steps <= MOST:
            raise OptionError(f"post_steps={self.post_steps} must be from 0 to {MOST}.")

    def step(self, turn: Turn) -> Delta:
        prediction, slots = turn.prediction, turn.prediction.slots
        fill = sure(prediction, self.threshold, slots.candidate)
        edit = slots.revisable & (prediction.tokens != slots.current) & (prediction.confidence > self.edit_threshold)
        full = ~slots.candidate.any(1)
        spent = turn.notes.get("spent", torch.zeros_like(full, dtype=torch.long))
        spent = torch.where(in_new_block(turn.region, full.device)[:, 0], 0, spent + full)
        turn.notes["spent"] = spent
        again = (fill | edit).any(1) & (spent < self.post_steps)
        delta = commit(prediction, fill)
        # A confidence is at most 1, so a threshold of 1 edits nothing and needs no pass to see that.
        return replace(delta, commit=fill | edit, hold=again if self.edit_threshold < 1 else None)


@dataclass(frozen=True, kw_only=True)
class Saber(Ranked):
    """A threshold that follows the run's own confidences, and committed slots that lost confidence open again.

    A pass commits the slots above the mean confidence of all commits so far, the best ``n`` at least. Then, of
    the slots committed before, those whose confidence fell most open again: as many as an eighth of what the
    pass committed, n // 2 at least, and always fewer than it committed (sections 3.2 and 3.3).
    """

    source: ClassVar[str] = "Saber, arXiv 2510.18165"
    revises: ClassVar[bool] = True
    n: int = 2

    def __post_init__(self) -> None:
        check_count("n", self.n)

    def step(self, turn: Turn) -> Delta:
        prediction, slots, notes = turn.prediction, turn.prediction.slots, turn.notes
        likeliest = (-prediction.logits.logsumexp(-1)).exp()
        change = self._change(turn, likeliest)
        if "sum" not in notes:
            notes["sum"] = notes["count"] = torch.zeros_like(likeliest[:, :1])
        mean = torch.where(notes["count"] > 0, notes["sum"] / notes["count"].clamp(min=1), 1.0)
        place = rank(prediction.confidence, slots.candidate)
        fill = slots.candidate & ((prediction.confidence > mean) | (place < self.n))
        committed = fill.sum(1, keepdim=True)
        notes["sum"] = notes["sum"] + (prediction.confidence * fill).sum(1, keepdim=True)
        notes["count"] = notes["count"] + committed
        most = torch.minimum(((committed + 7) // 8).clamp(min=self.n // 2), committed - 1)
        remask = slots.revisable & (rank(-change, slots.revisable) < most)
        return replace(commit(prediction, fill), remask=remask)

    def _change(self, turn: Turn, likeliest: Tensor) -> Tensor:
        """By how much the likeliest token's probability (B, M) rose since the last pass; more than 1 where unknown."""
        at, width = offsets(turn), turn.canvas.block_length
        unknown = likeliest.new_full((len(at), width + 1), float("inf"))
        before = turn.notes.get("likeliest", unknown)
        before = torch.where(in_new_block(turn.region, at.device), unknown, before)
        turn.notes["likeliest"] = unknown.scatter(1, at, likeliest)
        change = likeliest - before.gather(1, at)
        return torch.where(change.isfinite(), change, 2.0)


def current_probability(logits: Tensor, prediction: Prediction, turn: Turn) -> Tensor:
    """Probability (B, M) that ``logits`` (B, W, V) of the block's slots give to the tokens that stand there."""
    at = offsets(turn).clamp(max=logits.shape[1] - 1)
    logits = logits.float()
    logits[..., turn.canvas.mask_id] = float("-inf")
    index = at[..., None].expand(*at.shape, logits.shape[-1])
    return logits.log_softmax(-1).gather(1, index).gather(-1, prediction.slots.current[..., None])[..., 0].exp()


@dataclass(frozen=True, kw_only=True)
class WINO(Ranked):
    """Commit widely, verify narrowly: what does not hold up against the rest of the canvas opens again.

    A pass commits slots above ``threshold`` (a cap keeps it to 70 % of the block's masks, from 5 to 20). In the
    same pass every committed slot is predicted once more with itself masked; where its token has less than
    ``threshold_back``, it opens again: fewer than the last pass committed, the worst first (section 3.2). The
    rows that verify, one for each slot of the block, are charged to the pass.
    """

    source: ClassVar[str] = "WINO, arXiv 2507.18578"
    revises: ClassVar[bool] = True
    verifies: ClassVar[bool] = True
    threshold: float = 0.6
    threshold_back: float = 0.9

    def __post_init__(self) -> None:
        for name in ("threshold", "threshold_back"):
            check_least(name, getattr(self, name))

    def step(self, turn: Turn) -> Delta:
        prediction, slots, region = turn.prediction, turn.prediction.slots, turn.region
        masks = slots.candidate.sum(1, keepdim=True)
        cap = (0.7 * masks).long().clamp(min=5, max=20)
        place = rank(prediction.confidence, slots.candidate)
        fill = slots.candidate & ((place == 0) | ((prediction.confidence > self.threshold) & (place < cap)))
        delta = commit(prediction, fill)
        committed, opens = fill.sum(1, keepdim=True), region.step == 0
        last = turn.notes.get("committed", torch.zeros_like(committed))
        turn.notes["committed"] = committed
        if bool(opens.all()):  # nothing is there to verify
            return delta
        held = current_probability(turn.leave_one_out(), prediction, turn)
        bad = slots.revisable & (held < self.threshold_back) & (committed > 1)
        bad &= ~in_new_block(region, bad.device)
        remask = bad & (rank(-held, bad) < last - 1)
        rows = torch.where(opens, 0, region.end - region.start)
        return replace(delta, remask=remask, rows=rows)
