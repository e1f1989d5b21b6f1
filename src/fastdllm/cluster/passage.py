"""One request on its way through the replicas."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.types import Message, Scope, Send

from fastdllm.cluster.passing import carried
from fastdllm.cluster.replica import End, Gone
from fastdllm.serve.errors import RETRY, ApiError, api_error
from fastdllm.serve.exchange import OVERDUE
from fastdllm.serve.jobs import ServerClosing, TimedOut
from fastdllm.serve.respond import event

if TYPE_CHECKING:
    from fastdllm.cluster.front import Front

ATTEMPTS = 2
"""Replicas that a request is given to at most: one that is itself what ends them must not go through all."""
PAUSE = 1.5
"""Seconds until a replica that is about to end has done so."""
LOST = "the replica that worked on this request has ended; try again."


class Passage:
    """A request that is given to a replica, and its answer that is passed on.

    An answer that is no stream is sent once it is whole, so that until then another replica can be asked.
    """

    def __init__(self, front: Front, scope: Scope, body: bytes, send: Send) -> None:
        self.started = False
        """Whether something of the answer was sent."""
        self._front, self._scope, self._body, self._send = front, scope, body, send
        self._carried = carried(scope, scope["fastdllm"]["id"], front.token)
        self._deadline = time.monotonic() + front.settings.timeout + OVERDUE
        self._held: list[Message] = []

    async def run(self) -> None:
        """Answer the request.

        Raises:
            ApiError: there is no answer, and nothing was sent.
        """
        try:
            await self._run()
        except Exception as error:
            failure = _explain(error)
            if not self.started:
                raise failure from error
            self._scope["fastdllm"].update(status=failure.status_code, note=f" ended={type(error).__name__}")
            await self._send({"type": "http.response.body", "body": event(failure.body), "more_body": False})

    async def _run(self) -> None:
        for attempt in range(ATTEMPTS):
            if attempt:
                self._front.metrics.retried()
            if await self._attempt():
                return
            self._front.metrics.lost()
            self._held.clear()
            if self._front.closing:
                raise ServerClosing("the server closed before the request was done.")
            if self.started:
                break
        raise ApiError(503, LOST, code="replica_lost", retry_after=RETRY)

    async def _attempt(self) -> bool:
        """Give the request to a replica; False where that one has ended before its answer had."""
        call, end = self._front.answers.remote(self._carried, self._body), None
        try:
            item = await self._first(call)
            while item is not None:
                if isinstance(item, Gone):
                    await asyncio.sleep(PAUSE)
                    return False
                if isinstance(item, End):
                    end = item
                else:
                    await self._pass_on(item)
                item = await anext(call, None)
        except RayTaskError:
            raise
        except RayError:
            return False
        finally:
            if end is None:
                call.cancel()
        if end is None:
            return False
        self._note(end)
        await self._release()
        return True

    async def _first(self, call: Any) -> list[Message] | End | Gone | None:
        """The first that a replica sends; it may be long until there is a replica that can be asked."""
        first, closed = asyncio.ensure_future(anext(call, None)), asyncio.ensure_future(self._front.closed.wait())
        left = max(0.0, self._deadline - time.monotonic())
        try:
            await asyncio.wait((first, closed), timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if first.done():
                return first.result()
            if closed.done():
                raise ServerClosing("the server is closing and takes no more requests.")
            raise TimedOut("the request took longer than it may; no replica has answered it.")
        finally:
            for one in (first, closed):
                one.cancel()
            await asyncio.gather(first, closed, return_exceptions=True)

    async def _pass_on(self, messages: list[Message]) -> None:
        """Send what of an answer need not be held back: all of a stream but its end, after which no client waits."""
        self._held += messages
        headers = dict(self._held[0].get("headers", ()))
        if self.started or headers.get(b"content-type", b"").startswith(b"text/event-stream"):
            last = not self._held[-1].get("more_body", True)
            kept = [self._held.pop()] if last else []
            await self._release()
            self._held = kept

    async def _release(self) -> None:
        held, self._held = self._held, []
        for message in held:
            self.started = True
            if message["type"] == "http.response.start":  # the id stands in the front's own header
                headers = [(name, value) for name, value in message["headers"] if name != b"x-request-id"]
                message = {**message, "headers": headers}
            await self._send(message)

    def _note(self, end: End) -> None:
        """For the log."""
        about = self._scope["fastdllm"]
        about["note"] = f"{end.note} replica={end.replica}"
        if end.status is not None:
            about["status"] = end.status
        self._scope["route"] = SimpleNamespace(path=end.path)


def _explain(error: Exception) -> ApiError:
    """What a client is told."""
    if isinstance(error, BackPressureError):
        return ApiError(429, "too many requests wait already; try again.", code="queue_full", retry_after=RETRY)
    if isinstance(error, DeploymentUnavailableError):
        return ApiError(503, "there is no replica to answer; try again.", code="no_replica", retry_after=RETRY)
    return api_error(error)
