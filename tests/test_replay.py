"""Recordings and the page that plays them: what they hold, what they refuse, and what no text can do to the page."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import fastdllm
from fastdllm.caches import CACHES
from fastdllm.errors import OptionError
from fastdllm.pieces import END
from fastdllm.replay.page import content, page, safe_json
from fastdllm.replay.recording import Recording, RowPass, read_trace, record
from helpers import QUICK, lines_of, refused, run
from toys import FAMILIES, prompts_of, toy_engine

EVIL = "</script><img src=x onerror=boom()><!--\u2028'\"&amp;"
SHAPE = {"gen_length": 12, "block_length": 6}


class Evil:
    """A tokenizer every token of which tries to get out of where it stands."""

    has_chat_template = False

    def decode(self, ids: Sequence[int]) -> str:
        return EVIL

    def token(self, index: int) -> str:
        return EVIL


def rows_of(one: RowPass) -> set[int]:
    """Canvas positions that a pass computed."""
    assert one.computed is not None
    return {at for first, last in one.computed for at in range(first, last)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", CACHES)
def test_rows_computed_are_those_counted(cache, family):
    engine, prompts = toy_engine(family), prompts_of([5, 9, 7])
    recorded = record(engine, prompts, {**SHAPE, "cache": cache, "decoder": "topk:k=2"}, chat=False)
    plain = engine.generate(prompts, **SHAPE, cache=cache, decoder="topk:k=2")
    for prompt, passes, answer in zip(prompts, recorded.passes, plain, strict=True):
        assert len(passes) == answer.nfe
        assert rows_of(passes[0]) == set(range(len(prompt) + 12))
        assert sum(one.event.rows_computed for one in passes) == answer.rows_computed
        for one in passes:
            assert {at + len(prompt) - engine.config.shift for at in one.event.positions} <= rows_of(one) or (
                cache == "dllm"
            )
            counted = one.event.rows_computed
            assert len(rows_of(one)) == counted if cache != "dllm" else len(rows_of(one)) <= counted


def test_rows_of_a_dual_cache_are_the_block():
    engine, (prompt,) = toy_engine(), prompts_of([5])
    recorded = record(engine, [prompt], {**SHAPE, "cache": "dual", "decoder": "topk:k=3"}, chat=False)
    spans = [one.computed for one in recorded.passes[0]]
    assert spans == [((0, 17),), ((5, 11),), ((0, 17),), ((11, 17),)]


def test_a_trace_is_the_recording(model, tmp_path):
    engine = fastdllm.load(model)
    trace = tmp_path / "t.jsonl"
    assert run("generate", "Hello", "--model", model, "--trace", trace, *QUICK).exit_code == 0
    recorded = record(engine, engine.encode(["Hello"]), {**SHAPE, "decoder": "topk:k=2"}, chat=True)
    read = read_trace(trace)
    assert read.passes == recorded.passes
    assert [*map(list, read.prompts)] == [*map(list, recorded.prompts)]
    assert {**read.settings, "model": ""} == {**recorded.settings, "model": ""}
    assert read.settings["cache"] == "dual:prompt_every=1,suffix_window=None"


def test_a_trace_without_rows_still_plays(model, tmp_path):
    trace = tmp_path / "t.jsonl"
    assert run("generate", "Hello", "--model", model, "--trace", trace, *QUICK).exit_code == 0
    lines = lines_of(trace)
    for line in lines[1:]:
        del line["rows"][0]["computed"]
    trace.write_text("\n".join(map(json.dumps, lines)))
    assert all(one.computed is None for one in read_trace(trace).passes[0])
    assert run("report", "replay", "--trace", trace, "--out", tmp_path / "r.html").exit_code == 0


def test_the_page_has_every_pass(model):
    engine = fastdllm.load(model)
    prompts = engine.encode(["Hello", "A second, longer prompt"])
    decoder = "saber"
    recorded = record(engine, prompts, {**SHAPE, "decoder": decoder}, chat=True)
    held = content(recorded, engine.text)
    answers = engine.generate(prompts, **SHAPE, decoder=decoder)
    assert any(one["opened"] for prompt in held["prompts"] for one in prompt["passes"]), "nothing is opened again"
    for one, prompt, passes, answer in zip(held["prompts"], prompts, recorded.passes, answers, strict=True):
        assert "".join(one["tokens"]).replace("<|", "").count("Hello") == ("Hello" in engine.text.decode(prompt))
        assert [len(row["written"]) for row in one["passes"]] == [len(p.event.positions) for p in passes]
        canvas, texts = [engine.config.mask_id] * 12, [""] * 12
        for row in one["passes"]:
            for at, token, _ in row["written"]:
                canvas[at] = token
            for at in row["opened"]:
                canvas[at] = engine.config.mask_id
            for at, text in row["text"]:
                texts[at] = text
        filled = [engine.config.pad_id if token == engine.config.mask_id else token for token in canvas]
        assert tuple(filled) == answer.canvas
        assert "".join(texts[: len(answer.tokens)]) == answer.text
        assert one["passes"][-1]["end"] == answer.finish_reason
        assert one["passes"][-1]["answer"] == len(answer.tokens)


def test_a_character_of_several_tokens_appears_with_its_last(model):
    engine = fastdllm.load(model)
    first, second = engine.text.encode("é")
    recorded = record(engine, engine.encode(["x"]), {"gen_length": 2, "block_length": 2}, chat=True)
    event = recorded.passes[0][0].event
    changed = [
        RowPass(event=type(event)(**{**event.__dict__, **what}), computed=None)
        for what in (
            {"positions": (1,), "tokens": (second,), "confidences": (0.5,)},
            {"positions": (0,), "tokens": (first,), "confidences": (0.5,)},
        )
    ]
    told = content(Recording(**{**recorded.__dict__, "passes": [changed]}), engine.text)["prompts"][0]["passes"]
    assert told[0]["text"] == [[1, "�"]]
    assert told[1]["text"] == [[1, "é"]]


class Parts(HTMLParser):
    """The elements of a page and its raw texts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def evil_page() -> str:
    engine = toy_engine()
    engine.name = f"<b>{EVIL}"
    recorded = record(engine, prompts_of([5]), {**SHAPE, "decoder": "topk:k=4"}, chat=False)
    return page(recorded, Evil())  # type: ignore[arg-type]


def test_what_the_model_wrote_cannot_get_out():
    html = evil_page()
    assert EVIL not in html
    parts = Parts()
    parts.feed(html)
    names = [name for name, _ in parts.tags]
    assert (names.count("script"), names.count("img"), names.count("b")) == (2, 0, 0)
    (held,) = [text for text in parts.texts if text.startswith('{"model"')]
    assert not re.search("[<>&\u2028]", held)
    prompt = json.loads(held)["prompts"][0]
    assert prompt["tokens"][0] == EVIL
    assert {text for one in prompt["passes"] for _, text in one["text"]} - {END} == {EVIL}


def test_nothing_in_the_page_comes_from_elsewhere():
    html = evil_page()
    parts = Parts()
    parts.feed(html)
    for name, attributes in parts.tags:
        for where in ("src", "href", "action"):
            assert attributes.get(where) in (None, "data:,"), (name, attributes)
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp|innerHTML|insertAdjacent", html)
    (policy,) = [a["content"] for _, a in parts.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy


def test_safe_json():
    value = {"a": "</SCRIPT>", "b": ["<!--", "]]>", "&lt;", "\u2028\u2029é"], "c": None}
    assert json.loads(safe_json(value)) == value
    assert safe_json(value).isascii()
    with pytest.raises(ValueError, match="JSON"):
        safe_json({"a": float("nan")})


def broken(lines: list[Any], what: str) -> str:
    """A trace with one thing wrong."""
    row = lines[1]["rows"][0]
    wrong: dict[str, Any] = {
        "positions": {"positions": [99]}, "tokens": {"tokens": []}, "confidence": {"confidences": ["high"]},
        "many": {"index": 1}, "remasked": {"remasked": [-1]}, "computed": {"computed": [[0, 9999]]},
        "reason": {"finish_reason": "<b>"}, "before": {"index": -1}, "id": {"tokens": [2**40] * len(row["tokens"])},
    }  # fmt: skip
    if what == "length":
        lines[0]["settings"]["block_length"] = 0
    elif what in wrong:
        row.update(wrong[what])
    else:
        del row[what]
    return "\n".join(map(json.dumps, lines))


@pytest.mark.parametrize(
    "what",
    [
        "positions",
        "tokens",
        "confidence",
        "many",
        "before",
        "remasked",
        "computed",
        "reason",
        "id",
        "nfe",
        "block",
        "length",
    ],
)
def test_wrong_traces_are_refused(what, model, tmp_path):
    trace = tmp_path / "t.jsonl"
    assert run("generate", "Hello", "--model", model, "--trace", trace, *QUICK).exit_code == 0
    trace.write_text(broken(lines_of(trace), what))
    with pytest.raises(OptionError, match=r"t.jsonl is a trace with a part missing or wrong"):
        read_trace(trace)


def test_the_command_refuses(model, tmp_path):
    trace, page_file = tmp_path / "t.jsonl", tmp_path / "r.html"
    command = ("report", "replay", "--trace", trace, "--out", page_file)
    for text, complaint in (
        ("", "is no trace"),
        ("[1]", "is no trace"),
        ('{"fastdllm_trace": 9}', "format 9; this version reads format 1"),
        ('{"fastdllm_trace": 1}\n{', "line 2 is not JSON"),
        ('{"fastdllm_trace": 1}', "missing or wrong"),
    ):
        trace.write_text(text)
        assert complaint in refused(*command)
    assert "--trace and --cache cannot be given together" in refused(*command, "--cache", "none")
    assert "--trace and PROMPT cannot be given together" in refused(*command, "Hello")
    assert "No such file" in refused("report", "replay", "--trace", tmp_path / "no.jsonl", "--out", page_file)
    assert run("generate", "Hello", "--model", model, "--trace", trace, *QUICK).exit_code == 0
    assert "--model says where it is" in refused(*command, "--model", tmp_path / "nowhere")
    assert "cache 'dula' is not one of" in refused("report", "replay", "x", "--cache", "dula", "--out", page_file)
    assert not page_file.exists()


def test_the_command_plays_prompts_and_traces(model, tmp_path):
    trace, first, second = tmp_path / "t.jsonl", tmp_path / "1.html", tmp_path / "2.html"
    lengths = ("--gen-length", "12", "--block-length", "6", "--decoder", "topk:k=2")
    assert run("generate", "Hello", "--model", model, "--trace", trace, *QUICK).exit_code == 0
    assert run("report", "replay", "--trace", trace, "--out", first).exit_code == 0
    result = run("report", "replay", "Hello", "--model", model, "--out", second, *lengths)
    assert result.exit_code == 0, result.output
    assert "plays 1 prompt; open it" in result.stderr
    assert first.read_text() == second.read_text()
    result = run("report", "replay", "Hello", "And you", "--model", model, "--out", second, *lengths)
    assert "plays 2 prompts" in result.stderr


def test_without_a_tokenizer_slots_show_ids(bare, tmp_path):
    engine = fastdllm.load(bare)
    recorded = record(engine, [[1, 2, 3]], {**SHAPE, "decoder": "topk:k=2"}, chat=False)
    held = content(recorded, None)["prompts"][0]
    assert (held["tokens"], held["name"]) == (["1 ", "2 ", "3 "], "3 tokens")
    assert "recording" in page(recorded, None)
    assert not Path("replay.html").exists()
