"""Which of several ways to compute the same is the fastest on this machine: they are timed, once, where it matters."""

from __future__ import annotations

import time
from collections.abc import Callable

ROUNDS = 3


def race(*ways: Callable[[], object]) -> list[float]:
    """Seconds that each of the ``ways`` takes: the best of :data:`ROUNDS` runs, in turns, after one to warm up."""
    best = [float("inf")] * len(ways)
    for turn in range(ROUNDS + 1):
        for number, way in enumerate(ways):
            began = time.perf_counter()
            way()
            if turn:
                best[number] = min(best[number], time.perf_counter() - began)
    return best
