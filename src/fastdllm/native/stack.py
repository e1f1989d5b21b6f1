"""Layers of a network, each in one call: what Python does for them is done once for a pass.

Shapes: B batch, R rows of this pass, E model width, G key/value heads, T slots of a store, D head width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdllm.native.kernels import LONG, POINTER, Kernels, address, angles, seen


class _Layer(ctypes.Structure):
    """``Layer`` of layers.h."""

    _fields_ = [
        ("attention_norm", POINTER), ("projections", POINTER * 3), ("biases", POINTER * 3), ("out", POINTER),
        ("feed_forward_norm", POINTER), ("gate", POINTER), ("up", POINTER), ("down", POINTER),
    ]  # fmt: skip


class _Pass(ctypes.Structure):
    """``Pass`` of layers.h."""

    _fields_ = [
        *((n, LONG) for n in ("batch", "rows", "width", "heads", "groups", "head_dim", "inner", "reach", "chunk")),
        ("steps", LONG * 3), ("mask_steps", LONG * 2),
        *((name, POINTER) for name in ("places", "slots", "cos", "sin", "mask")),
        ("eps", ctypes.c_float), ("scale", ctypes.c_float), ("threads", ctypes.c_int),
    ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Those of a layer; of linear layers as :meth:`fastdllm.native.kernels.Kernels.panels`."""

    attention_norm: Tensor
    projections: Sequence[Tensor]
    """Of queries, keys and values."""
    biases: Sequence[Tensor | None]
    """Theirs."""
    out: Tensor
    feed_forward_norm: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor

    def tensors(self) -> list[Tensor]:
        linear = (*self.projections, self.out, self.gate, self.up, self.down)
        biases = [bias for bias in self.biases if bias is not None]
        return [*linear, self.attention_norm, self.feed_forward_norm, *biases]

    def check(self, kernels: Kernels, head_dim: int) -> None:
        """Refuse what the kernel would read past the end of."""
        kernels.check(*(tensor.detach() for tensor in self.tensors()))
        (width,), (q, k, v) = self.attention_norm.shape, (part.numel() for part in self.projections)
        assert q == self.out.numel() == width**2, (width, q, self.out.numel())
        assert k == v, (k, v)
        assert k % (width * head_dim) == 0 == width % head_dim, (k, width, head_dim)
        assert self.gate.numel() == self.up.numel() == self.down.numel(), (self.gate.numel(), self.down.numel())
        assert self.feed_forward_norm.shape == (width,), self.feed_forward_norm.shape
        assert all(tensor.is_contiguous() for tensor in self.tensors())
        for bias, part in zip(self.biases, self.projections, strict=True):
            assert bias is None or bias.numel() * width == part.numel(), (bias, part.numel())

    def pointers(self) -> _Layer:
        return _Layer(
            address(self.attention_norm), (POINTER * 3)(*map(address, self.projections)),
            (POINTER * 3)(*map(address, self.biases)), address(self.out), address(self.feed_forward_norm),
            address(self.gate), address(self.up), address(self.down),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Slots:
    """Where keys and values of a pass are, and the slots of its rows among them."""

    keys: Sequence[Tensor]
    """Of each layer, (P, G, T, D), all with the same strides."""
    values: Sequence[Tensor]
    places: Tensor
    """First index of each batch row, (B,)."""
    slots: Tensor
    """Of each row, (B, R)."""
    reach: int
    """Slots from here on are not read."""


class Stack:
    """Layers one after another.

    Args:
        layers: their weights. Where these lie is looked up at every pass.
        eps: of their norms.
        head_dim: D.
        chunk: rows that go through a layer at a time, but for attention.
    """

    def __init__(self, kernels: Kernels, layers: Sequence[Weights], eps: float, head_dim: int, chunk: int) -> None:
        self._kernels, self._layers, self._eps, self._head_dim, self._chunk = kernels, layers, eps, head_dim, chunk
        self._tensors = [tensor for layer in layers for tensor in layer.tensors()]
        self._known: list[int] = []
        self._pointers: list[_Layer] = []

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_known": [], "_pointers": []}  # addresses are of no copy's weights

    def __call__(self, x: Tensor, held: Slots, cos: Tensor, sin: Tensor, visible: Tensor | None) -> Tensor:
        """States (B, R, E) after the layers, from those before them; keys and values of the rows go to their slots.

        Args:
            cos: of the rows, (B, R, 1, D); ``sin`` likewise.
            visible: what a row may attend to of the slots in reach, (B, 1, 1 or R, reach); None when it may to all.
        """
        x = x.clone(memory_format=torch.contiguous_format)
        if not x.numel():
            return x
        self._check(x, held)
        batch, rows, width = x.shape
        cos, sin = angles(cos, batch, rows, self._head_dim), angles(sin, batch, rows, self._head_dim)
        places, slots, q = held.places.contiguous(), held.slots.contiguous(), torch.empty_like(x)
        mask, steps = seen(visible, batch, rows, held.reach)
        given = _Pass(
            batch, rows, width, width // self._head_dim, held.keys[0].shape[1], self._head_dim,
            self._layers[0].gate.numel() // width, held.reach, self._chunk, (LONG * 3)(*held.keys[0].stride()[:3]),
            (LONG * 2)(*steps), address(places), address(slots), address(cos), address(sin), address(mask), self._eps,
            self._head_dim**-0.5, torch.get_num_threads(),
        )  # fmt: skip
        run, shared = self._kernels.call["layer"], (address(x), address(q))
        for layer, keys, values in zip(self._found(), held.keys, held.values, strict=True):
            run(*shared, keys.data_ptr(), values.data_ptr(), ctypes.byref(layer), ctypes.byref(given))
        return x

    def _found(self) -> list[_Layer]:
        """Where the weights lie now: a parameter may have been given other memory."""
        addresses = [tensor.data_ptr() for tensor in self._tensors]
        if addresses != self._known:
            for layer in self._layers:
                layer.check(self._kernels, self._head_dim)
            self._pointers, self._known = [layer.pointers() for layer in self._layers], addresses
        return self._pointers

    def _check(self, x: Tensor, held: Slots) -> None:
        """The kernel is told addresses alone: what does not fit would be memory of somebody else's."""
        first, layer, (batch, rows, width) = held.keys[0], self._layers[0], x.shape
        self._kernels.check(x, first, held.values[0])
        _, groups, length, head_dim = first.shape
        assert head_dim == self._head_dim, (first.shape, self._head_dim)
        assert all(t.shape == first.shape and t.stride() == first.stride() for t in (*held.keys, *held.values))
        assert first.stride(-1) == 1, first.stride()
        assert first.stride(2) % 2 == 0, first.stride()  # a slot begins with a word, in bfloat16 a pair
        assert (held.places.shape, held.slots.shape) == ((batch,), (batch, rows)), (held.places.shape, held.slots.shape)
        for index, size in ((held.places, first.shape[0]), (held.slots, length)):
            assert index.dtype == torch.long, index.dtype
            assert index.is_cpu, index.device
            least, most = torch.aminmax(index)
            assert 0 <= int(least) <= int(most) < size, (index, size)
        assert 0 < held.reach <= length, (held.reach, length)
        assert layer.attention_norm.shape == (width,), (layer.attention_norm.shape, width)
        assert layer.projections[1].numel() == width * groups * head_dim, (first.shape, width)
