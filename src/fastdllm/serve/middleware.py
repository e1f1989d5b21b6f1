"""What every request passes on its way in and out: its id and its line in the log, and the limit of its body."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from typing import Protocol
from urllib.parse import quote

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastdllm.serve.errors import GONE, RETRY, ApiError

logger = logging.getLogger("fastdllm.serve")

UNSENT = 0
ENDED = ApiError(503, "the server was stopped before the request was done.", code="server_closing", retry_after=RETRY)
PROBES = ("/health", "/metrics")
"""Paths that are asked for all the time; their lines in the log are for debugging."""
IDS = re.compile(r"[\w.-]{1,64}", re.ASCII)
DISCARDED = 16
"""Times the limit that is read of a body that is too long: a client that still sends would not see the refusal."""


class RequestCounts(Protocol):
    """Where requests are counted."""

    def request(self, path: str, status: int, seconds: float) -> None:
        """A request has ended."""


class RequestLog:
    """Gives every request an id, which comes back as ``x-request-id``, counts it, and writes its line in the log."""

    def __init__(self, app: ASGIApp, metrics: RequestCounts) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        number, began, status = request_id(scope), time.monotonic(), UNSENT
        about = scope["fastdllm"] = {"id": number}

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", number.encode())]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except ClientDisconnect:
            pass  # the status is noted already
        except asyncio.CancelledError:  # the server was told to end at once: nothing comes after this task
            if status == UNSENT:
                await ENDED.response()(scope, receive, sent)
        finally:
            self._write(scope, about.get("status", status) or GONE, time.monotonic() - began)

    def _write(self, scope: Scope, status: int, seconds: float) -> None:
        about, route = scope["fastdllm"], scope.get("route")
        self._metrics.request(getattr(route, "path", "other"), status, seconds)
        path, note = quote(scope["path"][:200]), about.get("note", "")
        level = logging.DEBUG if path in PROBES and status == 200 else logging.INFO
        logger.log(level, "%s %s %d %.3fs id=%s%s", scope["method"], path, status, seconds, about["id"], note)


def request_id(scope: Scope) -> str:
    """The client's own where it is harmless in a log, else a new one."""
    given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), "")
    return given if IDS.fullmatch(given) else f"req-{uuid.uuid4().hex}"


class BodyLimit:
    """Refuses bodies that are longer than allowed, before they are held in memory."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = 0

        async def limited() -> Message:
            nonlocal length
            message = await receive()
            if message["type"] == "http.request":
                length += len(message.get("body", b""))
                if length > self._limit:
                    await self._discard(receive, message)
                    raise ApiError(413, f"the body is longer than the {self._limit} bytes that are served.")
            return message

        await self._app(scope, limited, send)

    async def _discard(self, receive: Receive, message: Message) -> None:
        read = self._limit
        while message.get("more_body", False) and read < DISCARDED * self._limit:
            message = await receive()
            read += len(message.get("body", b""))
