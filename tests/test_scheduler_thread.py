"""The model thread: many who hand jobs in, sleep while idle, and how it stops."""

from __future__ import annotations

import random
import threading
import time

import pytest

from fastdllm.serve import scheduler as module
from fastdllm.serve.jobs import ServerClosing
from schedules import (
    WIDTH,
    Box,
    assert_as_alone,
    assert_empty,
    finish,
    job_of,
    jobs_of,
    random_job,
    scheduler_of,
    submit,
    wait_until,
)
from toys import toy_engine


def test_the_thread_serves_many_submitters_and_sleeps_while_idle(monkeypatch):
    engine = toy_engine()
    scheduler, steps = scheduler_of(engine, max_batch=4, queue_size=200), 0
    step = scheduler.step

    def counted() -> bool:
        nonlocal steps
        steps += 1
        return step()

    monkeypatch.setattr(scheduler, "step", counted)
    scheduler.start()
    rounds: list[list[Box]] = [[] for _ in range(4)]

    def client(boxes: list[Box], seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(5):
            boxes += submit(scheduler, [random_job(rng)])

    threads = [threading.Thread(target=client, args=(boxes, i)) for i, boxes in enumerate(rounds)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    boxes = [box for some in rounds for box in some]
    wait_until(lambda: all(box.last for box in boxes))
    done = steps
    time.sleep(0.05)
    assert steps == done
    assert scheduler.stats().healthy
    scheduler.stop(drain_seconds=5.0)
    for box in boxes:
        assert_as_alone(engine, box)
    assert_empty(scheduler)


def test_stop_finishes_what_is_there_and_refuses_what_comes():
    engine = toy_engine()
    scheduler = scheduler_of(engine, max_batch=2)
    boxes = submit(scheduler, jobs_of(6))
    scheduler.start()
    scheduler.stop(drain_seconds=60.0)
    for box in boxes:
        assert_as_alone(engine, box)
    with pytest.raises(ServerClosing):
        submit(scheduler, jobs_of(1))
    stats = scheduler.stats()
    assert (stats.healthy, stats.closing) == (False, True)
    assert_empty(scheduler)
    scheduler.stop(drain_seconds=60.0)  # once more does nothing


def test_stop_refuses_what_is_not_done_in_time():
    engine = toy_engine()
    scheduler = scheduler_of(engine, max_batch=2)
    started, forward = threading.Event(), engine.model.forward

    def slow(*args, **kwargs):
        started.set()
        time.sleep(0.02)
        return forward(*args, **kwargs)

    engine.model.forward = slow  # type: ignore[method-assign]
    boxes = submit(scheduler, jobs_of(6, gen_length=60, block_length=60))
    scheduler.start()
    assert started.wait(10)
    scheduler.stop(drain_seconds=0.1)
    assert [type(box.error) for box in boxes] == [ServerClosing] * 6
    assert_empty(scheduler)


def test_stop_does_not_wait_for_a_pass_that_hangs(monkeypatch):
    monkeypatch.setattr(module, "GRACE", 0.1)
    engine = toy_engine()
    scheduler, entered, go = scheduler_of(engine, max_batch=1), threading.Event(), threading.Event()
    forward = engine.model.forward

    def hanging(*args, **kwargs):
        entered.set()
        assert go.wait(10)
        return forward(*args, **kwargs)

    engine.model.forward = hanging  # type: ignore[method-assign]
    boxes = submit(scheduler, jobs_of(2))
    scheduler.start()
    assert entered.wait(10)
    assert scheduler.stats().pass_seconds > 0
    scheduler.stop(drain_seconds=0.05)
    assert [type(box.error) for box in boxes] == [ServerClosing] * 2
    go.set()
    wait_until(lambda: not scheduler.stats().healthy)
    assert [type(box.error) for box in boxes] == [ServerClosing] * 2  # and no notice came after it
    assert_empty(scheduler)


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_stop_in_the_middle_of_a_notice_closes_every_job_once(by_hand):
    """Called by the notify itself, which then raises: its job has been refused already."""
    scheduler = scheduler_of(toy_engine(), max_batch=2)
    box = Box(job_of([1, 2]))

    def stops(notice) -> None:
        box(notice)
        if len(box.rows) == 2 and not box.last:
            scheduler.stop(drain_seconds=0.0)
            raise RuntimeError("and raises")

    scheduler.submit(box.job, stops)
    boxes = [box, *submit(scheduler, jobs_of(2))]
    if by_hand:
        finish(scheduler)
    else:
        scheduler.start()
        wait_until(lambda: not scheduler.stats().healthy)
    assert [type(box.error) for box in boxes] == [ServerClosing] * 3
    assert_empty(scheduler)


def test_a_scheduler_that_was_never_started_refuses_at_its_stop():
    scheduler = scheduler_of(toy_engine())
    boxes = submit(scheduler, jobs_of(2))
    scheduler.stop(drain_seconds=0.0)
    assert [type(box.error) for box in boxes] == [ServerClosing] * 2
    assert scheduler.max_model_len == WIDTH
