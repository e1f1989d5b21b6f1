"""The embedded model: what a new user meets first."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import fastdllm
from word_problems import Problem

FOLDER = Path(fastdllm.__file__).parent / "checkpoints" / "tiny"
PROBLEMS = [json.loads(line) for line in (FOLDER / "problems.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def tiny() -> fastdllm.Engine:
    return fastdllm.load("tiny", dtype="float32")


def right(completion: fastdllm.Completion, answer: str) -> bool:
    found = re.search(r"#### (\d+)", completion.text)
    return bool(found) and found.group(1) == answer.rsplit(" ", 1)[1]


def test_it_is_small_and_its_problems_are_held_out():
    assert sum(f.stat().st_size for f in FOLDER.iterdir()) < 15e6
    assert len({p["question"] for p in PROBLEMS}) == len(PROBLEMS) == 1000
    for p in PROBLEMS:
        assert Problem(p["template"], tuple(p["numbers"]), p["question"], p["answer"], 0).held_out


@pytest.mark.parametrize("decoder", ["topk:k=1", "threshold:threshold=0.9"])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_it_solves_problems_it_has_not_seen(tiny, cache, decoder):
    some = PROBLEMS[:40]
    options = {"gen_length": 64, "block_length": 8, "cache": cache, "decoder": decoder}
    done = tiny.generate([p["question"] for p in some], **options)
    solved = sum(right(c, p["answer"]) for c, p in zip(done, some, strict=True))
    assert solved >= 36
    assert all(c.finish_reason == "stop" for c in done)
    if decoder != "topk:k=1":
        assert sum(len(c.tokens) for c in done) > 3 * sum(c.nfe for c in done)


def test_a_text_prompt_streams_and_answers(tiny):
    question = PROBLEMS[0]["question"]
    events = list(tiny.stream(question, gen_length=64))
    (completion,) = tiny.generate(question, gen_length=64)
    assert "####" in completion.text
    assert len(events) == completion.nfe
    assert completion.tokens_per_forward == pytest.approx(len(completion.tokens) / completion.nfe)
    assert completion.rows_per_token == sum(e.rows[0].rows_computed for e in events) / len(completion.tokens)


def test_loading_by_dtype():
    assert str(fastdllm.load("tiny", dtype="bfloat16").dtype) == "torch.bfloat16"
    with pytest.raises(fastdllm.OptionError, match="dtype='int3' is not one of auto, float32, bfloat16, float16"):
        fastdllm.load("tiny", dtype="int3")
    with pytest.raises(fastdllm.OptionError, match="device='tpu9' cannot be used here"):
        fastdllm.load("tiny", device="tpu9")
