"""What strategies carry from pass to pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastdllm.canvas import to_device

FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class Size:
    """What the memory of a strategy depends on; counts, and ``itemsize`` bytes of a number in the model's dtype."""

    batch: int
    length: int
    """Of the canvas: prompt and answer."""
    gen_length: int
    block_length: int
    layers: int
    heads: int
    """Query heads of one process."""
    width: int
    vocabulary: int
    itemsize: int


class RowState(dict[str, Tensor]):
    """Named tensors whose first axis is the batch: strategies themselves stay constant.

    The loop makes one for the cache and one for the decoder, and takes the rows of finished prompts out.
    """

    def keep(self, batch: Tensor) -> None:
        """Drop every batch row that is not in ``batch``."""
        for name, tensor in self.items():
            self[name] = tensor[to_device(batch, tensor.device)]

    def alike(self, other: RowState) -> bool:
        """Whether both hold the same names in the same shapes, but for the batch."""
        return self.keys() == other.keys() and all(
            tensor.shape[1:] == other[name].shape[1:] and tensor.dtype == other[name].dtype
            for name, tensor in self.items()
        )

    def join(self, other: RowState) -> None:
        """Take over the rows of a state that is :meth:`alike`."""
        for name, tensor in self.items():
            self[name] = torch.cat((tensor, other[name]))
