"""The kernels as functions of tensors.

Each is called straight through its address, which takes a few microseconds; the dispatcher would take as long as a
small kernel runs. Where somebody watches the dispatcher (to count operations, say), they go through it as the
operators ``fastdllm::linear`` and ``fastdllm::attend``.

Shapes: R rows, N outputs, K inputs; in attention B batch, H query heads, G key/value heads, T canvas length, D head
width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from fastdllm.errors import OptionError
from fastdllm.native.build import library, supports

PANEL = 32
"""Outputs and inputs of a layer must be multiples of this."""
LANES = 16
WORD = torch.int32
"""What is moved and multiplied at once: a number of float32, or a pair of bfloat16."""
POINTER, LONG = ctypes.c_void_p, ctypes.c_long
_ARGUMENTS: dict[str, list[Any]] = {
    "linear": [POINTER] * 4 + [LONG] * 3 + [ctypes.c_int],
    "norm": [POINTER] * 3 + [LONG] * 2 + [ctypes.c_float, ctypes.c_int],
    "rotate": [POINTER] * 4 + [LONG] * 3 + [ctypes.c_int],
    "gated": [POINTER] * 3 + [LONG, ctypes.c_int],
    "attend": [*[POINTER] * 6, ctypes.c_float, ctypes.c_int],
    "layer": [POINTER] * 6,
}


class _Shape(ctypes.Structure):
    """``Shape`` of attention.h."""

    _fields_ = [
        *((name, LONG) for name in ("batch", "heads", "groups", "rows", "length", "width")),
        *((name, LONG * 3) for name in ("q", "k", "v", "out")),
        ("mask", LONG * 2),
        ("places", POINTER),
    ]


class Kernels:
    """The kernels of one dtype.

    Raises:
        OptionError: this processor has none for it, or they cannot be built.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        if not supports(dtype):
            raise OptionError(f"there are no kernels for {str(dtype).removeprefix('torch.')} on this processor.")
        kernels = library(dtype)
        self.dtype, self.tiles = dtype, hasattr(kernels, "allow_tiles")
        if self.tiles and not kernels.allow_tiles():
            raise OptionError("the kernels of compile=True need AMX, which this system does not let a process use.")
        self.call = {name: _typed(kernels[f"fastdllm_{name}"], arguments) for name, arguments in _ARGUMENTS.items()}

    def __reduce__(self) -> tuple[object, ...]:
        return _again, (self.dtype, self.tiles)

    def check(self, *tensors: Tensor) -> None:
        """Refuse what the kernels would take for something else: they are told addresses alone."""
        for tensor in tensors:
            if tensor.dtype is not self.dtype or not tensor.is_cpu or tensor.requires_grad:
                self._refuse(tensor)
        if torch.is_autocast_enabled("cpu"):
            raise OptionError("kernels compute in the model's dtype: leave autocast out, or load with packed=False.")

    def _refuse(self, tensor: Tensor) -> None:
        if tensor.dtype != self.dtype or not tensor.is_cpu:
            own, other = (str(dtype).removeprefix("torch.") for dtype in (self.dtype, tensor.dtype))
            raise OptionError(
                f"kernels for {own} were given {other} on {tensor.device.type}: load the model in the dtype wanted, "
                f"with packed=False to cast or move it, and leave autocast out."
            )
        if torch.is_grad_enabled():
            raise OptionError("kernels have no backward pass: load the model with packed=False to train it.")

    def fits(self, weight: Tensor) -> bool:
        """Whether :meth:`linear` can multiply with a weight (N, K)."""
        return weight.dtype == self.dtype and all(size % PANEL == 0 for size in weight.shape)

    def panels(self, weight: Tensor) -> Tensor:
        """A weight (N, K) in the order in which a product reads it: a vector of N * K numbers."""
        outputs, words = weight.shape[0], weight.contiguous().view(WORD)
        if self.tiles:  # (panel, 32 inputs, half a panel, word, output)
            parts = words.view(outputs // 32, 2, 16, -1, 16).permute(0, 3, 1, 4, 2)
        else:  # (panel, word, output)
            parts = words.view(outputs // 32, 32, -1).transpose(1, 2)
        return parts.flatten().view(self.dtype)

    def dense(self, held: Tensor, outputs: int) -> Tensor:
        """The weight (N, K) of its :meth:`panels`."""
        words = held.view(WORD)
        if self.tiles:
            parts = words.view(outputs // 32, -1, 2, 16, 16).permute(0, 2, 4, 1, 3)
        else:
            parts = words.view(outputs // 32, -1, 32).transpose(1, 2)
        return parts.reshape(outputs, -1).contiguous().view(self.dtype)

    def linear(self, x: Tensor, held: Tensor, outputs: int, bias: Tensor | None) -> Tensor:
        """Outputs (..., N) of rows (..., K), summed in float32, from the :meth:`panels` of a weight."""
        if is_in_torch_dispatch_mode():
            found: Tensor = torch.ops.fastdllm.linear(x, held, outputs, bias)
            return found
        return self._multiplied(x, held, outputs, bias)

    def _multiplied(self, x: Tensor, held: Tensor, outputs: int, bias: Tensor | None) -> Tensor:
        self.check(x)
        x, inputs = x.contiguous(), x.shape[-1]
        assert inputs * outputs == held.numel(), (x.shape, outputs, held.numel())
        out = x.new_empty((*x.shape[:-1], outputs))
        self.call["linear"](
            x.data_ptr(), held.data_ptr(), address(bias), out.data_ptr(),
            x.numel() // inputs, outputs, inputs, torch.get_num_threads(),
        )  # fmt: skip
        return out

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        """As :func:`fastdllm.models.attention.sdpa`: weights are rounded to the dtype, sums are float32."""
        if is_in_torch_dispatch_mode():
            found: Tensor = torch.ops.fastdllm.attend(q, k, v, visible)
            return found
        return self._attended(q, k, v, visible)

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        self.check(q, k, v)
        batch, heads, rows, width = q.shape
        each = WORD.itemsize // self.dtype.itemsize  # slots must begin with a word
        q, k, v = (x if x.stride(-1) == 1 and x.stride(2) % each == 0 else x.contiguous() for x in (q, k, v))
        out = q.new_empty((batch, rows, heads, width)).transpose(1, 2)
        assert k.shape == v.shape == (batch, k.shape[1], k.shape[2], width), (q.shape, k.shape, v.shape)
        mask, steps = seen(visible, batch, rows, k.shape[2])
        shape = _Shape(
            batch, heads, k.shape[1], rows, k.shape[2], width,
            *((LONG * 3)(*tensor.stride()[:3]) for tensor in (q, k, v, out)), (LONG * 2)(*steps), None,
        )  # fmt: skip
        self.call["attend"](
            q.data_ptr(), k.data_ptr(), v.data_ptr(), address(mask), out.data_ptr(), ctypes.byref(shape),
            width**-0.5, torch.get_num_threads(),
        )  # fmt: skip
        return out

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """RMSNorm of rows (..., E) times a weight (E,), E a multiple of :data:`LANES`; computed in float32."""
        self.check(x, weight)
        x, width = x.contiguous(), x.shape[-1]
        out = torch.empty_like(x)
        assert weight.shape == (width,), (x.shape, weight.shape)
        self.call["norm"](
            x.data_ptr(), weight.data_ptr(), out.data_ptr(), x.numel() // width, width, eps, torch.get_num_threads()
        )
        return out

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """As :func:`fastdllm.models.transformer.rotate`, for x (B, R, H, D) with D a multiple of 2 * :data:`LANES`."""
        self.check(x)
        batch, rows, heads, width = x.shape
        x, cos, sin = x.contiguous(), angles(cos, batch, rows, width), angles(sin, batch, rows, width)
        out = torch.empty_like(x)
        self.call["rotate"](
            x.data_ptr(), cos.data_ptr(), sin.data_ptr(), out.data_ptr(), batch * rows, heads, width,
            torch.get_num_threads(),
        )  # fmt: skip
        return out

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """silu(gate) * up, elementwise, of a multiple of :data:`LANES` numbers."""
        self.check(gate, up)
        assert gate.shape == up.shape, (gate.shape, up.shape)
        gate, up = gate.contiguous(), up.contiguous()
        out = torch.empty_like(gate)
        self.call["gated"](gate.data_ptr(), up.data_ptr(), out.data_ptr(), out.numel(), torch.get_num_threads())
        return out


@lru_cache
def kernels_for(dtype: torch.dtype) -> Kernels:
    """The kernels of a dtype, one for the process.

    Raises:
        OptionError: as of :class:`Kernels`.
    """
    return Kernels(dtype)


def _again(dtype: torch.dtype, tiles: bool) -> Kernels:
    """The kernels of a copy, whose weights must lie as they want them."""
    kernels = kernels_for(dtype)
    if kernels.tiles != tiles:
        raise OptionError("this model's weights lie as another processor's kernels want them: load it here instead.")
    return kernels


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def seen(visible: Tensor | None, batch: int, rows: int, length: int) -> tuple[Tensor | None, tuple[int, int]]:
    """A mask (B, 1, 1 or R, T) of bytes that lie side by side, and its steps to the next batch row and row."""
    if visible is None:
        return None, (0, 0)
    assert visible.dtype == torch.bool, visible.dtype
    mask = visible.expand(batch, 1, rows if visible.shape[2] > 1 else 1, length)
    mask = mask if mask.stride(-1) == 1 else mask.contiguous()
    return mask, (mask.stride(0), mask.stride(2) if mask.shape[2] > 1 else 0)


def angles(given: Tensor, batch: int, rows: int, width: int) -> Tensor:
    """Cosines or sines (B, R, 1, D), one after another."""
    assert given.dtype == torch.float32, given.dtype
    return given.expand(batch, rows, 1, width).contiguous()


def _typed(function: Any, arguments: list[Any]) -> Callable[..., None]:
    function.argtypes, function.restype = arguments, None
    called: Callable[..., None] = function
    return called


def _linear(x: Tensor, held: Tensor, outputs: int, bias: Tensor | None) -> Tensor:
    return kernels_for(x.dtype)._multiplied(x, held, outputs, bias)


def _attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    return kernels_for(q.dtype)._attended(q, k, v, visible)


_operators = torch.library.Library("fastdllm", "FRAGMENT")
_operators.define("linear(Tensor x, Tensor held, int outputs, Tensor? bias) -> Tensor")
_operators.define("attend(Tensor q, Tensor k, Tensor v, Tensor? visible) -> Tensor")
_operators.impl("linear", _linear, "CPU")
_operators.impl("attend", _attend, "CPU")
