"""Decoders against their definitions, on confidences given by hand."""

from __future__ import annotations

import pytest
import torch

from fastdllm import OptionError
from fastdllm.config import describe, parse_decoder
from fastdllm.sampling import Noise, Prediction, Sampling
from toys import FAMILIES, open_slots, prompts_of, toy_engine, turn_of


def chosen(
    decoder: str, confidence: list[float], *, steps: int = 0, size: int | None = None, seed: int = 0
) -> list[int]:
    """Slots that a decoder commits when the proposals have these confidences."""
    p = torch.tensor([confidence])
    logits = torch.stack([p.log(), (1 - p).log()], dim=-1)
    prediction = prediction_of(logits, p, seed=seed, nfe=steps)
    turn = turn_of(prediction, size=size, step=steps)
    return parse_decoder(decoder).step(turn).commit[0].nonzero()[:, 0].tolist()


def prediction_of(
    logits: torch.Tensor, confidence: torch.Tensor | None = None, *, seed: int = 0, nfe: int = 0
) -> Prediction:
    """The prediction of open slots 0, 1, ... from logits (1, M, V)."""
    confidence = logits.softmax(-1).amax(-1) if confidence is None else confidence
    return Prediction(
        slots=open_slots(1, logits.shape[1]), tokens=logits.argmax(-1), confidence=confidence, logits=logits,
        noise=Noise(torch.tensor([seed]), torch.tensor([nfe])), sampling=Sampling.of(1),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("decoder", "confidence", "expected"),
    [
        ("topk:k=2", [0.1, 0.9, 0.5], [1, 2]),
        ("topk:k=9", [0.1, 0.9, 0.5], [0, 1, 2]),
        ("topk:k=2", [0.5, 0.5, 0.5], [0, 1]),  # ties go left to right
        ("threshold:threshold=0.9", [0.95, 0.2, 0.9], [0, 2]),
        ("threshold:threshold=0.9", [0.3, 0.2, 0.4], [2]),
        ("threshold:threshold=1.01", [1.0, 1.0, 1.0], [0]),
        # Fast-dLLM, Theorem 1: the n-th best needs 1 - 1/(n + 1). The published loop takes one too many
        # when the last fails, and another implementation one too few when none fails.
        ("factor:factor=1.0", [0.99, 0.99, 0.1], [0, 1]),
        ("factor:factor=1.0", [0.99, 0.99, 0.99], [0, 1, 2]),
        ("factor:factor=1.0", [0.2, 0.1], [0]),
        ("factor:factor=1.0", [0.5, 0.6, 0.7], [2]),
        ("factor:factor=1.0", [0.68, 0.8, 0.2], [0, 1]),
        ("factor:factor=0.5", [0.68, 0.8, 0.2], [1]),
        ("factor:factor=1e-9", [0.999, 0.998], [0]),
    ],
)
def test_choice(decoder, confidence, expected):
    assert chosen(decoder, confidence) == expected


def quotas(decoder: str, size: int) -> list[int]:
    left, steps, given = size, 0, []
    while left:
        count = len(chosen(decoder, [0.5] * left, steps=steps, size=size))
        given.append(count)
        left, steps = left - count, steps + 1
        assert steps < 1000
    return given


def test_llada_schedule_gives_the_remainder_to_the_first_passes():
    assert quotas("schedule:steps=5", 12) == [3, 3, 2, 2, 2]
    assert quotas("schedule:steps=12", 12) == [1] * 12
    assert quotas("schedule:steps=40", 12) == [1] * 12  # no pass that commits nothing


def test_dream_schedule():
    assert quotas("timestep:steps=16,alg=maskgit_plus", 16) == [0, *[1] * 14, 2]
    assert quotas("timestep:steps=64,alg=entropy", 256) == [3, *[4] * 62, 5]
    assert sum(quotas("timestep:steps=7,alg=entropy", 40)) == 40


def test_origin_commits_each_slot_with_the_probability_of_the_step():
    share = sum(len(chosen("timestep:steps=4,alg=origin", [0.5] * 4000, steps=s, size=4000)) for s in (0,)) / 4000
    assert share == pytest.approx(0.25 * (1 - 1e-3), abs=0.03)
    assert len(chosen("timestep:steps=4,alg=origin", [0.5] * 50, steps=3, size=50)) == 50


def test_alg_temp_prefers_but_does_not_insist():
    """One of four slots is drawn in proportion to exp(score / alg_temp), whatever their order."""
    confidence, temperature, draws = [0.9, 0.6, 0.3, 0.3], 0.3, 2000
    spec = f"timestep:steps=3,alg=maskgit_plus,alg_temp={temperature}"
    picked = [chosen(spec, confidence, size=4, seed=seed) for seed in range(draws)]
    expected = (torch.tensor(confidence) / temperature).softmax(0)
    alone = torch.tensor([slots[0] for slots in picked if len(slots) == 1])
    share = torch.bincount(alone, minlength=4) / len(alone)
    assert len(alone) == draws
    torch.testing.assert_close(share, expected, atol=0.04, rtol=0)


def test_scores_order_as_their_names_say():
    logits = torch.tensor([[[4.0, 3.9, -9.0, -9.0], [3.0, 1.0, 1.0, 1.0], [9.0, 0.0, 0.0, 0.0]]])
    p = logits.softmax(-1)
    prediction = prediction_of(logits)
    margin = p.topk(2).values
    torch.testing.assert_close(prediction.score("topk_margin"), margin[..., 0] - margin[..., 1])
    torch.testing.assert_close(prediction.score("entropy"), (p * p.log()).sum(-1), atol=1e-5, rtol=1e-4)
    assert prediction.score("topk_margin").argsort(descending=True).tolist() == [[2, 1, 0]]
    assert prediction.score("entropy").argsort(descending=True).tolist() == [[2, 0, 1]]


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_are_kept_over_uneven_blocks(family):
    """gen_length 37 in blocks of 16, 16 and 5: all steps are used, each block gets its share."""
    engine = toy_engine(family)
    for steps in (3, 11, 37):
        for decoder in (f"schedule:steps={steps}", f"timestep:steps={steps},alg=entropy"):
            (completion,) = engine.generate(
                prompts_of([6]), gen_length=37, block_length=16, decoder=decoder, stop_at_eos=False
            )
            assert completion.nfe == steps, decoder


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("greedy", "decoder 'greedy' is not one of topk, threshold, factor, schedule, timestep"),
        ("topk:k=0", "k=0 must be from 1 to 1048576"),
        ("topk:k=two", "topk:k='two' is not of type int"),
        ("topk:n=2", "decoder 'topk' takes k=, alg= each once, not 'n=2'"),
        ("topk:k=1,k=2", "decoder 'topk' takes k=, alg= each once, not 'k=2'"),
        ("threshold:0.9", "decoder 'threshold' takes threshold=, alg= each once, not '0.9'"),
        ("threshold:threshold=nan", "threshold=nan must be 0 or more"),
        ("threshold:alg=best", "alg='best' is not one of maskgit_plus, topk_margin, entropy, random"),
        ("factor:factor=0", "factor=0.0 must be above 0"),
        ("schedule:steps=0", "steps=0 must be from 1 to 1048576"),
        ("schedule:remasking=low", "remasking='low' is not one of low_confidence, random"),
        ("schedule:remasking=random,alg=entropy", "remasking='random' contradicts alg='entropy'"),
        ("timestep:eps=1", "eps=1.0 must be between 0 and 1"),
        ("timestep:alg_temp=-1", "alg_temp=-1.0 must be 0 or more"),
    ],
)
def test_bad_specs_are_refused(spec, message):
    with pytest.raises(OptionError) as refused:
        parse_decoder(spec)
    assert message in str(refused.value)


@pytest.mark.parametrize("spec", ["topk:k=3,alg=entropy", "timestep:steps=9,alg=origin,alg_temp=0.0,eps=0.01"])
def test_a_described_strategy_parses_back(spec):
    assert describe(parse_decoder(spec)) == spec


def test_too_few_steps_for_the_blocks_are_refused():
    with pytest.raises(OptionError, match="steps=2 is less than the 3 blocks of gen_length=40 and block_length=16"):
        toy_engine().generate(prompts_of([3]), gen_length=40, block_length=16, decoder="schedule:steps=2")
