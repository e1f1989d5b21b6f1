"""Copies of a model on Ray: how many, what each has of the machines, and the checkpoint it loads."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdllm.checks import check_above, check_least
from fastdllm.errors import FastdllmError, OptionError
from fastdllm.models.source import EMBEDDED

if TYPE_CHECKING:
    from fastdllm.engine import Engine

MISSING = "ray is missing: pip install 'fastdllm[ray]'."
CONNECT_SECONDS = 10.0
OBJECT_STORE = 256 * 2**20
"""Bytes that a Ray of our own shares between processes: requests and answers are small."""
QUIET = {
    "RAY_DEDUP_LOGS": "0",  # two replicas may say the same
    "RAY_COLOR_PREFIX": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a worker without a GPU is told to use none, and needs no empty list
}
"""Variables for Ray where they are not set."""
OWN = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is told to others
    "RAY_AUTH_MODE": "token",  # nobody else on this machine or network may use it
    "PYTHONWARNINGS": "ignore",  # those of other libraries, in workers
}
"""More of them for a Ray of our own."""
QUIETER = {"RAY_BACKEND_LOG_LEVEL": "fatal"}
"""For jobs, which tell of lost workers themselves; Ray says that it does so, too."""


class NoCluster(FastdllmError, RuntimeError):
    """Ray cannot be used, for a reason that is not in the options."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """How many copies of a model there are, and what each may use.

    Args:
        count: copies.
        cpus: cores of each, also its threads unless those are given.
        gpus: share of a GPU of each, 0 to 1; None: one where the cluster has any and the device allows it, else none.
        address: of a running Ray cluster, or ``auto``: the one this machine is part of. None: a Ray of our own, on
            this machine, for as long as it is needed.
    """

    count: int = 1
    cpus: float = 1.0
    gpus: float | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        check_least("replicas", self.count, 1)
        check_above("replica_cpus", self.cpus)
        check_least("replica_cpus", self.cpus)
        if self.gpus is not None and not 0 <= self.gpus <= 1:
            raise OptionError(f"replica_gpus={self.gpus} must lie between 0 and 1: a replica runs on one GPU.")

    @property
    def resources(self) -> dict[str, float]:
        """What Ray sets aside for each, as options of its actors and tasks."""
        assert self.gpus is not None
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}

    def shortage(self, there: Mapping[str, float]) -> str | None:
        """What a cluster with these resources lacks for all of them, in a sentence; None where it has enough."""
        assert self.gpus is not None
        needed = {"CPU": self.count * self.cpus, "GPU": self.count * self.gpus}
        if all(amount <= there.get(kind, 0) for kind, amount in needed.items()):
            return None
        wants, has = (f"{these.get('CPU', 0):g} CPUs and {these.get('GPU', 0):g} GPUs" for these in (needed, there))
        return f"{self.count} replicas need {wants}, and there are {has}"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Which model a worker loads, and how; as the options of a command."""

    model: str
    name: str
    """What results call it."""
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    threads: int | None = None
    compile: bool = False

    def for_workers(self, workers: Workers) -> Checkpoint:
        """With what depends on the workers made definite: a folder as every process sees it, device and threads.

        Raises:
            OptionError: the device is one of several GPUs, or contradicts ``gpus``.
        """
        kind, _, number = self.device.partition(":")
        if number:
            raise OptionError(f"device={self.device!r} is one GPU for all replicas; give cuda, and Ray deals them out.")
        if kind == "cpu" and workers.gpus:
            raise OptionError(f"replica_gpus={workers.gpus} contradicts device=cpu.")
        if kind == "cuda" and workers.gpus == 0:
            raise OptionError("device=cuda needs replica_gpus above 0.")
        if self.threads is not None:
            check_least("threads", self.threads, 1)
        folder = Path(self.model).expanduser()
        return replace(
            self,
            model=str(folder.absolute()) if folder.is_dir() and self.model not in EMBEDDED else self.model,
            device="cpu" if workers.gpus == 0 else self.device if workers.gpus is None else "cuda",
            threads=self.threads or max(1, int(workers.cpus)),
        )

    def resolve(self) -> Path:
        """The checkpoint's folder on this machine."""
        from fastdllm.models.checkpoint import resolve

        return resolve(self.model, self.revision)

    def load(self) -> Engine:
        """The engine; its CPU threads are set for the whole process."""
        import torch

        from fastdllm.loading import load

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        engine = load(self.model, dtype=self.dtype, device=self.device, revision=self.revision, compile=self.compile)
        engine.name = self.name
        return engine


@contextmanager
def cluster(workers: Workers, device: str = "auto", *, quiet: bool = False) -> Iterator[Workers]:
    """A connection to Ray, with the share of a GPU made definite; a Ray of our own ends with it.

    Args:
        quiet: of what workers and Ray write, show on stderr no more than that a worker was lost.

    Raises:
        OptionError: Ray is missing, the cluster cannot be reached, or this machine has too few GPUs.
        NoCluster: Ray does not start here.
    """
    with _hushed() if quiet else nullcontext():
        ray = import_ray(workers)
        _connect(ray, workers, quiet)
    try:
        there, gpus = ray.cluster_resources(), workers.gpus
        if gpus is None:
            gpus = 1.0 if device != "cpu" and there.get("GPU", 0) else 0.0
        found = replace(workers, gpus=gpus)
        if workers.address is None and (lack := found.shortage(there)):  # a cluster may yet grow
            raise OptionError(f"{lack}.")
        yield found
    finally:
        ray.shutdown()


def import_ray(workers: Workers, **variables: str) -> Any:
    """The library, which only this package needs.

    Args:
        variables: of the environment, where they are not set.

    Raises:
        OptionError: it is missing.
    """
    if "ray" not in sys.modules:  # it reads its variables as it is imported
        own = {**OWN, "RAY_AUTH_TOKEN": secrets.token_hex(32)} if workers.address is None else {}
        for name, value in {**QUIET, **own, **variables}.items():
            os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise OptionError(MISSING) from None
    return ray


@contextmanager
def _hushed() -> Iterator[None]:
    """Nothing is written to stderr, not by other languages' code either; what goes wrong is raised."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _reach(address: str) -> None:
    """Refuse an address where nothing listens: Ray would try for minutes."""
    if "://" in address:
        raise OptionError(f"ray_address={address!r} is a client's; give HOST:PORT, on a machine of the cluster.")
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise OptionError(f"no Ray cluster answers at {address!r} ({why}); give auto, or HOST:PORT.") from None


def _connect(ray: Any, workers: Workers, quiet: bool) -> None:
    if workers.address is not None:
        _reach(workers.address)
    where: dict[str, Any] = {"address": workers.address}
    if workers.address is None:
        cpus = ceil(workers.count * workers.cpus)  # these are all that will run on it
        sizes = {"num_cpus": cpus, "object_store_memory": OBJECT_STORE}
        where = {"address": "local", "include_dashboard": False, **sizes}
    try:
        ray.init(**where, logging_level="warning", namespace="fastdllm", log_to_driver=not quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        if workers.address is None:
            raise NoCluster(f"Ray does not start on this machine ({why}).") from error
        raise OptionError(f"no Ray cluster answers at {workers.address!r} ({why}).") from None
