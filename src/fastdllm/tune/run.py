"""Tuning from beginning to end: race, test, timing, choice."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from fastdllm.arena.contest import Advance, Watch, hold, unwatched
from fastdllm.arena.methods import Method
from fastdllm.arena.problems import Problem
from fastdllm.arena.report import Report
from fastdllm.arena.run import Arena
from fastdllm.arena.score import Score
from fastdllm.errors import OptionError
from fastdllm.tune.confirm import SELECTION, confirm, split
from fastdllm.tune.race import ladder, race
from fastdllm.tune.trial import Ask, Goal, Trial

PLAIN = "none/topk:k=1"


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What tuning has found, and everything it rests on.

    Args:
        steps: the trials that were to be tested, from the safest to the cheapest.
        shown: those of them that passed, with plain decoding the methods of ``report``.
        chosen: the fastest of these; None where none is faster than plain decoding.
        report: plain decoding and the shown on the confirmation problems, timed where the goal is speed.
    """

    goal: Goal
    trials: Sequence[Trial]
    steps: Sequence[Trial]
    shown: Sequence[Trial]
    chosen: Trial | None
    report: Report
    selection_problems: int

    @property
    def plain(self) -> Score:
        return self.report.scores[0]

    def score(self, trial: Trial) -> Score:
        """A shown trial's score on the confirmation problems, with its speed."""
        return next(s for s in self.report.scores if s.method.key == trial.method.key)


def tune(arena: Arena, goal: Goal, *, rounds: int = 3, timed: int = 5, command: str, watch: Watch = unwatched) -> Tuned:
    """Find the fastest of the arena's methods that is not worse than the first of them by more than a margin.

    Every answer is kept in the arena's folder, so when this is stopped the same call goes on from there.

    Args:
        arena: its first method is plain decoding.
        rounds: of timing, where the goal is speed.
        timed: problems timed in each round.

    Raises:
        OptionError: there is no other method, there are too few problems for any setting to pass, plain decoding
            solves none, or what :func:`fastdllm.arena.contest.hold` refuses.
    """
    plain, *candidates = arena.methods
    selection, confirmation = split(arena.problems)
    if not candidates:
        raise OptionError("there is no setting to try besides plain decoding; give some.")
    check_enough(len(arena.problems), len(confirmation), goal)
    arena.check()
    ask = asking(arena, command, watch)
    trials = race(plain, candidates, selection, goal, ask)
    (reference,) = ask("plain decoding", [plain], selection)
    steps = ladder(trials, reference, goal)
    ask("plain decoding", [plain], confirmation)
    shown = confirm(plain, steps, confirmation, goal, ask)
    finalists = _part(arena, [plain, *(trial.method for trial in shown)], confirmation)
    rounds = rounds if shown and goal.objective == "speed" else 0
    report = hold(finalists, rounds=rounds, timed=timed, command=command, watch=watch)
    return Tuned(
        goal=goal, trials=trials, steps=steps, shown=shown, chosen=fastest(shown, report, goal), report=report,
        selection_problems=len(selection),
    )  # fmt: skip


def check_enough(problems: int, confirming: int, goal: Goal) -> None:
    """Refuse fewer problems than it takes to show anything."""
    if confirming < goal.least:
        raise OptionError(
            f"{problems} problems are too few: to show a setting within {100 * goal.margin:g} points with "
            f"{100 * goal.confidence:g} % confidence takes {problems_for(goal.least)} or more, even if it loses none; "
            f"give more problems, or a larger margin."
        )


def problems_for(confirming: int) -> int:
    """How many problems it takes in all for so many to be left to confirm with."""
    return math.ceil(confirming / (1 - SELECTION))


def asking(arena: Arena, command: str, watch: Watch) -> Ask:
    """Has methods answer problems in the arena's folder."""

    def ask(what: str, methods: Sequence[Method], problems: Sequence[Problem]) -> Sequence[Score]:
        def told(_: str, total: int, before: int) -> AbstractContextManager[Advance]:
            return watch(what, total, before)

        return hold(_part(arena, methods, problems), command=command, watch=told).scores

    return ask


def _part(arena: Arena, methods: Sequence[Method], problems: Sequence[Problem]) -> Arena:
    return replace(arena, methods=tuple(methods), problems=tuple(problems), counts_flops=False)


def fastest(shown: Sequence[Trial], report: Report, goal: Goal) -> Trial | None:
    """The one with the most tokens per second, or the fewest rows per token; None where plain decoding is that."""

    def worth(score: Score) -> float:
        return statistics.median(score.speeds) if goal.objective == "speed" else -goal.costs(score)[0]

    scores = {score.method.key: score for score in report.scores}
    best = max(shown, key=lambda trial: worth(scores[trial.method.key]), default=None)
    if best is None or worth(scores[best.method.key]) <= worth(report.scores[0]):
        return None
    return best
