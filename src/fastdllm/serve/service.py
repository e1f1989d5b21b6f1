"""What every route needs: the model, its scheduler, the settings and the metrics."""

from __future__ import annotations

import time
from dataclasses import dataclass

from fastdllm.engine import Engine
from fastdllm.record import environment
from fastdllm.serve.errors import ApiError
from fastdllm.serve.metrics import Metrics
from fastdllm.serve.scheduler import Scheduler
from fastdllm.serve.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is served, and how much of it at a time."""

    name: str
    dtype: str
    device: str
    slots: int
    """Answers at work at a time."""
    max_model_len: int
    kv_bytes: int
    chat: bool
    """Whether there is a chat template."""


class Service:
    """One model as it is served.

    Raises:
        OptionError: the limits do not allow a single request.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine, self.settings = engine, settings
        self.scheduler = Scheduler(engine, settings.limits)
        self.metrics = Metrics(self.scheduler.stats)
        self.metrics.runs_on(environment(engine))
        self.name = settings.name or engine.name
        self.created = int(time.time())

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and answer together."""
        return self.scheduler.max_model_len

    @property
    def facts(self) -> Facts:
        engine, stats = self.engine, self.scheduler.stats()
        return Facts(
            name=self.name,
            dtype=engine.precision,
            device=str(engine.device),
            slots=stats.slots,
            max_model_len=self.max_model_len,
            kv_bytes=stats.kv_bytes,
            chat=engine.uses_template(),
        )

    def stop(self) -> None:
        """Take no more requests; returns once those at work are finished, or refused because that took too long."""
        self.scheduler.stop(drain_seconds=self.settings.drain_seconds)

    def check_model(self, name: str) -> None:
        """Refuse a request for another model."""
        if name not in (self.name, *self.settings.aliases):
            message = f"the model {name!r} does not exist; this server has {self.name!r}."
            raise ApiError(404, message, param="model", code="model_not_found")
