"""One replica, without the Ray around it: it answers, says how it is, and ends when it can do no more."""
# ruff: noqa: E402  # whether Ray is there is asked before it is imported

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from needs_ray import needs_ray

needs_ray()

import ray
from ray import serve

import fastdllm
from fastdllm.cluster import replica as module
from fastdllm.cluster.passing import carried
from fastdllm.cluster.replica import End, Gone, Replica
from fastdllm.cluster.workers import Checkpoint, Workers
from fastdllm.memory import available
from fastdllm.serve.jobs import Limits
from fastdllm.serve.settings import Settings
from serving import PATIENCE

ROOM = Limits(max_batch=2, max_model_len=64, kv_bytes=2**28)
HERE = "this-node"


class Ended(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(autouse=True)
def around(monkeypatch) -> None:
    """What Ray tells a replica."""
    identity = SimpleNamespace(replica_id=SimpleNamespace(unique_id="r1"))
    monkeypatch.setattr(serve, "get_replica_context", lambda: identity)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: HERE))
    nodes = [{"NodeID": "other", "Resources": {"CPU": 99.0}}, {"NodeID": HERE, "Resources": {"CPU": 8.0}}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(module, "_log_to_stderr", lambda level: None)


@pytest.fixture
def make(model) -> Iterator[Any]:
    made: list[Replica] = []

    def replica(*, workers: Workers | None = None, **settings: Any) -> Replica:
        checkpoint = Checkpoint(model=model, name="toy", device="cpu", threads=1)
        given = Settings(**{"name": "toy", "limits": ROOM, **settings})
        made.append(Replica(checkpoint, given, workers or Workers(gpus=0.0)))
        return made[-1]

    yield replica
    for one in made:
        asyncio.run(one.stop())


def ask(replica: Replica, **fields: object) -> list[Any]:
    """What it gives for a request."""
    headers = [(b"content-type", b"application/json")]
    whole = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/v1/completions", "query_string": b"",
             "headers": headers, "server": None, "app": object()}  # fmt: skip
    body = {"model": "toy", "prompt": "hello", "max_tokens": 8, **fields}

    async def run() -> list[Any]:
        return [item async for item in replica.answer(carried(whole, "id-1", None), json.dumps(body).encode())]

    return asyncio.run(run())


def test_it_answers_as_the_engine_and_ends_with_what_is_to_be_noted(make, model):
    *messages, last = ask(make())
    sent = [message for some in messages for message in some]
    assert sent[0]["status"] == 200
    (expected,) = fastdllm.load(model).generate("hello", chat=False, gen_length=8)
    answer = json.loads(b"".join(message.get("body", b"") for message in sent))
    assert answer["choices"][0]["text"] == expected.text
    assert isinstance(last, End)
    assert (last.replica, last.path) == ("r1", "/v1/completions")
    assert f"nfe={expected.nfe}" in last.note


def test_it_says_what_it_serves_and_counts(make):
    replica = make()
    facts = asyncio.run(replica.about())
    assert (facts.name, facts.slots, facts.max_model_len, facts.chat) == ("toy", 2, 64, True)
    ask(replica)
    name, metrics = asyncio.run(replica.metrics())
    finished = next(metric for metric in metrics if metric.name == "fastdllm_jobs_finished")
    assert (name, finished.samples[0].value) == ("r1", 1.0)
    assert asyncio.run(replica.works())
    replica.check_health()


def test_without_its_model_thread_it_ends_and_sends_requests_elsewhere(make):
    replica = make()
    replica._service.scheduler.stop(drain_seconds=0)
    assert ask(replica) == [Gone()]
    assert not asyncio.run(replica.works())
    with pytest.raises(Ended):
        replica.check_health()


def test_a_pass_that_hangs_is_its_end_too(make):
    replica = make(timeout=5.0)
    replica._service.scheduler._since = replica._service.scheduler._clock() - 4.0
    replica.check_health()
    replica._service.scheduler._since -= 2.0
    with pytest.raises(Ended):
        replica.check_health()


def test_told_to_stop_it_refuses_and_stays(make):
    """What it says then is for the client: the server is closing."""
    replica = make()
    asyncio.run(replica.stop())
    messages = ask(replica)
    assert messages[0][0]["status"] == 503
    assert isinstance(messages[-1], End)
    replica.check_health()


def test_what_is_refused_is_told_and_tried_again_later(make, monkeypatch):
    replica = make(limits=Limits(max_model_len=10**6))
    assert "max_model_len=1000000 is more than" in asyncio.run(replica.about())
    assert ask(replica) == [Gone()]
    assert not asyncio.run(replica.works())
    assert asyncio.run(replica.metrics()) == ("r1", [])
    replica.check_health()
    monkeypatch.setattr(module, "TELLING", -1.0)
    with pytest.raises(Ended):
        replica.check_health()


def test_replicas_share_the_memory_of_their_machine(make):
    """Each takes its share by cores, unless it is told how much."""
    free = available("cpu")
    replica = make(limits=Limits(max_batch=2, max_model_len=64), workers=Workers(cpus=2.0, gpus=0.0))
    stats = replica._service.scheduler.stats()
    budget = stats.room + stats.kv_bytes
    assert 0.5 * free * 2 / 8 * 0.8 < budget < 2 * free * 2 / 8 * 0.8
    assert make()._service.scheduler.stats().room < 2**28


def test_a_client_that_leaves_frees_its_slot(make):
    replica = make()
    scope = carried({"type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"",
                     "headers": [(b"content-type", b"application/json")]}, "id-1", None)  # fmt: skip
    body = {"model": "toy", "prompt": "hello", "max_tokens": 48, "stream": True, "n": 2,
            "fastdllm": {"decoder": "topk:k=1", "cache": "none"}}  # fmt: skip

    async def run() -> None:
        items = replica.answer(scope, json.dumps(body).encode())
        await anext(items)
        await items.aclose()
        await asyncio.wait_for(freed(), PATIENCE)

    async def freed() -> None:
        while stats().free_slots < 2:
            await asyncio.sleep(0.01)

    stats = replica._service.scheduler.stats
    asyncio.run(run())
    assert stats().cancelled == 2
