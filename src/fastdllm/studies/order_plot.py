"""The picture of a decoding order: a row for each pass, a column for each slot of the answer."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from fastdllm.arena.plot import FAINT
from fastdllm.pieces import END
from fastdllm.studies.figures import DPI
from fastdllm.studies.order import Order

MAP, DONE, EDGE, REMASKED = "viridis", "#d9d9d9", "#d1495b", "#111111"
MOST_LABELS = 96
"""Slots of an answer whose tokens still fit under its columns."""
LONGEST_LABEL = 12
VISIBLE = str.maketrans({"\n": "⏎", "\t": "⇥", "\r": "␍", END: "(end)"})


def draw(result: Order, path: Path) -> None:
    """Write the picture."""
    slots, passes = shown_slots(result), len(result.passes)
    figure = Figure(figsize=(max(6.0, min(16.0, 2.2 + 0.17 * slots)), max(4.0, min(14.0, 2.4 + 0.17 * passes))))
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    axes.imshow(_done(result), cmap="gray", vmin=0, vmax=1, aspect="auto", extent=(0, slots, passes, 0))
    image = axes.imshow(
        _confidences(result), cmap=MAP, vmin=0, vmax=1, aspect="auto", extent=(0, slots, passes, 0), zorder=2
    )
    _events(axes, result)
    for border in range(result.block_length, slots, result.block_length):
        axes.axvline(border, color="#333333", lw=0.9, zorder=4)
    _label(axes, result)
    figure.colorbar(image, ax=axes, label="confidence of the best token", shrink=0.7, pad=0.01)
    _legend(figure, result)
    axes.set_title(f"Decoding order: {result.caption}", fontsize=9, color=FAINT, parse_math=False)
    figure.savefig(path, dpi=DPI)


def shown_slots(result: Order) -> int:
    """Slots up to the end of the last block that was decoded."""
    return min(len(result.labels), result.block_length * (1 + max(one.block for one in result.passes)))


def _confidences(result: Order) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Passes by slots; nothing where a slot could not be committed."""
    grid = np.full((len(result.passes), shown_slots(result)), np.nan)
    for i, one in enumerate(result.passes):
        for slot, sure in {**one.confidence, **one.committed}.items():
            grid[i, slot] = sure
    return grid


def _done(result: Order) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Passes by slots: a light grey where a slot has been committed before and still stands."""
    grid, stands = np.full((len(result.passes), shown_slots(result)), np.nan), set[int]()
    for i, one in enumerate(result.passes):
        grid[i, list(stands)] = 0.86
        stands = (stands | one.committed.keys()) - set(one.remasked)
    return grid


def _events(axes: Axes, result: Order) -> None:
    """A frame around what a pass committed, a cross where it opened a slot again."""
    width = 1.3 if shown_slots(result) <= MOST_LABELS else 0.6
    for i, one in enumerate(result.passes):
        for slot in one.committed:
            axes.add_patch(Rectangle((slot, i), 1, 1, fill=False, ec=EDGE, lw=width, zorder=5))
        axes.plot([s + 0.5 for s in one.remasked], [i + 0.5] * len(one.remasked), "x", color=REMASKED, ms=5, zorder=6)


def _label(axes: Axes, result: Order) -> None:
    """Passes on the left; tokens under their slots where they fit, else numbers."""
    slots, passes = shown_slots(result), len(result.passes)
    step = math.ceil(passes / 30)
    axes.set_yticks([i + 0.5 for i in range(0, passes, step)], [str(i + 1) for i in range(0, passes, step)], fontsize=7)
    axes.set_ylabel("pass")
    if slots > MOST_LABELS:
        starts = range(0, slots, max(result.block_length, slots // 16))
        axes.set_xticks([s + 0.5 for s in starts], [str(s) for s in starts], fontsize=8)
        axes.set_xlabel("slot of the answer, 0 the first; lines between blocks")
        return
    axes.set_xticks([s + 0.5 for s in range(slots)], map(readable, result.labels[:slots]), rotation=90, fontsize=7)
    for text in axes.get_xticklabels():
        text.set_parse_math(False)
    axes.set_xlabel("slots of the answer and their tokens in the end; lines between blocks")


def readable(piece: str) -> str:
    """A token as a label: spaces at its ends left out, what is long cut, what the font lacks as its code."""
    shown = (piece.strip(" ") or "␣" * len(piece)).translate(VISIBLE)
    shown = "".join(c if ord(c) in _characters() else f"U+{ord(c):04X}" for c in shown)
    return shown if len(shown) <= LONGEST_LABEL else shown[: LONGEST_LABEL - 1] + "…"


@cache
def _characters() -> frozenset[int]:
    """Code points that the labels' font can draw."""
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def _legend(figure: Figure, result: Order) -> None:
    keys: list[Line2D | Patch] = [
        Patch(fill=False, ec=EDGE, lw=1.3, label="committed in this pass"),
        Patch(fc=DONE, label="committed before"),
        Patch(fc="white", ec=FAINT, lw=0.5, label="not up for decoding"),
    ]
    if any(one.remasked for one in result.passes):
        keys.append(Line2D([], [], ls="", marker="x", color=REMASKED, label="opened again"))
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False, fontsize=8)
