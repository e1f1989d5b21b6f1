"""Many prompts on the command line: what a line gives, and what an interrupted run keeps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import fastdllm
from helpers import QUICK, lines_of, refused, run

SLOW = ("--gen-length", "32", "--decoder", "topk:k=1", "--no-stop-at-eos", "--batch-size", "3", "--threads", "1")


def timeless(results: list[dict[str, Any]]) -> dict[object, dict[str, Any]]:
    """Results by id without what may differ between runs."""
    assert len({r["id"] for r in results}) == len(results)
    return {r["id"]: {k: v for k, v in r.items() if k not in ("seconds", "run")} for r in results}


def write_prompts(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps({"prompt": "word " * (1 + i % 5) + str(i)}) + "\n" for i in range(count)))
    return path


def test_many_prompts_give_a_line_each(model, tmp_path):
    source = tmp_path / "p.jsonl"
    source.write_text('{"prompt": "One", "id": "a"}\n\n"Two"\n{"prompt": [1, 2, 3]}\n')
    result = run("generate", "--file", source, "--model", model, *QUICK)
    results = {r["id"]: r for r in map(json.loads, result.stdout.splitlines())}
    assert set(results) == {"a", 3, 4}
    engine = fastdllm.load(model)
    for name, prompt in (("a", "One"), (3, "Two"), (4, [1, 2, 3])):
        (alone,) = engine.generate([prompt], gen_length=12, block_length=6, decoder="topk:k=2")
        assert results[name]["prompt"] == prompt
        assert (results[name]["text"], results[name]["nfe"]) == (alone.text, alone.nfe)
        assert results[name]["tokens"] == len(alone.tokens)
    assert "3 answers in" in result.stderr
    assert run("generate", "--jsonl", "--model", model, *QUICK, stdin=source.read_text()).exit_code == 0


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{oops", "line 2 is not JSON"),
        ('{"question": "x"}', "line 2 has no prompt"),
        ("7", "line 2 has no prompt"),
        ('{"prompt": "x", "id": 1.5}', "line 2 has the id 1.5"),
        ('{"prompt": "x", "id": 1}', "line 2: the id 1 is that of line 1 too"),
        ('{"prompt": [99999]}', "line 2: prompt 0 holds the id 99999"),
        (json.dumps("x" * 400), "line 2: a prompt of"),
    ],
)
def test_a_bad_line_is_named_before_work_begins(model, tmp_path, line, complaint):
    source, out = tmp_path / "p.jsonl", tmp_path / "o.jsonl"
    source.write_text(f'"fine"\n{line}\n')
    assert complaint in refused("generate", "--file", source, "--model", model, "--out", out, *QUICK)
    assert not out.exists()


def test_a_torn_last_line_is_done_again(model, tmp_path):
    source, out = write_prompts(tmp_path / "p.jsonl", 5), tmp_path / "o.jsonl"
    command = ("generate", "--file", source, "--model", model, "--out", out, "--batch-size", "2", *QUICK)
    assert run(*command).exit_code == 0
    whole = out.read_text()
    kept = "".join(whole.splitlines(keepends=True)[:2])
    out.write_text(kept + whole[len(kept) :][:25])
    result = run(*command)
    assert "2 of 5 answers are in" in result.stderr
    assert out.read_text().startswith(kept)
    assert timeless(lines_of(out)) == timeless([json.loads(line) for line in whole.splitlines()])
    record = json.loads((tmp_path / "o.jsonl.run.json").read_text())
    assert [run["finished_before"] for run in record["runs"]] == [0, 2]
    assert [r["run"] for r in lines_of(out)] == [0, 0, 1, 1, 1]
    assert record["settings"]["decoder"] == "topk:k=2,alg=maskgit_plus"
    assert record["runs"][1]["batch_size"] == 2
    before = out.read_bytes()
    assert "5 of 5 answers" in run(*command).stderr
    assert out.read_bytes() == before


def test_results_are_never_mixed(model, tmp_path):
    source, out = write_prompts(tmp_path / "p.jsonl", 2), tmp_path / "o.jsonl"
    command = ("generate", "--model", model, "--out", out, *QUICK)
    assert run(*command, "--file", source).exit_code == 0
    before = out.read_bytes()
    other = refused(*command, "--file", source, "--seed", "3", "--cache", "none")
    assert 'cache "dual:prompt_every=1,suffix_window=None" (now "none"), seed 0 (now 3)' in other
    (tmp_path / "q.jsonl").write_text('"something else"\n')
    assert "another prompt under the id 1" in refused(*command, "--file", tmp_path / "q.jsonl")
    assert out.read_bytes() == before
    (tmp_path / "mine.txt").write_text("my notes")
    assert "exists, and no" in refused("generate", "--file", source, "--model", model, "--out", tmp_path / "mine.txt")
    assert (tmp_path / "mine.txt").read_text() == "my notes"
    out.write_text("{}\n")
    assert "line 1 is not a result" in refused(*command, "--file", source)


def start(*args: str | Path) -> subprocess.Popen[str]:
    command, environment = [sys.executable, "-m", "fastdllm", *map(str, args)], {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for_lines(path: Path, count: int, process: subprocess.Popen[str]) -> None:
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_an_interrupted_run_goes_on_where_it_was(model, tmp_path, stop, code):
    source, out, straight = write_prompts(tmp_path / "p.jsonl", 30), tmp_path / "o.jsonl", tmp_path / "s.jsonl"
    command = ("generate", "--file", source, "--model", model, *SLOW)
    process = start(*command, "--out", out)
    wait_for_lines(out, 4, process)
    process.send_signal(stop)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    done = out.read_bytes().count(b"\n")
    assert 4 <= done < 30
    if stop == signal.SIGINT:
        assert errors == f"interrupted: {done} of 30 done and kept in {out}; run the same command again to continue\n"
    assert run(*command, "--out", out).exit_code == 0
    assert run(*command, "--out", straight).exit_code == 0
    assert len(lines_of(out)) == 30
    assert timeless(lines_of(out)) == timeless(lines_of(straight))


@pytest.mark.slow
def test_a_reader_that_leaves_ends_the_run_quietly(model, tmp_path):
    source = write_prompts(tmp_path / "p.jsonl", 40)
    with start("generate", "--file", source, "--model", model, *SLOW) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=30) == 141
