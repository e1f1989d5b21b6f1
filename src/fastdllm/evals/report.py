"""The result of an evaluation: JSON with everything that a number depends on, and a row of a table."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fastdllm.arena.score import Z, wilson

HEADER = (
    "model", "dataset", "metric", "score (95 %)", "n", "cache", "decoder", "gen/block", "tokens/s (lowest-highest)",
    "TPF", "NFE", "rows/token", "FLOPs/token", "latency p50/p90/p99, s", "peak memory",
)  # fmt: skip


def fail(results: Mapping[str, Any], failed: Collection[tuple[str, int]]) -> None:
    """Give documents without an answer no marks, whatever their metrics made of nothing.

    Args:
        failed: task and document of each.
    """
    for task, samples in results["samples"].items():
        for sample in samples:
            if (task, sample["doc_id"]) in failed:
                sample["failed"] = True
                sample.update({name: 0 for name in sample["metrics"] if sample[name] in (0, 1)})


def scores(results: Mapping[str, Any], task: str) -> list[dict[str, Any]]:
    """Every metric of a task in percent or as it is, with a 95 % interval; those of a group have no samples.

    Of ones and zeros it is Wilson's; of other values the mean and 1.96 of lm-eval's standard errors.

    Args:
        results: what ``lm_eval.simple_evaluate`` gives.
    """
    found = []
    samples = results["samples"].get(task, [])
    values = results["results"].get(task) or results["groups"][task]
    for name, value in values.items():
        metric, _, filtered = name.partition(",")
        if metric.endswith("_stderr") or not filtered or not isinstance(value, (int, float)):
            continue
        of_filter = [s for s in samples if s["filter"] == filtered and metric in s["metrics"]]
        marks = [s[metric] for s in of_filter]
        if marks and all(mark in (0, 1) for mark in marks):
            low, high = wilson(sum(marks), len(marks))
            entry: dict[str, Any] = {"score": 100 * sum(marks) / len(marks), "interval": [low, high], "unit": "%"}
        else:
            error = values.get(f"{metric}_stderr,{filtered}")
            known = isinstance(error, (int, float))
            interval = [value - Z * error, value + Z * error] if known else None
            entry = {"score": value, "interval": interval, "unit": ""}
        found.append({"metric": metric, "filter": filtered, "samples": len(of_filter), **entry})
    return found


def row(result: Mapping[str, Any], score: Mapping[str, Any]) -> list[str]:
    """One score with what its answers cost, in the order of :data:`HEADER`."""
    settings, costs = result["settings"], result["costs"]
    shots = "" if score["shots"] is None else f", {score['shots']}-shot"
    lengths = f"{settings['gen_length']}/{settings['block_length']}"
    return [
        settings["model"], f"{score['task']}{shots}", _metric(score), _interval(score), str(score["samples"]),
        f"`{settings['cache']}`", f"`{settings['decoder']}`", lengths, *_spent(costs), _size(result["peak_memory"]),
    ]  # fmt: skip


def _metric(score: Mapping[str, Any]) -> str:
    return score["metric"] if score["filter"] in ("none", "run") else f"{score['metric']} ({score['filter']})"


def _interval(score: Mapping[str, Any]) -> str:
    digits = 1 if score["unit"] else 3
    if score["interval"] is None:
        return f"{score['score']:.{digits}f}"
    low, high = score["interval"]
    return f"{score['score']:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def _spent(costs: Mapping[str, Any] | None) -> list[str]:
    if costs is None:
        return ["-"] * 6
    speed, latency = costs["tokens_per_second"], costs["latency_seconds"]
    shown = "-" if speed is None else f"{speed['median']:.1f} ({speed['lowest']:.1f}-{speed['highest']:.1f})"
    waits = "-" if latency is None else "/".join(f"{latency[name]:.2f}" for name in latency)
    ratios = (("tokens_per_forward", ".2f"), ("nfe", ".1f"), ("rows_per_token", ".1f"), ("flops_per_token", ".3g"))
    return [shown, *("-" if costs[name] is None else format(costs[name], form) for name, form in ratios), waits]


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def markdown(result: Mapping[str, Any]) -> str:
    """The table of an evaluation, a row for each metric."""
    rows: Sequence[Sequence[str]] = [HEADER, ["---"] * len(HEADER), *(row(result, s) for s in result["scores"])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows) + "\n"
