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

import torch
from torch import Tensor

from fastdllm.events import FinishReason, RowEvent, StepEvent


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """Copy a small host tensor without making the host wait: from pinned memory the copy only joins the queue."""
    if device.type == "cuda" and not host.is_cuda:
        return host.pin_memory().to(device, non_blocking=True)
    return host.to(device)


@dataclass(frozen=True, kw_only=True)
class Region:
    """What each row decodes in this pass: slots [start, end) of the canvas. Host tensors (B,)."""

    start: Tensor
    end: Tensor
    shift: int
    """Row ``p - shift`` predicts slot ``p``."""
    first_row: Tensor
    """First row whose hidden state predicts a slot of the block: ``start`` less the shift."""
    prompt: Tensor
    length: Tensor
    """Prompt and answer together."""
    block: Tensor
    """Number of the block in its answer, 0 the first."""
    step: Tensor
    """Passes this row has spent in its block; 0 is the pass that opens it."""
    limit: Tensor
    """First slot that will not be part of the answer: right of a committed end token nothing is decoded."""
    masked: Tensor
    """Open slots in the block left of the limit before this pass; the block's own size at step 0."""
    nfe: Tensor
    """Passes this row has spent in all."""


@dataclass(frozen=True, kw_only=True)
class Slots:
    """Slots that a pass predicts, all (B, M)."""

    positions: Tensor
    """Canvas positions; padding points one past the canvas."""
    current: Tensor
    """Ids that stand there."""
    known: Tensor
    """True where the pass computed the row that predicts the slot."""
    fresh: Tensor
    """True where it did so in every layer: the prediction could differ from that of the pass before."""
    candidate: Tensor
    """Known open slots of the block: what may be committed."""
    revisable: Tensor
    """Fresh committed slots of the block: what a revising decoder may write again or open."""


@dataclass(frozen=True, kw_only=True)
class Delta:
    """A decoder's decision over the slots of a pass, (B, M) unless said otherwise; padded slots are never written."""

    positions: Tensor
    tokens: Tensor
    confidence: Tensor
    commit: Tensor
    """Slots to write; those of a revising decoder may hold a token already."""
    remask: Tensor
    """Slots to open again."""
    hold: Tensor | None = None
    """Rows (B,) whose block stays open although it has no mask left; None for no row."""
    rows: Tensor | None = None
    """Rows (B,) computed for the decision itself, on the host; None for none."""


ROW_BOOKS = ("prompt", "length", "index", "limit", "block", "step", "nfe", "masked", "_finished")
SHARED = ("gen_length", "block_length", "mask_id", "stop_at_eos", "width")


class Canvas:
    """Tokens of a batch and the place of each row in its work.

    Args:
        prompts: token ids of each prompt.
        gen_length: answer slots, all masked at the start.
        block_length: slots of a block; the last block of an answer may be shorter.
        mask_id: the id that marks an open slot.
        eos_ids: ids that end an answer.
        stop_at_eos: finish a row once an end token has no open slot to its left.
        index: number of each prompt, for events; from 0 by default.
        width: slots of the canvas, for rows that share a K/V store with wider ones; the longest row's by default.
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
        index: Sequence[int] | None = None,
        width: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.gen_length, self.block_length = gen_length, block_length
        self.mask_id, self.stop_at_eos = mask_id, stop_at_eos
        self.prompt = torch.tensor([len(p) for p in prompts])
        self.length = self.prompt + gen_length
        self.index = torch.arange(len(prompts)) if index is None else torch.tensor(list(index))
        self.block, self.step, self.nfe = (torch.zeros_like(self.prompt) for _ in range(3))
        self.width = int(self.length.max()) if width is None else width
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
    def inside(self) -> Tensor:
        """True (B, T) at slots that belong to their row."""
        return to_device(torch.arange(self.width) < self.length[:, None], self.device)

    @property
    def answer(self) -> Tensor:
        """Positions (B, G) of the answer's slots."""
        return to_device(self.prompt[:, None] + torch.arange(self.gen_length), self.device)

    def _block_start(self) -> Tensor:
        return self.prompt + self.block * self.block_length

    def _block_end(self) -> Tensor:
        return torch.minimum(self._block_start() + self.block_length, self.length)

    def region(self, shift: int) -> Region:
        """Where each row decodes now, for a family of that ``shift``."""
        start = self._block_start()
        return Region(
            start=start,
            end=self._block_end(),
            shift=shift,
            first_row=(start - shift).clamp(min=0),
            prompt=self.prompt,
            length=self.length,
            block=self.block,
            step=self.step,
            limit=self.limit,
            masked=self.masked,
            nfe=self.nfe,
        )

    def slots(self, region: Region, *, committed: bool = False, beyond: bool = False) -> Tensor:
        """Positions (B, M) of the slots of each row's block to predict, ascending, padded with T.

        Those are the open ones up to the limit.

        Args:
            committed: the block's committed slots up to the limit, too.
            beyond: the open slots right of the block, too.
        """
        until = torch.minimum(region.length if beyond else region.end, region.limit + 1)
        width = int((region.length - region.start).max()) if beyond else self.block_length
        slots = region.start[:, None] + torch.arange(width)
        slots = to_device(slots.masked_fill(slots >= until[:, None], self.width), self.device)
        if committed and not beyond:
            return slots
        left_out = self._tokens.gather(1, slots) != self.mask_id
        if committed:
            left_out &= slots >= to_device(region.end[:, None], self.device)
        most = width if beyond else int(region.masked.max())
        return slots.masked_fill(left_out, self.width).sort(dim=1).values[:, :most]

    def view(self, positions: Tensor, known: Tensor, fresh: Tensor, region: Region) -> Slots:
        """What stands at ``positions`` (B, M), and what may be done there; the rest as in :class:`Slots`."""
        current = self._tokens.gather(1, positions)
        is_open = current == self.mask_id
        inside = known & (positions < to_device(region.end[:, None], self.device))
        return Slots(
            positions=positions,
            current=current,
            known=known,
            fresh=fresh,
            candidate=inside & is_open,
            revisable=inside & fresh & ~is_open,
        )

    def at(self, batch: Tensor, positions: Tensor) -> Tensor:
        """Ids (N, R) at ``positions`` (N, R) of the batch rows ``batch`` (N,)."""
        return self._tokens[batch].gather(1, positions)

    def without_prompt(self) -> Canvas:
        """A view of the same work whose prompts are masked: the unconditional side of guidance."""
        other = copy.copy(self)
        hidden = torch.arange(self.width + 1, device=self.device) < to_device(self.prompt[:, None], self.device)
        other._tokens = self._tokens.masked_fill(hidden, self.mask_id)
        return other

    def write(self, delta: Delta) -> Tensor:
        """Carry out a decoder's decision: the only way tokens change.

        Returns:
            The report (B, 4 + 3M) of it, float32 on the device, for :meth:`advance`: first end token, open slots
            left, whether a confidence is not a number, whether the block is held open; then position, token (the
            mask id where a slot opens again) and confidence of each slot written. float32 holds every id and
            position exactly, as both are below 2^24.
        """
        written = delta.positions.masked_fill(~(delta.commit | delta.remask), self.width)
        tokens = delta.tokens.masked_fill(delta.remask, self.mask_id)
        self._tokens.scatter_(1, written, tokens)
        broken = delta.confidence.isnan().any(1, keepdim=True)
        hold = torch.zeros_like(broken) if delta.hold is None else delta.hold[:, None]
        return torch.cat([self._survey(), broken, hold, written, tokens, delta.confidence], dim=1).float()

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

    def advance(self, report: Tensor, rows_computed: Tensor, step: int) -> StepEvent:
        """Move every row on from the report of a pass, brought to the host, that computed ``rows_computed`` (B,) rows.

        A row whose confidences are not numbers has failed: it is finished, and has committed nothing.
        """
        first_end, left = report[:, 0].long(), report[:, 1].long()
        failed = report[:, 2] > 0
        written, block = report[:, 4:].unflatten(1, (3, -1)), self.block
        written[:, 0].masked_fill_(failed[:, None], self.width)
        done = (left == 0) & (report[:, 3] == 0)
        ended = (first_end < self._block_end()) & done
        if self.stop_at_eos:
            self.limit = first_end
        self.nfe = self.nfe + 1
        self.block = self.block + done
        self.step = torch.where(done, 0, self.step + 1)
        self.masked = torch.where(done, self._block_end() - self._block_start(), left)
        self._finished = (self._block_start() >= self.length) | failed
        if self.stop_at_eos:
            self._finished |= ended
        why: dict[bool, FinishReason] = {True: "stop", False: "length"}
        ends, dones = ended.tolist(), (self._finished & ~failed).tolist()
        reasons = [why[end] if done else None for end, done in zip(ends, dones, strict=True)]
        return StepEvent(
            step=step,
            rows=tuple(
                self._row_event(b, written[b], int(block[b]), int(rows_computed[b]), reason, bool(failed[b]))
                for b, reason in enumerate(reasons)
            ),
        )

    def _row_event(
        self, b: int, written: Tensor, block: int, rows: int, reason: FinishReason | None, failed: bool
    ) -> RowEvent:
        slots, opened = written[:, written[0] < self.width], written[1] == self.mask_id
        positions, tokens, confidence = slots[:, slots[1] != self.mask_id]
        remasked = written[0, opened & (written[0] < self.width)]
        return RowEvent(
            index=int(self.index[b]),
            nfe=int(self.nfe[b]),
            block=block,
            rows_computed=rows,
            positions=self._slots_of(positions, b),
            tokens=tuple(tokens.long().tolist()),
            confidences=tuple(confidence.tolist()),
            remasked=self._slots_of(remasked, b),
            finish_reason=reason,
            failed=failed,
        )

    def _slots_of(self, positions: Tensor, b: int) -> tuple[int, ...]:
        """Positions counted from the first answer slot."""
        return tuple((positions.long() - self.prompt[b]).tolist())

    def unfinished(self) -> list[int]:
        """Batch rows that still have work to do."""
        return [b for b, done in enumerate(self._finished.tolist()) if not done]

    def keep(self, batch: Sequence[int]) -> None:
        """Drop every batch row that is not in ``batch``."""
        index = torch.tensor(batch, dtype=torch.long)
        for name in ROW_BOOKS:
            setattr(self, name, getattr(self, name)[index])
        self._tokens = self._tokens[to_device(index, self.device)]

    def alike(self, other: Canvas) -> bool:
        """Whether the rows of both could stand in one canvas."""
        return all(getattr(self, name) == getattr(other, name) for name in SHARED) and self.device == other.device

    def join(self, other: Canvas) -> None:
        """Take over the rows of a canvas that is :meth:`alike`."""
        for name in (*ROW_BOOKS, "_tokens"):
            setattr(self, name, torch.cat((getattr(self, name), getattr(other, name))))
