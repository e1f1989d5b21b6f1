"""Replicas on Ray Serve, from their start to their end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from fastdllm.cluster.front import Front, behind
from fastdllm.cluster.replica import Replica
from fastdllm.cluster.workers import Checkpoint, NoCluster, Workers
from fastdllm.errors import OptionError
from fastdllm.serve.settings import Settings

DEPLOYMENT = "replica"
HEALTH_SECONDS = 1.0
"""Between two looks at a replica's health."""
HANGS_SECONDS = 30.0
"""A replica that does not answer such a look for so long is replaced."""
PATIENCE = 15.0
"""Seconds until it is told what is waited for, and then again."""
BUILDING = ("NOT_STARTED", "DEPLOYING")
LOGS = {"log_level": "CRITICAL", "enable_access_log": False}
"""What goes wrong with a deployment is told in a sentence, and what goes wrong in a replica that one tells itself."""


@contextmanager
def deployed(
    checkpoint: Checkpoint, settings: Settings, workers: Workers, *, name: str, waiting: Callable[[str], None]
) -> Iterator[Front]:
    """Replicas that are ready, on the cluster that this process is connected to; they end with the context.

    Args:
        name: of the application on the cluster; one that has it already is replaced.
        waiting: called with a sentence as long as replicas are not ready.

    Raises:
        OptionError: the replicas refuse the checkpoint or the limits.
        NoCluster: they do not start.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    logging.getLogger("asyncio").addFilter(not_of_ray)
    serve: Any = import_module("ray.serve")
    most, queue = settings.limits.max_batch, settings.limits.queue_size
    private, token = behind(settings)
    serve.start(proxy_location="Disabled", logging_config=LOGS)
    deployment = serve.deployment(
        Replica, name=DEPLOYMENT, num_replicas=workers.count, ray_actor_options=workers.resources,
        # What a replica has at hand when a slot is free; all else waits here, for whichever replica is first.
        max_ongoing_requests=most + min(most, queue), max_queued_requests=workers.count * max(most, queue - most),
        health_check_period_s=HEALTH_SECONDS, health_check_timeout_s=HANGS_SECONDS,
        graceful_shutdown_timeout_s=settings.drain_seconds, graceful_shutdown_wait_loop_s=0.5, logging_config=LOGS,
    )  # fmt: skip
    target = serve.RunTarget(deployment.bind(checkpoint, private, workers), name=name, route_prefix=None)
    try:
        (handle,) = serve.run_many(
            [target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False
        )
        _await_replicas(serve, name, workers, waiting)
        facts = handle.about.remote().result()
        if isinstance(facts, str):
            raise OptionError(facts)
        yield Front(handle, settings, facts, token)
    finally:
        if workers.address is not None:  # a Ray of our own ends with all that runs on it
            with suppress(RayError, RayServeException):
                serve.delete(name)


def _await_replicas(serve: Any, name: str, workers: Workers, waiting: Callable[[str], None]) -> None:
    told = time.monotonic()
    while True:
        application = serve.status().applications.get(name)
        status = application.status if application else BUILDING[0]
        if status == "RUNNING":
            return
        if status not in BUILDING:
            raise NoCluster(f"the replicas do not start: {_sentence(application)}")
        if time.monotonic() - told > PATIENCE:
            told = time.monotonic()
            states = application.deployments[DEPLOYMENT].replica_states if application else {}
            lack = workers.shortage(import_module("ray").cluster_resources())
            so_far = f"{states.get('RUNNING', 0)} of {workers.count} replicas are ready"
            waiting(f"{so_far}: {lack}" if lack else so_far)
        time.sleep(0.1)


def not_of_ray(record: logging.LogRecord) -> bool:
    """Whether a line is none of those that Ray's router leaves when a replica ends while it asks for its queue."""
    return not record.exc_info or not isinstance(record.exc_info[1], RayError | RayServeException)


def _sentence(application: Any) -> str:
    """The last line of what Ray says, which is the error at the bottom of a trace."""
    said = [application.message, *(one.message for one in application.deployments.values())]
    lines = [line.strip() for text in said for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "Ray does not say why."
