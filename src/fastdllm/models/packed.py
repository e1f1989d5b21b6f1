"""Linear layers whose weights lie in oneDNN's blocked layout, laid out once.

``nn.Linear`` on a CPU hands the weight to the library as it is, and the library lays it out again at every call, or
multiplies more slowly: with a block of rows that costs as much as the product. The layout is that of the weight alone
(one that suits few rows serves many), so no other copy is kept, and the dense weight can be had back bit by bit.

Shapes: N outputs, K inputs.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fastdllm.errors import OptionError
from fastdllm.heap import give_back
from fastdllm.models.race import race
from fastdllm.models.transformer import Transformer

Layout: TypeAlias = Callable[[nn.Linear, Tensor], nn.Module]
"""What becomes of a linear layer with this weight (N, K): the same one, filled, or one that holds it differently."""

ROWS = 32
"""Rows of a pass that the layout is chosen for: a block's, as most passes have."""
LEAST = 2**19
"""Numbers in a weight from which packing can pay: products with smaller ones take less than calling for them."""
COLD = 32 * 2**20
"""Bytes of weights to be multiplied with in turns, so that none is still in a cache, as in a pass."""
GAIN = 1.05
"""How many times as fast packed products must be: a layout that wins by less is a matter of chance."""


class LaidOutLinear(nn.Module):
    """A linear layer whose weight lies in another order.

    Args:
        weight: (N, K), of which no more than its shape and dtype is kept here.
        bias: (N,), or on the meta device when it is to be filled in later.
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        (self.out_features, self.in_features), self.dtype = weight.shape, weight.dtype
        self.bias = bias

    @property
    def weight(self) -> Tensor:
        """A dense copy of the weight (N, K)."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes that the weight takes."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, dtype={self.dtype}"

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        raise OptionError(
            "packed weights cannot be moved or cast; load the model with packed=False, without compile, and with the "
            "device and dtype wanted."
        )


class PackedLinear(LaidOutLinear):
    """A linear layer with a weight in oneDNN's layout.

    Args:
        weight: (N, K) on the CPU; not kept.
        bias: (N,), or on the meta device when it is to be filled in later.
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__(weight, bias)
        self.packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
        self._multiply = torch.ops.mkldnn._linear_pointwise.default

    @property
    def weight(self) -> Tensor:
        return self.packed.to_dense()

    @property
    def nbytes(self) -> int:
        return int(torch.ops.mkldnn._nbytes(self.packed))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (..., N) of the rows ``x`` (..., K)."""
        out: Tensor = self._multiply(x, self.packed, self.bias, "none", [], "")
        return out


def pack(layer: nn.Linear, weight: Tensor) -> nn.Module:
    """The layout of ``packed=True``."""
    return PackedLinear(weight, layer.bias)


def pack_where_it_pays(layer: nn.Linear, weight: Tensor) -> nn.Module:
    """The layout of ``packed="auto"``.

    In bfloat16 whichever is faster for weights of that shape, timed when one is first seen: both give the same bits.
    In other dtypes they do not, so chance must not choose: in float32 all but small weights are packed, which paid
    wherever it was measured, in float16 none.
    """
    if weight.numel() < LEAST or weight.dtype == torch.float16:
        return fill(layer, weight)
    if weight.dtype == torch.float32:
        return pack(layer, weight)
    shape = (weight.dtype, torch.get_num_threads(), *weight.shape)
    if shape not in _pays:
        _pays[shape] = pays(weight)
    return pack(layer, weight) if _pays[shape] else fill(layer, weight)


_pays: dict[tuple[object, ...], bool] = {}


def pays(weight: Tensor) -> bool:
    """Whether products of a block's rows with a weight (N, K) are faster once it is packed.

    With the rows of a whole canvas the two were alike wherever they were measured.
    """
    dense = [weight] + [weight.clone() for _ in range(COLD // weight.nbytes - 1)]
    packed = [PackedLinear(copy, None) for copy in dense]
    rows = weight.new_ones(ROWS, weight.shape[1])
    plain, laid_out = race(lambda: [linear(rows, copy) for copy in dense], lambda: [layer(rows) for layer in packed])
    return plain > GAIN * laid_out


def fill(layer: nn.Linear, weight: Tensor) -> nn.Linear:
    """The plain layer with this weight."""
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def packs(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether weights of ``dtype`` can be packed on ``device``."""
    onednn = torch.ops.mkldnn
    if device.type != "cpu" or not torch.backends.mkldnn.is_available() or not hasattr(onednn, "_linear_pointwise"):
        return False
    halves = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    return dtype == torch.float32 or (dtype in halves and bool(getattr(onednn, halves[dtype])()))


def choose_packing(packed: bool | str, dtype: torch.dtype, device: torch.device) -> Layout | None:
    """The layout that ``packed`` stands for; None for plain layers.

    ``"auto"`` packs where it pays (:func:`pack_where_it_pays`), on x86 CPUs.

    Raises:
        OptionError: weights cannot be packed here, or ``packed`` is neither a bool nor ``"auto"``.
    """
    if packed not in (True, False, "auto"):
        raise OptionError(f"packed={packed!r} is not one of True, False, auto.")
    possible = packs(dtype, device)
    if packed == "auto":
        return pack_where_it_pays if possible and platform.machine().lower() in ("x86_64", "amd64") else None
    if packed and not possible:
        raise OptionError(
            f"packed=True needs a CPU with oneDNN and a dtype that it is fast at; "
            f"this is {str(dtype).removeprefix('torch.')} on {device}."
        )
    return pack if packed else None


def lay_out(model: Transformer, layout: Layout) -> None:
    """Give every linear layer of a network that holds its weights the ``layout``, one after another.

    A head that shares its weight with the embedding stays: packed, it would be a second copy.
    """
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and layer.weight is not model.embed.weight:
            replace_layer(model, name, layout(layer, layer.weight.detach()))


def is_packed(model: Transformer) -> bool:
    """Whether the weight of any linear layer of a network is laid out for the CPU."""
    return any(isinstance(layer, LaidOutLinear) for layer in model.modules())


def replace_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put ``layer`` where ``name`` says."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)
    give_back()
