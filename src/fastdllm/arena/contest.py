"""A contest from beginning to end: what its folder lacks is answered and timed, and all of it is scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from fastdllm.arena.problems import ProblemSet
from fastdllm.arena.report import Report
from fastdllm.arena.run import Arena, answer_all, read_answers
from fastdllm.arena.score import scores
from fastdllm.arena.timing import Turn, read_turns, time_all, timing_settings, turns
from fastdllm.record import environment, fingerprint
from fastdllm.results import Results, open_results, read_runs

Advance: TypeAlias = Callable[[], None]
Watch: TypeAlias = Callable[[str, int, int], AbstractContextManager[Advance]]
"""Told what is done ("answers"), how many there are and how many were there before; what it gives is called for each
that follows."""


@contextmanager
def unwatched(what: str, total: int, before: int) -> Iterator[Advance]:
    """Nobody looks on."""
    yield lambda: None


def provenance(posed: ProblemSet, checkpoint: Path, revision: str | None) -> dict[str, object]:
    """What answers depend on beyond engine and options: the problems, and the weights in a checkpoint's folder."""
    return {"revision": revision, "weights": fingerprint(checkpoint), "problems": posed.digest}


def hold(arena: Arena, *, rounds: int = 0, timed: int = 0, command: str, watch: Watch = unwatched) -> Report:
    """Answer and time what the arena's folder lacks, and score the arena's methods on its problems.

    Whatever is done is kept at once: when this is stopped, the same call goes on from there, and a call with more
    methods, problems or rounds adds to it.

    Args:
        rounds: of timing; 0 for none.
        timed: problems timed in each round.
        command: what the report says it was made by.

    Raises:
        OptionError: a problem is too long for the model, or the folder holds answers made with other settings;
            nothing has been answered then.
    """
    arena.check()
    arena.folder.mkdir(parents=True, exist_ok=True)
    asked = arena.asked()
    with ExitStack() as files:  # both are opened, and perhaps refused, before the first pass
        answers = files.enter_context(open_results(arena.answers, asked, arena.settings(), environment(arena.engine)))
        timings = files.enter_context(_open_timings(arena, rounds, timed)) if rounds else None
        with watch("answers", len(asked), len(answers.finished & asked.keys())) as advance:
            answer_all(arena, answers, advance)
        if timings is not None:
            _time(arena, timings, rounds, timed, watch)
    return _report(arena, rounds, timed, command)


@dataclass(frozen=True, kw_only=True)
class Clocked:
    """Turns that were timed without keeping the answers.

    Args:
        turns: of each round, by the method's key.
        settings: what all turns share.
        runs: the environment of each run that timed.
        timed: problems of a round.
    """

    turns: Mapping[str, Sequence[Turn]]
    settings: Mapping[str, Any]
    runs: Sequence[Mapping[str, Any]]
    timed: int


def clock(arena: Arena, *, rounds: int, timed: int, watch: Watch = unwatched) -> Clocked:
    """Time what the arena's folder lacks, and nothing else; otherwise as :func:`hold`."""
    arena.check()
    with _open_timings(arena, rounds, timed) as timings:
        _time(arena, timings, rounds, timed, watch)
    turns_of, runs = _read_turns(arena, rounds)
    return Clocked(
        turns=turns_of,
        settings=timing_settings(arena, environment(arena.engine), timed),
        runs=runs,
        timed=min(timed, len(arena.problems)),
    )


def _open_timings(arena: Arena, rounds: int, timed: int) -> AbstractContextManager[Results]:
    arena.timings.parent.mkdir(parents=True, exist_ok=True)
    runs_on = environment(arena.engine)
    decides = timing_settings(arena, runs_on, timed)
    return open_results(arena.timings, turns(arena, rounds, timed), decides, runs_on)


def _time(arena: Arena, timings: Results, rounds: int, timed: int, watch: Watch) -> None:
    to_time = turns(arena, rounds, timed)
    with watch("timings", len(to_time), len(timings.finished & to_time.keys())) as advance:
        time_all(arena, timings, rounds, timed, advance)


def _read_turns(arena: Arena, rounds: int) -> tuple[dict[str, list[Turn]], list[dict[str, Any]]]:
    """The turns of each method, and the environment of each run that timed one of them."""
    found, runs = read_turns(arena, rounds), read_runs(arena.timings)
    used = sorted({turn.run for turns in found.values() for turn in turns})
    return found, [runs[i] for i in used]


def _report(arena: Arena, rounds: int, timed: int, command: str) -> Report:
    answers = read_answers(arena)
    turns_of, timing_runs = _read_turns(arena, rounds) if rounds else ({}, [])
    speeds = {key: [turn.tokens / turn.seconds for turn in turns] for key, turns in turns_of.items()}
    return Report(
        scores=scores(arena.methods, answers, speeds),
        answers=answers,
        settings=arena.settings(),
        settings_of={method.key: arena.settings_of(method) for method in arena.methods},
        runs=read_runs(arena.answers),
        timed=min(timed, len(arena.problems)) if rounds else 0,
        timing_runs=timing_runs,
        command=command,
    )
