"""One copy of the model at work: the server's own application, which requests reach through Ray."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from prometheus_client.metrics_core import Metric

from fastdllm.cluster.passing import converse
from fastdllm.cluster.workers import Checkpoint, Workers
from fastdllm.errors import FastdllmError
from fastdllm.memory import available
from fastdllm.record import fingerprint
from fastdllm.serve.app import create_app
from fastdllm.serve.jobs import Limits
from fastdllm.serve.pool import SHARE
from fastdllm.serve.service import Facts, Service
from fastdllm.serve.settings import Settings

if TYPE_CHECKING:
    from starlette.types import Message, Scope

    from fastdllm.engine import Engine

logger = logging.getLogger("fastdllm.serve")

TELLING = 30.0
"""Seconds in which a replica that was refused is asked why, when a server starts."""


@dataclass(frozen=True, kw_only=True)
class End:
    """What is told of a request once its answer is complete."""

    replica: str
    path: str
    """Of the route, for counting."""
    note: str
    """For the log."""
    status: int | None
    """Where it is not the one that was sent."""


@dataclass(frozen=True, kw_only=True)
class Gone:
    """Takes the place of an answer: the replica is about to end, and another should be asked."""


class Replica:
    """A model with its scheduler and application.

    A checkpoint or limits that are refused are no failure to start, which would be tried again and again: the sentence
    is kept and told by :meth:`about`.
    """

    def __init__(self, checkpoint: Checkpoint, settings: Settings, workers: Workers) -> None:
        from ray import serve

        _log_to_stderr(logging.INFO if settings.log_text else logging.WARNING)
        self._id = serve.get_replica_context().replica_id.unique_id
        self._refusal: str | None = None
        self._stopping = False
        try:
            engine, weights = checkpoint.load(), fingerprint(checkpoint.resolve())
            limits = _limits(engine, settings, workers)
            self._app = create_app(engine, replace(settings, limits=limits, fingerprint=weights))
        except FastdllmError as error:
            self._refusal, self._began = str(error), time.monotonic()
            return
        self._service: Service = self._app.state.service
        self._service.scheduler.start()

    async def about(self) -> Facts | str:
        """What is served, or the sentence that refuses it."""
        return self._refusal or self._service.facts

    async def answer(self, scope: Scope, body: bytes) -> AsyncIterator[list[Message] | End | Gone]:
        """Answer a request: the messages of the application, and then what is to be noted of it."""
        if self._refusal is not None:
            yield Gone()
            return
        async for messages in converse(self._app, scope, body):
            if messages[0].get("status") == 503 and not self._stopping and not self._works:
                yield Gone()
                return
            yield messages
        about, path = scope["fastdllm"], getattr(scope.get("route"), "path", "other")
        yield End(replica=self._id, path=path, note=about.get("note", ""), status=about.get("status"))

    async def works(self) -> bool:
        """Whether requests can be answered."""
        return self._refusal is None and self._works

    @property
    def _works(self) -> bool:
        """Whether the model thread is there and gets through its passes."""
        stats = self._service.scheduler.stats()
        return stats.healthy and stats.pass_seconds < self._service.settings.timeout

    async def metrics(self) -> tuple[str, list[Metric]]:
        """The name of this replica and everything that is counted in it."""
        return self._id, [] if self._refusal else list(self._service.metrics.registry.collect())

    async def stop(self) -> None:
        """Finish what runs and refuse the rest; returns when all is done."""
        self._stopping = True
        if self._refusal is None:
            await asyncio.to_thread(self._service.stop)

    def check_health(self) -> None:
        """Asked by Ray all the time. Without its model thread a replica has nothing to live for.

        It ends at once and is replaced: Ray would look three times before it acts, and a replica that answers every
        request with a refusal looks idle and would be sent most of them.

        So it is with a replica that was refused and has had the time to say so: what is in the way once a server
        runs (memory that the replica before still holds, say) may go.
        """
        if self._refusal is not None:
            if time.monotonic() - self._began > TELLING:
                logger.error("replica %s cannot serve: %s", self._id, self._refusal)
                os._exit(1)
        elif not self._stopping and not self._works:
            logger.error("replica %s has no model thread that works any more, and makes way for another", self._id)
            os._exit(1)


def _limits(engine: Engine, settings: Settings, workers: Workers) -> Limits:
    """The limits with a share of the memory where replicas share a GPU or a machine."""
    limits = settings.limits
    if limits.kv_bytes is not None:
        return limits
    free, share = available(str(engine.device)), _share(workers)
    return limits if free is None or share >= 1 else replace(limits, kv_bytes=max(1, int(SHARE * share * free)))


def _share(workers: Workers) -> float:
    """Part of the GPU, or of the machine's memory where there is none, that is a replica's own."""
    ray: Any = import_module("ray")
    if workers.gpus:
        return workers.gpus
    here = ray.get_runtime_context().get_node_id()
    cpus = next(node["Resources"].get("CPU", 1.0) for node in ray.nodes() if node["NodeID"] == here)
    return float(workers.cpus / cpus)


def _log_to_stderr(level: int) -> None:
    """What is worth telling goes where Ray picks it up and passes it on to the server's own log."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(level)
