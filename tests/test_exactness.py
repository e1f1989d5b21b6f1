"""What theory gives for free (docs/exactness.md): identities between caches, decoders and batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdllm import Completion, OptionError
from fastdllm.models.transformer import FeedForward
from toys import CACHES, DECODERS, EOS, FAMILIES, MASK, prompts_of, toy_engine, toy_model

family = st.sampled_from(FAMILIES)
lengths = st.lists(st.integers(1, 24), min_size=1, max_size=4)
gen_length = st.integers(1, 40)
block_length = st.integers(1, 48)
decoder = st.sampled_from(
    ("topk:k=1", "topk:k=3", "threshold:threshold=0.4", "threshold:threshold=0.8", "factor:factor=1.3")
)
seed = st.integers(0, 5)
# One of each kind of decoder, with few passes: the slow test runs all of them with every cache.
BRISK = (
    "topk:k=3,alg=topk_margin", "threshold:threshold=0.3", "threshold:threshold=0.6,alg=entropy", "factor:factor=2.0",
    "schedule:steps=9", "schedule:steps=9,remasking=random", "timestep:steps=9", "timestep:steps=9,alg=origin",
    "timestep:steps=9,alg=maskgit_plus,alg_temp=0.5",
)  # fmt: skip
quick = settings(max_examples=25, deadline=None)


def canvases(completions: list[Completion]) -> list[tuple[int, ...]]:
    return [c.canvas for c in completions]


@quick
@given(family, lengths, gen_length, block_length, decoder, seed, st.booleans(), st.sampled_from(("prefix", "dual")))
def test_one_layer_model_makes_every_cache_exact(family, lengths, gen, block, decoder, seed, stop, cache):
    """With one layer keys and values depend on a row's own token alone: of an unchanged row none is stale."""
    engine, prompts = toy_engine(family, layers=1, seed=seed), prompts_of(lengths, seed)
    options = {"gen_length": gen, "block_length": block, "decoder": decoder, "stop_at_eos": stop}
    plain = engine.generate(prompts, cache="none", **options)
    cached = engine.generate(prompts, cache=cache, **options)
    assert canvases(cached) == canvases(plain)
    assert [c.nfe for c in cached] == [c.nfe for c in plain]


@quick
@given(family, lengths, gen_length, seed, st.sampled_from(("prefix", "dual")), st.integers(1, 48))
def test_a_cache_refreshed_at_every_pass_is_plain_decoding(family, lengths, gen, seed, cache, block):
    """A block that is done in its opening pass never reads a stale key."""
    engine, prompts = toy_engine(family, seed=seed), prompts_of(lengths, seed)
    options = {"gen_length": gen, "block_length": block, "decoder": "threshold:threshold=0", "stop_at_eos": False}
    plain = engine.generate(prompts, cache="none", **options)
    assert canvases(engine.generate(prompts, cache=cache, **options)) == canvases(plain)


@quick
@given(family, lengths, gen_length, block_length, seed, st.sampled_from(CACHES))
def test_one_token_per_pass_has_many_names(family, lengths, gen, block, seed, cache):
    engine, prompts = toy_engine(family, seed=seed), prompts_of(lengths, seed)
    options = {"gen_length": gen, "block_length": block, "cache": cache, "stop_at_eos": False}
    plain = engine.generate(prompts, decoder="topk:k=1", **options)
    for same in (
        "threshold:threshold=1.01",
        f"schedule:steps={gen}",
        f"schedule:steps={3 * gen}",
        "factor:factor=1e-9",
    ):
        other = engine.generate(prompts, decoder=same, **options)
        assert canvases(other) == canvases(plain), same
        assert [c.nfe for c in other] == [gen] * len(prompts)


@quick
@given(
    family, lengths, gen_length, block_length, st.sampled_from(DECODERS), seed, st.sampled_from(CACHES), st.booleans()
)
def test_every_pass_commits_and_nothing_is_written_twice(family, lengths, gen, block, decoder, seed, cache, stop):
    engine, prompts = toy_engine(family, seed=seed), prompts_of(lengths, seed)
    options = {"gen_length": gen, "block_length": block, "decoder": decoder, "stop_at_eos": stop, "cache": cache}
    written: dict[int, dict[int, int]] = {i: {} for i in range(len(prompts))}
    try:
        generation = engine.start(prompts, **options)
    except OptionError as error:  # fewer steps than blocks
        assert "steps=" in str(error)  # noqa: PT017
        return
    for event in generation:
        for row in event.rows:
            assert row.positions or decoder.startswith("timestep")
            assert MASK not in row.tokens
            assert not set(row.positions) & set(written[row.index])
            assert all(row.block == at // min(block, gen) for at in row.positions)
            written[row.index] |= dict(zip(row.positions, row.tokens, strict=True))
    for completion in generation.completions:
        assert MASK not in completion.canvas
        slots = written[completion.index]
        assert all(completion.canvas[at] == token for at, token in slots.items())
        assert all(completion.canvas[at] == EOS for at in range(gen) if at not in slots)
        assert stop or len(slots) == gen


@quick
@given(
    family, st.lists(st.integers(1, 40), min_size=2, max_size=4), gen_length, block_length, st.sampled_from(DECODERS),
    seed, st.sampled_from(CACHES), st.sampled_from((0.0, 0.8)), st.booleans(),
)  # fmt: skip
def test_a_row_alone_is_the_row_in_any_batch(family, lengths, gen, block, decoder, seed, cache, temperature, stop):
    engine, prompts = toy_engine(family, seed=seed), prompts_of(lengths, seed)
    options = {
        "gen_length": gen, "block_length": block, "decoder": decoder, "cache": cache, "temperature": temperature,
        "stop_at_eos": stop,
    }  # fmt: skip
    seeds = [seed + 3 * i for i in range(len(prompts))]
    try:
        together = engine.generate(prompts, seed=seeds, **options)
    except OptionError:
        return
    for completion, prompt, own in zip(together, prompts, seeds, strict=True):
        (alone,) = engine.generate([prompt], seed=own, **options)
        assert alone.canvas == completion.canvas
        assert (alone.nfe, alone.rows_computed, alone.finish_reason) == (
            completion.nfe, completion.rows_computed, completion.finish_reason,
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_eight_prompts_of_unequal_length(family, cache, temperature):
    engine = toy_engine(family, seed=3)
    prompts = prompts_of([3, 200, 17, 64, 5, 128, 33, 90], seed=9)
    seeds = list(range(8))
    for decoder in BRISK:
        options = {"gen_length": 40, "block_length": 16, "decoder": decoder, "cache": cache, "temperature": temperature}
        together = engine.generate(prompts, seed=seeds, **options)
        alone = [engine.generate([p], seed=s, **options)[0] for p, s in zip(prompts, seeds, strict=True)]
        assert canvases(together) == canvases(alone), decoder


@quick
@given(family, lengths, gen_length, block_length, seed, st.sampled_from(CACHES))
def test_rows_computed_are_what_the_policy_says(family, lengths, gen, block, seed, cache):
    engine, prompts = toy_engine(family, seed=seed), prompts_of(lengths, seed)
    opened: set[tuple[int, int]] = set()
    shift = engine.config.shift
    options = {"gen_length": gen, "block_length": block, "decoder": "topk:k=1", "stop_at_eos": False}
    for event in engine.stream(prompts, cache=cache, **options):
        for row in event.rows:
            prompt = len(prompts[row.index])
            start = prompt + row.block * min(block, gen)
            end = min(start + block, prompt + gen)
            whole = prompt + gen
            opens = (row.index, row.block) not in opened
            opened.add((row.index, row.block))
            partial = {"none": whole, "prefix": whole - start + shift, "dual": end - start + shift}[cache]
            assert row.rows_computed == (whole if opens else partial)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_feed_forward_in_chunks_is_the_whole_one(family, monkeypatch):
    """Long passes on a CPU go through it in parts."""
    tokens, places = torch.arange(2 * 19).view(2, 19), torch.arange(19).expand(2, 19)
    whole = toy_model(family)(tokens, places)
    seen: list[int] = []
    of_rows = FeedForward.of_rows

    def noted(layer: FeedForward, x: torch.Tensor) -> torch.Tensor:
        seen.append(x.shape[:-1].numel())
        return of_rows(layer, x)

    monkeypatch.setattr(FeedForward, "of_rows", noted)
    monkeypatch.setattr("fastdllm.models.transformer.CHUNK", 15)
    torch.testing.assert_close(toy_model(family)(tokens, places), whole)
    assert set(seen) == {15, 8}
