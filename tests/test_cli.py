"""The command line: what it prints and what it refuses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fastdllm
from fastdllm.caches.d2cache import Rollout
from fastdllm.cli import chat as chat_command
from fastdllm.cli import one
from fastdllm.cli.console import printable
from fastdllm.config import parse_cache, parse_decoder
from fastdllm.memory import available, memory, parameters
from fastdllm.models.transformer import Attention
from fastdllm.state import RowState
from helpers import QUICK, refused, run, write_checkpoint
from toys import toy_engine

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
    jsonl = tmp_path / "p.jsonl"
    jsonl.write_text('"one"\n"two"\n')
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
    assert "dtype='int4'" in refused("generate", "x", "--model", model, "--dtype", "int4")


def test_no_prompt_on_a_terminal_is_refused(monkeypatch):
    monkeypatch.setattr("fastdllm.cli.generate.sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    assert "there is no prompt" in refused("generate")


def test_text_needs_a_tokenizer(bare):
    assert "has no tokenizer" in refused("generate", "x", "--model", bare)
    assert "has no tokenizer" in refused("chat", "--model", bare, stdin="hi\n")


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
    lengths = {"batch_size": 3, "prompt_length": 20, "gen_length": 12, "block_length": 5, "itemsize": 4}
    need = memory(config, parse_cache("dual"), parse_decoder("topk"), **lengths)
    assert need.weights == sum(p.nbytes for p in model.parameters())
    assert parameters(config) == sum(p.numel() for p in model.parameters())
    canvas = Canvas([[1] * 20] * 3, gen_length=12, block_length=5, mask_id=config.mask_id, eos_ids=config.eos_ids)
    assert need.kv_store == model.allocate(len(canvas), canvas.width).nbytes
    assert need.logits == 3 * 5 * config.vocab_size * 8
    assert need.method == 0
    assert need.total == need.weights + need.kv_store + need.logits + need.activations
    assert memory(config, parse_cache("none"), parse_decoder("topk"), **lengths).kv_store == 0
    assert memory(config, parse_cache("none"), parse_decoder("wino"), **lengths).kv_store == need.kv_store
    assert (available("cpu") or 0) > 0


@pytest.mark.parametrize("method", ["dllm/topk", "dual/klass", "dual/klass:scope=block", "dual/credit", "d2cache/topk"])
def test_memory_of_a_method_is_what_it_keeps(monkeypatch, method):
    cache, decoder = method.split("/")
    held: dict[str, int] = {}

    class Weighed(RowState):
        def __setitem__(self, name: str, value: torch.Tensor) -> None:
            super().__setitem__(name, value)
            if value.is_floating_point() and name not in ("confidence", "importance", "divergences"):  # a number a slot
                held[name] = max(held.get(name, 0), value.nbytes)

    def note(hook: Rollout) -> None:
        held["means"] = max(held.get("means", 0), sum(mean.nbytes for mean in hook.means))
        taken(hook)

    def look(attention: Attention, *given: torch.Tensor | None) -> torch.Tensor:
        found = weights(attention, *given)
        held["scores and weights"] = max(held.get("scores and weights", 0), 2 * found.nbytes)
        return found

    taken, weights = Rollout._note, Attention.weights
    monkeypatch.setattr("fastdllm.loop.RowState", Weighed)
    monkeypatch.setattr(Rollout, "_note", note)
    monkeypatch.setattr(Attention, "weights", look)
    engine = toy_engine()
    for _ in engine.stream([[5] * 20] * 3, gen_length=12, block_length=5, cache=cache, decoder=decoder):
        pass
    lengths = {"batch_size": 3, "prompt_length": 20, "gen_length": 12, "block_length": 5, "itemsize": 4}
    need = memory(engine.config, parse_cache(cache), parse_decoder(decoder), **lengths)
    assert need.method == sum(held.values()) > 0


def test_info_reads_no_weights(model, monkeypatch):
    monkeypatch.setattr("fastdllm.loading.load_weights", lambda *_: 1 / 0)
    result = run("info", model, "--batch-size", "2", "--prompt-length", "100", "--gen-length", "28")
    assert result.exit_code == 0
    parts = ("llada", "259 <|mdm_mask|>", "257 <|endoftext|>, 258 <|eot_id|>", "256 positions", "264", "It fits")
    for part in (*parts, "chat template  yes"):
        assert part in result.stdout
    assert "K/V store    193.5 KiB" in result.stdout  # 2 x 3 layers x 2 rows x 32 wide x 129 slots x 4 bytes
    assert "longer than the 256 positions" in refused("info", model, "--prompt-length", "250")
    shown = run("info", model, "--cache", "dllm", "--decoder", "wino").stdout
    assert "cache dllm, decoder wino" in shown
    assert "method" in shown
    assert "none is kept" in run("info", model, "--cache", "none").stdout
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
