"""The canvas: prompts followed by masks, where each row is in its work, and what a pass changed.

Rows are laid out from position 0, without left padding: a row sees the same positions alone and in
any batch. Column T is a spare. Padding in position tensors points at it, so that ragged sets of
positions need no special case: what is written there is never read.

The tokens live on the model's device. The book-keeping (block, counts) lives on the host as int64
tensors of shape (B,), kept up to date from the one report that each pass brings back.

Shapes: B rows of the batch, T canvas length, M candidate slots of a pass (padded), W block length.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastdllm.errors import NumericalError

FinishReason = Literal["stop", "length"]


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """Copy a small host tensor without making the host wait: from pinned memory the copy only joins the queue."""
    if device.type == "cuda":
        return host.pin_memory().to(device, non_blocking=True)
    return host.to(device)


@dataclass(frozen=True, kw_only=True)
class Region:
    """What each row decodes in this pass: slots [start, end) of the canvas. Host tensors (B,)."""

    start: Tensor
    end: Tensor
    first_row: Tensor
    """First row whose hidden state predicts a slot of the block: ``start`` less the family's shift."""
    prompt: Tensor
    length: Tensor
    """Prompt and answer together."""
    step: Tensor
    """Passes this row has spent in its block; 0 is the pass that opens it."""
    limit: Tensor
    """First slot that will not be part of the answer: right of a committed end token nothing is decoded."""
    masked: Tensor
    """Open slots in the block left of the limit before this pass; the block's own size at step 0."""
    nfe: Tensor
    """Passes this row has spent in all."""


@dataclass(frozen=True, kw_only=True)
class Delta:
    """A decoder's decision over the candidate slots of a pass, all (B, M); padded slots are never committed."""

    positions: Tensor
    tokens: Tensor
    confidence: Tensor
    commit: Tensor


@dataclass(frozen=True, kw_only=True)
class RowEvent:
    """What one pass did to one prompt. Positions count from the first answer slot."""

    index: int
    nfe: int
    block: int
    rows_computed: int
    positions: tuple[int, ...]
    tokens: tuple[int, ...]
    confidences: tuple[float, ...]
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, kw_only=True)
class StepEvent:
    """One pass over the batch: an entry for each prompt that took part in it."""

    step: int
    rows: tuple[RowEvent, ...]


class Canvas:
    """Tokens of a batch and the place of each row in its work.

    Args:
        prompts: token ids of each prompt.
        gen_length: answer slots, all masked at the start.
        block_length: slots of a block; the last block of an answer may be shorter.
        mask_id: the id that marks an open slot.
        eos_ids: ids that end an answer.
        stop_at_eos: finish a row once an end token has no open slot to its left.
        first_index: number of the first prompt, for events.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        gen_length: int,
        block_length: int,
        mask_id: int,
        eos_ids: Sequence[int],
        stop_at_eos: bool = True,
        first_index: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.gen_length, self.block_length = gen_length, block_length
        self.mask_id, self.stop_at_eos = mask_id, stop_at_eos
        self.prompt = torch.tensor([len(p) for p in prompts])
        self.length = self.prompt + gen_length
        self.index = torch.arange(first_index, first_index + len(prompts))
        self.block, self.step, self.nfe = (torch.zeros_like(self.prompt) for _ in range(3))
        self.width = int(self.length.max())
        self.limit = torch.full_like(self.prompt, self.width)
        self.masked = self._block_end() - self._block_start()
        rows = [list(p) + [mask_id] * (self.width + 1 - len(p)) for p in prompts]
        self._tokens = torch.tensor(rows, device=device)
        self._finished = torch.zeros_like(self.prompt, dtype=torch.bool)
        self._eos_ids = torch.tensor(list(eos_ids), dtype=torch.long, device=device)

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def device(self) -> torch.device:
        return self._tokens.device

    @property
    def tokens(self) -> Tensor:
        """Ids (B, T); slots right of a shorter row's own length are never attended to."""
        return self._tokens[:, : self.width]

    @property
    def visible(self) -> Tensor | None:
        """True (B, T) at slots that belong to their row; None when every slot of every row does."""
        if bool((self.length == self.width).all()):
            return None
        return to_device(torch.arange(self.width) < self.length[:, None], self.device)

    def _block_start(self) -> Tensor:
        return self.prompt + self.block * self.block_length

    def _block_end(self) -> Tensor:
        return torch.minimum(self._block_start() + self.block_length, self.length)

    def region(self, shift: int) -> Region:
        """Where each row decodes now. ``shift``: row ``p - shift`` predicts slot ``p``."""
        start = self._block_start()
        return Region(
            start=start,
            end=self._block_end(),
            first_row=(start - shift).clamp(min=0),
            prompt=self.prompt,
            length=self.length,
            step=self.step,
            limit=self.limit,
            masked=self.masked,
            nfe=self.nfe,
        )

    def open_slots(self, region: Region) -> Tensor:
        """Positions (B, M) of the slots of each row's block that may be decoded, ascending, padded with T."""
        slots = region.start[:, None] + torch.arange(self.block_length)
        inside = slots < torch.minimum(region.end, region.limit)[:, None]
        slots = to_device(slots.masked_fill(~inside, self.width), self.device)
        taken = self._tokens.gather(1, slots) != self.mask_id
        return slots.masked_fill(taken, self.width).sort(dim=1).values[:, : int(region.masked.max())]

    def at(self, batch: Tensor, positions: Tensor) -> Tensor:
        """Ids (N, R) at ``positions`` (N, R) of the batch rows ``batch`` (N,)."""
        return self._tokens[batch].gather(1, positions)

    def without_prompt(self) -> Canvas:
        """A view of the same work whose prompts are masked: the unconditional side of guidance."""
        other = copy.copy(self)
        hidden = torch.arange(self.width + 1, device=self.device) < to_device(self.prompt[:, None], self.device)
        other._tokens = self._tokens.masked_fill(hidden, self.mask_id)
        return other

    def apply(self, delta: Delta, rows_computed: Tensor, step: int) -> StepEvent:
        """Commit a decoder's decision: the only way tokens change.

        Brings one report (B, 3 + 3M) from the device: first end token, open slots left, whether a
        confidence is not a number; then position, token and confidence of each slot. float32 holds
        every id and position exactly, as both are below 2^24.
        """
        positions = delta.positions.masked_fill(~delta.commit, self.width)
        self._tokens.scatter_(1, positions, delta.tokens)
        broken = delta.confidence.isnan().any(1, keepdim=True)
        report = torch.cat([self._survey(), broken, positions, delta.tokens, delta.confidence], dim=1).float().cpu()
        if bool(report[:, 2].any()):
            raise NumericalError(
                f"the model's logits for prompt {int(self.index[report[:, 2] > 0][0])} are not numbers."
            )
        return self._advance(report, rows_computed, step)

    def _survey(self) -> Tensor:
        """Slot of the first end token in each answer (T if none) and open slots of its block left of that; (B, 2)."""
        slots = torch.arange(self.width, device=self.device)
        bounds = torch.stack([self.prompt, self.length, self._block_start(), self._block_end()])
        start, stop, block, end = to_device(bounds[..., None], self.device)
        ends = (slots >= start) & (slots < stop) & torch.isin(self.tokens, self._eos_ids)
        first = torch.where(ends, slots, self.width).amin(1, keepdim=True)
        bound = torch.minimum(end, first) if self.stop_at_eos else end
        left = (slots >= block) & (slots < bound) & (self.tokens == self.mask_id)
        return torch.cat([first, left.sum(1, keepdim=True)], dim=1)

    def _advance(self, report: Tensor, rows_computed: Tensor, step: int) -> StepEvent:
        """Move every row on from the report of a pass."""
        first_end, left = report[:, 0].long(), report[:, 1].long()
        committed, block = report[:, 3:].unflatten(1, (3, -1)), self.block
        ended = (first_end < self._block_end()) & (left == 0)
        if self.stop_at_eos:
            self.limit = first_end
        self.nfe = self.nfe + 1
        self.block = self.block + (left == 0)
        self.step = torch.where(left == 0, 0, self.step + 1)
        self.masked = torch.where(left == 0, self._block_end() - self._block_start(), left)
        self._finished = self._block_start() >= self.length
        if self.stop_at_eos:
            self._finished |= ended
        why: dict[bool, FinishReason] = {True: "stop", False: "length"}
        ends, dones = ended.tolist(), self._finished.tolist()
        reasons = [why[end] if done else None for end, done in zip(ends, dones, strict=True)]
        return StepEvent(
            step=step,
            rows=tuple(
                self._row_event(b, committed[b], int(block[b]), int(rows_computed[b]), reason)
                for b, reason in enumerate(reasons)
            ),
        )

    def _row_event(self, b: int, committed: Tensor, block: int, rows: int, reason: FinishReason | None) -> RowEvent:
        positions, tokens, confidence = committed[:, committed[0] < self.width]
        return RowEvent(
            index=int(self.index[b]),
            nfe=int(self.nfe[b]),
            block=block,
            rows_computed=rows,
            positions=tuple((positions.long() - self.prompt[b]).tolist()),
            tokens=tuple(tokens.long().tolist()),
            confidences=tuple(confidence.tolist()),
            finish_reason=reason,
        )

    def unfinished(self) -> list[int]:
        """Batch rows that still have work to do."""
        return [b for b, done in enumerate(self._finished.tolist()) if not done]

    def keep(self, batch: Sequence[int]) -> None:
        """Drop every batch row that is not in ``batch``."""
        index = torch.tensor(batch, dtype=torch.long)
        for name in ("prompt", "length", "index", "limit", "block", "step", "nfe", "masked", "_finished"):
            setattr(self, name, getattr(self, name)[index])
        self._tokens = self._tokens[to_device(index, self.device)]
