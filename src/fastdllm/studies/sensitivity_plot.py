"""The picture of the sensitivity: for each task its accuracy over the threshold, against plain decoding's interval."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from fastdllm.arena.plot import COLOURS
from fastdllm.studies.figures import DPI, PLAIN_COLOUR, RIGHT, caption, grid, line, plural
from fastdllm.studies.sensitivity import Sensitivity, Task, Verdict

COLUMNS = 3
NARROWEST = 8.5  # inches, for the legend
LOOKS: dict[Verdict, tuple[str, str]] = {
    "shown": (COLOURS[2], "o"), "seems": (COLOURS[0], "s"), "loses": (COLOURS[1], "v"),
}  # fmt: skip


def draw(result: Sensitivity, path: Path) -> None:
    """Write the picture."""
    columns = min(COLUMNS, len(result.tasks))
    lines = math.ceil(len(result.tasks) / columns)
    figure = Figure(figsize=(max(NARROWEST, 1.0 + 3.3 * columns), 1.4 + 2.4 * lines), layout="constrained")
    grid_of = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    places = [axes for row in grid_of for axes in row]
    for axes, task in zip(places, result.tasks, strict=False):
        _task(axes, task)
    for axes in places[len(result.tasks) :]:
        axes.set_visible(False)
    for place, axes in enumerate(places[: len(result.tasks)]):
        if place + columns >= len(result.tasks):
            axes.set_xlabel("threshold")
            axes.tick_params(labelbottom=True)
    figure.supylabel(RIGHT, fontsize=10)
    _legend(figure, result)
    caption(figure, result.contests, f"cache {result.options.cache}")
    figure.savefig(path, dpi=DPI)


def _task(axes: Axes, task: Task) -> None:
    values, heights = list(task.scores), [score.accuracy for score in task.scores.values()]
    axes.axhspan(*task.plain.interval, color=PLAIN_COLOUR, alpha=0.13, lw=0)
    axes.axhline(task.plain.accuracy, color=PLAIN_COLOUR, lw=1.0, ls=":")
    axes.plot(range(len(values)), heights, color=PLAIN_COLOUR, lw=1.0)
    for verdict, (colour, marker) in LOOKS.items():
        places = [place for place, value in enumerate(values) if task.verdict(value) == verdict]
        line(axes, places, [task.scores[values[place]] for place in places], colour, marker, verdict, "")
    axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    safe = "none shown to be safe" if task.safe is None else f"safe from {task.safe:g}"
    title = f"{task.name}\n{plural(task.plain.problems, 'problem')}, {safe}"
    axes.set_title(title, fontsize=9, parse_math=False)
    grid(axes)
    axes.tick_params(labelsize=8)


def _legend(figure: Figure, result: Sensitivity) -> None:
    margin, sure = f"{100 * result.options.margin:g} points", f"{100 * result.options.confidence:g} %"
    words: dict[Verdict, str] = {
        "shown": f"shown to lose less than {margin} ({sure})", "seems": "neither shown nor seen to lose more",
        "loses": "seen to lose more",
    }  # fmt: skip
    handles = [Line2D([], [], color=PLAIN_COLOUR, ls=":", lw=1.0), Patch(color=PLAIN_COLOUR, alpha=0.13, lw=0)]
    handles += [Line2D([], [], color=colour, marker=marker, ms=5, ls="") for colour, marker in LOOKS.values()]
    names = ["plain decoding", "its interval", *words.values()]
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
