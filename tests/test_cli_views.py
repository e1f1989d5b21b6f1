"""What the command line draws of a generation: trace, comparison and canvas."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from typer.testing import CliRunner

import fastdllm
from fastdllm.cli import one
from fastdllm.cli.app import app
from fastdllm.cli.canvas_view import END, OPEN, canvas_text, legend, pieces, shade
from fastdllm.cli.console import printable
from fastdllm.completion import Draft
from helpers import QUICK, lines_of, refused, run


def test_a_trace_folds_back_to_the_canvas(model, tmp_path):
    trace = tmp_path / "t.jsonl"
    assert run("generate", "Hello", "--model", model, "--trace", trace, *QUICK).exit_code == 0
    header, *events = lines_of(trace)
    engine = fastdllm.load(model)
    (expected,) = engine.generate("Hello", gen_length=12, block_length=6, decoder="topk:k=2")
    canvas = [header["mask_id"]] * header["settings"]["gen_length"]
    for event in events:
        (row,) = event["rows"]
        for at, token in zip(row["positions"], row["tokens"], strict=True):
            canvas[at] = token
    assert tuple(header["pad_id"] if t == header["mask_id"] else t for t in canvas) == expected.canvas
    assert header["prompt_tokens"] == engine.encode("Hello")[0]
    assert len(events) == expected.nfe
    assert events[-1]["rows"][0]["finish_reason"] == expected.finish_reason


def test_a_failed_trace_leaves_nothing(model, tmp_path, monkeypatch):
    trace = tmp_path / "t.jsonl"
    trace.write_text("an older trace")
    monkeypatch.setattr("fastdllm.replay.recording.asdict", lambda _: 1 / 0)
    command = ["generate", "x", "--model", model, "--trace", str(trace), *QUICK]
    with pytest.raises(ZeroDivisionError):
        CliRunner().invoke(app, command, catch_exceptions=False)
    assert [p.name for p in tmp_path.iterdir()] == ["t.jsonl"]
    assert trace.read_text() == "an older trace"
    assert "No such file" in refused("generate", "x", "--model", model, "--trace", tmp_path / "no" / "t", *QUICK)


def test_compare_shows_both(model, tmp_path):
    trace = tmp_path / "t.jsonl"
    result = run("generate", "Hello", "--compare", "--model", model, "--trace", trace, "--raw", *QUICK)
    assert result.exit_code == 0
    engine, shape = fastdllm.load(model), {"gen_length": 12, "block_length": 6, "chat": False}
    for options in ({"cache": "none", "decoder": "topk:k=1"}, {"decoder": "topk:k=2"}):
        (expected,) = engine.generate("Hello", **shape, **options)
        assert printable(expected.text.strip())[:8] in result.stdout
        assert f" {expected.nfe} " in result.stdout
    words = " ".join(result.stdout.split())
    for part in ("plain accelerated", "rows/token", "x the tokens per second", "the answers ", "float32 on cpu"):
        assert part in words
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert lines_of(trace)[0]["settings"]["cache"] == "dual:prompt_every=1,suffix_window=None"


def test_compare_knows_identical_answers(model):
    same = ("--cache", "none", "--decoder", "topk:k=1", "--gen-length", "8")
    assert "the answers are identical" in run("generate", "Hello", "--compare", "--model", model, *same).stdout


def test_watch_without_a_terminal_prints_the_canvas_once(model):
    result = run("generate", "Hello", "--watch", "--model", model, "--no-stop-at-eos", *QUICK)
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert result.stdout.count("pass 1 2 3 4 5 6") == 1
    assert OPEN not in result.stdout


def test_watch_on_a_terminal_draws_every_pass(model, monkeypatch):
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=80, color_system="truecolor", legacy_windows=False)
    monkeypatch.setattr(one, "stdout", lambda: terminal)
    monkeypatch.setattr(one, "FRAME_SECONDS", 0)
    assert run("generate", "Hello", "--watch", "--model", model, "--no-stop-at-eos", *QUICK).exit_code == 0
    drawn = screen.getvalue()
    for nfe in range(1, 7):
        assert f"pass {nfe} · block {1 + (nfe > 3)} of 2 · {2 * nfe} of 12 slots committed" in drawn
    assert OPEN in drawn
    assert "\x1b[38;2;" in drawn


def test_a_character_of_several_tokens_stands_at_its_last(model):
    engine = fastdllm.load(model)
    text = engine.text
    assert text is not None
    ids, mask, end = text.encode("aé\x1b"), engine.config.mask_id, engine.config.eos_ids[0]
    assert pieces(engine, [*ids, mask, end]) == ["a", "", "é", "\ufffd", OPEN, END]
    assert pieces(engine, [ids[1], mask, ids[2]]) == ["\ufffd", OPEN, "\ufffd"]


def test_colours_run_from_the_first_pass_to_the_last(model):
    for passes in (1, 2, 5, 8, 9, 20, 128):
        shades = [shade(nfe, passes) for nfe in range(1, passes + 1)]
        assert len(set(shades)) == min(8, passes)
        assert shades == sorted(shades, key=[shade(1, 1), *(shade(i, 8) for i in range(2, 9))].index)
        assert len(legend(passes).plain) <= 80
    engine = fastdllm.load(model)
    draft = Draft(0, 1, 4, engine.config.mask_id, engine.config.pad_id)
    assert canvas_text(engine, draft).plain == OPEN * 4
