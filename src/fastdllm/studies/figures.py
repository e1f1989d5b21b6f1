"""What the pictures of the studies of speed and accuracy share."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fastdllm.arena.plot import COLOURS, FAINT
from fastdllm.arena.score import Score
from fastdllm.studies.study import Contest, merged

PLAIN_COLOUR = "#555555"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DPI = 160
RIGHT = "problems right, %"


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name."""
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}


def markers(names: Sequence[str]) -> dict[str, str]:
    """A marker for each name."""
    return {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(names)}


def aside(count: int, width: float) -> list[float]:
    """Steps to either side of a place, so that points of ``count`` series that coincide there are all seen."""
    return [width * (i - (count - 1) / 2) / max(1, count - 1) for i in range(count)]


def line(
    axes: Axes, places: Sequence[float], scores: Sequence[Score], colour: str, marker: str, label: str,
    dashes: str = "-",
) -> None:  # fmt: skip
    """Accuracies with their intervals."""
    heights = [score.accuracy for score in scores]
    bars(axes, places, heights, reach(scores), colour, marker, label, dashes)


def reach(scores: Sequence[Score]) -> tuple[list[float], list[float]]:
    """How far intervals reach below and above their accuracies; at 0 and at 100 the last bit may be off."""
    low = [max(0.0, score.accuracy - score.interval[0]) for score in scores]
    return low, [max(0.0, score.interval[1] - score.accuracy) for score in scores]


def spread(
    axes: Axes, places: Sequence[float], rounds: Sequence[Sequence[float]], colour: str, marker: str, label: str,
    dashes: str = "-",
) -> None:  # fmt: skip
    """Medians of rounds with the lowest and the highest."""
    middles = [statistics.median(values) for values in rounds]
    low = [middle - min(values) for middle, values in zip(middles, rounds, strict=True)]
    high = [max(values) - middle for middle, values in zip(middles, rounds, strict=True)]
    bars(axes, places, middles, (low, high), colour, marker, label, dashes)


def bars(
    axes: Axes, places: Sequence[float], heights: Sequence[float], errors: tuple[Sequence[float], Sequence[float]],
    colour: str, marker: str, label: str, dashes: str = "-",
) -> None:  # fmt: skip
    """A line with error bars; markers on a broken line are hollow."""
    solid = dashes in ("-", "")
    axes.errorbar(
        places, heights, yerr=errors, color=colour, marker=marker, ls=dashes, label=label, ms=5, lw=1.3,
        elinewidth=0.9, capsize=2,
        mfc=colour if solid else "white", mec="white" if solid else colour, mew=0.5 if solid else 1.0,
    )  # fmt: skip


def grid(axes: Axes) -> None:
    """Faint lines behind, no box on the right and above."""
    axes.grid(alpha=0.2)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


def powers(axes: Axes, values: Sequence[int]) -> None:
    """A horizontal axis in doublings, with ticks at the values and nowhere else."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator([float(value) for value in values]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlim(min(values) / 1.35, max(values) * 1.35)


def plural(count: int, what: str) -> str:
    """``1 problem``, ``2 problems``."""
    return f"{count} {what}{'s' * (count != 1)}"


def caption(figure: Figure, contests: Sequence[Contest], *own: str) -> None:
    """The line above a picture that says what was measured on what."""
    counts = sorted({len(contest.posed.problems) for contest in contests})
    several = len({contest.posed.digest for contest in contests}) > 1
    whole = merged([contest.report for contest in contests])
    asked = f"{counts[0]} to " * (len(counts) > 1) + plural(counts[-1], "problem") + " of each set" * several
    model = str(whole.settings["model"]).rstrip("/").rpartition("/")[2]  # of folders and hub ids the last name
    origin = [model, asked, *own, "95 % intervals", whole.distinct("hardware")]
    figure.suptitle(", ".join(origin), fontsize=9, color=FAINT)
