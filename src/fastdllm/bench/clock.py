"""Passes of a generation as they are timed: the network apart from what is done around it.

The loop asks a cache policy for the rows just before the network runs, and which of them are fresh just after the
logits are there; so a policy that wraps another can read the clock at both, on whatever path the product takes in
between. On a GPU the moments are events in its queue, which hold nobody up; a pass itself ends when its report is on
the host, on every device.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from fastdllm.caches import CachePolicy, Plan, Watched
from fastdllm.canvas import Canvas, Region
from fastdllm.config import GenerationConfig, GenerationOptions
from fastdllm.engine import Engine
from fastdllm.sampling import Prediction
from fastdllm.state import RowState

Moment: TypeAlias = "float | torch.cuda.Event"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def moment(device: torch.device) -> Moment:
    """Now; on a GPU when it gets here."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def seconds_between(first: Moment, last: Moment) -> float:
    """Seconds from one moment to another, both of the same kind; waits for the later one."""
    if isinstance(first, float):
        assert isinstance(last, float)
        return last - first
    assert not isinstance(last, float)
    last.synchronize()
    return float(first.elapsed_time(last)) / 1000


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What decides how much a pass computes, but for the number of slots it predicts."""

    opens: bool
    """It opens a block."""
    rows: tuple[int, ...]
    """Rows of each batch row."""
    reach: tuple[int, ...]
    """First slot that each batch row does not see."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One pass and how long it took."""

    kind: Kind
    block: int
    slots: int
    """That were predicted, padding included."""
    committed: int
    """Tokens, over all batch rows."""
    network: float
    """Seconds from the plan of rows to the logits."""
    whole: float
    """Seconds of everything: planning, network, proposals, decision, report."""


class Clock(Watched):
    """Does what ``policy`` does and reads the clock before and after the network."""

    def __init__(self, policy: CachePolicy, device: torch.device) -> None:
        super().__init__(policy, lambda seen: None)
        self.device = device
        self.asked = 0.0
        """When the host was asked for the plan."""
        self._before: Moment = 0.0
        self._after: Moment = 0.0
        self._plan: Plan | None = None
        self._opens, self._block, self._slots = False, 0, 0

    def plan(self, canvas: Canvas, region: Region, state: RowState) -> Plan:
        self.asked = time.perf_counter()
        self._plan = self.policy.plan(canvas, region, state)
        self._opens, self._block = bool(region.step[0] == 0), int(region.block[0])
        self._before = moment(self.device)
        return self._plan

    def fresh(self, rows: Tensor, state: RowState) -> Tensor | None:
        self._after = moment(self.device)
        return self.policy.fresh(rows, state)

    def observe(self, prediction: Prediction, state: RowState) -> None:
        self._slots = prediction.positions.shape[1]
        self.policy.observe(prediction, state)

    def sample(self, committed: int, whole: float) -> Sample:
        """The pass that has just ended."""
        assert self._plan is not None
        network, plan = seconds_between(self._before, self._after), self._plan  # a hook may have counted its rows anew
        rows, reach = tuple(plan.computed.tolist()), tuple(plan.reach.tolist())
        kind = Kind(opens=self._opens, rows=rows, reach=reach)
        return Sample(
            kind=kind, block=self._block, slots=self._slots, committed=committed, network=network, whole=whole
        )


class Timed:
    """A generation that is run pass by pass: iterate it for samples; time between them does not count.

    ``setup`` is the time before the first pass, in seconds, once that has been made: the canvas and the store.
    """

    def __init__(self, engine: Engine, prompts: Sequence[Sequence[int]], options: GenerationOptions) -> None:
        self.setup = 0.0
        self._clock = Clock(GenerationConfig(**options).policy, engine.device)
        own: GenerationOptions = {**options, "cache": self._clock}
        self._generation = engine.start([*prompts], **own)
        synchronize(engine.device)
        self._samples = self._run()

    def __iter__(self) -> Iterator[Sample]:
        return self._samples

    def _run(self) -> Iterator[Sample]:
        events, first = iter(self._generation), True
        while True:
            begun = time.perf_counter()
            event = next(events, None)
            ended = time.perf_counter()
            if event is None:
                return
            if first:
                self.setup = self._clock.asked - begun
                begun, first = self._clock.asked, False
            yield self._clock.sample(sum(len(row.positions) for row in event.rows), ended - begun)
