"""The heat maps of K/V similarity: a column for each part of the canvas, a row for keys and one for values."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fastdllm.arena.plot import FAINT
from fastdllm.studies.figures import DPI
from fastdllm.studies.similarity import KINDS, PARTS, Similarity

MAP = "viridis"
TICKS = 8
"""Most block borders that are marked on an axis."""


def draw(result: Similarity, path: Path) -> None:
    """Write the picture; all maps share one scale, from the least cosine found to 1."""
    least = math.floor(float(result.matrices.min()) * 20) / 20
    figure = Figure(figsize=(8.6, 8.0), layout="constrained")
    grid = figure.subplots(len(KINDS), len(PARTS), sharex=True, sharey=True)
    for p, part in enumerate(PARTS):
        for k, kind in enumerate(KINDS):
            axes, matrix = grid[k][p], result.matrices[p, k]
            size = len(result.passes)
            image = axes.imshow(matrix, vmin=least, vmax=1.0, cmap=MAP, origin="lower", extent=(0, size, 0, size))
            axes.set_title(f"{kind} of the {part}, least {float(matrix.min()):.2f}", fontsize=10)
            _ticks(axes, result)
            if part == "last block":
                _mark_last_block(axes, result)
    for axes in grid[-1]:
        axes.set_xlabel("pass")
    for row in grid:
        row[0].set_ylabel("pass")
    figure.colorbar(image, ax=grid, label="cosine similarity", shrink=0.75, pad=0.02)
    figure.suptitle(result.caption, fontsize=9, color=FAINT)
    figure.savefig(path, dpi=DPI)


def _ticks(axes: Axes, result: Similarity) -> None:
    """Ticks where blocks open, or where the problems differ in that, at round places."""
    size = len(result.passes)
    places = list(range(0, size, max(1, size // TICKS)))
    if result.blocks is not None:
        opening = [i for i, block in enumerate(result.blocks) if i == 0 or block != result.blocks[i - 1]]
        places = opening[:: math.ceil(len(opening) / TICKS)]
    labels = [str(result.passes[i]) for i in places]
    centres = [i + 0.5 for i in places]
    axes.set_xticks(centres, labels, fontsize=8)
    axes.set_yticks(centres, labels, fontsize=8)


def _mark_last_block(axes: Axes, result: Similarity) -> None:
    """A frame around the passes that decode the last block."""
    if result.blocks is None:
        return
    first = result.blocks.index(result.blocks[-1])
    side = len(result.passes) - first
    axes.add_patch(Rectangle((first, first), side, side, fill=False, ec="#d1495b", lw=1.6, clip_on=False))
    axes.annotate(
        "being decoded", (first, first), xytext=(-5, -5), textcoords="offset points", fontsize=8, ha="right", va="top"
    )
