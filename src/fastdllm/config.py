"""Options: their defaults, and the one place where they become strategy objects.

A spec is ``name`` or ``name:key=value,key=value``, as in ``dual`` or ``threshold:threshold=0.9``.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, TypedDict, TypeVar

from fastdllm.checks import check_least
from fastdllm.errors import OptionError

if TYPE_CHECKING:
    from fastdllm.caches import CachePolicy
    from fastdllm.decoders import Decoder


class GenerationOptions(TypedDict, total=False):
    """The options of :class:`GenerationConfig` as keywords."""

    gen_length: int
    block_length: int
    cache: CachePolicy | str
    decoder: Decoder | str
    temperature: float
    top_p: float | None
    top_k: int | None
    cfg_scale: float
    seed: int | Sequence[int]
    stop_at_eos: bool


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Every option of a generation with its default; the command line, the server and evaluation read them here.

    Args:
        gen_length: answer slots.
        block_length: slots of a block; blocks are filled from left to right, and the last may be shorter.
            At most ``gen_length``, which means one block; a larger value means the same.
        cache: which keys and values are reused: a policy or a spec such as ``"dual"``.
        decoder: what is committed after a pass: a decoder or a spec such as ``"factor:factor=1.0"``.
        temperature: 0 takes the likeliest token; above, proposals are drawn from softmax(logits / temperature).
        top_p: keep the likeliest tokens that hold this much probability.
        top_k: keep this many of the likeliest tokens.
        cfg_scale: classifier-free guidance away from the masked prompt; works with cache none and
            decoders that do not verify (wino).
        seed: of each row's noise; one number that every row uses, or a list with one for each.
        stop_at_eos: end a row at an end token that has no open slot to its left.
    """

    gen_length: int = 128
    block_length: int = 32
    cache: CachePolicy | str = "dual"
    decoder: Decoder | str = "threshold:threshold=0.9"
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    cfg_scale: float = 0.0
    seed: int | Sequence[int] = 0
    stop_at_eos: bool = True

    def __post_init__(self) -> None:
        for name in ("gen_length", "block_length"):
            check_least(name, getattr(self, name), 1)
        if self.block_length > self.gen_length:
            object.__setattr__(self, "block_length", self.gen_length)
        if not 0.0 <= self.cfg_scale < float("inf"):
            raise OptionError(f"cfg_scale={self.cfg_scale} must be a number of 0 or more.")
        object.__setattr__(self, "cache", parse_cache(self.cache))
        object.__setattr__(self, "decoder", parse_decoder(self.decoder))
        if self.cfg_scale and self.policy.stores:
            raise OptionError(
                f"cfg_scale={self.cfg_scale} works with cache none alone, not with {describe(self.policy)}."
            )
        if self.cfg_scale and self.rule.verifies:
            raise OptionError(f"cfg_scale={self.cfg_scale} does not work with {describe(self.rule)}, which verifies.")
        self.rule.check(self.gen_length, self.block_length)

    @property
    def policy(self) -> CachePolicy:
        """The cache as an object."""
        return parse_cache(self.cache)

    @property
    def rule(self) -> Decoder:
        """The decoder as an object."""
        return parse_decoder(self.decoder)


_T = TypeVar("_T")


def parse_cache(spec: CachePolicy | str) -> CachePolicy:
    """A cache policy from its spec; an object is returned as it is."""
    from fastdllm.caches import CACHES

    return _parse("cache", spec, CACHES) if isinstance(spec, str) else spec


def parse_decoder(spec: Decoder | str) -> Decoder:
    """A decoder from its spec; an object is returned as it is."""
    from fastdllm.decoders import DECODERS

    return _parse("decoder", spec, DECODERS) if isinstance(spec, str) else spec


def spec_of(name: str, values: Mapping[str, object]) -> str:
    """The spec of a strategy by its name and parameters."""
    parameters = ",".join(f"{key}={value}" for key, value in values.items())
    return f"{name}:{parameters}" if parameters else name


def describe(strategy: object) -> str:
    """The spec of a strategy with every parameter, as recorded beside results."""
    from fastdllm.caches import CACHES
    from fastdllm.decoders import DECODERS

    for registry in (CACHES, DECODERS):
        for name, kind in registry.items():
            if type(strategy) is kind:
                return spec_of(name, {f.name: getattr(strategy, f.name) for f in fields(kind)})  # type: ignore[arg-type]
    return repr(strategy)


def _parse(kind: str, spec: str, registry: Mapping[str, type[_T]]) -> _T:
    name, _, rest = spec.strip().partition(":")
    if name not in registry:
        raise OptionError(f"{kind} {name!r} is not one of {', '.join(registry)}.")
    cls = registry[name]
    hints = typing.get_type_hints(cls)
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    values: dict[str, object] = {}
    for part in filter(None, (p.strip() for p in rest.split(","))):
        key, eq, text = (p.strip() for p in part.partition("="))
        if not eq or key not in known or key in values:
            allowed = f"takes {', '.join(f'{k}=' for k in known)} each once" if known else "takes no parameters"
            raise OptionError(f"{kind} {name!r} {allowed}, not {part!r}.")
        values[key] = _value(f"{name}:{key}", text, hints[key])
    return cls(**values)


def _value(label: str, text: str, hint: object) -> object:
    """``text`` as the type of a dataclass field."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if type(None) in options and text.lower() == "none":
        return None
    if bool in options and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        if number in options:
            try:
                return number(text)
            except ValueError:
                pass
    if str in options:
        return text
    wanted = " or ".join(getattr(o, "__name__", str(o)) for o in options)
    raise OptionError(f"{label}={text!r} is not of type {wanted}.")
