"""Random models that run in milliseconds and are unsure enough for every decoder to have work."""

from __future__ import annotations

import random
from dataclasses import replace

import torch
from torch import Tensor

from fastdllm.canvas import Canvas, Slots
from fastdllm.decoders import Turn
from fastdllm.engine import Engine
from fastdllm.models.config import Family, ModelConfig
from fastdllm.models.transformer import Transformer
from fastdllm.sampling import Prediction
from fastdllm.state import RowState

MASK, EOS, EOT, VOCAB = 58, 57, 56, 60
FAMILIES: tuple[Family, ...] = ("llada", "dream")
CACHES = ("none", "prefix", "dual")
DECODERS = (
    "topk:k=1",
    "topk:k=3,alg=topk_margin",
    "threshold:threshold=0.5",
    "threshold:threshold=0.3,alg=entropy",
    "factor:factor=1.0",
    "factor:factor=2.5",
    "schedule:steps=17",
    "schedule:steps=23,remasking=random",
    "schedule:steps=40,alg=entropy",
    "timestep:steps=17",
    "timestep:steps=30,alg=origin",
    "timestep:steps=20,alg=maskgit_plus,alg_temp=0.5",
    "timestep:steps=20,alg=topk_margin",
)


def toy_config(family: Family = "llada", layers: int = 3, **changes: object) -> ModelConfig:
    values: dict[str, object] = {
        "family": family, "vocab_size": VOCAB, "hidden_size": 32, "num_layers": layers, "num_heads": 4,
        "num_kv_heads": 2 if family == "dream" else 4, "intermediate_size": 64, "max_length": 512,
        "rope_theta": 10000.0, "rms_norm_eps": 1e-6, "qkv_bias": family == "dream", "tie_embeddings": False,
        "mask_id": MASK, "eos_ids": (EOS, EOT), "pad_id": EOS,
    }  # fmt: skip
    return ModelConfig(**(values | changes))  # type: ignore[arg-type]


def toy_model(
    family: Family = "llada", layers: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: object
) -> Transformer:
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(toy_config(family, layers, **changes)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(0, 0.5, generator=generator)
        elif "norm" in name:
            parameter.uniform_(0.5, 1.5, generator=generator)
        else:
            scale = 1.0 if "embed" in name else {"head": 4.5}.get(name.split(".")[0], 2.0) * parameter.shape[1] ** -0.5
            parameter.normal_(0, scale, generator=generator)
    return model.to(dtype)


def toy_engine(family: Family = "llada", layers: int = 3, seed: int = 0, **changes: object) -> Engine:
    return Engine(toy_model(family, layers, seed, **changes), name="toy")


def open_slots(batch: int, count: int) -> Slots:
    """Slots 0, 1, ... of canvases without prompts, all of them open and predicted."""
    yes, at = torch.ones(batch, count, dtype=torch.bool), torch.arange(count).expand(batch, count)
    return Slots(positions=at, current=torch.full_like(at, MASK), known=yes, fresh=yes, candidate=yes, revisable=~yes)


def turn_of(prediction: Prediction, *, size: int | None = None, step: int = 0, logits: Tensor | None = None) -> Turn:
    """A pass over a canvas without prompt and of one block, of ``size`` slots, for decoders to step on."""
    batch, count = prediction.positions.shape
    size = size or count
    canvas = Canvas([[]] * batch, gen_length=size, block_length=size, mask_id=MASK, eos_ids=[])
    at = torch.full((batch,), step)
    region = replace(canvas.region(0), step=at, nfe=at, masked=torch.full_like(at, count))
    return Turn(canvas, region, prediction, RowState(), lambda: prediction.logits if logits is None else logits)


def prompts_of(lengths: list[int], seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(EOT) for _ in range(n)] for n in lengths]
