"""How much memory a generation needs, from the shape of the model alone.

Weights and key/value store are exact: what :class:`fastdllm.models.transformer.Transformer` and
:class:`fastdllm.kv.KVStore` allocate. Logits are those of greedy decoding; a temperature, top_p or top_k needs
several times as much for noise and sorting. What a cache or decoder keeps beside the store it says itself.
Activations are an estimate of the largest layer's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from fastdllm.caches import CachePolicy
from fastdllm.decoders import Decoder
from fastdllm.models.config import ModelConfig
from fastdllm.state import FLOAT32, Size


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that a generation holds at its widest pass."""

    weights: int
    kv_store: int
    method: int
    """What cache and decoder keep from pass to pass beside the store."""
    logits: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_store + self.method + self.logits + self.activations


def parameters(config: ModelConfig) -> int:
    """Parameters of the network; tied embeddings count once."""
    width, kv_width, inner = config.hidden_size, config.num_kv_heads * config.head_dim, config.intermediate_size
    biases = width + 2 * kv_width if config.qkv_bias else 0
    layer = 2 * width * width + 2 * width * kv_width + biases + 3 * width * inner + 2 * width
    tables = config.vocab_size * width * (1 if config.tie_embeddings else 2)
    return tables + config.num_layers * layer + width


def memory(
    config: ModelConfig, cache: CachePolicy, decoder: Decoder, *,
    batch_size: int, prompt_length: int, gen_length: int, block_length: int, itemsize: int,
) -> Memory:  # fmt: skip
    """Bytes for a batch of canvases of ``prompt_length + gen_length`` slots.

    Logits are those of one pass: a block's rows (the answer's, where cache or decoder look beyond) in the
    model's dtype, the float32 copy that confidences are computed from where that is another, and the float32
    exponentials of the logsumexp. Activations are the wider of attention (states, queries, keys, values, and
    rotation in float32) and feed-forward (states, gate, up and their product), for every slot of the canvas,
    as in a pass that opens a block.

    Args:
        itemsize: bytes of a number in the model's dtype.
    """
    length = prompt_length + gen_length
    width, kv_width = config.hidden_size, config.num_kv_heads * config.head_dim
    attention = (3 * width + 2 * kv_width) * itemsize + 4 * width * FLOAT32
    feed_forward = (2 * width + 3 * config.intermediate_size) * itemsize
    block = min(block_length, gen_length)
    slots = gen_length if cache.looks_beyond or decoder.looks_beyond else block
    size = Size(
        batch=batch_size, length=length, gen_length=gen_length, block_length=block, layers=config.num_layers,
        width=width, vocabulary=config.vocab_size, itemsize=itemsize,
    )  # fmt: skip
    store = 2 * config.num_layers * batch_size * kv_width * (length + 1) * itemsize
    return Memory(
        weights=parameters(config) * itemsize,
        kv_store=store if cache.stores or decoder.verifies else 0,
        method=cache.extra_bytes(size) + decoder.extra_bytes(size),
        logits=batch_size * slots * config.vocab_size * (itemsize + FLOAT32 * (1 + (itemsize != FLOAT32))),
        activations=batch_size * length * max(attention, feed_forward),
    )


def available(device: str) -> int | None:
    """Bytes free on ``cpu`` or a GPU such as ``cuda``; None where the system does not tell."""
    if device != "cpu":
        import torch  # the arithmetic above needs none of it

        return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else None
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        names = ("SC_AVPHYS_PAGES", "SC_PAGE_SIZE")
        known = hasattr(os, "sysconf") and all(name in os.sysconf_names for name in names)
        return os.sysconf(names[0]) * os.sysconf(names[1]) if known else None
