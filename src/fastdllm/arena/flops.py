"""Floating-point operations of forward passes, counted as they run.

Counted are matrix products and attention; what is done to each element alone (norms, rotation, softmax)
is not, as is usual. Attention over slots that a mask hides is counted, and so are rows that only pad a
batch of unequal rows: the count says what the hardware did.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import torch
from torch.utils.flop_counter import FlopCounterMode

from fastdllm.completion import Completion
from fastdllm.engine import Generation
from fastdllm.events import RowEvent
from fastdllm.models.transformer import Transformer

# Torch has no formula for the CPU's kernel, and older versions none for grouped-query attention in the others.
KERNELS = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)


def attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: object, **__: object
) -> int:  # fmt: skip
    """Of scores and mixture, for queries (B, H, R, D) and keys and values (B, K, T, D) in groups or not."""
    *heads, rows, width = query
    return 2 * math.prod(heads) * rows * key[-2] * (width + value[-1])


def product_flops(rows: Sequence[int], *_: object, out_shape: Sequence[int], **__: object) -> int:
    """Of rows (..., K) times a weight of any layout, which gives ``out_shape`` (..., N)."""
    return 2 * math.prod(rows) * out_shape[-1]


# Nor has it any for oneDNN's products with packed weights, and for kernels of our own.
OTHERS: dict[tuple[str, str], Callable[..., int]] = {
    ("mkldnn", "_linear_pointwise"): product_flops,
    ("onednn", "qlinear_pointwise"): product_flops,
    ("fastdllm", "linear"): product_flops,
    ("fastdllm", "attend"): attention_flops,
}


def formulas() -> dict[object, Callable[..., int]]:
    """What an operation costs of which torch does not know it, for the operations that this torch has."""
    known: dict[object, Callable[..., int]] = {
        getattr(torch.ops.aten, name): attention_flops for name in KERNELS if hasattr(torch.ops.aten, name)
    }
    for (library, name), formula in OTHERS.items():
        operations = getattr(torch.ops, library)
        if hasattr(operations, name):
            known[getattr(operations, name)] = formula
    return known


class Counter:
    """Counts the operations of a network's passes inside a ``with``; ``total`` is the sum so far.

    The counter sees every operation of torch, which costs more than a small operation itself: it is on while
    the network or its head runs, and off for the book-keeping between.
    """

    def __init__(self, model: Transformer) -> None:
        self.model, self.total = model, 0
        self._mode = FlopCounterMode(display=False, custom_mapping=formulas())

    def __enter__(self) -> Counter:
        self._hooks = [
            hook
            for module in (self.model, self.model.head)
            for hook in (
                module.register_forward_pre_hook(self._begin),
                module.register_forward_hook(self._end, always_call=True),  # also when memory runs out within
            )
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _begin(self, *_: object) -> None:
        self._mode.__enter__()

    def _end(self, *_: object) -> None:
        self._mode.__exit__(None, None, None)
        self.total += self._mode.get_total_flops()


def shares(flops: int, rows: Sequence[RowEvent]) -> list[float]:
    """What each prompt of a pass is charged: in proportion to its rows, so that all shares sum to the pass."""
    weights = [max(1, row.rows_computed) for row in rows]
    return [flops * weight / sum(weights) for weight in weights]


def answers(generation: Generation, counter: Counter | None) -> Iterator[tuple[Completion, int | None]]:
    """Each answer of a generation when the pass that ends it is done, with the operations it was charged.

    Without a counter these are None.
    """
    spent: dict[int, float] = defaultdict(float)
    before = 0
    with counter or nullcontext():
        for event in generation:
            now = counter.total if counter else 0
            for row, share in zip(event.rows, shares(now - before, event.rows), strict=True):
                spent[row.index] += share
                if row.finish_reason is not None:
                    yield generation.finished[row.index], round(spent[row.index]) if counter else None
            before = now
