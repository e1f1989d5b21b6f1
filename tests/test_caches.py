"""What each cache says it does: which rows, which products, which importance."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastdllm.caches.d2cache import D2Cache, Rollout, filled, nucleus, roll
from fastdllm.kv import KVStore
from fastdllm.state import RowState
from toys import FAMILIES, prompts_of, toy_engine, toy_model


def test_rollout_by_vectors_is_rollout_by_matrices():
    """Column sums of the product of all (A + I) / 2, in float64, against a row of ones pushed through them."""
    generator = torch.Generator().manual_seed(0)
    T, layers = 23, 5
    rows = torch.tensor([[1, 4, 5, 9, 22, T, T], [0, 1, 2, 3, 11, 12, 20]])  # the first pads two
    means = [torch.rand(2, 7, T, generator=generator, dtype=torch.float64).softmax(-1) for _ in range(layers)]
    column = torch.ones(2, T + 1, dtype=torch.float64)
    for mean in reversed(means):
        column = roll(column, rows, mean)
    for b in range(2):
        product = torch.eye(T, dtype=torch.float64)
        for mean in means:
            attention = torch.eye(T, dtype=torch.float64)
            real = rows[b] < T
            attention[rows[b][real]] = mean[b][real]
            product = (attention + torch.eye(T)) / 2 @ product
        torch.testing.assert_close(column[b, :T], product.sum(0), atol=1e-13, rtol=0)
        assert column[b, :T].sum().item() == pytest.approx(T)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [list(range(17)), [0, 3, 4, 11, 16]])
def test_rollout_of_a_model_is_that_of_its_attention(family, rows):
    """Importance after a pass over all or some rows, against softmax and matrices worked out here, float64."""
    model = toy_model(family, seed=3, dtype=torch.float64)
    config, (tokens,) = model.config, torch.tensor([prompts_of([17], seed=1)])
    T, D, group = tokens.shape[1], config.head_dim, config.num_heads // config.num_kv_heads
    store = KVStore(config.num_layers, 1, config.num_kv_heads, T, D, dtype=torch.float64, device=torch.device("cpu"))
    everything, some, batch, state = torch.arange(T)[None], torch.tensor([rows]), torch.tensor([0]), RowState()
    asked: list[torch.Tensor] = []
    for block in model.blocks:
        own = block.attention.queries
        block.attention.queries = lambda *given, own=own: (asked.append(own(*given)), asked[-1])[1]
    with torch.inference_mode():
        model(tokens, everything, None, store.bind(batch, everything, T))
        asked.clear()
        model(tokens[:, rows], some, None, None, Rollout(store.bind(batch, some, T), state, torch.tensor([T])))
        product = torch.eye(T, dtype=torch.float64)
        for layer, queries in enumerate(asked):
            keys = store.read(layer, batch, T)[0].repeat_interleave(group, dim=1)
            attention = torch.eye(T, dtype=torch.float64)
            attention[rows] = (queries @ keys.mT / D**0.5).softmax(-1)[0].mean(0)
            product = (attention + torch.eye(T)) / 2 @ product
    assert len(asked) == config.num_layers
    torch.testing.assert_close(state["importance"][0], product.sum(0).float(), atol=1e-5, rtol=0)


def test_nucleus_and_gaps():
    importance = torch.tensor([[4.0, 1.0, 3.0, 0.0, 2.0]])
    kept = {share: nucleus(importance, share)[0].nonzero()[:, 0].tolist() for share in (0.0, 0.3, 0.4, 0.7, 0.95, 1.0)}
    assert kept == {0.0: [0], 0.3: [0], 0.4: [0], 0.7: [0, 2], 0.95: [0, 2, 4], 1.0: [0, 1, 2, 3, 4]}
    chosen = torch.tensor([[1, 0, 0, 1, 0, 0, 0, 1, 0]], dtype=torch.bool)
    assert filled(chosen, 0).equal(chosen)
    assert filled(chosen, 3)[0].long().tolist() == [1, 1, 1, 1, 0, 0, 0, 1, 0]
    assert filled(chosen, 4)[0].long().tolist() == [1, 1, 1, 1, 1, 1, 1, 1, 0]


class Watched(D2Cache):
    """Checks at every pass that the confidences held are those of the pass where it computed the slot."""

    def observe(self, prediction, state):
        before = state["confidence"].clone()
        super().observe(prediction, state)
        known, at = prediction.slots.known, prediction.positions
        assert state["confidence"].gather(1, at)[known].equal(prediction.confidence[known])
        untouched = torch.ones_like(before, dtype=torch.bool).scatter_(
            1, at.masked_fill(~known, before.shape[1] - 1), False
        )
        assert state["confidence"][untouched].equal(before[untouched])
        MOVED.append(int((state["confidence"] != before).sum()))


MOVED: list[int] = []


@pytest.mark.parametrize("family", FAMILIES)
def test_d2cache_computes_few_rows_and_keeps_confidences_fresh(family):
    engine, spec = toy_engine(family, seed=1), "d2cache:current_k=4,rollout_p=0.05,inflate_w=0"
    options = {"gen_length": 40, "block_length": 40, "decoder": "certainty:k=1", "stop_at_eos": False}
    MOVED.clear()
    cache = Watched(current_k=4, rollout_p=0.05, inflate_w=0)
    rows = [e.rows[0].rows_computed for e in engine.stream(prompts_of([60]), cache=cache, **options)]
    assert rows[0] == 100
    assert max(rows[1:]) <= 4 + 1 + 5 + 1  # chosen masks, the last commit, a nucleus of 5 %
    assert len(rows) == 40
    assert MOVED[0] == 40  # every mask is predicted at first, and some again at every pass
    assert min(MOVED[1:]) >= 1
    assert rows == [e.rows[0].rows_computed for e in engine.stream(prompts_of([60]), cache=spec, **options)]


@pytest.mark.parametrize("family", FAMILIES)
def test_dkv_computes_masks_and_what_the_last_pass_committed(family):
    engine = toy_engine(family, seed=1)
    shift, gen, block, refresh = engine.config.shift, 20, 10, 4
    done, last, step, at_block = set[int](), set[int](), 0, 0
    options = {"gen_length": gen, "block_length": block, "decoder": "topk:k=2", "stop_at_eos": False}
    for event in engine.stream(prompts_of([7]), cache=f"dkv:refresh={refresh}", **options):
        (row,) = event.rows
        step = 0 if row.block != at_block else step
        at_block = row.block
        moving = (set(range(gen)) - done) | last
        rows = moving | {at - shift for at in moving}
        assert row.rows_computed == (7 + gen if step % refresh == 0 else len(rows))
        done, last, step = done | set(row.positions), set(row.positions), step + 1


@pytest.mark.parametrize("family", FAMILIES)
def test_dllm_leaves_out_what_it_does_not_choose(family):
    """Products of one adaptive pass: the first layer in full, then the value probe and the chosen rows alone."""
    engine, P, G = toy_engine(family, seed=1), 30, 24
    options = {"gen_length": G, "block_length": G, "decoder": "topk:k=1", "stop_at_eos": False}
    events = iter(engine.stream(prompts_of([P]), cache="dllm:kp=99,kr=99,rou=0.25", **options))
    next(events)
    with FlopCounterMode(display=False) as counter:
        (row,) = next(events).rows
    config, few = engine.config, int(0.25 * G)
    width, kv, inner = config.hidden_size, config.num_kv_heads * config.head_dim, config.intermediate_size
    layer = 2 * width * width + 2 * width * kv + 3 * width * inner
    layers = config.num_layers - 1
    expected = (P + G) * layer + layers * (few * (layer - width * kv) + G * width * kv)
    head = (G - 1) * width * config.vocab_size
    counted = sum(
        n for op, n in counter.get_flop_counts()["Global"].items() if "mm" in str(op) and "bmm" not in str(op)
    )
    assert counted == 2 * (expected + head)
    assert row.rows_computed == -((P + G + layers * few) // -config.num_layers)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_suffix_window_bounds_what_a_block_costs(cache):
    """With gen_length four times as long a block computes the same rows and multiplies the same matrices."""
    engine, costs = toy_engine(seed=1), []
    for gen in (32, 128):
        options = {"gen_length": gen, "block_length": 8, "decoder": "topk:k=4", "stop_at_eos": False}
        events = iter(engine.stream(prompts_of([20]), cache=f"{cache}:suffix_window=8", **options))
        for _ in range(2):
            with FlopCounterMode(display=False) as counter:
                (row,) = next(events).rows
            costs.append((row.rows_computed, counter.get_total_flops()))
    assert costs[:2] == costs[2:]


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_prompt_rows_are_refreshed_every_so_many_blocks(cache):
    engine, opened = toy_engine(seed=1), []
    options = {"gen_length": 32, "block_length": 8, "decoder": "topk:k=4", "stop_at_eos": False}
    for event in engine.stream(prompts_of([20]), cache=f"{cache}:prompt_every=3", **options):
        (row,) = event.rows
        if len(opened) == row.block:
            opened.append(row.rows_computed)
    assert opened == [52, 32, 32, 52]


def test_a_sliding_refresh_does_not_grow_with_what_is_decoded():
    engine, opened = toy_engine(seed=1), []
    options = {"gen_length": 48, "block_length": 8, "decoder": "topk:k=4", "stop_at_eos": False}
    cache = "sliding:prompt_every=3,recent_blocks=1,suffix_window=8"
    for event in engine.stream(prompts_of([20]), cache=cache, **options):
        (row,) = event.rows
        if len(opened) == row.block:
            opened.append(row.rows_computed)
    assert opened == [36, 24, 24, 44, 24, 16]  # prompt, the block before, the block, the window; the last has none
