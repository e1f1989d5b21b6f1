"""dLLM-Cache: what a layer adds to the states is reused, too, and rows are chosen layer by layer (arXiv 2506.06295).

Shapes: N rows of one group of the batch, R rows of the canvas, S rows chosen in a layer, G answer slots,
I rows chosen by similarity, T canvas length, E model width, K key/value heads, D head width, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdllm.caches.plan import Plan, Policy, check_interval
from fastdllm.canvas import Canvas, Region, to_device
from fastdllm.errors import OptionError
from fastdllm.kv import BoundStore
from fastdllm.models.transformer import Angles, Block
from fastdllm.state import RowState

UNTURNED = 2.5e-7
"""Values this close to the stored ones have not turned: what rounding leaves must not order them (first come first)."""


@dataclass(frozen=True, kw_only=True)
class DLLMCache(Policy):
    """Reuse keys, values, attention outputs and feed-forward outputs; the prompt's long, the answer's by similarity.

    The first layer is computed in full at every pass. In the others the prompt's rows are computed at every
    ``kp``-th pass and the answer's at every ``kr``-th; between these, those ``rou`` of the answer's rows whose
    values have turned furthest from the stored ones (section 3.2). Passes count over the whole answer. Rows
    charged to a pass are the mean over layers; the values of all answer rows, by which some are chosen, are not.
    """

    source: ClassVar[str] = "dLLM-Cache, arXiv 2506.06295"
    kp: int = 50
    kr: int = 7
    rou: float = 0.25

    def __post_init__(self) -> None:
        check_interval("kp", self.kp)
        check_interval("kr", self.kr)
        if not 0 <= self.rou <= 1:
            raise OptionError(f"rou={self.rou} must be from 0 to 1.")

    def plan(self, canvas: Canvas, region: Region, state: RowState) -> Plan:
        places = torch.arange(canvas.width).expand(len(canvas), -1)
        if not state:
            prompts = places[:, : int(region.prompt.max())]
            prompts = prompts.masked_fill(prompts >= region.prompt[:, None], canvas.width)
            state["prompts"] = to_device(prompts, canvas.device)
            state["answers"] = to_device(region.prompt[:, None] + torch.arange(canvas.gen_length), canvas.device)
        return Plan(
            rows=places.masked_fill(places >= region.length[:, None], canvas.width),
            counts=region.length,
            reach=region.length,
            computed=region.length.clone(),
            phase=2 * (region.nfe % self.kp == 0).long() + (region.nfe % self.kr == 0),
        )

    def layers(self, plan: Plan, group: Tensor, view: BoundStore, state: RowState) -> ReusedLayers:
        phase = int(plan.phase[group[0]])
        if "fresh" not in state:
            state["fresh"] = torch.ones(
                view.store.batch, view.store.length + 1, dtype=torch.bool, device=view.rows.device
            )
        state["fresh"][view.batch] = True
        hook = ReusedLayers(view, state, prompt=bool(phase & 2), answer=bool(phase & 1), rou=self.rou)
        plan.computed[group] = hook.rows_computed(plan.counts[group])
        return hook

    def fresh(self, rows: Tensor, state: RowState) -> Tensor | None:
        return state["fresh"].gather(1, rows)


class ReusedLayers:
    """One pass of a group whose batch rows refresh the same parts.

    The state holds ``attention`` and ``feed_forward`` (B, L, T + 1, E): what each added to the states of
    every slot when it was last computed; slot T is a spare, as in the store.

    Args:
        prompt, answer: which parts are computed in full.
        rou: share of the answer's rows that are computed when the answer is not.
    """

    def __init__(self, view: BoundStore, state: RowState, *, prompt: bool, answer: bool, rou: float) -> None:
        self.view, self.state, self.prompt, self.answer = view, state, prompt, answer
        self.prompts, self.answers = state["prompts"][view.batch], state["answers"][view.batch]
        self.few = int(rou * self.answers.shape[1])

    def rows_computed(self, counts: Tensor) -> Tensor:
        """Rows (N,) that go through a layer on average, rounded up, of canvases of ``counts`` (N,) rows."""
        size, layers = self.answers.shape[1], self.view.store.layers
        chosen = (counts - size if self.prompt else 0) + torch.full_like(counts, size if self.answer else self.few)
        return -((counts + (layers - 1) * chosen) // -layers)

    def run(self, block: Block, layer: int, x: Tensor, angles: Angles, visible: Tensor | None) -> Tensor:
        rows = self._refresh(block, layer, x, angles)
        batch, reach = self.view.batch, self.view.reach
        if layer:
            self._note(rows)
        for name in ("attention", "feed_forward"):
            if rows.shape[1]:
                chosen = _take(x, rows)
                if name == "attention":
                    queries = block.attention.queries(block.attention_norm(chosen), _turn(angles, rows))
                    added = block.attention.attend(queries, *self.view.store.read(layer, batch, reach), visible)
                else:
                    added = block.feed_forward(block.feed_forward_norm(chosen))
                self._held(name, x)[batch[:, None], layer, rows] = added
            x = x + self._held(name, x)[batch, layer, : x.shape[1]]
        return x

    def _note(self, rows: Tensor) -> None:
        """Keep in the state which rows every layer so far has computed: ``fresh`` (B, T + 1)."""
        store, batch = self.view.store, self.view.batch
        here = torch.zeros(len(rows), store.length + 1, dtype=torch.bool, device=rows.device).scatter_(1, rows, True)
        self.state["fresh"][batch] = self.state["fresh"][batch] & here

    def _refresh(self, block: Block, layer: int, x: Tensor, angles: Angles) -> Tensor:
        """Bring keys and values up to date; the rows (N, S) whose outputs are to be, too."""
        store, batch = self.view.store, self.view.batch
        if layer == 0 or (self.prompt and self.answer):
            fresh = self.view.rows
        elif self.answer:
            fresh = self.answers
        else:
            fresh = self.prompts if self.prompt else self.prompts[:, :0]
            turned = self._turned(block, layer, x) if self.few else self.answers[:, :0]
            if turned.shape[1]:
                store.write_keys(layer, batch, turned, self._keys(block, x, angles, turned))
            if fresh.shape[1]:
                store.write_values(layer, batch, fresh, self._values(block, x, fresh))
                store.write_keys(layer, batch, fresh, self._keys(block, x, angles, fresh))
            return torch.cat((fresh, turned), dim=1)
        store.write(layer, batch, fresh, self._keys(block, x, angles, fresh), self._values(block, x, fresh))
        return fresh

    def _turned(self, block: Block, layer: int, x: Tensor) -> Tensor:
        """Answer rows (N, I) whose values differ most in direction from the stored ones, which the new replace."""
        store, batch, rows = self.view.store, self.view.batch, self.answers
        new = self._values(block, x, rows).transpose(1, 2).flatten(2)
        held = store.read(layer, batch, self.view.reach)[1].transpose(1, 2).flatten(2)
        alike = F.cosine_similarity(new, _take(held, rows), dim=-1)
        alike = alike.masked_fill(alike > 1 - UNTURNED, 1.0)
        store.write_values(layer, batch, rows, block.attention.heads(new))
        return rows.gather(1, alike.argsort(dim=1, stable=True)[:, : self.few])

    def _keys(self, block: Block, x: Tensor, angles: Angles, rows: Tensor) -> Tensor:
        return block.attention.keys(block.attention_norm(_take(x, rows)), _turn(angles, rows))

    def _values(self, block: Block, x: Tensor, rows: Tensor) -> Tensor:
        return block.attention.values(block.attention_norm(_take(x, rows)))

    def _held(self, name: str, x: Tensor) -> Tensor:
        if name not in self.state:
            store = self.view.store
            shape = (store.batch, store.layers, store.length + 1, x.shape[-1])
            self.state[name] = x.new_zeros(shape)
        return self.state[name]


def _take(x: Tensor, rows: Tensor) -> Tensor:
    """Rows (N, S, E) of ``x`` (N, R, E); padding takes the last."""
    index = rows.clamp(max=x.shape[1] - 1)[..., None]
    return x.gather(1, index.expand(-1, -1, x.shape[-1]))


def _turn(angles: Angles, rows: Tensor) -> Angles:
    """The angles (N, 1, S, D) of those rows."""
    cos, sin = (_take(angle[:, 0], rows)[:, None] for angle in angles)
    return cos, sin
