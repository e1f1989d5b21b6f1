"""The sampler: the only place where a canvas is filled.

Shapes: B rows of a run's batch, M slots to predict, W block length, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from fastdllm.caches import CachePolicy
from fastdllm.canvas import Canvas, Delta, Region, to_device
from fastdllm.decoders import Decoder, Turn
from fastdllm.errors import BrokenOff
from fastdllm.events import StepEvent
from fastdllm.kv import KVStore, Lease, ShadowStore, Store
from fastdllm.models.transformer import Transformer
from fastdllm.passes import Ask, Predicted, predict
from fastdllm.sampling import Sampling, propose
from fastdllm.state import RowState


def decode(
    model: Transformer,
    canvas: Canvas,
    cache: CachePolicy,
    decoder: Decoder,
    sampling: Sampling,
    cfg_scale: float = 0.0,
) -> Iterator[StepEvent]:
    """Fill ``canvas`` pass by pass; an event for each pass."""
    store = model.allocate(len(canvas), canvas.width) if cache.stores or decoder.verifies else None
    run = Run(canvas, cache, decoder, sampling, store=store, cfg_scale=cfg_scale)
    while len(run):
        event = advance(model, [run])[0]
        if isinstance(event, Exception):
            raise event
        yield event


@torch.inference_mode()
def advance(model: Transformer, runs: Sequence[Run]) -> list[StepEvent | Exception]:
    """One pass of every run; finished rows leave their run.

    Runs that share a pool of keys and values share passes through the network.

    Returns:
        An event for each run, or what its cache or decoder raised of the logits: it has then not moved.

    Raises:
        BrokenOff: canvases have changed already. Whatever else is raised, by the network say, no run has moved.
    """
    regions = [run.canvas.region(model.config.shift) for run in runs]
    memories = [run.memory() for run in runs]
    try:
        asks = [run.ask(region) for run, region in zip(runs, regions, strict=True)]
        predicted = predict(model, asks)
    except BaseException:
        for run, memory in zip(runs, memories, strict=True):
            run.recall(memory)
        raise
    decisions = list[Delta | Exception]()
    for run, memory, region, ask, found in zip(runs, memories, regions, asks, predicted, strict=True):
        try:
            decisions.append(run.decide(model, region, ask, found))
        except Exception as error:
            run.recall(memory)
            decisions.append(error)
    try:
        return carry_out(runs, asks, decisions)
    except BaseException as error:
        raise BrokenOff("a pass was broken off after canvases had changed.") from error


def carry_out(
    runs: Sequence[Run], asks: Sequence[Ask], decisions: Sequence[Delta | Exception]
) -> list[StepEvent | Exception]:
    """Change the canvases of the runs that decided, and report on each; what was raised instead stays as it is."""
    decided = [
        (run, ask, delta) for run, ask, delta in zip(runs, asks, decisions, strict=True) if isinstance(delta, Delta)
    ]
    reports = fetch([run.canvas.write(delta) for run, _, delta in decided])
    events = iter(
        [run.conclude(ask, delta, report) for (run, ask, delta), report in zip(decided, reports, strict=True)]
    )
    return [next(events) if isinstance(decision, Delta) else decision for decision in decisions]


class Run:
    """Batch rows that share a cache policy, a decoder and the lengths of their canvas, stopped between two passes.

    Args:
        store: keys and values of its rows; None where none outlive a pass.
        slots: the batch rows of ``store``, a pool shared with other runs, that are this run's; None: all are.
    """

    def __init__(
        self, canvas: Canvas, cache: CachePolicy, decoder: Decoder, sampling: Sampling, *,
        store: KVStore | None, slots: Sequence[int] | None = None, cfg_scale: float = 0.0,
    ) -> None:  # fmt: skip
        self.canvas, self.cache, self.decoder, self.sampling, self.cfg_scale = (
            canvas, cache, decoder, sampling, cfg_scale,
        )  # fmt: skip
        self.store: Store | None = store if store is None or slots is None else store.lease(slots)
        self.state, self.notes, self.passes = RowState(), RowState(), 0

    def __len__(self) -> int:
        return len(self.canvas)

    @property
    def slots(self) -> list[int]:
        """Batch rows of the pool that the rows at work hold."""
        return self.store.rows if isinstance(self.store, Lease) else []

    def ask(self, region: Region) -> Ask:
        """The rows that the policy wants computed and the slots to predict from them."""
        cache, decoder = self.cache, self.decoder
        plan = cache.plan(self.canvas, region, self.state)
        beyond = cache.looks_beyond or decoder.looks_beyond
        slots = self.canvas.slots(region, committed=decoder.revises, beyond=beyond)
        return Ask(canvas=self.canvas, plan=plan, slots=slots, cache=cache, state=self.state, store=self.store)

    def decide(self, model: Transformer, region: Region, ask: Ask, predicted: Predicted) -> Delta:
        """What the decoder makes of the logits."""
        canvas, cache, (logits, slots, known) = self.canvas, self.cache, predicted
        if self.cfg_scale:
            logits = guide(logits, unconditional(model, ask), self.cfg_scale)
        fresh = cache.fresh((slots - region.shift).clamp(min=0), self.state)
        view = canvas.view(slots, known, known if fresh is None else known & fresh, region)
        prediction = propose(logits, view, self.sampling, to_device(region.nfe, canvas.device), canvas.mask_id)
        cache.observe(prediction, self.state)
        check = partial(leave_one_out, model, self, region, ask)
        return self.decoder.step(Turn(canvas, region, prediction, self.notes, check))

    def conclude(self, ask: Ask, delta: Delta, report: Tensor) -> StepEvent:
        """Move on from the report of a pass, and let finished rows go."""
        rows = ask.plan.computed * (2 if self.cfg_scale else 1)
        event = self.canvas.advance(report, rows if delta.rows is None else rows + delta.rows, self.passes)
        self.passes += 1
        failed = [b for b, row in enumerate(event.rows) if row.failed]
        if failed and self.store is not None:
            self.store.clear(failed)
        alive = self.canvas.unfinished()
        if len(alive) < len(self):
            self.keep(alive)
        return event

    def memory(self) -> tuple[RowState, RowState]:
        """What the strategies remember now, for :meth:`recall`. What they change in place is not undone by it."""
        return RowState(self.state), RowState(self.notes)

    def recall(self, memory: tuple[RowState, RowState]) -> None:
        """Go back to what the strategies remembered before a pass that came to nothing."""
        self.state, self.notes = memory

    def keep(self, alive: Sequence[int]) -> None:
        """Drop every batch row that is not in ``alive`` (ascending)."""
        index = torch.tensor(alive, dtype=torch.long)
        self.canvas.keep(alive)
        self.sampling = self.sampling.keep(alive)
        for state in (self.state, self.notes):
            state.keep(index)
        if self.store is not None:
            self.store.keep(alive)

    def join(self, other: Run) -> bool:
        """Take over the rows of another run with a lease of the same pool.

        Returns:
            False, and nothing has changed, where the two do not go together: other strategies or lengths, or
            strategies that remember something of the passes of one that they do not of the other.
        """
        mine, others = self.store, other.store
        if not (isinstance(mine, Lease) and isinstance(others, Lease) and mine.pool is others.pool):
            return False
        same = (self.cache, self.decoder, self.cfg_scale) == (other.cache, other.decoder, other.cfg_scale)
        states = self.state.alike(other.state) and self.notes.alike(other.notes)
        if not (same and states and self.canvas.alike(other.canvas)):
            return False
        self.canvas.join(other.canvas)
        self.sampling = self.sampling.join(other.sampling)
        self.state.join(other.state)
        self.notes.join(other.notes)
        mine.join(others)
        return True

    def split(self, rows: Sequence[int]) -> Run:
        """Take the batch rows ``rows`` (ascending) out, into a run of their own. Its rows must be those of a pool."""
        assert isinstance(self.store, Lease)
        other = copy.copy(self)
        other.canvas, other.store = copy.copy(self.canvas), self.store.pool.lease(self.store.rows)
        other.recall(self.memory())
        other.keep(rows)
        self.keep([b for b in range(len(self)) if b not in rows])
        return other


def fetch(reports: Sequence[Tensor]) -> list[Tensor]:
    """Bring tensors to the host at one go: the only time in a pass that the host waits for the device."""
    if len(reports) < 2:
        return [report.cpu() for report in reports]
    flat = torch.cat([report.flatten() for report in reports]).cpu().split([report.numel() for report in reports])
    return [part.view(report.shape) for part, report in zip(flat, reports, strict=True)]


def leave_one_out(model: Transformer, run: Run, region: Region, ask: Ask) -> Tensor:
    """Logits (B, W, V) of every slot of the block as if it were masked and all others stood.

    W mask tokens that are in no canvas look at what the last pass saw and at one another, each but at
    the slot it predicts (WINO, arXiv 2507.18578, section 3.2). Nothing sees them, and nothing of them is kept.
    """
    assert run.store is not None
    device, width, plan = run.canvas.device, run.canvas.block_length, ask.plan
    slots = region.start[:, None] + torch.arange(width)
    reach = int(plan.reach.max())
    places = torch.arange(reach)
    canvas = (places < plan.reach[:, None, None]) & (places != slots[..., None])
    shadows = (slots < region.end[:, None])[:, None].expand(-1, width, -1)
    visible = to_device(torch.cat((canvas, shadows), dim=-1), device)
    rows = to_device((slots - model.config.shift).clamp(min=0), device)
    batch = torch.arange(len(slots), device=device)
    masks = torch.full_like(rows, run.canvas.mask_id)
    return model.logits(model(masks, rows, visible, ShadowStore(run.store, batch, reach)))


def unconditional(model: Transformer, ask: Ask) -> Tensor:
    """Logits of the same slots on the canvas without its prompts."""
    return predict(model, [replace(ask, canvas=ask.canvas.without_prompt(), store=None)])[0][0]


def guide(conditional: Tensor, unconditional: Tensor, cfg_scale: float) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598, as LLaDA applies it): past the conditional, away from the other."""
    return unconditional + (cfg_scale + 1) * (conditional - unconditional)
