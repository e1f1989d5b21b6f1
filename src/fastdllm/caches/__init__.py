"""Cache policies: which rows enter the network in a pass, and whose keys and values are reused."""

from fastdllm.caches.blockwise import DualCache, NoCache, PrefixCache
from fastdllm.caches.plan import CachePolicy, Plan, Policy

CACHES: dict[str, type[CachePolicy]] = {"none": NoCache, "prefix": PrefixCache, "dual": DualCache}

__all__ = ["CACHES", "CachePolicy", "DualCache", "NoCache", "Plan", "Policy", "PrefixCache"]
