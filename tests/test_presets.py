"""Presets: what a file may hold, what wins over what, and that every way of giving one comes to the same answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fastdllm
from fastdllm.arena.methods import parse_method
from fastdllm.config import GenerationConfig, GenerationOptions
from fastdllm.errors import OptionError
from fastdllm.presets import BUILT_IN, OPTIONS, Preset, load_preset, options_of, read_preset, write_preset
from fastdllm.record import fingerprint
from helpers import lines_of, refused, run

CONFIG = GenerationConfig(
    gen_length=12, block_length=6, cache="prefix:prompt_every=2", decoder="topk:k=3", temperature=0.5, top_p=0.9, seed=3
)


@pytest.fixture
def preset(tmp_path) -> Path:
    path = tmp_path / "mine.json"
    write_preset(Preset(name="mine", about="For tests.", options=options_of(CONFIG), tuned={"model": "m"}), path)
    return path


def held(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps({"fastdllm_preset": 1, "name": "x", "about": "", "options": {}, **changes}))
    return path


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_presets_are_options_that_can_be_used(name):
    config = GenerationConfig(**load_preset(name))
    assert options_of(config).items() >= options_of(GenerationConfig(**BUILT_IN[name].options)).items()
    assert "arXiv" in BUILT_IN[name].about
    assert set(BUILT_IN[name].options) <= set(OPTIONS)


def test_a_preset_may_hold_every_option():
    assert set(OPTIONS) == set(GenerationOptions.__annotations__) == set(options_of(CONFIG))


def test_a_preset_is_read_as_it_was_written(preset):
    found = read_preset(preset)
    assert (found.name, found.about, found.tuned) == ("mine", "For tests.", {"model": "m"})
    again = GenerationConfig(**found.options)
    assert (again.policy, again.rule) == (CONFIG.policy, CONFIG.rule)
    assert options_of(again) == options_of(CONFIG) == load_preset(str(preset))


def test_what_is_loaded_can_be_changed_without_changing_the_preset():
    load_preset("plain")["gen_length"] = 7
    assert "gen_length" not in load_preset("plain")


def test_a_preset_goes_into_the_engine_as_keywords(model, preset):
    engine = fastdllm.load(model)
    (by_preset,) = engine.generate("Hello", **fastdllm.load_preset(preset))
    (by_hand,) = engine.generate(
        "Hello", gen_length=12, block_length=6, cache="prefix:prompt_every=2", decoder="topk:k=3", temperature=0.5,
        top_p=0.9, seed=3,
    )  # fmt: skip
    assert by_preset.canvas == by_hand.canvas


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"fastdllm_preset": 2}, "is of version 2; this fastdllm reads version 1"),
        ({"extra": 1}, "has 'extra', which is not one of name, about, options, tuned"),
        ({"options": {"steps": 8}}, "has the option 'steps', which is not one of gen_length, "),
        ({"options": {"gen_length": "64"}}, "has '64' for the option 'gen_length', not int"),
        ({"options": {"gen_length": True}}, "has True for the option 'gen_length', not int"),
        ({"options": {"top_p": []}}, "has [] for the option 'top_p', not int or float or null"),
        ({"options": {"stop_at_eos": 1}}, "has 1 for the option 'stop_at_eos', not bool"),
        ({"options": {"gen_length": 0}}, "gen_length=0 must be 1 or more"),
        ({"options": {"decoder": "topkk"}}, "decoder 'topkk' is not one of"),
        ({"options": {"cache": "dual", "cfg_scale": 1.0}}, "cfg_scale=1.0 works with cache none alone"),
        ({"options": []}, "has [] for 'options', not an object"),
        ({"name": 3}, "has 3 for 'name', not a text"),
    ],
)
def test_what_is_no_preset_is_refused(tmp_path, changes, complaint):
    path = held(tmp_path / "bad.json", **changes)
    with pytest.raises(OptionError) as caught:
        load_preset(path)
    assert complaint in str(caught.value)
    assert "bad.json" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "is not a preset: a preset is an object with 'fastdllm_preset': 1"),
        ('{"options": {}}', "is not a preset"),
        ('{"fastdllm_preset": 1}', "has no 'options'"),
    ],
)
def test_files_that_hold_something_else_are_refused(tmp_path, content, complaint):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(OptionError, match=complaint.replace("(", "\\(")):
        load_preset(path)


def test_a_name_that_is_no_preset_is_refused(tmp_path):
    assert "preset 'fastest' is neither a file nor one of plain, fast-dllm" in refused(
        "generate", "x", "--preset", "fastest"
    )
    assert "is neither a file" in refused("generate", "x", "--preset", tmp_path)


def summary(*args: str | Path, stdin: str | None = None) -> str:
    result = run(*args, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout + result.stderr


def test_flags_win_over_a_preset_and_a_preset_over_defaults(model, preset):
    command = ("generate", "Hello", "--raw", "--model", model, "--preset", preset)
    assert "cache prefix:prompt_every=2,suffix_window=None · topk:k=3" in summary(*command)
    assert "cache dual · topk:k=3" in summary(*command, "--cache", "dual")
    default = GenerationConfig.decoder
    assert f"suffix_window=None · {default}" in summary(*command, "--decoder", default)
    as_flags = (
        "--gen-length", "12", "--block-length", "6", "--cache", "prefix:prompt_every=2", "--decoder", "topk:k=3",
        "--temperature", "0.5", "--top-p", "0.9", "--seed", "3",
    )  # fmt: skip
    by_flags = run("generate", "Hello", "--raw", "--model", model, *as_flags)
    assert run(*command).stdout == by_flags.stdout
    assert run(*command, "--seed", "4").stdout != by_flags.stdout


def test_many_prompts_and_chat_take_a_preset(model, preset, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"id": 1, "prompt": "Hello"}\n')
    out = tmp_path / "out.jsonl"
    summary("generate", "--file", prompts, "--out", out, "--raw", "--model", model, "--preset", preset)
    by_one = run("generate", "Hello", "--raw", "--model", model, "--preset", preset).stdout
    assert lines_of(out)[0]["text"].strip() == by_one.removesuffix("\n").strip()
    said = summary("chat", "--model", model, "--preset", preset, stdin="Hello\n")
    assert "cache prefix:prompt_every=2,suffix_window=None · topk:k=3" in said


def test_a_preset_that_was_tuned_on_other_weights_says_so_in_a_line(model, tmp_path):
    options: GenerationOptions = {"gen_length": 12, "block_length": 6}
    for weights, warned in ((fingerprint(Path(model)), False), ("0123", True)):
        path = tmp_path / f"{weights}.json"
        tuned = {"model": "other/model", "weights": weights}
        write_preset(Preset(name="tuned", about="", options=options, tuned=tuned), path)
        lines = run("generate", "Hello", "--raw", "--model", model, "--preset", path).stderr.splitlines()
        warnings = [line for line in lines if line.startswith("warning: preset tuned was tuned for other/model")]
        assert len(warnings) == warned


def test_an_arena_takes_presets_beside_pairs(preset):
    shared: Any = {"gen_length": 64, "block_length": 8, "seed": 0}
    named = parse_method("fast-dllm", shared)
    assert named.key == parse_method("dual/threshold:threshold=0.9@block_length=32", shared).key
    assert named.config.block_length == 32
    assert parse_method("fast-dllm@block_length=8", shared).key == parse_method("dual/threshold", shared).key
    held = load_preset(preset)
    assert parse_method(str(preset), shared).config == GenerationConfig(**{**shared, **held})


def test_info_counts_what_a_preset_needs(model):
    assert "cache none, decoder topk:k=1" in run("info", model, "--preset", "plain").stdout
