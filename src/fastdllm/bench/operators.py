"""Which operators take the time of a full and of a cached pass, by torch's profiler."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.profiler import ProfilerActivity, profile

from fastdllm.bench.passes import CACHED, Prober
from fastdllm.bench.setting import Setting
from fastdllm.engine import Engine

ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Operator:
    """What one operator does itself, without those it calls, in one pass on average."""

    name: str
    calls: float
    seconds: float
    share: float
    """Of all operators of the pass."""

    def as_json(self) -> dict[str, object]:
        return {"name": self.name, "calls": self.calls, "ms": self.seconds * 1e3, "share": self.share}


def profile_passes(engine: Engine, setting: Setting, rounds: int = ROUNDS) -> dict[str, list[Operator]]:
    """The operators of a full and of a cached pass, those that take longest first.

    Profiling slows a pass down, and small operators more than large ones: shares tell, not sums.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's library writes a line at every start otherwise
    on_gpu = engine.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    setting.take_threads()
    passes = iter(Prober(engine, setting).start(engine))
    for _ in range(CACHED + 1):
        next(passes)
    seen: dict[str, list[Any]] = defaultdict(list)
    for _ in range(rounds):
        for kind, count in (("full", 1), ("cached", CACHED)):
            with profile(activities=activities) as profiler:
                for _ in range(count):
                    next(passes)
            seen[kind] += profiler.key_averages()
    return {kind: _operators(found, rounds * (1 if kind == "full" else CACHED), on_gpu) for kind, found in seen.items()}


def _operators(found: Sequence[Any], passes: int, on_gpu: bool) -> list[Operator]:
    times: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for one in found:
        times[one.key] += (one.self_device_time_total if on_gpu else one.self_cpu_time_total) / 1e6
        calls[one.key] += one.count
    total = sum(times.values())
    names = sorted(times, key=lambda name: -times[name])
    return [
        Operator(name=name, calls=calls[name] / passes, seconds=times[name] / passes, share=times[name] / total)
        for name in names
        if times[name]
    ]
