"""The table of an arena: as cells, as Markdown, and as JSON with everything each number depends on."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdllm.arena.score import Score, sign_test
from fastdllm.errors import OptionError

UNITS = ((1e12, "TFLOPs"), (1e9, "GFLOPs"), (1e6, "MFLOPs"), (1e3, "kFLOPs"), (1.0, "FLOPs"))


@dataclass(frozen=True, kw_only=True)
class Report:
    """Scores, and what they depend on.

    Args:
        settings: what all answers share.
        runs: the environment of each run that answered, as the answers' sidecar has them.
        timed: problems of a turn; 0 when speed was not measured.
        timing_runs: the environment of each run that timed.
        command: what made it.
    """

    scores: Sequence[Score]
    settings: Mapping[str, Any]
    runs: Sequence[Mapping[str, Any]]
    timed: int
    timing_runs: Sequence[Mapping[str, Any]]
    command: str

    def distinct(self, name: str) -> str:
        """A value of the runs' environments; each of them where they differ."""
        found = dict.fromkeys(str(run.get(name)) for run in (*self.runs, *self.timing_runs))
        return " and ".join(found)


def header(scores: Sequence[Score]) -> list[str]:
    """Column names; the unit of FLOPs follows from their size."""
    against = [] if len(scores) == 1 else ["against 1"]
    speed = ["tokens/s (lowest-highest)"] if any(s.speeds for s in scores) else []
    unit = _unit(scores)[1]
    return ["#", "method", "right, % (95 % interval)", *against, "NFE", "TPF", "rows/token", f"{unit}/token", *speed]


def cells(score: Score, scores: Sequence[Score]) -> list[str]:
    """One row of the table under :func:`header`."""
    low, high = score.interval
    size, _ = _unit(scores)
    against = "-" if score.number == 1 else f"+{score.gained} -{score.lost}"
    texts = [
        str(score.number),
        score.method.name,
        f"{score.accuracy:.1f} ({low:.1f}-{high:.1f})",
        *([] if len(scores) == 1 else [against]),
        f"{score.nfe:.1f}",
        f"{score.tokens_per_forward:.2f}",
        _number(score.rows_per_token, 1.0),
        _number(score.flops_per_token, size),
    ]
    return [*texts, _speed(score)] if any(s.speeds for s in scores) else texts


def _unit(scores: Sequence[Score]) -> tuple[float, str]:
    """The largest unit that leaves no method below 1."""
    least = min((s.flops_per_token for s in scores if s.flops_per_token), default=1.0)
    return next(((size, name) for size, name in UNITS if least >= size), UNITS[-1])


def _number(value: float | None, size: float) -> str:
    return "-" if value is None else f"{value / size:.1f}"


def _speed(score: Score) -> str:
    if not score.speeds:
        return "not timed"
    return f"{statistics.median(score.speeds):.0f} ({score.speeds[0]:.0f}-{score.speeds[-1]:.0f})"


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
    s, problems = report.settings, report.scores[0].problems
    against = " Against 1: problems gained and lost against the first method." if len(report.scores) > 1 else ""
    lengths = f"gen_length {s['gen_length']}, block_length {s['block_length']}, seed {s['seed']}"
    where = f"{s['dtype']}, {report.distinct('hardware')}, threads {report.distinct('threads')}"
    versions = ", ".join(f"{name} {report.distinct(name)}" for name in ("torch", "fastdllm", "commit"))
    speed = (
        f" Tokens per second: one prompt at a time, median of {max(len(x.speeds) for x in report.scores)} interleaved "
        f"rounds over {report.timed} problems."
    )
    return [
        f"**Bold**: the Pareto front of accuracy against rows per token.{against} Parameters that a method does not "
        f"name have their defaults (`fastdllm methods`). Answer tokens count up to the end token. FLOPs are those of "
        f"matrix products and attention in the first batch of {s['batch_size']} problems, padding included."
        f"{speed * bool(report.timed)}",
        f"{problems} problems (`{s['problems']}`), model {s['model']} (weights `{s['weights']}`), {lengths}, {where}, "
        f"{versions}.",
    ]


def markdown(report: Report) -> str:
    """Table, notes and the command: what stands in a document between its markers."""
    return "\n\n".join([table(report.scores), *notes(report), f"Made by `{report.command}`."])


def as_json(report: Report, settings_of: Mapping[str, dict[str, object]], runs_of: Mapping[str, Sequence[int]]) -> Any:
    """Everything, JSON-ready.

    Args:
        settings_of: what each method's answers depend on, by its key.
        runs_of: which runs made each method's answers, by its key.
    """
    return {
        "command": report.command,
        "settings": dict(report.settings),
        "timed": report.timed,
        "timed_on": list(report.timing_runs) if report.timed else [],
        "methods": [
            _method_json(score)
            | {
                "settings": settings_of[score.method.key],
                "answered_on": [report.runs[run] for run in runs_of[score.method.key]],
            }
            for score in report.scores
        ],
    }


def _method_json(score: Score) -> dict[str, object]:
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
