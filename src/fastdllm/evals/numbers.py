"""What answers cost, in the numbers that the field publishes."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fastdllm.machine import largest_resident

PERCENTILES = (50, 90, 99)
Lines = Sequence[Mapping[str, Any]]


def costs(lines: Lines) -> dict[str, Any]:
    """Sums and means over answers; tokens count up to the end token, and an answer that failed counts nowhere.

    Tokens per second are those of a process, batch by batch, without the first batch of each run; with several
    processes, each has the machine's other ones beside it.
    """
    done = [line for line in lines if "error" not in line]
    tokens, passes, rows = (sum(line[name] for line in done) for name in ("tokens", "nfe", "rows"))
    counted = [line for line in done if line["flops"] is not None]
    return {
        "answers": len(done),
        "failed": len(lines) - len(done),
        "empty": sum(not line["tokens"] for line in done),
        "tokens": tokens,
        "nfe": _ratio(passes, len(done)),
        "tokens_per_forward": _ratio(tokens, passes),
        "rows_per_token": _ratio(rows, tokens),
        "flops_counted_answers": len(counted),
        "flops_per_token": _ratio(sum(line["flops"] for line in counted), sum(line["tokens"] for line in counted)),
        "tokens_per_second": speeds(done),
        "latency_seconds": latencies(done),
    }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def speeds(lines: Lines) -> dict[str, float] | None:
    """Median, lowest and highest tokens per second of the timed batches; None where none was timed."""
    batches = defaultdict(list)
    for line in lines:
        if not line["warm_up"]:
            batches[line["file"], line["run"], line["batch"]].append(line)
    whole = [b for b in batches.values() if len(b) == b[0]["batch_size"]]  # what a kill has torn has no time of its own
    rates = [sum(x["tokens"] for x in b) / max(x["seconds"] for x in b) for b in whole]
    if not rates:
        return None
    spread = {"median": statistics.median(rates), "lowest": min(rates), "highest": max(rates), "batches": len(rates)}
    return {**spread, "overall": _overall(whole)}


def _overall(batches: Sequence[Lines]) -> float:
    """All tokens over the time of all batches."""
    seconds: float = sum(max(x["seconds"] for x in b) for b in batches)
    return sum(int(x["tokens"]) for b in batches for x in b) / seconds


def latencies(lines: Lines) -> dict[str, float] | None:
    """Percentiles of the time from the start of an answer's batch to its end."""
    seconds = sorted(line["seconds"] for line in lines if not line["warm_up"])
    if not seconds:
        return None
    places = {p: min(len(seconds) - 1, round(p / 100 * (len(seconds) - 1))) for p in PERCENTILES}
    return {f"p{p}": seconds[place] for p, place in places.items()}


def peak_memory(device: torch.device) -> int:
    """Bytes at most: allocated on a GPU, resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return largest_resident()
