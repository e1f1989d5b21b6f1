"""The picture of approximation errors: a colour for each cache; keys, values and logits in a row each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fastdllm.arena.plot import FAINT
from fastdllm.studies.against import ALL, STATES, Found, distance_bounds
from fastdllm.studies.drift import Drift
from fastdllm.studies.figures import DPI, colours, grid, markers
from fastdllm.studies.means import Means

FEWEST = 20
"""Numbers that a point at a given age is the mean of, at least: the oldest slots are few."""
Points = list[tuple[float, float]]


def draw(result: Drift, path: Path) -> None:
    """Write the picture."""
    figure = Figure(figsize=(12.5, 9.6), layout="constrained")
    panels = figure.subplots(3, 3)
    for row, kind in enumerate(("key", "value")):
        _states(panels[row], result, kind)
    _logits(panels[2], result)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    title = f"Relative error against recomputation of the same canvas: {result.caption}"
    figure.suptitle(title, fontsize=9, color=FAINT)
    figure.savefig(path, dpi=DPI)


def _states(row: Sequence[Axes], result: Drift, kind: str) -> None:
    """Errors of keys or of values by layer, by distance to the block, and by age."""
    error = f"{kind}_error"
    _lines(row[0], result, lambda f: list(enumerate(f.states.mean(ALL)[STATES.index(error)].tolist())))
    row[0].set(xlabel="layer, 0 the first")
    row[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    _lines(row[1], result, lambda f: _points(f.distances, error))
    _name_distances(row[1], sorted({label for cache in result.caches for label in cache.found.distances.labels}))
    _lines(row[2], result, lambda f: _points(f.ages, error, FEWEST))
    row[2].set(xlabel="passes since the slot's row was computed")
    row[2].set_xscale("symlog", base=2, linthresh=1)
    row[2].xaxis.set_major_formatter("{x:g}")
    row[2].set_xlim(left=-0.2)
    for axes in row:
        axes.set_ylabel(f"relative error of {kind}s")


def _logits(row: Sequence[Axes], result: Drift) -> None:
    """Errors of logits by block and by pass of the block, and how often the best token differs."""
    _lines(row[0], result, lambda f: _points(f.logits_by_block, "logits_error"))
    row[0].set(xlabel="block, 0 the first", ylabel="relative error of logits")
    _lines(row[1], result, lambda f: _points(f.logits_by_step, "logits_error", FEWEST))
    row[1].set(xlabel="passes since the block was opened", ylabel="relative error of logits")
    _lines(row[2], result, lambda f: [(x, 100 - 100 * y) for x, y in _points(f.logits_by_block, "agreement")])
    row[2].set(xlabel="block, 0 the first", ylabel="best token differs, % of slots")
    for axes in row:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _points(means: Means, name: str, fewest: int = 1) -> Points:
    return [(label, means.flat(label)[name]) for label in means.labels if means.counts[label] >= fewest]


def _lines(axes: Axes, result: Drift, points: Callable[[Found], Points]) -> None:
    """A line for each cache."""
    names = [cache.cache for cache in result.caches]
    shades, shapes = colours(names), markers(names)
    for cache in result.caches:
        found = points(cache.found)
        axes.plot(
            [x for x, _ in found], [y for _, y in found], marker=shapes[cache.cache], ms=5, lw=1.3,
            color=shades[cache.cache], label=cache.cache, mec="white", mew=0.4,
        )  # fmt: skip
    axes.set_ylim(bottom=0)
    grid(axes)


def _name_distances(axes: Axes, labels: Sequence[int]) -> None:
    """Name the bins of distance; what is left of the block has a shade."""
    names = ["block" if label == 0 else _range(distance_bounds(label)) for label in labels]
    axes.set_xticks(labels, names, rotation=45, ha="right", fontsize=7)
    axes.axvline(0, color=FAINT, lw=0.8, ls=":")
    axes.set_xlabel("left of the block      distance, slots      right of it", fontsize=9)


def _range(bounds: Sequence[int]) -> str:
    low, high = sorted(map(abs, bounds))
    return str(low) if low == high else f"{low}-{high}"
