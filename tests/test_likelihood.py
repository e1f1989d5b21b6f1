"""The Monte-Carlo estimate of a likelihood, against its definition."""

from __future__ import annotations

from itertools import product
from math import comb, log

import pytest
import torch

from fastdllm.engine import Engine
from fastdllm.errors import NumericalError
from fastdllm.evals.likelihood import greedily, log_likelihood, masks
from toys import MASK, toy_engine

CONTEXT, TARGET = [5, 9, 2, 7], [3, 11, 4]


def expected(engine: Engine, context: list[int], target: list[int]) -> float:
    """The mean over every number of masks and every set of that many, each set's share of its number."""
    size, total = len(target), 0.0
    for hidden in product((False, True), repeat=size):
        count = sum(hidden)
        if count:
            canvas = context + [MASK if h else t for h, t in zip(hidden, target, strict=True)]
            states = engine.model(torch.tensor([canvas]), torch.arange(len(canvas))[None])
            log_p = engine.model.logits(states).double().log_softmax(-1)[0]
            rows = [max(0, len(context) + i - engine.config.shift) for i in range(size)]
            hit = sum(float(log_p[rows[i], target[i]]) for i in range(size) if hidden[i])
            total += hit * size / count / (size * comb(size, count))
    return total


@pytest.mark.parametrize("family", ["llada", "dream"])
@torch.inference_mode()
def test_the_estimate_nears_its_definition(family):
    engine = toy_engine(family)
    exact = expected(engine, CONTEXT, TARGET)
    means = [log_likelihood(engine, CONTEXT, TARGET, samples=600, batch_size=200, seed=s) for s in range(4)]
    spread = torch.tensor(means).std().item() / 2
    assert abs(sum(means) / 4 - exact) < 5 * spread + 1e-3
    assert spread < 0.2 * abs(exact)


@pytest.mark.parametrize("family", ["llada", "dream"])
@torch.inference_mode()
def test_one_token_is_exact_and_needs_one_sample(family, monkeypatch):
    engine = toy_engine(family)
    passes = []
    forward = engine.model.forward
    monkeypatch.setattr(engine.model, "forward", lambda *a: passes.append(len(a[0])) or forward(*a))
    found = log_likelihood(engine, CONTEXT, [3], samples=50, batch_size=8, seed=0)
    assert passes == [1]
    assert found == pytest.approx(expected(engine, CONTEXT, [3]), abs=1e-5)
    assert log_likelihood(engine, [], [3], samples=50, batch_size=8, seed=0) < 0


def test_batches_change_nothing_and_seeds_do():
    engine = toy_engine()
    one, many = (log_likelihood(engine, CONTEXT, TARGET * 3, samples=24, batch_size=b, seed=1) for b in (1, 24))
    assert one == pytest.approx(many, abs=1e-4)
    assert one != log_likelihood(engine, CONTEXT, TARGET * 3, samples=24, batch_size=24, seed=2)


def test_masks_are_spread_evenly():
    hidden = masks(6, 24, torch.Generator().manual_seed(0))
    assert torch.bincount(hidden.sum(1), minlength=7).tolist() == [0, 4, 4, 4, 4, 4, 4]
    many = masks(6, 6000, torch.Generator().manual_seed(1)).float().mean(0)
    assert (many - 3.5 / 6).abs().max() < 0.03
    starts = {int(masks(6, 1, torch.Generator().manual_seed(s)).sum()) for s in range(40)}
    assert starts == {1, 2, 3, 4, 5, 6}


def test_logits_that_are_not_numbers_are_an_error():
    engine = toy_engine()
    engine.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(NumericalError, match="not numbers"):
        log_likelihood(engine, CONTEXT, TARGET, samples=4, batch_size=4, seed=0)


def test_greedy_is_what_plain_decoding_writes():
    engine = toy_engine()
    (written,) = engine.generate(
        [CONTEXT], gen_length=3, block_length=3, cache="none", decoder="topk:k=1", stop_at_eos=False
    )
    target = list(written.canvas)
    assert greedily(engine, CONTEXT, target)
    assert not greedily(engine, CONTEXT, [target[0], target[1], (target[2] + 1) % 50])


def test_likely_is_what_the_model_writes(tiny):
    question = "Ana has 19 apples. She finds 11 more. How many apples does Ana have now?"
    (answer,) = tiny.generate(question, gen_length=64, block_length=8, cache="none")
    (prompt,) = tiny.encode(question)
    own = log_likelihood(tiny, prompt, answer.tokens, samples=32, batch_size=32, seed=0)
    turned = log_likelihood(tiny, prompt, answer.tokens[::-1], samples=32, batch_size=32, seed=0)
    assert turned < own < 0
    assert own / len(answer.tokens) > -log(10)
