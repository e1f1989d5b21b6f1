"""Answers on their way out: as server-sent events, or whole, and either way only as long as the client is there."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from fastdllm.serve import asked
from fastdllm.serve.errors import GONE, Json, api_error
from fastdllm.serve.exchange import Exchange, Update
from fastdllm.serve.forms import Form
from fastdllm.serve.schema import Shared
from fastdllm.serve.service import Service

logger = logging.getLogger("fastdllm.serve")

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the second keeps nginx from holding events back
DONE = b"data: [DONE]\n\n"
T = TypeVar("T")


def event(content: object) -> bytes:
    """A server-sent event; JSON in ASCII has no character that a reader could take for the end of a line."""
    return b"data: " + json.dumps(content, separators=(",", ":"), allow_nan=False).encode() + b"\n\n"


class EventStream(StreamingResponse):
    """Server-sent events.

    Args:
        events: closed as soon as nobody reads them.
        close: called at the end, too, should nobody have begun to read them.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], close: Callable[[], None]) -> None:
        super().__init__(events, headers=HEADERS, media_type="text/event-stream")
        self._generator, self._close = events, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._generator):
                await super().__call__(scope, receive, send)
        finally:
            self._close()


async def attended(request: Request, work: Awaitable[T]) -> T:
    """The result of ``work``, which is given up when the client leaves.

    Raises:
        ClientDisconnect: it has left.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def respond(
    service: Service, request: Request, body: Shared, form: Form, prompts: Sequence[Sequence[int]], *, where: str
) -> Response:
    """Answer prompts, whole or as a stream that has begun.

    Args:
        where: the field that holds the prompts.

    Raises:
        ApiError: what went wrong before anything was sent.
    """
    jobs = asked.jobs(service, body, prompts, where=where)
    exchange = Exchange(service, jobs, asked.stops(body), sum(map(len, prompts)))
    return await _Answering(service=service, request=request, body=body, form=form, exchange=exchange).respond()


def log_text(service: Service, request: Request, what: str, content: object) -> None:
    """Write prompts or answers into the log, where the settings allow it."""
    if service.settings.log_text:
        logger.info("id=%s %s %s", request.scope["fastdllm"]["id"], what, json.dumps(content))


@dataclass(frozen=True, kw_only=True)
class _Answering:
    """One request on its way to its answer."""

    service: Service
    request: Request
    body: Shared
    form: Form
    exchange: Exchange

    async def respond(self) -> Response:
        try:
            self.exchange.submit()
            if not self.body.stream:
                await attended(self.request, self.exchange.finish())
                return self._whole()
            await attended(self.request, self.exchange.begin())
        except (ClientDisconnect, asyncio.CancelledError):
            self._end(GONE, "gone")
            raise
        except Exception as error:
            failure = api_error(error, param="fastdllm")
            self._end(failure.status_code, type(error).__name__)
            raise failure from error
        return EventStream(self._events(), self.exchange.close)

    def _whole(self) -> Response:
        choices = [self.form.choice(index, answer) for index, answer in enumerate(self.exchange.answers)]
        head = self._head(self.form.whole)
        self._end(200, "")
        return Json({**head, "choices": choices, "usage": self.exchange.usage()})

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"{self.form.prefix}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": self.service.name,
            "system_fingerprint": self.service.settings.fingerprint,
        }

    async def _events(self) -> AsyncGenerator[bytes, None]:
        """The chunks of the answer; what goes wrong by now is the last of them."""
        status, outcome = GONE, "gone"
        options = self.body.stream_options
        wants_usage = options is not None and bool(options.include_usage)
        head = self._head(self.form.chunk) | ({"usage": None} if wants_usage else {})
        try:
            for index in range(len(self.exchange.answers)):
                if opening := self.form.opening(index):
                    yield event({**head, "choices": [opening]})
            async with aclosing(self.exchange.updates()) as updates:
                async for update in updates:
                    for chunk in self._chunks(update):
                        yield event(head | chunk)
            if wants_usage:
                yield event({**head, "choices": [], "usage": self.exchange.usage()})
            status, outcome = 200, ""
            yield DONE
        except Exception as error:
            failure = api_error(error)
            status, outcome = failure.status_code, type(error).__name__
            yield event(failure.body)
        finally:
            self._end(status, outcome)

    def _chunks(self, update: Update) -> Iterator[dict[str, Any]]:
        """What a pass adds to a choice, what its canvas looks like where this is asked for, and its end."""
        index, delta, form = update.index, update.delta, self.form
        if delta.text or delta.tokens:
            yield {"choices": [form.part(index, delta.text, delta.tokens)]}
        if self.body.fastdllm is not None and self.body.fastdllm.stream_drafts:
            view = {"index": index, **update.answer.view(update.event)}
            yield {"choices": [form.part(index, "", ())], "fastdllm": view}
        if update.answer.finish_reason:
            yield {"choices": [form.part(index, "", (), update.answer.finish_reason)]}

    def _end(self, status: int, outcome: str) -> None:
        """Free what is left of the request, and note for the log what it took and what became of it."""
        self.exchange.close()
        usage = self.exchange.usage()
        said = [f"{name}={usage[f'{name}_tokens']}" for name in ("prompt", "completion")]
        note = [*said, f"nfe={usage['nfe']}", *([f"ended={outcome}"] if outcome else [])]
        self.request.scope["fastdllm"].update(status=status, note=" " + " ".join(note))
        log_text(self.service, self.request, "answers", [answer.text for answer in self.exchange.answers])
