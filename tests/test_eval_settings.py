"""From Hydra overrides to strategies, and every refusal in one sentence."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from fastdllm.caches import CACHES, D2Cache, DLLMCache, DualCache, PrefixCache
from fastdllm.config import describe, parse_cache, parse_decoder
from fastdllm.decoders import DECODERS, WINO, Certainty, EntropyBound, Factor, Klass, PositionAware, Threshold, TopK
from fastdllm.errors import OptionError
from fastdllm.evals import groups
from fastdllm.evals.main import folder_name, main, usage
from fastdllm.evals.settings import read_settings
from fastdllm.presets import Preset, write_preset


@pytest.mark.parametrize(
    ("overrides", "cache", "decoder"),
    [
        ("", parse_cache("none"), TopK()),
        ("cache=prefix generation=vanilla generation.block_length=32", PrefixCache(), TopK()),
        ("cache=prefix cache.use_dual=true cache.suffix_window=64", DualCache(suffix_window=64), TopK()),
        ("cache=dllm cache.rou=0.25 cache.kp=50 cache.kr=1", DLLMCache(kp=50, kr=1, rou=0.25), TopK()),
        (
            "attn_implementation=eager cache=d2cache cache.rollout_p=0.1 cache.current_k=32 cache.sigma=10 "
            "cache.inflate_w=4 generation.sigma=0",
            D2Cache(),
            TopK(),
        ),
        ("generation.sigma=5 generation.num_transfer_tokens=2", parse_cache("none"), Certainty(sigma=5.0, k=2)),
        ("generation.sigma=5 generation.threshold=0.8", parse_cache("none"), Certainty(sigma=5.0, threshold=0.8)),
        (
            "generation.threshold=0.95 generation.alg=entropy",
            parse_cache("none"),
            Threshold(threshold=0.95, alg="entropy"),
        ),
        ("generation.factor=1.5", parse_cache("none"), Factor(factor=1.5)),
        ("generation.num_transfer_tokens=4", parse_cache("none"), TopK(k=4)),
        ("generation=klass generation.kl_threshold=0.02", parse_cache("none"), Klass(kl_threshold=0.02)),
        ("generation=eb_sampler generation.gamma=0.2", parse_cache("none"), EntropyBound(gamma=0.2)),
        ("generation=wino generation.threshold_back=0.8", parse_cache("none"), WINO(threshold_back=0.8)),
        ("generation=pc_sampler generation.frequencies=tiny", parse_cache("none"), PositionAware(frequencies="tiny")),
    ],
)
def test_options_become_strategies(overrides, cache, decoder):
    config = read_settings(overrides.split()).config
    assert config.policy == cache
    assert config.rule == decoder


def test_every_cache_and_decoder_has_a_group_with_its_own_fields_and_defaults():
    for name, kind in CACHES.items():
        assert read_settings([f"cache={name}"]).config.policy == kind()
    made = {decoder for decoder in groups.GENERATIONS.values() if decoder} | set(groups.VANILLA_DECODERS)
    assert made == set(DECODERS)
    for name, decoder in groups.GENERATIONS.items():
        if decoder is not None and decoder != "pc":  # which has no default file
            assert read_settings([f"generation={name}"]).config.rule == DECODERS[decoder]()
            assert not {f.name for f in fields(DECODERS[decoder])} & set(groups.SHARED)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ("cache=foo", "'cache=foo' names no cache: there are none, prefix, dual, sliding, dkv, dllm, d2cache."),
        ("model=gpt", "'model=gpt' names no model: there are tiny, llada-base,"),
        ("cache=dual cache.use_dual=true", "cache=dual has prompt_every, suffix_window."),
        ("cache.k=3", "'cache.k=3' names no option: cache=none has no options."),
        ("foo=1", "'foo=1' names no option: there are model, cache, generation, dataset, batch_size,"),
        ("generation=klass generation.gamma=1", "generation=klass has threshold, kl_threshold,"),
        ("+new=1", "'+new=1' is not KEY=VALUE"),
        ("batch_size", "'batch_size' is not KEY=VALUE"),
        ("batch_size=0", "batch_size=0 must be 1 or more."),
        ("batch_size=two", "batch_size='two' is not of type int."),
        ("unsafe=3", "unsafe=3 is not of type bool."),
        ("dataset.size=0", "dataset.size=0 must be 1 or more."),
        ("dataset.n_shot=-1", "dataset.n_shot=-1 must be 0 or more."),
        ("generation.gen_length=0.5", "generation.gen_length=0.5 is not of type int."),
        ("cache=d2cache cache.current_k=many", "d2cache:current_k='many' is not of type int."),
        ("cache=d2cache cache.rollout_p=2", "rollout_p=2.0 must be from 0 to 1."),
        ("generation.threshold=0.9 generation.factor=1", "generation.threshold=0.9 and generation.factor=1 contradict"),
        ("generation.sigma=3 generation.factor=1", "generation.sigma=3 and generation.factor=1 contradict"),
        ("generation.sigma=3 generation.alg=entropy", "generation.sigma=3 and generation.alg=entropy contradict"),
        ("generation.threshold=0.9 generation.num_transfer_tokens=2", "contradict each other; give one of them."),
        ("generation.cfg_scale=1 cache=dual", "cfg_scale=1 works with cache none alone"),
        ("attn_implementation=magic", "attn_implementation=magic is not one of eager, sdpa, flash_attention_2;"),
        ("preset=nowhere", "preset 'nowhere' is neither a file nor one of plain, fast-dllm"),
        ("cache=dual cache=prefix", "'cache=dual' and 'cache=prefix' contradict each other"),
        ("preset=fast-dllm generation.alg=entropy", "generation.alg= goes with generation=NAME"),
        ("generation.num_transfer_tokens=null", "generation.num_transfer_tokens=None is not of type int."),
        ("model.path=${nope}", "the overrides cannot be read"),
        ("threads=100000", "threads=100000 must be at most 1024."),
        ("seed=[", "the overrides cannot be read"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(overrides, sentence, capsys):
    with pytest.raises(OptionError) as refused:
        read_settings(overrides.split())
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)
    assert main(overrides.split()) == 2
    assert capsys.readouterr().err == f"error: {refused.value}\n"


def test_a_preset_gives_what_was_not_asked_for():
    plain = read_settings(["preset=fast-dllm"])
    assert describe(plain.config.policy).startswith("dual")
    assert plain.config.rule == Threshold(threshold=0.9)
    mixed = read_settings(["preset=fast-dllm", "cache=prefix", "generation.block_length=8"])
    assert mixed.config.policy == PrefixCache()
    assert mixed.config.rule == Threshold(threshold=0.9)
    assert mixed.config.block_length == 8
    own = ["preset=fast-dllm", "generation=vanilla", "generation.num_transfer_tokens=2"]
    assert read_settings(own).config.rule == TopK(k=2)


def test_a_presets_seed_is_the_seed_of_everything(tmp_path):
    path = tmp_path / "mine.json"
    write_preset(Preset(name="mine", about="", options={"seed": 7}), path)
    assert (read_settings([f"preset={path}"]).seed, read_settings([f"preset={path}", "seed=5"]).seed) == (7, 5)
    assert read_settings([f"preset={path}"]).config.seed == 7


def test_models_know_their_template():
    assert read_settings(["model=llada-inst"]).model["chat"] is True
    assert read_settings(["model=llada-base"]).model["chat"] is False
    own = read_settings(["model.path=some/where"]).model
    assert (own["name"], own["chat"]) == ("where", None)
    assert read_settings(["model=llada-base", "model.path=some/where"]).model["chat"] is False


def test_a_folder_is_named_after_what_answers_depend_on():
    base = read_settings(["dataset.name=gsm8k"])
    same = ("dataset.size=3", "attn_implementation=eager", "out=elsewhere", "unsafe=true")
    for override in same:
        assert folder_name(read_settings(["dataset.name=gsm8k", override])) == folder_name(base)
    other = ("dataset.n_shot=2", "seed=5", "generation.threshold=0.9", "cache=dual", "model.path=x", "batch_size=8")
    names = {folder_name(read_settings(["dataset.name=gsm8k", override])) for override in other}
    assert len(names | {folder_name(base)}) == len(other) + 1
    assert folder_name(replace(base, options={**base.options, "decoder": parse_decoder("topk:k=1")})) == folder_name(
        base
    )


def test_help_names_every_group(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert usage() in shown
    for name in (*groups.MODELS, *groups.GENERATIONS, *groups.TOP, *groups.CACHES):
        assert f"{name}" in shown
