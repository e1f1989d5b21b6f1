# ruff: noqa: E402  # whether Ray is there is asked before it is imported
"""What stands before the replicas: a request whose replica ends is asked of another, or its client is told."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from typing import Any

import httpx
import pytest

from needs_ray import needs_ray

needs_ray()

from ray.exceptions import RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from fastdllm.cluster import passage
from fastdllm.cluster.deploy import not_of_ray
from fastdllm.cluster.metrics import FrontMetrics, merged
from fastdllm.cluster.passing import converse
from fastdllm.cluster.replica import Gone
from fastdllm.serve.jobs import Stats
from fastdllm.serve.metrics import Metrics
from ray_fakes import DIED, EVENTS, HANGS, Fleet, end, front_of, part, started

WHOLE = [[started(x_request_id="r"), part(b'{"text": "yes"}')], end("two")]
BODY = {"model": "toy", "prompt": "hello"}


def ask(fleet: Any, *, headers: dict[str, str] | None = None, body: object = BODY, path: str = "/v1/completions",
        **settings: Any) -> tuple[httpx.Response, Any]:  # fmt: skip
    """The answer to one request, and the page of metrics afterwards."""
    front, app = front_of(fleet, **settings)

    async def one() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://front") as client:
            return await client.post(path, json=body, headers=headers)

    return asyncio.run(one()), front


def error_of(response: httpx.Response) -> dict[str, Any]:
    return response.json()["error"]


def counted(front: Any, name: str) -> float:
    lines = front.metrics.page([]).decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"fastdllm_front_{name}_total"))


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "fastdllm.serve")
    return caplog


def test_an_answer_is_passed_on_with_what_is_to_be_noted(log):
    fleet = Fleet(WHOLE)
    response, front = ask(fleet, headers={"x-request-id": "mine"})
    assert (response.status_code, response.json()) == (200, {"text": "yes"})
    assert response.headers.get_list("x-request-id") == ["mine"]
    scope, body = fleet.got[0]
    assert json.loads(body) == BODY
    assert (b"x-request-id", b"mine") in scope["headers"]
    assert (scope["path"], scope["method"]) == ("/v1/completions", "POST")
    assert "200" in log.messages[-1]
    assert "nfe=3 replica=two" in log.messages[-1]
    assert counted(front, "replicas_lost") == 0
    assert 'requests_total{path="/v1/completions",status="200"} 1.0' in front.metrics.page([]).decode()


@pytest.mark.parametrize("before", [[DIED], [[started()], DIED], [[started(), part(b"{", more=True)], DIED], []])
def test_what_was_not_sent_yet_is_asked_of_another_replica(before):
    fleet = Fleet(before, WHOLE)
    response, front = ask(fleet)
    assert (response.status_code, response.json()) == (200, {"text": "yes"})
    assert (counted(front, "replicas_lost"), counted(front, "retries")) == (1, 1)
    assert fleet.got[0] == fleet.got[1]


def test_a_replica_that_is_about_to_end_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(passage, "PAUSE", 0.0)
    response, _ = ask(Fleet([Gone()], WHOLE))
    assert response.json() == {"text": "yes"}


def test_a_request_that_ends_its_replicas_does_not_go_through_all(log):
    fleet = Fleet([DIED], [DIED], WHOLE)
    response, front = ask(fleet)
    assert (response.status_code, error_of(response)["code"]) == (503, "replica_lost")
    assert error_of(response)["type"] == "server_error"
    assert int(response.headers["Retry-After"]) >= 1
    assert len(fleet.calls) == 2
    assert counted(front, "replicas_lost") == 2
    assert " 503 " in log.messages[-1]


def test_a_stream_that_has_begun_ends_with_an_error_that_can_be_retried(log):
    fleet = Fleet([[started(EVENTS), part(b"data: 1\n\n", more=True)], DIED], WHOLE)
    response, _ = ask(fleet)
    events = [line for line in response.text.split("\n\n") if line]
    assert events[0] == "data: 1"
    assert json.loads(events[1].removeprefix("data: "))["error"]["code"] == "replica_lost"
    assert len(events) == 2
    assert len(fleet.calls) == 1
    assert " 503 " in log.messages[-1], "the log tells what became of it"


def test_a_stream_arrives_whole_and_in_order(log):
    """What is noted of it comes last, and its client does not count as gone before."""
    parts = [[part(b"%d" % number, more=True)] for number in range(5)]
    response, _ = ask(Fleet([[started(EVENTS)], *parts, [part(b"!", more=True), part(b"")], 0.05, end()]))
    assert response.text == "01234!"
    assert " 200 " in log.messages[-1]
    assert "nfe=3 replica=one" in log.messages[-1]


def test_without_a_replica_in_time_the_request_is_given_up(monkeypatch):
    monkeypatch.setattr(passage, "OVERDUE", 0.0)
    fleet = Fleet([HANGS])
    response, _ = ask(fleet, timeout=0.05)
    assert (response.status_code, error_of(response)["code"]) == (504, "timeout")
    assert fleet.calls[0].cancelled


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (BackPressureError(num_queued_requests=9, max_queued_requests=9), 429, "queue_full"),
        (DeploymentUnavailableError("x"), 503, "no_replica"),
        (RayTaskError("answer", "a trace", ValueError("secret")), 500, "internal_error"),
    ],
)
def test_what_ray_says_is_told_in_the_protocols_shape(error, status, code, log):
    response, _ = ask(Fleet([error]))
    assert (response.status_code, error_of(response)["code"]) == (status, code)
    assert ("Retry-After" in response.headers) == (status != 500)
    assert "secret" not in response.text


def test_keys_stay_before_the_replicas():
    fleet = Fleet(WHOLE)
    for headers in (None, {"Authorization": "Bearer wrong"}):
        refused, _ = ask(fleet, headers=headers, api_keys=("right",))
        assert (refused.status_code, error_of(refused)["code"]) == (401, "invalid_api_key")
    assert fleet.got == []
    served, front = ask(fleet, headers={"Authorization": "Bearer right"}, api_keys=("right",))
    assert served.status_code == 200
    shown = [value for name, value in fleet.got[0][0]["headers"] if name == b"authorization"]
    assert shown == [f"Bearer {front.token}".encode()]


def test_a_body_that_is_too_long_reaches_no_replica():
    fleet = Fleet(WHOLE)
    response, _ = ask(fleet, body={"prompt": "a" * 5000}, max_body=1000)
    assert response.status_code == 413
    assert fleet.got == []


def test_a_client_that_leaves_takes_its_request_back(log):
    fleet = Fleet([[started(EVENTS), part(b"data: 1\n\n", more=True)], HANGS])
    _, app = front_of(fleet)
    sent: list[dict[str, Any]] = []
    inbox = [{"type": "http.request", "body": b"{}", "more_body": False}]

    async def run() -> None:
        streams = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if inbox:
                return inbox.pop()
            await streams.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)
            if message.get("body"):
                streams.set()

        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "query_string": b""}
        await app(scope, receive, send)

    asyncio.run(run())
    assert fleet.calls[0].cancelled
    assert " 499 " in log.messages[-1]
    assert sent[-1]["body"] == b"data: 1\n\n"


def test_once_all_replicas_have_closed_who_still_waits_is_refused():
    fleet = Fleet([HANGS])
    front, app = front_of(fleet)

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://front") as client:
            waiting = asyncio.ensure_future(client.post("/v1/completions", json=BODY))
            while not fleet.calls:
                await asyncio.sleep(0.01)
            front.closing = True
            front.closed.set()
            return await waiting

    response = asyncio.run(run())
    assert (response.status_code, error_of(response)["code"]) == (503, "server_closing")


def test_a_page_of_metrics_has_every_family_once_and_every_replica_by_name():
    replicas = []
    for name, passes in (("one", 3), ("two", 5)):
        zero = dict.fromkeys(Stats.__dataclass_fields__, 0)
        stats = Stats(**{**zero, "passes": passes, "healthy": True})
        replicas.append((name, list(Metrics(lambda stats=stats: stats).registry.collect())))
    page = FrontMetrics().page(replicas).decode()
    assert 'fastdllm_passes_total{replica="one"} 3.0' in page
    assert 'fastdllm_passes_total{replica="two"} 5.0' in page
    assert page.count("# TYPE fastdllm_passes_total counter") == 1
    assert "fastdllm_front_replicas 2.0" in page
    names = [family.name for family in merged(replicas)]
    assert len(names) == len(set(names))


def test_an_application_whose_caller_is_gone_is_told_so():
    heard = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        heard.append((await receive())["body"])
        await send(started())
        heard.append((await receive())["type"])

    async def run() -> None:
        messages = converse(app, {"type": "http"}, b"body")
        assert await anext(messages) == [started()]
        await messages.aclose()

    asyncio.run(run())
    assert heard == [b"body", "http.disconnect"]


def test_an_application_that_fails_is_not_taken_for_one_that_is_done():
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("broken")

    async def run() -> None:
        async for _ in converse(app, {"type": "http"}, b""):
            pass

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(run())


def test_a_line_without_an_exception_is_told(caplog):
    logger = logging.getLogger("asyncio")
    logger.addFilter(not_of_ray)
    try:
        loop = asyncio.new_event_loop()
        loop.call_exception_handler({"message": "a task was destroyed"})
        loop.close()
    finally:
        logger.removeFilter(not_of_ray)
    assert "a task was destroyed" in caplog.text


@pytest.mark.parametrize(("error", "told"), [(DIED, False), (ValueError("broken"), True)])
def test_what_rays_router_leaves_behind_is_not_told(caplog, error, told):
    """A task of its own that asks a replica how busy it is fails when that one ends, and nobody awaits it."""

    async def fails() -> None:
        raise error

    async def run() -> None:
        task = asyncio.ensure_future(fails())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        del task
        gc.collect()

    logger = logging.getLogger("asyncio")
    logger.addFilter(not_of_ray)
    try:
        asyncio.run(run())
    finally:
        logger.removeFilter(not_of_ray)
    assert ("exception was never retrieved" in caplog.text) is told
