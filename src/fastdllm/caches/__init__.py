"""Cache policies: which rows enter the network in a pass, and whose keys and values are reused."""

from fastdllm.caches.blockwise import DualCache, NoCache, PrefixCache
from fastdllm.caches.d2cache import D2Cache
from fastdllm.caches.delayed import DKVCache
from fastdllm.caches.dllm import DLLMCache
from fastdllm.caches.plan import CachePolicy, Plan, Policy
from fastdllm.caches.sliding import SlidingCache
from fastdllm.caches.watched import Pass, Watched

CACHES: dict[str, type[CachePolicy]] = {
    "none": NoCache,
    "prefix": PrefixCache,
    "dual": DualCache,
    "sliding": SlidingCache,
    "dkv": DKVCache,
    "dllm": DLLMCache,
    "d2cache": D2Cache,
}

__all__ = [
    "CACHES",
    "CachePolicy",
    "D2Cache",
    "DKVCache",
    "DLLMCache",
    "DualCache",
    "NoCache",
    "Pass",
    "Plan",
    "Policy",
    "PrefixCache",
    "SlidingCache",
    "Watched",
]
