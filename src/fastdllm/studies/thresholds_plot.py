"""The picture of the thresholds: accuracy over the threshold, and accuracy against tokens of a pass."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from fastdllm.arena.score import Score
from fastdllm.studies.figures import DPI, RIGHT, caption, colours, grid, line, markers
from fastdllm.studies.thresholds import SERIES, Thresholds

SHADES, SHAPES = colours(list(SERIES)), markers(list(SERIES))
HALO = [withStroke(linewidth=2.5, foreground="white")]
DASHES = ("-", "--", "-.", ":")
ABOVE = ("fixed", "threshold")
"""Series whose labels stand above their points; the others' stand below."""
LABELS = 0.04
"""Of the height, above the highest interval for its label."""
ROOM = 0.02
"""Between points that have labels, as a share of the widest."""
NAMES = {"fixed": "fixed number a pass", "threshold": "threshold", "factor": "factor"}


def draw(result: Thresholds, path: Path) -> None:
    """Write the picture."""
    figure = Figure(figsize=(11.5, 4.9), layout="constrained")
    over, against = figure.subplots(1, 2, sharey=True)
    _over_threshold(over, result)
    _against_tokens(against, result)
    low, high = over.get_ylim()
    over.set_ylim(low, high + LABELS * (high - low))
    settings = result.contest.report.settings
    lengths = f"gen_length {settings['gen_length']} in blocks of {settings['block_length']}"
    pairs = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in (against, over)]
    handles = {name: handle for handle, name in chain(*pairs)}
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9
    )
    caption(figure, [result.contest], f"cache {result.options.cache}", lengths)
    figure.savefig(path, dpi=DPI)


def _over_threshold(axes: Axes, result: Thresholds) -> None:
    """Each threshold at its own place, with its tokens of a pass; fixed numbers are level lines."""
    labels, contest = result.options.labels("threshold"), result.contest
    scores = [contest.score(label) for label in labels.values()]
    places = range(len(labels))
    for label, dashes in zip(result.options.labels("fixed").values(), cycle(DASHES), strict=False):
        axes.axhline(contest.score(label).accuracy, color=SHADES["fixed"], lw=1.1, ls=dashes, zorder=1, label=label)
    line(axes, places, scores, SHADES["threshold"], SHAPES["threshold"], NAMES["threshold"])
    for place, score in zip(places, scores, strict=True):
        axes.annotate(
            f"{score.tokens_per_forward:.1f}", (place, score.accuracy), xytext=(5, -11), textcoords="offset points",
            fontsize=8, color=SHADES["threshold"], path_effects=HALO,
        )  # fmt: skip
    axes.set_xticks(places, [f"{value:g}" for value in labels])
    axes.set(xlabel="threshold (numbers: tokens of a pass)", ylabel=RIGHT)
    axes.margins(x=0.08)
    grid(axes)


def _against_tokens(axes: Axes, result: Thresholds) -> None:
    for series in SERIES:
        labels = result.options.labels(series)
        scores = {value: result.contest.score(label) for value, label in labels.items()}
        ranked = sorted(scores.values(), key=lambda score: score.tokens_per_forward)
        places = [score.tokens_per_forward for score in ranked]
        line(axes, places, ranked, SHADES[series], SHAPES[series], NAMES[series])
        _name(axes, scores, series)
    axes.set_xlabel("answer tokens of a pass (TPF)")

    grid(axes)


def _name(axes: Axes, scores: Mapping[float, Score], series: str) -> None:
    """The parameter of each point that has room for it: above its interval, or below."""
    widest = max((score.tokens_per_forward for score in scores.values()), default=0.0)
    last, above = -widest, series in ABOVE
    for value, score in sorted(scores.items(), key=lambda item: item[1].tokens_per_forward):
        if score.tokens_per_forward - last < ROOM * widest:
            continue
        last = score.tokens_per_forward
        axes.annotate(
            f"{value:g}", (last, score.interval[1] if above else score.interval[0]), xytext=(0, 3 if above else -3),
            textcoords="offset points", ha="center", va="bottom" if above else "top", rotation=90, fontsize=8,
            color=SHADES[series], path_effects=HALO,
        )  # fmt: skip
