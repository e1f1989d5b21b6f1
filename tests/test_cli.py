"""The command line: what it prints, what it refuses, and what an interrupted run keeps."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

import fastdllm
from fastdllm.cli import chat as chat_command
from fastdllm.cli import one
from fastdllm.cli.app import app
from fastdllm.cli.canvas_view import END, OPEN, canvas_text, legend, pieces, shade
from fastdllm.cli.console import printable
from fastdllm.completion import Draft
from fastdllm.loop import allocate
from fastdllm.memory import available, memory, parameters
from helpers import write_checkpoint

QUICK = ("--gen-length", "12", "--block-length", "6", "--decoder", "topk:k=2")
SLOW = ("--gen-length", "32", "--decoder", "topk:k=1", "--no-stop-at-eos", "--batch-size", "3", "--threads", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("toy")))


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> str:
    """A checkpoint without a tokenizer."""
    return str(write_checkpoint(tmp_path_factory.mktemp("bare"), tokenizer=False))


def run(*args: str | Path, stdin: str | None = None) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args], input=stdin, env={"COLUMNS": "80"})


def refused(*args: str | Path, stdin: str | None = None) -> str:
    """The one sentence with which a run is refused."""
    result = run(*args, stdin=stdin)
    assert result.exit_code == 2, result.output
    assert not result.stdout
    assert result.stderr.startswith("error: ")
    assert result.stderr.endswith(".\n")
    assert result.stderr.count("\n") == 1
    return result.stderr


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def timeless(results: list[dict[str, Any]]) -> dict[object, dict[str, Any]]:
    """Results by id without what may differ between runs."""
    assert len({r["id"] for r in results}) == len(results)
    return {r["id"]: {k: v for k, v in r.items() if k not in ("seconds", "run")} for r in results}


def write_prompts(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps({"prompt": "word " * (1 + i % 5) + str(i)}) + "\n" for i in range(count)))
    return path


# One prompt


def test_generate_prints_the_answer_alone_on_stdout(model):
    result = run("generate", "Hello", "--model", model, *QUICK)
    engine = fastdllm.load(model)
    (expected,) = engine.generate("Hello", gen_length=12, block_length=6, decoder="topk:k=2")
    assert result.exit_code == 0
    assert result.stdout == expected.text.strip() + "\n"
    parts = (f"NFE {expected.nfe}", "TPF", "rows/token", "tokens/s", "cache dual", "topk:k=2", "float32 on cpu")
    for part in (*parts, expected.finish_reason):
        assert part in result.stderr


@pytest.mark.parametrize(
    ("flags", "keywords"),
    [
        (("--raw",), {"chat": False}),
        (("--temperature", "0.9", "--seed", "5"), {"temperature": 0.9, "seed": 5}),
        (("--cache", "none", "--cfg-scale", "1.5"), {"cache": "none", "cfg_scale": 1.5}),
        (("--top-k", "3", "--top-p", "0.5", "--no-stop-at-eos"), {"top_k": 3, "top_p": 0.5, "stop_at_eos": False}),
    ],
)
def test_options_reach_the_engine(model, flags, keywords):
    keywords = {"gen_length": 12, "block_length": 6, "decoder": "topk:k=2", **keywords}
    (expected,) = fastdllm.load(model).generate("Hello", **keywords)
    assert run("generate", "Hello", "--model", model, *QUICK, *flags).stdout == expected.text.strip() + "\n"


def test_the_prompt_may_be_a_file_or_standard_input(model, tmp_path):
    (tmp_path / "p.txt").write_text("Hello\n")
    answer = run("generate", "Hello", "--model", model, *QUICK).stdout
    assert run("generate", "--file", tmp_path / "p.txt", "--model", model, *QUICK).stdout == answer
    assert run("generate", "--model", model, *QUICK, stdin="Hello\n").stdout == answer


def test_an_empty_answer_is_explained(model, monkeypatch):
    numbers = {"nfe": 1, "tokens_per_forward": 0.0, "tokens_per_second": 0.0, "finish_reason": "stop"}
    nothing = SimpleNamespace(tokens=(), text="", **numbers)
    monkeypatch.setattr(one.Task, "run", lambda _: SimpleNamespace(completions=[nothing]))
    result = run("generate", "Hello", "--model", model, *QUICK)
    assert result.stdout == "\n"
    assert "the answer is empty" in result.stderr


# Refusals


def test_contradictions_are_refused(model, tmp_path):
    jsonl = write_prompts(tmp_path / "p.jsonl", 2)
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    assert "PROMPT and --file" in refused("generate", "x", "--file", jsonl)
    assert "PROMPT and --jsonl" in refused("generate", "x", "--jsonl")
    assert "--watch and --compare" in refused("generate", "x", "--watch", "--compare")
    for flag in (("--watch",), ("--compare",), ("--trace", tmp_path / "t")):
        assert f"{flag[0]} shows one prompt" in refused("generate", "--file", jsonl, *flag)
    assert "--out holds the results of many" in refused("generate", "x", "--out", tmp_path / "o")
    assert "No such file" in refused("generate", "--file", tmp_path / "missing.txt")
    assert "not UTF-8" in refused("generate", "--file", tmp_path / "bytes.txt")
    assert "standard input is empty" in refused("generate", stdin=" \n")
    assert "decoder 'best' is not one of" in refused("generate", "x", "--decoder", "best")
    assert "cfg_scale=2.0 works with cache none" in refused("generate", "x", "--cfg-scale", "2")
    assert "gen_length=0" in refused("info", model, "--gen-length", "0")
    assert "threads=0" in refused("generate", "x", "--model", model, "--threads", "0")
    assert "is neither" in refused("generate", "x", "--model", str(tmp_path / "nowhere"))
    assert "longer than the 256 positions" in refused("generate", "x" * 300, "--model", model)
    assert "dtype='int8'" in refused("generate", "x", "--model", model, "--dtype", "int8")


def test_no_prompt_on_a_terminal_is_refused(monkeypatch):
    monkeypatch.setattr("fastdllm.cli.generate.sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    assert "there is no prompt" in refused("generate")


def test_text_needs_a_tokenizer(bare):
    assert "has no tokenizer" in refused("generate", "x", "--model", bare)
    assert "has no tokenizer" in refused("chat", "--model", bare, stdin="hi\n")


# Many prompts


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
    assert 'cache "dual" (now "none"), seed 0 (now 3)' in other
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


# Looking at a generation


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
    monkeypatch.setattr("fastdllm.cli.trace.asdict", lambda _: 1 / 0)
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
    assert lines_of(trace)[0]["settings"]["cache"] == "dual"


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


# Chat


def test_chat_keeps_the_conversation(model):
    options = ("--model", model, *QUICK)
    result = run("chat", *options, "--system", "Be brief", stdin="Hello\nAgain\n/reset\nHello\n/nope\n\n/exit\nnever\n")
    assert result.exit_code == 0
    engine, messages, answers = fastdllm.load(model), [{"role": "system", "content": "Be brief"}], []
    assert engine.text is not None
    for said in ("Hello", "Again"):
        messages.append({"role": "user", "content": said})
        ids = engine.text.encode_chat(messages)
        (answer,) = engine.generate([ids], gen_length=12, block_length=6, decoder="topk:k=2")
        messages.append({"role": "assistant", "content": answer.text})
        answers.append(printable(answer.text.strip()))
    assert result.stdout == "".join(f"{a}\n" for a in (*answers, answers[0]))
    assert "the conversation is forgotten" in result.stderr
    assert "/nope is not a command" in result.stderr


def test_chat_forgets_the_oldest_turns_when_full(model):
    result = run("chat", "--model", model, *QUICK, stdin=f"{'a' * 100}\n{'b' * 100}\n{'c' * 100}\n{'d' * 300}\nshort\n")
    assert result.exit_code == 0
    assert "its oldest turn is forgotten" in result.stderr
    assert "error: a prompt of" in result.stderr
    assert len(result.stderr.split("NFE")) == 5


def test_ctrl_c_stops_an_answer_and_not_the_chat(model, monkeypatch):
    real, calls = chat_command.Conversation._answer, []

    def interrupted(self: Any, ids: list[int]) -> str:
        calls.append(ids)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(self, ids)

    monkeypatch.setattr(chat_command.Conversation, "_answer", interrupted)
    result = run("chat", "--model", model, *QUICK, stdin="Hello\nHello\n")
    assert result.exit_code == 0
    assert "stopped" in result.stderr
    assert calls[0] == calls[1]


# Info and the rest


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_memory_is_what_is_allocated(tmp_path, family):
    from fastdllm.canvas import Canvas

    engine = fastdllm.load(write_checkpoint(tmp_path, family=family))
    model, config = engine.model, engine.config
    need = memory(config, batch_size=3, prompt_length=20, gen_length=12, block_length=5, itemsize=4)
    assert need.weights == sum(p.nbytes for p in model.parameters())
    assert parameters(config) == sum(p.numel() for p in model.parameters())
    canvas = Canvas([[1] * 20] * 3, gen_length=12, block_length=5, mask_id=config.mask_id, eos_ids=config.eos_ids)
    assert need.kv_store == allocate(model, canvas).nbytes
    assert need.logits == 3 * 5 * config.vocab_size * 8
    assert need.total == need.weights + need.kv_store + need.logits + need.activations
    assert (available("cpu") or 0) > 0


def test_info_reads_no_weights(model, monkeypatch):
    monkeypatch.setattr("fastdllm.engine.load_weights", lambda *_: 1 / 0)
    result = run("info", model, "--batch-size", "2", "--prompt-length", "100", "--gen-length", "28")
    assert result.exit_code == 0
    parts = ("llada", "259 <|mdm_mask|>", "257 <|endoftext|>, 258 <|eot_id|>", "256 positions", "264", "It fits")
    for part in (*parts, "chat template  yes"):
        assert part in result.stdout
    assert "K/V store    193.5 KiB" in result.stdout  # 2 x 3 layers x 2 rows x 32 wide x 129 slots x 4 bytes
    assert "longer than the 256 positions" in refused("info", model, "--prompt-length", "250")
    monkeypatch.setattr("fastdllm.memory.available", lambda _: 1000)
    assert "It does not fit" in run("info", model).stdout


def test_info_without_a_tokenizer(bare):
    result = run("info", bare)
    assert "tokenizer      no" in result.stdout
    assert "mask id        259\n" in "".join(line.rstrip() + "\n" for line in result.stdout.splitlines())


def test_version_and_help():
    assert run("--version").stdout == f"fastdllm {fastdllm.__version__}\n"
    shown = run("generate", "--help").stdout
    assert "[default: 128]" in shown
    assert "threshold:threshold=0.9" in shown


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
