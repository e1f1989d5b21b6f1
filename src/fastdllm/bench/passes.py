"""The two passes that everything is made of, timed by themselves: all rows of the canvas, and a block's rows alone.

Both predict all slots of a block, and both run through the engine's own loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import torch

from fastdllm.bench.clock import Sample, Timed
from fastdllm.bench.commits import Hold
from fastdllm.bench.costs import Work
from fastdllm.bench.setting import Setting
from fastdllm.bench.spread import Spread
from fastdllm.caches import Plan, Policy
from fastdllm.caches.plan import span
from fastdllm.canvas import Canvas, Region
from fastdllm.engine import Engine
from fastdllm.models.config import ModelConfig
from fastdllm.state import RowState

T = TypeVar("T")
CACHED = 4
"""Cached passes after each full one."""


@dataclass(frozen=True, kw_only=True)
class Refreshing(Policy):
    """The dual cache, but everything is computed anew at every ``every``-th pass: passes of both kinds in turns."""

    source: ClassVar[str] = ""
    every: int

    def plan(self, canvas: Canvas, region: Region, state: RowState) -> Plan:
        full = region.nfe % self.every == 0
        first, last = torch.where(full, 0, region.first_row), torch.where(full, region.length, region.end)
        return span(first, last, canvas.width, region.length)


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Times of one kind of pass, in seconds."""

    work: Work
    network: Spread
    whole: Spread

    def as_json(self) -> dict[str, object]:
        return {
            "rows": self.work.rows, "reach": self.work.reach, "slots": self.work.slots, "batch": self.work.batch,
            "network_ms": self.network.scaled(1e3).as_json(), "whole_ms": self.whole.scaled(1e3).as_json(),
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Both:
    """A full and a cached pass; the medians of each round, for ratios with other settings of the same rounds."""

    full: Passes
    cached: Passes
    rounds: tuple[tuple[float, float], ...]
    """Seconds of the network in a full and in a cached pass."""


def works(config: ModelConfig, setting: Setting) -> tuple[Work, Work]:
    """A full and a cached pass of a setting."""
    reach = setting.prompt_length + setting.gen_length
    first_row = max(0, setting.prompt_length - config.shift)
    rows = setting.prompt_length + setting.block_length - first_row
    full = Work(batch=setting.batch_size, rows=reach, reach=reach, slots=setting.block_length)
    return full, replace(full, rows=rows)


class Prober:
    """Makes rounds of passes of one setting: a full pass and :data:`CACHED` cached ones."""

    def __init__(self, engine: Engine, setting: Setting) -> None:
        self.setting = setting
        self.full, self.cached = works(engine.config, setting)
        self._passes = iter(self.start(engine))
        self._rounds: list[list[Sample]] = []

    def start(self, engine: Engine) -> Timed:
        """Passes without end, every kind in its turn."""
        policy = Refreshing(every=CACHED + 1)
        prompts = self.setting.prompts(engine)
        return Timed(engine, prompts, {**self.setting.options, "cache": policy, "decoder": Hold()})

    def turn(self) -> list[Sample]:
        self.setting.take_threads()
        return [next(self._passes) for _ in range(CACHED + 1)]

    def round(self) -> None:
        self._rounds.append(self.turn())

    def result(self) -> Both:
        full = [samples[0] for samples in self._rounds]
        cached = [sample for samples in self._rounds for sample in samples[1:]]
        return Both(
            full=_passes(self.full, full),
            cached=_passes(self.cached, cached),
            rounds=tuple((samples[0].network, _middle(samples[1:])) for samples in self._rounds),
        )


def _middle(samples: Sequence[Sample]) -> float:
    return Spread(values=tuple(sample.network for sample in samples)).median


def _passes(work: Work, samples: Sequence[Sample]) -> Passes:
    expected = ((work.rows,) * work.batch, (work.reach,) * work.batch, work.slots)
    assert all((s.kind.rows, s.kind.reach, s.slots) == expected for s in samples)
    return Passes(
        work=work,
        network=Spread(values=tuple(sample.network for sample in samples)),
        whole=Spread(values=tuple(sample.whole for sample in samples)),
    )


def time_passes(
    subjects: Sequence[tuple[Engine, Setting]], rounds: int, advance: Callable[[], None] = lambda: None
) -> list[Both]:
    """Passes of every subject, in turns: a machine that grows slower meanwhile does so for all of them.

    The first turn of each is not timed. Every second round goes through the subjects the other way round.
    """
    probers = [Prober(engine, setting) for engine, setting in subjects]
    for prober in probers:
        prober.turn()
    for number in range(rounds):
        for prober in in_turn(probers, number):
            prober.round()
            advance()
    return [prober.result() for prober in probers]


def in_turn(subjects: Sequence[T], number: int) -> Sequence[T]:
    """The subjects in the order of round ``number``."""
    return subjects[::-1] if number % 2 else subjects
