"""config.json of a checkpoint, read into a ModelConfig and written from one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdllm.errors import CheckpointError
from fastdllm.models.config import Family, ModelConfig
from fastdllm.models.families import FORMATS, Format


@dataclass(frozen=True)
class Fields:
    """A JSON object read from ``path``, asked for values one key at a time; null counts as absent."""

    path: Path
    raw: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Fields:
        """Raises CheckpointError when the file is missing or is not a JSON object."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{path.parent} has no {path.name}; a checkpoint folder holds one.") from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read as JSON ({error}).") from None
        if not isinstance(raw, dict):
            raise CheckpointError(f"{path} holds a JSON {type(raw).__name__}; an object is expected.")
        return cls(path, raw)

    def refusal(self, key: str, expected: str) -> CheckpointError:
        if self.raw.get(key) is None:
            return CheckpointError(f"{self.path} lacks {key}; it must be {expected}.")
        return CheckpointError(f"{self.path} has {key} {json.dumps(self.raw[key])}; it must be {expected}.")

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number of at least 1."""
        value = default if self.raw.get(key) is None else self.raw[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.refusal(key, "a whole number of at least 1")
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        """A number above 0."""
        value = default if self.raw.get(key) is None else self.raw[key]
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise self.refusal(key, "a number above 0")
        return float(value)

    def flag(self, key: str) -> bool:
        """True or false; false when absent."""
        value = self.raw.get(key) or False
        if not isinstance(value, bool):
            raise self.refusal(key, "true or false")
        return value

    def ids(self, key: str) -> tuple[int, ...]:
        """A token id or a list of them; none when absent."""
        value = self.raw.get(key)
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in values):
            raise self.refusal(key, "a token id")
        return tuple(values)

    def token(self, key: str, default: tuple[int, ...] = ()) -> int:
        """One token id, or the first of ``default``."""
        found = self.ids(key) or default
        if not found or isinstance(self.raw.get(key), list):
            raise self.refusal(key, "a token id")
        return found[0]


def read_config(folder: Path) -> ModelConfig:
    """Read config.json, and the end-of-answer ids of generation_config.json where there is one.

    The ids at which a *turn* ends are the tokenizer's to tell (:meth:`fastdllm.text.Text.turn_end_ids`).
    LLaDA's weights have ``embedding_size`` rows, which may exceed its ``vocab_size``: that is ours.

    Raises:
        CheckpointError: no readable config.json, an unknown architecture, a missing key, a value of a
            setting that this package does not serve, or numbers that contradict one another.
    """
    fields = Fields.read(folder / "config.json")
    family = _family(fields)
    form = FORMATS[family]
    _check_settings(fields, form)
    keys = form.keys
    width, heads, eos = fields.count(keys["hidden_size"]), fields.count(keys["num_heads"]), _eos_ids(fields)
    config = ModelConfig(
        family=family,
        vocab_size=fields.count(keys["vocab_size"], fields.count("vocab_size")),
        hidden_size=width,
        num_layers=fields.count(keys["num_layers"]),
        num_heads=heads,
        num_kv_heads=_kv_heads(fields, keys["num_kv_heads"], heads),
        intermediate_size=_intermediate_size(fields, keys["intermediate_size"], width),
        max_length=fields.count(keys["max_length"]),
        rope_theta=fields.positive(keys["rope_theta"]),
        rms_norm_eps=fields.positive(keys["rms_norm_eps"], form.rms_norm_eps),
        qkv_bias=fields.flag(keys["qkv_bias"]) if "qkv_bias" in keys else True,
        tie_embeddings=fields.flag(keys["tie_embeddings"]),
        mask_id=fields.token(keys["mask_id"]),
        eos_ids=eos,
        pad_id=fields.token(keys["pad_id"], eos),
    )
    _check_shape(config, fields)
    return config


def config_keys(config: ModelConfig) -> dict[str, object]:
    """The JSON object that a published checkpoint of this family and shape would have as config.json.

    Raises:
        ValueError: a Dream without q/k/v biases, which its format cannot say.
    """
    form = FORMATS[config.family]
    if "qkv_bias" not in form.keys and not config.qkv_bias:
        raise ValueError(f"qkv_bias=False cannot be written: a {config.family} checkpoint always has q/k/v biases.")
    named = {key: getattr(config, field) for field, key in form.keys.items()}
    usual = {key: allowed[0] for key, allowed in form.settings.items()}
    identity = {"architectures": [form.architecture], "model_type": form.model_type}
    ids = {"vocab_size": config.vocab_size, "eos_token_id": config.eos_ids[0] if config.eos_ids else None}
    return dict(sorted({**form.extras, **usual, **named, **ids, **identity}.items()))


def _family(fields: Fields) -> Family:
    """The family by ``architectures``, or by ``model_type`` where that is not given."""
    named, kind = fields.raw.get("architectures"), fields.raw.get("model_type")
    for family, form in FORMATS.items():
        if named == [form.architecture] or (not named and kind == form.model_type):
            return family
    key = "architectures" if named else "model_type"
    served = [getattr(form, "architecture" if named else "model_type") for form in FORMATS.values()]
    raise fields.refusal(key, " or ".join(json.dumps([name] if named else name) for name in served))


def _check_settings(fields: Fields, form: Format) -> None:
    for key, allowed in form.settings.items():
        if not any(fields.raw.get(key) is value or fields.raw.get(key) == value for value in allowed):
            raise fields.refusal(key, " or ".join(json.dumps(value) for value in allowed))


def _kv_heads(fields: Fields, key: str, heads: int) -> int:
    """Key/value heads; ``multi_query_attention`` (OLMo's older way to say 1 or all) must not contradict them."""
    multi_query = fields.raw.get("multi_query_attention")
    implied = 1 if multi_query else heads
    count = fields.count(key, implied)
    if multi_query is not None and count != implied:
        raise fields.refusal(key, f"{implied} or null when multi_query_attention is {json.dumps(multi_query)}")
    return count


def _intermediate_size(fields: Fields, key: str, width: int) -> int:
    """Feed-forward width; LLaDA may leave it to ``mlp_ratio``, a multiple of the model's width."""
    if fields.raw.get(key) is None and fields.raw.get("mlp_ratio") is not None:
        return int(fields.positive("mlp_ratio") * width)
    return fields.count(key)


def _eos_ids(fields: Fields) -> tuple[int, ...]:
    """Ids that end an answer: config.json's, then those that generation_config.json adds."""
    generation = fields.path.with_name("generation_config.json")
    more = Fields.read(generation).ids("eos_token_id") if generation.is_file() else ()
    return tuple(dict.fromkeys((*fields.ids("eos_token_id"), *more)))


def _check_shape(config: ModelConfig, fields: Fields) -> None:
    """Refuse numbers that cannot belong together."""
    keys, where = FORMATS[config.family].keys, fields.path
    width, heads, kv_heads = (f"{keys[k]} {getattr(config, k)}" for k in ("hidden_size", "num_heads", "num_kv_heads"))
    if config.hidden_size % config.num_heads:
        raise CheckpointError(f"{where} has {width}, which {heads} does not divide.")
    if config.num_heads % config.num_kv_heads:
        raise CheckpointError(f"{where} has {heads}, which {kv_heads} does not divide.")
    if config.head_dim % 2:
        raise CheckpointError(f"{where} gives heads of width {config.head_dim}; rotary positions need an even width.")
    if fields.raw.get("head_dim") not in (None, config.head_dim):
        raise fields.refusal("head_dim", f"{config.head_dim} ({width} over {heads})")
    if config.vocab_size < fields.count("vocab_size"):
        raise fields.refusal(keys["vocab_size"], f"at least vocab_size {fields.count('vocab_size')}")
    named = {keys["mask_id"]: (config.mask_id,), keys["pad_id"]: (config.pad_id,), "eos_token_id": config.eos_ids}
    for key, ids in named.items():
        for token in ids:
            if not 0 <= token < config.vocab_size:
                raise CheckpointError(
                    f"{where} has {key} {token}, outside the vocabulary of {config.vocab_size} tokens."
                )
