"""Sending: turn after turn, each a load for a number of requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import httpx

from fastdllm.load_test.plan import Load, Plan
from fastdllm.load_test.request import Failure, Outcome, Request, ask, measure
from fastdllm.load_test.target import Page, Server, ServerError, Target, read_metrics

ACCEPTED = "fastdllm_jobs_accepted_total"
Send: TypeAlias = Callable[[Request, float], Awaitable[None]]


@dataclass(kw_only=True)
class Turn:
    """A load in one round, complete or as far as it went."""

    load: Load
    round: int
    outcomes: list[Outcome] = field(default_factory=list)
    """In the order in which requests ended."""
    sent: int = 0
    seconds: float = 0.0
    """From its beginning to the end of its last request."""
    client_seconds: float = 0.0
    """Of CPU time that this process took."""
    counters: dict[str, float] | None = None
    """By how much the server's counters grew; None where it has none, and for a turn that was interrupted."""
    complete: bool = False
    """False where it was interrupted."""

    @property
    def unfinished(self) -> int:
        """Requests that were sent and had not ended when the turn was interrupted."""
        return self.sent - len(self.outcomes)

    @property
    def shared(self) -> bool:
        """Whether the server had other requests during the turn, as far as it tells."""
        return self.counters is not None and self.counters.get(ACCEPTED, 0) > self.sent


class Drive:
    """A load test at work; ``turns`` holds what is done at any moment, should it be interrupted."""

    def __init__(self, target: Target, server: Server, plan: Plan, requests: Sequence[Request]) -> None:
        self.server, self.plan, self.turns = server, plan, list[Turn]()
        self._target, self._requests = target, requests

    async def run(self, advance: Callable[[], None], ended: Callable[[Turn], None]) -> None:
        """Warm up, and make every turn of the plan.

        Args:
            advance: called after each request that counts.
            ended: told each turn when it is complete.

        Raises:
            ServerError: a request of the warm-up has no answer.
        """
        async with self._target.client() as client:
            await self._warm_up(client)
            for number in range(self.plan.rounds):
                for load in self.plan.loads:
                    turn = Turn(load=load, round=number)
                    self.turns.append(turn)
                    await self._make(client, turn, advance)
                    ended(turn)

    async def _warm_up(self, client: httpx.AsyncClient) -> None:
        """Requests that do not count, as many at a time as there will be."""
        fingerprints: list[str | None] = []

        async def send(request: Request, due: float) -> None:
            try:
                reading = await asyncio.wait_for(ask(client, request), self.plan.timeout)
            except (Failure, asyncio.TimeoutError) as error:
                kind = error.kind if isinstance(error, Failure) else "too late"
                raise ServerError(f"the server did not answer a request ({kind}): {error}") from None
            fingerprints.append(reading.fingerprint)

        few = [self._requests[i % len(self._requests)] for i in range(self.plan.warm_ups)]
        await _closed(self.plan.widest, iter(few), send)
        self.server = replace(self.server, weights=next(filter(None, fingerprints), None))

    async def _make(self, client: httpx.AsyncClient, turn: Turn, advance: Callable[[], None]) -> None:
        async def send(request: Request, due: float) -> None:
            turn.sent += 1
            turn.outcomes.append(await measure(client, request, due, self.plan.timeout))
            advance()

        before = await read_metrics(client)
        cpu, begun = time.process_time(), time.perf_counter()
        left = _until(begun + self.plan.seconds, self._requests)
        try:
            if turn.load.concurrency is not None:
                await _closed(turn.load.concurrency, left, send)
            else:
                times = (begun + after for after in self.plan.arrivals(turn.load, turn.round))
                await _open(times, begun + self.plan.seconds, self._requests, send)
        finally:
            turn.seconds, turn.client_seconds = time.perf_counter() - begun, time.process_time() - cpu
        turn.counters = _growth(before, await read_metrics(client))
        turn.complete = True


def _until(end: float, requests: Sequence[Request]) -> Iterator[Request]:
    """The requests, as long as there is time."""
    for request in requests:
        if time.perf_counter() >= end:
            return
        yield request


async def _closed(concurrency: int, requests: Iterator[Request], send: Send) -> None:
    """So many at a time; the first that raises ends all."""

    async def work() -> None:
        for request in requests:
            await send(request, time.perf_counter())

    tasks = [asyncio.ensure_future(work()) for _ in range(concurrency)]
    with _ended(tasks):
        await asyncio.gather(*tasks)


async def _open(times: Iterator[float], end: float, requests: Sequence[Request], send: Send) -> None:
    """Each at its time, before the end, whatever has become of those before it."""
    tasks: list[asyncio.Future[None]] = []
    with _ended(tasks):
        for request, due in zip(requests, times, strict=False):
            if due >= end:
                break
            await asyncio.sleep(due - time.perf_counter())
            tasks.append(asyncio.ensure_future(send(request, due)))
        await asyncio.gather(*tasks)


@contextmanager
def _ended(tasks: Sequence[asyncio.Future[None]]) -> Iterator[None]:
    """None of the tasks goes on behind this, however it is left."""
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


def _growth(before: Page | None, after: Page | None) -> dict[str, float] | None:
    """By how much each counter grew."""
    if before is None or after is None:
        return None
    counters = [name for name in after.samples if name.endswith(("_total", "_sum", "_count"))]
    return {name: after.samples[name] - before.samples.get(name, 0.0) for name in counters}
