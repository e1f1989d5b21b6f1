"""Hundreds of requests of every kind over HTTP: each is answered once and rightly, and nothing is left of them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator

import pytest

import soak
from soak import CLIENTS, Case, Gate, Ledger, Served

SECONDS, LEAST = 10.0, 150
EXPECTED = {
    "whole": {"200"}, "stream": {"200"}, "leave_stream": {"gone"}, "leave_answer": {"gone"}, "bad": {"400", "404"},
    "no_json": {"400"}, "bad_key": {"401"}, "poison": {"500"}, "poison_stream": {"500"}, "look": {"200"},
}  # fmt: skip
"""What some of the requests of each kind must have come to."""


@pytest.fixture(scope="module")
def at_work(tmp_path_factory) -> Iterator[tuple[Served, Gate, list[Case]]]:
    with soak.server(tmp_path_factory.mktemp("soak")) as made:
        yield made


@pytest.mark.slow
def test_every_request_is_answered_once_and_nothing_is_left(at_work) -> None:
    served, gate, good = at_work
    soak.soak(served, gate, good, 1.5, seed=CLIENTS, hang=False)
    things, counts, memory = soak.held(served), soak.metrics(served), soak.resident()
    one = soak.soak(served, gate, good, SECONDS)
    soak.check_accounts(served, counts, one)
    assert soak.held(served) == things
    assert soak.resident() - memory < 64
    assert one.sent >= LEAST
    ends: dict[str, set[str]] = {}
    for kind, end in one.ends:
        ends.setdefault(kind, set()).add(end)
    assert all(ends[kind] >= expected for kind, expected in EXPECTED.items()), one.ends
    assert {"429", "504"} <= {end for _, end in one.ends}, "the queue was full, and requests were late"


@pytest.mark.slow
def test_after_it_the_server_answers_as_before(at_work) -> None:
    """Every good request, one after the other."""
    served, _, good = at_work
    one = Counter(soak.ask_all(served, good))
    assert one == {"200": len(good)}


def line(name: str, status: int) -> str:
    return f"POST /v1/completions {status} 0.010s id={name} prompt=3"


def test_the_ledger_finds_what_does_not_add_up() -> None:
    """The checks of the soak can fail."""
    ledger = Ledger()

    def logs(text: str, level: int = 20) -> None:
        ledger.handle(logging.LogRecord("fastdllm.serve", level, "", 0, text, (), None))

    ledger.saw("soak-1", "200")
    logs(line("soak-1", 200))
    logs(line("soak-2", 499))
    ledger.saw("soak-2", soak.GONE)
    assert (ledger.open, ledger.problems, ledger.statuses) == (0, [], {"200": 1, "499": 1})
    ledger.saw("soak-3", "200")
    logs(line("soak-3", 504))
    assert ledger.problems == ["soak-3 has two statuses: ['200', '504']"]
    logs(line("soak-1", 200))
    assert ledger.open == 1, "a second line for a request is never closed"
    logs(line("soak-1", 200))
    assert ledger.problems[1:] == ["soak-1 ended twice"]
    logs("a pass failed", 40)
    assert ledger.problems[2:] == ["the server logs: a pass failed"]
