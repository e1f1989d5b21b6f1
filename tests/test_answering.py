"""Answers of an evaluation: none is lost, whatever happens to some of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from fastdllm.arena.flops import answers
from fastdllm.engine import Engine
from fastdllm.errors import NumericalError, OptionError
from fastdllm.evals.answering import Answerer, Ask
from fastdllm.evals.journal import Journal
from fastdllm.evals.numbers import costs, latencies, speeds
from fastdllm.evals.workers import Workers
from toys import toy_engine

OPTIONS: Any = {"gen_length": 12, "block_length": 6, "cache": "dual", "decoder": "topk:k=3", "seed": 3}
PROMPTS = [[5, 9], [5, 9, 2, 7, 1], [8, 8, 8], [1, 2, 3, 4], [30, 31, 32, 33, 34, 35], [12]]
ASKS = [Ask(id=f"t#{i}.0.0", prompt=str(p), tokens=tuple(p)) for i, p in enumerate(PROMPTS)]
ALONE = Workers(0, 1, torch.device("cpu"))


def run(engine: Engine, asks: list[Ask] = ASKS, batch_size: int = 2, **options: Any) -> tuple[list[Any], list[str]]:
    lines: list[Any] = []
    said: list[str] = []
    answerer = Answerer(engine, {**OPTIONS, **options}, batch_size=batch_size, keep=lines.append, say=said.append)
    answerer.answer(asks)
    return lines, said


def by_id(lines: list[Any]) -> dict[str, Any]:
    return {line["id"]: line for line in lines}


def test_batches_change_no_answer():
    lines, said = run(toy_engine(), batch_size=4)
    alone, _ = run(toy_engine(), batch_size=1)
    solo = toy_engine().generate(PROMPTS, **OPTIONS)
    assert said == []
    for i, completion in enumerate(solo):
        for line in (by_id(lines)[f"t#{i}.0.0"], by_id(alone)[f"t#{i}.0.0"]):
            found = tuple(line[name] for name in ("tokens", "nfe", "rows", "finish_reason", "prompt_tokens"))
            counts = (len(completion.tokens), completion.nfe, completion.rows_computed)
            assert found == (*counts, completion.finish_reason, len(PROMPTS[i]))


def test_the_first_batch_warms_up_and_counts_operations():
    lines, _ = run(toy_engine())
    assert sorted(len(PROMPTS[int(line["id"][2])]) for line in lines[:2]) == [2, 5]  # spread over the lengths
    assert [line["warm_up"] for line in lines] == [True] * 2 + [False] * 4
    assert all((line["flops"] or 0) > 0 for line in lines[:2])
    assert all(line["flops"] is None for line in lines[2:])


@pytest.mark.parametrize("words", ["CUDA out of memory. Tried", "[enforce fail] can't allocate memory: you tried"])
def test_out_of_memory_halves_the_batch_and_goes_on(monkeypatch, words):
    engine, sizes = toy_engine(), []
    forward = engine.model.forward

    def small(tokens: Any, *rest: Any) -> Any:
        sizes.append(len(tokens))
        if len(tokens) > 2:
            raise RuntimeError(words)
        return forward(tokens, *rest)

    monkeypatch.setattr(engine.model, "forward", small)
    lines, said = run(engine, batch_size=6)
    assert said == [f"{n} prompts together do not fit in memory; going on with {n // 2}" for n in (6, 3)]
    assert max(sizes[2:]) <= 2
    assert [len(by_id(lines)), len(lines)] == [6, 6]
    expected = by_id(run(toy_engine())[0])
    assert {name: line["nfe"] for name, line in by_id(lines).items()} == {n: x["nfe"] for n, x in expected.items()}
    assert sum(line["warm_up"] for line in lines) == 1  # the first batch that was answered
    assert _get_current_dispatch_mode() is None  # the counter of operations is off, though a pass broke off under it


def test_a_batch_that_breaks_off_shares_no_time_with_the_next(monkeypatch):
    begun: list[int] = []

    def broken(*given: Any) -> Any:
        begun.append(len(begun))
        for done in answers(*given):
            yield done
            if len(begun) == 2:  # the second batch ends after its first answer
                raise RuntimeError("out of memory")

    monkeypatch.setattr("fastdllm.evals.answering.answers", broken)
    lines, said = run(toy_engine(), batch_size=3)
    assert said == ["3 prompts together do not fit in memory; going on with 1"]
    assert len(by_id(lines)) == len(lines) == 6
    sizes = {(line["batch"], line["batch_size"]) for line in lines}
    assert len({batch for batch, _ in sizes}) == len(sizes) == 4


def test_a_prompt_that_never_fits_is_recorded_as_failed(monkeypatch):
    engine = toy_engine()
    forward = engine.model.forward

    def full(tokens: Any, *rest: Any) -> Any:
        if (tokens == 35).any():
            raise RuntimeError("not enough memory: you tried to allocate 9 bytes")
        return forward(tokens, *rest)

    monkeypatch.setattr(engine.model, "forward", full)
    lines, _ = run(engine, batch_size=4)
    failed = [line for line in lines if "error" in line]
    assert [line["id"] for line in failed] == ["t#4.0.0"]
    assert failed[0]["error"].startswith("not enough memory")
    assert len(by_id(lines)) == len(lines) == 6


def test_one_row_of_nonsense_fails_alone(monkeypatch):
    engine = toy_engine()
    forward = engine.model.forward

    def poisoned(tokens: Any, *rest: Any) -> Any:
        out = forward(tokens, *rest)
        return out.masked_fill((tokens == 8).sum(1)[:, None, None] == 3, float("nan"))

    monkeypatch.setattr(engine.model, "forward", poisoned)
    lines, said = run(engine, batch_size=6, cache="none")
    assert [line["id"] for line in lines if "error" in line] == ["t#2.0.0"]
    assert said[0].startswith("t#2.0.0 has no answer: ")
    assert len(by_id(lines)) == len(lines) == 6


def test_other_errors_are_not_swallowed(monkeypatch):
    engine = toy_engine()
    monkeypatch.setattr(engine.model, "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(engine)


def test_samples_of_one_prompt_differ_in_their_noise(monkeypatch):
    asks = [Ask(id=f"t#0.0.{i}", prompt="x", tokens=(5, 9, 2), repeat=i) for i in range(3)]
    engine, seeds = toy_engine(), []
    start = engine.start
    monkeypatch.setattr(engine, "start", lambda prompts, **o: seeds.extend(o["seed"]) or start(prompts, **o))
    run(engine, asks, temperature=1.0)
    assert sorted(seeds) == [3, 4, 5]
    made = [toy_engine().generate([a.tokens], **{**OPTIONS, "temperature": 1.0, "seed": 3 + a.repeat})[0] for a in asks]
    assert len({completion.canvas for completion in made}) == 3


# The journal


def line(name: str, prompt: str = "p") -> dict[str, object]:
    return {"id": name, "prompt": prompt, "text": name}


def test_another_number_of_processes_finds_every_answer(tmp_path):
    prompts = dict.fromkeys("abcd", "p")
    for rank, share in enumerate(("ab", "c")):
        journal = Journal(tmp_path, Workers(rank, 1, torch.device("cpu")))
        with journal.open("generate", dict.fromkeys(share, "p"), {"s": 1}, {}):
            for name in share:
                journal.add(line(name))
    with open(tmp_path / "answers.generate.1.jsonl", "a") as file:
        file.write('{"id": "d", "prom')  # a kill tears the last line
    journal = Journal(tmp_path, ALONE)
    with journal.open("generate", prompts, {"s": 1}, {}):
        assert set(journal.held) == set("abc")
        journal.add(line("d"))
        kept = (tmp_path / "answers.generate.0.jsonl").read_text().splitlines()
        assert json.loads(kept[-1])["id"] == "d"  # on disk while the run still goes on
    again = Journal(tmp_path, ALONE)
    with again.open("generate", prompts, {"s": 1}, {}):
        assert set(again.held) == set("abcd")


@pytest.mark.parametrize("rank", [0, 1])
def test_answers_of_other_settings_or_prompts_are_refused(tmp_path, rank):
    journal = Journal(tmp_path, Workers(rank, 1, torch.device("cpu")))
    with journal.open("generate", {"a": "p"}, {"s": 1}, {}):
        journal.add(line("a"))
    with (
        pytest.raises(OptionError, match=r"was made with s 1 \(now 2\)"),
        Journal(tmp_path, ALONE).open("generate", {"a": "p"}, {"s": 2}, {}),
    ):
        pass
    with (
        pytest.raises(OptionError, match="holds an answer to another prompt"),
        Journal(tmp_path, ALONE).open("generate", {"a": "q"}, {"s": 1}, {}),
    ):
        pass


# The numbers


def test_costs_are_sums_over_answers():
    base = {"file": "f", "run": 0, "flops": None, "warm_up": False, "batch_size": 1}
    lines = [
        {**base, "tokens": 10, "nfe": 5, "rows": 100, "seconds": 1.0, "batch": 1, "warm_up": True, "flops": 500},
        {**base, "tokens": 20, "nfe": 5, "rows": 80, "seconds": 2.0, "batch": 2, "batch_size": 2},
        {**base, "tokens": 10, "nfe": 10, "rows": 20, "seconds": 4.0, "batch": 2, "batch_size": 2},
        {**base, "tokens": 0, "nfe": 2, "rows": 10, "seconds": 0.5, "batch": 3},
        {"id": "x", "error": "no"},
    ]
    torn = [{**base, "tokens": 99, "nfe": 1, "rows": 1, "seconds": 9.0, "batch": 4, "batch_size": 2}]
    assert speeds(lines[:4] + torn) == speeds(lines[:4])
    found = costs(lines)
    assert [found[n] for n in ("answers", "failed", "empty", "tokens", "flops_counted_answers")] == [4, 1, 1, 40, 1]
    assert found["nfe"] == 22 / 4
    assert found["tokens_per_forward"] == 40 / 22
    assert found["rows_per_token"] == 210 / 40
    assert found["flops_per_token"] == 50
    assert speeds(lines[:4]) == {"median": 3.75, "lowest": 0.0, "highest": 7.5, "batches": 2, "overall": 30 / 4.5}
    assert latencies(lines[:4]) == {"p50": 2.0, "p90": 4.0, "p99": 4.0}
    assert speeds(lines[:1]) is latencies(lines[:1]) is None


def test_nothing_answered_has_no_speed():
    found = costs([{"id": "x", "error": str(NumericalError("no"))}])
    assert found["failed"] == 1
    assert found["tokens_per_forward"] is found["tokens_per_second"] is None
