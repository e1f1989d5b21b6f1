"""One request and what became of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

DONE = b"[DONE]"
NO_CONNECTION, BROKEN, LATE, FOREIGN = "no connection", "broken off", "too late", "not the protocol"
"""Kinds of failures beside the statuses of refusals and the errors that streams end with."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is sent: its number, its body, and whether an answer is right, where that is known."""

    number: int
    path: str
    body: Mapping[str, Any]
    check: Callable[[str], bool] | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a request. Times are in seconds from the moment it was due; None: the server did not say."""

    number: int
    seconds: float
    """Until its end, whichever that was."""
    failure: str | None = None
    """Why there is no whole answer, in a word or two; None: there is one."""
    first_text: float | None = None
    """Until the first text; None for an answer without any."""
    prompt_tokens: int | None = None
    tokens: int | None = None
    """Of the answer, left of its end token."""
    nfe: int | None = None
    right: bool | None = None
    digest: str | None = None
    """Of the answer's text: the same for the same text."""


class Failure(Exception):
    """There is no whole answer."""

    def __init__(self, kind: str, message: str = "") -> None:
        super().__init__(message)
        self.kind = kind


class Reading:
    """A streamed answer as it comes in."""

    def __init__(self) -> None:
        self.text = ""
        self.first: float | None = None
        """When the first text was there, by the clock."""
        self.usage: Mapping[str, Any] = {}
        self.fingerprint: str | None = None
        self._finished = False

    async def read(self, response: httpx.Response) -> None:
        """Take in the whole stream, to its very end: a connection that is left before cannot be used again.

        Raises:
            Failure: it is none, or not complete.
        """
        done = False
        async for content in events(response):
            if content == DONE:
                done = True
                continue
            try:
                self._add(json.loads(content))
            except (ValueError, TypeError, AttributeError):
                raise Failure(FOREIGN, "an event is not what the protocol says") from None
        if not (done and self._finished):
            raise Failure(BROKEN, "the stream ends and its answer does not")

    def _add(self, chunk: Mapping[str, Any]) -> None:
        if "error" in chunk:
            raise _refusal(chunk, "error in the stream")
        self.usage = dict(chunk.get("usage") or self.usage)
        self.fingerprint = chunk.get("system_fingerprint") or self.fingerprint
        for choice in chunk.get("choices") or ():
            text = choice.get("text") or (choice.get("delta") or {}).get("content")
            if text and self.first is None:
                self.first = time.perf_counter()
            self.text += text or ""
            self._finished |= choice.get("finish_reason") is not None


async def events(response: httpx.Response) -> AsyncIterator[bytes]:
    """What stands behind ``data:`` in each of a stream's lines; a character that ends lines elsewhere does not here."""
    rest = b""
    async for part in response.aiter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


def _content(body: bytes) -> Any:
    """What a body says; None where it is no JSON."""
    try:
        return json.loads(body)
    except ValueError:
        return None


def _refusal(body: Any, kind: str) -> Failure:
    """The failure that an error object tells of, where the body is one."""
    error = body.get("error") if isinstance(body, dict) else None
    told = error if isinstance(error, dict) else {}
    code = told.get("code") or told.get("type")
    return Failure(f"{kind} {code}" if code else kind, str(told.get("message") or error or ""))


async def ask(client: httpx.AsyncClient, request: Request) -> Reading:
    """Send a request and read its answer to the end.

    Raises:
        Failure: there is no whole answer.
    """
    reading = Reading()
    try:
        async with client.stream("POST", request.path, json=request.body) as response:
            if response.status_code != 200:
                raise _refusal(_content(await response.aread()), f"status {response.status_code}")
            await reading.read(response)
    except httpx.ConnectError as error:
        raise Failure(NO_CONNECTION, str(error)) from None
    except (httpx.HTTPError, httpx.StreamError) as error:
        raise Failure(BROKEN, str(error)) from None
    return reading


async def measure(client: httpx.AsyncClient, request: Request, due: float, timeout: float) -> Outcome:
    """Send a request and tell what became of it.

    Args:
        due: when it should be sent, by ``time.perf_counter``: what it waits here counts, too.
        timeout: seconds from now after which it is given up.
    """
    try:
        reading = await asyncio.wait_for(ask(client, request), timeout)
    except asyncio.TimeoutError:
        return Outcome(number=request.number, seconds=_since(due), failure=LATE)
    except Failure as failure:
        return Outcome(number=request.number, seconds=_since(due), failure=failure.kind)
    seconds, usage = _since(due), reading.usage
    return Outcome(
        number=request.number,
        seconds=seconds,
        first_text=None if reading.first is None else round(reading.first - due, 6),
        prompt_tokens=usage.get("prompt_tokens"),
        tokens=usage.get("completion_tokens"),
        nfe=usage.get("nfe"),
        right=request.check(reading.text) if request.check else None,
        digest=hashlib.sha256(reading.text.encode(errors="surrogatepass")).hexdigest()[:8],
    )


def _since(due: float) -> float:
    """Seconds, to the microsecond."""
    return round(time.perf_counter() - due, 6)
