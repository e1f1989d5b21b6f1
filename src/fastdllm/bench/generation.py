"""Whole generations: how long one takes, and what each kind of its passes does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from fastdllm.bench.clock import Kind, Timed
from fastdllm.bench.commits import Replay
from fastdllm.bench.passes import in_turn
from fastdllm.bench.schedule import Estimate, as_pass, check_as_planned, estimate, passes_of, sample
from fastdllm.bench.setting import Setting
from fastdllm.bench.spread import Spread
from fastdllm.engine import Engine
from fastdllm.models.compiled import Compiled

WARM_UP = 4  # passes


@dataclass(frozen=True, kw_only=True)
class KindOf:
    """Passes of one kind in a generation."""

    kind: Kind
    count: int
    timed: int
    """Of one run."""
    seconds: Spread
    """The median of each run."""

    def as_json(self) -> dict[str, object]:
        return {
            "opens": self.kind.opens, "rows": self.kind.rows, "reach": self.kind.reach, "passes": self.count,
            "timed_passes_per_run": self.timed, "whole_ms": self.seconds.scaled(1e3).as_json(),
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What generations of one setting took.

    ``seconds`` are those of a run, or what is extrapolated from a run's sample of passes.
    """

    tokens: int
    """Answer slots of the whole batch: every one is decoded, as end tokens end nothing."""
    passes: int
    timed: int
    """Passes that were made in each run."""
    seconds: Spread
    kinds: tuple[KindOf, ...]

    @property
    def extrapolated(self) -> bool:
        return self.timed < self.passes

    @property
    def tokens_per_second(self) -> Spread:
        return Spread(values=tuple(self.tokens / seconds for seconds in self.seconds.values))

    def as_json(self) -> dict[str, object]:
        return {
            "extrapolated": self.extrapolated, "passes": self.passes, "timed_passes_per_run": self.timed,
            "tokens": self.tokens, "tokens_per_pass": self.tokens / self.passes,
            "tokens_per_second": self.tokens_per_second.as_json(), "seconds": self.seconds.as_json(),
            "kinds": [kind.as_json() for kind in self.kinds],
        }  # fmt: skip


class Runs:
    """Makes runs of one setting and gathers what they took.

    Args:
        passes: of each kind to time in a run; None for whole runs.

    Raises:
        OptionError: a sample of this setting's passes does not say what all of them take.
    """

    def __init__(self, engine: Engine, setting: Setting, passes: int | None = None) -> None:
        self.engine, self.setting = engine, setting
        self.schedule = passes_of(setting, engine.config) if passes else ()
        self.planned = sample(self.schedule, passes, setting.cache) if passes else None
        self.seconds: list[float] = []
        self.estimates: list[Estimate] = []

    def start(self) -> Timed:
        """A run that has not begun."""
        self.setting.take_threads()
        options = self.setting.options
        if self.planned is not None:
            options = {**options, "decoder": Replay(trace=self.planned.commits)}
        return Timed(self.engine, self.setting.prompts(self.engine), options)

    def warm_up(self) -> None:
        """The first passes, which are not timed; a whole run where later ones may still have to be recorded."""
        recorded = isinstance(self.engine.model, Compiled) and self.engine.model.graphs
        whole = len(self.planned.passes) if self.planned else None
        for _ in islice(self.start(), whole if recorded else WARM_UP):
            pass

    def run(self) -> None:
        """One run, or a sample of its passes."""
        timed = self.start()
        if self.planned is None:
            samples = list(timed)
            self.schedule = tuple(as_pass(sample) for sample in samples)
            self.seconds.append(timed.setup + sum(sample.whole for sample in samples))
            self.estimates.append(estimate(self.schedule, samples, timed.setup))
        else:
            samples = list(islice(timed, len(self.planned.passes)))
            check_as_planned(self.setting.cache, self.planned, samples)
            self.estimates.append(estimate(self.schedule, samples, timed.setup))
            self.seconds.append(self.estimates[-1].seconds)

    def result(self) -> Generated:
        kinds = [
            KindOf(
                kind=kind, count=count, timed=timed,
                seconds=Spread(values=tuple(one.kinds[kind][2] for one in self.estimates if kind in one.kinds)),
            )
            for kind, (timed, count, _) in self.estimates[-1].kinds.items()
        ]  # fmt: skip
        return Generated(
            tokens=self.setting.batch_size * self.setting.gen_length,
            passes=len(self.schedule),
            timed=len(self.planned.passes) if self.planned else len(self.schedule),
            seconds=Spread(values=tuple(self.seconds)),
            kinds=tuple(sorted(kinds, key=lambda kind: (-sum(kind.kind.rows), not kind.kind.opens))),
        )


def time_generations(
    subjects: Sequence[tuple[Engine, Setting]], runs: int, passes: int | None,
    advance: Callable[[], None] = lambda: None,
) -> list[Generated]:  # fmt: skip
    """Generations of every subject, in turns, after some passes of each that are not timed."""
    all_runs = [Runs(engine, setting, passes) for engine, setting in subjects]
    for own in all_runs:
        own.warm_up()
    for number in range(runs):
        for own in in_turn(all_runs, number):
            own.run()
            advance()
    return [own.result() for own in all_runs]
