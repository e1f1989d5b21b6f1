"""A request as it is passed on to another process, and what its application sends back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.types import ASGIApp, Message, Scope

LAST_WORDS = 5.0
"""Seconds that an application has to end once it was told that its client has left."""
CARRIED = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers",
           "client", "server")  # fmt: skip


REPLACED = (b"x-request-id", b"authorization")


def carried(scope: Scope, request_id: str, token: str | None) -> Scope:
    """What of a request's scope another process can use, under the id that it has here, with the token as its key."""
    headers = [(name, value) for name, value in scope["headers"] if name not in REPLACED]
    headers.append((b"x-request-id", request_id.encode()))
    if token is not None:
        headers.append((b"authorization", f"Bearer {token}".encode()))
    # Below 2.4 an application waits for the message that the client has left, which is how it is told here.
    asgi = {"version": "3.0", "spec_version": "2.3"}
    return {**{name: scope[name] for name in CARRIED if name in scope}, "headers": headers, "asgi": asgi}


async def converse(app: ASGIApp, scope: Scope, body: bytes) -> AsyncIterator[list[Message]]:
    """Run a request through an application, and give what it sends: each time all that is there.

    When this is given up before the end, the application is told that its client has left.
    """
    inbox: asyncio.Queue[Message] = asyncio.Queue()
    outbox: asyncio.Queue[Message | None] = asyncio.Queue()
    inbox.put_nowait({"type": "http.request", "body": body, "more_body": False})
    task = asyncio.ensure_future(app(scope, inbox.get, outbox.put))
    task.add_done_callback(lambda _: outbox.put_nowait(None))
    try:
        ended = False
        while not ended:
            messages = [await outbox.get()]
            while not outbox.empty():
                messages.append(outbox.get_nowait())
            ended = messages[-1] is None
            if sent := [message for message in messages if message is not None]:
                yield sent
        task.result()
    finally:
        if not task.done():
            inbox.put_nowait({"type": "http.disconnect"})
            await asyncio.wait({task}, timeout=LAST_WORDS)
            task.cancel()
