"""The picture of the lengths: speed-up and accuracy over ``gen_length``, a column for each length of prompts."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from fastdllm.studies.figures import (
    DPI,
    PLAIN_COLOUR,
    RIGHT,
    aside,
    caption,
    colours,
    grid,
    line,
    markers,
    plural,
    powers,
    spread,
)
from fastdllm.studies.lengths import Cell, Lengths

WIDTH = 0.12
FULL, ENDS = "-", ":"


def draw(result: Lengths, path: Path) -> None:
    """Write the picture."""
    shots = list(dict.fromkeys(cell.shots for cell in result.cells))
    figure = Figure(figsize=(max(5.5, 1.2 + 3.4 * len(shots)), 6.6), layout="constrained")
    grid_of = figure.subplots(2, len(shots), squeeze=False, sharex="col", sharey="row")
    for column, count in enumerate(shots):
        cells = [cell for cell in result.cells if cell.shots == count]
        speed, right = grid_of[0][column], grid_of[1][column]
        _speedups(speed, cells, result.labels)
        _accuracies(right, cells, result.labels)
        speed.set_title(f"{plural(count, 'example')}, {cells[0].prompt_tokens:.0f} prompt tokens", fontsize=10)
        cut = {cell.gen_length: f"{cell.gen_length}\n{cell.endless:.0f} %" for cell in cells}
        right.xaxis.set_major_formatter(FuncFormatter(lambda value, _, cut=cut: cut.get(round(value), "")))
        right.set_xlabel("gen_length, slots (plain answers cut off)")
    grid_of[0][0].set_ylabel("speed-up over plain decoding")
    grid_of[1][0].set_ylabel(RIGHT)
    _legend(figure, result.labels)
    caption(figure, [cell.contest for cell in result.cells])
    figure.savefig(path, dpi=DPI)


def _speedups(axes: Axes, cells: list[Cell], labels: list[str]) -> None:
    shades, shapes = colours(labels[1:]), markers(labels[1:])
    for label, step in zip(labels[1:], aside(len(labels) - 1, WIDTH), strict=True):
        places = [cell.gen_length * (1 + step) for cell in cells]
        full = [cell.full_ratios(label) for cell in cells]
        spread(axes, places, full, shades[label], shapes[label], label, FULL)
        ends = [(place, cell.contest.ratios(label)) for place, cell in zip(places, cells, strict=True)]
        timed = [(place, ratios) for place, ratios in ends if ratios]
        spread(axes, [p for p, _ in timed], [r for _, r in timed], shades[label], shapes[label], label, ENDS)
    axes.axhline(1, color=PLAIN_COLOUR, lw=0.9, zorder=0)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    powers(axes, [cell.gen_length for cell in cells])
    grid(axes)


def _accuracies(axes: Axes, cells: list[Cell], labels: list[str]) -> None:
    shades = {labels[0]: PLAIN_COLOUR, **colours(labels[1:])}
    shapes = {labels[0]: "X", **markers(labels[1:])}
    for label, step in zip(labels, aside(len(labels), WIDTH), strict=True):
        places = [cell.gen_length * (1 + step) for cell in cells]
        line(axes, places, [cell.contest.score(label) for cell in cells], shades[label], shapes[label], label)
    powers(axes, [cell.gen_length for cell in cells])
    grid(axes)


def _legend(figure: Figure, labels: list[str]) -> None:
    shades = {labels[0]: PLAIN_COLOUR, **colours(labels[1:])}
    shapes = {labels[0]: "X", **markers(labels[1:])}
    handles = [Line2D([], [], color=shades[label], marker=shapes[label], ms=5, lw=1.3) for label in labels]
    handles += [
        Line2D([], [], color="black", ls=dashes, lw=1.3, marker="o", ms=5, mfc=fill)
        for dashes, fill in ((FULL, "black"), (ENDS, "white"))
    ]
    names = [*labels, "speed-up, full canvas", "speed-up, to the end token"]
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
