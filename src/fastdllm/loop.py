"""The sampler: the only place where a canvas is filled.

Shapes: B rows of the batch, N rows of one group of it, R rows (positions) of a pass, M candidate
slots, T canvas length, E model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastdllm.caches import CachePolicy, Plan
from fastdllm.canvas import Canvas, StepEvent, to_device
from fastdllm.decoders import Decoder
from fastdllm.kv import KVStore
from fastdllm.models.transformer import Transformer
from fastdllm.sampling import Sampling, propose


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
    store = allocate(model, canvas) if cache.stores else None
    step = 0
    while len(canvas):
        region = canvas.region(model.config.shift)
        plan = cache.plan(canvas, region)
        slots = canvas.open_slots(region)
        logits = block_logits(model, canvas, plan, slots, store)
        if cfg_scale:
            logits = guide(logits, block_logits(model, canvas.without_prompt(), plan, slots, None), cfg_scale)
        nfe = to_device(region.nfe, canvas.device)
        prediction = propose(logits, slots, slots < canvas.width, sampling, nfe, canvas.mask_id)
        rows_computed = plan.counts * (2 if cfg_scale else 1)
        event = canvas.apply(decoder.step(region, prediction), rows_computed, step)
        alive = canvas.unfinished()
        if len(alive) < len(canvas):
            canvas.keep(alive)
            sampling = sampling.keep(alive)
            if store is not None:
                store.keep(alive)
        step += 1
        yield event


def allocate(model: Transformer, canvas: Canvas) -> KVStore:
    """An empty store for every layer and slot of the canvas, in the model's dtype."""
    config, weight = model.config, model.embed.weight
    return KVStore(
        config.num_layers, len(canvas), config.num_kv_heads, canvas.width, config.head_dim,
        dtype=weight.dtype, device=weight.device,
    )  # fmt: skip


def block_logits(model: Transformer, canvas: Canvas, plan: Plan, slots: Tensor, store: KVStore | None) -> Tensor:
    """Logits (B, M, V) that predict ``slots`` (B, M), from one pass over the planned rows.

    Batch rows that compute many positions and those that compute few go through the network apart,
    so that neither pads the other. The head sees the rows that predict an open slot and no others.
    """
    sources = (slots - model.config.shift).clamp(min=0)
    hidden = torch.empty(0)
    for group in plan.groups():
        width = int(plan.counts[group].max())
        rows, group = to_device(plan.rows[group, :width], slots.device), to_device(group, slots.device)
        out = run_rows(model, canvas, group, rows, store)
        found = torch.searchsorted(rows, sources[group]).clamp(max=width - 1)
        out = out.gather(1, found[..., None].expand(*found.shape, out.shape[-1]))
        if len(group) == len(canvas):
            hidden = out
        else:
            hidden = hidden if len(hidden) else out.new_zeros(*slots.shape, out.shape[-1])
            hidden[group] = out
    return model.logits(hidden)


def run_rows(model: Transformer, canvas: Canvas, group: Tensor, rows: Tensor, store: KVStore | None) -> Tensor:
    """Hidden states (N, R, E) of the canvas rows ``rows`` (N, R) of the batch rows ``group`` (N,).

    Without a store the rows are the whole of each canvas, and attend to one another.
    """
    visible = canvas.visible
    if visible is not None:
        visible = visible[group] if store is not None else rows < canvas.width
    view = None if store is None else store.bind(group, rows)
    hidden: Tensor = model(canvas.at(group, rows), rows, visible, view)
    return hidden


def guide(conditional: Tensor, unconditional: Tensor, cfg_scale: float) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598, as LLaDA applies it): past the conditional, away from the other."""
    return unconditional + (cfg_scale + 1) * (conditional - unconditional)
