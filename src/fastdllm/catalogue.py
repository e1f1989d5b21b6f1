"""Every cache and decoder as a user chooses among them, from the registries themselves."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A parameter of a cache or decoder."""

    name: str
    type: str
    """As in ``int | None``."""
    default: int | float | str | None
    """Empty where it must be given."""

    @property
    def spelt(self) -> str:
        """The default as specs write it: none, true and false are lower case."""
        return (
            str(self.default).lower() if self.default is None or isinstance(self.default, bool) else str(self.default)
        )


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a researcher wants to know of a cache or decoder before choosing it."""

    name: str
    parameters: tuple[Parameter, ...]
    what: str
    source: str
    """The paper it comes from; empty where nobody claims it."""


def catalogue() -> dict[str, list[Entry]]:
    """The registries' entries under a heading for each."""
    from fastdllm.caches import CACHES
    from fastdllm.decoders import DECODERS

    return {"Caches": _entries(CACHES), "Decoders": _entries(DECODERS)}


def _entries(registry: Mapping[str, type]) -> list[Entry]:
    return [
        Entry(
            name=name,
            parameters=_parameters(cls),
            what=first_sentence(inspect.getdoc(cls) or ""),
            source=getattr(cls, "source", ""),
        )
        for name, cls in registry.items()
    ]


def _parameters(cls: type) -> tuple[Parameter, ...]:
    hints = typing.get_type_hints(cls)
    return tuple(
        Parameter(
            name=f.name,
            type=getattr(hints[f.name], "__name__", "") if isinstance(hints[f.name], type) else str(hints[f.name]),
            default="" if f.default is MISSING else f.default,
        )
        for f in fields(cls)
    )


def first_sentence(doc: str) -> str:
    """The first sentence of a docstring, less a reference in brackets at its end, which has a column of its own."""
    paragraph = " ".join(doc.split("\n\n")[0].split()).replace("``", "`")
    sentence = re.split(r"(?<=\.)\s+(?=[A-Z`])", paragraph, maxsplit=1)[0]
    return re.sub(r"\s*\([^()]*\)\.$", ".", sentence)
