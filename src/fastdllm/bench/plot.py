"""The pictures of a bench: bars of passes with the machine's limits, and how costs grow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from fastdllm.arena.plot import COLOURS, FAINT
from fastdllm.bench.run import Bench, Judged, Subject
from fastdllm.bench.scaling import COSTS, SIZES, Axis
from fastdllm.bench.spread import Spread
from fastdllm.bench.tables import MIB, exponent, three
from fastdllm.studies.figures import DPI, MARKERS, grid

BAR = 0.62
LIMITS = {"roofline": "-", "its matrix products alone": (0, (2, 1.5))}


def draw(done: Bench, path: Path) -> list[Path]:
    """Write the bars, and beside them ``NAME-scaling`` where sizes were varied; the paths written."""
    bars(done, path)
    if not done.axes:
        return [path]
    beside = path.with_name(f"{path.stem}-scaling{path.suffix}")
    growth(done, beside)
    return [path, beside]


def bars(done: Bench, path: Path) -> None:
    """Full pass, cached pass, generations and memory."""
    generating = [subject for subject in done.subjects if subject.generated is not None]
    panels = 3 + (done.footprint is not None)
    figure = Figure(figsize=((1.3 + 0.65 * len(done.subjects)) * panels + 1.4, 4.4), layout="constrained")
    axes = figure.subplots(1, panels)
    _pass_bars(axes[0], done.subjects, "full pass", lambda subject: subject.full)
    _pass_bars(axes[1], done.subjects, "cached pass", lambda subject: subject.cached)
    rates = [subject.generated.tokens_per_second for subject in generating if subject.generated]
    extrapolated = any(subject.generated.extrapolated for subject in generating if subject.generated)
    _bars(axes[2], [subject.label for subject in generating], rates)
    axes[2].set_title("generation" + ("\n(extrapolated)" if extrapolated else ""), fontsize=10)
    axes[2].set_ylabel("tokens/s")
    if done.footprint is not None:
        _memory(axes[3], done)
    limits = [Line2D([], [], color="black", ls=style, lw=1.6, label=name) for name, style in LIMITS.items()]
    spread = Line2D([], [], color="black", marker="|", ms=9, ls="", label="quartiles")
    figure.legend(handles=[*limits, spread], loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.suptitle(_caption(done), fontsize=8, color=FAINT)
    figure.savefig(path, dpi=DPI)


def _bars(axes: Axes, labels: Sequence[str], values: Sequence[Spread]) -> None:
    """Medians with quartiles."""
    for at, measured in enumerate(values):
        middle, (first, third) = measured.median, measured.quartiles
        axes.bar(at, middle, BAR, color=COLOURS[at % len(COLOURS)], alpha=0.85)
        error = [[middle - first], [third - middle]]
        axes.errorbar(at, middle, yerr=error, color="black", lw=0.9, capsize=3)
        axes.annotate(
            three(middle), (at, third), xytext=(0, 4), textcoords="offset points", ha="center", fontsize=9
        )  # fmt: skip
    axes.set_xticks(range(len(labels)), labels, fontsize=9)
    axes.set_xlim(-0.6, len(labels) - 0.4)
    axes.margins(y=0.14)
    grid(axes)
    axes.grid(axis="x", visible=False)


def _pass_bars(axes: Axes, subjects: Sequence[Subject], name: str, kind: Callable[[Subject], Judged]) -> None:
    judged = [kind(subject) for subject in subjects]
    labels = [f"{subject.label}\n{share(one)} % of\nroofline" for subject, one in zip(subjects, judged, strict=True)]
    _bars(axes, labels, [one.passes.network.scaled(1e3) for one in judged])
    for at, one in enumerate(judged):
        limits = (one.ceiling.roofline, one.ceiling.products)
        for seconds, style in zip(limits, LIMITS.values(), strict=True):
            axes.plot([at - BAR / 2, at + BAR / 2], [seconds * 1e3] * 2, color="black", lw=1.6, ls=style)
    rows = " or ".join(dict.fromkeys(f"{one.passes.work.batch * one.passes.work.rows}" for one in judged))
    axes.set_title(f"{name}\n{rows} rows", fontsize=10)
    axes.set_ylabel("ms")


def share(judged: Judged) -> str:
    """Percent of the roofline that the network attains."""
    return f"{100 * judged.ceiling.roofline / judged.passes.network.median:.0f}"


def _memory(axes: Axes, done: Bench) -> None:
    """Weights and store as they must be, the peak beside them."""
    held = done.footprint
    assert held is not None
    axes.bar(0, held.weights / MIB, BAR, color=COLOURS[3], alpha=0.85, label="weights")
    axes.bar(0, held.kv_store / MIB, BAR, bottom=held.weights / MIB, color=COLOURS[4], alpha=0.85, label="K/V store")
    axes.bar(1, held.generating / MIB, BAR, color=FAINT, alpha=0.85)
    axes.annotate(
        f"{100 * held.over:+.0f} %", (1, held.generating / MIB), xytext=(0, 4), textcoords="offset points",
        ha="center", fontsize=9,
    )  # fmt: skip
    axes.set_xticks([0, 1], ["needed", "peak"], fontsize=9)
    axes.set_xlim(-0.6, 1.6)
    axes.margins(y=0.32)
    axes.set_title(f"memory of {done.subjects[0].label}", fontsize=10)
    axes.set_ylabel("MiB")
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    grid(axes)
    axes.grid(axis="x", visible=False)


def _caption(done: Bench) -> str:
    """What was measured on what."""
    first, names = done.subjects[0], list(dict.fromkeys(str(subject.model["name"]) for subject in done.subjects))
    dtypes = list(dict.fromkeys(subject.dtype for subject in done.subjects))
    setting, runs_on = first.setting, first.environment
    asked = [f"{subject.label}: {subject.asked}" for subject in done.subjects if subject.asked]
    lengths = f"prompt {setting.prompt_length}, answer {setting.gen_length}, block {setting.block_length}"
    where = f"{runs_on['hardware']}, threads {setting.threads}, commit {runs_on['commit']}"
    what = f"{', '.join(names)}, {', '.join(dtypes)}, {lengths}, batch {setting.batch_size}"
    return "\n".join([what, where, *([",   ".join(asked)] if asked else [])])


def growth(done: Bench, path: Path) -> None:
    """A panel for each size that was varied: costs against it, both in logarithms, with the fitted powers."""
    columns = min(3, len(done.axes))
    lines = -(-len(done.axes) // columns)
    figure = Figure(figsize=(4.3 * columns, 3.5 * lines + 0.6), layout="constrained")
    panels = [*figure.subplots(lines, columns, squeeze=False).flat]
    for panel, axis in zip(panels, done.axes, strict=False):
        _growth_panel(panel, axis)
    for panel in panels[len(done.axes) :]:
        panel.set_axis_off()
    figure.suptitle(_caption(done), fontsize=8, color=FAINT)
    figure.savefig(path, dpi=DPI)


def _growth_panel(panel: Axes, axis: Axis) -> None:
    sizes = [point.size for point in axis.points]
    extrapolated = any(point.generated.extrapolated for point in axis.points)
    for number, name in enumerate(COSTS):
        fitted, colour = axis.growth(name), COLOURS[number]
        panel.plot([sizes[0], sizes[-1]], [1e3 * fitted.at(sizes[0]), 1e3 * fitted.at(sizes[-1])], color=colour, lw=1)
        mark = " (extrapolated)" if extrapolated and name == "token" else ""
        label = f"{COSTS[name]}{mark}: power {exponent(fitted)}"
        values = [1e3 * point.costs[name] for point in axis.points]
        panel.plot(sizes, values, MARKERS[number], color=colour, ms=5, mec="white", mew=0.5, label=label)
    panel.set(xscale="log", yscale="log", xlabel=f"{SIZES[axis.name]} (log scale)", ylabel="ms (log scale)")
    panel.xaxis.set_major_locator(FixedLocator([float(size) for size in sizes]))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda size, _: short(size)))
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    low, high = panel.get_ylim()
    panel.set_ylim(low, high * (high / low) ** 0.45)  # room for the legend
    panel.legend(fontsize=7, frameon=False, loc="upper left")
    grid(panel)


def short(size: float) -> str:
    """A size in few characters: 220M, 1.5B."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size >= unit and size >= 1e4:
            return f"{size / unit:.3g}{name}"
    return f"{size:g}"
