"""What the clients of a soak do, one thing at a time, and how it may end."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import httpx

from serving import PATIENCE
from soak_cases import BAD, COMPLETIONS, POISONED, Case, check_error, check_stream, check_whole

GONE = "gone"
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True, kw_only=True)
class Asking:
    """One thing that a client does. Each method tells how it ended: the status, or that the client left before."""

    http: httpx.AsyncClient
    case: Case
    rng: random.Random
    key: str
    head: dict[str, str]

    async def whole(self) -> str:
        return whole(self.case, await self.http.post(self.case.path, json=self.case.body, headers=self.head))

    async def stream(self) -> str:
        """Read to the end: the whole answer, or a last event that is an error."""
        body = {**self.case.body, "stream": True, "stream_options": {"include_usage": True}}
        body["fastdllm"] = {**body["fastdllm"], "stream_drafts": self.rng.random() < 0.3}
        async with self.http.stream("POST", self.case.path, json=body, headers=self.head) as response:
            if response.status_code != 200:
                return _turned_away(response, json.loads(await response.aread()))
            contents = [content async for content in _events(response)]
        if contents[-1] != "[DONE]":
            assert check_error(json.loads(contents[-1])) == "timeout"
            return "504"
        check_stream(self.case, [json.loads(content) for content in contents[:-1]])
        return "200"

    async def leave_stream(self) -> str:
        """Go after some events."""
        left, body = self.rng.randrange(6), {**self.case.body, "stream": True}
        async with self.http.stream("POST", self.case.path, json=body, headers=self.head) as response:
            if response.status_code != 200:
                return _turned_away(response, json.loads(await response.aread()))
            async with aclosing(_events(response)) as contents:
                async for _ in contents:
                    if not left:
                        break
                    left -= 1
        return GONE

    async def leave_answer(self) -> str:
        """Wait for a short time only."""
        patience = httpx.Timeout(PATIENCE, read=self.rng.uniform(0.001, 0.1))
        try:
            sent = self.http.post(self.case.path, json=self.case.body, headers=self.head, timeout=patience)
            return whole(self.case, await sent)
        except httpx.ReadTimeout:
            return GONE

    async def bad(self) -> str:
        body, status, param = self.rng.choice(BAD)
        return _refused(await self.http.post(COMPLETIONS, json=body, headers=self.head), status, param)

    async def no_json(self) -> str:
        head = {**self.head, **JSON}
        return _refused(await self.http.post(COMPLETIONS, content=b'{"model": ', headers=head), 400)

    async def bad_key(self) -> str:
        head = {**self.head, "Authorization": self.rng.choice(["Bearer another-key", f"Basic {self.key}", ""])}
        return _refused(await self.http.post(self.case.path, json=self.case.body, headers=head), 401)

    async def poison(self) -> str:
        """A request that fails, and no other with it."""
        response = await self.http.post(COMPLETIONS, json=POISONED, headers=self.head)
        if response.status_code == 500:
            assert check_error(response.json()) == "numerical_error"
            return "500"
        return _turned_away(response, response.json())

    async def poison_stream(self) -> str:
        """What failed once the stream had begun is its last event."""
        response = await self.http.post(COMPLETIONS, json={**POISONED, "stream": True}, headers=self.head)
        if response.status_code != 200:
            return _turned_away(response, response.json())
        code = check_error(json.loads(response.text.split("data: ")[-1]))
        return {"numerical_error": "500", "timeout": "504"}[str(code)]

    async def look(self) -> str:
        response = await self.http.get(self.rng.choice(["/health", "/v1/models", "/metrics"]), headers=self.head)
        assert response.status_code == 200
        return "200"


Kind = Callable[[Asking], Awaitable[str]]
KINDS: dict[Kind, int] = {
    Asking.whole: 6, Asking.stream: 6, Asking.leave_stream: 3, Asking.leave_answer: 3, Asking.bad: 3,
    Asking.no_json: 1, Asking.bad_key: 1, Asking.poison: 1, Asking.poison_stream: 1, Asking.look: 1,
}  # fmt: skip
"""What clients do, and how often."""


def whole(case: Case, response: httpx.Response) -> str:
    """A good answer, or one of the two refusals that any request may meet."""
    if response.status_code == 200:
        check_whole(case, response.json())
        return "200"
    return _turned_away(response, response.json())


def _turned_away(response: httpx.Response, content: dict[str, Any]) -> str:
    status = response.status_code
    assert (status, check_error(content)) in ((429, "queue_full"), (504, "timeout"))
    assert status != 429 or int(response.headers["Retry-After"]) >= 1
    return str(status)


def _refused(response: httpx.Response, status: int, param: str | None = None) -> str:
    assert response.status_code == status, response.text
    check_error(response.json(), param)
    return str(status)


async def _events(response: httpx.Response) -> AsyncGenerator[str, None]:
    async for line in response.aiter_lines():
        if line:
            assert line.startswith("data: ")
            yield line.removeprefix("data: ")
