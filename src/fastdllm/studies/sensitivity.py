"""How sensitive tasks are to the threshold, and which threshold is safe for each.

A threshold is *safe* when it, and every higher one that was tried, is shown to lose less than a margin against plain
decoding on the same problems (:mod:`fastdllm.tune.paired`). To test from the highest down and to stop at the first that
fails needs no correction for the number of tests: an unsafe one is called safe only if the test errs at the highest of
them (a-priori ordered hypotheses: W. Maurer, L. Hothorn, W. Lehmacher, 1995). Tasks are the sets of problems; where
there is only one, and its problems say of which kind they are, the kinds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any, ClassVar, Literal, TypeAlias

from fastdllm.arena.methods import Method
from fastdllm.arena.problems import ProblemSet
from fastdllm.arena.report import accuracy, method_json
from fastdllm.arena.run import Answer
from fastdllm.arena.score import Score, scores
from fastdllm.studies.study import PLAIN, Bench, Contest, document
from fastdllm.studies.table import Table
from fastdllm.studies.thresholds import QUICK_THRESHOLDS, THRESHOLDS
from fastdllm.tune.paired import least_problems, lower_bound, p_value
from fastdllm.tune.trial import Goal, paired

NAME = "sensitivity"
Verdict: TypeAlias = Literal["shown", "seems", "loses"]
"""Shown to lose less than the margin; not shown, but not seen to lose more; seen to lose more."""
POOLED = "all"


@dataclass(frozen=True, kw_only=True)
class SensitivityOptions:
    """The thresholds that are tried, and what counts as safe.

    Args:
        margin: accuracy that may be lost, a fraction.
        confidence: of the claim that no more is lost.

    Raises:
        OptionError: margin or confidence is out of range.
    """

    cache: str = "none"
    thresholds: tuple[float, ...] = THRESHOLDS
    margin: float = 0.02
    confidence: float = 0.95

    def __post_init__(self) -> None:
        Goal(margin=self.margin, confidence=self.confidence, objective="speed")

    @classmethod
    def quick(cls) -> SensitivityOptions:
        return cls(thresholds=QUICK_THRESHOLDS)

    @property
    def labels(self) -> dict[float, str]:
        """The label of each threshold, ascending."""
        return {value: f"{value:g}" for value in sorted(set(self.thresholds))}

    @property
    def methods(self) -> dict[str, str]:
        """The methods' texts by their labels, plain decoding first."""
        texts = {label: f"{self.cache}/threshold:threshold={value:g}" for value, label in self.labels.items()}
        return {"plain": f"none/{PLAIN}", **texts}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A threshold against plain decoding on the same problems; fractions.

    Args:
        bound: the difference is above this with the confidence asked for.
        p: chance of counts as good, were the margin lost.
    """

    difference: float
    bound: float
    p: float


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task's score of plain decoding and of each threshold."""

    name: str
    plain: Score
    scores: Mapping[float, Score]
    options: SensitivityOptions

    @cached_property
    def differences(self) -> dict[float, Difference]:
        margin, confidence = self.options.margin, self.options.confidence
        found = {}
        for value, score in self.scores.items():
            pairs = paired(score)
            bound = lower_bound(pairs, confidence, margin)
            found[value] = Difference(difference=pairs.difference, bound=bound, p=p_value(pairs, margin))
        return found

    def verdict(self, value: float) -> Verdict:
        """What is known of a threshold."""
        found = self.differences[value]
        if found.p <= 1 - self.options.confidence:
            return "shown"
        return "seems" if found.difference >= -self.options.margin else "loses"

    @property
    def safe(self) -> float | None:
        """The lowest threshold from which on all are shown to lose less than the margin."""
        return self._lowest("shown")

    @property
    def seemingly(self) -> float | None:
        """The lowest threshold from which on none was seen to lose more than the margin."""
        return self._lowest("shown", "seems")

    def _lowest(self, *good: Verdict) -> float | None:
        """The lowest threshold from which on every verdict is one of these."""
        from_above = takewhile(lambda value: self.verdict(value) in good, sorted(self.scores, reverse=True))
        return min(from_above, default=None)

    def as_json(self) -> dict[str, Any]:
        return {
            "task": self.name,
            "problems": self.plain.problems,
            "safe": self.safe,
            "seemingly_safe": self.seemingly,
            "plain": method_json(self.plain),
            "thresholds": [
                {
                    "threshold": value,
                    "verdict": self.verdict(value),
                    "against_plain": asdict(self.differences[value]),
                    **method_json(score),
                }
                for value, score in self.scores.items()
            ],
        }


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """The tasks, and after them all of their problems together."""

    title: ClassVar[str] = "Accuracy over the threshold, by task"

    options: SensitivityOptions
    tasks: Sequence[Task]
    contests: Sequence[Contest]

    @property
    def tables(self) -> list[Table]:
        return [self.summary()]

    def summary(self) -> Table:
        """A row for each task: plain decoding, and which thresholds are safe."""
        rows = [
            [task.name, str(task.plain.problems), accuracy(task.plain), _named(task.safe), _named(task.seemingly)]
            for task in self.tasks
        ]
        return Table(["task", "problems", "plain, % right", "safe", "seems safe"], rows)

    def accuracies(self) -> Table:
        """A row for each task, a column for each threshold."""
        rows = [
            [task.name, str(task.plain.problems), accuracy(task.plain), *map(accuracy, task.scores.values())]
            for task in self.tasks
        ]
        return Table(["task", "problems", "plain", *self.options.labels.values()], rows)

    def gains(self) -> Table:
        """A row for each task: tokens of a pass."""
        rows = [
            [task.name, *(f"{score.tokens_per_forward:.2f}" for score in (task.plain, *task.scores.values()))]
            for task in self.tasks
        ]
        return Table(["task", "plain", *self.options.labels.values()], rows)

    def losses(self) -> Table:
        """A row for each task: differences to plain decoding, and which thresholds are safe."""
        rows = []
        for task in self.tasks:
            found = [f"{100 * d.difference:+.1f} (> {100 * d.bound:+.1f})" for d in task.differences.values()]
            rows.append([task.name, *found, _named(task.safe), _named(task.seemingly)])
        return Table(["task", *self.options.labels.values(), "safe", "seems safe"], rows)

    def markdown(self) -> str:
        options = self.options
        margin, sure = f"{100 * options.margin:g}", f"{100 * options.confidence:g} %"
        right = (
            f"Right, % (95 % interval), with plain decoding (`none/{PLAIN}`) and with each threshold "
            f"(`{options.cache}/threshold`):"
        )
        against = (
            f"Difference to plain decoding on the same problems, in points (and what it is above with {sure} "
            f"confidence). **Safe** is the lowest threshold from which on every one is shown to lose less than "
            f"{margin} points: they are tested from the highest down to the first that fails (exact unconditional test "
            f"on Tango's score), so that the chance of calling one safe that is not stays below "
            f"{100 * (1 - options.confidence):.3g} % for each task; *seems safe* the lowest from which on no loss of "
            f"more than {margin} points was seen. To show this of a threshold that neither gains nor "
            f"loses any takes {least_problems(options.confidence, options.margin)} problems."
        )
        tokens = "What a threshold is worth: answer tokens of a pass (TPF), counted up to the end token:"
        paragraphs = [right, self.accuracies().markdown(), against, self.losses().markdown()]
        paragraphs += [tokens, self.gains().markdown()]
        return document(NAME, self.title, paragraphs, self.contests)

    def as_json(self) -> dict[str, Any]:
        """Everything, JSON-ready."""
        return {
            "options": asdict(self.options),
            "tasks": [task.as_json() for task in self.tasks],
            "contests": [contest.as_json() for contest in self.contests],
        }


def _named(threshold: float | None) -> str:
    return "none" if threshold is None else f"{threshold:g}"


def run(bench: Bench, sets: Sequence[ProblemSet], options: SensitivityOptions) -> Sensitivity:
    """Answer every set with every threshold; no speed is measured."""
    contests = [bench.hold(NAME, posed, options.methods, timing=False) for posed in sets]
    parts = by_kind(contests[0]) if len(contests) == 1 else [(c.posed.name, c.report.answers) for c in contests]
    if len(parts) != 1:
        parts = [*parts, (POOLED, _joined([contest.report.answers for contest in contests]))]
    methods = [score.method for score in contests[0].report.scores]
    tasks = [_task(name, methods, contests[0].keys, answers, options) for name, answers in parts]
    return Sensitivity(options=options, tasks=tasks, contests=contests)


def by_kind(contest: Contest) -> list[tuple[str, Mapping[str, Sequence[Answer]]]]:
    """Answers of each kind of problem, after the kind's name; all under the set's name where problems have no kind."""
    kinds = [getattr(problem, "kind", None) for problem in contest.posed.problems]
    if None in kinds:
        return [(contest.posed.name, contest.report.answers)]
    return [
        (
            name,
            {
                key: [answer for answer, kind in zip(given, kinds, strict=True) if str(kind) == name]
                for key, given in contest.report.answers.items()
            },
        )
        for name in sorted(set(map(str, kinds)))
    ]


def _joined(parts: Sequence[Mapping[str, Sequence[Answer]]]) -> dict[str, Sequence[Answer]]:
    return {key: [answer for part in parts for answer in part[key]] for key in parts[0]}


def _task(
    name: str,
    methods: Sequence[Method],
    keys: Mapping[str, str],
    answers: Mapping[str, Sequence[Answer]],
    options: SensitivityOptions,
) -> Task:
    found = {score.method.key: score for score in scores(methods, answers, {})}
    by_value = {value: found[keys[label]] for value, label in options.labels.items()}
    return Task(name=name, plain=found[keys["plain"]], scores=by_value, options=options)
