"""What strategies carry from pass to pass."""

from __future__ import annotations

from torch import Tensor

from fastdllm.canvas import to_device


class RowState(dict[str, Tensor]):
    """Named tensors whose first axis is the batch: strategies themselves stay constant.

    The loop makes one for the cache and one for the decoder, and takes the rows of finished prompts out.
    """

    def keep(self, batch: Tensor) -> None:
        """Drop every batch row that is not in ``batch``."""
        for name, tensor in self.items():
            self[name] = tensor[to_device(batch, tensor.device)]
