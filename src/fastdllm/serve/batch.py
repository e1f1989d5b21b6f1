"""The rows at work: the runs they form, and a pass of all of them, in parts where memory does not hold it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import TypeAlias

import torch

from fastdllm.engine import Engine, sampling_of
from fastdllm.errors import BrokenOff, NumericalError, out_of_memory
from fastdllm.events import RowEvent, StepEvent
from fastdllm.loop import Run, advance
from fastdllm.serve.jobs import OutOfMemory, Ticket
from fastdllm.serve.pool import Pool

logger = logging.getLogger("fastdllm.serve")

PATIENCE = 32
"""Iterations without a lack of memory after which more rows may go together again."""
LIGHT = 2**26
"""Bytes that strategies may remember of runs that are joined: all of it is copied when rows come and go."""

Outcome: TypeAlias = tuple[int, RowEvent | Exception]
"""What a pass did for the job of that number."""


class Batch:
    """All rows at work. Used by the model thread alone.

    Rows that share strategies and lengths are joined into one run as soon as what their strategies remember
    allows it; runs that cannot be joined share passes through the network all the same.
    """

    def __init__(self, engine: Engine, pool: Pool) -> None:
        self.engine, self.pool = engine, pool
        self.runs: list[Run] = []
        self.most = pool.slots
        """Most rows that go through the network together."""
        self.shortages = 0
        """Passes for which memory did not suffice."""
        self._calm = 0
        self._grown = False

    def __len__(self) -> int:
        return sum(map(len, self.runs))

    def add(self, ticket: Ticket) -> None:
        """Let the row of a job that holds a slot take part from the next pass on."""
        assert ticket.slot is not None
        engine, config = self.engine, ticket.job.config
        canvas = engine.canvas([ticket.job.prompt], config, index=[ticket.number], width=self.pool.width)
        sampling = sampling_of(config, 1, engine.device)
        store, slots = self.pool.store, [ticket.slot]
        self.runs.append(
            Run(canvas, config.policy, config.rule, sampling, store=store, slots=slots, cfg_scale=config.cfg_scale)
        )

    def drop(self, numbers: Collection[int]) -> None:
        """Take the rows of these jobs out."""
        for run in self.runs if numbers else ():
            index = run.canvas.index.tolist()
            alive = [b for b, number in enumerate(index) if number not in numbers]
            if len(alive) < len(index):
                run.keep(alive)
        self._tidy()

    def clear(self) -> None:
        """Take all rows out."""
        self.runs = []

    def advance(self) -> list[Outcome]:
        """One pass of every row. A row that is finished, or whose outcome is an exception, is out."""
        self._merge()
        usual, shortages = self.most, self.shortages
        outcomes = [outcome for pack in self._packs(self.runs) for outcome in self._attempt(pack, usual)]
        self._tidy()
        self._calm = self._calm + 1 if self.shortages == shortages else 0
        self._grown = self._calm >= PATIENCE and self.most < self.pool.slots
        if self._grown:
            self.most, self._calm = min(self.most + max(1, self.most // 4), self.pool.slots), 0
        return outcomes

    def _tidy(self) -> None:
        self.runs = [run for run in self.runs if len(run)]

    def _merge(self) -> None:
        """Join new runs to older ones; what a strategy remembers may forbid it until the first pass is over."""
        runs: list[Run] = []
        for run in self.runs:
            new = run.passes <= 1 or self._grown
            if not (new and any(self._join(older, run) for older in runs)):
                runs.append(run)
        self.runs = runs

    def _join(self, run: Run, other: Run) -> bool:
        mine, others = run.sampling, other.sampling
        alike = (mine.noisy, mine.filtered) == (others.noisy, others.filtered)  # noise and sorting cost every row
        return (
            alike and len(run) + len(other) <= self.most and remembered(run) + remembered(other) <= LIGHT
            and run.join(other)
        )  # fmt: skip

    def _packs(self, runs: Sequence[Run]) -> list[list[Run]]:
        """The runs in packs of at most ``most`` rows, in their order; a run with more rows is split for good."""
        packs: list[list[Run]] = []
        room = 0
        for piece in [piece for run in tuple(runs) for piece in self._pieces(run)]:
            if len(piece) > room:
                packs.append([])
                room = self.most
            packs[-1].append(piece)
            room -= len(piece)
        return packs

    def _pieces(self, run: Run) -> list[Run]:
        pieces = [run]
        while len(pieces[-1]) > self.most:
            rest = pieces[-1].split(range(self.most, len(pieces[-1])))
            self.runs.append(rest)
            pieces.append(rest)
        return pieces

    def _attempt(self, runs: list[Run], usual: int) -> list[Outcome]:
        """One pass of these runs together; of parts of them where that does not go.

        Args:
            usual: most rows that went together before this iteration.
        """
        results: Sequence[StepEvent | Exception]
        try:
            results = advance(self.engine.model, runs)
        except Exception as error:
            if isinstance(error, BrokenOff) or fatal(error):
                raise
            results = [error] * len(runs)
        outcomes: list[Outcome] = []
        troubled: list[tuple[Run, Exception]] = []
        for run, result in zip(runs, results, strict=True):
            if isinstance(result, StepEvent):
                outcomes += [self._outcome(row) for row in result.rows]
            else:
                troubled.append((run, result.with_traceback(None) if out_of_memory(result) else result))
        del results  # a traceback holds what the pass computed
        return outcomes + self._recover(troubled, usual)

    def _outcome(self, row: RowEvent) -> Outcome:
        if row.failed:
            return row.index, NumericalError("the model's logits for this request are not numbers.")
        return row.index, row

    def _recover(self, troubled: Sequence[tuple[Run, Exception]], usual: int) -> list[Outcome]:
        """Try again what went wrong in company, in smaller parts; what goes wrong alone has failed."""
        short = [run for run, error in troubled if out_of_memory(error)]
        outcomes = self._shrink(short, usual) if short else []
        broken = [(run, error) for run, error in troubled if not out_of_memory(error)]
        if len(troubled) == 1:
            outcomes += [outcome for run, error in broken for outcome in self._fail(run, error)]
        else:
            outcomes += [outcome for run, _ in broken for outcome in self._attempt([run], usual)]
        return outcomes

    def _shrink(self, runs: Sequence[Run], usual: int) -> list[Outcome]:
        """Let half as many rows go together from now on; fail the row that does not fit alone."""
        rows = sum(map(len, runs))
        self.shortages += 1
        if self.engine.device.type == "cuda":
            torch.cuda.empty_cache()
        if rows == 1:
            self.most = usual  # this row was what did not fit
            return self._fail(runs[0], OutOfMemory("a pass of this request alone does not fit into memory."))
        self.most = max(1, min(self.most, rows // 2))
        logger.warning("out of memory in a pass of %d rows; at most %d go together now", rows, self.most)
        return [outcome for pack in self._packs(runs) for outcome in self._attempt(pack, usual)]

    def _fail(self, run: Run, error: Exception) -> list[Outcome]:
        """Take a run out, all of whose rows have failed."""
        numbers = run.canvas.index.tolist()
        logger.error("a pass failed; requests %s end", numbers, exc_info=error)
        run.keep([])
        return [(number, error) for number in numbers]


def remembered(run: Run) -> int:
    """Bytes that the strategies of a run carry from pass to pass."""
    return sum(tensor.nbytes for state in (run.state, run.notes) for tensor in state.values())


def fatal(error: Exception) -> bool:
    """Whether the device is lost for this process, as after a failed assertion in a kernel."""
    kind: type[Exception] | None = getattr(torch, "AcceleratorError", None)  # not in torch before 2.8
    lost = isinstance(error, kind) if kind else "CUDA error" in str(error)
    return lost and not out_of_memory(error)
