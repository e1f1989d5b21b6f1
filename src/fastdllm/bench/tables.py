"""A bench as tables and sentences."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from fastdllm.bench.generation import Generated, KindOf
from fastdllm.bench.operators import Operator
from fastdllm.bench.peaks import Machine
from fastdllm.bench.run import Bench, Judged, Subject
from fastdllm.bench.scaling import COSTS, SIZES, Axis
from fastdllm.bench.spread import Growth, Ratio, Spread
from fastdllm.studies.table import Table

MIB = 2**20
KINDS = 6
"""Kinds of passes that a table shows; a file has all."""
ROOFLINE = (
    "Roofline: the longer of a pass's FLOPs at the machine's peak (its fastest matrix product of this run) and its "
    "bytes (weights, keys and values, logits, each moved once) at the rate of reading memory. Products: the matrix "
    "products of the pass alone, each at the best rate measured for its own shape and rows, and attention at the peak. "
    "Both are made of best moments. Of the roofline, the median pass has the first share, the fastest the second."
)


def passes(subjects: Sequence[Subject]) -> Table:
    """A row for each kind of pass: how long it takes, and what part of the machine's best that is."""
    head = ["pass", "setting", "rows", "network, ms (quartiles)", "whole, ms", "of roofline (fastest)", "of products"]
    rows = [[kind, subject.label, *_taken(judged)] for kind, subject, judged in _judged(subjects)]
    return Table(head, rows)


def needs(subjects: Sequence[Subject]) -> Table:
    """A row for each kind of pass: what it must do, and how long that takes at the machine's best."""
    head = ["pass", "setting", "GFLOP", "MB", "roofline, ms", "bound by", "products, ms"]
    rows = [
        [
            kind, subject.label, three(judged.cost.total_flops / 1e9), three(judged.cost.total_bytes / 1e6),
            three(judged.ceiling.roofline * 1e3), judged.ceiling.bound, three(judged.ceiling.products * 1e3),
        ]
        for kind, subject, judged in _judged(subjects)
    ]  # fmt: skip
    return Table(head, rows)


def _judged(subjects: Sequence[Subject]) -> Iterator[tuple[str, Subject, Judged]]:
    for kind in ("full", "cached"):
        for subject in subjects:
            yield kind, subject, subject.full if kind == "full" else subject.cached


def _taken(judged: Judged) -> list[str]:
    work, network, ceiling = judged.passes.work, judged.passes.network, judged.ceiling
    return [
        f"{work.batch} x {work.rows}" if work.batch > 1 else f"{work.rows}",
        spread(network.scaled(1e3)),
        three(judged.passes.whole.median * 1e3),
        f"{100 * ceiling.roofline / network.median:.0f} % ({100 * ceiling.roofline / network.least:.0f} %)",
        f"{100 * ceiling.products / network.median:.0f} %",
    ]


def three(value: float) -> str:
    """Three digits, and all of those left of the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def spread(values: Spread) -> str:
    """The median, and quartiles where there are several values."""
    if len(values.values) == 1:
        return three(values.median)
    first, third = values.quartiles
    return f"{three(values.median)} ({three(first)}-{three(third)})"


def machine(of: Machine) -> Table:
    """The rates of products, and of reading memory in the last row."""
    rows = [
        [
            rate.product.name, f"{rate.product.rows} x {rate.product.inner} x {rate.product.outer}", rate.layout,
            three(rate.flops_per_second / 1e9),
        ]
        for rate in of.rates
    ]  # fmt: skip
    reading = ["reading memory", "-", of.reading_by, f"{three(of.reading / 1e9)} GB/s"]
    return Table([f"product, {of.dtype}", "rows x inner x outer", "layout", "GFLOP/s"], [*rows, reading])


def kinds(generated: Generated, label: str = "") -> Table:
    """The kinds of passes of a generation, those that take longest together first."""
    shown = sorted(generated.kinds, key=lambda kind: -kind.seconds.median * kind.count)[:KINDS]
    total = sum(kind.seconds.median * kind.count for kind in generated.kinds)
    return Table(
        [f"passes of {label}" if label else "passes", "rows", "count", "timed in a run", "ms", "share of time"],
        [
            [
                "open a block" if kind.kind.opens else "in a block", _rows(kind), f"{kind.count}", f"{kind.timed}",
                spread(kind.seconds.scaled(1e3)), f"{100 * kind.seconds.median * kind.count / total:.0f} %",
            ]
            for kind in shown
        ],
    )  # fmt: skip


def _rows(kind: KindOf) -> str:
    rows = kind.kind.rows
    if len(rows) == 1:
        return f"{rows[0]}"
    return f"{len(rows)} x {rows[0]}" if len(set(rows)) == 1 else f"{len(rows)} x {statistics.fmean(rows):.0f}"


def operators(found: Sequence[Operator], kind: str, top: int) -> Table:
    """Those that take longest, and the others together."""
    rows = [[one.name, f"{one.calls:g}", three(one.seconds * 1e3), f"{100 * one.share:.1f} %"] for one in found[:top]]
    rest = found[top:]
    if rest:
        calls, seconds, share = (sum(getattr(one, name) for one in rest) for name in ("calls", "seconds", "share"))
        rows.append([f"{len(rest)} others", f"{calls:g}", three(seconds * 1e3), f"{100 * share:.1f} %"])
    return Table([f"operator, {kind} pass", "calls", "self ms", "share"], rows)


def scaling(axes: Sequence[Axis]) -> Table:
    """Exponents of growth: a row for each size."""
    head = ["grows with", "from", "to", *COSTS.values()]
    return Table(
        head,
        [
            [
                SIZES[axis.name], f"{axis.points[0].size:,}", f"{axis.points[-1].size:,}",
                *(exponent(axis.growth(cost)) for cost in COSTS),
            ]
            for axis in axes
        ],
    )  # fmt: skip


def exponent(grown: Growth) -> str:
    """With half its 95 % interval."""
    if grown.interval is None:
        return f"{grown.exponent:.2f}"
    return f"{grown.exponent:.2f} ± {(grown.interval[1] - grown.interval[0]) / 2:.2f}"


def times(found: Ratio) -> str:
    """``1.83 times as fast (1.80 to 1.86)``."""
    interval = f" ({found.interval[0]:.2f} to {found.interval[1]:.2f})" if found.interval else ""
    return f"{found.value:.2f} times as fast{interval}"


def sentences(done: Bench) -> Iterator[tuple[str, str]]:
    """What is no table, under names."""
    for subject in done.subjects:
        name = f"{subject.label}: " if len(done.subjects) > 1 else ""
        if subject.generated is not None:
            yield f"{name}generation", generation(subject.generated)
    for one in done.comparisons:
        sure = f" over {one.ratio.pairs} pairs, 95 % interval" if one.ratio.interval else ", measured once"
        yield one.by, f"{one.first} is {times(one.ratio)} as {one.second}{sure}"
    if done.footprint is not None:
        yield f"{done.subjects[0].label}: memory" if len(done.subjects) > 1 else "memory", memory(done)
    before, after = (", ".join(f"{x:.2f}" for x in load or ()) or "-" for load in (done.load_before, done.load_after))
    yield "load average", f"{before} before, {after} after (1, 5, 15 minutes)"


def generation(made: Generated) -> str:
    """Speed and how it was found."""
    rate, took = made.tokens_per_second, made.seconds
    runs = f"{len(took.values)} run{'s' * (len(took.values) != 1)}"
    how = f"{made.passes} passes, {made.tokens / made.passes:.2f} tokens a pass, {runs}"
    if made.extrapolated:
        how = f"EXTRAPOLATED from {made.timed} of {made.passes} passes in each of {runs}"
    return f"{spread(rate)} tokens/s: {made.tokens} tokens in {spread(took)} s ({how})"


def memory(done: Bench) -> str:
    held = done.footprint
    assert held is not None
    return (
        f"peak of a generation {held.generating / MIB:.0f} MiB, {100 * held.over:+.0f} % of weights "
        f"{held.weights / MIB:.0f} MiB and K/V store {held.kv_store / MIB:.0f} MiB; peak of loading "
        f"{held.loading / MIB:.0f} MiB ({held.how})"
    )


def title(done: Bench) -> list[str]:
    """What was measured on what: a line for each model, and for each setting that is not that of the one before."""
    lines, before = list[str](), ""
    for subject in done.subjects:
        setting, runs_on, model = subject.setting, subject.environment, subject.model
        layers = " and ".join(f"{count} {name}" for name, count in model["linear_layers"].items())
        compiled = ", compiled" if setting.load.compile else ""
        where = f"{runs_on['hardware']}, threads {setting.threads}, torch {runs_on['torch']}"
        what = f"{model['name']}, {model['family']}, {model['parameters']:,} parameters, {subject.dtype}"
        lines.append(f"{subject.label}: {what} ({layers}{compiled}) on {where}")
        asked = (
            f"prompt {setting.prompt_length}, answer {setting.gen_length} in blocks of {setting.block_length}, batch "
            f"{setting.batch_size}, cache {setting.cache}, decoder {setting.decoder_name}; end tokens end nothing"
        )
        if asked != before:
            lines.append(asked)
        before = asked
    return lines


def all_tables(done: Bench, top: int) -> Iterator[Table]:
    """Every table of a bench; ``top`` operators of a profile."""
    yield passes(done.subjects)
    yield needs(done.subjects)
    for subject in done.subjects:
        if subject.generated is not None:
            yield kinds(subject.generated, subject.label if len(done.subjects) > 1 else "")
    for of in done.machines:
        yield machine(of)
    for kind, found in done.operators.items():
        yield operators(found, kind, top)
    if done.axes:
        yield scaling(done.axes)
