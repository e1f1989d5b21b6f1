"""A pass through the network: the rows that several runs planned, computed together where they can be.

Shapes: B rows of a run's batch, N rows of one group of it, R rows (positions) of a pass, M slots to predict,
T canvas length, E model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdllm.caches import CachePolicy, Plan
from fastdllm.canvas import Canvas, to_device
from fastdllm.kv import BoundStore, Store, common_slice
from fastdllm.models.transformer import LayerHook, Transformer
from fastdllm.state import RowState

Predicted = tuple[Tensor, Tensor, Tensor]
"""Logits (B, K, V), their slots (B, K) and which of these are known (B, K)."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What one run wants of a pass: the rows of ``plan`` computed, and the ``slots`` (B, M) predicted."""

    canvas: Canvas
    plan: Plan
    slots: Tensor
    cache: CachePolicy
    state: RowState
    store: Store | None


@dataclass(frozen=True, kw_only=True)
class Portion:
    """Batch rows of one run that go through the network in one pass."""

    ask: Ask
    group: Tensor
    """The batch rows (N,), on the host."""
    rows: Tensor
    """Canvas positions (N, R), padded with T."""
    tokens: Tensor
    limits: Tensor
    """First slot that each batch row does not see, (N,), on the host."""
    view: BoundStore | None
    hook: LayerHook | None

    @property
    def width(self) -> int:
        return self.rows.shape[1]


def predict(model: Transformer, asks: Sequence[Ask]) -> list[Predicted]:
    """Compute what every run asks for.

    Batch rows that compute many positions and those that compute few go through the network apart, so that
    neither pads the other; rows of different runs that compute about as many go together. The head sees the rows
    that predict a slot and no others, but for padding.

    Returns:
        For each ask: K is M, or the most rows that a batch row computes where these are fewer.
    """
    portions = [[*split(ask)] for ask in asks]
    hidden: dict[int, Tensor] = {}
    for together in shared([portion for of_one in portions for portion in of_one]):
        for portion, out in zip(together, forward(model, together), strict=True):
            hidden[id(portion)] = out
    shift = model.config.shift
    found = [
        gather(ask, [(portion, hidden.pop(id(portion))) for portion in of_one], shift)
        for ask, of_one in zip(asks, portions, strict=True)
    ]
    logits = heads(model, [states for states, _, _ in found])
    return [(scores, slots, known) for scores, (_, slots, known) in zip(logits, found, strict=True)]


def split(ask: Ask) -> Iterator[Portion]:
    """The groups of an ask's batch rows."""
    canvas, plan = ask.canvas, ask.plan
    for group in plan.groups():
        width = int(plan.counts[group].max())
        rows = to_device(plan.rows[to_device(group, plan.rows.device), :width], canvas.device)
        limits, view, hook = plan.reach[group], None, None
        if ask.store is not None:
            span = common_slice(plan.rows[group, :width]) if plan.unbroken else None
            view = ask.store.bind(group, rows, int(limits.max()), span)
            hook = ask.cache.layers(plan, group, view, ask.state)
        tokens = canvas.at(to_device(group, canvas.device), rows)
        yield Portion(ask=ask, group=group, rows=rows, tokens=tokens, limits=limits, view=view, hook=hook)


def shared(portions: Sequence[Portion]) -> list[list[Portion]]:
    """Portions by the pass that computes them, the widest first."""
    passes: list[list[Portion]] = []
    for portion in sorted(portions, key=lambda p: -p.width):
        fitting = (together for together in passes if _mix(together[0], portion))
        together = next(fitting, None)
        if together is None:
            passes.append([portion])
        else:
            together.append(portion)
    return passes


def _mix(widest: Portion, other: Portion) -> bool:
    """Whether two portions may share a pass: one pool, about as many rows, no hook that runs the layers for one."""
    if widest.view is None or other.view is None or other.width * 2 <= widest.width:
        return False
    return widest.hook is None and other.hook is None and widest.view.store.pool is other.view.store.pool


def forward(model: Transformer, portions: Sequence[Portion]) -> list[Tensor]:
    """Hidden states (N, R, E) of each portion. Rows without a store are whole canvases, and attend to one another."""
    first, width = portions[0], max(portion.width for portion in portions)
    limits = torch.cat([portion.limits for portion in portions])
    reach, rows, tokens, view = int(limits.max()), first.rows, first.tokens, first.view
    if len(portions) > 1:
        assert view is not None
        rows = torch.cat([F.pad(p.rows, (0, width - p.width), value=view.store.length) for p in portions])
        tokens = torch.cat([F.pad(p.tokens, (0, width - p.width)) for p in portions])
    if view is not None and first.hook is None and (len(portions) > 1 or view.store is not view.store.pool):
        places = torch.cat([p.view.places for p in portions if p.view is not None])
        view = view.store.pool.bind(places, rows, reach, view.span if len(portions) == 1 else None)
    visible = None
    if bool((limits < reach).any()):
        visible = to_device(torch.arange(reach) < limits[:, None], rows.device)
    hidden: Tensor = model(tokens, rows, visible, view, first.hook)
    parts = hidden.split([len(portion.group) for portion in portions])
    return [part[:, : portion.width] for part, portion in zip(parts, portions, strict=True)]


def gather(ask: Ask, computed: Sequence[tuple[Portion, Tensor]], shift: int) -> Predicted:
    """States (B, K, E) of the rows that predict a run's slots, those slots, and which of them were computed."""
    slots, plan, canvas = ask.slots, ask.plan, ask.canvas
    sources = (slots - shift).clamp(min=0)
    hidden, known = torch.empty(0), torch.empty(0)
    for portion, out in computed:
        batch = to_device(portion.group, slots.device)
        wanted = sources[batch]
        found = torch.searchsorted(portion.rows, wanted).clamp(max=portion.width - 1)
        present = (portion.rows.gather(1, found) == wanted) & (slots[batch] < canvas.width)
        states = out.gather(1, found[..., None].expand(*found.shape, out.shape[-1]))
        if len(portion.group) == len(slots):
            hidden, known = states, present
        else:
            if not len(hidden):
                hidden = states.new_zeros(*slots.shape, out.shape[-1])
                known = torch.zeros_like(slots, dtype=torch.bool)
            hidden[batch], known[batch] = states, present
    most = int(plan.counts.max())
    if most < slots.shape[1]:  # more slots are wanted than rows were computed: leave out what cannot be known
        slots, order = slots.masked_fill(~known, canvas.width).sort(dim=1)
        slots, order = slots[:, :most], order[:, :most]
        known = known.gather(1, order)
        hidden = hidden.gather(1, order[..., None].expand(*order.shape, hidden.shape[-1]))
    return hidden, slots, known


def heads(model: Transformer, hidden: Sequence[Tensor]) -> list[Tensor]:
    """Logits (B, K, V) of each run's states (B, K, E), through one product."""
    if len(hidden) == 1:
        return [model.logits(hidden[0])]
    logits = model.logits(torch.cat([states.flatten(0, 1) for states in hidden]))
    parts = logits.split([states.shape[0] * states.shape[1] for states in hidden])
    return [part.unflatten(0, states.shape[:2]) for part, states in zip(parts, hidden, strict=True)]
