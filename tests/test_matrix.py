"""Every cache with every decoder, on both families, alone and in a ragged batch; and what each method is equal to."""

from __future__ import annotations

import functools
import json

import pytest

from fastdllm import Completion, OptionError
from fastdllm.caches import CACHES, D2Cache, DKVCache, DLLMCache, PrefixCache, SlidingCache
from fastdllm.caches.blockwise import Blockwise
from fastdllm.config import parse_cache, parse_decoder
from fastdllm.decoders import DECODERS
from toys import EOS, FAMILIES, MASK, prompts_of, toy_engine

CACHE_SPECS = (
    "none", "prefix", "dual", "prefix:prompt_every=2,suffix_window=5", "dual:prompt_every=3", "dual:suffix_window=0",
    "sliding:suffix_window=5", "sliding:prompt_every=3,recent_blocks=2,suffix_window=none", "dkv:refresh=4",
    "dllm:kp=5,kr=3,rou=0.25", "d2cache:current_k=6,rollout_p=0.2,sigma=3,inflate_w=3",
)  # fmt: skip
DECODER_SPECS = (
    "topk:k=3", "threshold:threshold=0.4", "factor:factor=1.5", "schedule:steps=11", "timestep:steps=11",
    "certainty:sigma=3,k=2", "entropy_bound:gamma=1", "pc:k=2,frequencies=FILE", "hierarchy:low_threshold=0.2",
    "klass:threshold=0.3,kl_threshold=1,history=2", "klass:threshold=0.3,kl_threshold=1,scope=block",
    "credit:threshold=0.4", "slowfast:threshold=0.4,low_threshold=0.6,slow_steps=2",
    "edit:threshold=0.4,edit_threshold=0.5,post_steps=3", "saber:n=2", "wino:threshold=0.4,threshold_back=0.5",
)  # fmt: skip
GEN, BLOCK, LENGTHS = 22, 8, [5, 19, 2]
FILES: dict[str, str] = {}


@pytest.fixture(scope="module", autouse=True)
def _frequencies(tmp_path_factory):
    """A file for ``pc``: every id of the toys' vocabulary, some more often than others."""
    path = tmp_path_factory.mktemp("frequencies") / "toy.json"
    path.write_text(json.dumps({"num_token": 1770, "p_baseline_dict": {str(i): i + 1 for i in range(59)}}))
    FILES["FILE"] = str(path)


def decoder_of(spec):
    return parse_decoder(spec.replace("FILE", FILES["FILE"]))


@functools.cache
def engine(family):
    return toy_engine(family, seed=1)


def test_the_matrix_misses_no_method():
    assert {spec.partition(":")[0] for spec in CACHE_SPECS} == set(CACHES)
    assert {spec.partition(":")[0] for spec in DECODER_SPECS} == set(DECODERS)


def rows_of(spec, family, prompt, block, step, nfe) -> tuple[int, int]:
    """Fewest and most rows that a cache may compute in a pass; equal where its policy leaves no choice."""
    cache, whole, shift = parse_cache(spec), prompt + GEN, family == "dream"
    start, end = prompt + block * BLOCK, prompt + min((block + 1) * BLOCK, GEN)
    if isinstance(cache, Blockwise):
        reach = whole if cache.suffix_window is None else min(whole, end + cache.suffix_window)
        inside = max(start - shift, 0)
        due = block % cache.prompt_every == 0
        if step:
            exact = (reach if isinstance(cache, PrefixCache) else end) - inside
        elif isinstance(cache, SlidingCache):
            recent = [p for p in range(prompt, start) if start - p <= (cache.recent_blocks or 0) * BLOCK]
            exact = (prompt if due else 0) + len({*recent, *range(inside, reach)} - set(range(prompt if due else 0)))
        else:
            exact = reach - (0 if due else prompt)
        return exact, exact
    if isinstance(cache, DLLMCache):
        few = (GEN if nfe % cache.kr == 0 else int(cache.rou * GEN)) + (prompt if nfe % cache.kp == 0 else 0)
        mean = -((whole + 2 * few) // -3)
        return mean, mean
    if (isinstance(cache, DKVCache) and step % cache.refresh) or (isinstance(cache, D2Cache) and nfe):
        return 1, whole
    return whole, whole


def run(family, cache, spec) -> list[Completion]:
    """Generate, holding every pass to what is promised for all methods."""
    prompts, decoder = prompts_of(LENGTHS, seed=4), decoder_of(spec)
    generation = engine(family).start(prompts, gen_length=GEN, block_length=BLOCK, cache=cache, decoder=decoder)
    revises, total = decoder.revises, range(len(prompts))
    canvas = [dict[int, int]() for _ in total]
    last, step_of = [-1 for _ in total], [0 for _ in total]
    for event in generation:
        for row in event.rows:
            now, before = canvas[row.index], len(canvas[row.index])
            assert MASK not in row.tokens
            step = 0 if row.block != last[row.index] else step_of[row.index]
            step_of[row.index], last[row.index] = step + 1, row.block
            shadows = min(BLOCK, GEN - row.block * BLOCK) if decoder.verifies and step else 0
            low, high = rows_of(cache, family, len(prompts[row.index]), row.block, step, row.nfe - 1)
            assert low <= row.rows_computed - shadows <= high
            assert all(at // BLOCK == row.block for at in (*row.positions, *row.remasked))
            assert revises or not (set(row.positions) & set(now) or row.remasked)
            assert not set(row.positions) & set(row.remasked)
            now |= dict(zip(row.positions, row.tokens, strict=True))
            for at in row.remasked:
                del now[at]
            assert len(now) > before or spec.startswith(("timestep", "wino", "edit"))
    for completion in generation.completions:
        slots = canvas[completion.index]
        assert MASK not in completion.canvas
        assert completion.canvas == tuple(slots.get(at, EOS) for at in range(GEN))
        assert set(range(len(completion.tokens))) <= set(slots)  # nothing left of the end was filled in
        assert completion.nfe <= 3 * GEN
    return generation.completions


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", CACHE_SPECS)
@pytest.mark.parametrize("decoder", DECODER_SPECS)
def test_every_pair_alone_and_in_a_batch(family, cache, decoder):
    together = run(family, cache, decoder)
    for index, completion in enumerate(together):
        prompts = prompts_of(LENGTHS, seed=4)
        (alone,) = engine(family).generate(
            [prompts[index]], gen_length=GEN, block_length=BLOCK, cache=cache, decoder=decoder_of(decoder)
        )
        assert alone.canvas == completion.canvas
        assert (alone.nfe, alone.rows_computed) == (completion.nfe, completion.rows_computed)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", ["dkv:refresh=9", "d2cache:current_k=2,rollout_p=0.05,inflate_w=0"])
def test_every_pass_commits_without_a_prompt(family, cache):
    """Dream's slot 0 has no row before it; whatever else is chosen, some row must predict an open slot.

    (All slots of such a canvas are alike, so that rounding decides their order: no row is compared here.)
    """
    for seed in (8, 30, 42):
        model = toy_engine(family, layers=2, seed=seed)
        options = {"gen_length": 12, "block_length": 12, "temperature": 1.0, "stop_at_eos": False, "cache": cache}
        for event in model.stream([[]], decoder="topk:k=1", **options):
            assert len(event.rows[0].positions) == 1


def same(family, left, right, layers=3, nfe=True, **options):
    """Two pairs give the same canvases (and as many passes)."""
    model, prompts = toy_engine(family, layers=layers, seed=2), prompts_of(LENGTHS, seed=5)
    given = {"gen_length": GEN, "block_length": BLOCK, "stop_at_eos": False, **options}
    one, two = (model.generate(prompts, cache=c, decoder=d, **given) for c, d in (left, right))
    assert [c.canvas for c in one] == [c.canvas for c in two]
    assert not nfe or [c.nfe for c in one] == [c.nfe for c in two]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("decoder", ["topk:k=1", "threshold:threshold=0.4", "edit:threshold=0.4", "saber"])
@pytest.mark.parametrize(
    "cache", [c for c in CACHE_SPECS if "suffix_window" not in c and not c.startswith(("none", "d2cache"))]
)
def test_on_one_layer_every_cache_is_exact(family, decoder, cache):
    """Keys and values depend on a row's own token alone there: of an unchanged row none is stale."""
    if cache.startswith("dkv") and decoder in ("edit:threshold=0.4", "saber"):
        pytest.skip("dkv does not predict committed slots, so that revisions differ")
    same(family, (cache, decoder), ("none", decoder), layers=1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("decoder", ["topk:k=1", "threshold:threshold=0.4", "wino:threshold=0.4"])
@pytest.mark.parametrize(
    "cache",
    ["dllm:kp=1,kr=1", f"d2cache:current_k={GEN},rollout_p=1", "dkv:refresh=1", "dllm:kp=1,kr=4,rou=1"],
)
def test_a_cache_that_refreshes_everything_is_none(family, decoder, cache):
    same(family, (cache, decoder), ("none", decoder))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("left", "right"),
    [
        (("dual:prompt_every=1,suffix_window=99", "threshold:threshold=0.4"), ("dual", "threshold:threshold=0.4")),
        (("prefix:suffix_window=99", "topk:k=2"), ("prefix", "topk:k=2")),
        (("sliding:prompt_every=1,recent_blocks=none,suffix_window=none", "topk:k=2"), ("dual", "topk:k=2")),
        (("sliding:recent_blocks=9,suffix_window=5", "topk:k=2"), ("dual:prompt_every=8,suffix_window=5", "topk:k=2")),
        (("dual", "edit:threshold=0.4,edit_threshold=1"), ("dual", "threshold:threshold=0.4")),
        (("none", "wino:threshold=2,threshold_back=0"), ("none", "topk:k=1")),
        (("dual", "wino:threshold=0,threshold_back=0"), ("dual", "topk:k=5")),  # 70 % of 8 masks, then 5 at least
        (("dllm:kp=1,kr=3,rou=0", "topk:k=1"), ("dllm:kp=1,kr=3,rou=0.04", "topk:k=1")),  # 4 % of 22 rows is none
    ],
)
def test_equal_methods(family, left, right):
    same(family, left, right)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cfg_scale": 1.0, "cache": "dllm"}, "cfg_scale=1.0 works with cache none alone, not with dllm"),
        ({"cfg_scale": 1.0, "cache": "none", "decoder": "wino"}, "cfg_scale=1.0 does not work with wino"),
        ({"cache": "dkv:refresh=0"}, "refresh=0 must be 1 or more"),
        ({"cache": f"dllm:kp={10**20}"}, f"kp={10**20} must be at most 2147483647"),
        ({"cache": f"dual:suffix_window={2**63 - 1}"}, f"suffix_window={2**63 - 1} must be at most 2147483647"),
        ({"cache": "dllm:rou=2"}, "rou=2.0 must be from 0 to 1"),
        ({"cache": "d2cache:current_k=0"}, "current_k=0 must be 1 or more"),
        ({"cache": "d2cache:sigma=0"}, "sigma=0.0 must be above 0"),
        ({"cache": "sliding:recent_blocks=-1"}, "recent_blocks=-1 must be 0 or more"),
        ({"cache": "dual:suffix_window=-1"}, "suffix_window=-1 must be 0 or more, or none"),
        ({"decoder": "wino:threshold=nan"}, "threshold=nan must be 0 or more"),
        ({"decoder": "saber:n=0"}, "n=0 must be from 1 to 1048576"),
    ],
)
def test_what_means_nothing_is_refused_in_one_sentence(options, message):
    with pytest.raises(OptionError) as refused:
        engine("llada").start([[1]], **options)
    assert message in str(refused.value)
    assert str(refused.value).count(". ") == 0


def test_specs_of_the_matrix_parse():
    for spec in CACHE_SPECS:
        parse_cache(spec)
    for spec in DECODER_SPECS:
        decoder_of(spec)
