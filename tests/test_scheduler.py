"""Continuous batching: order, exactness, cancelling, deadlines, stopping, and the notices of every job."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdllm.errors import OptionError
from fastdllm.events import RowEvent
from fastdllm.serve import batch as batch_module
from fastdllm.serve.batch import remembered
from fastdllm.serve.jobs import Admitted, Cancelled, QueueFull, TimedOut
from schedules import (
    Box,
    assert_as_alone,
    finish,
    job_of,
    jobs_of,
    random_job,
    scheduler_of,
    submit,
)
from toys import FAMILIES, prompts_of, toy_engine


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@settings(max_examples=6)
@given(st.sampled_from(FAMILIES), st.integers(0, 10**6))
def test_a_job_gets_what_it_gets_alone(family, seed):
    """Jobs of all kinds that arrive at any pass, beside others that are taken back at any pass."""
    rng = random.Random(seed)
    engine = toy_engine(family, seed=seed % 7)
    scheduler = scheduler_of(engine, max_batch=rng.randrange(1, 7))
    stay, leave, tickets = [], [], []
    while len(stay) < 9 or scheduler.stats().active:
        while len(stay) < 9 and rng.random() < 0.6:
            box = Box(random_job(rng))
            ticket = scheduler.submit(box.job, box)
            if rng.random() < 0.2:
                leave.append(box)
                tickets.append(ticket)
            else:
                stay.append(box)
        for ticket in tickets:
            if rng.random() < 0.2:
                ticket.cancel()
        scheduler.step()
    finish(scheduler)
    for box in stay:
        assert_as_alone(engine, box)
    for box in leave:
        assert box.last is not None
        assert box.error is None or isinstance(box.error, Cancelled)


def test_jobs_are_admitted_in_their_order_however_long_they_are():
    scheduler, order = scheduler_of(toy_engine(), max_batch=2), []
    long = job_of([1] * 50, gen_length=20)
    jobs = [job_of([2, 3]), long, *(job_of([4, n]) for n in range(6)), long, job_of([5])]
    boxes = [Box(job) for job in jobs]
    for i, box in enumerate(boxes):

        def note(notice, i=i, box=box):
            box(notice)
            if isinstance(notice, Admitted):
                order.append(i)

        scheduler.submit(box.job, note)
    finish(scheduler)
    assert order == list(range(len(jobs)))


def test_what_waits_for_room_at_the_head_is_not_overtaken():
    """The head wants more memory for its passes than is left; those behind it would fit."""
    engine = toy_engine()
    small, large = job_of([1, 2, 3]), job_of([1, 2, 3], gen_length=60, block_length=60, decoder="klass")
    pool = scheduler_of(engine).pool
    wants = [pool.wants(3, job.config) for job in (small, large)]
    scheduler = scheduler_of(engine, kv_bytes=4 * pool.slot_bytes + wants[0] + wants[1] - 1)
    scheduler.pool.room = wants[0] + wants[1] - 1
    boxes = submit(scheduler, [small, large, small])
    scheduler.step()
    assert [box.admitted for box in boxes] == [True, False, False]
    while not boxes[0].last:
        scheduler.step()
    assert not boxes[1].admitted
    scheduler.step()
    assert [box.admitted for box in boxes] == [True, True, False]
    finish(scheduler)
    for box in boxes:
        assert_as_alone(engine, box)


def test_every_job_at_work_takes_a_step_in_every_pass():
    """Jobs of the same options share a run from their second pass on at the latest, and runs share passes."""
    engine, passes = toy_engine(), 0
    forward = engine.model.forward

    def counted(*args, **kwargs):
        nonlocal passes
        passes += 1
        return forward(*args, **kwargs)

    engine.model.forward = counted  # type: ignore[method-assign]
    scheduler = scheduler_of(engine, max_batch=6)
    boxes = []
    for decoder in ("topk:k=1", "topk:k=1", "credit", "topk:k=1", "credit"):
        boxes += submit(scheduler, [job_of(prompts_of([9])[0], decoder=decoder)])
        before = [len(box.rows) for box in boxes]
        scheduler.step()
        assert [len(box.rows) for box in boxes] == [count + 1 for count in before]
    passes = 0
    scheduler.step()
    assert scheduler.stats().runs == 2
    assert passes <= 2  # one for blocks that open, one for the rest
    stats = scheduler.stats()
    assert (stats.passes, stats.largest_batch, stats.steps) == (6, 5, 5 + 5 + 4 + 3 + 2 + 1)
    finish(scheduler)
    assert scheduler.stats().tokens_committed == sum(len(row.positions) for box in boxes for row in box.rows) == 60


def test_a_cancelled_row_leaves_at_the_next_pass_and_its_slot_is_free():
    engine = toy_engine()
    scheduler = scheduler_of(engine, max_batch=2)
    boxes = [Box(job) for job in jobs_of(4)]
    tickets = [scheduler.submit(box.job, box) for box in boxes]
    scheduler.step()
    scheduler.step()
    assert [box.admitted for box in boxes] == [True, True, False, False]
    for _ in range(2):
        tickets[0].cancel()
        tickets[3].cancel()
    scheduler.step()
    assert isinstance(boxes[0].error, Cancelled)
    assert len(boxes[0].rows) == 2
    assert isinstance(boxes[3].error, Cancelled)
    assert not boxes[3].admitted
    assert boxes[2].admitted  # in the slot that became free
    finish(scheduler)
    tickets[1].cancel()  # too late
    scheduler.step()
    for box in boxes[1:3]:
        assert_as_alone(engine, box)
    assert scheduler.stats().cancelled == 2


def test_deadlines_hold_while_waiting_and_at_work():
    engine, clock = toy_engine(), Clock()
    scheduler = scheduler_of(engine, max_batch=1, clock=clock)
    at_work, late, patient = (Box(job_of([1, 2], deadline=deadline)) for deadline in (105.0, 103.0, 1000.0))
    for box in (at_work, late, patient):
        scheduler.submit(box.job, box)
    scheduler.step()
    clock.now = 103.0
    scheduler.step()
    assert isinstance(late.error, TimedOut)
    assert "waiting" in str(late.error)
    assert at_work.last is None
    clock.now = 105.0
    scheduler.step()
    assert isinstance(at_work.error, TimedOut)
    assert "at work" in str(at_work.error)
    assert len(at_work.rows) == 2
    assert patient.notices[0] == Admitted(waited=5.0)
    finish(scheduler)
    assert_as_alone(engine, patient)
    assert scheduler.stats().timed_out == 2


def test_a_full_queue_refuses_and_says_when_to_come_back():
    clock = Clock()
    scheduler = scheduler_of(toy_engine(), max_batch=1, queue_size=2, clock=clock)
    job = job_of([1, 2])
    boxes = submit(scheduler, [job] * 3)  # one for the free slot, two that wait
    with pytest.raises(QueueFull) as refused:
        scheduler.submit(job, Box(job))
    assert refused.value.retry_after == 1.0  # nothing is known yet
    while not boxes[1].last:
        clock.now += 2.0
        scheduler.step()
    submit(scheduler, [job] * 2)
    with pytest.raises(QueueFull, match=r"^3 requests wait already; try again in 24 s\.$") as refused:
        scheduler.submit(job, Box(job))
    assert refused.value.retry_after == pytest.approx(24.0)  # a job takes 12 passes of 2 s
    finish(scheduler)
    clock.now += 1000.0  # of idleness
    submit(scheduler, [job] * 3)
    with pytest.raises(QueueFull) as refused:
        scheduler.submit(job, Box(job))
    assert refused.value.retry_after == 1.0
    assert scheduler.stats().refused == 3


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (job_of([1] * 70), r"a prompt of 70 tokens with gen_length=12 makes 82 positions; at most 72 are served\."),
        (job_of([1, 60]), r"holds the id 60; ids run from 0 to 59\."),
        (job_of([1], temperature=-1.0), r"temperature=-1.0 must be from 0"),
        (job_of([1], top_p=2.0), r"top_p=2.0 must be"),
        (job_of([1], seed=[1, 2]), r"seed has 2 entries for 1 prompts"),
    ],
)
def test_a_job_that_can_never_be_done_is_refused_at_once(job, words):
    scheduler = scheduler_of(toy_engine())
    with pytest.raises(OptionError, match=words):
        scheduler.submit(job, Box(job))
    assert scheduler.stats().accepted == 0


@pytest.mark.parametrize("bad", [1, 2, 4])
def test_a_notify_that_raises_ends_its_own_job_alone(bad):
    """At the word of admission, at a pass, or (12 passes and that word) at the closing one."""
    engine = toy_engine()
    scheduler = scheduler_of(engine)
    good, told = submit(scheduler, jobs_of(2)), []

    def raises(notice):
        told.append(notice)
        if len(told) == bad:
            raise RuntimeError("nobody listens")

    scheduler.submit(job_of([5, 5], gen_length=3, block_length=3), raises)
    good += submit(scheduler, jobs_of(1))
    finish(scheduler)
    for box in good:
        assert_as_alone(engine, box)
    assert len(told) == bad + (bad < 4)
    assert isinstance(told[-1], RowEvent) == (bad == 4)


def test_runs_that_remember_much_are_not_joined(monkeypatch):
    """What they remember would be copied whenever a row comes or goes."""
    scheduler = scheduler_of(toy_engine())
    boxes = submit(scheduler, jobs_of(2, cache="dllm"))
    scheduler.step()
    scheduler.step()
    (run,) = scheduler._batch.runs
    monkeypatch.setattr(batch_module, "LIGHT", remembered(run) // 2 * 3 - 1)
    boxes += submit(scheduler, jobs_of(1, cache="dllm"))
    scheduler.step()
    scheduler.step()
    assert scheduler.stats().runs == 2
    monkeypatch.setattr(batch_module, "LIGHT", remembered(run) // 2 * 4)
    boxes += submit(scheduler, jobs_of(1, cache="dllm"))
    scheduler.step()
    scheduler.step()
    assert scheduler.stats().runs == 2  # the fourth with the third
    finish(scheduler)
    for box in boxes:
        assert_as_alone(scheduler.engine, box)


def test_greedy_rows_do_not_pay_for_noise_of_others():
    scheduler = scheduler_of(toy_engine())
    boxes: list[Box] = submit(scheduler, [*jobs_of(1), *jobs_of(1, temperature=0.5), *jobs_of(1, top_p=0.5)])
    scheduler.step()
    scheduler.step()
    assert [run.sampling.noisy or run.sampling.filtered for run in scheduler._batch.runs] == [False, True, True]
    finish(scheduler)
    for box in boxes:
        assert_as_alone(scheduler.engine, box)
