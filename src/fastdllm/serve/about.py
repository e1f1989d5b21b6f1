"""What the server tells of itself: its model, its health, its metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

import fastdllm
from fastdllm.catalogue import Entry, catalogue
from fastdllm.config import GenerationConfig, describe
from fastdllm.serve.document import refusals
from fastdllm.serve.errors import Json
from fastdllm.serve.replies import HealthReply, ModelReply, ModelsReply
from fastdllm.serve.service import Service


def about_routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["server"])
    card = model_card(service)

    @router.get("/v1/models", response_model=ModelsReply, responses=refusals(401))
    async def list_models() -> Response:
        """The model that is served, and what requests may ask of it."""
        return Json({"object": "list", "data": [card]})

    @router.get("/v1/models/{model:path}", response_model=ModelReply, responses=refusals(401, 404))
    async def retrieve_model(model: str) -> Response:
        """One model."""
        service.check_model(model)
        return Json(card)

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **refusals(401)},
    )
    async def metrics() -> Response:
        """Counters and measurements, for Prometheus."""
        return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return router


def health_routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["server"])

    @router.get(
        "/health", response_model=HealthReply, responses={503: {"model": HealthReply, "description": "Not to be used."}}
    )
    async def health() -> Response:
        """Whether requests are taken; open to all."""
        stats = service.scheduler.stats()
        status = "closing" if stats.closing else "ok" if stats.healthy else "failed"
        content = {"status": status, "model": service.name, "version": fastdllm.__version__}
        return Json(content, status_code=200 if status == "ok" else 503)

    return router


def model_card(service: Service) -> dict[str, Any]:
    """What `/v1/models` says of the model."""
    engine, settings = service.engine, service.settings
    options = GenerationConfig(**settings.options)
    tables = catalogue()
    return {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "fastdllm",
        "fastdllm": {
            "family": engine.config.family,
            "dtype": engine.precision,
            "device": str(engine.device),
            "max_model_len": service.max_model_len,
            "max_choices": settings.max_choices,
            "chat": engine.uses_template(),
            "aliases": list(settings.aliases),
            "caches": [_strategy(entry) for entry in tables["Caches"]],
            "decoders": [_strategy(entry) for entry in tables["Decoders"]],
            "defaults": {
                "max_tokens": options.gen_length,
                "temperature": options.temperature,
                "top_p": options.top_p,
                "cache": describe(options.policy),
                "decoder": describe(options.rule),
                "block_length": options.block_length,
            },
        },
    }


def _strategy(entry: Entry) -> dict[str, Any]:
    parameters = [{"name": p.name, "type": p.type, "default": p.default} for p in entry.parameters]
    return {"name": entry.name, "summary": entry.what, "source": entry.source, "parameters": parameters}
