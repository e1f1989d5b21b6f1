"""The choices of one request at work: handed in together, read as one sequence of updates, given up together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial

from fastdllm.events import RowEvent
from fastdllm.serve.answer import Answer, Delta
from fastdllm.serve.jobs import Admitted, Failed, Job, Notice, Ticket, TimedOut
from fastdllm.serve.service import Service

OVERDUE = 2.0
"""Seconds past its deadline after which a request no longer waits for the scheduler to say so: a pass may hang."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """What a pass did to one choice."""

    index: int
    answer: Answer
    delta: Delta
    event: RowEvent


class Exchange:
    """Runs the jobs of a request.

    Args:
        prompt_tokens: of the request's prompts, each counted once however many choices it has.
    """

    def __init__(self, service: Service, jobs: Sequence[Job], stops: Sequence[str], prompt_tokens: int) -> None:
        self.answers = [Answer(service.engine, job, stops) for job in jobs]
        self.prompt_tokens = prompt_tokens
        self._service, self._jobs = service, jobs
        self._tickets: list[Ticket] = []
        self._notices: asyncio.Queue[tuple[int, Notice]] = asyncio.Queue()
        self._began = time.monotonic()

    def submit(self) -> None:
        """Hand in every job or, where one is refused, none.

        Raises:
            OptionError, QueueFull, ServerClosing: as the scheduler's ``submit``.
        """
        loop = asyncio.get_running_loop()
        try:
            for index, job in enumerate(self._jobs):
                notify = partial(self._notify, loop, index)
                self._tickets.append(self._service.scheduler.submit(job, notify))
        except BaseException:
            self.close()
            raise

    def _notify(self, loop: asyncio.AbstractEventLoop, index: int, notice: Notice) -> None:
        """Called in the model thread."""
        loop.call_soon_threadsafe(self._notices.put_nowait, (index, notice))

    async def begin(self) -> None:
        """Wait for the first job to leave the queue, and raise what has become of it otherwise."""
        _, notice = await self._next()
        self._look(notice)

    async def updates(self) -> AsyncGenerator[Update, None]:
        """The passes of the choices, until all are complete.

        Raises:
            NumericalError, TimedOut, OutOfMemory, ServerClosing: the first that a choice failed with.
        """
        left = set(range(len(self.answers)))
        while left:
            index, notice = await self._next()
            if index not in left:  # a choice that a stop string ended: its row was on its way out
                continue
            self._look(notice)
            if isinstance(notice, RowEvent):
                update = self._add(index, notice)
                if update.answer.finish_reason:
                    left.discard(index)
                yield update
        self._service.metrics.prompts(self.prompt_tokens)

    async def finish(self) -> None:
        """Wait until all choices are complete; raises as :meth:`updates`."""
        async for _ in self.updates():
            pass

    async def _next(self) -> tuple[int, Notice]:
        deadline = self._jobs[0].deadline
        left = None if deadline is None else max(0.0, deadline + OVERDUE - time.monotonic())
        try:
            return await asyncio.wait_for(self._notices.get(), left)
        except asyncio.TimeoutError:
            raise TimedOut("the request took longer than it may; the model is still at the pass before.") from None

    def _look(self, notice: Notice) -> None:
        if isinstance(notice, Failed):
            raise notice.error
        if isinstance(notice, Admitted):
            self._service.metrics.admitted(notice.waited)

    def _add(self, index: int, event: RowEvent) -> Update:
        answer, metrics = self.answers[index], self._service.metrics
        silent = not answer.text
        delta = answer.add(event)
        if silent and delta.text:
            metrics.first_text(time.monotonic() - self._began)
        if answer.finish_reason:
            metrics.choice(answer.finish_reason, len(answer.tokens), answer.nfe)
            if not event.finish_reason:
                self._tickets[index].cancel()
        return Update(index=index, answer=answer, delta=delta, event=event)

    def close(self) -> None:
        """Give up what is not complete; any number of times."""
        for ticket, answer in zip(self._tickets, self.answers, strict=False):  # fewer tickets where one was refused
            if not answer.finish_reason:
                ticket.cancel()

    def usage(self) -> dict[str, object]:
        """Tokens and passes so far, over all choices."""
        tokens, nfe = sum(len(answer.tokens) for answer in self.answers), sum(answer.nfe for answer in self.answers)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self.prompt_tokens + tokens,
            "nfe": nfe,
            "tokens_per_forward": tokens / nfe if nfe else 0.0,
        }
