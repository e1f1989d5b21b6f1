"""A look at every pass from inside: which rows it computed, what its attention read, what it predicted.

A cache policy is asked before a pass and told after it, so one that wraps another sees all there is to see, and
whoever looks into a generation needs no loop of their own.

Shapes: B rows of the batch, R rows of a pass, T canvas length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fastdllm.caches.plan import CachePolicy, Plan
from fastdllm.canvas import Canvas, Region
from fastdllm.kv import BoundStore, Store
from fastdllm.models.transformer import LayerHook
from fastdllm.sampling import Prediction
from fastdllm.state import RowState, Size


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One pass after the network has run and before anything is committed."""

    canvas: Canvas
    """As the network saw it."""
    region: Region
    plan: Plan
    prediction: Prediction
    store: Store | None
    """What attention read in each layer; None where no keys and values are kept."""
    computed: Tensor
    """Canvas positions (B, R) of the rows that were computed in every layer, padded with T; on the model's device."""


class Watched:
    """Does what ``policy`` does and calls ``see`` with every pass. One object serves one generation at a time.

    Args:
        store: keep the keys and values of a policy that does not (``none``), for ``see`` to read.
    """

    source: ClassVar[str] = ""

    def __init__(self, policy: CachePolicy, see: Callable[[Pass], None], *, store: bool = False) -> None:
        self.policy, self.see = policy, see
        self.stores, self.looks_beyond = store or policy.stores, policy.looks_beyond
        self._now: tuple[Canvas, Region, Plan] | None = None
        self._store: Store | None = None

    def plan(self, canvas: Canvas, region: Region, state: RowState) -> Plan:
        plan = self.policy.plan(canvas, region, state)
        self._now = canvas, region, plan
        return plan

    def layers(self, plan: Plan, group: Tensor, view: BoundStore, state: RowState) -> LayerHook | None:
        self._store = view.store
        return self.policy.layers(plan, group, view, state)

    def fresh(self, rows: Tensor, state: RowState) -> Tensor | None:
        return self.policy.fresh(rows, state)

    def extra_bytes(self, size: Size) -> int:
        return self.policy.extra_bytes(size)

    def observe(self, prediction: Prediction, state: RowState) -> None:
        self.policy.observe(prediction, state)
        assert self._now is not None
        canvas, region, plan = self._now
        rows = plan.rows.to(canvas.device)
        fresh = self.policy.fresh(rows, state)
        if fresh is not None:
            rows = rows.masked_fill(~fresh, canvas.width)
        store = self._store
        self.see(Pass(canvas=canvas, region=region, plan=plan, prediction=prediction, store=store, computed=rows))
