"""The picture of the block lengths: accuracy, rows and speed, a line for each cache."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from fastdllm.studies.blocks import Blocks, label_of
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
    powers,
    spread,
)

WIDTH = 0.10
"""Of the space that lines at one place take, as a share of the place."""


def draw(result: Blocks, path: Path) -> None:
    """Write the picture."""
    caches = list(result.options.caches)
    shades, shapes = colours(caches), markers(caches)
    figure = Figure(figsize=(11.5, 3.9), layout="constrained")
    right, rows, speed = figure.subplots(1, 3)
    for cache, step in zip(caches, aside(len(caches), WIDTH), strict=True):
        scores = [result.contest.score(label_of(cache, length)) for length in result.lengths]
        places = [length * (1 + step) for length in result.lengths]
        line(right, places, scores, shades[cache], shapes[cache], f"cache {cache}")
        costs = [(s.rows_per_token,) for s in scores if s.rows_per_token is not None]
        costly = [place for place, s in zip(places, scores, strict=True) if s.rows_per_token is not None]
        spread(rows, costly, costs, shades[cache], shapes[cache], f"cache {cache}")
        spread(speed, places, [s.speeds for s in scores], shades[cache], shapes[cache], f"cache {cache}")
    plain = result.contest.plain
    right.axhline(plain.accuracy, color=PLAIN_COLOUR, lw=0.9, ls=":", zorder=0, label=f"{plain.method.name}")
    names = {right: RIGHT, rows: "rows computed per answer token", speed: "answer tokens per second"}
    for axes, name in names.items():
        powers(axes, result.lengths)
        axes.set(xlabel="block length, slots", ylabel=name)
        grid(axes)
    rows.set_ylim(bottom=0)
    speed.set_ylim(bottom=0)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    caption(
        figure, [result.contest], f"gen_length {result.contest.report.settings['gen_length']}", result.options.decoder
    )
    figure.savefig(path, dpi=DPI)
