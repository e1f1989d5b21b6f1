"""How much memory loading and generating really take.

On a CPU that is how far the process grows beyond what it held before the model was there, after a small model of the
same kind has loaded the libraries; on a GPU it is what torch's allocator has handed out.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch

from fastdllm.bench.clock import Timed
from fastdllm.bench.setting import Setting
from fastdllm.bench.shapes import llada, spelled
from fastdllm.engine import Engine
from fastdllm.heap import give_back
from fastdllm.loading import choose_device
from fastdllm.machine import largest_resident
from fastdllm.memory import memory, weight_bytes

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
PASSES = 4
"""Of the generation that is watched: its first is the widest."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes."""

    weights: int
    kv_store: int
    """What both hold by the shape of the model; the canvas of the setting."""
    loaded: int
    """What loading has added once it is done."""
    loading: int
    """What it added at its peak."""
    generating: int
    """What loading and a generation together added at the peak of the generation."""
    how: str

    @property
    def over(self) -> float:
        """The peak of a generation over weights and store, less one: 0.15 is 15 % more."""
        return self.generating / (self.weights + self.kv_store) - 1

    def as_json(self) -> dict[str, object]:
        return {
            "weights": self.weights, "kv_store": self.kv_store, "loaded": self.loaded, "loading_peak": self.loading,
            "generating_peak": self.generating, "over_weights_and_store": self.over, "how": self.how,
        }  # fmt: skip


class Gauge:
    """Bytes that this process holds on a device, now and at the peak since :meth:`reset`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.how = "torch's CUDA allocator" if device.type == "cuda" else "resident memory of the process"
        if device.type != "cuda" and not CLEAR.exists():
            self.how = "largest resident memory since the process began"

    def reset(self) -> None:
        """Begin a new peak; what is free already goes first, or it would be used unseen."""
        gc.collect()
        give_back()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif CLEAR.exists():
            CLEAR.write_text("5")  # resets VmHWM alone; see proc_pid_clear_refs(5)

    def now(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        return _status("VmRSS") if STATUS.exists() else self.peak()

    def peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if CLEAR.exists():
            return _status("VmHWM")
        return largest_resident()


def _status(name: str) -> int:
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def open_watched(setting: Setting) -> tuple[Engine, Footprint]:
    """Load a setting's model and make the first passes of a generation, with an eye on memory."""
    device = choose_device(setting.load.device)
    setting.take_threads()
    _load_libraries(setting)
    gauge = Gauge(device)
    gauge.reset()
    before = gauge.now()
    engine = setting.load.open()
    loaded, loading = gauge.now() - before, gauge.peak() - before
    gauge.reset()
    for _ in islice(Timed(engine, setting.prompts(engine), setting.options), PASSES):
        pass
    return engine, _footprint(engine, setting, loaded, loading, gauge.peak() - before, gauge.how)


def _load_libraries(setting: Setting) -> None:
    """What a first generation brings into memory for good is no part of this model's."""
    small = llada(hidden_size=512, num_layers=1, num_heads=8, intermediate_size=512, vocab_size=512)
    load = replace(setting.load, model=None, revision=None, shape=spelled(small))
    engine = load.open()
    few = replace(setting, prompt_length=32, gen_length=8, block_length=4, batch_size=1)
    for _ in islice(Timed(engine, few.prompts(engine), few.options), PASSES):
        pass


def _footprint(engine: Engine, setting: Setting, loaded: int, loading: int, peak: int, how: str) -> Footprint:
    need = memory(
        engine.config, setting.config.policy, setting.config.rule, batch_size=setting.batch_size,
        prompt_length=setting.prompt_length, gen_length=setting.gen_length, block_length=setting.block_length,
        itemsize=engine.dtype.itemsize,
    )  # fmt: skip
    return Footprint(
        weights=weight_bytes(engine.config, engine.dtype.itemsize, quantized=bool(engine.model.quantized)),
        kv_store=need.kv_store,
        loaded=loaded,
        loading=loading,
        generating=peak,
        how=how,
    )
