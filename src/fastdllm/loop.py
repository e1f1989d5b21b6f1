"""The sampler: the only place where a canvas is filled.

Shapes: B rows of the batch, N rows of one group of it, R rows (positions) of a pass, M slots to
predict, T canvas length, E model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from fastdllm.caches import CachePolicy, Plan
from fastdllm.canvas import Canvas, Region, to_device
from fastdllm.decoders import Decoder, Turn
from fastdllm.events import StepEvent
from fastdllm.kv import KVStore, ShadowStore
from fastdllm.models.transformer import Transformer
from fastdllm.sampling import Sampling, propose
from fastdllm.state import RowState


@torch.inference_mode()
def decode(
    model: Transformer,
    canvas: Canvas,
    cache: CachePolicy,
    decoder: Decoder,
    sampling: Sampling,
    cfg_scale: float = 0.0,
) -> Iterator[StepEvent]:
    """Fill ``canvas`` pass by pass; an event for each pass."""
    run = Run(model, canvas, cache, allocate(model, canvas) if cache.stores or decoder.verifies else None)
    notes, step = RowState(), 0
    while len(canvas):
        region = canvas.region(model.config.shift)
        plan = cache.plan(canvas, region, run.state)
        beyond = cache.looks_beyond or decoder.looks_beyond
        wanted = canvas.slots(region, committed=decoder.revises, beyond=beyond)
        logits, slots, known = block_logits(run, plan, wanted)
        if cfg_scale:
            logits = guide(logits, unconditional(run, plan, wanted), cfg_scale)
        fresh = cache.fresh((slots - region.shift).clamp(min=0), run.state)
        view = canvas.view(slots, known, known if fresh is None else known & fresh, region)
        prediction = propose(logits, view, sampling, to_device(region.nfe, canvas.device), canvas.mask_id)
        cache.observe(prediction, run.state)
        check = partial(leave_one_out, run, region, plan)
        delta = decoder.step(Turn(canvas, region, prediction, notes, check))
        event = canvas.apply(delta, plan.computed * (2 if cfg_scale else 1), step)
        alive = canvas.unfinished()
        if len(alive) < len(canvas):
            sampling = sampling.keep(alive)
            run.keep(alive, notes)
        step += 1
        yield event


@dataclass
class Run:
    """What the passes of one canvas share."""

    model: Transformer
    canvas: Canvas
    cache: CachePolicy
    store: KVStore | None
    state: RowState = field(default_factory=RowState)

    def keep(self, alive: list[int], notes: RowState) -> None:
        """Drop every batch row that is not in ``alive``, from the decoder's ``notes`` too."""
        index = torch.tensor(alive, dtype=torch.long)
        self.canvas.keep(alive)
        for state in (self.state, notes):
            state.keep(index)
        if self.store is not None:
            self.store.keep(alive)


def allocate(model: Transformer, canvas: Canvas) -> KVStore:
    """An empty store for every layer and slot of the canvas, in the model's dtype."""
    config, weight = model.config, model.embed.weight
    return KVStore(
        config.num_layers, len(canvas), config.num_kv_heads, canvas.width, config.head_dim,
        dtype=weight.dtype, device=weight.device,
    )  # fmt: skip


def block_logits(run: Run, plan: Plan, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the ``slots`` (B, M) that one pass over the planned rows predicts.

    Batch rows that compute many positions and those that compute few go through the network apart,
    so that neither pads the other. The head sees the rows that predict a slot and no others, but for padding.

    Returns:
        Logits (B, K, V), their slots (B, K) and which of these are known (B, K); K is M, or the most rows
        that a batch row computes where these are fewer.
    """
    sources = (slots - run.model.config.shift).clamp(min=0)
    hidden, known = torch.empty(0), torch.empty(0)
    for group in plan.groups():
        width = int(plan.counts[group].max())
        rows = to_device(plan.rows[to_device(group, plan.rows.device), :width], slots.device)
        reach = int(plan.reach[group].max())
        on_device = to_device(group, slots.device)
        out = run_rows(run, plan, group, rows, reach)
        wanted = sources[on_device]
        found = torch.searchsorted(rows, wanted).clamp(max=width - 1)
        present = (rows.gather(1, found) == wanted) & (slots[on_device] < run.canvas.width)
        out = out.gather(1, found[..., None].expand(*found.shape, out.shape[-1]))
        if len(group) == len(slots):
            hidden, known = out, present
        else:
            if not len(hidden):
                hidden, known = out.new_zeros(*slots.shape, out.shape[-1]), torch.zeros_like(slots, dtype=torch.bool)
            hidden[on_device], known[on_device] = out, present
    most = int(plan.counts.max())
    if most < slots.shape[1]:  # more slots are wanted than rows were computed: leave out what cannot be known
        slots, order = slots.masked_fill(~known, run.canvas.width).sort(dim=1)
        slots, order = slots[:, :most], order[:, :most]
        known = known.gather(1, order)
        hidden = hidden.gather(1, order[..., None].expand(*order.shape, hidden.shape[-1]))
    return run.model.logits(hidden), slots, known


def run_rows(run: Run, plan: Plan, group: Tensor, rows: Tensor, reach: int) -> Tensor:
    """Hidden states (N, R, E) of the canvas rows ``rows`` (N, R) of the batch rows ``group`` (N,).

    Without a store the rows are the whole of each canvas, and attend to one another.
    """
    limits, batch = plan.reach[group], to_device(group, rows.device)
    visible = None
    if bool((limits < reach).any()):
        visible = to_device(torch.arange(reach) < limits[:, None], rows.device)
    view = None if run.store is None else run.store.bind(batch, rows, reach)
    layers = None if view is None else run.cache.layers(plan, group, view, run.state)
    hidden: Tensor = run.model(run.canvas.at(batch, rows), rows, visible, view, layers)
    return hidden


def leave_one_out(run: Run, region: Region, plan: Plan) -> Tensor:
    """Logits (B, W, V) of every slot of the block as if it were masked and all others stood.

    W mask tokens that are in no canvas look at what the last pass saw and at one another, each but at
    the slot it predicts (WINO, arXiv 2507.18578, section 3.2). Nothing sees them, and nothing of them is kept.
    """
    assert run.store is not None
    device, width = run.canvas.device, run.canvas.block_length
    slots = region.start[:, None] + torch.arange(width)
    reach = int(plan.reach.max())
    places = torch.arange(reach)
    canvas = (places < plan.reach[:, None, None]) & (places != slots[..., None])
    shadows = (slots < region.end[:, None])[:, None].expand(-1, width, -1)
    visible = to_device(torch.cat((canvas, shadows), dim=-1), device)
    rows = to_device((slots - run.model.config.shift).clamp(min=0), device)
    batch = torch.arange(len(slots), device=device)
    masks = torch.full_like(rows, run.canvas.mask_id)
    return run.model.logits(run.model(masks, rows, visible, ShadowStore(run.store, batch, reach)))


def unconditional(run: Run, plan: Plan, slots: Tensor) -> Tensor:
    """Logits of the same slots on the canvas without its prompts."""
    return block_logits(Run(run.model, run.canvas.without_prompt(), run.cache, None), plan, slots)[0]


def guide(conditional: Tensor, unconditional: Tensor, cfg_scale: float) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598, as LLaDA applies it): past the conditional, away from the other."""
    return unconditional + (cfg_scale + 1) * (conditional - unconditional)
