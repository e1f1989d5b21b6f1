"""Many settings, few of which are worth a test: the race over the selection problems.

Settings answer growing portions of the problems, and those that are out of the question are left behind (racing:
O. Maron and A. Moore, NIPS 6, 1994; M. Birattari et al., GECCO 2002). Nothing is claimed from these problems: the
race decides what is tested, in which order, and at what expense, but has no part in the error of the test.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist

from fastdllm.arena.methods import Method
from fastdllm.arena.problems import Problem
from fastdllm.arena.score import Score
from fastdllm.errors import OptionError
from fastdllm.tune.paired import z_score
from fastdllm.tune.trial import STEP, Ask, Goal, Trial, paired

PORTIONS = (0.25, 0.5, 1.0)
CLEARLY = NormalDist().inv_cdf(0.99)
LADDERS = 2
"""So many ladders' worth of settings stay in the race: those of a ladder made now, and those that stand behind them."""
LONGEST = 6
"""Settings that are tested at most."""


def clearly_worse(score: Score, goal: Goal) -> bool:
    """Whether so many problems are lost that the setting is worse by more than the margin with 99 % confidence."""
    return z_score(paired(score), goal.margin) <= -CLEARLY


def race(plain: Method, candidates: Sequence[Method], problems: Sequence[Problem], goal: Goal, ask: Ask) -> list[Trial]:
    """A trial for each candidate; those that ran to the end have the fate ``not tested``.

    Raises:
        OptionError: plain decoding has none of the problems right.
    """
    (reference,) = ask("plain decoding", [plain], problems)
    if not reference.right:
        raise OptionError(
            f"plain decoding ({plain.name}) solves none of {len(problems)} problems, so there is no accuracy to keep; "
            f"check the problems, the model and gen_length."
        )
    trials: dict[str, Trial] = {}
    for number, portion in enumerate(PORTIONS, start=1):
        _leave_behind(trials.values(), goal)
        left = [m for m in candidates if m.key not in trials or trials[m.key].fate == "not tested"]
        what = f"selection {number} of {len(PORTIONS)}, {len(left)} settings"
        _, *scores = ask(what, [plain, *left], problems[: math.ceil(portion * len(problems))])
        trials |= {score.method.key: Trial(method=score.method, selection=score, fate="not tested") for score in scores}
    return [trials[method.key] for method in candidates]


def _leave_behind(trials: Iterable[Trial], goal: Goal) -> None:
    """Give their fate to trials that are clearly worse, and to those that would not be on any ladder."""
    running = [trial for trial in trials if trial.fate == "not tested"]
    for trial in running:
        trial.fate = "worse" if clearly_worse(trial.selection, goal) else "no cheaper"
    rest = _from_safe_to_cheap([trial for trial in running if trial.fate == "no cheaper"], goal)
    for _ in range(LADDERS):
        for trial in _steps(rest, (), goal, STEP):
            trial.fate = "not tested"
        rest = [trial for trial in rest if trial.fate == "no cheaper"]


def _from_safe_to_cheap(trials: Sequence[Trial], goal: Goal) -> list[Trial]:
    """The safest first. Of equally safe ones that is the dearest: it computes most like plain decoding."""

    def key(trial: Trial) -> tuple[float, list[float]]:
        return -z_score(paired(trial.selection), goal.margin), [-cost for cost in goal.costs(trial.selection)]

    return sorted(trials, key=key)


def _steps(trials: Sequence[Trial], before: Sequence[Score], goal: Goal, step: float) -> list[Trial]:
    """Those, in their order, that are cheaper by a step than all that were taken before them."""
    taken, steps = list(before), []
    for trial in trials:
        if all(goal.cheaper(trial.selection, other, step) for other in taken):
            taken.append(trial.selection)
            steps.append(trial)
    return steps


def ladder(trials: Sequence[Trial], reference: Score, goal: Goal) -> list[Trial]:
    """Trials to test, in this order: from the safest down to the cheapest.

    Each is clearly cheaper than plain decoding (``reference``) and than all before it, so that a test which
    succeeds always gains something: the Pareto front of safety against cost (Pareto Testing, B. Laufer-Goldshtein
    et al., ICLR 2023, arXiv 2210.07913). A long ladder is made with longer steps, as each has to be tested on all
    confirmation problems. The trials that are not on it get the fate that keeps them off.
    """
    running = [trial for trial in trials if trial.fate == "not tested"]
    for trial in running:
        trial.fate = "no cheaper" if z_score(paired(trial.selection), goal.margin) > 0 else "worse"
    within = _from_safe_to_cheap([trial for trial in running if trial.fate == "no cheaper"], goal)
    step = STEP
    while len(steps := _steps(within, [reference], goal, step)) > LONGEST:
        step *= 2
    for trial in steps:
        trial.fate = "not tested"
    return steps
