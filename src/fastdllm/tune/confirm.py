"""The test: which of the settings that the race has left are shown to be good enough.

They are tested on problems that had no part in their selection, one after the other in the order of the race's
ladder, each at the full level, and the first that fails ends it. That keeps the chance that even one of those
shown is in truth worse by the margin below 1 - confidence, however many were tried and however the fastest is
then chosen among them (fixed-sequence testing: W. Maurer, L. Hothorn, W. Lehmacher, 1995; for choosing settings of a
model: Learn then Test, A. Angelopoulos et al., arXiv 2110.01052). Correcting for all candidates on all problems
(Bonferroni, with 46 of them) would take an interval 1.9 times as wide; giving up the selection problems costs a
factor of 1.2.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from fastdllm.arena.methods import Method
from fastdllm.arena.problems import Problem
from fastdllm.tune.paired import lower_bound, p_value
from fastdllm.tune.race import clearly_worse
from fastdllm.tune.trial import Ask, Goal, Trial, paired

SELECTION = 0.3
"""Share of the problems that settings are selected on. The rest confirms: an order is easier found than a bound."""
PORTIONS = (0.25, 0.5, 0.75, 1.0)


def split(problems: Sequence[Problem]) -> tuple[list[Problem], list[Problem]]:
    """Selection and confirmation problems, each in an order that is as good as random.

    Shuffled by a hash of their questions, so that the order of a file (by topic, say) does not matter, and the
    same problems are split in the same way on every run.
    """
    shuffled = sorted(problems, key=lambda p: (hashlib.sha256(p.question.encode()).digest(), p.number))
    middle = math.ceil(SELECTION * len(shuffled))
    return shuffled[:middle], shuffled[middle:]


def confirm(plain: Method, steps: Sequence[Trial], problems: Sequence[Problem], goal: Goal, ask: Ask) -> list[Trial]:
    """Test the trials of a ladder in their order and note the outcome in each; those shown are returned."""
    shown: list[Trial] = []
    for trial in steps:
        _test(plain, trial, problems, goal, ask)
        if trial.fate != "shown":
            break
        shown.append(trial)
    return shown


def _test(plain: Method, trial: Trial, problems: Sequence[Problem], goal: Goal, ask: Ask) -> None:
    """Test one, in portions: giving up early on one that is clearly worse costs no error, only a little power."""
    for portion in PORTIONS:
        asked = problems[: math.ceil(portion * len(problems))]
        _, score = ask(f"confirming {trial.method.name}", [plain, trial.method], asked)
        if clearly_worse(score, goal):
            break
    trial.confirmation, pairs = score, paired(score)
    trial.bound = lower_bound(pairs, goal.confidence, goal.margin)
    trial.p = p_value(pairs, goal.margin) if score.problems == len(problems) else None
    trial.fate = "shown" if trial.bound >= -goal.margin else "not shown"
