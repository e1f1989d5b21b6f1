"""What the scheduler takes in and gives back: jobs, tickets, notices, limits and what can go wrong with a job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from fastdllm.checks import check_least
from fastdllm.config import GenerationConfig
from fastdllm.errors import FastdllmError
from fastdllm.events import RowEvent


class TimedOut(FastdllmError, TimeoutError):
    """A job's deadline came before its answer was complete."""


class OutOfMemory(FastdllmError, MemoryError):
    """A pass of this job does not fit into memory, even alone."""


class Cancelled(FastdllmError):
    """Whoever handed the job in has taken it back."""


class ServerClosing(FastdllmError, RuntimeError):
    """The scheduler takes no more jobs, or stopped before this one was done."""


class QueueFull(FastdllmError, RuntimeError):
    """Too many jobs wait already."""

    def __init__(self, waiting: int, retry_after: float) -> None:
        super().__init__(f"{waiting} requests wait already; try again in {retry_after:.0f} s.")
        self.retry_after = retry_after
        """Seconds after which a place should be free."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a scheduler may use.

    Args:
        max_batch: most jobs at work at a time; a smaller memory budget makes it fewer.
        max_model_len: prompt and answer of a job together, at most; None: as much as the model allows.
        kv_bytes: memory budget of the jobs at work, beside the weights: their keys and values, what their
            methods remember, and what a pass over them needs. None: a share of what is free at the start.
        queue_size: most jobs that wait, beside those for which a slot is free.
    """

    max_batch: int = 16
    max_model_len: int | None = None
    kv_bytes: int | None = None
    queue_size: int = 256

    def __post_init__(self) -> None:
        check_least("max_batch", self.max_batch, 1)
        check_least("queue_size", self.queue_size, 1)
        if self.max_model_len is not None:
            check_least("max_model_len", self.max_model_len, 1)
        if self.kv_bytes is not None:
            check_least("kv_bytes", float(self.kv_bytes), 1)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One answer to one prompt."""

    prompt: tuple[int, ...]
    config: GenerationConfig
    """Options of this one row: its seed is a number."""
    deadline: float | None = None
    """When it is given up, in seconds of the scheduler's clock (``time.monotonic``); None: never."""


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """The job has left the queue: its row takes part in the next pass."""

    waited: float
    """Seconds in the queue."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The job ends without an answer."""

    error: Exception
    """NumericalError, :class:`TimedOut`, :class:`OutOfMemory`, :class:`Cancelled`, :class:`ServerClosing`, or
    whatever else was raised by a pass of this job or by its ``notify``."""


Notice: TypeAlias = Admitted | RowEvent | Failed
Notify: TypeAlias = Callable[[Notice], None]


class Ticket:
    """A job that was accepted. Its last notice is a :class:`Failed`, or a RowEvent that has a finish reason."""

    def __init__(self, number: int, job: Job, notify: Notify, wants: int, since: float) -> None:
        self.number, self.job, self.notify = number, job, notify
        self.wants = wants
        """Bytes that its passes need beside its keys and values."""
        self.since = since
        self.slot: int | None = None
        """Its batch row of the pool while it is at work."""
        self.closed = False
        """Whether its last notice is out; set under the scheduler's lock."""
        self._cancelled = False

    def cancel(self) -> None:
        """Take the job back, from any thread and any number of times: its row leaves before the next pass.

        The last notice is then ``Failed`` with :class:`Cancelled`, unless another was on its way.
        """
        self._cancelled = True

    def over(self, now: float) -> Exception | None:
        """Why this job is not to go on at this time of the clock; None when it is."""
        if self._cancelled:
            return Cancelled("the request was cancelled.")
        if self.job.deadline is not None and now >= self.job.deadline:
            return TimedOut(
                f"the request took longer than it may; it had been {'waiting' if self.slot is None else 'at work'}."
            )
        return None


@dataclass(kw_only=True)
class Counts:
    """What a scheduler has done since it was made."""

    passes: int = 0
    """Iterations in which every row at work took a step."""
    steps: int = 0
    """Passes summed over rows (NFE)."""
    rows_computed: int = 0
    """Canvas rows that went through the network."""
    tokens_committed: int = 0
    """Slots written; by revising decoders some of them more than once."""
    largest_batch: int = 0
    accepted: int = 0
    refused: int = 0
    """For a full queue."""
    finished: int = 0
    failed: int = 0
    """Ended without an answer for another reason than the next two."""
    cancelled: int = 0
    timed_out: int = 0

    def add(self, event: RowEvent) -> None:
        """Count what a pass did to one row."""
        self.steps += 1
        self.rows_computed += event.rows_computed
        self.tokens_committed += len(event.positions)

    def end(self, notice: RowEvent | Failed) -> None:
        """Count the last notice of a job."""
        if isinstance(notice, RowEvent):
            self.finished += 1
        elif isinstance(notice.error, Cancelled):
            self.cancelled += 1
        elif isinstance(notice.error, TimedOut):
            self.timed_out += 1
        else:
            self.failed += 1


@dataclass(kw_only=True)
class Stats(Counts):
    """Where a scheduler stands."""

    healthy: bool
    """Whether the model thread runs."""
    closing: bool
    waiting: int
    active: int
    slots: int
    """Jobs that may be at work at a time."""
    free_slots: int
    kv_bytes: int
    """Bytes of the pool of keys and values."""
    room: int | None
    """Bytes beside it for what passes need and methods remember; None where free memory is not known."""
    room_used: int
    """Bytes of it that the jobs at work have been promised."""
    runs: int
    """Groups that the rows at work form: rows of a group share their strategies."""
    rows_per_pass: int
    """Most rows that go through the network together; below ``slots`` after memory ran out."""
    pass_seconds: float
    """How long the pass at work has taken so far; 0 between passes."""
    out_of_memory: int
    """Passes for which memory did not suffice."""
