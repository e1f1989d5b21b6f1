"""A load test as tables and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastdllm.bench.spread import Spread
from fastdllm.load_test.report import Report
from fastdllm.load_test.score import PERCENTS, Part, Score
from fastdllm.studies.table import Table

NOTE = (
    "Latency: from the moment a request was due (with a fixed number at a time: was sent) to the end of its answer, "
    "over the answers of all rounds; first text: to the first text of it that can no longer change. Rates are the "
    "medians of the rounds (lowest-highest), each from its start to its last answer, so the end, with fewer at work, "
    "is in them; tokens count up to the end token. Batch: answers that a pass of the server works at, as its metrics "
    "say. A percentile is left out where there are too few answers for one to lie above it."
)


def all_tables(report: Report) -> list[Table]:
    return [throughput(report.scores), times(report.scores)]


def throughput(found: Sequence[Score]) -> Table:
    """How much was answered, and how; how many requests were on their way, where the load does not say it."""
    is_open = any(score.load.rate for score in found)
    head = ["load", "answers", "failed", "requests/s", "tokens/s", *["in flight"] * is_open, "batch", "NFE", "TPF"]
    return Table(
        head,
        [
            [
                score.load.name, f"{score.answered}", f"{sum(score.failures.values())}",
                rates(score.requests_per_second), rates(score.tokens_per_second),
                *[number(score.in_flight)] * is_open, number(score.batch), number(score.nfe),
                number(score.tokens_per_forward, 2),
            ]
            for score in found
        ],
    )  # fmt: skip


def times(found: Sequence[Score]) -> Table:
    """How long it took."""
    rest = [f"p{percent}" for percent in PERCENTS[1:]]
    head = ["load", f"latency, ms: p{PERCENTS[0]}", *rest, f"first text, ms: p{PERCENTS[0]}", *rest]
    return Table(
        head, [[score.load.name, *_milliseconds(score.latency), *_milliseconds(score.first_text)] for score in found]
    )


def _milliseconds(found: Mapping[int, float | None]) -> list[str]:
    return [number(None if found[percent] is None else 1e3 * (found[percent] or 0.0), 0) for percent in PERCENTS]


def rates(found: Spread | None) -> str:
    """The median, with the lowest and the highest where there are several."""
    if found is None:
        return "-"
    low, high = min(found.values), max(found.values)
    digits = 1 if high < 99.5 else 0
    middle = number(found.median, digits)
    return middle if len(found.values) == 1 else f"{middle} ({number(low, digits)}-{number(high, digits)})"


def number(value: float | None, digits: int = 1) -> str:
    """With so many digits behind the point; what stands for none."""
    return "-" if value is None else f"{value:.{digits}f}"


def sentences(report: Report) -> Iterator[tuple[str, str]]:
    """What is no table, under names."""
    found = report.scores
    if report.interrupted:
        left = sum(turn.unfinished for turn in report.turns)
        yield "interrupted", f"this is what was done by then; {left} requests were on their way"
    for score in found:
        if score.failures:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(score.failures.items()))
            yield f"failed, {score.load.name}", kinds
    yield from _answers(found)
    if any(score.shared for score in found):
        yield "warning", "the server had requests of others, too"
    busiest = max((score.client for score in found), default=0.0)
    yield "client", f"{client(report)}; it took {100 * busiest:.0f} % of a core at most"
    before, after = (_averages(report.load_average[when]) for when in ("before", "after"))
    yield "load average", f"{before} before, {after} after (1, 5, 15 minutes)"


def _averages(found: Sequence[float] | None) -> str:
    return ", ".join(f"{value:.2f}" for value in found) if found else "-"


def _answers(found: Sequence[Score]) -> Iterator[tuple[str, str]]:
    right = {score.load.name: score.right for score in found if score.right}
    if len(right) > 1 and len(set(right.values())) == 1:
        yield "right", f"{_percent(next(iter(right.values())))} at every load"
    elif right:
        yield "right", ", ".join(f"{_percent(part)} ({name})" for name, part in right.items())
    if parts := [score.same for score in found if score.same]:
        count, of = sum(part.count for part in parts), sum(part.of for part in parts)
        yield "same answers", f"{count} of {of} are, to the letter, those of the first turn"


def _percent(part: Part) -> str:
    return f"{100 * part.count / part.of:.1f} % of {part.of}"


def client(report: Report) -> str:
    """Where the requests came from."""
    same = "on the server's machine" if report.client["same_machine"] else "on another machine than the server"
    return f"{same}, {report.client['hardware']}"


def title(report: Report) -> list[str]:
    """Who was asked what, in two lines or three."""
    return [served(report), asked(report), f"{planned(report)}."]


def served(report: Report) -> str:
    server = report.server
    details, runs_on, limits = (server[name] or {} for name in ("details", "environment", "limits"))
    what = [
        f"{server['model']} (weights `{server['weights']}`)" if server["weights"] else str(server["model"]),
        *([f"{details['dtype']} on {details['device']}"] if details else []),
        *([f"{runs_on['hardware']}, threads {runs_on['threads']}"] if runs_on else []),
        *([f"{limits['slots']:.0f} answers at a time"] if "slots" in limits else []),
        *(f"{name} {runs_on[name]}" for name in ("torch", "fastdllm", "commit") if runs_on.get(name)),
    ]
    return f"Server: {', '.join(what)}."


def asked(report: Report) -> str:
    told = report.asked
    least, most = told["max_tokens"]
    defaults: Mapping[str, Any] = (report.server["details"] or {}).get("defaults", {})
    options = {name: told["extension"].get(name, defaults.get(name)) for name in ("cache", "decoder", "block_length")}
    what = [
        f"max_tokens {least}" if least == most else f"max_tokens {least} to {most}",
        *(f"{name} `{value}`" for name, value in options.items() if value is not None),
        *(f"{name} {told[name]:g}" for name in ("temperature", "top_p") if told[name] is not None),
    ]
    digest = f" (`{told['digest']}`)" if told["digest"] else ""
    return f"Asked: {told['prompts']}{digest}, {', '.join(what)}."


def planned(report: Report) -> str:
    plan = report.plan
    rounds = "one round" if plan["rounds"] == 1 else f"{plan['rounds']} rounds, the loads in turns"
    return f"{plan['requests']} requests of each load in {rounds}, after {plan['warm_up']} that do not count"


def markdown(report: Report) -> str:
    """Tables, sentences and the command: what stands in a document between its markers."""
    more = [f"**{name.capitalize()}**: {text}." for name, text in sentences(report)]
    parts = [*(table.markdown() for table in all_tables(report)), " ".join(title(report)), " ".join(more)]
    return "\n\n".join([*parts, NOTE, f"Made by `{report.command}`."])
