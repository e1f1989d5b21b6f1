"""A job over Ray Data on a running cluster: one result for each prompt, whatever happens to a worker."""
# ruff: noqa: E402  # whether Ray is there is asked before anything is started

from __future__ import annotations

import json
import os
import re
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastdllm
from helpers import lines_of, run, write_checkpoint
from needs_ray import needs_ray
from test_cli_many import timeless

needs_ray()

from fastdllm.models.checkpoint import save_checkpoint
from ray_session import Session, session

pytestmark = pytest.mark.slow
OPTIONS = ("--gen-length", "64", "--decoder", "topk:k=1", "--no-stop-at-eos", "--temperature", "0.8", "--threads", "1")
COUNT, DONE, POISONED = 24, 5, 17
POISON = "Q"


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[Session, str]]:
    """A Ray that was there before, and its address."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    options = ("--num-cpus", "2", "--object-store-memory", "100000000", "--include-dashboard", "false", "--port", "0")
    start = ("ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats", *options)
    with session(*start, **token) as running:
        running.until(lambda: "ray start --address=" in running.said)
        address = re.search(r"ray start --address='([^']+)'", running.said).group(1)  # type: ignore[union-attr]
        os.environ.update(token)
        yield running, address
        for name in token:
            del os.environ[name]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A model of which one token's embedding is no number."""
    folder = write_checkpoint(tmp_path_factory.mktemp("poisoned"))
    engine = fastdllm.load(folder)
    engine.model.embed.weight.data[engine.text.encode(POISON)] = float("nan")
    save_checkpoint(engine.model, folder, engine.dtype)
    return folder


def write(path: Path, numbers: range, leave_out: int | None = None) -> Path:
    texts = {n: "word " * (1 + n % 5) + (POISON if n == POISONED else str(n)) for n in numbers if n != leave_out}
    path.write_text("".join(json.dumps({"prompt": text, "id": f"q{n}"}) + "\n" for n, text in texts.items()))
    return path


def test_a_killed_worker_costs_no_answer_and_doubles_none(cluster, checkpoint, tmp_path):
    """A plain run has begun the file, the job continues it, and one prompt fails by itself."""
    ray, address = cluster
    out, plain = tmp_path / "out.jsonl", tmp_path / "plain.jsonl"
    common = ("--model", checkpoint, "--batch-size", "3", *OPTIONS)
    begun = write(tmp_path / "begun.jsonl", range(DONE))
    assert run("generate", "--file", begun, "--out", out, *common).exit_code == 0
    source = write(tmp_path / "all.jsonl", range(COUNT))
    job = ("generate", "--ray", "--ray-address", address, "--replicas", "2", "--file", source, "--out", out, *common)
    with session("fastdllm", *map(str, job)) as running:
        running.until(lambda: out.read_bytes().count(b"\n") >= DONE + 3)
        workers = ray.processes("ray::mapworker")
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        assert running.wait() == 2, running.said
        said = running.said
    results = lines_of(out)
    assert len(results) == COUNT - 1
    assert f"{DONE} of {COUNT} answers are in {out} already" in said
    last = next(line for line in reversed(said.splitlines()) if not line.startswith("("))  # Ray's own lines
    assert last.startswith(f"error: 1 of {COUNT} prompts have no answer (id 'q{POISONED}': ")
    assert last.endswith(f"; the others are in {out}, and the same command tries these again.")
    whole = write(tmp_path / "whole.jsonl", range(COUNT), leave_out=POISONED)
    assert run("generate", "--file", whole, "--out", plain, *common).exit_code == 0
    assert timeless(results) == timeless(lines_of(plain))
    record = json.loads((tmp_path / "out.jsonl.run.json").read_text())
    assert [made["finished_before"] for made in record["runs"]] == [0, DONE]
    assert (record["runs"][1]["replicas"], record["runs"][1]["threads"]) == (2, 1)
    assert [result["run"] for result in results] == [0] * DONE + [1] * (COUNT - 1 - DONE)
    assert ray.process.poll() is None, "the cluster is not the job's to end"
    ray.until(lambda: not ray.processes("ray::mapworker"))
