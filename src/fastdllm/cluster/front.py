"""Where requests arrive: each is given to a replica, and to another where that one ends before it has answered.

What answers is the server's own application, in every replica; here are only the checks that keep a request from
being sent at all (key, length of the body), the log, and the answers that no replica can give.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketClose

import fastdllm
from fastdllm.cluster.metrics import FrontMetrics
from fastdllm.cluster.passage import Passage
from fastdllm.serve import errors
from fastdllm.serve.app import HEALTH, wrap
from fastdllm.serve.errors import GONE, Json
from fastdllm.serve.respond import attended
from fastdllm.serve.scheduler import GRACE
from fastdllm.serve.service import Facts
from fastdllm.serve.settings import Settings

PATIENCE = 5.0
"""Seconds within which a replica says how it is."""


class Front:
    """All replicas as one service.

    Args:
        settings: what clients meet; see :func:`behind` for what replicas are given.
        token: what replicas ask for in place of the clients' keys.
    """

    def __init__(
        self, handle: DeploymentHandle[Any], settings: Settings, facts: Facts, token: str | None = None
    ) -> None:
        self.settings, self.facts, self.token = settings, facts, token
        self.handle: Any = handle
        self.answers: Any = handle.options(stream=True, method_name="answer")
        self.metrics = FrontMetrics()
        self.closing = False
        self.closed = asyncio.Event()
        """Set once every replica has finished what it had."""
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Called where requests are answered."""
        self._loop = asyncio.get_running_loop()

    def stop(self) -> None:
        """Have every replica finish what runs and refuse what comes; returns when all have."""
        self.closing = True
        with suppress(RayError, RayServeException, TimeoutError):  # who cannot be told has nothing left to finish
            answers = self.handle.broadcast("stop")
            answers.results(timeout_s=self.settings.drain_seconds + 2 * GRACE, return_exceptions=True)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.closed.set)

    async def status(self) -> str:
        """As in the answer of ``/health``."""
        if self.closing:
            return "closing"
        call = self.handle.works.remote()
        try:
            return "ok" if await asyncio.wait_for(call, PATIENCE) else "failed"
        except (RayError, RayServeException, TimeoutError, asyncio.TimeoutError):
            call.cancel()
            return "failed"

    async def page(self) -> bytes:
        """The metrics of all replicas that answer, and those of this place."""
        try:
            answers = self.handle.broadcast("metrics")
            found = await answers.results_async(timeout_s=PATIENCE, return_exceptions=True)
        except (RayError, RayServeException, TimeoutError):
            found = []
        return self.metrics.page([one for one in found if not isinstance(one, BaseException)])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have a replica answer a request."""
        if scope["type"] != "http":
            await WebSocketClose()(scope, receive, send)
            return
        request = Request(scope, receive)
        passage = Passage(self, scope, await request.body(), send)
        try:
            await attended(request, passage.run())
        except ClientDisconnect:
            scope["fastdllm"].update(status=GONE, note=" ended=gone")
            if not passage.started:
                raise


def behind(settings: Settings) -> tuple[Settings, str | None]:
    """What replicas are given of a server's settings: no key of a client's, but one token that the front shows them."""
    token = secrets.token_urlsafe() if settings.api_keys else None
    return replace(settings, api_keys=(token,) if token else (), allow_origins=()), token


def create_front(front: Front) -> FastAPI:
    """The application that stands before the replicas; ``app.state.service`` is the front."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        front.start()
        yield

    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.state.service = front
    errors.install(app)

    @app.get(HEALTH)
    async def health() -> Response:
        status = await front.status()
        content = {"status": status, "model": front.facts.name, "version": fastdllm.__version__}
        return Json(content, status_code=200 if status == "ok" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(await front.page(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app.router.default = front
    app.router.redirect_slashes = False
    wrap(app, front.settings, front.metrics)
    return app
