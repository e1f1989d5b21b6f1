"""The table of an arena: as cells, as Markdown, and as JSON with everything each number depends on."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdllm.arena.methods import Method
from fastdllm.arena.run import Answer
from fastdllm.arena.score import Score, sign_test
from fastdllm.errors import OptionError
from fastdllm.files import write_whole

UNITS = ((1e12, "TFLOPs"), (1e9, "GFLOPs"), (1e6, "MFLOPs"), (1e3, "kFLOPs"), (1.0, "FLOPs"))


@dataclass(frozen=True, kw_only=True)
class Report:
    """Scores, and what they depend on.

    Args:
        answers: of each method by its key, in the order of the problems.
        settings: what all answers share.
        settings_of: what each method's answers depend on, by its key.
        runs: the environment of each run that added to the file of answers; an answer's ``run`` is a place in this.
        timed: problems of a turn; 0 when speed was not measured.
        timing_runs: the environment of each run that timed one of these methods.
        command: what made it.
    """

    scores: Sequence[Score]
    answers: Mapping[str, Sequence[Answer]]
    settings: Mapping[str, Any]
    settings_of: Mapping[str, Mapping[str, Any]]
    runs: Sequence[Mapping[str, Any]]
    timed: int
    timing_runs: Sequence[Mapping[str, Any]]
    command: str

    def distinct(self, name: str) -> str:
        """A value of the environments that these numbers come from; each of them where they differ."""
        answered = sorted({answer.run for given in self.answers.values() for answer in given})
        found = dict.fromkeys(str(run.get(name)) for run in (*(self.runs[i] for i in answered), *self.timing_runs))
        return " and ".join(found)


def header(scores: Sequence[Score]) -> list[str]:
    """Column names; the unit of FLOPs follows from their size."""
    against = [] if len(scores) == 1 else ["against 1"]
    timed = ["tokens/s (lowest-highest)"] if any(s.speeds for s in scores) else []
    flops = f"{unit(scores)[1]}/token"
    return ["#", "method", "right, % (95 % interval)", *against, "NFE", "TPF", "rows/token", flops, *timed]


def cells(score: Score, scores: Sequence[Score]) -> list[str]:
    """One row of the table under :func:`header`."""
    size, _ = unit(scores)
    against = "-" if score.number == 1 else f"+{score.gained} -{score.lost}"
    texts = [
        str(score.number),
        score.method.name,
        accuracy(score),
        *([] if len(scores) == 1 else [against]),
        f"{score.nfe:.1f}",
        f"{score.tokens_per_forward:.2f}",
        number(score.rows_per_token, 1.0),
        number(score.flops_per_token, size),
    ]
    return [*texts, speed(score)] if any(s.speeds for s in scores) else texts


def accuracy(score: Score) -> str:
    """Percent right with the interval."""
    low, high = score.interval
    return f"{score.accuracy:.1f} ({low:.1f}-{high:.1f})"


def unit(scores: Sequence[Score]) -> tuple[float, str]:
    """The largest unit that leaves no method below 1."""
    least = min((s.flops_per_token for s in scores if s.flops_per_token), default=1.0)
    return next(((size, name) for size, name in UNITS if least >= size), UNITS[-1])


def number(value: float | None, size: float) -> str:
    """A mean in units of ``size``, or what stands for none."""
    return "-" if value is None else f"{value / size:.1f}"


def speed(score: Score) -> str:
    """Answer tokens per second: median, lowest and highest round."""
    if not score.speeds:
        return "not timed"
    return f"{statistics.median(score.speeds):.0f} ({min(score.speeds):.0f}-{max(score.speeds):.0f})"


def table(scores: Sequence[Score]) -> str:
    """The table in Markdown, with the Pareto front in bold."""
    names = header(scores)
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for score in scores:
        row = cells(score, scores)
        row[1] = f"`{row[1]}`"
        bold = ("method", "right, % (95 % interval)", "rows/token") if score.front else ()
        texts = [f"**{text}**" if name in bold else text for name, text in zip(names, row, strict=True)]
        lines.append(f"| {' | '.join(texts)} |")
    return "\n".join(lines)


def notes(report: Report) -> list[str]:
    """What the table's numbers mean and depend on, a paragraph each."""
    against = " Against 1: problems gained and lost against the first method." if len(report.scores) > 1 else ""
    return [
        f"**Bold**: the Pareto front of accuracy against rows per token.{against} Parameters that a method does not "
        f"name have their defaults (`fastdllm methods`). Answer tokens count up to the end token. FLOPs are those of "
        f"matrix products and attention in the first batch of {report.settings['batch_size']} problems, padding "
        f"included.{timing(report)}",
        conditions(report),
    ]


def timing(report: Report) -> str:
    """How speed was measured, as a sentence after others; empty when it was not."""
    if not report.timed:
        return ""
    count = max(len(score.speeds) for score in report.scores)
    rounds = "one round" if count == 1 else f"median of {count} interleaved rounds"
    return f" Tokens per second: one prompt at a time, {rounds} over {report.timed} problems."


def conditions(report: Report) -> str:
    """Problems, model, lengths, machine and versions, in a sentence."""
    return f"{report.scores[0].problems} problems (`{report.settings['problems']}`), {setup(report)}."


def setup(report: Report) -> str:
    """Model, lengths, machine and versions, in words."""
    s = report.settings
    lengths = f"gen_length {s['gen_length']}, block_length {s['block_length']}, seed {s['seed']}"
    where = f"{s['dtype']}, {report.distinct('hardware')}, threads {report.distinct('threads')}"
    versions = ", ".join(f"{name} {report.distinct(name)}" for name in ("torch", "fastdllm", "commit"))
    return f"model {s['model']} (weights `{s['weights']}`), {lengths}, {where}, {versions}"


def markdown(report: Report) -> str:
    """Table, notes and the command: what stands in a document between its markers."""
    return "\n\n".join([table(report.scores), *notes(report), f"Made by `{report.command}`."])


def as_json(report: Report) -> dict[str, Any]:
    """Everything, JSON-ready."""
    return {
        "command": report.command,
        "settings": dict(report.settings),
        "timed": report.timed,
        "timed_on": list(report.timing_runs) if report.timed else [],
        "methods": [{**method_json(score), **_made_with(report, score.method)} for score in report.scores],
    }


def _made_with(report: Report, method: Method) -> dict[str, object]:
    runs = sorted({answer.run for answer in report.answers[method.key]})
    return {"settings": report.settings_of[method.key], "answered_on": [report.runs[run] for run in runs]}


def write(report: Report, folder: Path) -> None:
    """``arena.json`` and ``arena.md``."""
    write_whole(folder / "arena.json", json.dumps(as_json(report), indent=2) + "\n")
    write_whole(folder / "arena.md", markdown(report) + "\n")


def method_json(score: Score) -> dict[str, object]:
    """The numbers of a method, JSON-ready."""
    timed = {"median": statistics.median(score.speeds), "rounds": score.speeds} if score.speeds else None
    return {
        "name": score.method.name,
        "key": score.method.key,
        "problems": score.problems,
        "right": score.right,
        "accuracy": score.accuracy,
        "interval": score.interval,
        "against_first": {
            "gained": score.gained, "lost": score.lost, "p": sign_test(score.gained, score.lost),
        },
        "nfe": score.nfe,
        "tokens_per_forward": score.tokens_per_forward,
        "rows_per_token": score.rows_per_token,
        "flops_per_token": score.flops_per_token,
        "tokens_per_second": timed,
        "pareto": score.front,
    }  # fmt: skip


def insert(path: Path, name: str, text: str) -> None:
    """Replace what stands between a document's markers ``<!-- NAME: start -->`` and ``<!-- NAME: end -->``."""
    start, end = f"<!-- {name}: start -->", f"<!-- {name}: end -->"
    before, found_start, rest = path.read_text(encoding="utf-8").partition(start)
    _, found_end, after = rest.partition(end)
    if not (found_start and found_end):
        raise OptionError(f"{path} lacks the markers {start} and {end}.")
    path.write_text(f"{before}{start}\n{text}\n{end}{after}", encoding="utf-8")
