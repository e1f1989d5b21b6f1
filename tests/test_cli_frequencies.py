"""``fastdllm frequencies``: the file that the decoder ``pc`` reads."""

from __future__ import annotations

import json
from itertools import islice

import pytest

from fastdllm import frequencies
from fastdllm.models.source import EMBEDDED
from fastdllm.text import load_text
from helpers import QUICK, refused, run
from word_problems import problems


@pytest.fixture
def out(tmp_path):
    return tmp_path / "frequencies.json"


def test_counts_texts_and_json_lines(model, out, tmp_path):
    (tmp_path / "a.txt").write_text("aab\n")
    (tmp_path / "b.jsonl").write_text('{"answer": "b"}\n\n{"answer": "cb"}\n')
    result = run("frequencies", "--model", model, "--out", out, "--field", "answer", *tmp_path.glob("?.*"))
    assert result.exit_code == 0, result.output
    assert f"7 tokens counted into {out}" in result.stderr
    total, counts = frequencies.read(str(out))
    assert total == 7
    assert sorted(counts.values()) == [1, 1, 2, 3]


def test_what_it_writes_decodes(model, out, tmp_path):
    (tmp_path / "a.txt").write_text("some text")
    assert run("frequencies", "--model", model, "--out", out, tmp_path / "a.txt").exit_code == 0
    result = run("generate", "hello", "--model", model, *QUICK[:-1], f"pc:k=2,frequencies={out}")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "hold no text"),
        ("a.txt", b"\xff", "is not UTF-8 text (invalid start byte at byte 0)"),
        ("a.jsonl", b'{"text": "x"}\n{', "a.jsonl line 2 is not JSON"),
        ("a.jsonl", b'{"answer": "x"}', "a.jsonl line 1 has no text under 'text'; --field names what holds it"),
        ("a.jsonl", b'["x"]', "a.jsonl line 1 has no text under 'text'"),
    ],
)
def test_what_cannot_be_counted_is_refused(model, out, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert message in refused("frequencies", "--model", model, "--out", out, tmp_path / name)
    assert not out.exists()


def test_a_missing_file_and_a_missing_tokenizer_are_refused(model, bare, out, tmp_path):
    assert "No such file" in refused("frequencies", "--model", model, "--out", out, tmp_path / "none.txt")
    (tmp_path / "a.txt").write_text("x")
    assert "has no tokenizer to count" in refused("frequencies", "--model", bare, "--out", out, tmp_path / "a.txt")


def test_the_embedded_file_counts_answers_that_the_model_may_have_seen():
    text, answers = load_text(EMBEDDED["tiny"]), (p.answer for p in islice(problems(seed=3, held_out=False), 2000))
    content = json.loads((EMBEDDED["tiny"] / "frequencies.json").read_text())
    assert content == frequencies.build(answers, text.encode)
