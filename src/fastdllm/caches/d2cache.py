"""d²Cache: rows are chosen by certainty and by attention rollout, anew at every pass (arXiv 2509.23094).

Shapes: B rows of the batch, N rows of one group of it, R rows of a pass, T canvas length, G answer slots,
H query heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastdllm.caches.plan import Plan, Policy, changed_slots, scattered, sources_of
from fastdllm.canvas import Canvas, Region, to_device
from fastdllm.checks import check_above, check_least
from fastdllm.density import certainty_density
from fastdllm.errors import OptionError
from fastdllm.kv import BoundStore
from fastdllm.models.transformer import Angles, Block
from fastdllm.sampling import Prediction, rank
from fastdllm.state import FLOAT32, RowState, Size


@dataclass(frozen=True, kw_only=True)
class D2Cache(Policy):
    """Recompute the masks that are sure next, what has just changed, and the tokens that the others look at most.

    A pass computes ``current_k`` masks with the largest confidence times certainty density (Gaussian of width
    ``sigma``; the block's first), the slots committed by the last pass, and of all others those that hold
    ``rollout_p`` of the attention rollout (section 3.2). Gaps of at most ``inflate_w`` between chosen rows are
    filled. Confidences are those of the last pass that computed the slot. All rows are computed once, at first.
    With ``decoder=certainty`` and ``block_length=gen_length`` it decodes without blocks, as the paper does.
    """

    source: ClassVar[str] = "d²Cache, arXiv 2509.23094"
    looks_beyond: ClassVar[bool] = True
    current_k: int = 32
    rollout_p: float = 0.1
    sigma: float = 10.0
    inflate_w: int = 4

    def __post_init__(self) -> None:
        check_least("current_k", self.current_k, 1)
        check_least("inflate_w", self.inflate_w)
        if not 0 <= self.rollout_p <= 1:
            raise OptionError(f"rollout_p={self.rollout_p} must be from 0 to 1.")
        check_above("sigma", self.sigma)

    def plan(self, canvas: Canvas, region: Region, state: RowState) -> Plan:
        changed = changed_slots(canvas, state)
        inside = canvas.inside
        first = to_device(region.nfe == 0, canvas.device)[:, None]
        if "confidence" not in state:
            state["confidence"] = torch.zeros(len(canvas), canvas.width + 1, device=canvas.device)
            return scattered(inside, region.length)
        masks = self.next_masks(canvas, region, state["confidence"])
        chosen = sources_of(masks, region.shift) | changed
        chosen |= nucleus(state["importance"].masked_fill(chosen | ~inside, 0.0), self.rollout_p)
        return scattered((filled(chosen, self.inflate_w) | first) & inside, region.length)

    def next_masks(self, canvas: Canvas, region: Region, confidence: Tensor) -> Tensor:
        """Masks (B, T) that the next pass computes: ``current_k``, of the block and of as many after it as it takes."""
        start, limit = (to_device(t[:, None], canvas.device) for t in (region.start, region.limit))
        slots = canvas.answer
        is_open = canvas.tokens.gather(1, slots) == canvas.mask_id
        density = certainty_density(~is_open, self.sigma)
        left = is_open & (slots >= start) & (slots < limit)
        order = torch.arange(canvas.gen_length, device=canvas.device).expand_as(left)
        enough = left.long().cumsum(1) >= self.current_k
        crossing = torch.where(enough, order, canvas.gen_length).amin(1, keepdim=True)
        window = order < (crossing // canvas.block_length + 1) * canvas.block_length
        score = confidence.gather(1, slots) * density
        in_block = slots < start + canvas.block_length
        score = torch.where(in_block, score + score.amax(1, keepdim=True) + 1.0, score)
        chosen = (rank(score, left & window) < self.current_k) & left & window
        return torch.zeros_like(canvas.tokens, dtype=torch.bool).scatter_(1, slots, chosen)

    def layers(self, plan: Plan, group: Tensor, view: BoundStore, state: RowState) -> Rollout:
        return Rollout(view, state, to_device(plan.reach[group], view.rows.device))

    def observe(self, prediction: Prediction, state: RowState) -> None:
        held = state["confidence"]
        kept = held.gather(1, prediction.positions)
        held.scatter_(1, prediction.positions, torch.where(prediction.slots.known, prediction.confidence, kept))

    def extra_bytes(self, size: Size) -> int:
        """What the first pass has for all rows: each layer's mean attention, and one layer's scores and weights."""
        of_heads = 2 * size.heads * size.itemsize
        return size.batch * size.length**2 * (FLOAT32 * size.layers + of_heads)


class Rollout:
    """Plain layers that note what their rows attend to, averaged over heads, and roll it out at the end.

    With A the attention of the computed rows and the identity elsewhere, rollout multiplies (A + I) / 2 over the
    layers; the importance of a slot is its column's sum. That is a row of ones times the matrices, last layer
    first: no product of matrices, O(L R T) in all.
    """

    def __init__(self, view: BoundStore, state: RowState, reach: Tensor) -> None:
        self.view, self.state, self.reach = view, state, reach
        self.means: list[Tensor] = []

    def run(self, block: Block, layer: int, x: Tensor, angles: Angles, visible: Tensor | None) -> Tensor:
        attention, y = block.attention, block.attention_norm(x)
        q, k, v = attention.queries(y, angles), attention.keys(y, angles), attention.values(y)
        k, v = self.view.exchange(layer, k, v)
        weights = attention.weights(q, k, visible)
        self.means.append(attention.mean_over_heads(weights))
        x = x + attention.merge(weights @ attention.repeated(v))
        if layer + 1 == self.view.store.layers:
            self._note()
        out: Tensor = x + block.feed_forward(block.feed_forward_norm(x))
        return out

    def _note(self) -> None:
        """Importance (N, T) of every slot into the state."""
        store, rows = self.view.store, self.view.rows
        places = torch.arange(store.length + 1, device=rows.device)
        column = (places < self.reach[:, None]).float()
        for mean in reversed(self.means):
            column = roll(column, rows, mean)
        if "importance" not in self.state:
            shape = (store.batch, store.length)
            self.state["importance"] = column.new_zeros(shape)
        self.state["importance"][self.view.batch] = column[:, : store.length]


def roll(column: Tensor, rows: Tensor, mean: Tensor) -> Tensor:
    """``column`` (N, T + 1) times (A + I) / 2, A being ``mean`` (N, R, reach) at ``rows`` (N, R), else the identity."""
    weight = column.gather(1, rows).masked_fill(rows == column.shape[1] - 1, 0.0)
    halved = column.scatter(1, rows, 0.5 * weight)
    halved[:, : mean.shape[2]] += 0.5 * (weight[:, None] @ mean)[:, 0]
    return halved


def nucleus(importance: Tensor, share: float) -> Tensor:
    """Slots (B, T) that together hold at most ``share`` of the importance, the largest first; one at least."""
    if share >= 1:
        return torch.ones_like(importance, dtype=torch.bool)
    ordered, slots = importance.sort(dim=1, descending=True, stable=True)
    total = ordered.sum(1, keepdim=True).clamp(min=1e-30)
    keep = (ordered.cumsum(1) / total <= share) & (ordered > 0)
    keep[:, 0] = ordered[:, 0] > 0
    return torch.zeros_like(keep).scatter_(1, slots, keep)


def filled(chosen: Tensor, width: int) -> Tensor:
    """``chosen`` (B, T) with every gap filled between two chosen slots that are at most ``width`` apart."""
    places = torch.arange(chosen.shape[1], device=chosen.device).expand_as(chosen)
    far = 2 * chosen.shape[1]
    before = torch.where(chosen, places, -far).cummax(1).values
    after = torch.where(chosen, places, far).flip(1).cummin(1).values.flip(1)
    return chosen | (after - before <= width)
