"""The picture of an arena: how often methods are right against what a token costs them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fastdllm.arena.report import Report
from fastdllm.arena.score import Score

Marker: TypeAlias = "str | tuple[int, Literal[0, 1, 2], int]"
COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#e08e1b", "#7b4fa3", "#3aa6a6", "#8c6239", "#c2579b", "#6b7a1e", "#555555")
MARKERS: tuple[Marker, ...] = (
    "o",
    "s",
    "^",
    "D",
    "v",
    "P",
    "X",
    "<",
    ">",
    "p",
    "*",
    "h",
    "8",
    "d",
    (4, 1, 0),
    (6, 1, 0),
    (3, 1, 0),
    (8, 1, 0),
)
TICKS = (1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 97, 98, 99, 99.5)  # percent right
FAINT = "#777777"
HEIGHT, LINE = 5.6, 0.18  # inches: of the picture at least, and of a line of its legend


def draw(report: Report, path: Path) -> None:
    """Write the picture: a colour for each cache, a marker for each decoder, numbers on the Pareto front."""
    points = [score for score in report.scores if score.rows_per_token is not None]
    caches, decoders = (list(dict.fromkeys(s.method.kinds[i] for s in points)) for i in (0, 1))
    colours = {cache: COLOURS[i % len(COLOURS)] for i, cache in enumerate(caches)}
    markers = {decoder: MARKERS[i % len(MARKERS)] for i, decoder in enumerate(decoders)}
    front = sorted((s for s in points if s.front), key=lambda s: s.rows_per_token or 0.0)
    figure = Figure(figsize=(11.5, HEIGHT), layout="constrained")
    axes = figure.subplots()
    for score in points:
        cache, decoder = score.method.kinds
        _point(axes, score, colours[cache], markers[decoder])
    _front(axes, front)
    axes.set(xscale="log", xlabel="rows computed per answer token (log scale)")
    _accuracy_axis(axes, points)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.tick_params(which="both", labelsize=9, length=3.5)
    axes.grid(alpha=0.2, which="both")
    s = report.settings
    title = f"{s['model']}, {report.scores[0].problems} problems, 95 % intervals\ncommit {report.distinct('commit')}"
    axes.set_title(title, fontsize=9, color=FAINT)
    _legend(figure, colours, markers, front)
    figure.savefig(path, dpi=130)


def _accuracy_axis(axes: Axes, points: Sequence[Score]) -> None:
    """Percent right on a logit scale: good methods differ by a few points near 100, and poor ones still fit."""
    low, high = min(s.interval[0] for s in points), max(s.interval[1] for s in points)
    low, high = (min(max(edge, 1.0), 99.9) for edge in (low - 2, high + (100 - high) / 2))
    axes.set(yscale="logit", ylim=(low / 100, high / 100), ylabel="problems right, % (logit scale)")
    axes.set_yticks([tick / 100 for tick in TICKS if low <= tick <= high], minor=False)
    axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:g}")
    axes.set_yticks([], minor=True)


def _height(percent: float) -> float:
    """Where a percentage stands: 0 and 100 lie at infinity on a logit scale, so they are drawn at the edge."""
    return min(max(percent / 100, 0.001), 0.999)


def _point(axes: Axes, score: Score, colour: str, marker: Marker) -> None:
    low, middle, high = (_height(p) for p in (score.interval[0], score.accuracy, score.interval[1]))
    error = [[middle - low], [high - middle]]
    size, ink, height = (7, 1.0, 3) if score.front else (5, 0.55, 2)
    axes.errorbar(
        [score.rows_per_token or 0.0], [middle], yerr=error, ls="", marker=marker, color=colour, ms=size, alpha=ink,
        elinewidth=0.8, capsize=2, mec="white", mew=0.5, zorder=height,
    )  # fmt: skip


def _front(axes: Axes, front: Sequence[Score]) -> None:
    """The line along the front, and each point's number in the table; equal points share a label."""
    places: dict[tuple[float, float], list[int]] = {}
    for score in front:
        places.setdefault((score.rows_per_token or 0.0, _height(score.accuracy)), []).append(score.number)
    axes.step([x for x, _ in places], [y for _, y in places], where="post", color=FAINT, lw=1, ls=":", zorder=1)
    for i, (at, numbers) in enumerate(places.items()):
        above = 9 if i % 2 else -15  # neighbours' labels go to different sides
        axes.annotate(
            ", ".join(map(str, numbers)), at, xytext=(6, above), textcoords="offset points", fontsize=9, weight="bold"
        )


def _legend(figure: Figure, colours: dict[str, str], markers: dict[str, Marker], front: Sequence[Score]) -> None:
    """Colours and markers, then the names of the numbered points, right of the picture."""
    none = Line2D([], [], ls="")
    keys: list[tuple[Line2D, str]] = [(none, "cache")]
    keys += [(Line2D([], [], marker="o", ls="", color=colour), name) for name, colour in colours.items()]
    keys += [(none, ""), (none, "decoder")]
    keys += [(Line2D([], [], marker=marker, ls="", color=FAINT), name) for name, marker in markers.items()]
    keys += [(none, ""), (none, "Pareto front")]
    keys += [(none, f"{s.number}  {s.method.name}") for s in front]
    figure.set_figheight(max(HEIGHT, LINE * len(keys)))
    handles, labels = zip(*keys, strict=True)
    legend = figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    for text in legend.get_texts():
        if text.get_text() in ("cache", "decoder", "Pareto front"):
            text.set_fontweight("bold")
