"""What tuning has found: a sentence, tables, JSON with everything behind them, and the preset."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastdllm.arena.report import number, speed
from fastdllm.arena.score import Score
from fastdllm.files import write_whole
from fastdllm.presets import Preset, options_of
from fastdllm.tune.paired import needed
from fastdllm.tune.run import Tuned, problems_for
from fastdllm.tune.trial import FATES, Trial, paired

TESTED = (
    "#", "setting", "right, %", "gained, lost", "difference (at least)", "rows/token", "TPF",
    "tokens/s (lowest-highest)", "outcome",
)  # fmt: skip
SELECTED = ("setting", "problems", "right, %", "gained, lost", "rows/token", "TPF", "outcome")
DECIDED = ("model", "revision", "weights", "dtype", "device", "chat", "problems")
"""Of the settings, what a preset was tuned on."""


def points(fraction: float) -> str:
    """A difference in points, signed."""
    return f"{100 * fraction:+.1f}"


def verdict(tuned: Tuned) -> str:
    """What came out and why, in a sentence or two."""
    margin, confidence = f"{100 * tuned.goal.margin:g} points", f"{100 * tuned.goal.confidence:g} % confidence"
    claim = f"not worse than plain decoding by more than {margin} ({confidence})"
    if tuned.chosen:
        name, figures = tuned.chosen.method.name, _figures(tuned, tuned.chosen)
        return f"{name} is the fastest setting shown to be {claim}: {figures}."
    if tuned.shown:
        return f"{len(tuned.shown)} settings are shown to be {claim}, but none is faster: the preset is plain decoding."
    if tuned.steps:
        lacks = shortfall(tuned, tuned.steps[0])
        return f"No setting is shown to be {claim}: the preset is plain decoding. The safest, {lacks}."
    return (
        f"No setting is both cheaper than plain decoding and within {margin} of it on the {tuned.selection_problems} "
        f"selection problems: the preset is plain decoding."
    )


def _figures(tuned: Tuned, trial: Trial) -> str:
    """What a shown trial reached, against plain decoding."""
    score, plain = tuned.score(trial), tuned.plain
    assert trial.bound is not None
    parts = [
        f"{score.accuracy:.1f} % of {score.problems} confirmation problems right against {plain.accuracy:.1f} %",
        f"a difference of {points(paired(score).difference)} and at least {points(trial.bound)} points",
        f"{score.rows_per_token or 0:.1f} rows per token against {plain.rows_per_token or 0:.1f}",
    ]
    if score.speeds and plain.speeds:
        times = statistics.median(score.speeds) / statistics.median(plain.speeds)
        parts.append(f"{times:.1f} times the tokens per second")
    return ", ".join(parts)


def shortfall(tuned: Tuned, trial: Trial) -> str:
    """What a setting that was not shown lacks, and how many problems would tell."""
    assert trial.confirmation is not None
    assert trial.bound is not None
    pairs = paired(trial.confirmation)
    seen = (
        f"{trial.method.name} gained {pairs.gained} and lost {pairs.lost} of {pairs.total} problems, a difference of "
        f"{points(pairs.difference)} and at least {points(trial.bound)} points"
    )
    complete = trial.p is not None
    enough = needed(pairs, tuned.goal.confidence, tuned.goal.margin) if complete else None
    if enough is None:
        return f"{seen}, so more problems are not likely to show it"
    return f"{seen}; if that is its true rate, about {problems_for(enough)} problems would show it"


def notes(tuned: Tuned) -> list[str]:
    """How many settings came how far, and what the one that ended the tests lacks."""
    counts = Counter(trial.fate for trial in tuned.trials)
    fates = "; ".join(f"{counts[fate]} {words}" for fate, words in FATES.items() if counts[fate])
    lines = [f"{len(tuned.trials)} settings, raced over {tuned.selection_problems} selection problems: {fates}."]
    failed = [trial for trial in tuned.steps if trial.fate == "not shown"]
    return lines + [f"The tests ended there: {shortfall(tuned, trial)}." for trial in failed if tuned.shown]


def tested(tuned: Tuned) -> list[list[str]]:
    """Plain decoding and the settings that were tested, as cells under :data:`TESTED`."""
    plain = tuned.plain
    rows = [["1", plain.method.name, f"{plain.accuracy:.1f}", "-", "-", *_costs(plain), speed(plain), "plain"]]
    for trial in tuned.steps:
        if trial.confirmation is not None and trial.bound is not None:
            score = tuned.score(trial) if trial.fate == "shown" else trial.confirmation
            difference = f"{points(paired(score).difference)} ({points(trial.bound)})"
            outcome = "chosen" if trial is tuned.chosen else trial.fate
            cells = [trial.method.name, *_accuracy(score), difference, *_costs(score), speed(score), outcome]
            rows.append([str(len(rows) + 1), *cells])
    return rows


def selected(tuned: Tuned) -> list[list[str]]:
    """Every setting on its selection problems, the cheapest first, as cells under :data:`SELECTED`."""
    trials = sorted(tuned.trials, key=lambda trial: tuned.goal.costs(trial.selection))
    return [
        [t.method.name, str(t.selection.problems), *_accuracy(t.selection), *_costs(t.selection), t.fate]
        for t in trials
    ]


def _accuracy(score: Score) -> list[str]:
    return [f"{score.accuracy:.1f}", f"+{score.gained} -{score.lost}"]


def _costs(score: Score) -> list[str]:
    return [number(score.rows_per_token, 1.0), f"{score.tokens_per_forward:.2f}"]


def markdown(tuned: Tuned) -> str:
    """Everything a reader needs, as a page."""
    s, report = tuned.report.settings, tuned.report
    where = f"{s['dtype']}, {report.distinct('hardware')}, threads {report.distinct('threads')}"
    versions = ", ".join(f"{name} {report.distinct(name)}" for name in ("torch", "fastdllm", "commit"))
    made_on = (
        f"Problems `{s['problems']}`: {tuned.selection_problems} to select, {tuned.plain.problems} others to confirm. "
        f"Model {s['model']} (weights `{s['weights']}`), gen_length {s['gen_length']}, block_length "
        f"{s['block_length']}, seed {s['seed']}, {where}, {versions}."
    )
    return "\n\n".join([
        "# Tuning", f"**{verdict(tuned)}**", "## Tested on the confirmation problems", _table(TESTED, tested(tuned)),
        *notes(tuned), "## Raced over the selection problems", _table(SELECTED, selected(tuned)), made_on,
        f"Made by `{report.command}`.",
    ])  # fmt: skip


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    at = names.index("setting")
    quoted = [[f"`{cell}`" if i == at else cell for i, cell in enumerate(row)] for row in rows]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in quoted])


def as_json(tuned: Tuned) -> dict[str, Any]:
    """Everything, JSON-ready."""
    goal, report = tuned.goal, tuned.report
    return {
        "command": report.command,
        "verdict": verdict(tuned),
        "goal": {"margin": goal.margin, "confidence": goal.confidence, "objective": goal.objective},
        "settings": dict(report.settings),
        "plain": {"name": tuned.plain.method.name, "key": tuned.plain.method.key, **_score_json(tuned.plain)},
        "trials": [_trial_json(tuned, trial) for trial in tuned.trials],
        "answered_on": list(report.runs),
        "timed_on": list(report.timing_runs),
        "timed": report.timed,
    }


def _trial_json(tuned: Tuned, trial: Trial) -> dict[str, Any]:
    of_trial = {"name": trial.method.name, "key": trial.method.key, "fate": trial.fate}
    chosen, selection = trial is tuned.chosen, _score_json(trial.selection)
    if trial.confirmation is None:
        return {**of_trial, "chosen": chosen, "selection": selection, "confirmation": None}
    score = tuned.score(trial) if trial.fate == "shown" else trial.confirmation
    confirmation = {**_score_json(score), "p": trial.p, "bound": trial.bound}
    return {**of_trial, "chosen": chosen, "selection": selection, "confirmation": confirmation}


def _score_json(score: Score) -> dict[str, Any]:
    return {
        "problems": score.problems, "right": score.right, "accuracy": score.accuracy, "interval": list(score.interval),
        "gained": score.gained, "lost": score.lost, "difference": paired(score).difference,
        "rows_per_token": score.rows_per_token, "tokens_per_forward": score.tokens_per_forward,
        "tokens_per_second": statistics.median(score.speeds) if score.speeds else None, "rounds": list(score.speeds),
    }  # fmt: skip


def preset(tuned: Tuned, name: str) -> Preset:
    """The chosen setting with every option of it, or plain decoding, and what it was tuned on."""
    method = tuned.chosen.method if tuned.chosen else tuned.plain.method
    settings, last = tuned.report.settings, tuned.report.runs[-1]
    tuned_on = {
        **{name: settings[name] for name in DECIDED},
        "selection_problems": tuned.selection_problems,
        "goal": {"margin": tuned.goal.margin, "confidence": tuned.goal.confidence, "objective": tuned.goal.objective},
        "plain": _score_json(tuned.plain),
        "environment": {name: value for name, value in last.items() if name not in ("started", "finished_before")},
        "command": tuned.report.command,
        "date": last["started"],
    }
    if tuned.chosen:
        score, trial = tuned.score(tuned.chosen), tuned.chosen
        tuned_on |= {"result": {**_score_json(score), "p": trial.p, "bound": trial.bound}}
        tuned_on |= {"times_faster": _times_faster(score, tuned.plain)}
    return Preset(name=name, about=verdict(tuned), options=options_of(method.config), tuned=tuned_on)


def _times_faster(score: Score, plain: Score) -> dict[str, float]:
    """How much less a token costs than with plain decoding, and how many more there are in a second."""
    assert score.rows_per_token is not None
    assert plain.rows_per_token is not None
    times = {"rows_per_token": plain.rows_per_token / score.rows_per_token}
    if score.speeds and plain.speeds:
        times["tokens_per_second"] = statistics.median(score.speeds) / statistics.median(plain.speeds)
    return times


def write(tuned: Tuned, folder: Path) -> None:
    """``tune.json`` and ``tune.md``."""
    write_whole(folder / "tune.json", json.dumps(as_json(tuned), indent=2) + "\n")
    write_whole(folder / "tune.md", markdown(tuned) + "\n")
