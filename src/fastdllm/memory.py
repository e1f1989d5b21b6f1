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


def parameters(config: ModelConfig, tensor_parallel: int = 1) -> int:
    """Parameters of the network, or those of one of the processes it is split over; tied embeddings count once."""
    width, kv_width, inner = config.hidden_size, config.num_kv_heads * config.head_dim, config.intermediate_size
    biases = width + 2 * kv_width if config.qkv_bias else 0
    layer = 2 * width * width + 2 * width * kv_width + biases + 3 * width * inner
    tables = config.vocab_size * width * (1 if config.tie_embeddings else 2)
    norms = (2 * config.num_layers + 1) * width  # every process has them
    return (tables + config.num_layers * layer) // tensor_parallel + norms


def weight_bytes(config: ModelConfig, itemsize: int, *, quantized: bool = False, tensor_parallel: int = 1) -> int:
    """Bytes of all weights, or of those of one of the processes that the model is split over.

    Args:
        itemsize: bytes of a number in the model's dtype.
        quantized: the weights of linear layers are bytes, with a float32 scale for each output. A head that is
            tied to the embedding stays as that is.
    """
    every = parameters(config, tensor_parallel) * itemsize
    if not quantized:
        return every
    width, kv_width, inner = config.hidden_size, config.num_kv_heads * config.head_dim, config.intermediate_size
    outputs = config.num_layers * (3 * width + 2 * kv_width + 2 * inner)
    numbers = config.num_layers * (2 * width * width + 2 * width * kv_width + 3 * width * inner)
    if not config.tie_embeddings:
        outputs, numbers = outputs + config.vocab_size, numbers + config.vocab_size * width
    return every - numbers * (itemsize - 1) + outputs * FLOAT32


def kv_bytes(config: ModelConfig, length: int, itemsize: int, *, tensor_parallel: int = 1) -> int:
    """Bytes of keys and values of one canvas of ``length`` slots, the spare one included, in one process."""
    heads = config.num_kv_heads // tensor_parallel
    return 2 * config.num_layers * heads * config.head_dim * (length + 1) * itemsize


def memory(
    config: ModelConfig, cache: CachePolicy, decoder: Decoder, *,
    batch_size: int, prompt_length: int, gen_length: int, block_length: int, itemsize: int, tensor_parallel: int = 1,
    quantized: bool = False,
) -> Memory:  # fmt: skip
    """Bytes for a batch of canvases of ``prompt_length + gen_length`` slots.

    Logits are those of one pass: a block's rows (the answer's, where cache or decoder look beyond) in the
    model's dtype, the float32 copy that confidences are computed from where that is another, and the float32
    exponentials of the logsumexp. Activations are the wider of attention (states, queries, keys, values, and
    rotation in float32) and feed-forward (states, gate, up and their product), for every slot of the canvas,
    as in a pass that opens a block.

    Args:
        itemsize: bytes of a number in the model's dtype.
        tensor_parallel: processes that the model is split over; the bytes are those of one. It gathers the logits,
            and so has them twice.
        quantized: the weights of linear layers are bytes.
    """
    length = prompt_length + gen_length
    width, kv_width = config.hidden_size, config.num_kv_heads * config.head_dim
    heads, inner = width // tensor_parallel, config.intermediate_size // tensor_parallel
    kv_width //= tensor_parallel
    attention = (width + 2 * heads + 2 * kv_width) * itemsize + 4 * heads * FLOAT32
    feed_forward = (2 * width + 3 * inner) * itemsize
    scores = itemsize * (1 + (tensor_parallel > 1)) + FLOAT32 * (1 + (itemsize != FLOAT32))
    block = min(block_length, gen_length)
    slots = gen_length if cache.looks_beyond or decoder.looks_beyond else block
    size = Size(
        batch=batch_size, length=length, gen_length=gen_length, block_length=block, layers=config.num_layers,
        heads=config.num_heads // tensor_parallel, width=width, vocabulary=config.vocab_size, itemsize=itemsize,
    )  # fmt: skip
    kept = batch_size * kv_bytes(config, length, itemsize, tensor_parallel=tensor_parallel)
    return Memory(
        weights=weight_bytes(config, itemsize, quantized=quantized, tensor_parallel=tensor_parallel),
        kv_store=kept if cache.stores or decoder.verifies else 0,
        method=cache.extra_bytes(size) + decoder.extra_bytes(size),
        logits=batch_size * slots * config.vocab_size * scores,
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
