"""What the studies of speed and accuracy share: a bench that answers and times, and how its numbers are written.

Answers lie by their problems in one folder, so that two studies that ask the same of a method ask it once. Timings lie
by study: methods whose speeds are compared have taken turns.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastdllm.arena.contest import Clocked, Watch, clock, hold, provenance, unwatched
from fastdllm.arena.methods import parse_method, parse_methods
from fastdllm.arena.problems import ProblemSet
from fastdllm.arena.report import Report, accuracy, as_json, number, setup, speed, timing, unit
from fastdllm.arena.run import Arena
from fastdllm.arena.score import Score
from fastdllm.config import GenerationOptions
from fastdllm.engine import Engine
from fastdllm.studies.table import Table

PLAIN = "topk:k=1"
"""The decoder that others are measured against: one token a pass, as LLaDA with as many steps as slots."""
PARALLEL = "threshold:threshold=0.9"
"""Fast-dLLM's decoder (arXiv 2505.22618) with its paper's threshold."""


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Methods on a set of problems; the first is plain decoding, with which the others are compared.

    Args:
        keys: the key of each method by its label, in the order of a table.
    """

    posed: ProblemSet
    report: Report
    keys: Mapping[str, str]

    @property
    def plain(self) -> Score:
        return self.report.scores[0]

    def score(self, label: str) -> Score:
        return next(score for score in self.report.scores if score.method.key == self.keys[label])

    def ratios(self, label: str) -> list[float]:
        """Speed-up: how many times as fast as plain decoding in the same round; empty when it was not timed."""
        pairs = zip(self.score(label).speeds, self.plain.speeds, strict=True)
        return [own / plain for own, plain in pairs if plain]  # answers may be empty, and then have no speed

    def details(self) -> Table:
        """Every number, a row for each method."""
        size, name = unit(self.report.scores)
        timed = ["tokens/s (lowest-highest)", "speed-up (lowest-highest)"] if self.report.timed else []
        head = ["", "method", "right, % (95 % interval)", "gained, lost", "NFE", "TPF", "rows/token", f"{name}/token"]
        rows = []
        for label in self.keys:
            score = self.score(label)
            row = [
                label,
                f"`{score.method.name}`",
                accuracy(score),
                "-" if score.number == 1 else f"+{score.gained} -{score.lost}",
                f"{score.nfe:.1f}",
                f"{score.tokens_per_forward:.2f}",
                number(score.rows_per_token, 1.0),
                number(score.flops_per_token, size),
            ]
            rows.append([*row, speed(score), times_between(self.ratios(label))] if timed else row)
        return Table([*head, *timed], rows)

    def summary(self) -> Table:
        """The numbers that a terminal has room for."""
        rows = []
        for label in self.keys:
            score = self.score(label)
            fast = f"{statistics.median(score.speeds):.0f}" if score.speeds else "-"
            costs = [f"{score.tokens_per_forward:.2f}", number(score.rows_per_token, 1.0), fast]
            rows.append([label, accuracy(score), *costs, times(self.ratios(label))])
        return Table([self.posed.name, "right, % (interval)", "TPF", "rows/token", "tokens/s", "speed-up"], rows)

    def cell(self, label: str) -> str:
        """Accuracy, speed and speed-up in one cell of a table, as the paper's tables have them."""
        score, ratios = self.score(label), self.ratios(label)
        fast = [f"{statistics.median(score.speeds):.0f} tok/s, {times(ratios)}"] if ratios else []
        return "<br>".join([accuracy(score), *fast])

    def as_json(self) -> dict[str, Any]:
        """Everything its numbers depend on, JSON-ready; methods have their labels and speed-up."""
        held = as_json(self.report)
        for method in held["methods"]:
            labels = [label for label, key in self.keys.items() if key == method["key"]]
            ratios = self.ratios(labels[0]) if labels else []
            method["labels"] = labels
            method["speedup"] = {"median": statistics.median(ratios), "rounds": ratios} if ratios else None
        return {"problem_set": self.posed.name, **held}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A model on a machine, and the folder in which what it does is kept.

    Args:
        checkpoint: the folder of the model's weights.
        shared: options that every study starts from.
        rounds: of timing; 0 for none.
        timed: problems of a round.
        command: what the results say they were made by.
    """

    engine: Engine
    checkpoint: Path
    revision: str | None
    shared: GenerationOptions
    chat: bool
    batch_size: int
    rounds: int
    timed: int
    folder: Path
    command: str
    watch: Watch = unwatched

    def hold(self, study: str, posed: ProblemSet, texts: Mapping[str, str], *, timing: bool = True) -> Contest:
        """Answers, and unless ``timing`` is off the speed, of methods whose texts stand under their labels."""
        report = hold(
            self._arena(study, posed, [*texts.values()]), rounds=self.rounds if timing else 0, timed=self.timed,
            command=self.command, watch=self._watch(study),
        )  # fmt: skip
        return Contest(posed=posed, report=report, keys=self.keys(texts))

    def clock(self, study: str, posed: ProblemSet, texts: Sequence[str], *, timed: int, full: bool) -> Clocked:
        """The time of answers that are not kept.

        Args:
            full: decode every slot of the canvas, whatever stands in it, instead of ending at an end token.
        """
        arena = self._arena(study, posed, texts)
        if full:
            shared: GenerationOptions = {**self.shared, "stop_at_eos": False}
            clocks = self.folder / "timings" / study / f"{posed.digest}-full"
            arena = replace(arena, methods=parse_methods(texts, shared), shared=shared, clocks=clocks)
        return clock(arena, rounds=self.rounds, timed=timed, watch=self._watch(study))

    def keys(self, texts: Mapping[str, str]) -> dict[str, str]:
        """The key of the method under each label."""
        return {label: parse_method(text, self.shared).key for label, text in texts.items()}

    def _arena(self, study: str, posed: ProblemSet, texts: Sequence[str]) -> Arena:
        return Arena(
            engine=self.engine, methods=parse_methods(texts, self.shared), problems=posed.problems,
            shared=self.shared, provenance=provenance(posed, self.checkpoint, self.revision), chat=self.chat,
            batch_size=self.batch_size, folder=self.folder / "answers" / posed.digest,
            clocks=self.folder / "timings" / study / posed.digest,
        )  # fmt: skip

    def _watch(self, study: str) -> Watch:
        return lambda what, total, before: self.watch(f"{study}, {what}", total, before)


def with_turns(contest: Contest, clocked: Clocked) -> Contest:
    """A contest with speeds that were clocked apart from it."""
    report = contest.report
    speeds = {key: tuple(turn.tokens / turn.seconds for turn in turns) for key, turns in clocked.turns.items()}
    timed = [replace(score, speeds=speeds[score.method.key]) for score in report.scores]
    return replace(contest, report=replace(report, scores=timed, timed=clocked.timed, timing_runs=clocked.runs))


def first(posed: ProblemSet, count: int) -> ProblemSet:
    """The first ``count`` problems of a set; the digest stays that of what they come from."""
    return replace(posed, problems=posed.problems[:count])


def times(ratios: Sequence[float]) -> str:
    """A speed-up: the median of its rounds."""
    return f"{statistics.median(ratios):.1f}x" if ratios else "-"


def times_between(ratios: Sequence[float]) -> str:
    """A speed-up: the median of its rounds, and where there are several the lowest and the highest."""
    between = f" ({min(ratios):.1f}-{max(ratios):.1f})" if len(ratios) > 1 else ""
    return times(ratios) + between


def measured(report: Report) -> str:
    """How the numbers of :meth:`Contest.details` were measured."""
    speed_up = " Speed-up: against plain decoding in the same round." if report.timed else ""
    return (
        f"Gained, lost: problems against plain decoding. NFE: forward passes of an answer; TPF: answer tokens of a "
        f"pass; answer tokens count up to the end token. FLOPs are those of matrix products and attention in the first "
        f"batch of {report.settings['batch_size']} problems, padding included.{timing(report)}{speed_up}"
    )


def document(name: str, title: str, paragraphs: Sequence[str], contests: Sequence[Contest]) -> str:
    """The Markdown of a study: its picture, its paragraphs and tables, and what the numbers depend on."""
    reports, posed_of = [contest.report for contest in contests], [contest.posed for contest in contests]
    sets = {posed.digest: f"{len(posed.problems)} of {posed.name} (`{posed.digest}`)" for posed in posed_of}
    origin = f"Problems, from the first: {'; '.join(sets.values())}; {setup(merged(reports))}."
    return "\n\n".join([f"![{title}]({name}.png)", *paragraphs, origin, f"Made by `{reports[0].command}`."])


def merged(reports: Sequence[Report]) -> Report:
    """The first of several reports with the environments of all: for what is said of them together."""
    runs, answers = list[Mapping[str, Any]](), dict[str, Any]()
    for i, report in enumerate(reports):
        for key, given in report.answers.items():
            answers[f"{i} {key}"] = [replace(answer, run=answer.run + len(runs)) for answer in given]
        runs += report.runs
    return replace(reports[0], runs=runs, answers=answers, timing_runs=[run for r in reports for run in r.timing_runs])
