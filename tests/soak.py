"""A soak of the server over HTTP: many clients, good and bad requests of every kind, for a time.

python tests/soak.py [SECONDS]
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import re
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import torch

import fastdllm
from fastdllm.canvas import Canvas
from fastdllm.completion import Draft
from fastdllm.engine import Engine
from fastdllm.kv import KVStore, Lease
from fastdllm.loop import Run
from fastdllm.serve.answer import Answer
from fastdllm.serve.exchange import Exchange
from fastdllm.serve.jobs import Limits, Ticket
from helpers import write_checkpoint
from serving import PATIENCE, Served, serving, until
from soak_cases import MODEL, MOST_BYTES, MOST_CHOICES, POISON, WIDTH, Case, cases
from soak_clients import GONE, KINDS, Asking, whole

CLIENTS, SLOTS, QUEUE, KEY = 16, 6, 8, "the-key"
TIMEOUT = 2.0
"""Of the server's, in seconds: a model that hangs for longer makes requests late."""
STALLS = 20.0
"""Seconds from one time that the model hangs to the next."""
HELD = (Ticket, Run, Canvas, KVStore, Lease, Draft, Answer, Exchange)
"""What requests are made of."""
LINE = re.compile(r" (\d{3}) [\d.]+s id=(soak-\d+)")


class Ledger(logging.Handler):
    """Compares what clients saw with the server's log: a line for each request, with the same status."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.statuses: Counter[str] = Counter()
        """Of the log's lines."""
        self.problems: list[str] = []
        self._lines: dict[str, str] = {}
        self._seen: dict[str, str] = {}
        self._own = threading.Lock()

    @property
    def open(self) -> int:
        """Requests of which one side has not told; a second line for a request stays here for ever."""
        return len(self._lines) + len(self._seen)

    def emit(self, record: logging.LogRecord) -> None:
        """Called in the server's threads."""
        if record.levelno >= logging.WARNING:
            self.problems.append(f"the server logs: {record.getMessage()}")
        elif found := LINE.search(record.getMessage()):
            self.statuses[found[1]] += 1
            self._note(found[2], found[1], self._lines, self._seen)

    def saw(self, name: str, status: str) -> None:
        self._note(name, status, self._seen, self._lines)

    def _note(self, name: str, status: str, mine: dict[str, str], others: dict[str, str]) -> None:
        with self._own:
            if name in others:
                other = others.pop(name)
                if GONE not in (status, other) and status != other:
                    self.problems.append(f"{name} has two statuses: {sorted((status, other))}")
            elif name in mine:
                self.problems.append(f"{name} ended twice")
            else:
                mine[name] = status


class Gate:
    """Makes the model hang before a pass while it is shut."""

    def __init__(self, engine: Engine) -> None:
        self._open = threading.Event()
        self._open.set()
        engine.model.register_forward_pre_hook(lambda *_: self._wait())

    def _wait(self) -> None:
        assert self._open.wait(PATIENCE)

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()


class Soak:
    """Clients at work until a time of the clock."""

    def __init__(self, url: str, good: list[Case], until: float, seed: int) -> None:
        self.ledger, self.sent = Ledger(), 0
        self.ends: Counter[tuple[str, str]] = Counter()
        """What requests of each kind came to."""
        self._url, self._good, self._until, self._seed = url, good, until, seed

    async def run(self, gate: Gate, *, hang: bool) -> None:
        """All clients at once."""
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self._url, timeout=PATIENCE, limits=limits) as client:
            hanging = asyncio.ensure_future(self._hang(gate)) if hang else None
            await asyncio.gather(*(self._client(client, random.Random(self._seed + i)) for i in range(CLIENTS)))
            if hanging:
                hanging.cancel()
        gate.open()

    async def _hang(self, gate: Gate) -> None:
        """Let the model hang now and then; in a short soak once, a third into its time."""
        await asyncio.sleep(min(STALLS, (self._until - time.monotonic()) / 3))
        while True:
            gate.shut()
            await asyncio.sleep(1.2 * TIMEOUT)
            gate.open()
            await asyncio.sleep(STALLS)

    async def _client(self, client: httpx.AsyncClient, rng: random.Random) -> None:
        while time.monotonic() < self._until and not self.ledger.problems:
            kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
            self.sent += 1
            name = f"soak-{self.sent}"
            head = {"x-request-id": name, "Authorization": f"Bearer {KEY}"}
            asking = Asking(http=client, case=rng.choice(self._good), rng=rng, key=KEY, head=head)
            try:
                end = await kind(asking)
            except Exception:
                self.ledger.problems.append(f"{name} ({kind.__name__}): {traceback.format_exc()}")
                return
            self.ledger.saw(name, end)
            self.ends[kind.__name__, end] += 1
            if end == "429":
                await asyncio.sleep(0.2)


@contextmanager
def server(folder: Path) -> Iterator[tuple[Served, Gate, list[Case]]]:
    """The real server of a small random model, of which one token is poison that it never writes itself."""
    engine = fastdllm.load(write_checkpoint(folder, layers=2))
    assert engine.text is not None
    poison = engine.text.encode(POISON)
    logits, never = engine.model.logits, torch.tensor(poison)
    engine.model.logits = lambda hidden: logits(hidden).index_fill(-1, never, -1e4)  # type: ignore[method-assign]
    engine.model.embed.weight[poison] = float("nan")
    good = cases(engine, 40)
    gate = Gate(engine)
    limits = Limits(max_batch=SLOTS, max_model_len=WIDTH, queue_size=QUEUE)
    with serving(
        engine, name=MODEL, limits=limits, api_keys=(KEY,), timeout=TIMEOUT, max_choices=MOST_CHOICES,
        max_body=MOST_BYTES, playground=False,
    ) as served:  # fmt: skip
        yield served, gate, good
        gate.open()


@contextmanager
def logging_to(ledger: Ledger) -> Iterator[None]:
    """Every line of the server's log goes to the ledger alone."""
    logger = logging.getLogger("fastdllm.serve")
    before = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [ledger], False
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.handlers, _, logger.propagate = before
        logger.setLevel(before[1])


def soak(
    served: Served, gate: Gate, good: list[Case], seconds: float, *, seed: int = 0, hang: bool = True
) -> Soak:  # fmt: skip
    """Let clients work for so long, and wait until the server has done with all of them."""
    one = Soak(served.url, good, time.monotonic() + seconds, seed)
    with logging_to(one.ledger):
        asyncio.run(one.run(gate, hang=hang))
        until(lambda: bool(one.ledger.problems) or not (one.ledger.open or busy(served)))
    assert not one.ledger.problems, "\n".join(one.ledger.problems)
    return one


def ask_all(served: Served, good: list[Case]) -> Iterator[str]:
    """What every good request comes to, one after the other."""
    with httpx.Client(base_url=served.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=PATIENCE) as client:
        for case in good:
            yield whole(case, client.post(case.path, json=case.body))


def busy(served: Served) -> bool:
    stats = served.stats()
    return bool(stats.waiting or stats.active or stats.runs or served.server.server_state.connections)


def held(served: Served) -> Counter[str]:
    """What there is of the things that requests are made of, and of tasks that have not ended."""
    until(lambda: not served.server.server_state.tasks)
    gc.collect()
    things = gc.get_objects()
    tasks = [thing for thing in things if type(thing) is asyncio.Task and not thing.done()]
    return Counter(type(thing).__name__ for thing in things if type(thing) in HELD) + Counter(task=len(tasks))


def metrics(served: Served) -> dict[str, float]:
    """Every sample, under its name and labels."""
    page = httpx.get(f"{served.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in page.splitlines() if line[0] != "#")}


def check_accounts(served: Served, before: dict[str, float], one: Soak) -> None:
    """What the server counts adds up, and to what clients saw."""
    after = metrics(served)
    grown = {name: value - before.get(name, 0.0) for name, value in after.items()}
    jobs = {end: grown[f"fastdllm_jobs_{end}_total"] for end in ("finished", "failed", "cancelled", "timed_out")}
    assert grown["fastdllm_jobs_accepted_total"] == sum(jobs.values())
    assert all(jobs.values()), jobs
    assert after["fastdllm_free_slots"] == after["fastdllm_slots"] == SLOTS
    counted: Counter[str] = Counter()
    for name, value in grown.items():
        if name.startswith("fastdllm_requests_total") and value:
            counted[re.findall(r'status="(\d+)"', name)[0]] += int(value)
    counted["200"] -= 1  # the page of metrics before was counted after it was made
    assert counted == one.ledger.statuses
    assert sum(counted.values()) == one.sent
    assert counted["499"], "the server has noticed clients that left"
    assert httpx.get(f"{served.url}/health").json()["status"] == "ok"


def resident() -> float:
    """MiB of memory that this process holds; 0 where the system does not tell."""
    told = Path("/proc/self/statm")
    return int(told.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20 if told.exists() else 0.0


def main(seconds: float) -> None:
    """A quarter of the time before, as a warm-up, then the soak in three parts, with the memory after each."""
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as (served, gate, good):
        ends: Counter[tuple[str, str]] = Counter()
        soak(served, gate, good, seconds / 4, seed=10**6)
        things, counts, sent = held(served), metrics(served), 0
        print(f"after warming up: {resident():.0f} MiB", flush=True)
        for part in range(3):
            one = soak(served, gate, good, seconds / 4, seed=part * CLIENTS)
            check_accounts(served, counts, one)
            assert held(served) == things
            ends, sent, counts = ends + one.ends, sent + one.sent, metrics(served)
            print(f"part {part + 1}: {one.sent} requests, {resident():.0f} MiB", flush=True)
        print(f"{sent} requests; nothing is left of them: {dict(things)}")
        for (kind, end), count in sorted(ends.items()):
            print(f"{count:7} {kind}: {end}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 300.0)
