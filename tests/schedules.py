"""Jobs at random, boxes for their notices, and what a job gets alone."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from fastdllm.completion import Completion, Draft
from fastdllm.config import GenerationConfig
from fastdllm.engine import Engine
from fastdllm.events import RowEvent
from fastdllm.serve.jobs import Admitted, Failed, Job, Limits, Notice
from fastdllm.serve.scheduler import Scheduler
from toys import prompts_of

WIDTH = 72
CACHES = (
    "none", "prefix", "dual", "dual", "dual:prompt_every=2,suffix_window=3", "sliding:suffix_window=4", "dkv:refresh=3",
    "d2cache:current_k=4", "dllm:kp=3,kr=2",
)  # fmt: skip
DECODERS = (
    "topk:k=1", "threshold:threshold=0.5", "threshold:threshold=0.5", "factor:factor=1.0", "klass", "wino", "edit",
    "credit", "slowfast", "saber", "entropy_bound", "schedule:steps=12,remasking=random", "timestep:steps=9",
)  # fmt: skip


@dataclass
class Box:
    """Everything a job was told."""

    job: Job
    notices: list[Notice] = field(default_factory=list)

    def __call__(self, notice: Notice) -> None:
        self.notices.append(notice)

    @property
    def rows(self) -> list[RowEvent]:
        return [notice for notice in self.notices if isinstance(notice, RowEvent)]

    @property
    def admitted(self) -> bool:
        return any(isinstance(notice, Admitted) for notice in self.notices)

    @property
    def last(self) -> RowEvent | Failed | None:
        """The closing notice; the rules of notices are checked on the way."""
        closing = [n for n in self.notices if isinstance(n, Failed) or (isinstance(n, RowEvent) and n.finish_reason)]
        assert len(closing) <= 1
        assert not closing or closing[0] is self.notices[-1]
        places = [i for i, n in enumerate(self.notices) if isinstance(n, Admitted)]
        assert places in ([], [0])
        return closing[0] if closing else None

    @property
    def error(self) -> Exception | None:
        return self.last.error if isinstance(self.last, Failed) else None

    def answer(self, engine: Engine) -> Completion:
        draft = Draft(0, len(self.job.prompt), self.job.config.gen_length, engine.config.mask_id, engine.config.pad_id)
        for row in self.rows:
            draft.add(row)
        return draft.finish("", draft.answer(engine.config.eos_ids))


def job_of(prompt: Sequence[int], deadline: float | None = None, **options: object) -> Job:
    settings = {"gen_length": 12, "block_length": 4, "cache": "dual", "decoder": "topk:k=1", "stop_at_eos": False}
    return Job(prompt=tuple(prompt), config=GenerationConfig(**(settings | options)), deadline=deadline)


def jobs_of(count: int, length: int = 6, **options: object) -> list[Job]:
    return [job_of(prompt, **options) for prompt in prompts_of([length] * count, seed=count)]


def random_job(rng: random.Random) -> Job:
    cache = rng.choice(CACHES)
    guided = cache == "none" and rng.random() < 0.5
    decoder = rng.choice([name for name in DECODERS if not (guided and name == "wino")])
    return job_of(
        prompts_of([rng.randrange(1, 44)], rng.randrange(10**6))[0],
        gen_length=rng.choice([8, 16, 20]), block_length=rng.choice([4, 8]), cache=cache, decoder=decoder,
        temperature=0.8 if rng.random() < 0.4 else 0.0, top_p=0.9 if rng.random() < 0.3 else None,
        top_k=5 if rng.random() < 0.2 else None, seed=rng.randrange(100), cfg_scale=0.5 if guided else 0.0,
        stop_at_eos=rng.random() < 0.7,
    )  # fmt: skip


def scheduler_of(engine: Engine, max_batch: int = 4, **changes: object) -> Scheduler:
    """One that is stepped by hand."""
    clock = changes.pop("clock", None)
    limits = Limits(**({"max_batch": max_batch, "max_model_len": WIDTH, "queue_size": 64} | changes))
    return Scheduler(engine, limits, clock=clock) if clock else Scheduler(engine, limits)


def submit(scheduler: Scheduler, jobs: Sequence[Job]) -> list[Box]:
    boxes = [Box(job) for job in jobs]
    for box in boxes:
        scheduler.submit(box.job, box)
    return boxes


def finish(scheduler: Scheduler) -> None:
    """Step until nothing is at work; then all slots are free and nothing is left of the jobs."""
    while scheduler.step():
        pass
    assert_empty(scheduler)


def assert_empty(scheduler: Scheduler) -> None:
    stats = scheduler.stats()
    assert (stats.waiting, stats.active, stats.runs, stats.room_used) == (0, 0, 0, 0)
    assert stats.free_slots == stats.slots
    assert stats.accepted == stats.finished + stats.failed + stats.cancelled + stats.timed_out


def assert_as_alone(engine: Engine, box: Box) -> None:
    """The answer is the one that ``generate`` gives to this job, pass by pass."""
    (alone,) = engine.generate([box.job.prompt], **vars(box.job.config))
    assert isinstance(box.last, RowEvent), (box.error, box.job)
    answer = box.answer(engine)
    assert (answer.canvas, answer.committed_at) == (alone.canvas, alone.committed_at), box.job
    assert (answer.nfe, answer.rows_computed, answer.finish_reason) == (
        alone.nfe, alone.rows_computed, alone.finish_reason,
    ), box.job  # fmt: skip
    assert answer.confidences == pytest.approx(alone.confidences, abs=1e-4)


def wait_until(condition: Callable[[], object]) -> None:
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited in vain")
