"""What an evaluation is told, from overrides such as ``cache=d2cache cache.current_k=32`` to objects."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fastdllm.caches import CACHES
from fastdllm.checks import check_least
from fastdllm.config import GenerationConfig, GenerationOptions, spec_of
from fastdllm.errors import OptionError
from fastdllm.evals import groups
from fastdllm.presets import load_preset

GROUPS = ("model", "cache", "generation", "dataset")
MOST_THREADS = 1024
ATTENTION = ("eager", "sdpa", "flash_attention_2")
KINDS: dict[str, tuple[type, ...]] = {
    "batch_size": (int,), "seed": (int,), "mc_num": (int,), "mc_batch_size": (int,), "check_greedy": (bool,),
    "preset": (str, type(None)),
    "dtype": (str,), "device": (str,), "threads": (int, type(None)), "attn_implementation": (str, type(None)),
    "unsafe": (bool,), "out": (str, type(None)), "model.path": (str,), "model.revision": (str, type(None)),
    "model.chat": (bool, type(None)), "dataset.name": (str,), "dataset.size": (int, type(None)),
    "dataset.n_shot": (int, type(None)), "dataset.path": (str, type(None)), "cache.use_dual": (bool,),
    "generation.num_transfer_tokens": (int,),
    "generation.gen_length": (int,), "generation.block_length": (int,), "generation.temperature": (int, float),
    "generation.top_p": (int, float, type(None)), "generation.top_k": (int, type(None)),
    "generation.cfg_scale": (int, float), "generation.stop_until_eos": (bool,),
}  # fmt: skip
"""What values may be; those of strategies are read where specs are."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """An evaluation.

    Args:
        model: name, path, revision and chat of the model.
        dataset: name, size, n_shot and path of the problems.
        options: of every generation.
        mc_num: samples of a likelihood estimate.
        mc_batch_size: of them that run together.
        check_greedy: also decode each continuation that is scored, to say whether it is the greedy one.
        unsafe: run what the model wrote without a sandbox where none can be had.
        out: folder of answers and result; None for one named after everything the answers depend on.
    """

    model: Mapping[str, Any]
    dataset: Mapping[str, Any]
    options: GenerationOptions
    batch_size: int
    seed: int
    mc_num: int
    mc_batch_size: int
    check_greedy: bool
    dtype: str
    device: str
    threads: int | None
    attn_implementation: str | None
    unsafe: bool
    out: Path | None
    overrides: tuple[str, ...]
    """As they were typed."""

    @property
    def config(self) -> GenerationConfig:
        return GenerationConfig(**self.options)


def read_settings(overrides: Sequence[str]) -> Settings:
    """Settings from Hydra overrides.

    Raises:
        OptionError: an unknown key or group member, a value of the wrong kind, or options that contradict one another.
    """
    values = _compose(overrides)
    flat = {**values, **{f"{group}.{name}": value for group in GROUPS for name, value in values[group].items()}}
    for name, kinds in KINDS.items():
        if name in flat:
            _check_kind(name, flat[name], kinds)
    if (flat["threads"] or 0) > MOST_THREADS:
        raise OptionError(f"threads={flat['threads']} must be at most {MOST_THREADS}.")
    for name in ("batch_size", "mc_num", "mc_batch_size", "threads", "dataset.size"):
        if flat[name] is not None:
            check_least(name, flat[name], 1)
    if values["dataset"]["n_shot"] is not None:
        check_least("dataset.n_shot", values["dataset"]["n_shot"])
    if values["attn_implementation"] not in (None, *ATTENTION):
        raise OptionError(
            f"attn_implementation={values['attn_implementation']} is not one of {', '.join(ATTENTION)}; every cache "
            "takes the attention it needs, so it changes nothing."
        )
    options = _options(values, {text.partition("=")[0] for text in overrides})
    GenerationConfig(**options)
    own = {name: values[name] for name in groups.TOP if name not in ("preset", "out")}
    own["seed"] = options["seed"]  # which a preset may have set
    model = values["model"]
    if model["path"] != groups.MODELS[model["name"]]["path"]:  # another checkpoint than the group's
        model = {
            **model,
            "name": Path(model["path"]).resolve().name,
            "chat": model["chat"] if _given(overrides) else None,
        }
    return Settings(
        model=model, dataset=values["dataset"], options=options, overrides=tuple(overrides),
        out=Path(values["out"]) if values["out"] else None, **own,
    )  # fmt: skip


def _given(overrides: Sequence[str]) -> bool:
    """Whether a model group or the use of the template was asked for."""
    return any(text.startswith(("model=", "model.chat=")) for text in overrides)


def _compose(overrides: Sequence[str]) -> dict[str, Any]:
    for text in overrides:
        if text.startswith(("+", "~", "-")) or "=" not in text:
            raise OptionError(f"{text!r} is not KEY=VALUE, such as cache=dual or generation.threshold=0.9.")
        same = [other for other in overrides if other.partition("=")[0] == text.partition("=")[0]]
        if len(same) > 1:
            raise OptionError(f"{same[0]!r} and {same[1]!r} contradict each other; give one of them.")
    groups.register()
    with initialize(version_base=None):
        try:
            config = compose("eval", overrides=list(overrides))
            return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
        except (HydraException, OmegaConfBaseException) as error:
            raise OptionError(_explained(overrides, str(error))) from None


def _explained(overrides: Sequence[str], message: str) -> str:
    """Hydra's refusal in one sentence that says what there is."""
    members: dict[str, Collection[str]] = {
        "model": groups.MODELS,
        "cache": CACHES,
        "generation": groups.GENERATIONS,
        "dataset": ("default",),
    }
    for text in overrides:
        key, _, value = text.partition("=")
        if key in members and value not in members[key]:
            return f"{text!r} names no {key}: there are {', '.join(members[key])}."
    chosen = [text for text in overrides if text.partition("=")[0] in members]
    known = compose("eval", overrides=chosen)
    for text in overrides:
        group, _, rest = text.partition("=")[0].partition(".")
        if group in GROUPS and rest and rest not in known[group]:
            names = [name for name in known[group] if name != "name"]
            has = f"has {', '.join(names)}" if names else "has no options"
            return f"{text!r} names no option: {group}={known[group].get('name', 'default')} {has}."
        if group not in known or (rest and group not in GROUPS):
            return f"{text!r} names no option: there are {', '.join((*GROUPS, *groups.TOP))}."
    return f"the overrides cannot be read: {message.splitlines()[0]}."


def _check_kind(name: str, value: object, kinds: tuple[type, ...]) -> None:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
        raise OptionError(f"{name}={value!r} is not of type {wanted}.")


def _options(values: dict[str, Any], given: set[str]) -> GenerationOptions:
    """The options of a generation: the preset's, if there is one, under those that were asked for."""
    generation = dict(values["generation"])
    shared = {name: generation.pop(name) for name in groups.SHARED}
    shared["stop_at_eos"] = shared.pop("stop_until_eos")
    options: dict[str, Any] = {**shared, "seed": values["seed"]}
    options |= {"cache": _cache_spec(dict(values["cache"])), "decoder": _decoder_spec(generation)}
    if values["preset"] is not None:
        asked = _asked(given)
        options |= {name: value for name, value in load_preset(values["preset"]).items() if name not in asked}
    return cast(GenerationOptions, options)


def _asked(given: set[str]) -> set[str]:
    """Options that were asked for beside a preset; a part of a strategy only goes with its name."""
    shared = {f"generation.{name}": name for name in groups.SHARED}
    shared["generation.stop_until_eos"] = "stop_at_eos"
    for part in sorted(given - shared.keys()):
        group = part.partition(".")[0]
        if group in ("cache", "generation") and group not in given:
            raise OptionError(f"{part}= goes with {group}=NAME, which replaces what the preset has, too; give both.")
    named = {"cache": "cache", "generation": "decoder", "seed": "seed", **shared}
    return {named[name] for name in named.keys() & given}


def _cache_spec(values: dict[str, Any]) -> str:
    """``cache=prefix cache.use_dual=true`` is the dual cache under another name."""
    name = values.pop("name")
    return spec_of("dual" if values.pop("use_dual", False) else name, values)


def _decoder_spec(values: dict[str, Any]) -> str:
    name = values.pop("name")
    decoder = groups.GENERATIONS[name]
    return _vanilla_spec(values) if decoder is None else spec_of(decoder, values)


def _vanilla_spec(values: dict[str, Any]) -> str:
    """Plain, by threshold, by factor, or by certainty prior, as the options say; two that contradict are refused."""
    at = {name: f"generation.{name}={value}" for name, value in values.items()}
    sigma, count = values["sigma"] or None, values["num_transfer_tokens"]  # a sigma of 0 means no prior
    prior = {"sigma": sigma, "k": count, "threshold": values["threshold"]}
    for first, second, clash in (
        ("threshold", "factor", None not in (values["threshold"], values["factor"])),
        ("sigma", "factor", None not in (sigma, values["factor"])),
        ("sigma", "alg", sigma is not None and values["alg"] != groups.VANILLA["alg"]),
        ("num_transfer_tokens", "threshold", count != 1 and values["threshold"] is not None and sigma is None),
        ("num_transfer_tokens", "factor", count != 1 and values["factor"] is not None),
    ):
        if clash:
            raise OptionError(f"{at[first]} and {at[second]} contradict each other; give one of them.")
    if sigma is not None:
        return spec_of("certainty", prior)
    for name in ("threshold", "factor"):
        if values[name] is not None:
            return spec_of(name, {name: values[name], "alg": values["alg"]})
    return spec_of("topk", {"k": count, "alg": values["alg"]})
