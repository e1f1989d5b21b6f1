"""Linear layers in 8 bits: weights rounded at load, rows as they come (w8a8, dynamic).

Both are symmetric: a weight has a scale for each output, a row one of its own, so that what a prompt gets does not
depend on its neighbours (LLM.int8(), arXiv 2208.07339, section 2.1, calls it vector-wise). On CPUs it is oneDNN's
product of packed weights, on GPUs torchao's.

oneDNN takes rows as unsigned bytes with 128 for zero: every CPU with int8 instructions has a kernel for these. For
signed ones a layout that was packed for unsigned falls back to plain loops on CPUs without matrix instructions, ten
thousand times slower.

Shapes: R rows, N outputs, K inputs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastdllm.errors import OptionError
from fastdllm.models.packed import Layout, fill

CAPABILITIES = {"int8": (8, 0), "float8": (8, 9)}
"""What weights can be rounded to, and the first GPUs that multiply it."""
MULTIPLE = 16
"""Of inputs and outputs that GPUs multiply in 8 bits; other layers stay as they are."""
LARGEST = 127
LARGEST_OF_ROWS = 126
"""One less, as the scale of a row is itself rounded, to the dtype of the row."""
ZERO = 128
PIECE = 2**22
"""Numbers of a weight that are rounded at a time."""
SMALLEST = 1e-12
"""Of a scale: what is all zeros divides by it."""


class Rows:
    """Rounds rows to bytes. A layer's products share their rows: what was just rounded is not rounded again."""

    def __init__(self) -> None:
        self._last: tuple[weakref.ref[Tensor], tuple[Tensor, Tensor]] | None = None

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Bytes (R, K) of the rows ``x`` (..., K), and their scales (R, 1) in the same dtype."""
        last = self._last
        if last is None or last[0]() is not x:
            last = self._last = weakref.ref(x), round_rows(x.flatten(0, -2))
        return last[1]


def round_rows(x_RK: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes (R, K) that are ``ZERO`` for 0, and scales (R, 1)."""
    scale = x_RK.abs().amax(-1, keepdim=True).div_(LARGEST_OF_ROWS).clamp_(min=SMALLEST)
    turned = x_RK.to(torch.float32, copy=True).mul_(scale.float().reciprocal()).add_(ZERO + 0.5)
    return turned.to(torch.uint8), scale  # to whole numbers towards zero, which with the half added is to the nearest


def round_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Signed bytes (N, K) and scales (N,) of a weight (N, K)."""
    rounded = torch.empty(weight.shape, dtype=torch.int8)
    scale = torch.empty(len(weight))
    step = max(1, PIECE // weight.shape[1])
    for part, own, to in zip(weight.split(step), scale.split(step), rounded.split(step), strict=True):
        own.copy_(part.abs().amax(1).float().div_(LARGEST).clamp_(min=SMALLEST))
        to.copy_((part.float() / own[:, None]).round_())
    return rounded, scale


class Int8Linear(nn.Module):
    """A linear layer on the CPU with a weight of bytes.

    Args:
        weight: (N, K) in a float dtype; not kept.
        bias: (N,), or on the meta device when it is to be filled in later.
        rows: rounds the rows; one for all layers of a network.
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, rows: Rows) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        rounded, self.scale = round_weight(weight.detach())
        self.packed: Tensor = torch.ops.onednn.qlinear_prepack(rounded, None)
        self.zeros = torch.zeros(self.out_features, dtype=torch.int32)
        self.bias, self.rows = bias, rows
        self._multiply = torch.ops.onednn.qlinear_pointwise.default

    @property
    def nbytes(self) -> int:
        """Bytes that the packed weight and its scales take."""
        return int(torch.ops.mkldnn._nbytes(self.packed)) + self.scale.nbytes + self.zeros.nbytes

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (..., N) of the rows ``x`` (..., K), in their dtype."""
        rows, scale = self.rows(x)
        out: Tensor = self._multiply(
            rows, 1.0, ZERO, self.packed, self.scale, self.zeros, None, 1.0, 0, x.dtype, "none", [], ""
        )
        out = out.mul_(scale)
        if self.bias is not None:
            out = out.add_(self.bias)
        return out.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        raise OptionError("the weights of an int8 model were rounded at load; load it in a float dtype to save it.")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        raise OptionError("an int8 model cannot be moved or cast; load it with the device and dtype wanted.")


def int8_layout() -> Layout:
    """The layout of ``dtype="int8"`` on CPUs.

    Raises:
        OptionError: torch comes without the products.
    """
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_pointwise")):
        raise OptionError("dtype='int8' on a CPU needs a torch with oneDNN.")
    rows = Rows()
    return lambda linear, weight: Int8Linear(weight, linear.bias, rows)


def torchao_layout(kind: str, device: torch.device) -> Layout:
    """The layout of ``dtype="int8"`` and ``"float8"`` on GPUs: torchao's, with a scale for each row and output.

    It halves the weights' memory. It is made for compiled networks: launched one by one its many small kernels take
    several times as long as the products in bfloat16.

    Raises:
        OptionError: torchao is missing, or the GPU has no such products.
    """
    least = CAPABILITIES[kind]
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < least:
        have = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        raise OptionError(f"dtype={kind!r} needs a GPU of compute capability {least[0]}.{least[1]}; this is {have}.")
    try:
        from torchao.quantization import (
            Float8DynamicActivationFloat8WeightConfig,
            Int8DynamicActivationInt8WeightConfig,
            PerRow,
            quantize_,
        )
    except ImportError:
        raise OptionError(f"dtype={kind!r} on a GPU needs torchao: pip install 'fastdllm[quant]'.") from None
    config = (
        Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
        if kind == "int8"
        else Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)
    )

    def lay(linear: nn.Linear, weight: Tensor) -> nn.Module:
        filled = fill(linear, weight)
        if not any(size % MULTIPLE for size in weight.shape):
            quantize_(filled, config)
        return filled

    return lay


def quantization(dtype: object) -> str | None:
    """The kind of weights that a dtype asked for stands for, a key of :data:`CAPABILITIES`; None for a float's."""
    names = {torch.int8: "int8", torch.float8_e4m3fn: "float8"}
    kind = names.get(dtype, dtype) if isinstance(dtype, torch.dtype) else dtype
    return str(kind) if kind in CAPABILITIES else None
