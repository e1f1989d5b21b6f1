"""Runs that come and go at any pass and share the network: each row gets what it gets alone."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdllm.canvas import Canvas
from fastdllm.completion import Completion, Draft
from fastdllm.config import GenerationConfig
from fastdllm.engine import Engine
from fastdllm.events import RowEvent
from fastdllm.kv import KVStore
from fastdllm.loop import Run, advance
from fastdllm.sampling import Sampling
from toys import FAMILIES, MASK, prompts_of, toy_engine

WIDTH = 64
CACHES = (
    "none", "prefix", "dual", "dual", "dual:prompt_every=2,suffix_window=3", "sliding", "dkv", "d2cache:current_k=4",
    "dllm:kp=3,kr=2",
)  # fmt: skip
DECODERS = ("topk:k=1", "threshold:threshold=0.5", "threshold:threshold=0.5", "factor", "klass", "credit", "slowfast")


class Pool:
    """Runs over one pool of keys and values."""

    def __init__(self, engine: Engine, slots: int) -> None:
        config = engine.config
        self.engine, self.free, self.runs, self.joined = engine, list(range(slots)), list[Run](), 0
        self.events: dict[int, list[RowEvent]] = {}
        self.store = KVStore(
            config.num_layers, slots, config.num_kv_heads, WIDTH, config.head_dim,
            dtype=engine.dtype, device=engine.device,
        )  # fmt: skip

    def add(self, index: int, prompt: Sequence[int], config: GenerationConfig) -> Run:
        canvas = Canvas(
            [prompt], gen_length=config.gen_length, block_length=config.block_length, mask_id=MASK,
            eos_ids=self.engine.config.eos_ids, stop_at_eos=config.stop_at_eos, index=[index], width=WIDTH,
        )  # fmt: skip
        sampling = Sampling.of(1, temperature=config.temperature, top_p=config.top_p, seed=config.seed)
        run = Run(
            canvas, config.policy, config.rule, sampling,
            store=self.store, slots=[self.free.pop(0)], cfg_scale=config.cfg_scale,
        )  # fmt: skip
        self.events[index] = []
        self.runs.append(run)
        return run

    def step(self) -> None:
        held = [slot for run in self.runs for slot in run.slots]
        for event in advance(self.engine.model, self.runs):
            for row in event.rows:
                self.events[row.index].append(row)
        self.runs = [run for run in self.runs if len(run)]
        self.free = sorted({*self.free, *held} - {slot for run in self.runs for slot in run.slots})
        kept: list[Run] = []
        for run in self.runs:
            if any(other.join(run) for other in kept):
                self.joined += 1
            else:
                kept.append(run)
        self.runs = kept

    def answer(self, index: int, prompt: Sequence[int], config: GenerationConfig) -> Completion:
        draft = Draft(index, len(prompt), config.gen_length, MASK, self.engine.config.pad_id)
        for row in self.events[index]:
            draft.add(row)
        return draft.finish("", draft.answer(self.engine.config.eos_ids))


def option(rng: random.Random) -> GenerationConfig:
    noisy = rng.random() < 0.4
    cache = rng.choice(CACHES)
    return GenerationConfig(
        gen_length=rng.choice([8, 16, 20]), block_length=rng.choice([4, 8]), cache=cache,
        decoder=rng.choice(DECODERS), temperature=0.8 if noisy else 0.0, top_p=0.9 if rng.random() < 0.3 else None,
        seed=rng.randrange(100), cfg_scale=0.5 if cache == "none" and rng.random() < 0.5 else 0.0,
        stop_at_eos=rng.random() < 0.7,
    )  # fmt: skip


@settings(max_examples=6, deadline=None)
@given(st.sampled_from(FAMILIES), st.integers(0, 10**6))
def test_rows_that_arrive_at_random_get_what_they_get_alone(family, seed):
    engine, rng = toy_engine(family, seed=seed % 7), random.Random(seed)
    # Without a prompt all rows of a canvas of masks are alike, and rounding alone decides which slot is best.
    jobs = [(prompt, option(rng)) for prompt in prompts_of([rng.randrange(1, 40) for _ in range(10)], seed)]
    pool, waiting = Pool(engine, slots=6), list(enumerate(jobs))
    while waiting or pool.runs:
        while waiting and pool.free and rng.random() < 0.6:
            index, job = waiting.pop(0)
            pool.add(index, *job)
        if pool.runs:
            pool.step()
    assert sorted(pool.free) == list(range(6))
    for index, (prompt, config) in enumerate(jobs):
        (alone,) = Engine(engine.model).generate([prompt], **vars(config))
        shared = pool.answer(index, prompt, config)
        assert shared.canvas == alone.canvas, config
        assert (shared.nfe, shared.rows_computed, shared.finish_reason) == (
            alone.nfe, alone.rows_computed, alone.finish_reason,
        )  # fmt: skip
        assert shared.confidences == pytest.approx(alone.confidences, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_runs_that_are_alike_share_every_pass(family):
    """Three rows of other lengths, strategies and ages: block passes of all are one pass through the network."""
    engine, shapes = toy_engine(family, seed=3), []
    forward = engine.model.forward
    engine.model.forward = lambda tokens, *rest: (shapes.append(tuple(tokens.shape)), forward(tokens, *rest))[1]  # type: ignore[method-assign]
    pool = Pool(engine, slots=4)
    for index, (length, decoder) in enumerate([(5, "topk:k=1"), (30, "threshold:threshold=2"), (12, "factor")]):
        gen = 8 * (index + 1)
        pool.add(index, prompts_of([length])[0], GenerationConfig(
            gen_length=gen, block_length=8, cache="dual", decoder=decoder, stop_at_eos=False,
        ))  # fmt: skip
        pool.step()
    shapes.clear()
    pool.step()
    assert shapes == [(3, 8 + (family == "dream"))]


def test_runs_of_the_same_options_become_one_and_others_do_not():
    pool = Pool(toy_engine(), slots=4)
    config = GenerationConfig(gen_length=16, block_length=8, cache="d2cache:current_k=4", decoder="topk:k=1")
    first, second = (pool.add(i, [1, 2, 3], config) for i in range(2))
    other = pool.add(2, [1, 2, 3], GenerationConfig(gen_length=16, block_length=8, cache="dual", decoder="topk:k=1"))
    advance(pool.engine.model, [first])
    assert not first.join(second)  # d2Cache remembers a pass of the one, and none of the other
    assert not second.join(other)
    advance(pool.engine.model, [second])
    assert first.join(second)
    assert (len(first), first.slots) == (2, [0, 1])
    first.keep([1])
    assert (len(first), first.slots) == (1, [1])


def test_a_row_whose_logits_are_not_numbers_fails_alone():
    engine = toy_engine(seed=5)
    pool, config = (
        Pool(engine, slots=2),
        GenerationConfig(gen_length=8, block_length=4, cache="dual", decoder="topk:k=1"),
    )
    for index, prompt in enumerate(([1, 2, 3], [4, 5, 6])):
        pool.add(index, prompt, config)
    pool.step()
    forward = engine.model.forward
    poison = torch.tensor([1.0, float("nan")])[:, None, None]

    def poisoned(tokens, rows, visible, view, hook):  # type: ignore[no-untyped-def]
        view.store.write(0, view.batch[1:], rows[1:], *[torch.full((1, heads, rows.shape[1], 8), float("nan"))] * 2)
        return forward(tokens, rows, visible, view, hook) * poison

    heads = engine.config.num_kv_heads
    engine.model.forward = poisoned  # type: ignore[method-assign]
    pool.step()
    engine.model.forward = forward  # type: ignore[method-assign]
    while pool.runs:
        pool.step()
    held = pool.store.read(0, slice(None), WIDTH)[0]
    assert held.isfinite().all()
    last = pool.events[1][-1]
    assert (last.failed, last.positions, last.finish_reason) == (True, (), None)
    assert pool.answer(0, [1, 2, 3], config).canvas == engine.generate([[1, 2, 3]], **vars(config))[0].canvas
