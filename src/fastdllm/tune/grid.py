"""The settings that are tried when none are listed."""

from __future__ import annotations

from fastdllm.config import GenerationOptions

DECODERS = (
    "threshold:threshold=0.95", "threshold:threshold=0.9", "threshold:threshold=0.8", "threshold:threshold=0.7",
    "factor:factor=1.0",
)  # fmt: skip
"""Crossed with every cache below: Fast-dLLM's two rules, over the thresholds that papers report."""
OTHERS = (
    "dual/topk:k=2", "prefix/topk:k=2", "dkv/threshold:threshold=0.9", "dllm/threshold:threshold=0.9",
    "dual/entropy_bound:gamma=0.1", "dual/klass", "dual/credit", "dual/hierarchy", "dual/saber", "dual/wino",
)  # fmt: skip
"""What else there is, with the parameters of its paper."""


def caches(block_length: int) -> tuple[str, ...]:
    """The caches that are crossed with :data:`DECODERS`, among them three that see no further than two blocks ahead."""
    window = 2 * block_length
    return (
        "none", "prefix", "dual", "d2cache", f"prefix:suffix_window={window}",
        f"dual:prompt_every=4,suffix_window={window}", f"sliding:suffix_window={window}",
    )  # fmt: skip


def default_texts(shared: GenerationOptions) -> list[str]:
    """About fifty settings: caches times decoders, longer blocks, and one of every other kind."""
    block, length = shared["block_length"], shared["gen_length"]
    texts = [f"{cache}/{decoder}" for cache in caches(block) for decoder in DECODERS] + list(OTHERS)
    for longer in (2 * block, 4 * block):
        if longer <= length:
            texts += [f"{cache}/threshold:threshold=0.9@block_length={longer}" for cache in ("none", "prefix", "dual")]
    return texts
