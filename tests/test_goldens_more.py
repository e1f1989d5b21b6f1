"""Parity of d2Cache's certainty prior and KLASS, token for token in float32 (tests/goldens/README.md)."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

import fastdllm

GOLDENS = Path(__file__).parent / "goldens"


def cases(name: str) -> list[Any]:
    lines = (GOLDENS / f"{name}.jsonl").read_text().splitlines()
    return [pytest.param(case, id=case["id"]) for case in map(json.loads, lines)]


@functools.cache
def engine(checkpoint: str) -> fastdllm.Engine:
    return fastdllm.load(GOLDENS / "checkpoints" / checkpoint, dtype="float32")


def run(case: dict[str, Any], decoder: Any, cache: Any = "none") -> list[fastdllm.Completion]:
    given = case["params"]
    return engine(case["checkpoint"]).generate(
        case["prompt_ids"], gen_length=given["gen_length"], block_length=given["block_length"], cache=cache,
        decoder=decoder, stop_at_eos=False,
    )  # fmt: skip


@pytest.mark.parametrize("case", cases("sigma"))
def test_certainty_prior(case: dict[str, Any]) -> None:
    """All six, though the original's density has the rounding noise of an FFT: what it commits lies near the decoded
    slots, where the density is far above the noise."""
    given = case["params"]
    (completion,) = run(case, f"certainty:sigma={given['sigma']},threshold={given.get('threshold')}")
    assert list(completion.canvas) == case["answers"][0]
    assert completion.nfe == case["nfe"]


@pytest.mark.parametrize("case", cases("klass"))
def test_klass(case: dict[str, Any]) -> None:
    given = case["params"]
    spec = {"threshold": "threshold", "kl_threshold": "kl_threshold", "history": "kl_history_length"}
    completions = run(case, "klass:" + ",".join(f"{ours}={given[theirs]}" for ours, theirs in spec.items()))
    assert [list(c.canvas) for c in completions] == case["answers"]
    # The original's rows share a block: a quick one waits in passes that commit nothing in it. Ours move on alone.
    assert [c.nfe for c in completions] == case.get("row_nfe", [case["nfe"]])
