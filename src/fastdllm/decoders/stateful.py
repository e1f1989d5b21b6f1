"""Decoders that remember the passes before: what was settled, which tokens kept winning, how far a cycle reaches.

What they remember is theirs by row and by slot of the block: tensors (B, W + 1, ...), where place W takes
what is written for slots that are no candidates, and is never read. (KLASS may watch the whole answer: W is G.)

Shapes: B rows of the batch, M slots of a pass (padded), W block length, V vocabulary, H passes of history.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastdllm.canvas import Delta, to_device
from fastdllm.checks import check_above, check_least
from fastdllm.decoders.base import Ranked, Turn, check_count, commit, in_new_block, offsets, sure
from fastdllm.errors import OptionError
from fastdllm.sampling import rank
from fastdllm.state import FLOAT32, Size


@dataclass(frozen=True, kw_only=True)
class Klass(Ranked):
    """Every slot at least ``threshold`` sure whose distribution has settled; failing any, the best one (KLASS).

    Settled: in each of the last ``history`` passes KL(p || p before) was below ``kl_threshold`` (arXiv
    2511.05664). Passes that did not bring a slot's row up to date do not count for it: a stale distribution
    always agrees with itself. With ``scope=answer``, as released,
    every open slot of the answer is watched from the first pass on, which needs all of them predicted and V
    numbers kept for each. With ``scope=block`` the slots of the block alone are, and settle anew in each
    block: its first ``history`` passes commit one token each.
    """

    source: ClassVar[str] = "KLASS, arXiv 2511.05664"
    threshold: float = 0.9
    kl_threshold: float = 0.01
    history: int = 2
    scope: str = "answer"

    def __post_init__(self) -> None:
        if self.scope not in ("answer", "block"):
            raise OptionError(f"scope={self.scope!r} is not one of answer, block.")
        check_least("threshold", self.threshold)
        check_count("history", self.history)
        check_above("kl_threshold", self.kl_threshold)

    @property
    def looks_beyond(self) -> bool:
        return self.scope == "answer"

    def step(self, turn: Turn) -> Delta:
        prediction = turn.prediction
        settled = (self._divergences(turn) < self.kl_threshold).all(-1)
        ready = prediction.candidate & settled & (prediction.confidence >= self.threshold)
        best = rank(prediction.confidence, prediction.candidate) == 0
        return commit(prediction, torch.where(ready.any(1, keepdim=True), ready, best))

    def extra_bytes(self, size: Size) -> int:
        """The distribution of every slot that is watched."""
        slots = size.gen_length if self.scope == "answer" else size.block_length
        return FLOAT32 * size.batch * (slots + 1) * size.vocabulary

    def _divergences(self, turn: Turn) -> Tensor:
        """KL divergence (B, M, H) of each slot over its last fresh passes, the newest last; infinite where unknown."""
        notes, prediction = turn.notes, turn.prediction
        at, width, watched, anew = self._places(turn)
        p = prediction.logits.softmax(-1)
        log_p = (p + 1e-12).log()
        if not notes:
            shape = len(at), width + 1
            notes["log_p"] = p.new_zeros(*shape, p.shape[-1])
            notes["divergences"] = p.new_full((*shape, self.history), float("inf"))
            notes["seen"] = torch.zeros(shape, dtype=torch.bool, device=p.device)
        notes["seen"] &= ~anew
        notes["divergences"].masked_fill_(anew[..., None], float("inf"))
        by_token, by_pass = at[..., None].expand_as(p), at[..., None].expand(-1, -1, self.history)
        change = (p * (log_p - notes["log_p"].gather(1, by_token))).sum(-1)
        held = notes["divergences"].gather(1, by_pass)
        moved = held.roll(-1, dims=2)
        moved[..., -1] = change.masked_fill(~notes["seen"].gather(1, at), float("inf"))
        fresh = watched & prediction.slots.fresh
        divergences = torch.where(fresh[..., None], moved, held)
        into = at.masked_fill(~fresh, width)[..., None]
        notes["log_p"].scatter_(1, into.expand_as(p), log_p)
        notes["divergences"].scatter_(1, by_pass, divergences)
        notes["seen"].scatter_(1, into[..., 0], True)
        return divergences

    def _places(self, turn: Turn) -> tuple[Tensor, int, Tensor, Tensor]:
        """Place of each slot in the notes (B, M), how many there are, the watched (B, M), and rows anew (B, 1)."""
        slots, region, device = turn.prediction.slots, turn.region, turn.canvas.device
        if self.scope == "block":
            return offsets(turn), turn.canvas.block_length, slots.candidate, in_new_block(region, device)
        width, watched = turn.canvas.gen_length, slots.known & (slots.current == turn.canvas.mask_id)
        at = (slots.positions - to_device(region.prompt[:, None], device)).masked_fill(~watched, width)
        return at, width, watched, to_device(region.nfe == 0, device)[:, None]


@dataclass(frozen=True, kw_only=True)
class Credit(Ranked):
    """The threshold rule on logits that a token's earlier wins have raised (CreditDecoding, arXiv 2510.06133).

    At each pass a slot's likeliest token gains p^gamma of credit, after all its credits fell to ``beta`` of
    what they were; the logits rise by alpha log(1 + credit). Credits start from 0 with each block.
    """

    source: ClassVar[str] = "CreditDecoding, arXiv 2510.06133"
    threshold: float = 0.9
    alpha: float = 0.7
    beta: float = 0.8
    gamma: float = 0.2

    def __post_init__(self) -> None:
        for name in ("threshold", "alpha", "gamma"):
            check_least(name, getattr(self, name))
        if not 0 <= self.beta <= 1:
            raise OptionError(f"beta={self.beta} must be from 0 to 1.")

    def step(self, turn: Turn) -> Delta:
        prediction = turn.prediction.redrawn(turn.prediction.logits + self.alpha * self._credits(turn).log1p())
        return commit(prediction, sure(prediction, self.threshold, prediction.candidate))

    def extra_bytes(self, size: Size) -> int:
        """The credit of every token for every slot of the block."""
        return FLOAT32 * size.batch * (size.block_length + 1) * size.vocabulary

    def _credits(self, turn: Turn) -> Tensor:
        """Credit (B, M, V) of every token, that of this pass included."""
        notes, at, logits = turn.notes, offsets(turn), turn.prediction.logits
        if not notes:
            notes["credits"] = logits.new_zeros(len(at), turn.canvas.block_length + 1, logits.shape[-1])
        top, token = logits.max(-1)
        gain = ((top - logits.logsumexp(-1)).exp() ** self.gamma).masked_fill(~turn.prediction.candidate, 0)
        credits = notes["credits"].mul_(self.beta * ~in_new_block(turn.region, logits.device)[..., None])
        credits.view(len(at), -1).scatter_add_(1, at * logits.shape[-1] + token, gain)
        return credits.gather(1, at[..., None].expand_as(logits))


@dataclass(frozen=True, kw_only=True)
class SlowFast(Ranked):
    """The threshold rule in cycles: over the whole block while their length is sought, then within it (SlowFast).

    A cycle reaches to the last slot at least ``low_threshold`` sure, and from the first open slot one further at
    the least. The slow phase ends when two estimates in a row deviate by less than ``deviation`` or after
    ``slow_steps`` passes, with the mean of the last two; the fast phase when the cycle is full (arXiv 2506.10848).
    Leaving what lies right of the cycle out of the computation, as the paper does, is a cache's work.
    """

    source: ClassVar[str] = "SlowFast Sampling, arXiv 2506.10848"
    threshold: float = 0.9
    low_threshold: float = 0.3
    slow_steps: int = 6
    deviation: float = 1.0

    def __post_init__(self) -> None:
        for name in ("threshold", "low_threshold", "deviation"):
            check_least(name, getattr(self, name))
        check_count("slow_steps", self.slow_steps)

    def step(self, turn: Turn) -> Delta:
        prediction, at = turn.prediction, offsets(turn)
        inside = prediction.candidate & self._cycle(turn, at)
        return commit(prediction, sure(prediction, self.threshold, inside))

    def _cycle(self, turn: Turn, at: Tensor) -> Tensor:
        """True (B, M) for places ``at`` where this pass may commit; brings the notes up to date."""
        prediction, notes, width = turn.prediction, turn.notes, turn.canvas.block_length
        if not notes:
            notes |= {name: at.new_zeros(len(at), 1) for name in ("end", "estimate", "passes")}
        full = ~(at < notes["end"]).any(1, keepdim=True) & (notes["passes"] >= self.slow_steps)
        passes = notes["passes"].masked_fill(full | in_new_block(turn.region, at.device), 0)
        slow = passes < self.slow_steps
        likely = prediction.candidate & (prediction.confidence >= self.low_threshold)
        estimate = (at + 1).masked_fill(~likely, 0).amax(1, keepdim=True)
        estimate = torch.maximum(estimate, at.amin(1, keepdim=True) + 1).clamp(max=width)
        # Two numbers deviate by half their difference.
        settled = (passes > 0) & ((estimate - notes["estimate"]).abs() < 2 * self.deviation)
        mean = torch.where(settled | (passes == 0), estimate, (estimate + notes["estimate"]) // 2)
        notes["end"] = torch.where(slow, mean, notes["end"])
        notes["estimate"] = estimate
        notes["passes"] = (passes + 1).masked_fill(settled | ~slow, self.slow_steps)
        return slow | (at < notes["end"])
