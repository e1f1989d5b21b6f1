"""How often the host would wait for a GPU, and whether anything is float64: found on the CPU.

Everything that comes from weights, tokens or a copy to the device is marked, and so is what is computed from it. To
read a number out of something marked, or to do what needs its values to know a shape, is what makes a host wait.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

import fastdllm.canvas
from fastdllm.canvas import Canvas, Delta
from fastdllm.decoders import Threshold, Turn
from fastdllm.engine import Engine
from toys import FAMILIES, prompts_of, toy_engine

PROMPTS = prompts_of([30, 3, 12], seed=2)
CACHES = ("none", "prefix", "dual", "dual:prompt_every=2,suffix_window=5", "sliding", "dllm:kp=4,kr=2")
DECODERS = ("threshold:threshold=0.5", "topk:k=1", "factor", "klass", "credit", "slowfast", "edit", "wino", "schedule")
READS = {"item", "_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "unique_dim", "_unique2"}


class Marked(TorchDispatchMode):
    """Follows what is on the device; ``waits`` counts what the host waits for, by the operation."""

    def __init__(self) -> None:
        super().__init__()
        self.on_device: Any = WeakIdKeyDictionary()
        self.waits: list[str] = []
        self.doubles: set[str] = set()

    def mark(self, tensor: Tensor) -> Tensor:
        self.on_device[tensor] = True
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        name = func.overloadpacket.__name__
        if any(x.dtype == torch.float64 for x in made):
            self.doubles.add(name)
        if any(x in self.on_device for x in given):
            by_values = name in ("index", "index_put", "index_put_") and any(x.dtype == torch.bool for x in given[1:2])
            if name in READS or by_values:
                self.waits.append(name)
            for x in made:
                self.mark(x)
        return out


@contextmanager
def marked(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Marked]:
    mode, to_device, start = Marked(), fastdllm.canvas.to_device, Canvas.__init__

    def copied(host: Tensor, device: torch.device) -> Tensor:
        return mode.mark(to_device(host, device).clone())

    def started(canvas: Canvas, *args: Any, **options: Any) -> None:
        start(canvas, *args, **options)
        mode.mark(canvas._tokens)
        mode.mark(canvas._eos_ids)

    def brought(tensor: Tensor) -> Tensor:
        if tensor in mode.on_device:
            mode.waits.append("cpu")
        return tensor.detach().clone() if tensor not in mode.on_device else torch.tensor(tensor.numpy())

    for name, module in list(sys.modules.items()):
        if name.startswith("fastdllm") and getattr(module, "to_device", None) is to_device:
            monkeypatch.setattr(module, "to_device", copied)
    monkeypatch.setattr(Canvas, "__init__", started)

    def listed(tensor: Tensor) -> Any:
        if tensor in mode.on_device:
            mode.waits.append("tolist")
        return tensor.numpy().tolist()

    monkeypatch.setattr(Tensor, "cpu", brought)
    monkeypatch.setattr(Tensor, "tolist", listed)
    for parameter in engine.model.parameters():
        mode.mark(parameter)
    with mode:
        yield mode


def run(engine: Engine, monkeypatch: pytest.MonkeyPatch, cache: Any, decoder: Any) -> tuple[Marked, int]:
    options = {"gen_length": 24, "block_length": 8, "temperature": 0.5}
    with marked(engine, monkeypatch) as mode:
        passes = sum(1 for _ in engine.stream(PROMPTS, cache=cache, decoder=decoder, **options))
    return mode, passes


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", CACHES)
def test_the_host_waits_once_a_pass_and_nothing_is_float64(family, cache, monkeypatch):
    for decoder in DECODERS:
        mode, passes = run(toy_engine(family, seed=3), monkeypatch, cache, decoder)
        assert mode.waits == ["cpu"] * passes, decoder
        assert not mode.doubles, decoder
        monkeypatch.undo()


@pytest.mark.parametrize("cache", ["dkv", "d2cache"])
def test_caches_of_scattered_rows_wait_twice(cache, monkeypatch):
    """They count on the host how many rows they chose."""
    mode, passes = run(toy_engine(seed=3), monkeypatch, cache, "topk:k=1")
    assert mode.waits == ["cpu"] * (2 * passes)


@dataclass(frozen=True, kw_only=True)
class Curious(Threshold):
    """Reads a confidence on the host."""

    def step(self, turn: Turn) -> Delta:
        if float(turn.prediction.confidence.max().double()) > 2:
            raise AssertionError
        return super().step(turn)


def test_a_decoder_that_reads_a_number_is_found_out(monkeypatch):
    mode, passes = run(toy_engine(seed=3), monkeypatch, "dual", Curious())
    assert mode.waits.count("item") == passes
    assert mode.doubles
