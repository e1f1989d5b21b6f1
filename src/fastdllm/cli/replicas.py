"""Many copies of a model on Ray: the options that say how many, and the server that stands before them."""

from __future__ import annotations

import socket
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from fastdllm import processes
from fastdllm.cli import options as opt
from fastdllm.cli.console import note
from fastdllm.errors import OptionError

if TYPE_CHECKING:
    from fastdllm.cluster.workers import Checkpoint, Workers
    from fastdllm.serve.settings import Settings

CPUS = 1.0
Ray = Annotated[bool, typer.Option("--ray", help="Answer many prompts on Ray.")]
Replicas = Annotated[int | None, typer.Option(metavar="N", help="Copies of the model, on Ray.")]
ReplicaCpus = Annotated[float, typer.Option(metavar="N", help="Cores of each, and its threads.")]
ReplicaGpus = Annotated[
    float | None, typer.Option(metavar="SHARE", help="Of a GPU for each, as in 0.5 [default: 1 where there are any].")
]
RayAddress = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="A running Ray cluster, or auto [default: one of its own].")
]


def asked(
    context: typer.Context, count: int | None, cpus: float, gpus: float | None, address: str | None,
    *, wanted: bool | None = None,
) -> Workers | None:  # fmt: skip
    """The copies that are asked for; None where Ray is not wanted.

    Args:
        wanted: whether --ray was given; None where there is no such option: a number or an address says so, then.

    Raises:
        OptionError: an option goes with Ray, which is not wanted; or is out of its range.
    """
    needs = "--replicas" if wanted is None else "--ray"
    if wanted is None:
        wanted = count is not None or address is not None
    if wanted:
        from fastdllm.cluster.workers import Workers

        return Workers(count=1 if count is None else count, cpus=cpus, gpus=gpus, address=address)
    for name in ("replicas", "replica_cpus", "replica_gpus", "ray_address"):
        source = context.get_parameter_source(name)
        if source and source.name in opt.GIVEN:
            raise OptionError(f"--{name.replace('_', '-')} goes with {needs}.")
    return None


def refuse_contradictions(choice: opt.ModelChoice, *, many: bool) -> None:
    """Raises OptionError where a job on Ray cannot be meant."""
    if not many:
        raise OptionError("--ray is for many prompts; give JSON lines with --file or --jsonl.")
    if choice.tensor_parallel not in ("auto", "1"):
        raise OptionError("each worker of --ray has a whole model; --tensor-parallel cannot be given with it.")
    _refuse_torchrun("--ray")


def _refuse_torchrun(option: str) -> None:
    if processes.count() > 1:
        raise OptionError(f"{option} starts its own processes, each with a whole model; leave torchrun out.")


def checkpoint(choice: opt.ModelChoice, workers: Workers) -> Checkpoint:
    """The model as workers load it; on this machine alone it is fetched, and its preset looked at, before they do."""
    from fastdllm.cluster.workers import Checkpoint
    from fastdllm.models.checkpoint import resolve

    folder = resolve(choice.model, choice.revision, weights=workers.address is None)
    if workers.address is None:
        choice.warn_of_other_weights(folder)
    return Checkpoint(
        model=choice.model, name=choice.model, revision=choice.revision, dtype=choice.dtype, device=choice.device,
        threads=choice.threads, compile=choice.compile,
    )  # fmt: skip


def serve(choice: opt.ModelChoice, settings: Settings, workers: Workers, host: str, bound: socket.socket) -> None:
    """Serve until told to stop."""
    from fastdllm.cli.serve import announce, log_to_stderr, public_name
    from fastdllm.cluster.workers import cluster, import_ray

    _refuse_torchrun("--replicas")
    source, port = checkpoint(choice, workers), bound.getsockname()[1]
    source.for_workers(workers)  # refuses what contradicts itself before Ray starts
    import_ray(workers)
    from fastdllm.cluster.deploy import deployed
    from fastdllm.cluster.front import create_front
    from fastdllm.serve.server import Server

    log_to_stderr()
    settings = replace(settings, name=public_name(choice))
    name = f"fastdllm-{socket.gethostname()}-{port}"
    with cluster(workers, choice.device) as workers:
        own = source.for_workers(workers)
        with deployed(own, settings, workers, name=name, waiting=note) as front:
            ready = partial(announce, front.facts, settings, host, port, workers.count)
            Server(create_front(front), ready=ready).run(sockets=[bound])
    note("stopped")
