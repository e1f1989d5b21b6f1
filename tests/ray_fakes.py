"""Replicas for tests of what stands before them: they do as they are told, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from ray.exceptions import ActorDiedError

from fastdllm.cluster.front import Front, behind, create_front
from fastdllm.cluster.replica import End
from fastdllm.serve.service import Facts
from fastdllm.serve.settings import Settings

FACTS = Facts(name="toy", dtype="float32", device="cpu", slots=2, max_model_len=64, kv_bytes=1, chat=False)
JSON, EVENTS = b"application/json", b"text/event-stream"
DIED = ActorDiedError()
HANGS = "hangs"

Script = list[Any]
"""What a replica gives in turn: items of its answer, errors that it raises, seconds that pass, or that it hangs."""


class Call:
    """A call of a replica, as Ray Serve gives one back."""

    def __init__(self, script: Script) -> None:
        self.cancelled = False
        self._items = self._run(script)

    async def _run(self, script: Script) -> AsyncIterator[Any]:
        for item in script:
            if isinstance(item, Exception):
                raise item
            if item == HANGS:
                await asyncio.Event().wait()
            if isinstance(item, float):
                await asyncio.sleep(item)
            else:
                yield item

    def __aiter__(self) -> Call:
        return self

    async def __anext__(self) -> Any:
        return await anext(self._items)

    def cancel(self) -> None:
        self.cancelled = True


class Fleet:
    """Stands for the handle of the replicas: every request is answered by the next script."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.calls: list[Call] = []
        self.got: list[tuple[dict[str, Any], bytes]] = []

    def options(self, **_: object) -> Fleet:
        return self

    def remote(self, scope: dict[str, Any], body: bytes) -> Call:
        self.got.append((scope, body))
        self.calls.append(Call(self.scripts.pop(0)))
        return self.calls[-1]


def started(kind: bytes = JSON, status: int = 200, **headers: str) -> dict[str, Any]:
    own = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": [(b"content-type", kind), *own]}


def part(content: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": content, "more_body": more}


def end(replica: str = "one") -> End:
    return End(replica=replica, path="/v1/completions", note=" nfe=3", status=None)


def front_of(handle: Any, **settings: Any) -> tuple[Front, Any]:
    """The place where requests arrive, and its application."""
    own = Settings(**settings)
    front = Front(handle, own, FACTS, behind(own)[1])
    return front, create_front(front)
