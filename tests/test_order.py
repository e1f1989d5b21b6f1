"""Decoding order: what the events say, how it is counted, and a picture that takes any token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fastdllm
from fastdllm.events import RowEvent
from fastdllm.pieces import END
from fastdllm.studies.order import Order, OrderOptions, OrderPass, _pass, run
from fastdllm.studies.order_plot import draw, readable, shown_slots
from helpers import refused
from helpers import run as run_command
from states import Asked, asked, canvases, plain, with_texts
from toys import MASK, prompts_of, toy_engine

LENGTHS = {"gen_length": 12, "block_length": 6}


def ordered(**options: object) -> tuple[Order, list[RowEvent]]:
    """The order of an answer and the events of the same generation."""
    engine, (prompt,) = with_texts(toy_engine()), prompts_of([7])
    chosen = {**LENGTHS, "decoder": "topk:k=2", **options}
    rows = [event.rows[0] for event in engine.start([prompt], **chosen)]
    return run(engine, asked([prompt]), OrderOptions(**chosen)), rows


@pytest.mark.parametrize("decoder", ["topk:k=2", "threshold:threshold=0.5", "wino"])
def test_every_pass_is_what_its_event_says(decoder):
    result, rows = ordered(decoder=decoder)
    assert len(result.passes) == len(rows)
    for one, row in zip(result.passes, rows, strict=True):
        assert (one.block, one.tokens, one.remasked) == (row.block, row.tokens, row.remasked)
        assert one.committed == dict(zip(row.positions, row.confidences, strict=True))
        if decoder != "wino":
            assert one.committed.items() <= one.confidence.items()
    assert any(one.remasked for one in result.passes) == (decoder == "wino")


def test_confidences_are_those_of_the_open_slots_of_the_block():
    result, _ = ordered(cache="none")
    engine, (prompt,) = toy_engine(), prompts_of([7])
    seen = canvases(engine, prompt, cache="none", decoder="topk:k=2", **LENGTHS)
    for one, (canvas, row) in zip(result.passes, seen, strict=True):
        open_slots = [at for at in range(row.block * 6, row.block * 6 + 6) if canvas[7 + at] == MASK]
        assert list(one.confidence) == open_slots
        logits = engine.model.logits(plain(engine, canvas)[1])
        logits[:, MASK] = float("-inf")
        sure = torch.softmax(logits.float(), dim=-1).amax(-1)
        assert [*one.confidence.values()] == pytest.approx([float(sure[7 + at]) for at in open_slots], abs=1e-5)


def test_leftmost():
    def count(positions: tuple[int, ...], was_open: list[int]) -> int:
        row = RowEvent(
            index=0, nfe=1, block=0, rows_computed=1, positions=positions, tokens=positions,
            confidences=(1.0,) * len(positions),
        )  # fmt: skip
        return _pass(row, {}, was_open).leftmost

    assert count((0, 1), [0, 1, 2]) == 2
    assert count((2, 1), [0, 1, 2]) == 0
    assert count((2, 4), [2, 3, 4]) == 1
    assert count((0, 3), [3, 5]) == 1  # slot 0 was written again
    assert count((), [3, 5]) == 0


def test_the_table_counts_blocks():
    result, rows = ordered()
    held = json.loads(json.dumps(result.as_json()))
    assert [[c["slot"] for c in one["committed"]] for one in held["passes"]] == [list(row.positions) for row in rows]
    (table,) = result.tables
    assert [row[0] for row in table.rows] == ["0", "1", "all"]
    assert [row[1] for row in table.rows] == ["3", "3", "6"]
    sure = [c for row in rows for c in row.confidences]
    assert f"| all | 6 | 12 | 2.00 | {sum(sure) / 12:.3f} |" in result.markdown()


def test_from_left_to_right():
    """One slot a block: there is only one order."""
    result, _ = ordered(gen_length=4, block_length=1)
    assert [row[-1] for row in result.tables[0].rows] == ["100"] * 5


def test_an_answer_that_ends_early_shows_the_blocks_it_reached():
    engine = fastdllm.load("tiny")
    question = "Tom has 3 pens and buys 4. How many pens has Tom?"
    result = run(engine, [Asked(question)], OrderOptions(gen_length=96))
    assert shown_slots(result) < 96
    assert all(label == "" for label in result.labels[shown_slots(result) :])
    assert END in result.labels


def picture(labels: list[str], path: Path, passes: int = 2) -> None:
    _, (row, *_) = ordered()
    options = OrderOptions(gen_length=len(labels), block_length=4)
    one = OrderPass(
        block=(len(labels) - 1) // 4, confidence={0: 0.5, 1: 0.25}, committed={0: 0.5}, tokens=(1,), remasked=(1,),
        leftmost=1,
    )  # fmt: skip
    settings = {"model": "$model$", "gen_length": len(labels), "block_length": 4}
    result = Order(
        options=options, settings=settings, question="", prompt_tokens=row.tokens, labels=labels, passes=[one] * passes
    )
    draw(result, path)


def test_any_token_can_be_drawn(tmp_path):
    labels = ["$x_{", "\\frac", " $", "", "\n", "漢字", "\x00", "\u202e", "a" * 40, "   ", "�", "é"]
    picture(labels, tmp_path / "tokens.png")  # warnings are errors
    assert (tmp_path / "tokens.png").read_bytes().startswith(b"\x89PNG")
    picture([f"t{i}" for i in range(120)], tmp_path / "long.png", passes=40)


def test_readable():
    shown = [readable(piece) for piece in (" has", "  ", "\n", "漢", "a" * 40, END, "é")]
    assert shown == ["has", "␣␣", "⏎", "U+6F22", "a" * 11 + "…", "(end)", "é"]


def test_the_command(tmp_path):
    out = tmp_path / "out"
    command = ("report", "order", "--gen-length", "12", "--block-length", "6", "--decoder", "topk:k=3", "--out", out)
    assert run_command(*command, "--number", "2").exit_code == 0
    held = json.loads((out / "order.json").read_text())
    problems = (Path(fastdllm.__file__).parent / "checkpoints/tiny/problems.jsonl").read_text().splitlines()
    assert held["question"] == json.loads(problems[1])["question"]
    result = run_command(*command, "A & B")
    assert result.exit_code == 0, result.output
    held = json.loads((out / "order.json").read_text())
    assert (held["question"], held["problems"]) == ("A & B", None)
    assert "On a prompt of the command, model tiny" in (out / "order.md").read_text()
    assert "more than the" in refused(*command, "--number", "100000")
    assert "cannot be given together" in refused(*command, "x", "--problems", "p.jsonl")
