"""A network that computes with the kernels of this machine (:mod:`fastdllm.native`)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from fastdllm.models.attention import MIXES, Mixing
from fastdllm.models.packed import LaidOutLinear, Layout, fill
from fastdllm.models.transformer import Block, RMSNorm, Transformer
from fastdllm.native.build import supports
from fastdllm.native.kernels import LANES, Kernels, dense, kernels_for, panels

MIX: Mixing = "kernels"
"""What the kernels' attention is called."""


class NativeLinear(LaidOutLinear):
    """A linear layer with its weight in panels.

    Args:
        weight: (N, K) on the CPU; not kept.
        bias: (N,), or on the meta device when it is to be filled in later.
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__(weight.shape, bias)
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
    for block in map(_block, model.blocks):
        if config.hidden_size % LANES == 0:
            block.attention_norm = NativeNorm(block.attention_norm, kernels)
            block.feed_forward_norm = NativeNorm(block.feed_forward_norm, kernels)
        if config.head_dim % (2 * LANES) == 0:
            block.attention.rotate = kernels.rotate
            if kernels.attends:
                block.attention.mixes = {**MIXES, MIX: kernels.attend}
        if config.intermediate_size % LANES == 0:
            block.feed_forward.gated = kernels.gated


def is_native(model: Transformer) -> bool:
    """Whether any linear layer of a network is one of kernels."""
    return any(isinstance(layer, NativeLinear) for layer in model.modules())


def _block(block: nn.Module) -> Block:
    return cast(Block, block)
