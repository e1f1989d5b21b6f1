"""Key/value storage. It stores; cache policies decide.

Shapes: L layers, B batch, H key/value heads, T canvas length, D head width, N batch rows and R rows of a pass.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from fastdllm.canvas import to_device

Batch: TypeAlias = "Tensor | slice"
"""Batch rows (N,) of a store."""
Rows: TypeAlias = "Tensor | slice"
"""Slots (N, R) of a pass, or those that all its batch rows have: a slice is written many times as fast."""


class KVStore:
    """Preallocated keys (after RoPE) and values of every layer and canvas slot.

    Slot T is a spare: rows that only pad a ragged pass are written there and never read.
    """

    def __init__(
        self, layers: int, batch: int, heads: int, length: int, width: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (batch, heads, length + 1, width)
        self.length = length
        self._keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self._values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self._base: KVStore | None = None

    @property
    def base(self) -> KVStore:
        """The store whose memory this one uses: itself, or what :meth:`again` was asked of."""
        return self if self._base is None else self._base

    def again(self) -> KVStore:
        """The same memory, with all its batch rows, as another store; whatever it holds is not meant for it."""
        other = copy.copy(self)
        other._keys, other._values, other._base = list(self._keys), list(self._values), self.base
        return other

    @property
    def nbytes(self) -> int:
        """Bytes held by keys and values together."""
        return sum(tensor.nbytes for tensor in (*self._keys, *self._values))

    @property
    def keys(self) -> Sequence[Tensor]:
        """Of each layer, (B, H, T + 1, D): the last slot is the spare."""
        return self._keys

    @property
    def values(self) -> Sequence[Tensor]:
        """As :attr:`keys`."""
        return self._values

    @property
    def layers(self) -> int:
        return len(self._keys)

    @property
    def batch(self) -> int:
        return self._keys[0].shape[0]

    @property
    def device(self) -> torch.device:
        return self._keys[0].device

    @property
    def pool(self) -> KVStore:
        """The store that holds the numbers: itself."""
        return self

    def places(self, batch: Tensor) -> Tensor:
        """Batch rows of the pool behind the batch rows ``batch`` (N,), on the host: the same."""
        return batch

    def lease(self, rows: Sequence[int]) -> Lease:
        """Some of its batch rows as a store of their own."""
        return Lease(self, rows)

    def bind(self, batch: Tensor, rows: Tensor, reach: int, span: slice | None = None) -> BoundStore:
        """The store as one pass sees it that computes ``rows`` (N, R) of the batch rows ``batch`` (N,), on the host.

        Args:
            reach: slots from here on are not read.
            span: the rows as a slice, where they are known to be the same for all and to follow one another.
        """
        return bind(self, batch, rows, reach, span)

    def write(self, layer: int, batch: Batch, rows: Rows, keys: Tensor, values: Tensor) -> None:
        """Overwrite slots ``rows`` (N, R) of batch rows ``batch`` (N,) with ``keys``/``values`` (N, H, R, D)."""
        self.write_keys(layer, batch, rows, keys)
        self.write_values(layer, batch, rows, values)

    def write_keys(self, layer: int, batch: Batch, rows: Rows, keys: Tensor) -> None:
        _write(self._keys[layer], batch, rows, keys)

    def write_values(self, layer: int, batch: Batch, rows: Rows, values: Tensor) -> None:
        _write(self._values[layer], batch, rows, values)

    def read(self, layer: int, batch: Batch, reach: int) -> tuple[Tensor, Tensor]:
        """Keys and values (N, H, reach, D) of the batch rows ``batch`` (N,): a view of those of a slice."""
        keys, values = self.of_layer(layer, batch)
        return keys[:, :, :reach], values[:, :, :reach]

    def of_layer(self, layer: int, batch: Batch) -> tuple[Tensor, Tensor]:
        """Keys and values (N, H, T + 1, D) of the batch rows ``batch`` (N,), the spare slot included."""
        return self._keys[layer][batch], self._values[layer][batch]

    def keep(self, batch: Sequence[int]) -> None:
        """Drop every batch row that is not in ``batch`` (ascending). Rows move up in place: no second store is made."""
        for held in (self._keys, self._values):
            for layer, tensor in enumerate(held):
                for to, row in enumerate(batch):
                    if to != row:
                        tensor[to] = tensor[row]
                held[layer] = tensor[: len(batch)]

    def clear(self, batch: Sequence[int]) -> None:
        """Forget the batch rows ``batch``: what is not a number would spread to those who only look past it."""
        for tensor in (*self._keys, *self._values):
            for row in batch:
                tensor[row] = 0


class Lease:
    """Some batch rows of a pool that others use, too; to its holder they are rows 0, 1, ... of a store.

    Args:
        rows: batch rows of the pool.
    """

    def __init__(self, pool: KVStore, rows: Sequence[int]) -> None:
        self.pool, self.length, self.layers, self.device = pool, pool.length, pool.layers, pool.device
        self._set(torch.tensor(list(rows), dtype=torch.long))

    def _set(self, rows: Tensor) -> None:
        self._rows = rows
        self._on_device = to_device(rows, self.device)

    @property
    def batch(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> list[int]:
        """Batch rows of the pool that it holds."""
        return [int(row) for row in self._rows]

    def places(self, batch: Tensor) -> Tensor:
        """Batch rows of the pool behind the batch rows ``batch`` (N,), on the host."""
        return self._rows[batch]

    def bind(self, batch: Tensor, rows: Tensor, reach: int, span: slice | None = None) -> BoundStore:
        """As :meth:`KVStore.bind`."""
        return bind(self, batch, rows, reach, span)

    def write(self, layer: int, batch: Batch, rows: Rows, keys: Tensor, values: Tensor) -> None:
        self.pool.write(layer, self._on_device[batch], rows, keys, values)

    def write_keys(self, layer: int, batch: Batch, rows: Rows, keys: Tensor) -> None:
        self.pool.write_keys(layer, self._on_device[batch], rows, keys)

    def write_values(self, layer: int, batch: Batch, rows: Rows, values: Tensor) -> None:
        self.pool.write_values(layer, self._on_device[batch], rows, values)

    def read(self, layer: int, batch: Batch, reach: int) -> tuple[Tensor, Tensor]:
        return self.pool.read(layer, self._on_device[batch], reach)

    def clear(self, batch: Sequence[int]) -> None:
        self.pool.clear([self.rows[row] for row in batch])

    def keep(self, batch: Sequence[int]) -> None:
        """Give back every batch row that is not in ``batch``."""
        self._set(self._rows[torch.tensor(batch, dtype=torch.long)])

    def join(self, other: Lease) -> None:
        """Take over the rows of another lease of the same pool."""
        self._set(torch.cat((self._rows, other._rows)))


def _write(held: Tensor, batch: Batch, rows: Rows, fresh: Tensor) -> None:
    """Overwrite slots ``rows`` of ``held`` (B, H, T + 1, D) with ``fresh`` (N, H, R, D)."""
    if isinstance(rows, slice):
        held[batch, :, rows] = fresh
    else:
        assert isinstance(batch, Tensor)
        held[batch[:, None], :, rows] = fresh.transpose(1, 2)


Store: TypeAlias = KVStore | Lease


@dataclass(frozen=True)
class BoundStore:
    """What attention needs of a store in one pass: hand in fresh keys and values, get those of the whole canvas."""

    store: Store
    batch: Tensor
    """Batch rows (N,), on the device."""
    rows: Tensor
    reach: int
    where: Batch
    """The same batch rows, a slice where they follow one another."""
    span: slice | None
    """The rows as a slice, where they are known to be one."""
    places: Tensor
    """Batch rows of the pool behind them, on the host."""

    def exchange(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write ``keys``/``values`` (N, H, R, D) to the pass's rows; return all slots in reach (N, H, reach, D)."""
        if self.span is None:
            self.store.write(layer, self.batch, self.rows, keys, values)
        else:
            self.store.write(layer, self.where, self.span, keys, values)
        return self.store.read(layer, self.where, self.reach)


def bind(store: Store, batch: Tensor, rows: Tensor, reach: int, span: slice | None) -> BoundStore:
    where, on_device = as_slice(batch), to_device(batch, rows.device)
    return BoundStore(
        store=store, batch=on_device, rows=rows, reach=reach, where=on_device if where is None else where, span=span,
        places=store.places(batch),
    )  # fmt: skip


def common_slice(rows: Tensor) -> slice | None:
    """What the slots ``rows`` (N, R), on the host, are where they are the same for all and follow one another."""
    return as_slice(rows[0]) if bool((rows == rows[0]).all()) else None


def as_slice(numbers: Tensor) -> slice | None:
    """Numbers (N,), on the host, as a slice where they follow one another."""
    first, count = int(numbers[0]), len(numbers)
    follow = torch.equal(numbers, torch.arange(first, first + count))
    return slice(first, first + count) if follow else None


@dataclass(frozen=True)
class ShadowStore:
    """What rows see that are in no canvas: every slot in reach, as the last pass left it, and one another."""

    store: Store
    batch: Tensor
    reach: int

    def exchange(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (N, H, reach + R, D): the stored ones, then those given (N, H, R, D), which are not kept."""
        held = self.store.read(layer, self.batch, self.reach)
        return torch.cat((held[0], keys), dim=2), torch.cat((held[1], values), dim=2)
