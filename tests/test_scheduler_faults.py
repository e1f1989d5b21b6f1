"""What goes wrong with one job is that job's trouble: logits that are no numbers, memory, errors of a pass."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fastdllm.canvas import Canvas, Delta
from fastdllm.decoders import TopK, Turn
from fastdllm.engine import Engine
from fastdllm.errors import BrokenOff, NumericalError
from fastdllm.serve import batch as batch_module
from fastdllm.serve.batch import fatal
from fastdllm.serve.jobs import OutOfMemory, ServerClosing
from schedules import assert_as_alone, assert_empty, finish, job_of, jobs_of, scheduler_of, submit, wait_until
from toys import FAMILIES, toy_engine

SHORTAGES = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
)
METHODS = (
    ("dual", "topk:k=1"), ("dkv:refresh=3", "topk:k=1"), ("d2cache:current_k=4", "klass"), ("none", "credit"),
    ("prefix", "wino"),
)  # fmt: skip


@dataclass
class Wrapped:
    """A model part that calls ``before`` with its first argument; the engine as it was is there for comparison."""

    engine: Engine
    part: str

    @contextmanager
    def calling(self, before: Callable[[Tensor], None]) -> Iterator[None]:
        plain = getattr(self.engine.model, self.part)

        def wrapped(first: Tensor, *rest: object) -> Tensor:
            before(first)
            return plain(first, *rest)

        setattr(self.engine.model, self.part, wrapped)
        try:
            yield
        finally:
            setattr(self.engine.model, self.part, plain)


def test_a_row_whose_logits_are_no_numbers_fails_alone():
    engine = toy_engine(seed=5)
    scheduler, logits = scheduler_of(engine), engine.model.logits
    boxes = submit(scheduler, jobs_of(3))
    scheduler.step()
    scheduler.step()
    engine.model.logits = lambda hidden: logits(hidden).index_fill(0, torch.tensor([1]), float("nan"))  # type: ignore[method-assign]
    scheduler.step()
    engine.model.logits = logits  # type: ignore[method-assign]
    assert isinstance(boxes[1].error, NumericalError)
    assert len(boxes[1].rows) == 2
    finish(scheduler)
    for box in (boxes[0], boxes[2]):
        assert_as_alone(engine, box)
    assert scheduler.stats().failed == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_slot_that_held_what_is_no_number_does_no_harm_to_the_next(family):
    """Keys and values of the failed row are NaN. The next row of its slot is shorter, and a longer one beside it
    makes the pass read on past its end, with a weight of 0: 0 times NaN would be NaN."""
    engine = toy_engine(family)
    scheduler, embedding = scheduler_of(engine, max_batch=2), engine.model.embed.weight[7].clone()
    engine.model.embed.weight[7] = float("nan")
    (poisoned,) = submit(scheduler, [job_of([7] * 40)])
    scheduler.step()
    engine.model.embed.weight[7] = embedding
    assert isinstance(poisoned.error, NumericalError)
    boxes = submit(scheduler, [job_of([1, 2, 3]), job_of([4] * 50)])
    finish(scheduler)
    for box in boxes:
        assert_as_alone(engine, box)


@pytest.mark.parametrize(
    ("part", "error"), zip(("forward", "logits", "forward"), SHORTAGES, strict=True), ids=("gpu", "cpu", "cublas")
)
def test_out_of_memory_shrinks_the_batch_and_changes_no_answer(part, error):
    """Of eight rows two fit. They are of several methods, some of which remember the pass before."""
    engine = toy_engine(seed=2)
    scheduler = scheduler_of(engine, max_batch=8)

    def tight(first: Tensor) -> None:
        if first.shape[0] > 2 if part == "forward" else first[..., 0].numel() > 24:  # batch rows, or slots
            raise error

    with Wrapped(engine, part).calling(tight):
        kinds = [METHODS[i % len(METHODS)] for i in range(8)]
        boxes = submit(scheduler, [job_of([3, i], cache=kind[0], decoder=kind[1]) for i, kind in enumerate(kinds)])
        boxes += submit(scheduler, jobs_of(4))
        scheduler.step()
        assert scheduler.stats().rows_per_pass == 2
        assert scheduler.stats().active == 8
        assert [len(box.rows) for box in boxes] == [1] * 8 + [0] * 4
        shortages = scheduler.stats().out_of_memory
        scheduler.step()
        assert scheduler.stats().out_of_memory == shortages  # it is remembered
        finish(scheduler)
    for box in boxes:
        assert_as_alone(engine, box)


def test_a_run_that_does_not_fit_is_split_and_joined_again_when_there_is_room(monkeypatch):
    monkeypatch.setattr(batch_module, "PATIENCE", 3)
    engine = toy_engine(seed=3)
    scheduler, most = scheduler_of(engine, max_batch=8), 8

    def tight(tokens: Tensor) -> None:
        if len(tokens) > most:
            raise SHORTAGES[0]

    with Wrapped(engine, "forward").calling(tight):
        boxes = submit(scheduler, jobs_of(8, gen_length=36, block_length=12))
        scheduler.step()
        assert (scheduler.stats().runs, scheduler.stats().rows_per_pass) == (1, 8)
        most = 3
        scheduler.step()
        assert (scheduler.stats().runs, scheduler.stats().rows_per_pass) == (4, 2)
        most, seen = 8, []
        for _ in range(24):
            scheduler.step()
            seen.append((scheduler.stats().rows_per_pass, scheduler.stats().runs))
        assert [rows for i, (rows, _) in enumerate(seen) if i == 0 or seen[i - 1][0] != rows] == [2, 3, 4, 5, 6, 7, 8]
        assert seen[-1] == (8, 1)
        finish(scheduler)
    for box in boxes:
        assert_as_alone(engine, box)


def test_a_row_that_does_not_fit_alone_fails_and_the_others_go_on():
    engine = toy_engine()
    scheduler = scheduler_of(engine)

    def tight(tokens: Tensor) -> None:
        if tokens.shape[1] > 40:
            raise SHORTAGES[0]

    with Wrapped(engine, "forward").calling(tight):
        boxes = submit(scheduler, [*jobs_of(2), job_of([1] * 50), *jobs_of(1)])
        scheduler.step()
        assert isinstance(boxes[2].error, OutOfMemory)
        assert scheduler.stats().rows_per_pass == 4  # the one row was what did not fit
        finish(scheduler)
    for box in (*boxes[:2], boxes[3]):
        assert_as_alone(engine, box)


@dataclass(frozen=True, kw_only=True)
class Brittle(TopK):
    """Raises at the third pass."""

    error: str = "this decoder is broken"

    def step(self, turn: Turn) -> Delta:
        if int(turn.region.nfe.max()) == 2:
            raise RuntimeError(self.error)
        return super().step(turn)


def test_a_decoder_that_raises_fails_its_jobs_alone(caplog):
    """The credits of the others are of this pass once, although the pass was partly broken off."""
    engine = toy_engine(seed=4)
    scheduler = scheduler_of(engine, max_batch=6)
    boxes = submit(scheduler, jobs_of(2, decoder="credit", temperature=0.5))
    broken = submit(scheduler, jobs_of(2, decoder=Brittle(k=1)))
    boxes += submit(scheduler, jobs_of(2, decoder="klass"))
    with caplog.at_level(logging.ERROR, "fastdllm.serve"):
        finish(scheduler)
    assert [str(box.error) for box in broken] == ["this decoder is broken"] * 2
    assert [record.message for record in caplog.records] == ["a pass failed; requests [2, 3] end"]
    assert caplog.records[0].exc_info
    assert broken[0].error.__traceback__ is None  # it would keep logits alive for as long as somebody keeps the error
    for box in boxes:
        assert_as_alone(engine, box)


def test_a_decoder_that_runs_out_of_memory_once_is_asked_again():
    engine = toy_engine(seed=4)
    scheduler, left, step = scheduler_of(engine), 1, TopK.step

    def tight(self: TopK, turn: Turn) -> Delta:
        nonlocal left
        if len(turn.canvas) > 1 and left:
            left -= 1
            raise SHORTAGES[0]
        return step(self, turn)

    boxes = submit(scheduler, jobs_of(2, cache="dkv"))
    boxes += submit(scheduler, jobs_of(2, decoder="credit"))
    scheduler.step()
    scheduler.step()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TopK, "step", tight)
        finish(scheduler)
    assert left == 0
    assert scheduler.stats().out_of_memory == 1
    for box in boxes:
        assert_as_alone(engine, box)


def test_a_network_that_raises_for_one_run_fails_that_run_alone():
    engine = toy_engine()
    scheduler = scheduler_of(engine, max_batch=6)

    def brittle(tokens: Tensor) -> None:
        if bool((tokens == 33).any()):
            raise ValueError("33 is not to my taste")

    with Wrapped(engine, "forward").calling(brittle):
        boxes = submit(scheduler, [job_of([1, 2]), job_of([33, 3], gen_length=16), job_of([4, 5], cache="d2cache")])
        finish(scheduler)
    assert str(boxes[1].error) == "33 is not to my taste"
    for box in (boxes[0], boxes[2]):
        assert_as_alone(engine, box)


def test_a_pass_broken_off_half_way_ends_what_is_at_work_and_no_more(monkeypatch):
    engine = toy_engine()
    scheduler, write, broken = scheduler_of(engine, max_batch=2), Canvas.write, False

    def breaking(self: Canvas, delta: Delta) -> Tensor:
        nonlocal broken
        if not broken and int(self.index[0]) == 1:
            broken = True
            raise SHORTAGES[0]
        return write(self, delta)

    monkeypatch.setattr(Canvas, "write", breaking)
    boxes = submit(scheduler, [*jobs_of(1), *jobs_of(1, gen_length=16), *jobs_of(2)])
    scheduler.start()
    wait_until(lambda: all(box.last for box in boxes))
    assert [type(box.error) for box in boxes[:2]] == [BrokenOff] * 2
    assert scheduler.stats().healthy
    scheduler.stop(drain_seconds=5.0)
    for box in boxes[2:]:
        assert_as_alone(engine, box)
    assert_empty(scheduler)


@pytest.mark.parametrize("lost", [True, False])
def test_a_dead_model_thread_is_seen_and_leaves_nobody_waiting(lost, caplog):
    """When the device is lost at once, and when iteration after iteration fails outside a pass."""
    engine = toy_engine()
    scheduler = scheduler_of(engine, max_batch=1)
    kind = getattr(torch, "AcceleratorError", RuntimeError)
    error = kind("CUDA error: device-side assert triggered") if lost else BrokenOff("again and again")
    assert fatal(error) == lost

    def broken(tokens: Tensor) -> None:
        raise error

    with Wrapped(engine, "forward").calling(broken), caplog.at_level(logging.ERROR, "fastdllm.serve"):
        boxes = submit(scheduler, jobs_of(5))
        scheduler.start()
        wait_until(lambda: not scheduler.stats().healthy)
    assert all(box.last for box in boxes)
    gone = 0 if lost else 2
    assert [type(box.error) for box in boxes] == [BrokenOff] * gone + [ServerClosing] * (5 - gone)
    assert caplog.records[-1].message == "the model thread ends"
    with pytest.raises(ServerClosing):
        submit(scheduler, jobs_of(1))
    assert_empty(scheduler)
    scheduler.stop(drain_seconds=60.0)
