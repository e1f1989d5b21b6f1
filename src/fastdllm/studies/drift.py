"""How far cached keys, values and logits are from what computing everything anew would give.

At every pass of a cached generation the network runs once more over the same canvas, whole and without a cache.
What attention read is compared with that, slot by slot in every layer, and so are the logits of the block's open
slots. Each cache is judged on the canvases that it leads to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastdllm.checks import check_least
from fastdllm.config import GenerationConfig, GenerationOptions
from fastdllm.engine import Engine
from fastdllm.errors import OptionError
from fastdllm.studies.against import ALL, PARTS, STATES, Against, Found, distance_bounds
from fastdllm.studies.means import half_width, named
from fastdllm.studies.passes import Question, caption, document, encode, settings_of, watched
from fastdllm.studies.table import Table

NAME, TITLE = "drift", "Cached keys, values and logits against recomputation"
NOTES = (
    "Against the same canvas computed whole and without a cache, pass by pass: cosine, and length of the difference "
    "relative to the reference, of the keys and values that attention reads (all slots and layers), and of the logits "
    "of the block's open slots with their mean at 0. The argmax agrees where the best token is the same, of all open "
    "slots and of those committed. ±: 95 % intervals over problems. Parts: the prompt, the answer left of the block, "
    "the block, and what is right of it."
)
KINDS = ("key", "value", "logits")


@dataclass(frozen=True, kw_only=True)
class DriftOptions:
    """Caches to compare, and what is decoded with each.

    Args:
        every: look at every so many passes; each look costs a pass over the whole canvas.
    """

    caches: tuple[str, ...] = ("prefix", "dual", "dkv", "dllm", "d2cache")
    decoder: str = "topk:k=1"
    gen_length: int = 64
    block_length: int = 8
    seed: int = 0
    every: int = 1

    def __post_init__(self) -> None:
        check_least("every", self.every, 1)
        if not self.caches:
            raise OptionError("there is no cache to look at; name one at least.")
        for cache in self.caches:
            GenerationConfig(**self.generation(cache))

    def generation(self, cache: str) -> GenerationOptions:
        return {
            "gen_length": self.gen_length, "block_length": self.block_length, "cache": cache,
            "decoder": self.decoder, "seed": self.seed,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CacheDrift:
    """One cache: what was found over all problems, and the means of each problem."""

    cache: str
    settings: dict[str, Any]
    found: Found
    problems: Sequence[dict[str, float]]

    def as_json(self) -> dict[str, Any]:
        found = self.found
        by_layer = enumerate(found.states.mean(ALL).T)
        return {
            "cache": self.cache,
            "settings": self.settings,
            "passes": found.passes,
            **found.states.flat(ALL),
            **found.logits.flat(ALL),
            "committed_agreement": found.committed.flat(ALL)["agreement"],
            "by_layer": [{"layer": layer, **named(STATES, means)} for layer, means in by_layer],
            "by_part": found.parts.as_json("part", lambda label: PARTS[label]),
            "by_distance": found.distances.as_json("distance", distance_bounds),
            "by_age": found.ages.as_json("age"),
            "by_block": found.blocks.as_json("block"),
            "logits_by_block": found.logits_by_block.as_json("block"),
            "logits_by_step": found.logits_by_step.as_json("step"),
            "problems": list(self.problems),
        }

    def cells(self) -> list[str]:
        """One row of the table of errors."""
        means = [self._percent(f"{kind}_error", 2) for kind in KINDS]
        committed = self.found.committed.flat(ALL)["agreement"]
        return [self.cache, *means, self._percent("agreement", 1), f"{100 * committed:.1f}"]

    def _percent(self, name: str, digits: int) -> str:
        """A mean in percent with its interval."""
        width = half_width([100 * problem[name] for problem in self.problems])
        interval = "" if width is None else f"±{width:.{digits}f}"
        return f"{100 * self.found.overall()[name]:.{digits}f}{interval}"


@dataclass(frozen=True, kw_only=True)
class Drift:
    """All caches on the same problems."""

    options: DriftOptions
    model: str
    caches: Sequence[CacheDrift]

    def as_json(self) -> dict[str, Any]:
        return {"every": self.options.every, "caches": [cache.as_json() for cache in self.caches]}

    @property
    def tables(self) -> list[Table]:
        """Errors over everything, errors in each part of the canvas, and cosines."""
        names = ["K", "V", "logits"]
        errors = [cache.cells() for cache in self.caches]
        cosines, parts = list[list[str]](), list[list[str]]()
        for cache in self.caches:
            means, by_part = cache.found.overall(), cache.found.parts
            cosines.append([cache.cache, *(f"{means[f'{kind}_cosine']:.4f}" for kind in KINDS)])
            found = [by_part.flat(part) if part in by_part.sums else None for part in range(len(PARTS))]
            texts = [f"{100 * f['key_error']:.2f} / {100 * f['value_error']:.2f}" if f else "-" for f in found]
            parts.append([cache.cache, *texts])
        head = ["cache", *(f"{name} error, %" for name in names), "argmax agrees, %", "committed agree, %"]
        return [
            Table(head, errors),
            Table(["K / V error, %", *PARTS], parts),
            Table(["cosine to recomputed", *names], cosines),
        ]

    def markdown(self) -> str:
        """Picture, tables and notes."""
        return document(NAME, TITLE, self.tables, NOTES, f"{self.caption}.")

    @property
    def caption(self) -> str:
        """What was decoded, on one line."""
        settings, every = self.caches[0].settings, self.options.every
        passes = "every pass" if every == 1 else f"every {every} passes"
        return caption(settings, len(self.caches[0].problems), self.options.decoder, settings["dtype"], passes)


def run(
    engine: Engine, problems: Sequence[Question], options: DriftOptions, advance: Callable[[], None] = lambda: None
) -> Drift:
    """Decode every problem with every cache; ``advance`` is called for each problem of each cache."""
    caches = [_of_cache(engine, problems, options, cache, advance) for cache in options.caches]
    return Drift(options=options, model=engine.name, caches=caches)


def _of_cache(
    engine: Engine, problems: Sequence[Question], options: DriftOptions, cache: str, advance: Callable[[], None]
) -> CacheDrift:
    generation, total, means = options.generation(cache), Found(), []
    for prompt in encode(engine, problems, generation):
        against = Against(engine.model, options.every)
        for row in watched(engine, prompt, generation, against.see):
            against.note_committed(row, len(prompt))
        means.append(against.found.overall())
        total.absorb(against.found)
        advance()
    return CacheDrift(cache=cache, settings=settings_of(engine, generation), found=total, problems=means)
