"""Presets: options of a generation under a name, built in or in a file that ``fastdllm tune`` has written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from fastdllm.config import GenerationConfig, GenerationOptions, describe
from fastdllm.errors import OptionError
from fastdllm.files import read_text, write_whole

MARK, VERSION = "fastdllm_preset", 1
PARTS: dict[str, tuple[type, str]] = {
    "name": (str, "a text"), "about": (str, "a text"), "options": (dict, "an object"), "tuned": (dict, "an object"),
}  # fmt: skip
OPTIONS: dict[str, tuple[type, ...]] = {
    "gen_length": (int,), "block_length": (int,), "cache": (str,), "decoder": (str,), "temperature": (int, float),
    "top_p": (int, float, type(None)), "top_k": (int, type(None)), "cfg_scale": (int, float), "seed": (int,),
    "stop_at_eos": (bool,),
}  # fmt: skip
"""The options a preset may hold, and what each may be in JSON."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Options of a generation, and where they come from; options that it does not hold keep their defaults."""

    name: str
    about: str
    """A sentence: the source, or what tuning has shown."""
    options: GenerationOptions
    tuned: Mapping[str, Any] = field(default_factory=dict)
    """What tuning has measured and on what, JSON-ready; empty where nothing was tuned."""


BUILT_IN: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="plain",
            about="No cache, and the surest slot of the block at each pass: LLaDA's sampler with low-confidence "
            "remasking and as many steps as slots (arXiv 2502.09992).",
            options={"cache": "none", "decoder": "topk:k=1"},
        ),
        Preset(
            name="fast-dllm",
            about="Fast-dLLM's DualCache with blocks of 32 and a threshold of 0.9 (arXiv 2505.22618).",
            options={"cache": "dual", "decoder": "threshold:threshold=0.9", "block_length": 32},
        ),
        Preset(
            name="fast-dllm-prefix",
            about="Fast-dLLM's PrefixCache with blocks of 32 and a threshold of 0.9, the defaults of its paper's "
            "experiments (arXiv 2505.22618).",
            options={"cache": "prefix", "decoder": "threshold:threshold=0.9", "block_length": 32},
        ),
    )
}


def load_preset(source: str | Path) -> GenerationOptions:
    """The options of a preset as keywords, as in ``engine.generate(prompt, **load_preset("my.json"))``.

    Args:
        source: the name of a built-in preset (``plain``, ``fast-dllm``, ``fast-dllm-prefix``), or a file.

    Raises:
        OptionError: there is no such preset, or the file holds none that can be used.
    """
    return read_preset(source).options.copy()


def read_preset(source: str | Path) -> Preset:
    """A preset with everything that is known about it; otherwise as :func:`load_preset`."""
    if str(source) in BUILT_IN:
        return BUILT_IN[str(source)]
    path = Path(source)
    if not path.is_file():
        raise OptionError(f"preset {str(source)!r} is neither a file nor one of {', '.join(BUILT_IN)}.")
    try:
        value = json.loads(read_text(path))
    except ValueError as error:
        raise OptionError(f"preset {path} cannot be read as JSON ({error}).") from None
    return _from_json(path, value)


def _from_json(path: Path, value: object) -> Preset:
    if not isinstance(value, dict) or MARK not in value:
        raise OptionError(f"{path} is not a preset: a preset is an object with {MARK!r}: {VERSION}.")
    if value[MARK] != VERSION:
        raise OptionError(f"preset {path} is of version {value[MARK]!r}; this fastdllm reads version {VERSION}.")
    held = {name: part for name, part in value.items() if name != MARK}
    for name, part in held.items():
        if name not in PARTS:
            raise OptionError(f"preset {path} has {name!r}, which is not one of {', '.join(PARTS)}.")
        kind, wanted = PARTS[name]
        if not isinstance(part, kind):
            raise OptionError(f"preset {path} has {part!r} for {name!r}, not {wanted}.")
    if "options" not in held:
        raise OptionError(f"preset {path} has no 'options'.")
    _check_options(path, held["options"])
    return Preset(**{"name": path.stem, "about": "", **held})


def _check_options(path: Path, options: dict[str, Any]) -> None:
    for name, value in options.items():
        if name not in OPTIONS:
            raise OptionError(f"preset {path} has the option {name!r}, which is not one of {', '.join(OPTIONS)}.")
        kinds = OPTIONS[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise OptionError(f"preset {path} has {value!r} for the option {name!r}, not {wanted}.")
    try:
        GenerationConfig(**cast(GenerationOptions, options))
    except OptionError as error:
        raise OptionError(f"preset {path}: {error}") from None


def write_preset(preset: Preset, path: Path) -> None:
    """Write a preset whole or not at all."""
    parts = {"name": preset.name, "about": preset.about, "options": preset.options, "tuned": dict(preset.tuned)}
    write_whole(path, json.dumps({MARK: VERSION, **parts}, indent=2, ensure_ascii=False) + "\n")


def options_of(config: GenerationConfig) -> GenerationOptions:
    """Every option of a configuration, strategies as their specs: what a preset of it holds."""
    options = {f.name: getattr(config, f.name) for f in fields(config)}
    specs = {"cache": describe(config.policy), "decoder": describe(config.rule)}
    return cast(GenerationOptions, {**options, **specs})
