"""What a number depends on, in a form that can be written beside it.

``settings`` decide which answer comes out: two runs whose settings differ must not share a file.
``environment`` decides how fast, and the last bits: it is recorded, and may differ.
"""

from __future__ import annotations

import hashlib
import platform
from dataclasses import fields
from importlib import metadata
from pathlib import Path

import torch

from fastdllm.config import GenerationConfig, describe
from fastdllm.engine import Engine
from fastdllm.machine import cpu_name, source_commit
from fastdllm.models.native import is_native
from fastdllm.models.packed import is_packed

EDGE = 65536


def settings(engine: Engine, config: GenerationConfig, *, chat: bool) -> dict[str, object]:
    """Model, dtype, device kind and every option of a generation, JSON-ready."""
    options = {field.name: getattr(config, field.name) for field in fields(config)}
    options |= {"cache": describe(config.policy), "decoder": describe(config.rule)}
    where = {"dtype": engine.precision, "device": engine.device.type}
    return {"model": engine.name, **where, "chat": chat, **options}


def environment(engine: Engine) -> dict[str, object]:
    """Versions, hardware, threads and source commit, JSON-ready."""
    on_gpu = engine.device.type == "cuda"
    hardware = torch.cuda.get_device_name(engine.device) if on_gpu else cpu_name()
    from fastdllm import __version__

    return {
        "fastdllm": __version__,
        **{name: metadata.version(name) for name in ("torch", "transformers")},
        "python": platform.python_version(),
        "hardware": hardware,
        "threads": torch.get_num_threads(),
        "tensor_parallel": engine.model.tensor_parallel,
        "packed": is_packed(engine.model),
        "kernels": is_native(engine.model),
        "attention": engine.model.mixing,
        "commit": source_commit(),
    }


def fingerprint(folder: Path) -> str:
    """A short name for the weights in a folder: changes when a file's size, first or last bytes do."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        with path.open("rb") as file:
            digest.update(f"{path.name} {size}".encode() + file.read(EDGE))
            file.seek(max(0, size - EDGE))
            digest.update(file.read(EDGE))
    return digest.hexdigest()[:12]
