"""Large offline jobs: many prompts over Ray Data, where every worker has a model of its own.

A task is a batch of prompts, and its answers reach the caller as soon as it is done. What Ray does when a worker
ends before its task has (it starts another and runs the task again) is bounded here: a prompt that is itself what
ends workers is found and given up, and the others are answered.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeAlias

from fastdllm.cluster.workers import Checkpoint, NoCluster, Workers
from fastdllm.completion import Completion
from fastdllm.config import GenerationConfig, GenerationOptions
from fastdllm.engine import Engine
from fastdllm.errors import FastdllmError, OptionError
from fastdllm.record import environment, fingerprint, settings
from fastdllm.serve.batch import fatal

TOGETHER = 2
"""Times that a batch is begun before its prompts are run one by one."""
ALONE = 2
"""Times that a prompt is begun alone before it is given up."""
Prompt: TypeAlias = "str | list[int]"
Answer: TypeAlias = "Completion | str"
"""A text says why there is none."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all workers do with prompts."""

    checkpoint: Checkpoint
    options: GenerationOptions
    chat: bool | None
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a worker says before work begins."""

    prompts: list[list[int]]
    """Token ids."""
    settings: dict[str, object]
    environment: dict[str, object]


@dataclass(frozen=True)
class Refused:
    """A prompt that cannot be answered, or all of them."""

    index: int | None
    why: str


def survey(task: Task, workers: Workers, prompts: Sequence[Prompt]) -> Survey:
    """Have a worker load the model and read the prompts, so that what is refused is refused before work begins.

    Raises:
        Refusal: a prompt or an option is refused, by its index where it is one prompt.
        NoCluster: the worker does not start.
    """
    ray: Any = import_module("ray")
    remote = ray.remote(_survey).options(**workers.resources, max_retries=1)
    try:
        found = ray.get(remote.remote(task, list(prompts)))
    except ray.exceptions.RayError as error:
        raise NoCluster(f"a worker does not start: {last_line(error)}") from error
    if isinstance(found, Refused):
        raise Refusal(found)
    assert isinstance(found, Survey)
    return found


class Refusal(OptionError):
    """A worker refuses the model, the options or a prompt."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.why)
        self.index = refused.index


def _survey(task: Task, prompts: list[Prompt]) -> Survey | Refused:
    """In a worker: errors are values here, as Ray would put a trace into the sentence."""
    index: int | None = None
    try:
        engine = task.checkpoint.load()
        ids = []
        for index, prompt in enumerate(prompts):  # noqa: B007  # which one it was
            given: Any = [prompt]
            ids.append(engine.start(given, chat=task.chat, **task.options).prompts[0])
    except FastdllmError as error:
        return Refused(index, str(error))
    chat = engine.uses_template(task.chat)
    decides = settings(engine, GenerationConfig(**task.options), chat=chat)
    decides |= {"revision": task.checkpoint.revision, "weights": fingerprint(task.checkpoint.resolve())}
    return Survey(prompts=ids, settings=decides, environment=environment(engine))


def answers(
    task: Task, workers: Workers, weights: object, prompts: Sequence[tuple[int, list[int]]]
) -> Iterator[tuple[int, Answer]]:
    """Answer prompts, each once, in the order in which batches are done.

    Args:
        weights: as the survey names them; a worker that finds others does not work.
        prompts: numbers and token ids.

    Raises:
        NoCluster: the job breaks off.
    """
    ray: Any = import_module("ray")
    data: Any = import_module("ray.data")
    batches = [prompts[first : first + task.batch_size] for first in range(0, len(prompts), task.batch_size)]
    _quiet(data)
    attempts = ray.remote(Attempts).options(num_cpus=0).remote()
    rows = data.from_items([{"batch": pickle.dumps(batch)} for batch in batches], override_num_blocks=len(batches))
    pool = data.ActorPoolStrategy(size=min(workers.count, len(batches)))
    made = rows.map(Worker, fn_constructor_args=(task, weights, attempts), compute=pool, **workers.resources)
    waiting = {index for index, _ in prompts}
    try:
        for row in made.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
            for content in row["answers"].to_pylist():
                for index, answer in pickle.loads(content):
                    if index in waiting:  # a task that Ray ran twice may give its answers twice
                        waiting.discard(index)
                        yield index, answer
    except ray.exceptions.RayError as error:
        raise NoCluster(f"the job broke off: {last_line(error)}") from error
    for index in sorted(waiting):
        yield index, "Ray lost its answer"


def _quiet(data: Any) -> None:
    """One bar is enough, and a lost worker is told of in a sentence."""
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # what is missing at the end is told by its prompt
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def last_line(error: Exception) -> str:
    """The error at the bottom of a trace."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class Attempts:
    """How often what is not done yet was begun; an actor, as it must outlive workers."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def begin(self, what: str) -> int:
        """Times that this was begun, this time included."""
        self._begun[what] += 1
        return self._begun[what]

    def end(self, what: str) -> None:
        """This is done."""
        del self._begun[what]


class Worker:
    """A model that answers batches of prompts; an actor of Ray Data."""

    def __init__(self, task: Task, weights: object, attempts: Any) -> None:
        self._task, self._attempts = task, attempts
        self._engine: Engine = task.checkpoint.load()
        if (found := fingerprint(task.checkpoint.resolve())) != weights:
            raise NoCluster(f"a machine of the cluster has other weights ({found}) than the first ({weights}).")

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        """Answer one batch."""
        batch: list[tuple[int, list[int]]] = pickle.loads(row["batch"])
        name = f"batch {batch[0][0]}"
        done = self._run(batch) if self._begin(name) <= TOGETHER else None
        if done is None:
            done = [pair for one in batch for pair in self._run_alone(one)]
        self._end(name)
        return {"answers": pickle.dumps(done)}

    def _run(self, batch: list[tuple[int, list[int]]]) -> list[tuple[int, Answer]] | None:
        """Answers to prompts that run together; None where one of them fails."""
        try:
            found = self._engine.generate([ids for _, ids in batch], **self._task.options)
        except Exception as error:
            if fatal(error):  # the device is lost for this process; Ray starts another
                os._exit(1)
            return None if len(batch) > 1 else [(batch[0][0], str(error) or type(error).__name__)]
        return [(index, answer) for (index, _), answer in zip(batch, found, strict=True)]

    def _run_alone(self, one: tuple[int, list[int]]) -> list[tuple[int, Answer]]:
        name = f"prompt {one[0]}"
        if self._begin(name) > ALONE:
            return [(one[0], "its worker ended each time it was tried")]
        done = self._run([one])
        self._end(name)
        assert done is not None
        return done

    def _begin(self, what: str) -> int:
        ray: Any = import_module("ray")
        return int(ray.get(self._attempts.begin.remote(what)))

    def _end(self, what: str) -> None:
        self._attempts.end.remote(what)
