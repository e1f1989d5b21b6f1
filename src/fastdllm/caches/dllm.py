"""dLLM-Cache: what a layer adds to the states is reused, too, and rows are chosen layer by layer (arXiv 2506.06295).

Shapes: N rows of one group of the batch, R rows of the canvas, S rows chosen in a layer, G answer slots,
I rows chosen by similarity, T canvas length, E model width, K key/value heads, D head width, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastdllm.caches.plan import Plan, Policy
from fastdllm.canvas import Canvas, Region, to_device
from fastdllm.checks import check_least
from fastdllm.errors import OptionError
from fastdllm.kv import BoundStore
from fastdllm.models.transformer import Angles, Attention, Block
from fastdllm.state import RowState, Size

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
        check_least("kp", self.kp, 1)
        check_least("kr", self.kr, 1)
        if not 0 <= self.rou <= 1:
            raise OptionError(f"rou={self.rou} must be from 0 to 1.")

    def plan(self, canvas: Canvas, region: Region, state: RowState) -> Plan:
        places = torch.arange(canvas.width).expand(len(canvas), -1)
        if not state:
            prompts = places[:, : int(region.prompt.max())]
            prompts = prompts.masked_fill(prompts >= region.prompt[:, None], canvas.width)
            state["prompts"] = to_device(prompts, canvas.device)
            state["answers"] = canvas.answer
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

    def extra_bytes(self, size: Size) -> int:
        """What attention and feed-forward added to the states of every layer and slot."""
        return 2 * size.batch * size.layers * (size.length + 1) * size.width * size.itemsize


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
        store, batch, attention = self.view.store, self.view.batch, block.attention
        normed = block.attention_norm(x)
        rows = self._refresh(attention, layer, normed, angles)
        self._note(rows)
        attended = fed = None
        if rows.shape[1]:
            queries = attention.queries(_take(normed, rows), _turn(angles, rows))
            attended = attention.attend(queries, *store.read(layer, batch, self.view.reach), visible)
        x = self._add("attention", layer, x, rows, attended)
        if rows.shape[1]:
            fed = block.feed_forward(block.feed_forward_norm(_take(x, rows)))
        return self._add("feed_forward", layer, x, rows, fed)

    def _add(self, name: str, layer: int, x: Tensor, rows: Tensor, new: Tensor | None) -> Tensor:
        """``x`` with what this part of the layer adds to it: ``new`` at ``rows``, elsewhere what it last was."""
        store, batch = self.view.store, self.view.batch
        if name not in self.state:
            self.state[name] = x.new_zeros(store.batch, store.layers, store.length + 1, x.shape[-1])
        if new is not None:
            self.state[name][batch[:, None], layer, rows] = new
        return x + self.state[name][batch, layer, : x.shape[1]]

    def _note(self, rows: Tensor) -> None:
        """Keep in the state which rows every layer so far has computed: ``fresh`` (B, T + 1)."""
        store, batch = self.view.store, self.view.batch
        here = torch.zeros(len(rows), store.length + 1, dtype=torch.bool, device=rows.device).scatter_(1, rows, True)
        self.state["fresh"][batch] = self.state["fresh"][batch] & here

    def _refresh(self, attention: Attention, layer: int, normed: Tensor, angles: Angles) -> Tensor:
        """Bring keys and values up to date; the rows (N, S) whose outputs are to be, too."""
        answer = self.answer or layer == 0
        if answer:
            rows = self.view.rows if self.prompt or layer == 0 else self.answers
        else:
            rows = self.prompts if self.prompt else self.prompts[:, :0]
        if rows.shape[1]:
            self._write_keys(attention, layer, normed, angles, rows)
            self.view.store.write_values(layer, self.view.batch, rows, attention.values(_take(normed, rows)))
        if answer or not self.few:
            return rows
        turned = self._turned(attention, layer, normed)
        self._write_keys(attention, layer, normed, angles, turned)
        return torch.cat((rows, turned), dim=1)

    def _turned(self, attention: Attention, layer: int, normed: Tensor) -> Tensor:
        """Answer rows (N, I) whose values differ most in direction from the stored ones, which the new replace."""
        store, batch, rows = self.view.store, self.view.batch, self.answers
        values = attention.values(_take(normed, rows))
        held = store.read(layer, batch, self.view.reach)[1].transpose(1, 2).flatten(2)
        alike = cosine(attention, values.transpose(1, 2).flatten(2), _take(held, rows))
        alike = alike.masked_fill(alike > 1 - UNTURNED, 1.0)
        store.write_values(layer, batch, rows, values)
        return rows.gather(1, alike.argsort(dim=1, stable=True)[:, : self.few])

    def _write_keys(self, attention: Attention, layer: int, normed: Tensor, angles: Angles, rows: Tensor) -> None:
        keys = attention.keys(_take(normed, rows), _turn(angles, rows))
        self.view.store.write_keys(layer, self.view.batch, rows, keys)


def cosine(attention: Attention, values: Tensor, others: Tensor) -> Tensor:
    """Cosine (N, S) between two states of the values (N, S, K * D) of each row, over all heads."""
    kind = torch.promote_types(values.dtype, torch.float32)
    values, others = values.to(kind), others.to(kind)
    products = torch.stack([(a * b).sum(-1) for a, b in ((values, others), (values, values), (others, others))])
    dot, one, other = attention.over_heads(products)
    alike: Tensor = dot / (one * other).sqrt().clamp(min=torch.finfo(kind).tiny)
    return alike


def _take(x: Tensor, rows: Tensor) -> Tensor:
    """Rows (N, S, E) of ``x`` (N, R, E); padding takes the last."""
    index = rows.clamp(max=x.shape[1] - 1)[..., None]
    return x.gather(1, index.expand(-1, -1, x.shape[-1]))


def _turn(angles: Angles, rows: Tensor) -> Angles:
    """The angles (N, S, 1, D) of those rows."""
    cos, sin = (_take(angle[:, :, 0], rows)[:, :, None] for angle in angles)
    return cos, sin
