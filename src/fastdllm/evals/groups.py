"""Hydra's config groups, made from the dataclasses that hold every option and default elsewhere.

A cache's group has the fields of its policy, a generation's those of its decoder, under the names that the
field's evaluation scripts use (``generation=eb_sampler`` is the decoder ``entropy_bound``).
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from hydra.core.config_store import ConfigStore

from fastdllm.caches import CACHES
from fastdllm.config import GenerationConfig
from fastdllm.decoders import DECODERS

MODELS: dict[str, dict[str, Any]] = {
    "tiny": {"path": "tiny", "chat": None},
    "llada-base": {"path": "GSAI-ML/LLaDA-8B-Base", "chat": False},
    "llada-inst": {"path": "GSAI-ML/LLaDA-8B-Instruct", "chat": True},
    "llada-1.5": {"path": "GSAI-ML/LLaDA-1.5", "chat": True},
    "dream-base": {"path": "Dream-org/Dream-v0-Base-7B", "chat": False},
    "dream-inst": {"path": "Dream-org/Dream-v0-Instruct-7B", "chat": True},
}
"""Where each model is, and whether prompts go through its chat template (None: when it has one)."""

NAMED = {"eb_sampler": "entropy_bound", "pc_sampler": "pc"}
"""Generations whose decoder has another name here."""

VANILLA_DECODERS = ("topk", "threshold", "factor", "certainty")
"""Decoders that ``generation=vanilla`` makes of its own options."""

VANILLA: dict[str, Any] = {
    "threshold": None, "factor": None, "num_transfer_tokens": 1, "sigma": None, "alg": "maskgit_plus",
}  # fmt: skip

SHARED: dict[str, Any] = {
    "temperature": GenerationConfig.temperature, "top_p": GenerationConfig.top_p, "top_k": GenerationConfig.top_k,
    "cfg_scale": GenerationConfig.cfg_scale, "gen_length": 256, "block_length": GenerationConfig.block_length,
    "stop_until_eos": GenerationConfig.stop_at_eos,
}  # fmt: skip
"""What every generation has. 256 slots are what the field's tables are made with."""

TOP: dict[str, Any] = {
    "batch_size": 1, "seed": 1234, "mc_num": 128, "mc_batch_size": 32, "check_greedy": True, "preset": None,
    "dtype": "auto", "device": "auto", "threads": None, "attn_implementation": None, "unsafe": False, "out": None,
}  # fmt: skip

DATASET: dict[str, Any] = {"name": "gsm8k", "size": None, "n_shot": None, "path": None}

GENERATIONS: dict[str, str | None] = {
    "vanilla": None,
    **{name: name for name in DECODERS if name not in (*VANILLA_DECODERS, *NAMED.values())},
    **NAMED,
}
"""Generation to decoder; None where its options choose one."""


def defaults_of(kind: type) -> dict[str, Any]:
    """Fields of a strategy and their defaults."""
    return {field.name: field.default for field in fields(kind)}


def register() -> None:
    """Put every group where Hydra finds it; doing so again changes nothing."""
    store = ConfigStore.instance()
    chosen: list[Any] = [{"model": "tiny"}, {"cache": "none"}, {"generation": "vanilla"}, {"dataset": "default"}]
    store.store(name="eval", node={"defaults": ["_self_", *chosen], **TOP})
    store.store(group="dataset", name="default", node=DATASET)
    for name, model in MODELS.items():
        store.store(group="model", name=name, node={"name": name, "revision": None, **model})
    for name, policy in CACHES.items():
        extra = {"use_dual": False} if name == "prefix" else {}
        store.store(group="cache", name=name, node={"name": name, **defaults_of(policy), **extra})
    for name, decoder in GENERATIONS.items():
        own = VANILLA if decoder is None else defaults_of(DECODERS[decoder])
        store.store(group="generation", name=name, node={"name": name, **own, **SHARED})
