"""Models of a given shape with random weights: speed and memory do not ask what the weights say.

What does depend on them is how many tokens a parallel decoder commits in a pass; :class:`fastdllm.bench.commits.Replay`
takes that from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor, nn

from fastdllm.checks import check_least
from fastdllm.errors import OptionError
from fastdllm.models.config import Family, ModelConfig
from fastdllm.models.families import HEAD
from fastdllm.models.packed import Layout, replace_layer
from fastdllm.models.transformer import Transformer

DEVIATION = 0.02
"""Of the weights, the families' own for training: activations stay in a range in which no dtype overflows."""
LONGEST = 2**20
"""Canvas slots that a shape without trained positions may have."""
EXAMPLE = "d=1024,layers=12,heads=16,ffn=2816,vocab=32768"
KEYS = {
    "d": "hidden_size", "layers": "num_layers", "heads": "num_heads", "kv_heads": "num_kv_heads",
    "ffn": "intermediate_size", "vocab": "vocab_size",
}  # fmt: skip


def llada(**shape: int) -> ModelConfig:
    """A LLaDA of that shape; mask, end and padding are the last ids of the vocabulary."""
    last = shape["vocab_size"] - 1
    named = {"num_kv_heads": shape["num_heads"], **shape}
    return ModelConfig(
        family="llada", max_length=LONGEST, rope_theta=500000.0, rms_norm_eps=1e-5, qkv_bias=False,
        tie_embeddings=False, mask_id=last, eos_ids=(last - 1,), pad_id=last - 1, **named,
    )  # fmt: skip


def dream(**shape: int) -> ModelConfig:
    """A Dream of that shape: biases on queries, keys and values, and logits that are shifted by one row."""
    return replace(llada(**shape), family="dream", rope_theta=1000000.0, rms_norm_eps=1e-6, qkv_bias=True)


SHAPES: dict[str, ModelConfig] = {
    "220m": llada(hidden_size=1024, num_layers=12, num_heads=16, intermediate_size=2816, vocab_size=32768),
    "1b": llada(hidden_size=2048, num_layers=20, num_heads=16, intermediate_size=5632, vocab_size=32768),
    "llada-8b": replace(
        llada(hidden_size=4096, num_layers=32, num_heads=32, intermediate_size=12288, vocab_size=126464),
        mask_id=126336, eos_ids=(126081, 126348), pad_id=126081,
    ),
    "dream-7b": replace(
        dream(
            hidden_size=3584, num_layers=28, num_heads=28, num_kv_heads=4, intermediate_size=18944, vocab_size=152064
        ),
        mask_id=151666, eos_ids=(151643, 151645), pad_id=151643,
    ),
}  # fmt: skip
"""LLaDA's shape at two small sizes, and the published checkpoints of LLaDA-8B and Dream-7B."""


def parse_shape(text: str) -> ModelConfig:
    """A shape by its name, by its numbers as :func:`spelled` gives them, or ``NAME:layers=2`` for a change of one.

    ``kv_heads`` (as many as heads) and ``family`` (llada) need not be given.

    Raises:
        OptionError: an unknown name or key, a missing key, or numbers that contradict one another.
    """
    name, _, rest = text.strip().partition(":")
    if "=" in name:
        name, rest = "", text
    if name and name not in SHAPES:
        raise OptionError(f"shape {name!r} is not one of {', '.join(SHAPES)}, nor numbers as in {EXAMPLE}.")
    values = _numbers(rest, KEYS if name else (*KEYS, "family"))
    family = values.pop("family", "llada")
    if family not in get_args(Family):
        raise OptionError(f"family={family!r} is not one of {', '.join(get_args(Family))}.")
    numbers = {KEYS[key]: _count(key, value) for key, value in values.items()}
    return _checked(_changed(SHAPES[name], numbers) if name else _built(family, numbers))


def spelled(config: ModelConfig) -> str:
    """The numbers of a shape, as :func:`parse_shape` reads them."""
    return ",".join([*(f"{key}={getattr(config, field)}" for key, field in KEYS.items()), f"family={config.family}"])


def _changed(base: ModelConfig, numbers: dict[str, int]) -> ModelConfig:
    if base.num_kv_heads == base.num_heads and "num_heads" in numbers:
        numbers = {"num_kv_heads": numbers["num_heads"], **numbers}
    return replace(base, **numbers)  # type: ignore[arg-type]


def _built(family: str, numbers: dict[str, int]) -> ModelConfig:
    missing = [key for key, field in KEYS.items() if field not in numbers and key != "kv_heads"]
    if missing:
        raise OptionError(f"the shape lacks {', '.join(f'{key}=' for key in missing)}; give it as in {EXAMPLE}.")
    check_least("vocab", numbers["vocab_size"], 4)
    return dream(**numbers) if family == "dream" else llada(**numbers)


def _numbers(text: str, keys: Iterable[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, eq, value = (p.strip() for p in part.partition("="))
        if not eq or key in values or key not in keys:
            raise OptionError(f"a shape takes {', '.join(f'{key}=' for key in keys)} each once, not {part!r}.")
        values[key] = value
    return values


def _count(key: str, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise OptionError(f"{key}={text!r} is not a whole number.") from None
    check_least(key, value, 1)
    return value


def _checked(config: ModelConfig) -> ModelConfig:
    """The config, or why no network has it."""
    width, heads, groups = config.hidden_size, config.num_heads, config.num_kv_heads
    if width % heads or (width // heads) % 2:
        raise OptionError(f"d={width} does not split into heads={heads} of an even width.")
    if heads % groups:
        raise OptionError(f"heads={heads} is no multiple of kv_heads={groups}.")
    if config.vocab_size <= max(config.mask_id, config.pad_id, *config.eos_ids):
        last = config.vocab_size - 1
        return replace(config, mask_id=last, eos_ids=(last - 1,), pad_id=last - 1)
    return config


def random_model(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, layout: Layout | None = None, seed: int = 0
) -> Transformer:
    """A network with random weights, each drawn in place in ``dtype``: no wider copy is ever held.

    Args:
        layout: what becomes of linear layers, each as its weight is drawn; None leaves them as they are.

    Returns:
        The network in eval mode, without gradients.
    """
    with torch.device("meta"):
        model = Transformer(config)
    generator = torch.Generator(device).manual_seed(seed)
    filled: dict[str, Tensor] = {}
    for name, blank in model.state_dict().items():
        if name == HEAD and config.tie_embeddings:
            filled[name] = filled["embed.weight"]
            continue
        weight = torch.empty(blank.shape, dtype=dtype, device=device)
        weight = (
            weight.fill_(1.0) if name.endswith("norm.weight") else weight.normal_(0, DEVIATION, generator=generator)
        )
        layer, _, leaf = name.rpartition(".")
        owner = model.get_submodule(layer)
        if layout is not None and leaf == "weight" and isinstance(owner, nn.Linear):
            replace_layer(model, layer, layout(owner, weight))
        else:
            filled[name] = nn.Parameter(weight)
    model.load_state_dict(filled, assign=True, strict=False)  # what is missing stands in its layer already
    return model.eval().requires_grad_(False)
