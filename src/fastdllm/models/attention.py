"""What rows take from keys and values: two implementations, and which of them is faster on this machine.

With few rows over a long canvas neither wins everywhere: torch's fused kernel on CPUs with matrix instructions, two
plain products with a softmax between them on others. So the first pass of a shape times both, and the process
remembers. The two agree within rounding. A network with kernels of this machine has their attention, untimed: it was
the fastest of the three wherever it was measured, and so has the same bits in every run and any batch.

Shapes: B batch, H query heads, K key/value heads, G = H / K queries to a group, R rows of this pass, T canvas
length, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from fastdllm.errors import OptionError
from fastdllm.models.race import race

Mixing = Literal["auto", "sdpa", "matmul", "kernels"]
KERNELS: Mixing = "kernels"
Mix: TypeAlias = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]

MOST_ROWS = 128
"""With more rows than this, scores of every row and key take more memory than they are worth."""
LEAST_WORK = 2**24
"""Multiplications and additions below which a pass takes less than telling the two apart."""


def sdpa(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """Torch's fused attention of ``q`` (B, H, R, D) over ``k`` and ``v`` (B, K, T, D): (B, H, R, D)."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=q.shape[1] != k.shape[1])


def matmul(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """The same as two products; the queries of a group are rows of one, so that no key or value is repeated.

    Scores are computed keys first: the long side of a product is then read as it lies, and the short one reordered.
    """
    scores: Tensor = k @ _grouped(q, k).transpose(-1, -2)
    if visible is not None:
        unseen = ~visible.transpose(-1, -2)[:, :, :, None]  # (B, 1, T, 1, 1 or R)
        scores = scores.view(*scores.shape[:3], -1, q.shape[2]).masked_fill(unseen, float("-inf")).flatten(3)
    mixed: Tensor = scores.softmax(-2).transpose(-1, -2) @ v
    return mixed.view(q.shape)


def _grouped(q: Tensor, k: Tensor) -> Tensor:
    """Scaled queries (B, K, G * R, D), those of a group one after another."""
    batch, _, _, width = q.shape
    rows: Tensor = (q * width**-0.5).reshape(batch, k.shape[1], -1, width)
    return rows


def weights(q: Tensor, k: Tensor, visible: Tensor | None) -> Tensor:
    """How much each row of ``q`` (B, H, R, D) takes from each key of ``k`` (B, K, T, D): (B, K, G, R, T).

    The softmax is computed in float32 and rounded to the dtype of ``q``.
    """
    scores: Tensor = _grouped(q, k) @ k.transpose(-1, -2)
    scores = scores.view(*scores.shape[:2], -1, q.shape[2], k.shape[2])
    if visible is not None:
        scores = scores.masked_fill(~visible[:, :, None], float("-inf"))
    return scores.softmax(-1)  # of half types too torch computes it in float32


MIXES: dict[str, Mix] = {"sdpa": sdpa, "matmul": matmul}


def attend(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, mixing: Mixing = "auto", mixes: Mapping[str, Mix] = MIXES
) -> Tensor:
    """What the rows of ``q`` (B, H, R, D) take from ``k`` and ``v`` (B, K, T, D): (B, H, R, D).

    Args:
        visible: what each row may attend to, (B, 1, 1 or R, T); None when it may to all.
        mixing: a name of ``mixes``, or ``"auto"``: the kernels', or the faster one, measured where that is worth it.
        mixes: the implementations that there are for the network.
    """
    mix = _faster(q, k, v, visible, mixes) if mixing == "auto" else mixes[mixing]
    return mix(q, k, v, visible)


def check_mixing(mixing: str) -> Mixing:
    """Raises OptionError when no attention is called so."""
    for known in get_args(Mixing):
        if mixing == known:
            return known  # type: ignore[no-any-return]
    raise OptionError(f"attention={mixing!r} is not one of {', '.join(get_args(Mixing))}.")


_measured: dict[tuple[object, ...], Mix] = {}


def _faster(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, mixes: Mapping[str, Mix]) -> Mix:
    """The faster implementation for the shape; on accelerators, for compilers and training always the fused one."""
    if KERNELS in mixes:
        return mixes[KERNELS]
    if torch.compiler.is_compiling() or q.device.type != "cpu" or torch.is_grad_enabled():
        return sdpa
    batch, heads, rows, width = q.shape
    _, groups, length, _ = k.shape
    if rows > MOST_ROWS or 4 * batch * heads * rows * width * length < LEAST_WORK:
        return sdpa
    sizes = tuple(bucket(size) for size in (batch, rows, length))
    shape = (q.dtype, torch.get_num_threads(), heads, groups, width, visible is not None, *sizes)
    if shape not in _measured:
        if is_in_torch_dispatch_mode():  # someone counts operations: what is timed is not theirs, and slowed down
            return sdpa
        ways = list(mixes.values())
        seconds = race(*(partial(mix, q, k, v, visible) for mix in ways))
        _measured[shape] = ways[seconds.index(min(seconds))]
    return _measured[shape]


def bucket(size: int) -> int:
    """The power of two from ``size`` upwards: shapes that are that much alike are taken for one."""
    return 1 << (size - 1).bit_length()
