"""The engine's border: what goes in, what is refused, what comes out."""

from __future__ import annotations

import dataclasses

import pytest

from fastdllm import GenerationConfig, OptionError
from fastdllm.caches import DualCache
from fastdllm.config import GenerationOptions
from fastdllm.decoders import Threshold
from toys import EOS, MASK, prompts_of, toy_engine


def test_options_are_the_same_as_keywords_and_as_a_config():
    fields = {f.name for f in dataclasses.fields(GenerationConfig)}
    assert fields == set(GenerationOptions.__annotations__)


def test_objects_and_specs_are_the_same():
    engine, prompts = toy_engine(), prompts_of([4, 9])
    options = {"gen_length": 20, "block_length": 8}
    by_spec = engine.generate(prompts, cache="dual", decoder="threshold:threshold=0.4", **options)
    by_object = engine.generate(prompts, cache=DualCache(), decoder=Threshold(threshold=0.4), **options)
    assert [c.canvas for c in by_spec] == [c.canvas for c in by_object]


def test_batch_size_changes_nothing_but_memory():
    engine, prompts = toy_engine(), prompts_of([4, 9, 2, 7, 5])
    options = {"gen_length": 12, "block_length": 8, "seed": [5, 6, 7, 8, 9], "temperature": 0.9}
    whole = engine.generate(prompts, **options)
    parts = engine.generate(prompts, batch_size=2, **options)
    for one, other in zip(whole, parts, strict=True):
        assert one.confidences == pytest.approx(other.confidences, abs=1e-5)
        measured = {"seconds": 0.0, "confidences": ()}
        assert dataclasses.replace(one, **measured) == dataclasses.replace(other, **measured)
    assert [c.index for c in parts] == [0, 1, 2, 3, 4]


def test_a_generation_of_nothing():
    assert toy_engine().generate([]) == []
    assert list(toy_engine().stream([])) == []


def test_an_empty_prompt_is_generation_from_nothing():
    for family in ("llada", "dream"):
        (completion,) = toy_engine(family).generate([[]], gen_length=10, block_length=4, stop_at_eos=False)
        assert len(completion.canvas) == 10
        assert MASK not in completion.canvas


def test_a_mask_token_in_the_prompt_is_context_and_stays():
    engine, prompt, seen = toy_engine(), [3, MASK, 8], []
    forward = engine.model.forward
    engine.model.forward = lambda tokens, *rest: (seen.append(tokens[0, :3].tolist()), forward(tokens, *rest))[1]  # type: ignore[method-assign]
    (completion,) = engine.generate([prompt], gen_length=6, block_length=3, cache="none", stop_at_eos=False)
    assert seen == [prompt] * completion.nfe
    assert MASK not in completion.canvas


def test_tokens_end_at_the_first_end_token_and_the_rest_is_filled():
    options = {"gen_length": 24, "block_length": 8, "decoder": "topk:k=2"}
    partly_filled = 0
    for seed in range(8):
        prompts = prompts_of([5], seed)
        (whole,) = toy_engine(seed=seed, eos_ids=()).generate(prompts, **options)
        end = whole.canvas[10]  # from now on a token that this model does write ends an answer
        (completion,) = toy_engine(seed=seed, eos_ids=(end,)).generate(prompts, **options)
        first = completion.canvas.index(end)
        assert completion.tokens == completion.canvas[:first]
        assert completion.finish_reason == "stop"
        filled = [i for i, at in enumerate(completion.committed_at) if at == 0]
        assert all(completion.canvas[i] == EOS and i > first for i in filled)
        assert completion.nfe < whole.nfe
        partly_filled += bool(filled) and filled != list(range(first + 1, 24))
    assert partly_filled  # some had already committed a slot right of the end


def test_an_early_end_saves_passes_and_changes_no_token():
    """Left to right, what stands before the end token is what full decoding writes there."""
    options = {"gen_length": 32, "block_length": 1, "decoder": "topk:k=1", "cache": "dual"}
    for seed in range(4):
        prompts = prompts_of([5 + seed], seed)
        (open_end,) = toy_engine(seed=seed, eos_ids=()).generate(prompts, **options)
        engine = toy_engine(seed=seed, eos_ids=(open_end.canvas[12],))
        (stopped,) = engine.generate(prompts, **options)
        (whole,) = engine.generate(prompts, stop_at_eos=False, **options)
        assert stopped.tokens == whole.tokens
        assert stopped.finish_reason == whole.finish_reason == "stop"
        assert stopped.nfe == len(stopped.tokens) + 1 < whole.nfe == 32


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ("text", {}, "toy has no tokenizer; give prompts as lists of token ids"),
        ([1, 2, 3], {}, "prompt 0 is 1; prompts are one text, texts, or lists of token ids"),
        ([[1, 60]], {}, "prompt 0 holds the id 60; ids run from 0 to 59"),
        ([[1], [-1]], {}, "prompt 1 holds the id -1"),
        ([[1], "text"], {}, "prompt 1 is 'text'; prompts are"),
        ([[1], "12"], {}, "prompt 1 is a text among lists of ids"),
        ([[1] * 500], {"gen_length": 20}, "a prompt of 500 tokens with gen_length=20 is longer than the 512 positions"),
        ([[1]], {"gen_length": 0}, "gen_length=0 must be 1 or more"),
        ([[1]], {"block_length": 0}, "block_length=0 must be 1 or more"),
        ([[1]], {"batch_size": 0}, "batch_size=0 must be 1 or more"),
        ([[1]], {"cache": "paged"}, "cache 'paged' is not one of none, prefix, dual"),
        ([[1]], {"cache": "none:size=3"}, "cache 'none' takes no parameters, not 'size=3'"),
        ([[1]], {"cfg_scale": -1.0}, "cfg_scale=-1.0 must be a number of 0 or more"),
    ],
)
def test_bad_input_is_one_sentence(prompts, options, message):
    with pytest.raises(OptionError) as refused:
        toy_engine().stream(prompts, **options)  # at the call, before anything is read
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_guidance_counts_the_rows_of_both_passes():
    engine, prompts = toy_engine(), prompts_of([5])
    options = {"gen_length": 8, "block_length": 8, "cache": "none", "decoder": "topk:k=1", "stop_at_eos": False}
    (plain,), (guided,) = engine.generate(prompts, **options), engine.generate(prompts, cfg_scale=1.0, **options)
    assert (plain.rows_computed, guided.rows_computed) == (8 * 13, 2 * 8 * 13)
    assert plain.nfe == guided.nfe == 8


def test_top_p_loosens_a_threshold_as_documented():
    """Dream's sampler renormalises inside the nucleus; with one token left every slot is certain."""
    engine, prompts = toy_engine(), prompts_of([5])
    options = {"gen_length": 16, "block_length": 8, "decoder": "threshold:threshold=0.99", "stop_at_eos": False}
    (strict,), (loose,) = engine.generate(prompts, **options), engine.generate(prompts, top_k=1, **options)
    assert strict.nfe > loose.nfe == 2
    assert set(loose.confidences) == {1.0}
