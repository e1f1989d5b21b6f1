"""The kernels as functions of tensors.

Each is called straight through its address, which takes a few microseconds; the dispatcher would take as long as a
small kernel runs. Where somebody watches the dispatcher (to count operations, say), they go through it as the
operators ``fastdllm::linear`` and ``fastdllm::attend``.

Shapes: R rows, N outputs, K inputs; in attention B batch, H query heads, G key/value heads, T canvas length, D head
width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
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
SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}
_POINTER, _LONG = ctypes.c_void_p, ctypes.c_long
_ARGUMENTS: dict[str, list[Any]] = {
    "linear": [_POINTER] * 4 + [_LONG] * 3 + [ctypes.c_int],
    "norm": [_POINTER] * 3 + [_LONG] * 2 + [ctypes.c_float, ctypes.c_int],
    "rotate": [_POINTER] * 4 + [_LONG] * 3 + [ctypes.c_int],
    "gated": [_POINTER] * 3 + [_LONG, ctypes.c_int],
    "project": [_POINTER] * 13 + [_LONG] * 5 + [ctypes.c_float, ctypes.c_int],
    "merge": [_POINTER] * 4 + [_LONG] * 4 + [ctypes.c_int],
    "feed_forward": [_POINTER] * 5 + [_LONG] * 4 + [ctypes.c_float, ctypes.c_int],
}


class _Shape(ctypes.Structure):
    """``Shape`` of attention.h."""

    _fields_ = [
        *((name, _LONG) for name in ("batch", "heads", "groups", "rows", "length", "width")),
        *((name, _LONG * 3) for name in ("q", "k", "v", "out")),
        ("mask", _LONG * 2),
    ]


def panels(weight: Tensor) -> Tensor:
    """A weight (N, K) in the order in which a product reads it: a vector of N * K numbers."""
    outputs, inputs = weight.shape
    if weight.dtype == torch.bfloat16:  # (panel, 32 inputs, half a panel, pair of inputs, output, one of the pair)
        parts = weight.view(outputs // 32, 2, 16, inputs // 32, 16, 2).permute(0, 3, 1, 4, 2, 5)
    else:
        parts = weight.view(outputs // 32, 32, inputs).transpose(1, 2)
    return parts.flatten()


def dense(held: Tensor, outputs: int) -> Tensor:
    """The weight (N, K) of its panels."""
    inputs = held.numel() // outputs
    if held.dtype == torch.bfloat16:
        parts = held.view(outputs // 32, inputs // 32, 2, 16, 16, 2).permute(0, 2, 4, 1, 3, 5)
    else:
        parts = held.view(outputs // 32, inputs, 32).transpose(1, 2)
    return parts.reshape(outputs, inputs)


class Kernels:
    """The kernels of one dtype.

    Raises:
        OptionError: this processor has none for it, or they cannot be built.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        if not supports(dtype):
            raise OptionError(f"there are no kernels for {str(dtype).removeprefix('torch.')} on this processor.")
        kernels = library()
        if dtype == torch.bfloat16 and not hasattr(kernels, "allow_tiles"):
            raise OptionError("the kernels of compile=True need a compiler that knows AMX, such as g++ 11.")
        if dtype == torch.bfloat16 and not kernels.allow_tiles():
            raise OptionError("the kernels of compile=True need AMX, which this system does not let a process use.")
        self.dtype = dtype
        self._call = {
            name: _typed(kernels[f"{name}_{SUFFIX[dtype]}"], arguments) for name, arguments in _ARGUMENTS.items()
        }
        self._attend: Callable[..., None] | None = None
        if dtype == torch.bfloat16:
            arguments = [*[_POINTER] * 5, ctypes.POINTER(_Shape), ctypes.c_float, ctypes.c_int]
            self._attend = _typed(kernels.attend_bf16, arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return kernels_for, (self.dtype,)

    def _check(self, *tensors: Tensor) -> None:
        """Refuse what the kernels would take for something else: they are told addresses alone."""
        for tensor in tensors:
            if tensor.dtype is not self.dtype or not tensor.is_cpu or tensor.requires_grad:
                self._refuse(tensor)

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

    def linear(self, x: Tensor, held: Tensor, outputs: int, bias: Tensor | None) -> Tensor:
        """Outputs (..., N) of rows (..., K), summed in float32, from the :func:`panels` of a weight."""
        if is_in_torch_dispatch_mode():
            seen: Tensor = torch.ops.fastdllm.linear(x, held, outputs, bias)
            return seen
        return self._multiplied(x, held, outputs, bias)

    def _multiplied(self, x: Tensor, held: Tensor, outputs: int, bias: Tensor | None) -> Tensor:
        self._check(x)
        x, inputs = x.contiguous(), x.shape[-1]
        assert inputs * outputs == held.numel(), (x.shape, outputs, held.numel())
        out = x.new_empty((*x.shape[:-1], outputs))
        self._call["linear"](
            x.data_ptr(), held.data_ptr(), None if bias is None else bias.data_ptr(), out.data_ptr(),
            x.numel() // inputs, outputs, inputs, torch.get_num_threads(),
        )  # fmt: skip
        return out

    @property
    def attends(self) -> bool:
        """Whether there is an :meth:`attend`, for heads that are a multiple of :data:`PANEL` wide."""
        return self._attend is not None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        """As :func:`fastdllm.models.attention.sdpa`: weights are rounded to bfloat16, sums are float32."""
        if is_in_torch_dispatch_mode():
            seen: Tensor = torch.ops.fastdllm.attend(q, k, v, visible)
            return seen
        return self._attended(q, k, v, visible)

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        self._check(q, k, v)
        batch, heads, rows, width = q.shape
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        out = q.new_empty((batch, rows, heads, width)).transpose(1, 2)
        assert k.shape == v.shape == (batch, k.shape[1], k.shape[2], width), (q.shape, k.shape, v.shape)
        mask = None if visible is None else _seen(visible, batch, rows, k.shape[2])
        steps = (0, 0) if mask is None else (mask.stride(0), mask.stride(2) if mask.shape[2] > 1 else 0)
        shape = _Shape(
            batch, heads, k.shape[1], rows, k.shape[2], width,
            *((_LONG * 3)(*tensor.stride()[:3]) for tensor in (q, k, v, out)), (_LONG * 2)(*steps),
        )  # fmt: skip
        assert self._attend is not None
        self._attend(
            q.data_ptr(), k.data_ptr(), v.data_ptr(), None if mask is None else mask.data_ptr(), out.data_ptr(),
            shape, width**-0.5, torch.get_num_threads(),
        )  # fmt: skip
        return out

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """RMSNorm of rows (..., E) times a weight (E,), E a multiple of :data:`LANES`; computed in float32."""
        self._check(x, weight)
        x, width = x.contiguous(), x.shape[-1]
        out = torch.empty_like(x)
        assert weight.shape == (width,), (x.shape, weight.shape)
        self._call["norm"](
            x.data_ptr(), weight.data_ptr(), out.data_ptr(), x.numel() // width, width, eps, torch.get_num_threads()
        )
        return out

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """As :func:`fastdllm.models.transformer.rotate`, for x (B, R, H, D) with D a multiple of 2 * :data:`LANES`."""
        self._check(x)
        batch, rows, heads, width = x.shape
        x, cos, sin = x.contiguous(), _angles(cos, batch, rows, width), _angles(sin, batch, rows, width)
        out = torch.empty_like(x)
        self._call["rotate"](
            x.data_ptr(), cos.data_ptr(), sin.data_ptr(), out.data_ptr(), batch * rows, heads, width,
            torch.get_num_threads(),
        )  # fmt: skip
        return out

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """silu(gate) * up, elementwise, of a multiple of :data:`LANES` numbers."""
        self._check(gate, up)
        assert gate.shape == up.shape, (gate.shape, up.shape)
        gate, up = gate.contiguous(), up.contiguous()
        out = torch.empty_like(gate)
        self._call["gated"](gate.data_ptr(), up.data_ptr(), out.data_ptr(), out.numel(), torch.get_num_threads())
        return out

    def project(
        self, x: Tensor, norm: Tensor, eps: float, weights: Sequence[Tensor], biases: Sequence[Tensor | None],
        cos: Tensor, sin: Tensor, chunk: int,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Queries (B, R, H, D), keys and values (B, R, G, D) of the norm of ``x`` (B, R, E); the first two rotated.

        Args:
            weights: :func:`panels` of the three projections.
            biases: theirs.
            chunk: rows that go through it at a time.
        """
        self._check(x, norm)
        (batch, rows, width), head_dim = x.shape, cos.shape[-1]
        x, cos, sin = x.contiguous(), _angles(cos, batch, rows, head_dim), _angles(sin, batch, rows, head_dim)
        assert weights[0].numel() == width**2, (x.shape, weights[0].numel())
        kv_width = weights[1].numel() // width
        q = x.new_empty((batch, rows, width // head_dim, head_dim))
        k, v = (x.new_empty((batch, rows, kv_width // head_dim, head_dim)) for _ in range(2))
        self._call["project"](
            x.data_ptr(), norm.data_ptr(), *(weight.data_ptr() for weight in weights),
            *(None if bias is None else bias.data_ptr() for bias in biases), cos.data_ptr(), sin.data_ptr(),
            q.data_ptr(), k.data_ptr(), v.data_ptr(), batch * rows, width, kv_width, head_dim, chunk, eps,
            torch.get_num_threads(),
        )  # fmt: skip
        return q, k, v

    def merge(self, x: Tensor, mixed: Tensor, held: Tensor, chunk: int) -> Tensor:
        """``x`` (B, R, E) plus the product of ``mixed`` (B, R, K), ``chunk`` rows at a time, with :func:`panels`."""
        self._check(x, mixed)
        x, mixed = x.contiguous(), mixed.contiguous()
        assert mixed.shape[:-1] == x.shape[:-1], (x.shape, mixed.shape)
        assert mixed.shape[-1] * x.shape[-1] == held.numel(), (x.shape, mixed.shape, held.numel())
        out, width, inputs = torch.empty_like(x), x.shape[-1], mixed.shape[-1]
        self._call["merge"](
            x.data_ptr(), mixed.data_ptr(), held.data_ptr(), out.data_ptr(), x.numel() // width, width, inputs, chunk,
            torch.get_num_threads(),
        )  # fmt: skip
        return out

    def feed_forward_(
        self, x: Tensor, norm: Tensor, eps: float, gate: Tensor, up: Tensor, down: Tensor, chunk: int
    ) -> Tensor:
        """``x`` (B, R, E) after the feed-forward of its norm is added to it; weights in :func:`panels`.

        Args:
            chunk: rows that go through it at a time.
        """
        self._check(x, norm)
        assert gate.numel() == up.numel() == down.numel(), (gate.numel(), up.numel(), down.numel())
        assert x.is_contiguous(), x.stride()
        width = x.shape[-1]
        self._call["feed_forward"](
            x.data_ptr(), norm.data_ptr(), gate.data_ptr(), up.data_ptr(), down.data_ptr(), x.numel() // width, width,
            gate.numel() // width, chunk, eps, torch.get_num_threads(),
        )  # fmt: skip
        return x


@lru_cache
def kernels_for(dtype: torch.dtype) -> Kernels:
    """The kernels of a dtype, one for the process.

    Raises:
        OptionError: as of :class:`Kernels`.
    """
    return Kernels(dtype)


def _seen(visible: Tensor, batch: int, rows: int, length: int) -> Tensor:
    """A mask (B, 1, 1 or R, T) of bytes that lie side by side."""
    assert visible.dtype == torch.bool, visible.dtype
    mask = visible.expand(batch, 1, rows if visible.shape[2] > 1 else 1, length)
    return mask if mask.stride(-1) == 1 else mask.contiguous()


def _angles(given: Tensor, batch: int, rows: int, width: int) -> Tensor:
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
