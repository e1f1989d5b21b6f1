"""How cost grows with each size, one at a time around a setting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from fastdllm.bench.generation import Generated, time_generations
from fastdllm.bench.passes import Both, time_passes
from fastdllm.bench.setting import Effort, Setting
from fastdllm.bench.shapes import parse_shape, spelled
from fastdllm.bench.spread import Growth, growth
from fastdllm.engine import Engine
from fastdllm.errors import OptionError
from fastdllm.memory import parameters

FACTORS = (0.25, 0.5, 1.0, 2.0)
"""Of the setting's own sizes: twice is what memory and patience allow."""
LENGTHS = {"prompt": "prompt_length", "answer": "gen_length", "block": "block_length", "batch": "batch_size"}
MODEL = "model"
AXES = (*LENGTHS, MODEL)
SIZES = {
    "prompt": "prompt tokens", "answer": "answer slots", "block": "block length", "batch": "prompts in a batch",
    "model": "parameters",
}  # fmt: skip
COSTS = {"full": "full pass", "cached": "cached pass", "token": "time per token"}
"""Of which growth is fitted: seconds of the network in a pass, and seconds of a generation for each token of it."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A setting with one size changed, and what it cost."""

    size: int
    setting: Setting
    passes: Both
    generated: Generated

    @property
    def costs(self) -> dict[str, float]:
        """Seconds, by the names of :data:`COSTS`."""
        return {
            "full": self.passes.full.network.median,
            "cached": self.passes.cached.network.median,
            "token": self.generated.seconds.median / self.generated.tokens,
        }

    def as_json(self) -> dict[str, object]:
        return {
            "size": self.size, "seconds": self.costs, "setting": self.setting.as_json(),
            "full": self.passes.full.as_json(), "cached": self.passes.cached.as_json(),
            "generation": self.generated.as_json(),
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One size from small to large, everything else as in the setting."""

    name: str
    points: tuple[Point, ...]

    def growth(self, cost: str) -> Growth:
        """How that cost grows with the size."""
        return growth([point.size for point in self.points], [point.costs[cost] for point in self.points])

    def as_json(self) -> dict[str, object]:
        return {
            "name": self.name, "size": SIZES[self.name],
            "growth": {cost: self.growth(cost).as_json() for cost in COSTS},
            "points": [point.as_json() for point in self.points],
        }  # fmt: skip


def sweep(setting: Setting, longest: int) -> dict[str, list[tuple[int, Setting]]]:
    """The settings of each axis with their sizes, ascending; model sizes where the model is a shape.

    Args:
        longest: canvas that the model has positions for.

    Raises:
        OptionError: there is no axis along which two sizes differ.
    """
    axes = {
        name: [(size, made) for size, made in _lengths(setting, field) if _canvas(made) <= longest]
        for name, field in LENGTHS.items()
    }
    if setting.load.shape is not None:
        axes[MODEL] = _models(setting)
    usable = {name: points for name, points in axes.items() if len(points) > 1}
    if not usable:
        raise OptionError("--scaling needs sizes above 1 to vary.")
    return usable


def _canvas(setting: Setting) -> int:
    return setting.prompt_length + setting.gen_length


def _lengths(setting: Setting, field: str) -> list[tuple[int, Setting]]:
    own = getattr(setting, field)
    factors = FACTORS if field != "batch_size" or own >= 4 else (1, 2, 4)
    sizes = sorted({round(own * factor) for factor in factors} - {0})
    if field == "block_length":
        sizes = [size for size in sizes if size <= setting.gen_length]
    settings = [(size, replace(setting, **{field: size})) for size in sizes]
    if field == "gen_length":  # shorter answers keep their blocks
        settings = [(size, made) for size, made in settings if size >= setting.block_length]
    return settings


def _models(setting: Setting) -> list[tuple[int, Setting]]:
    """Wider and narrower models: everything in proportion to the width, heads of the same width, the same layers."""
    config = parse_shape(str(setting.load.shape))
    found = {}
    for factor in (0.25, 0.5, 1.0):
        heads, groups = (round(count * factor) for count in (config.num_heads, config.num_kv_heads))
        if not groups or heads % groups:
            continue
        narrow = replace(
            config, hidden_size=heads * config.head_dim, num_heads=heads, num_kv_heads=groups,
            intermediate_size=max(1, round(config.intermediate_size * factor)),
        )  # fmt: skip
        load = replace(setting.load, shape=spelled(narrow)) if factor != 1 else setting.load
        found[parameters(narrow)] = replace(setting, load=load)
    return sorted(found.items())


def measure(
    engine: Engine, setting: Setting, effort: Effort, say: Callable[[str], None] = lambda line: None
) -> list[Axis]:
    """Passes and generations along every axis, the sizes of an axis in turns."""
    axes = []
    for name, settings in sweep(setting, engine.config.max_length).items():
        say(f"scaling over {SIZES[name]}: {', '.join(f'{size:,}' for size, _ in settings)}")
        subjects = [(engine if made.load == setting.load else made.load.open(), made) for _, made in settings]
        axes.append(Axis(name=name, points=tuple(_points(subjects, [size for size, _ in settings], effort))))
    return axes


def _points(subjects: Sequence[tuple[Engine, Setting]], sizes: Sequence[int], effort: Effort) -> Iterator[Point]:
    both = time_passes(subjects, effort.rounds)
    generated = time_generations(subjects, effort.runs, effort.passes)
    for size, (_, made), times, done in zip(sizes, subjects, both, generated, strict=True):
        yield Point(size=size, setting=made, passes=times, generated=done)
