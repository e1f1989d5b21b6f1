"""Key/value storage. It stores; cache policies decide.

Shapes: L layers, B batch, H key/value heads, T canvas length, D head width, R rows of a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class KVStore:
    """Preallocated keys (after RoPE) and values of every layer and canvas slot.

    Slot T is a spare: rows that only pad a ragged pass are written there and never read.
    """

    def __init__(
        self, layers: int, batch: int, heads: int, length: int, width: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (layers, batch, heads, length + 1, width)
        self.length = length
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes held by keys and values together."""
        return self._keys.nbytes + self._values.nbytes

    def bind(self, batch: Tensor, rows: Tensor, reach: int) -> BoundStore:
        """The store as one pass sees it that computes ``rows`` (N, R) of the batch rows ``batch`` (N,).

        Args:
            reach: slots from here on are not read.
        """
        return BoundStore(self, batch, rows, reach)

    @property
    def layers(self) -> int:
        return self._keys.shape[0]

    @property
    def batch(self) -> int:
        return self._keys.shape[1]

    def write(self, layer: int, batch: Tensor, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Overwrite slots ``rows`` (N, R) of batch rows ``batch`` (N,) with ``keys``/``values`` (N, H, R, D)."""
        self.write_keys(layer, batch, rows, keys)
        self.write_values(layer, batch, rows, values)

    def write_keys(self, layer: int, batch: Tensor, rows: Tensor, keys: Tensor) -> None:
        self._keys[layer][batch[:, None], :, rows] = keys.transpose(1, 2)

    def write_values(self, layer: int, batch: Tensor, rows: Tensor, values: Tensor) -> None:
        self._values[layer][batch[:, None], :, rows] = values.transpose(1, 2)

    def read(self, layer: int, batch: Tensor, reach: int) -> tuple[Tensor, Tensor]:
        """Keys and values (N, H, reach, D) of the batch rows ``batch`` (N,); a view when that is all of them."""
        keys, values = self._keys[layer], self._values[layer]
        if len(batch) != keys.shape[0]:
            keys, values = keys[batch], values[batch]
        return keys[:, :, :reach], values[:, :, :reach]

    def keep(self, batch: Sequence[int]) -> None:
        """Drop every batch row that is not in ``batch`` (ascending). Rows move up in place: no second store is made."""
        for to, row in enumerate(batch):
            if to != row:
                self._keys[:, to], self._values[:, to] = self._keys[:, row], self._values[:, row]
        self._keys, self._values = self._keys[:, : len(batch)], self._values[:, : len(batch)]


@dataclass(frozen=True)
class BoundStore:
    """What attention needs of a store in one pass: hand in fresh keys and values, get those of the whole canvas."""

    store: KVStore
    batch: Tensor
    rows: Tensor
    reach: int

    def exchange(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write ``keys``/``values`` (N, H, R, D) to the pass's rows; return all slots in reach (N, H, reach, D)."""
        self.store.write(layer, self.batch, self.rows, keys, values)
        return self.store.read(layer, self.batch, self.reach)


@dataclass(frozen=True)
class ShadowStore:
    """What rows see that are in no canvas: every slot in reach, as the last pass left it, and one another."""

    store: KVStore
    batch: Tensor
    reach: int

    def exchange(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (N, H, reach + R, D): the stored ones, then those given (N, H, R, D), which are not kept."""
        held = self.store.read(layer, self.batch, self.reach)
        return torch.cat((held[0], keys), dim=2), torch.cat((held[1], values), dim=2)
