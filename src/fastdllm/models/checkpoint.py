"""Checkpoints of LLaDA and Dream under the names and keys that the published ones use.

Reading runs no code that a checkpoint ships: config.json, safetensors and tokenizer files are data.
This is the door; the rooms are ``source`` (folder or hub), ``config_file``, ``weights`` and ``families``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from fastdllm.models.config_file import config_keys, read_config
from fastdllm.models.families import FORMATS
from fastdllm.models.source import resolve
from fastdllm.models.transformer import Transformer
from fastdllm.models.weights import WEIGHTS, load_weights, stored_dtype

__all__ = ["load_weights", "read_config", "resolve", "save_checkpoint", "stored_dtype"]


def save_checkpoint(model: Transformer, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write config.json and model.safetensors as a published checkpoint of the model's family has them.

    A model with several end ids gets a generation_config.json that lists them. The weights are copied
    whole when ``dtype`` is not theirs, and replace an older file only once they are written.

    Args:
        folder: made when missing; other files in it stay.
        dtype: of the file; the model's own when None.

    Raises:
        ValueError: a shape that the family's format cannot say (Dream without q/k/v biases).
    """
    dtype = dtype or model.embed.weight.dtype
    keys = {**config_keys(model.config), "torch_dtype": str(dtype).removeprefix("torch.")}
    state = model.state_dict()
    names = FORMATS[model.config.family].tensor_names(model.config)
    tensors = {theirs: state[ours].detach().to("cpu", dtype).contiguous() for theirs, ours in names.items()}
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{WEIGHTS}.unfinished"
    save_file(tensors, unfinished, metadata={"format": "pt"})
    os.replace(unfinished, folder / WEIGHTS)
    _write_json(folder / "config.json", keys)
    generation = folder / "generation_config.json"
    if len(model.config.eos_ids) > 1:
        _write_json(generation, {"eos_token_id": list(model.config.eos_ids), "pad_token_id": model.config.pad_id})
    else:  # one of an earlier save must not add its ids
        generation.unlink(missing_ok=True)


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
