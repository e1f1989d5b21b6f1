"""A network that computes with the kernels of this machine (:mod:`fastdllm.native`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from fastdllm.kv import BoundStore
from fastdllm.models.attention import KERNELS, MIXES
from fastdllm.models.packed import LaidOutLinear, Layout, fill
from fastdllm.models.transformer import CHUNK, Angles, Block, KeyValues, RMSNorm, Transformer
from fastdllm.native.build import supports
from fastdllm.native.kernels import LANES, Kernels, kernels_for
from fastdllm.native.stack import Slots, Stack, Weights


class NativeLinear(LaidOutLinear):
    """A linear layer with its weight in panels.

    Args:
        weight: (N, K) on the CPU; not kept.
        bias: (N,), or on the meta device when it is to be filled in later.
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__(weight, bias)
        self._kernels = kernels_for(weight.dtype)
        self.panels = self._kernels.panels(weight.detach())

    @property
    def weight(self) -> Tensor:
        return self._kernels.dense(self.panels, self.out_features)

    @property
    def nbytes(self) -> int:
        return self.panels.nbytes

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (..., N) of the rows ``x`` (..., K)."""
        return self._kernels.linear(x, self.panels, self.out_features, self.bias)


class NativeNorm(RMSNorm):
    """The norm over the weight of another."""

    def __init__(self, norm: RMSNorm, kernels: Kernels) -> None:
        nn.Module.__init__(self)
        self.eps, self.weight, self._kernels = norm.eps, norm.weight, kernels

    def forward(self, x: Tensor) -> Tensor:
        return self._kernels.norm(x, self.weight, self.eps)


class NativeStack:
    """All layers of a network, each in one call of a kernel: the bits are those of the layers' parts.

    Args:
        blocks: whose linear layers, norms and rotation are those of kernels.
    """

    def __init__(self, blocks: Sequence[Block], kernels: Kernels) -> None:
        self._blocks = list(blocks)
        parts = [part for block in blocks for part in block.modules()]
        self._hooks = [hooks for part in parts for hooks in (part._forward_hooks, part._forward_pre_hooks)]
        first, layers = blocks[0], [_weights(block) for block in blocks]
        self._stack = Stack(kernels, layers, first.attention_norm.eps, first.attention.head_dim, CHUNK)

    def __call__(self, x: Tensor, angles: Angles, visible: Tensor | None, store: KeyValues | None) -> Tensor | None:
        """As :data:`fastdllm.models.transformer.LayerStack`; None where parts are watched or chosen."""
        attention = self._blocks[0].attention
        known = store is None or isinstance(store, BoundStore)
        if not known or attention.mixing not in ("auto", KERNELS) or self._watched():
            return None
        if isinstance(store, BoundStore):
            pool, places, rows, reach = store.store.pool, store.places, store.rows, store.reach
            held = Slots(keys=pool.keys, values=pool.values, places=places, slots=rows, reach=reach)
        else:
            held = self._nowhere(x, attention.k.out_features // attention.head_dim, attention.head_dim)
        return self._stack(x, held, *angles, visible)

    def _watched(self) -> bool:
        return is_in_torch_dispatch_mode() or any(self._hooks)

    def _nowhere(self, x: Tensor, groups: int, width: int) -> Slots:
        """Room for keys and values of the rows ``x`` (B, R, E), which every layer overwrites."""
        (batch, rows, _), layers = x.shape, len(self._blocks)
        keys, values = x.new_empty((2, batch, groups, rows, width))
        places, slots = (torch.arange(size, device="cpu") for size in (batch, rows))
        slots = slots.expand(batch, rows)
        return Slots(keys=[keys] * layers, values=[values] * layers, places=places, slots=slots, reach=rows)


def _weights(block: Block) -> Weights:
    attention, feed_forward = block.attention, block.feed_forward
    projections = [cast(NativeLinear, part) for part in (attention.q, attention.k, attention.v)]
    linear = (attention.out, feed_forward.gate, feed_forward.up, feed_forward.down)
    out, gate, up, down = (cast(NativeLinear, part).panels for part in linear)
    return Weights(
        attention_norm=block.attention_norm.weight, projections=[part.panels for part in projections],
        biases=[part.bias for part in projections], out=out, feed_forward_norm=block.feed_forward_norm.weight,
        gate=gate, up=up, down=down,
    )  # fmt: skip


def has_kernels(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether there are kernels for models of ``dtype`` on ``device``."""
    return device.type == "cpu" and supports(dtype)


def native_layout(dtype: torch.dtype) -> Layout:
    """The layout of ``compile=True`` on a CPU that has kernels for ``dtype``; other layers stay plain.

    Raises:
        OptionError: the kernels cannot be built.
    """
    kernels = kernels_for(dtype)

    def lay(layer: nn.Linear, weight: Tensor) -> nn.Module:
        return NativeLinear(weight, layer.bias) if kernels.fits(weight) else fill(layer, weight)

    return lay


def use_kernels(model: Transformer) -> None:
    """Let a network compute with the kernels all that they can; its linear layers are laid out already."""
    kernels, config = kernels_for(model.embed.weight.dtype), model.config
    if config.hidden_size % LANES == 0:
        model.norm = NativeNorm(model.norm, kernels)
    rotates = config.head_dim % (2 * LANES) == 0
    blocks = [cast(Block, module) for module in model.blocks]
    for block in blocks:
        if config.hidden_size % LANES == 0:
            block.attention_norm = NativeNorm(block.attention_norm, kernels)
            block.feed_forward_norm = NativeNorm(block.feed_forward_norm, kernels)
        if rotates:
            block.attention.rotate = kernels.rotate
            block.attention.mixes = {**MIXES, KERNELS: kernels.attend}
        if config.intermediate_size % LANES == 0:
            block.feed_forward.gated = kernels.gated
    linear = [part for part in model.blocks.modules() if isinstance(part, nn.Linear | LaidOutLinear)]
    if rotates and all(isinstance(part, NativeLinear) for part in linear):
        model.stack = NativeStack(blocks, kernels)


def is_native(model: Transformer) -> bool:
    """Whether any linear layer of a network is one of kernels."""
    return any(isinstance(layer, NativeLinear) for layer in model.modules())
