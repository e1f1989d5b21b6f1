"""Whoever looks into a generation does not change it."""

from __future__ import annotations

import pytest
import torch

from fastdllm.caches import CACHES, Pass, Watched
from fastdllm.config import parse_cache
from states import plain
from toys import FAMILIES, prompts_of, toy_engine

SHAPE = {"gen_length": 12, "block_length": 5, "decoder": "threshold:threshold=0.4"}


@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", CACHES)
def test_the_answers_stay_the_same(cache, family, store):
    engine, prompts, seen = toy_engine(family), prompts_of([3, 11, 7]), list[int]()

    def see(one: Pass) -> None:
        seen.append(len(one.canvas))
        assert (one.store is None) == (cache == "none" and not store)
        assert len(one.computed) == len(one.canvas) == len(one.prediction.positions)

    watched = Watched(parse_cache(cache), see, store=store)
    plain = list(engine.stream(prompts, **SHAPE, cache=cache))
    assert list(engine.stream(prompts, **SHAPE, cache=watched)) == plain
    assert seen == [len(event.rows) for event in plain]
    assert len(set(seen)) > 1, "all rows end together: leaving the batch is not tested"


def test_a_pass_is_seen_before_it_is_committed():
    engine, (prompt,) = toy_engine(), prompts_of([4])
    tokens = list[list[int]]()
    watched = Watched(parse_cache("dual"), lambda one: tokens.append(one.canvas.tokens[0].tolist()))
    canvas = prompt + [engine.config.mask_id] * 12
    for event in engine.stream([prompt], **SHAPE, cache=watched):
        assert tokens[-1] == canvas
        for at, token in zip(event.rows[0].positions, event.rows[0].tokens, strict=True):
            canvas[4 + at] = token


def test_the_store_holds_what_attention_read():
    """With nothing cached, that is what a pass over the whole canvas computes."""
    engine, (prompt,) = toy_engine(), prompts_of([4])

    def see(one: Pass) -> None:
        assert one.store is not None
        fresh, _ = plain(engine, one.canvas.tokens[0].tolist())
        held = [torch.stack(one.store.read(layer, torch.zeros(1, dtype=torch.long), 16)) for layer in range(3)]
        states = torch.stack(held)[:, :, 0].transpose(2, 3).flatten(3)  # (L, 2, T, K D)
        assert torch.allclose(states.double(), fresh, atol=1e-5)

    assert len(list(engine.stream([prompt], **SHAPE, cache=Watched(parse_cache("none"), see, store=True)))) == 3
