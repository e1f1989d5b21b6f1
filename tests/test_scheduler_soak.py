"""Hundreds of jobs from several threads, some taken back, some bad: each is closed once, and nothing is left."""

from __future__ import annotations

import gc
import logging
import random
import threading
import time
import weakref
from collections import Counter

import pytest
import torch

from fastdllm.canvas import Canvas
from fastdllm.engine import Engine
from fastdllm.errors import NumericalError, OptionError
from fastdllm.events import RowEvent
from fastdllm.kv import KVStore, Lease
from fastdllm.loop import Run
from fastdllm.serve.jobs import Cancelled, Limits, QueueFull, Ticket, TimedOut
from fastdllm.serve.scheduler import Scheduler
from schedules import WIDTH, Box, assert_as_alone, assert_empty, job_of, random_job, wait_until
from toys import VOCAB, toy_engine

CLIENTS, EACH = 4, 50
POISON = VOCAB - 1
"""A token whose embedding is no number; it stands in some prompts and is never proposed."""


class Raising(Box):
    """Raises at its third notice, if it lives so long."""

    def __call__(self, notice) -> None:
        super().__call__(notice)
        if len(self.notices) == 3:
            raise RuntimeError("gone")


class Client(threading.Thread):
    """Hands jobs in at random, and takes some back."""

    def __init__(self, scheduler: Scheduler, seed: int) -> None:
        super().__init__()
        self.scheduler, self.rng = scheduler, random.Random(seed)
        self.boxes: list[tuple[str, Box]] = []
        self.full = self.never = 0
        self.timers: list[threading.Timer] = []

    def run(self) -> None:
        for _ in range(EACH):
            self.one(self.rng.choice(["plain"] * 8 + ["cancel", "cancel", "late", "poison", "raising", "never"]))
            time.sleep(self.rng.random() * 0.01)
        for timer in self.timers:
            timer.join()

    def submit(self, box: Box) -> Ticket:
        while True:
            try:
                return self.scheduler.submit(box.job, box)
            except QueueFull:
                self.full += 1
                time.sleep(0.02)

    def one(self, kind: str) -> None:
        job = random_job(self.rng)
        if kind == "late":
            job = job_of(job.prompt, deadline=time.monotonic() + self.rng.random() * 0.2, gen_length=20)
        elif kind == "poison":
            job = job_of([POISON, 1, 2], gen_length=8)
        elif kind == "never":
            job = job_of([1] * WIDTH)
        box = Raising(job) if kind == "raising" else Box(job)
        try:
            ticket = self.submit(box)
        except OptionError:
            self.never += 1
            return
        self.boxes.append((kind, box))
        if kind == "cancel":
            self.timers.append(threading.Timer(self.rng.random() * 0.3, ticket.cancel))
            self.timers[-1].start()


@pytest.mark.slow
def test_every_accepted_job_is_closed_once_and_nothing_is_left(caplog):
    engine = toy_engine(layers=2, seed=6)
    engine.model.embed.weight[POISON] = float("nan")
    logits, never = engine.model.logits, torch.tensor([POISON])
    engine.model.logits = lambda hidden: logits(hidden).index_fill(-1, never, -1e4)  # type: ignore[method-assign]
    scheduler = Scheduler(engine, Limits(max_batch=6, max_model_len=WIDTH, queue_size=20))
    before = things()
    caplog.set_level(logging.CRITICAL, "fastdllm.serve")  # pytest keeps records, which keep tracebacks
    first = weakref.ref(scheduler.submit(job_of([1]), Box(job_of([1]))))
    scheduler.start()
    check(engine, soak(scheduler))
    assert_empty(scheduler)
    gc.collect()
    assert first() is None
    assert things() == before
    assert not any(tensor.isnan().any() for tensor in scheduler.pool.store.read(0, slice(None), WIDTH))


def things() -> Counter[type]:
    """How many objects there are of those that a job is made of."""
    gc.collect()
    return Counter(type(thing) for thing in gc.get_objects() if type(thing) in (Run, Canvas, Ticket, KVStore, Lease))


def soak(scheduler: Scheduler) -> list[tuple[str, Box]]:
    """The kind and the notices of every job that was accepted."""
    clients = [Client(scheduler, seed) for seed in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    boxes = [entry for client in clients for entry in client.boxes]
    wait_until(lambda: all(box.last for _, box in boxes))
    stats = scheduler.stats()
    assert stats.healthy
    scheduler.stop(drain_seconds=5.0)
    assert stats.accepted == len(boxes) + 1
    assert stats.refused == sum(client.full for client in clients) > 0
    assert len(boxes) + sum(client.never for client in clients) == CLIENTS * EACH > len(boxes)
    return boxes


def check(engine: Engine, boxes: list[tuple[str, Box]]) -> None:
    """Every kind came to its end, and every twelfth plain answer is the one that the job gets alone."""
    ends = Counter((kind, type(box.error) if box.error else RowEvent) for kind, box in boxes)
    assert ends.keys() >= {("cancel", Cancelled), ("late", TimedOut), ("raising", RuntimeError)}
    assert {end for kind, end in ends if kind == "plain"} == {RowEvent}
    assert {end for kind, end in ends if kind == "poison"} == {NumericalError}
    for _, box in [entry for entry in boxes if entry[0] == "plain"][::12]:
        assert_as_alone(engine, box)
