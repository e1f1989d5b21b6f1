"""Methods: pairs of a cache and a decoder, written ``CACHE/DECODER`` or ``CACHE/DECODER@block_length=64``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from fastdllm.caches import CACHES
from fastdllm.config import GenerationConfig, GenerationOptions, describe
from fastdllm.decoders import DECODERS
from fastdllm.errors import OptionError
from fastdllm.files import read_text
from fastdllm.presets import BUILT_IN, load_preset

EXAMPLE = "dual/threshold:threshold=0.9"
STRATEGIES = ("cache", "decoder")
DEFAULTS = {field.name: field.default for field in fields(GenerationConfig)}
OVERRIDES: dict[str, Callable[[str], float]] = {
    "gen_length": int, "block_length": int, "temperature": float, "top_p": float, "top_k": int, "cfg_scale": float,
    "seed": int,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Method:
    """A cache and a decoder, with every option of the generations that try them."""

    name: str
    """As it was asked for; what tables call it."""
    key: str
    """With every parameter: two names of one method have one key, under which its answers are kept."""
    options: GenerationOptions

    @property
    def config(self) -> GenerationConfig:
        return GenerationConfig(**self.options)

    @property
    def kinds(self) -> tuple[str, str]:
        """Names of cache and decoder without parameters."""
        cache, _, decoder = self.key.partition("@")[0].partition("/")
        return cache.partition(":")[0], decoder.partition(":")[0]


def parse_method(text: str, shared: GenerationOptions) -> Method:
    """A method from its text: a cache and a decoder, or a preset's name or file.

    Args:
        shared: options of all methods, which those after ``@`` replace.

    Raises:
        OptionError: it cannot be read, or its options contradict one another; the message names it.
    """
    pair, _, rest = text.strip().partition("@")
    usual = {**DEFAULTS, **shared}
    try:
        asked = {**_strategies(pair), **_overrides(rest)}
        own = {name: value for name, value in asked.items() if usual.get(name) != value and name not in STRATEGIES}
        both = {name: asked[name] for name in STRATEGIES if name in asked}
        options = cast(GenerationOptions, {**shared, **own, **both})
        config = GenerationConfig(**options)
    except OptionError as error:
        raise OptionError(f"method {text!r}: {error}") from None
    full = f"{describe(config.policy)}/{describe(config.rule)}"
    differs = ",".join(f"{name}={own[name]}" for name in sorted(own))
    return Method(name=text.strip(), key=f"{full}@{differs}" if differs else full, options=options)


def _strategies(text: str) -> dict[str, Any]:
    """Cache and decoder, or all options of a preset."""
    if text.strip() in BUILT_IN or text.strip().endswith(".json"):
        return dict(load_preset(text.strip()))
    cache, slash, decoder = (part.strip() for part in text.partition("/"))
    if not slash:
        raise OptionError(f"a method is CACHE/DECODER, such as {EXAMPLE}, or a preset.")
    return {"cache": cache, "decoder": decoder}


def _overrides(text: str) -> dict[str, float]:
    values: dict[str, float] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, value = (p.strip() for p in part.partition("="))
        if name not in OVERRIDES or name in values:
            raise OptionError(f"after @ stand {', '.join(f'{k}=' for k in OVERRIDES)} each once, not {part!r}.")
        try:
            values[name] = OVERRIDES[name](value)
        except ValueError:
            raise OptionError(f"{name}={value!r} is not a number of its kind.") from None
    return values


def parse_methods(texts: Iterable[str], shared: GenerationOptions) -> tuple[Method, ...]:
    """A method for each text, in their order; one that comes twice, perhaps under two names, is taken once."""
    methods: dict[str, Method] = {}
    for text in texts:
        method = parse_method(text, shared)
        methods.setdefault(method.key, method)
    return tuple(methods.values())


def read_methods(path: Path) -> list[str]:
    """The texts in a file: one on each line, with ``#`` before comments."""
    texts = [text for line in read_text(path).splitlines() if (text := line.partition("#")[0].strip())]
    if not texts:
        raise OptionError(f"{path} holds no method; give one on each line, such as {EXAMPLE}.")
    return texts


def default_methods(shared: GenerationOptions) -> tuple[tuple[Method, ...], list[str]]:
    """Each cache with plain decoding and a threshold, each decoder with and without the dual cache.

    Returns:
        The methods, and for each that cannot be made with its defaults a sentence that says why.
    """
    texts = [f"{cache}/{decoder}" for decoder in ("topk:k=1", "threshold:threshold=0.9") for cache in CACHES]
    texts += [f"{cache}/{decoder}" for decoder in DECODERS for cache in ("none", "dual")]
    return parse_usable(texts, shared)


def parse_usable(texts: Iterable[str], shared: GenerationOptions) -> tuple[tuple[Method, ...], list[str]]:
    """The methods of those texts that can be read, and for each of the others a sentence that says why not."""
    usable, refused = [], []
    for text in texts:
        try:
            parse_method(text, shared)
        except OptionError as error:
            refused.append(str(error))
        else:
            usable.append(text)
    return parse_methods(usable, shared), refused
