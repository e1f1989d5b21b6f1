"""Proposals, confidences and noise."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastdllm import NumericalError, OptionError
from fastdllm.decoders import Threshold
from fastdllm.sampling import Noise, Sampling, propose
from toys import FAMILIES, MASK, open_slots, prompts_of, toy_engine, turn_of


def proposal(logits: torch.Tensor, nfe: int = 0, **options: object):
    B, M, V = logits.shape
    sampling = Sampling.of(B, **options)  # type: ignore[arg-type]
    return propose(logits.clone(), open_slots(B, M), sampling, torch.full((B,), nfe), V - 1)


def test_gumbel_noise_samples_the_tempered_distribution():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 9.0])  # the last is the mask token
    temperature, draws = 0.7, 20000
    got = proposal(logits.expand(1, draws, 5), temperature=temperature, seed=3).tokens[0]
    share = torch.bincount(got, minlength=5) / draws
    expected = F.softmax(torch.cat([logits[:4], torch.tensor([float("-inf")])]) / temperature, dim=0)
    torch.testing.assert_close(share, expected, atol=0.012, rtol=0)


def test_confidence_is_untempered_and_float32():
    logits = torch.randn(2, 6, 11, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    got = proposal(logits, temperature=1.3, seed=1)
    clean = logits.float()
    clean[..., -1] = float("-inf")
    expected = F.softmax(clean, dim=-1).gather(-1, got.tokens[..., None])[..., 0]
    assert got.confidence.dtype == torch.float32
    torch.testing.assert_close(got.confidence, expected)


def test_a_bf16_model_cannot_slip_past_a_threshold():
    """0.8984 and 0.9 are one number in bf16; in float32 it stays below, so only the best slot is committed."""
    logits = torch.tensor([8.0, 8.0 - 2.18, -30.0, 0.0], dtype=torch.bfloat16).expand(1, 3, 4)
    got = proposal(logits)
    assert got.confidence[0, 0].item() == pytest.approx(0.8984, abs=2e-3)
    assert bool((got.confidence.to(torch.bfloat16) >= 0.9).all())
    assert Threshold(threshold=0.9).step(turn_of(got)).commit.tolist() == [[True, False, False]]


@pytest.mark.parametrize("top_p", [None, 0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("top_k", [None, 1, 3, 50])
def test_filters_keep_what_a_plain_loop_keeps(top_p, top_k):
    logits = torch.randn(2, 3, 17, generator=torch.Generator().manual_seed(5)) * 2
    got = proposal(logits, top_p=top_p, top_k=top_k).logits > float("-inf")
    for b in range(2):
        for m in range(3):
            row = logits[b, m, :-1]
            order, mass, kept = row.argsort(descending=True).tolist(), 0.0, set()
            p = row.softmax(0)
            for place, token in enumerate(order):
                if (place and top_p is not None and mass > top_p) or (top_k is not None and place >= top_k):
                    break
                kept.add(token)
                mass += p[token].item()
            assert set(got[b, m].nonzero()[:, 0].tolist()) == kept


def test_noise_belongs_to_seed_pass_and_position():
    seeds, positions = torch.tensor([1, 1, 2, 2**40 + 1]), torch.arange(8).expand(4, 8)
    a, b, c, d = Noise(seeds, torch.tensor([0, 0, 0, 0])).uniform(positions)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert not torch.equal(a, d)
    assert not torch.equal(a, Noise(seeds[:1], torch.tensor([1])).uniform(positions[:1])[0])
    assert len(set(a.tolist())) == 8


def test_noise_is_uniform():
    u = Noise(torch.tensor([7]), torch.tensor([3])).uniform(torch.arange(100000)[None])[0]
    counts = torch.histc(u, bins=20, min=0, max=1)
    assert (counts - 5000).abs().max() < 350  # five standard deviations
    assert abs(torch.corrcoef(torch.stack([u[:-1], u[1:]]))[0, 1]) < 0.02


@pytest.mark.parametrize("family", FAMILIES)
def test_same_seed_same_answer_and_other_seed_another(family):
    engine = toy_engine(family)
    options = {"gen_length": 24, "block_length": 8, "temperature": 1.0}
    one, two, other = (engine.generate(prompts_of([6]), seed=s, **options)[0].canvas for s in (4, 4, 5))
    assert one == two
    assert one != other
    twins = engine.generate(prompts_of([6]) * 2, seed=4, **options)
    assert twins[0].canvas == twins[1].canvas == one


def test_the_mask_token_is_never_proposed():
    engine = toy_engine()
    engine.model.head.weight[MASK] = engine.model.head.weight.sum(0) * 50
    (completion,) = engine.generate(prompts_of([4]), gen_length=16, block_length=8)
    assert MASK not in completion.canvas


@pytest.mark.parametrize("decoder", ["threshold:threshold=0.9", "topk:k=2", "timestep:steps=8,alg=origin"])
def test_logits_that_are_not_numbers_are_an_error(decoder):
    engine = toy_engine()
    engine.model.norm.weight[:] = float("nan")
    with pytest.raises(NumericalError, match="prompt 0 are not numbers"):
        engine.generate(prompts_of([4]), gen_length=16, block_length=8, decoder=decoder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 must be"),
        ({"temperature": 1e39}, r"temperature=1e\+39 must be from 0 to 1e\+06"),
        ({"top_k": 10**20}, "top_k=100000000000000000000 must be from 1 to"),
        ({"temperature": float("nan")}, "temperature=nan must be"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0"),
        ({"top_p": 1.5}, "top_p=1.5 must be above 0"),
        ({"top_k": 0}, "top_k=0 must be from 1 to"),
        ({"seed": [1, 2]}, "seed has 2 entries for 1 prompts"),
        ({"seed": 2**70}, "seed must fit in 64 bits"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        toy_engine().generate(prompts_of([4]), gen_length=4, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_guidance_pushes_away_from_the_masked_prompt(family):
    """cfg_scale s gives l_u + (s + 1)(l_c - l_u), from two passes over the same rows."""
    engine, prompt = toy_engine(family), prompts_of([7])[0]
    config, gen = engine.config, 5
    canvas = torch.tensor([prompt + [MASK] * gen])
    blank = torch.full_like(canvas, MASK)
    positions = torch.arange(canvas.shape[1])[None]
    conditional, free = (engine.model.logits(engine.model(x, positions)) for x in (canvas, blank))
    guided = free + 2.5 * (conditional - free)
    source = torch.arange(7, 7 + gen) - config.shift
    guided[..., MASK] = float("-inf")
    expected = guided[0, source].argmax(-1)
    (completion,) = engine.generate([prompt], gen_length=gen, block_length=gen, cache="none", cfg_scale=1.5,
                                    decoder="threshold:threshold=0", stop_at_eos=False)  # fmt: skip
    assert list(completion.canvas) == expected.tolist()
    with pytest.raises(OptionError, match="cfg_scale=1.5 works with cache none alone, not with dual"):
        engine.generate([prompt], gen_length=gen, cache="dual", cfg_scale=1.5)
