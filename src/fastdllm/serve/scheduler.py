"""Continuous batching: one thread runs the model, and requests join and leave between any two passes."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

import torch

from fastdllm.engine import Engine, sampling_of
from fastdllm.events import RowEvent
from fastdllm.serve.batch import Batch, Outcome, fatal
from fastdllm.serve.jobs import (
    Admitted,
    Counts,
    Failed,
    Job,
    Limits,
    Notice,
    Notify,
    QueueFull,
    ServerClosing,
    Stats,
    Ticket,
)
from fastdllm.serve.pool import Pool

logger = logging.getLogger("fastdllm.serve")

GRACE = 10.0
"""Seconds that :meth:`Scheduler.stop` gives a pass to end once the time for draining is over."""
STUMBLES = 3
"""Iterations in a row that may be lost to an error outside a pass before the model thread gives up."""


class Scheduler:
    """Runs jobs on one model: first come, first served, and every job at work takes a step in every pass.

    What a job gets is what it would get alone. The job at the head of the queue is the next to be admitted,
    however long it is; none behind it is taken before.

    Args:
        clock: seconds; deadlines are times of this clock.

    Raises:
        OptionError: the limits do not allow a single job.
    """

    def __init__(self, engine: Engine, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.engine, self.limits, self.pool = engine, limits, Pool(engine, limits)
        self._batch, self._clock, self._counts = Batch(engine, self.pool), clock, Counts()
        self._wake = threading.Condition()  # guards the queue, what is at work, the slots and the counts
        self._waiting: deque[Ticket] = deque()
        self._active: dict[int, Ticket] = {}
        self._ends: deque[float] = deque(maxlen=32)  # when jobs ended, since there was last nothing to do
        self._closing, self._until = False, 0.0
        self._thread: threading.Thread | None = None
        self._since: float | None = None

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and answer together."""
        return self.pool.width

    def start(self) -> None:
        """Start the model thread."""
        assert self._thread is None
        self._thread = threading.Thread(target=self._serve, name="fastdllm-model", daemon=True)
        self._thread.start()

    def submit(self, job: Job, notify: Notify) -> Ticket:
        """Put a job into the queue; from any thread.

        Args:
            notify: gets every notice of the job, in the model thread. It must not block, and when it raises,
                its job fails.

        Raises:
            OptionError: the job can never be done here.
            QueueFull: too many wait.
            ServerClosing: no more jobs are taken.
        """
        wants = self._check(job)
        with self._wake:
            if self._closing:
                raise ServerClosing("the server is closing and takes no more requests.")
            if len(self._waiting) >= self.limits.queue_size + self.pool.free:
                self._counts.refused += 1
                raise QueueFull(len(self._waiting), self._retry_after())
            ticket = Ticket(self._counts.accepted, job, notify, wants, self._clock())
            if not (self._waiting or self._active):
                self._ends.clear()  # the time of idleness says nothing of how long jobs take
                self._ends.append(ticket.since)
            self._counts.accepted += 1
            self._waiting.append(ticket)
            self._wake.notify()
        return ticket

    def _check(self, job: Job) -> int:
        config = job.config
        wants = self.pool.check(len(job.prompt), config)
        self.engine.encode([job.prompt])
        config.rule.check_vocabulary(self.engine.config.vocab_size)
        sampling_of(config, 1, "cpu")
        return wants

    def _retry_after(self) -> float:
        """Seconds until a place in the queue should be free: the mean time between the last jobs' ends."""
        return min(max(1.0, (self._clock() - self._ends[0]) / max(1, len(self._ends) - 1)), 60.0)

    def stop(self, *, drain_seconds: float) -> None:
        """Take no more jobs, give those that are there ``drain_seconds`` to be done, and refuse the rest.

        Returns when the model thread has ended; should a pass hang, some seconds after the time for draining.
        """
        with self._wake:
            self._closing, self._until = True, self._clock() + drain_seconds
            self._wake.notify_all()
        if self._thread not in (None, threading.current_thread()):
            self._thread.join(drain_seconds + GRACE)
            if self._thread.is_alive():
                logger.error("the model thread hangs in a pass and is left behind")
        self._refuse_all("the server closed before the request was done.")

    def stats(self) -> Stats:
        """Where things stand; from any thread."""
        thread, since, pool = self._thread, self._since, self.pool
        with self._wake:
            return Stats(
                **vars(self._counts),
                healthy=thread is not None and thread.is_alive(),
                closing=self._closing,
                waiting=len(self._waiting),
                active=len(self._active),
                slots=pool.slots,
                free_slots=pool.free,
                kv_bytes=pool.store.nbytes,
                room=pool.room,
                room_used=pool.used,
                runs=len(self._batch.runs),
                rows_per_pass=self._batch.most,
                pass_seconds=0.0 if since is None else self._clock() - since,
                out_of_memory=self._batch.shortages,
            )

    @torch.inference_mode()
    def _serve(self) -> None:
        """The model thread."""
        try:
            if self.engine.device.type == "cuda":
                torch.cuda.set_device(self.engine.device)
            stumbles = 0
            while self._await_work():
                try:
                    self.step()
                    stumbles = 0
                except Exception as error:
                    stumbles += 1
                    if fatal(error) or stumbles == STUMBLES:
                        raise
                    logger.exception("an iteration failed, and with it every request at work")
                    self._fail_active(error)
        except BaseException:
            logger.exception("the model thread ends")
        finally:
            self._refuse_all("the server closed before the request was done.")

    def _await_work(self) -> bool:
        """Wait for a job; False when the thread is to end."""
        with self._wake:
            while not (self._waiting or self._active or self._closing):
                self._wake.wait()
            if self._closing:
                return bool(self._waiting or self._active) and self._clock() < self._until
            return True

    @torch.inference_mode()
    def step(self) -> bool:
        """One iteration of the model thread: rows leave, rows join, one pass. False where nothing is at work.

        For tests, too, on a scheduler that was not started.
        """
        self._sweep()
        self._admit()
        if not self._active:
            return False
        self._counts.passes += 1
        self._counts.largest_batch = max(self._counts.largest_batch, len(self._active))
        self._since = self._clock()
        try:
            outcomes = self._batch.advance()
        finally:
            self._since = None
        for outcome in outcomes:
            self._deliver(outcome)
        return True

    def _sweep(self) -> None:
        """Let jobs go that were cancelled or are late."""
        now = self._clock()
        with self._wake:
            tickets = [*self._active.values(), *self._waiting]
            over = [(ticket, error) for ticket in tickets if (error := ticket.over(now)) is not None]
            for ticket, _ in over:
                if ticket.slot is None:
                    self._waiting.remove(ticket)
        self._batch.drop({ticket.number for ticket, _ in over if ticket.slot is not None})
        for ticket, error in over:
            self._close(ticket, Failed(error=error))

    def _admit(self) -> None:
        """Take jobs from the head of the queue while there is a slot and room."""
        while True:
            with self._wake:
                if not self._waiting:
                    return
                ticket = self._waiting[0]
                ticket.slot = self.pool.take(ticket.wants)
                if ticket.slot is None:
                    return
                self._active[ticket.number] = self._waiting.popleft()
            self._begin(ticket)

    def _begin(self, ticket: Ticket) -> None:
        try:
            self._batch.add(ticket)
        except Exception as error:
            logger.exception("request %d could not begin", ticket.number)
            self._close(ticket, Failed(error=error))
        else:
            self._tell(ticket, Admitted(waited=self._clock() - ticket.since))

    def _deliver(self, outcome: Outcome) -> None:
        """Pass on what a pass did for one job."""
        number, result = outcome
        ticket = self._active.get(number)
        if ticket is None:  # refused by a stop that did not wait for this pass
            return
        if isinstance(result, Exception):
            self._close(ticket, Failed(error=result))
            return
        self._counts.add(result)
        if result.finish_reason:
            self._close(ticket, result)
        else:
            self._tell(ticket, result)

    def _tell(self, ticket: Ticket, notice: Notice) -> None:
        """Hand a notice on that is not the last; a job whose notify raises is over."""
        try:
            ticket.notify(notice)
        except Exception as error:
            logger.exception("the notify of request %d raised", ticket.number)
            self._batch.drop({ticket.number})
            self._close(ticket, Failed(error=error))

    def _close(self, ticket: Ticket, notice: RowEvent | Failed) -> None:
        """End a job with its last notice, once; its slot is free before the notice is out."""
        with self._wake:
            if ticket.closed:
                return
            ticket.closed = True
            if ticket.slot is not None:
                del self._active[ticket.number]
                self.pool.give(ticket.slot, ticket.wants)
            self._ends.append(self._clock())
            self._counts.end(notice)
        if isinstance(notice, Failed):
            notice.error.__traceback__ = None  # it would keep what the pass computed
        try:
            ticket.notify(notice)
        except Exception:
            logger.exception("the notify of request %d raised at its last notice", ticket.number)

    def _fail_active(self, error: Exception) -> None:
        """End every job at work."""
        tickets = list(self._active.values())
        self._batch.clear()
        self.pool.store.clear([ticket.slot for ticket in tickets if ticket.slot is not None])
        for ticket in tickets:
            self._close(ticket, Failed(error=error))

    def _refuse_all(self, why: str) -> None:
        """Take no more jobs, and end all that are there."""
        with self._wake:
            self._closing = True
            tickets = [*self._active.values(), *self._waiting]
            self._waiting.clear()
        for ticket in tickets:
            self._close(ticket, Failed(error=ServerClosing(why)))
        if self._thread in (None, threading.current_thread()):
            self._batch.clear()
