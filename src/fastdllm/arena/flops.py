"""Floating-point operations of forward passes, counted as they run.

Counted are matrix products and attention; what is done to each element alone (norms, rotation, softmax)
is not, as is usual. Attention over slots that a mask hides is counted, and so are rows that only pad a
batch of unequal rows: the count says what the hardware did.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from fastdllm.events import RowEvent

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


def counter() -> FlopCounterMode:
    """A context that counts the operations of every pass inside it."""
    known = {getattr(torch.ops.aten, name): attention_flops for name in KERNELS if hasattr(torch.ops.aten, name)}
    return FlopCounterMode(display=False, custom_mapping=known)


def shares(flops: int, rows: Sequence[RowEvent]) -> list[float]:
    """What each prompt of a pass is charged: in proportion to its rows, so that all shares sum to the pass."""
    weights = [max(1, row.rows_computed) for row in rows]
    return [flops * weight / sum(weights) for weight in weights]
