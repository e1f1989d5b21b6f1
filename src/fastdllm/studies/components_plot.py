"""The picture of the components: for each set of problems the speed and the accuracy of each method."""

from __future__ import annotations

import statistics
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastdllm.studies.components import Components
from fastdllm.studies.figures import DPI, PLAIN_COLOUR, RIGHT, caption, colours, grid, reach
from fastdllm.studies.study import Contest, times

ROOM = 1.42
"""Width of an axis against its longest bar: the speed is written after the bar."""


def draw(result: Components, path: Path) -> None:
    """Write the picture."""
    labels = list(result.options.methods)
    shades = {labels[0]: PLAIN_COLOUR, **colours(labels[1:])}
    height = 0.9 + len(result.contests) * (0.8 + 0.34 * len(labels))
    figure = Figure(figsize=(9.5, height), layout="constrained")
    rows = figure.subplots(len(result.contests), 2, squeeze=False, sharey="row")
    for (speed, right), contest in zip(rows, result.contests, strict=True):
        _speeds(speed, contest, labels, shades)
        _accuracies(right, contest, labels, shades)
        if len(result.contests) > 1:
            speed.set_title(contest.posed.name, fontsize=10, loc="left", parse_math=False)
    shared = result.contests[0].report.settings
    lengths = f"gen_length {shared['gen_length']} in blocks of {shared['block_length']}"
    caption(figure, result.contests, lengths)
    figure.savefig(path, dpi=DPI)


def _speeds(axes: Axes, contest: Contest, labels: list[str], shades: dict[str, str]) -> None:
    """Bars from the top down, with lowest and highest round, and the speed-up in words."""
    scores = [contest.score(label) for label in labels]
    middles = [statistics.median(score.speeds) for score in scores]
    low = [middle - min(score.speeds) for middle, score in zip(middles, scores, strict=True)]
    high = [max(score.speeds) - middle for middle, score in zip(middles, scores, strict=True)]
    places = range(len(labels))
    axes.barh(places, middles, xerr=(low, high), color=[shades[label] for label in labels], height=0.66, capsize=2)
    for place, label, middle, more in zip(places, labels, middles, high, strict=True):
        axes.annotate(
            f"{middle:.0f}  ({times(contest.ratios(label))})", (middle + more, place), xytext=(5, 0),
            textcoords="offset points", va="center", fontsize=9,
        )  # fmt: skip
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.set_xlim(0, ROOM * max(middle + more for middle, more in zip(middles, high, strict=True)))
    axes.set_xlabel("answer tokens per second (speed-up)")
    grid(axes)


def _accuracies(axes: Axes, contest: Contest, labels: list[str], shades: dict[str, str]) -> None:
    for place, label in enumerate(labels):
        score = contest.score(label)
        axes.errorbar(
            [score.accuracy], [place], xerr=reach([score]), fmt="o", ms=6, color=shades[label], capsize=3,
            elinewidth=1.2,
        )  # fmt: skip
    axes.axvline(contest.plain.accuracy, color=PLAIN_COLOUR, lw=0.9, ls=":", zorder=0)
    axes.set_xlabel(f"{RIGHT} (dotted: plain)")
    grid(axes)
