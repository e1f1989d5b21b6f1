"""Two replicas behind one address: what they answer, and what becomes of requests when one of them is killed."""
# ruff: noqa: E402  # whether Ray is there is asked before anything is started

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Iterator

import httpx
import openai
import pytest

from needs_ray import needs_ray

needs_ray()

from ray_session import PATIENCE, Session, session

pytestmark = pytest.mark.slow
KEY = "a-key-of-ours"
SLOTS, LENGTH = 4, 192
OPTIONS = {"gen_length": 64, "block_length": 32, "cache": "none", "decoder": "topk:k=1"}
ASKED = {
    "model": "tiny", "max_tokens": 64, "extra_body": {"fastdllm": {"cache": "none", "decoder": "topk:k=1"}},
}  # fmt: skip


class Served:
    """The server and its address."""

    def __init__(self, running: Session) -> None:
        self.running = running
        running.until(lambda: "curl http" in running.said)
        self.url = re.search(r"http://[\d.]+:\d+", running.said).group()  # type: ignore[union-attr]

    def get(self, path: str, key: str | None = KEY) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.get(self.url + path, headers=headers, timeout=PATIENCE)

    def sums(self, name: str) -> float:
        """A metric summed over what has it."""
        found = re.findall(rf"^fastdllm_{name}(?:{{.*}})? (\S+)$", self.get("/metrics").text, re.MULTILINE)
        return sum(map(float, found))

    def replicas(self) -> list[int]:
        return self.running.processes("ray::serve", "replica")

    def client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=PATIENCE)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    options = ("--max-batch", str(SLOTS), "--max-model-len", str(LENGTH), "--port", "0", "--drain-seconds", "60")
    with session("fastdllm", "serve", "--replicas", "2", *options, FASTDLLM_API_KEYS=KEY) as running:
        yield Served(running)


def question(number: int) -> str:
    return f"Anna has {number} pears and gives away {number // 2} pears. How many pears are left?"


@pytest.fixture(scope="module")
def expected(tiny) -> list[str]:
    """What the engine answers without a server."""
    return [answer.text for answer in tiny.generate([question(n) for n in range(24)], **OPTIONS)]


async def whole(client: openai.AsyncOpenAI, number: int) -> str:
    messages = [{"role": "user", "content": question(number)}]
    return (await client.chat.completions.create(messages=messages, **ASKED)).choices[0].message.content


async def streamed(client: openai.AsyncOpenAI, number: int, parts: list[str]) -> str:
    messages = [{"role": "user", "content": question(number)}]
    async for chunk in await client.chat.completions.create(messages=messages, stream=True, **ASKED):
        parts.append(chunk.choices[0].delta.content or "")
    return "".join(parts)


def test_both_replicas_answer_and_as_the_engine_does(served, expected):
    async def run() -> list[str]:
        async with served.client() as client:
            parts: list[list[str]] = [[] for _ in range(4)]
            streams = [streamed(client, n, parts[n]) for n in range(4)]
            answers = await asyncio.gather(*streams, *(whole(client, n) for n in range(4, 8)))
            assert all(len([part for part in one if part]) > 2 for one in parts), "it came in parts"
            return answers

    assert asyncio.run(run()) == expected[:8]
    page = served.get("/metrics").text
    finished = re.findall(r'^fastdllm_jobs_finished_total{replica="(\w+)"} (\S+)$', page, re.MULTILINE)
    assert len(finished) == 2
    assert all(float(count) > 0 for _, count in finished)
    assert sum(float(count) for _, count in finished) == 8


def test_errors_are_those_of_the_single_server(served):
    def post(key: str = KEY, **fields: object) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"}
        body = {"model": "tiny", "prompt": "Tom has", **fields}
        return httpx.post(f"{served.url}/v1/completions", json=body, headers=headers, timeout=PATIENCE)

    wrong = [
        (post(max_tokens=LENGTH + 1), 400, "max_tokens", None),
        (post(fastdllm={"cache": "doual"}), 400, "fastdllm.cache", None),
        (post(model="other"), 404, "model", "model_not_found"),
        (post(key="wrong"), 401, None, "invalid_api_key"),
        (post(prompt="x" * 3 * 2**20), 413, None, None),
    ]
    for response, status, param, code in wrong:
        error = response.json()["error"]
        assert (response.status_code, error["param"], error["code"]) == (status, param, code), response.text
        assert response.headers["x-request-id"].startswith("req-")
    assert served.get("/health", key=None).json()["status"] == "ok"
    assert served.get("/v1/models").json()["data"][0]["id"] == "tiny"
    assert served.get("/", key=None).headers["content-type"].startswith("text/html")
    assert "HTTPBearer" in served.get("/openapi.json", key=None).text


def test_a_client_that_leaves_frees_the_slots_of_its_replica(served):
    body = {"model": "tiny", "prompt": "Tom has", "max_tokens": 160, "n": 4, "stream": True, **ASKED["extra_body"]}
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.stream("POST", f"{served.url}/v1/completions", json=body, headers=headers, timeout=PATIENCE) as stream:
        next(stream.iter_lines())
    served.running.until(lambda: served.sums("jobs_cancelled_total") == 4)
    served.running.until(lambda: served.sums("free_slots") == 2 * SLOTS)


def test_a_killed_replica_costs_no_request_but_streams_that_had_begun(served, expected):
    """Those are told so; everything else is answered, the replica is replaced, and both serve again."""
    before = served.replicas()
    assert len(before) == 2

    async def run() -> list[object]:
        async with served.client() as client:
            parts: list[list[str]] = [[] for _ in range(8)]
            streams = [streamed(client, n, parts[n]) for n in range(8)]
            tasks = [asyncio.ensure_future(one) for one in (*streams, *(whole(client, n) for n in range(8, 24)))]
            while not any(parts):
                await asyncio.sleep(0.01)
            os.kill(before[0], signal.SIGKILL)
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            for number, one in enumerate(ended[:8]):
                if isinstance(one, openai.APIError):
                    assert one.code == "replica_lost"
                    assert expected[number].startswith("".join(parts[number]))
                    ended[number] = expected[number]
            return ended

    assert asyncio.run(run()) == expected
    assert served.sums("front_replicas_lost_total") > 0, "nothing was at work on it"
    served.running.until(lambda: served.sums("front_replicas") == 2)
    after = served.replicas()
    assert before[0] not in after

    async def later() -> list[str]:
        async with served.client() as client:
            return await asyncio.gather(*(whole(client, n) for n in range(12)))

    lost = served.sums("front_replicas_lost_total")
    assert asyncio.run(later()) == expected[:12]
    assert served.sums("front_replicas_lost_total") == lost
    page = served.get("/metrics").text
    finished = re.findall(r'^fastdllm_jobs_finished_total{replica="\w+"} (\S+)$', page, re.MULTILINE)
    assert len(finished) == 2
    assert all(float(count) > 0 for count in finished), "the new replica answers, too"


def test_told_to_stop_it_finishes_what_runs_and_leaves_nothing_behind(served, expected):
    async def run() -> str:
        async with served.client() as client:
            parts: list[str] = []
            task = asyncio.ensure_future(streamed(client, 3, parts))
            while not parts:
                await asyncio.sleep(0.01)
            served.running.process.send_signal(signal.SIGTERM)
            return await task

    assert asyncio.run(run()) == expected[3]
    assert served.running.wait() == 0
    assert "stopped" in served.running.said.splitlines()  # Ray may say something after it
    assert "Traceback" not in served.running.said
    assert KEY not in served.running.said
    assert served.running.gone()
