"""A bench from beginning to end: load, memory, the machine's peaks, passes and generations in turns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from itertools import combinations, zip_longest
from typing import Any, TypeAlias

import torch

from fastdllm.bench import peaks, scaling
from fastdllm.bench.costs import Cost, Product, cost, products
from fastdllm.bench.footprint import Footprint, open_watched
from fastdllm.bench.generation import Generated, time_generations
from fastdllm.bench.operators import Operator, profile_passes
from fastdllm.bench.passes import Both, Passes, time_passes, works
from fastdllm.bench.peaks import Ceiling, Machine
from fastdllm.bench.schedule import passes_of
from fastdllm.bench.setting import Effort, Load, Setting
from fastdllm.bench.spread import Ratio, ratio
from fastdllm.engine import Engine
from fastdllm.machine import load_average
from fastdllm.memory import parameters, weight_bytes
from fastdllm.record import environment

Advance: TypeAlias = Callable[[], None]
Watch: TypeAlias = Callable[[str, int], AbstractContextManager[Advance]]
"""Told what is done and how many steps it has; what it gives is called after each."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be measured.

    Args:
        settings: one, or two that are compared.
        plain: time the passes of the same model with plain ``nn.Linear`` weights beside them.
    """

    settings: tuple[Setting, ...]
    asked: tuple[str, ...]
    """The settings as they were asked for; empty for what all options say."""
    effort: Effort
    plain: bool = False
    memory: bool = True
    profile: bool = False
    scaling: bool = False
    command: str = ""

    @property
    def labels(self) -> tuple[str, ...]:
        """What tables call the settings."""
        return ("A", "B") if len(self.settings) > 1 else ("fastdllm",)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A kind of pass with what it must do, and what the machine would need for that at its best."""

    passes: Passes
    cost: Cost
    ceiling: Ceiling

    @property
    def attained(self) -> dict[str, float]:
        """Seconds."""
        network = self.passes.network
        return {"network": network.median, "fastest": network.least, "whole": self.passes.whole.median}

    def as_json(self) -> dict[str, object]:
        return {**self.passes.as_json(), **self.cost.as_json(), "roofline": self.ceiling.as_json(self.attained)}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One setting and all that was measured of it; ``generated`` is None for a reference."""

    label: str
    asked: str
    setting: Setting
    model: Mapping[str, Any]
    environment: Mapping[str, Any]
    full: Judged
    cached: Judged
    rounds: tuple[tuple[float, float], ...]
    generated: Generated | None

    @property
    def dtype(self) -> str:
        return str(self.model["dtype"])

    def as_json(self) -> dict[str, object]:
        return {
            "label": self.label, "asked": self.asked, "setting": self.setting.as_json(), "model": self.model,
            "environment": self.environment, "full_pass": self.full.as_json(), "cached_pass": self.cached.as_json(),
            "generation": self.generated.as_json() if self.generated else None,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How many times as fast one subject is as another."""

    first: str
    second: str
    by: str
    ratio: Ratio

    def as_json(self) -> dict[str, object]:
        return {"speed_of": self.first, "over": self.second, "by": self.by, **self.ratio.as_json()}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Everything that was measured, and what it depends on."""

    command: str
    load_before: Sequence[float] | None
    load_after: Sequence[float] | None
    machines: tuple[Machine, ...]
    subjects: tuple[Subject, ...]
    comparisons: tuple[Comparison, ...]
    footprint: Footprint | None
    operators: Mapping[str, Sequence[Operator]]
    axes: tuple[scaling.Axis, ...]

    def as_json(self) -> dict[str, object]:
        return {
            "fastdllm_bench": 1, "command": self.command,
            "load_average": {"before": self.load_before, "after": self.load_after},
            "machine": [machine.as_json() for machine in self.machines],
            "subjects": [subject.as_json() for subject in self.subjects],
            "comparisons": [comparison.as_json() for comparison in self.comparisons],
            "memory": self.footprint.as_json() if self.footprint else None,
            "profile": {kind: [one.as_json() for one in found] for kind, found in self.operators.items()},
            "scaling": [axis.as_json() for axis in self.axes],
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A setting with its engine, ready to be timed."""

    label: str
    asked: str
    engine: Engine
    setting: Setting

    @property
    def products(self) -> list[Product]:
        """Of a full and of a cached pass."""
        config = self.engine.config
        return [made for work in works(config, self.setting) for made in products(config, work)]

    @property
    def machine_key(self) -> tuple[object, ...]:
        """What the machine's peaks are measured for."""
        return self.engine.precision, self.engine.device, self.setting.threads, tuple(self.products)


def bench(request: Request, watch: Watch, say: Callable[[str], None]) -> Bench:
    """Measure what is asked for.

    Args:
        watch: for work that has steps.
        say: told in a line what begins.

    Raises:
        OptionError, CheckpointError: a setting cannot be had; nothing has been timed then.
    """
    for setting in request.settings:
        config = setting.load.config()
        setting.check(config)
        if request.effort.passes:
            passes_of(setting, config)
    before = load_average()
    compared, footprint = _open(request, say)
    entries = [*compared, *_reference(request, compared[0], say)]
    machines = _measure_machines(entries, watch)
    with watch("rounds of passes", request.effort.rounds * len(entries)) as advance:
        both = time_passes([(entry.engine, entry.setting) for entry in entries], request.effort.rounds, advance)
    with watch("generations", request.effort.runs * len(compared)) as advance:
        generated = time_generations(
            [(entry.engine, entry.setting) for entry in compared], request.effort.runs, request.effort.passes, advance
        )
    subjects = [
        _subject(entry, found, done, machines[entry.machine_key])
        for entry, found, done in zip_longest(entries, both, generated)
    ]
    first = compared[0].engine, compared[0].setting
    if request.profile:
        say("profiling passes")
    return Bench(
        command=request.command, load_before=before, footprint=footprint, machines=tuple(machines.values()),
        subjects=tuple(subjects),
        comparisons=tuple(one for pair in combinations(subjects, 2) for one in compared_with(*pair)),
        operators=profile_passes(*first) if request.profile else {},
        axes=tuple(scaling.measure(*first, request.effort, say) if request.scaling else ()),
        load_after=load_average(),
    )  # fmt: skip


def _open(request: Request, say: Callable[[str], None]) -> tuple[list[Entry], Footprint | None]:
    """An engine for each setting, equal ones once; memory is watched while the first is opened."""
    threads = torch.get_num_threads()
    engines: dict[Load, Engine] = {}
    footprint, entries = None, []
    for label, asked, given in zip(request.labels, request.asked, request.settings, strict=True):
        setting = replace(given, threads=given.threads or threads)
        if setting.load not in engines:
            say(f"loading {setting.load.name}")
            if request.memory and not engines:
                engines[setting.load], footprint = open_watched(setting)
            else:
                setting.take_threads()
                engines[setting.load] = setting.load.open()
        entries.append(Entry(label=label, asked=asked, engine=engines[setting.load], setting=setting))
    return entries, footprint


def _reference(request: Request, first: Entry, say: Callable[[str], None]) -> list[Entry]:
    """The first model with its weights as ``nn.Linear`` has them, where that is another."""
    load = first.setting.load.plain(first.engine.dtype)
    if not request.plain or load == first.setting.load:
        return []
    say(f"loading {load.name} once more, with plain weights")
    return [Entry(label="plain", asked="", engine=load.open(), setting=replace(first.setting, load=load))]


def _measure_machines(entries: Sequence[Entry], watch: Watch) -> dict[tuple[object, ...], Machine]:
    """The peaks for every entry; those of one dtype with products of the same shapes once."""
    machines: dict[tuple[object, ...], Machine] = {}
    for entry in entries:
        if entry.machine_key not in machines:
            entry.setting.take_threads()
            engine, made = entry.engine, entry.products
            size = weight_bytes(engine.config, engine.dtype.itemsize, quantized=bool(engine.model.quantized))
            with watch("products at the machine's best", peaks.steps(made)) as advance:
                machines[entry.machine_key] = peaks.measure(made, engine, size, advance)
    return machines


def _subject(entry: Entry, both: Both, generated: Generated | None, machine: Machine) -> Subject:
    engine, config = entry.engine, entry.engine.config
    model: dict[str, Any] = {"name": engine.name, "weights": entry.setting.load.weights(), "dtype": engine.precision}
    layers = Counter(type(layer).__name__ for layer in engine.model.modules() if hasattr(layer, "in_features"))
    model |= {"linear_layers": dict(layers), "parameters": parameters(config), **asdict(config)}
    return Subject(
        label=entry.label, asked=entry.asked, setting=entry.setting, model=model, environment=environment(engine),
        full=_judged(engine, both.full, machine), cached=_judged(engine, both.cached, machine), rounds=both.rounds,
        generated=generated,
    )  # fmt: skip


def _judged(engine: Engine, passes: Passes, machine: Machine) -> Judged:
    quantized = bool(engine.model.quantized)
    needed = cost(engine.config, passes.work, itemsize=engine.dtype.itemsize, quantized=quantized)
    ceiling = peaks.ceiling(needed, products(engine.config, passes.work), machine)
    return Judged(passes=passes, cost=needed, ceiling=ceiling)


def compared_with(first: Subject, second: Subject) -> list[Comparison]:
    """How many times as fast one subject is as another that took turns with it."""
    found = {
        kind: ratio([there[at] for there in second.rounds], [here[at] for here in first.rounds])
        for at, kind in enumerate(("full pass", "cached pass"))
    }
    if first.generated and second.generated:
        rates = [of.tokens_per_second.values for of in (first.generated, second.generated)]
        found["tokens/s"] = ratio(rates[0], rates[1])
    return [Comparison(first=first.label, second=second.label, by=kind, ratio=of) for kind, of in found.items()]
