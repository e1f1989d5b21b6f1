"""Answer tokens per second, measured apart from everything else.

One prompt at a time and without counting operations, which would slow the passes. Methods take turns
within a round, so that a machine that grows slower meanwhile does so for all of them; each method's turn
is kept, and its speed is the median over rounds with the lowest and the highest beside it. Before that each
method makes some passes that are not timed.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

from fastdllm.arena.methods import Method
from fastdllm.arena.run import Arena
from fastdllm.results import Id, Results, read_results

DECIDES_SPEED = ("hardware", "threads", "torch")
WARM_UP = 32  # passes; more than a block takes, so that a block has been opened and decoded


def timing_settings(arena: Arena, environment: dict[str, object], timed: int) -> dict[str, object]:
    """What speeds that are compared must share: unlike answers, they depend on the machine."""
    machine = {name: environment[name] for name in DECIDES_SPEED}
    return {**arena.settings(), **machine, "timed": timed}


def turn_id(method: Method, number: int) -> str:
    return f"{method.key} round {number}"


def turns(arena: Arena, rounds: int, timed: int) -> dict[Id, object]:
    """The questions that each turn answers, under its id."""
    questions = [problem.question for problem in arena.problems[:timed]]
    return {turn_id(m, r): questions for r in range(1, rounds + 1) for m in arena.methods}


def time_all(arena: Arena, results: Results, rounds: int, timed: int, advance: Callable[[], None]) -> None:
    """Run the turns that ``results`` lacks, after the first passes of each method, which are not timed."""
    left = [m for m in arena.methods if any(turn_id(m, r) not in results.finished for r in range(1, rounds + 1))]
    for method in left:
        for _ in islice(arena.start(method, list(arena.problems[:1])), WARM_UP):
            pass
    for number in range(1, rounds + 1):
        for method in arena.methods:
            name = turn_id(method, number)
            if name not in results.finished:
                tokens, seconds = _turn(arena, method, timed)
                questions = [problem.question for problem in arena.problems[:timed]]
                results.add({"id": name, "prompt": questions, "tokens": tokens, "seconds": seconds})
                advance()


def _turn(arena: Arena, method: Method, count: int) -> tuple[int, float]:
    """Answer tokens and seconds of the first problems, one at a time."""
    tokens, seconds = 0, 0.0
    for problem in arena.problems[:count]:
        (done,) = arena.engine.generate([problem.question], chat=arena.chat, **method.options)
        tokens, seconds = tokens + len(done.tokens), seconds + done.seconds
    return tokens, seconds


class Turn(NamedTuple):
    """What a method did in a round."""

    tokens: int
    """Of the answers, up to the end token."""
    seconds: float
    run: int
    """Which run of the sidecar timed it."""


def read_turns(arena: Arena, rounds: int) -> dict[str, list[Turn]]:
    """Each method's turns by its key, in the order of rounds."""
    held = {line["id"]: Turn(line["tokens"], line["seconds"], line["run"]) for line in read_results(arena.timings)}
    return {
        m.key: [held[turn_id(m, r)] for r in range(1, rounds + 1) if turn_id(m, r) in held]
        for m in arena.methods
    }  # fmt: skip
