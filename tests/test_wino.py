"""WINO's verifying rows, against one forward pass over canvas and verifiers under an explicit mask."""

from __future__ import annotations

import pytest
import torch

import fastdllm.loop as loop
from fastdllm.caches import NoCache
from fastdllm.canvas import Canvas
from fastdllm.decoders import Threshold
from fastdllm.loop import Run, leave_one_out
from fastdllm.passes import predict
from fastdllm.sampling import Sampling
from toys import EOS, FAMILIES, MASK, prompts_of, toy_engine, toy_model

GEN, BLOCK, PROMPTS = 12, 5, [6, 11]


def verified(family, layers, tokens=None, block=1):
    """A model, a run of it amid its answer, the run's region, and what the verifiers of one of its blocks say."""
    model = toy_model(family, layers=layers, seed=4)
    canvas = Canvas(prompts_of(PROMPTS, seed=2), gen_length=GEN, block_length=BLOCK, mask_id=MASK, eos_ids=[EOS])
    for b, start in enumerate(PROMPTS):  # half of the answer is there
        canvas._tokens[b, start : start + GEN : 2] = torch.tensor(tokens or [3, 1, 4, 1, 5, 9])
    canvas.block += block
    run = Run(canvas, NoCache(), Threshold(), Sampling.of(2), store=model.allocate(2, canvas.width))
    region = canvas.region(model.config.shift)
    ask = run.ask(region)
    predict(model, [ask])
    return model, run, region, leave_one_out(model, run, region, ask)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("block", [0, 1, 2])
@torch.inference_mode()
def test_verifiers_are_rows_under_a_mask(family, block):
    """Nothing sees a verifier but the verifiers; each sees all of the canvas but the slot that it predicts."""
    model, run, region, logits = verified(family, layers=3, block=block)
    shift = model.config.shift
    for b, prompt in enumerate(PROMPTS):
        T, start, end = prompt + GEN, int(region.start[b]), int(region.end[b])
        slots = torch.arange(start, end)
        tokens = torch.cat((run.canvas.tokens[b, :T], torch.full_like(slots, MASK)))
        positions = torch.cat((torch.arange(T), slots - shift))
        visible = torch.zeros(T + len(slots), T + len(slots), dtype=torch.bool)
        visible[:, :T] = True
        visible[T:, T:] = True
        visible[torch.arange(T, T + len(slots)), slots] = False
        hidden = model(tokens[None], positions[None], visible[None])
        expected = model.logits(hidden[0, T:])
        torch.testing.assert_close(logits[b, : len(slots)], expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_verifier_does_not_know_the_token_it_verifies(family):
    """On one layer no other row carries that token either: its own logits stay, those of the others change."""
    *_, logits = verified(family, layers=1)
    *_, other = verified(family, layers=1, tokens=[3, 1, 4, 40, 5, 9])  # slot 6, the second of block 1
    torch.testing.assert_close(logits[:, 1], other[:, 1], atol=1e-5, rtol=0)
    for slot in (0, 2, 3, 4):
        assert not torch.allclose(logits[:, slot], other[:, slot], atol=1e-3), slot


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", ["dual", "prefix", "dllm:kp=4,kr=2", "d2cache:current_k=6"])
def test_verifying_leaves_the_store_as_it_was(family, cache, monkeypatch):
    """A threshold_back of 0 takes nothing back: with and without verifiers a run is the same."""
    options = {"gen_length": 20, "block_length": 8, "cache": cache, "decoder": "wino:threshold=0.4,threshold_back=0"}
    engine, prompts = toy_engine(family, seed=1), prompts_of([7, 3])
    checked = engine.generate(prompts, **options)
    shape = (2, 8, engine.config.vocab_size)
    monkeypatch.setattr(loop, "leave_one_out", lambda model, run, *_: torch.zeros(len(run.canvas), *shape[1:]))
    assert [c.canvas for c in engine.generate(prompts, **options)] == [c.canvas for c in checked]
