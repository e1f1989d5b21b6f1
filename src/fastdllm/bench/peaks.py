"""What the machine can do at best, measured in the run whose passes are judged by it.

Two ceilings are told apart.

- The *roofline* (S. Williams, A. Waterman, D. Patterson, CACM 52, 65-76, 2009): a pass takes no less than its FLOPs at
  the machine's peak and no less than its bytes at the rate of reading memory, whichever is longer. The peak is the best
  rate of any matrix product seen in this run: a large square one and the model's own, in every layout of weights that
  is tried. No pass can be faster, and one with few rows cannot come near, as no product with few rows reaches the peak.
- The *products' own time*: every product of the pass at the best rate measured for its very shape and number of rows,
  and attention at the peak. It is what is left to gain without other matrix products.

Weights of a product are as many different ones as the model holds (up to :data:`STREAMED` bytes), read one after the
other: what a pass has to fetch from memory is not measured from a cache. The rate of reading memory is measured over
as many bytes for the same reason.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdllm.bench.clock import synchronize
from fastdllm.bench.costs import Cost, Product
from fastdllm.engine import Engine
from fastdllm.models import packed
from fastdllm.models.native import is_native, native_layout
from fastdllm.models.quantized import ZERO, Int8Linear, Rows, torchao_layout

Layout: TypeAlias = "Callable[[Tensor], Callable[[Tensor], Any]]"
"""From a weight (outer, inner), what multiplies rows (rows, inner) by it."""
STREAMED = 256 * 2**20
LEAST = 4 * 2**20
MOST = 2**30
"""Bytes: of the weights of one product together; that memory is read over at least and at most."""
LEAST_ROUNDS, MOST_ROUNDS, PATIENCE = 4, 100, 1.0
"""How often a product is tried: at least and at most, and in between for so many seconds."""
SQUARE = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True, kw_only=True)
class Rate:
    """The best rate of one product."""

    product: Product
    layout: str
    seconds: float

    @property
    def flops_per_second(self) -> float:
        return self.product.flops / self.seconds

    def as_json(self) -> dict[str, object]:
        made = self.product
        return {
            "name": made.name, "rows": made.rows, "inner": made.inner, "outer": made.outer, "layout": self.layout,
            "ms": self.seconds * 1e3, "flops_per_second": self.flops_per_second,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The peaks of a machine in one dtype."""

    dtype: str
    threads: int
    rates: tuple[Rate, ...]
    reading: float
    """Bytes a second."""
    reading_by: str

    @property
    def peak(self) -> float:
        """FLOPs a second of the fastest product."""
        return max(rate.flops_per_second for rate in self.rates)

    def as_json(self) -> dict[str, object]:
        return {
            "dtype": self.dtype, "threads": self.threads, "peak_flops_per_second": self.peak,
            "read_bytes_per_second": self.reading, "read_by": self.reading_by,
            "products": [rate.as_json() for rate in self.rates],
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """What a pass would take at the machine's best; see the module."""

    compute: float
    memory: float
    products: float
    """Seconds of its matrix products and attention, each product at its own best rate."""

    @property
    def roofline(self) -> float:
        """Seconds that no implementation can beat."""
        return max(self.compute, self.memory)

    @property
    def bound(self) -> str:
        return "compute" if self.compute >= self.memory else "memory"

    def as_json(self, attained: Mapping[str, float]) -> dict[str, object]:
        """With the fractions that passes of so many seconds attain."""
        return {
            "roofline_ms": self.roofline * 1e3, "bound": self.bound, "compute_ms": self.compute * 1e3,
            "memory_ms": self.memory * 1e3, "products_ms": self.products * 1e3,
            "fraction_of_roofline": {name: self.roofline / seconds for name, seconds in attained.items()},
            "fraction_of_products": {name: self.products / seconds for name, seconds in attained.items()},
        }  # fmt: skip


def ceiling(cost: Cost, made: Sequence[Product], machine: Machine) -> Ceiling:
    """The ceiling of a pass with that cost and those products."""
    best = {(rate.product.rows, rate.product.inner, rate.product.outer): rate.seconds for rate in machine.rates}
    own = sum(best[product.rows, product.inner, product.outer] * product.count for product in made)
    return Ceiling(
        compute=cost.total_flops / machine.peak,
        memory=cost.total_bytes / machine.reading,
        products=own + cost.flops["attention"] / machine.peak,
    )


def steps(made: Sequence[Product]) -> int:
    """Products that :func:`measure` tries."""
    return len({(p.rows, p.inner, p.outer) for p in made}) + 1


def measure(
    made: Sequence[Product],
    engine: Engine,
    weight_bytes: int,
    advance: Callable[[], None] = lambda: None,
) -> Machine:  # fmt: skip
    """Rates of these products and of a large square one, and of reading memory.

    Args:
        weight_bytes: of the model whose products they are.
    """
    side = SQUARE.get(engine.device.type, SQUARE["cpu"])
    wanted = {(p.rows, p.inner, p.outer): p for p in made}
    square = Product(name="square", rows=side, inner=side, outer=side, count=1)
    rates = []
    for product in [*wanted.values(), square]:
        rates.append(_rate(product, engine, weight_bytes))
        advance()
    by, reading = _reading(min(max(weight_bytes, LEAST), MOST), engine.device)
    return Machine(
        dtype=engine.precision, threads=torch.get_num_threads(), rates=tuple(rates), reading=reading, reading_by=by
    )


def plain(weight: Tensor) -> Callable[[Tensor], Any]:
    """As ``nn.Linear`` has it."""
    return lambda x: F.linear(x, weight)


def int8(weight: Tensor) -> Callable[[Tensor], Any]:
    """As a network on a CPU has it, without the rounding of rows and results, which is none of the product's."""
    layer, rows = Int8Linear(weight, None, Rows()), Rows()
    multiply = torch.ops.onednn.qlinear_pointwise.default
    of_weight = layer.packed, layer.scale, layer.zeros, None
    return lambda x: multiply(rows(x)[0], 1.0, ZERO, *of_weight, 1.0, 0, torch.float32, "none", [], "")


def as_layers(layout: packed.Layout) -> Layout:
    """As a network has it whose layers are laid out so."""

    def lay(weight: Tensor) -> Callable[[Tensor], Any]:
        outer, inner = weight.shape
        return layout(nn.Linear(inner, outer, bias=False, device="meta"), weight)

    return lay


def layouts(engine: Engine) -> dict[str, Layout]:
    """Those that are tried."""
    kind, on_cpu = engine.model.quantized, engine.device.type == "cpu"
    if kind:
        return {kind: int8} if on_cpu else {"plain": plain, kind: as_layers(torchao_layout(kind, engine.device))}
    tried: dict[str, Layout] = {"plain": plain}
    if packed.packs(engine.dtype, engine.device):
        tried["packed"] = as_layers(packed.pack)
    if is_native(engine.model):
        tried["kernels"] = as_layers(native_layout(engine.dtype))
    return tried


def _rate(product: Product, engine: Engine, weight_bytes: int) -> Rate:
    """The best layout's."""
    dtype, device, found = engine.dtype, engine.device, dict[str, float]()
    x = torch.empty(product.rows, product.inner, dtype=dtype, device=device).normal_()
    for name, layout in layouts(engine).items():
        size = product.inner * product.outer * (1 if name == engine.model.quantized else dtype.itemsize)
        first = torch.empty(product.outer, product.inner, dtype=dtype, device=device).normal_(0, 0.02)
        weights = (first.clone() for _ in range(max(1, min(weight_bytes, STREAMED) // size)))
        found[name] = best_seconds([partial(layout(weight), x) for weight in weights], device)
    fastest = min(found, key=found.__getitem__)
    return Rate(product=product, layout=fastest, seconds=found[fastest])


def _reading(size: int, device: torch.device) -> tuple[str, float]:
    """How memory is read fastest, and bytes a second: a sum reads, a copy reads and writes."""
    held = torch.ones(size // 4, device=device)
    other = torch.empty_like(held)
    ways: dict[str, tuple[Callable[[], Any], int]] = {
        "sum": (held.sum, held.nbytes),
        "dot": (lambda: torch.dot(held, held), held.nbytes),
        "copy": (lambda: other.copy_(held), 2 * held.nbytes),
    }
    rates = {name: moved / best_seconds([way], device) for name, (way, moved) in ways.items()}
    fastest = max(rates, key=rates.__getitem__)
    return fastest, rates[fastest]


@torch.inference_mode()
def best_seconds(works: Sequence[Callable[[], Any]], device: torch.device) -> float:
    """Seconds of one of these works, done one after the other: the best of several rounds, after one not timed.

    On a CPU each is timed by itself, and the median is taken of their best: one that was held up in every round does
    not count. On a GPU, where that would time the waiting, a round is timed as a whole.
    """
    _seconds(works, device)
    rounds, began = list[list[float]](), time.perf_counter()
    while len(rounds) < LEAST_ROUNDS or (len(rounds) < MOST_ROUNDS and time.perf_counter() - began < PATIENCE):
        rounds.append(_seconds(works, device))
    best: list[float] = [min(times) for times in zip(*rounds, strict=True)]
    return statistics.median(best)


def _seconds(works: Sequence[Callable[[], Any]], device: torch.device) -> list[float]:
    """Of each work; on a GPU their mean."""
    together = [lambda: [work() for work in works]] if device.type == "cuda" else works
    times = []
    for work in together:
        begun = time.perf_counter()
        work()
        synchronize(device)
        times.append((time.perf_counter() - begun) * len(together) / len(works))
    return times
