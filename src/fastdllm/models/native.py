"""A network that computes with the kernels of this machine (:mod:`fastdllm.native`)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from fastdllm.models.attention import KERNELS, MIXES, attend
from fastdllm.models.packed import LaidOutLinear, Layout, fill
from fastdllm.models.transformer import CHUNK, Angles, Block, KeyValues, RMSNorm, Transformer
from fastdllm.native.build import supports
from fastdllm.native.kernels import LANES, Kernels, dense, kernels_for, panels


class NativeLinear(LaidOutLinear):
    """A linear layer with its weight in panels.

    Args:
        weight: (N, K) on the CPU; not kept.
        bias: (N,), or on the meta device when it is to be filled in later.
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__(weight, bias)
        self.panels = panels(weight.detach())
        self._kernels = kernels_for(weight.dtype)

    @property
    def weight(self) -> Tensor:
        return dense(self.panels, self.out_features)

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


class NativeBlock(Block):
    """A block whose parts compute with kernels, in four calls: what it gives has the same bits as what they give."""

    def __init__(self, block: Block, kernels: Kernels) -> None:
        nn.Module.__init__(self)
        self.attention_norm, self.attention = block.attention_norm, block.attention
        self.feed_forward_norm, self.feed_forward = block.feed_forward_norm, block.feed_forward
        self._kernels = kernels

    def forward(self, x: Tensor, angles: Angles, visible: Tensor | None, layer: int, store: KeyValues | None) -> Tensor:
        if is_in_torch_dispatch_mode():  # somebody watches the parts
            return super().forward(x, angles, visible, layer, store)
        mixed = self._mixed(x, angles, visible, layer, store)
        x = self._kernels.merge(x, mixed.transpose(1, 2).flatten(2), _panels(self.attention.out), CHUNK)
        del mixed
        norm, feed_forward = self.feed_forward_norm, self.feed_forward
        gate, up, down = map(_panels, (feed_forward.gate, feed_forward.up, feed_forward.down))
        return self._kernels.feed_forward_(x, norm.weight, norm.eps, gate, up, down, CHUNK)

    def _mixed(self, x: Tensor, angles: Angles, visible: Tensor | None, layer: int, store: KeyValues | None) -> Tensor:
        """What the heads mix (B, H, R, D) for the rows ``x`` (B, R, E)."""
        attention, norm = self.attention, self.attention_norm
        projections = [cast(NativeLinear, part) for part in (attention.q, attention.k, attention.v)]
        held, biases = [part.panels for part in projections], [part.bias for part in projections]
        projected = self._kernels.project(x, norm.weight, norm.eps, held, biases, *angles, CHUNK)
        q, k, v = (part.transpose(1, 2) for part in projected)
        if store is not None:
            k, v = store.exchange(layer, k, v)
        return attend(q, k, v, visible, attention.mixing, attention.mixes)


def _panels(layer: nn.Module) -> Tensor:
    return cast(NativeLinear, layer).panels


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
    for number, module in enumerate(model.blocks):
        block = cast(Block, module)
        if config.hidden_size % LANES == 0:
            block.attention_norm = NativeNorm(block.attention_norm, kernels)
            block.feed_forward_norm = NativeNorm(block.feed_forward_norm, kernels)
        if rotates:
            block.attention.rotate = kernels.rotate
            if kernels.attends:
                block.attention.mixes = {**MIXES, KERNELS: kernels.attend}
        if config.intermediate_size % LANES == 0:
            block.feed_forward.gated = kernels.gated
        linear = [part for part in block.modules() if isinstance(part, nn.Linear | LaidOutLinear)]
        if rotates and all(isinstance(part, NativeLinear) for part in linear):
            model.blocks[number] = NativeBlock(block, kernels)


def is_native(model: Transformer) -> bool:
    """Whether any linear layer of a network is one of kernels."""
    return any(isinstance(layer, NativeLinear) for layer in model.modules())
