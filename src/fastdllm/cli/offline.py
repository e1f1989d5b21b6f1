"""Many prompts over Ray Data: what a worker says of them becomes what the command refuses, records and writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fastdllm.cli.console import note
from fastdllm.cli.many import Source
from fastdllm.cli.replicas import checkpoint
from fastdllm.completion import Completion
from fastdllm.errors import OptionError

if TYPE_CHECKING:
    from fastdllm.cli.generate import Request
    from fastdllm.cli.options import ModelChoice
    from fastdllm.cli.prompts import Entry
    from fastdllm.cluster.workers import Workers
    from fastdllm.config import GenerationOptions


@contextmanager
def on_ray(
    request: Request, choice: ModelChoice, entries: list[Entry], options: GenerationOptions, workers: Workers
) -> Iterator[Source]:
    """Workers with a model each; a Ray of our own ends with the context."""
    from fastdllm.cluster.offline import Refusal, Task, answers, survey
    from fastdllm.cluster.workers import QUIETER, cluster, import_ray

    source = checkpoint(choice, workers)
    source.for_workers(workers)  # refuses what contradicts itself before Ray starts
    ray = import_ray(workers, **QUIETER)
    many = f"{workers.count} worker{'s' * (workers.count > 1)} on Ray"
    note(f"starting {many}")
    with cluster(workers, choice.device, quiet=True) as workers:
        if lack := workers.shortage(ray.cluster_resources()):
            note(f"{lack}; as many as there is room for work")
        own = source.for_workers(workers)
        task = Task(checkpoint=own, options=options, chat=request.chat, batch_size=request.batch_size)
        try:
            found = survey(task, workers, [entry.prompt for entry in entries])
        except Refusal as error:
            where = "" if error.index is None else f"{request.source} line {entries[error.index].line}: "
            raise OptionError(f"{where}{error}") from None

        def of(at: Sequence[int]) -> Iterator[tuple[int, Completion | str]]:
            return answers(task, workers, found.settings["weights"], [(i, found.prompts[i]) for i in at])

        shares = {"replicas": workers.count, "replica_cpus": workers.cpus, "replica_gpus": workers.gpus}
        told = found.settings
        yield Source(
            decides=told,
            runs_on={**found.environment, "batch_size": request.batch_size, **shares},
            machine=f"{told['model']} · {told['dtype']} on {told['device']}, {many}",
            answers=of,
        )
