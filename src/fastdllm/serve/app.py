"""The application: one model behind OpenAI's protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import RedirectResponse

import fastdllm
from fastdllm.engine import Engine
from fastdllm.serve import errors
from fastdllm.serve.about import about_routes, health_routes
from fastdllm.serve.auth import Auth
from fastdllm.serve.chat import chat_routes
from fastdllm.serve.completions import completion_routes
from fastdllm.serve.document import ABOUT, TITLE
from fastdllm.serve.middleware import BodyLimit, RequestCounts, RequestLog
from fastdllm.serve.service import Service
from fastdllm.serve.settings import Settings
from fastdllm.serve.static_files import files, static_routes

DOCUMENT, DOCS, HEALTH = "/openapi.json", "/docs", "/health"


def create_app(engine: Engine, settings: Settings | None = None) -> FastAPI:
    """The application of a model; ``app.state.service`` has the parts.

    The model thread starts with the application and ends with it: what runs then has ``drain_seconds`` to finish.

    Raises:
        OptionError: the limits do not allow a single request.
    """
    settings = settings or Settings()
    service = Service(engine, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.scheduler.start()
        yield
        await asyncio.to_thread(service.stop)

    # No page with the document in it: FastAPI's would load its scripts from another host.
    app = FastAPI(
        title=TITLE, description=ABOUT, version=fastdllm.__version__, lifespan=lifespan,
        openapi_url=DOCUMENT, docs_url=None, redoc_url=None,
    )  # fmt: skip
    app.state.service = service
    errors.install(app)
    # The check itself stands before the routes and the reading of bodies; this is for the document.
    needs = [Depends(HTTPBearer(auto_error=False, description="One of the server's API keys."))]
    for routes in (chat_routes, completion_routes, about_routes):
        app.include_router(routes(service), dependencies=needs if settings.api_keys else [])
    app.include_router(health_routes(service))
    app.add_api_route(DOCS, lambda: RedirectResponse(DOCUMENT[1:]), include_in_schema=False)
    if settings.playground:
        app.include_router(static_routes())
    wrap(app, settings, service.metrics)
    return app


def wrap(app: FastAPI, settings: Settings, metrics: RequestCounts) -> None:
    """What requests pass, from the inside to the outside."""
    app.add_middleware(BodyLimit, limit=settings.max_body)
    if settings.api_keys:
        is_open = {DOCUMENT, DOCS, HEALTH, *(files() if settings.playground else ())}
        app.add_middleware(Auth, keys=settings.api_keys, is_open=is_open)
    if settings.allow_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.allow_origins, allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"], expose_headers=["x-request-id", "retry-after"],
        )  # fmt: skip
    app.add_middleware(RequestLog, metrics=metrics)
