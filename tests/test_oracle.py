"""A slow oracle for every cache that stores: the whole canvas computed, stale keys and values put in its way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastdllm.loop as loop
from fastdllm.models.transformer import Transformer
from fastdllm.passes import Ask, Predicted
from toys import FAMILIES, prompts_of, toy_engine


class StaleStore:
    """Takes the keys and values of every slot; where a slot is not planned, gives back what it had before."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[Tensor, Tensor]] = {}
        self.planned = torch.empty(0)

    def exchange(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if layer in self.held:
            fresh = self.planned[:, None, :, None]
            keys, values = (
                torch.where(fresh, new, old) for new, old in zip((keys, values), self.held[layer], strict=True)
            )
        self.held[layer] = keys, values
        return keys, values


class Checked:
    """Stands in for ``predict`` in the loop; holds every row of a batch against an oracle of its own."""

    def __init__(self) -> None:
        self.partial_logits = loop.predict
        self.oracles: dict[int, StaleStore] = defaultdict(StaleStore)
        self.partial = 0

    def __call__(self, model: Transformer, asks: Sequence[Ask]) -> list[Predicted]:
        predicted = self.partial_logits(model, asks)
        for ask, answer in zip(asks, predicted, strict=True):
            self.check(model, ask, *answer)
        return predicted

    def check(self, model: Transformer, ask: Ask, logits: Tensor, slots: Tensor, known: Tensor) -> None:
        canvas, plan, wanted = ask.canvas, ask.plan, ask.slots
        for b, index in enumerate(canvas.index.tolist()):
            length, oracle = int(canvas.length[b]), self.oracles[index]
            positions = torch.arange(length)[None]
            oracle.planned = torch.isin(positions, plan.rows[b])
            visible = None if plan.reach[b] == length else positions < plan.reach[b]
            hidden = model(canvas.tokens[b : b + 1, :length], positions, visible, oracle)
            sources = (slots[b] - model.config.shift).clamp(min=0)
            computed = torch.isin(sources, plan.rows[b]) & (slots[b] < canvas.width)
            assert known[b].tolist() == computed.tolist()
            expected = model.logits(hidden[0, sources[computed]])
            torch.testing.assert_close(logits[b, computed], expected, atol=2e-4, rtol=1e-4)
            found = (wanted[b] - model.config.shift).clamp(min=0)
            predicted = wanted[b][torch.isin(found, plan.rows[b]) & (wanted[b] < canvas.width)]
            assert slots[b][computed].tolist() == predicted.tolist()
            self.partial += int(plan.counts[b]) < length


STORING = (
    "prefix", "dual", "prefix:prompt_every=2,suffix_window=3", "dual:prompt_every=3", "dual:suffix_window=0",
    "sliding:prompt_every=2,suffix_window=4", "sliding:recent_blocks=0,suffix_window=none",
    "dkv:refresh=5", "d2cache:current_k=3,rollout_p=0.1,inflate_w=2",
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(FAMILIES), st.lists(st.integers(0, 30), min_size=1, max_size=3), st.integers(2, 32),
    st.integers(2, 24), st.integers(0, 9), st.sampled_from(STORING),
    st.sampled_from(("topk:k=1", "threshold:threshold=0.4")), st.booleans(),
)  # fmt: skip
def test_partial_pass_is_full_pass_with_stale_keys(family, lengths, gen, block, seed, cache, decoder, stop):
    engine, checked = toy_engine(family, seed=seed), Checked()
    options = {"gen_length": gen, "block_length": block, "cache": cache, "decoder": decoder, "stop_at_eos": stop}
    loop.predict = checked
    try:
        done = engine.generate(prompts_of(lengths, seed), **options)
    finally:
        loop.predict = checked.partial_logits
    assert done


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", STORING)
def test_the_oracle_sees_partial_passes(family, cache):
    engine, checked = toy_engine(family, seed=1), Checked()
    options = {"gen_length": 16, "block_length": 8, "cache": cache, "decoder": "topk:k=1", "stop_at_eos": False}
    loop.predict = checked
    try:
        engine.generate(prompts_of([9, 4]), **options)
    finally:
        loop.predict = checked.partial_logits
    assert checked.partial >= 16


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_the_head_sees_open_slots_of_the_block_alone(family, cache):
    engine, sizes = toy_engine(family), []
    head = engine.model.logits
    engine.model.logits = lambda hidden: (sizes.append(tuple(hidden.shape[:2])), head(hidden))[1]  # type: ignore[method-assign]
    options = {"gen_length": 20, "block_length": 8, "decoder": "topk:k=1", "stop_at_eos": False}
    engine.generate(prompts_of([5, 9]), cache=cache, **options)
    assert sizes == [(2, m) for block in (8, 8, 4) for m in range(block, 0, -1)]


@pytest.mark.parametrize("family", FAMILIES)
def test_neighbours_of_very_unequal_work_do_not_pad_each_other(family):
    """A row that opens a block and one amid its block go through the network apart."""
    engine, shapes = toy_engine(family, seed=2), []
    forward = engine.model.forward
    engine.model.forward = lambda tokens, *rest: (shapes.append(tokens.numel()), forward(tokens, *rest))[1]  # type: ignore[method-assign]
    generation = engine.start(
        prompts_of([100, 100]), gen_length=24, block_length=8, decoder="threshold:threshold=0.5", cache="dual"
    )
    computed = sum(row.rows_computed for event in generation for row in event.rows)
    assert sum(shapes) <= 1.1 * computed
