"""What a pass must do at the least: floating-point operations and bytes, from the shape of the model and the pass.

Counted are matrix products and attention, as :mod:`fastdllm.arena.flops` counts them while they run; a test holds
the two together. Bytes are those that no implementation can avoid moving: every weight that takes part is read
once, keys and values in reach are read once in each layer, those of the rows are written, and so are the logits.
What layers hand to one another could stay in cache, and is not counted.

Shapes: B batch, R rows of each batch row, T slots in reach, M slots predicted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from fastdllm.memory import weight_bytes
from fastdllm.models.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Work:
    """The rows of a pass; all batch rows alike."""

    batch: int
    rows: int
    reach: int
    slots: int
    stores: bool = True
    """Whether keys and values outlive it."""


@dataclass(frozen=True, kw_only=True)
class Product:
    """A matrix product with a weight: (rows, inner) by (inner, outer), ``count`` times in a pass."""

    name: str
    rows: int
    inner: int
    outer: int
    count: int

    @property
    def flops(self) -> int:
        """Of one."""
        return 2 * self.rows * self.inner * self.outer


@dataclass(frozen=True, kw_only=True)
class Cost:
    """FLOPs and bytes of a pass by their origin."""

    flops: dict[str, int]
    bytes: dict[str, int]

    @property
    def total_flops(self) -> int:
        return sum(self.flops.values())

    @property
    def total_bytes(self) -> int:
        return sum(self.bytes.values())

    def as_json(self) -> dict[str, object]:
        return {
            "flops": {"total": self.total_flops, **self.flops},
            "bytes": {"total": self.total_bytes, **self.bytes},
        }


def products(config: ModelConfig, work: Work) -> list[Product]:
    """The products with weights of a pass, those of one shape together."""
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_layers
    kv_width, rows = config.num_kv_heads * config.head_dim, work.batch * work.rows
    names = {"query": (width, width), "key": (width, kv_width), "value": (width, kv_width), "out": (width, width)}
    names |= {"gate": (width, inner), "up": (width, inner), "down": (inner, width)}
    counts = Counter(names.values())
    of_layers = [
        Product(
            name="/".join(name for name, of in names.items() if of == shape),
            rows=rows, inner=shape[0], outer=shape[1], count=count * layers,
        )
        for shape, count in counts.items()
    ]  # fmt: skip
    slots = work.batch * work.slots
    return [*of_layers, Product(name="head", rows=slots, inner=width, outer=config.vocab_size, count=1)]


def cost(config: ModelConfig, work: Work, *, itemsize: int, quantized: bool = False) -> Cost:
    """FLOPs and bytes of a pass.

    Args:
        itemsize: bytes of a number in the model's dtype.
        quantized: the weights of linear layers are bytes.
    """
    width, kv_width = config.hidden_size, config.num_kv_heads * config.head_dim
    *of_layers, head = products(config, work)
    table = 0 if config.tie_embeddings else config.vocab_size * width * itemsize
    looked_up = work.batch * work.rows * width * itemsize  # of the embeddings these rows alone are read
    kept = 2 * config.num_layers * work.batch * kv_width * itemsize if work.stores else 0
    return Cost(
        flops={
            "layers": sum(product.flops * product.count for product in of_layers),
            "attention": 4 * config.num_layers * work.batch * work.rows * work.reach * width,
            "head": head.flops,
        },
        bytes={
            "weights": weight_bytes(config, itemsize, quantized=quantized) - table + looked_up,
            "kv_read": kept * work.reach,
            "kv_written": kept * work.rows,
            "logits": head.rows * config.vocab_size * itemsize,
        },
    )
