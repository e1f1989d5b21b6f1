"""Speed over the lengths of prompt and answer (Fast-dLLM, arXiv 2505.22618, Tables 3 and 4).

A prompt grows by worked examples before the question. Speed is measured twice: on the *full canvas*, where every slot
is decoded whatever stands in it, which is how the paper measures; and *to the end token*, which ends an answer.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from fastdllm.arena.contest import Clocked
from fastdllm.arena.problems import ProblemSet
from fastdllm.arena.report import accuracy, number, speed, unit
from fastdllm.errors import OptionError
from fastdllm.studies.shots import are_worked, with_examples
from fastdllm.studies.study import PARALLEL, PLAIN, Bench, Contest, document, measured, times, times_between, with_turns
from fastdllm.studies.table import Table

NAME = "lengths"


@dataclass(frozen=True, kw_only=True)
class LengthsOptions:
    """The lengths, and the methods that are compared at each.

    Args:
        shots: numbers of worked examples before a question.
        gen_lengths: answer slots.
        timed: problems of a round; an answer that fills its canvas takes long, and as long as any other.
    """

    shots: tuple[int, ...] = (0, 2)
    gen_lengths: tuple[int, ...] = (32, 64, 128)
    caches: tuple[str, ...] = ("prefix", "dual")
    plain: str = PLAIN
    decoder: str = PARALLEL
    timed: int = 1

    def __post_init__(self) -> None:
        if not self.shots or min(self.shots) < 0:
            raise OptionError(f"shots={self.shots} must hold a number, and none below 0.")

    @classmethod
    def quick(cls) -> LengthsOptions:
        return cls(shots=(0, 1), gen_lengths=(32, 64))

    def methods(self, gen_length: int) -> dict[str, str]:
        """The methods' texts by their labels, plain decoding first."""
        pairs = {"plain": f"none/{self.plain}", "parallel": f"none/{self.decoder}"}
        pairs |= {f"{cache} + parallel": f"{cache}/{self.decoder}" for cache in self.caches}
        return {label: f"{pair}@gen_length={gen_length}" for label, pair in pairs.items()}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One length of prompts and answers.

    Args:
        prompt_tokens: of the timed prompts, their mean.
        contest: accuracy, and speed to the end token.
        full: canvas slots per second on the full canvas, of each round, by label.
    """

    shots: int
    gen_length: int
    prompt_tokens: float
    contest: Contest
    full: Mapping[str, Sequence[float]]

    def full_ratios(self, label: str) -> list[float]:
        """Speed-up on the full canvas against plain decoding in the same round."""
        return [own / plain for own, plain in zip(self.full[label], self.full["plain"], strict=True)]

    def both(self, label: str) -> str:
        """Both speed-ups: on the full canvas, and to the end token."""
        return f"{times(self.full_ratios(label))}, {times(self.contest.ratios(label))}"

    @property
    def endless(self) -> float:
        """Percent of plain decoding's answers that the canvas cut off before an end token."""
        answers = self.contest.report.answers[self.contest.keys["plain"]]
        return 100 * sum(answer.tokens >= self.gen_length for answer in answers) / len(answers)


@dataclass(frozen=True)
class LeftOut:
    """A pair of lengths without a cell, and why it has none."""

    shots: int
    gen_length: int
    why: str


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """A cell for each pair of lengths that model and problems allow.

    Args:
        clocked: how the full canvases of each number of shots were timed.
    """

    title: ClassVar[str] = "Speed-up and accuracy over the lengths of prompt and answer"

    options: LengthsOptions
    cells: Sequence[Cell]
    left_out: Sequence[LeftOut]
    clocked: Mapping[int, Clocked]

    @property
    def labels(self) -> list[str]:
        return list(self.options.methods(0))

    @property
    def tables(self) -> list[Table]:
        return [self.summary()]

    def summary(self) -> Table:
        """What a terminal has room for: both speed-ups of each method."""
        rows = [[f"{cell.shots}, {cell.gen_length}", *map(cell.both, self.labels[1:])] for cell in self.cells]
        return Table(["examples, gen_length: speed-up full, to end", *self.labels[1:]], rows)

    def numbers(self) -> Table:
        """What the methods cost in each cell."""
        size, name = unit([score for cell in self.cells for score in cell.contest.report.scores])
        rows = []
        for cell in self.cells:
            for label in self.labels:
                score = cell.contest.score(label)
                costs = [f"{score.nfe:.1f}", f"{score.tokens_per_forward:.2f}", number(score.rows_per_token, 1.0)]
                costs += [number(score.flops_per_token, size), speed(score)]
                full = f"{statistics.median(cell.full[label]):.0f}"
                rows.append([str(cell.shots), str(cell.gen_length), label, *costs, full])
        head = ["examples", "gen_length", "method", "NFE", "TPF", "rows/token", f"{name}/token", "tokens/s", "slots/s"]
        return Table(head, rows)

    def full(self) -> Table:
        """Speed-ups on the full canvas."""
        rows = []
        for cell in self.cells:
            plain = f"{statistics.median(cell.full['plain']):.0f}"
            rows.append([plain, *(times_between(cell.full_ratios(label)) for label in self.labels[1:])])
        return self._table("plain, slots/s", self.labels[1:], rows)

    def to_the_end(self) -> Table:
        """Speed-ups to the end token."""
        rows = []
        for cell in self.cells:
            plain = f"{statistics.median(cell.contest.plain.speeds):.0f}"
            rows.append([plain, *(times_between(cell.contest.ratios(label)) for label in self.labels[1:])])
        return self._table("plain, tok/s", self.labels[1:], rows)

    def accuracy(self) -> Table:
        rows = [
            [f"{cell.endless:.0f}", *(accuracy(cell.contest.score(label)) for label in self.labels)]
            for cell in self.cells
        ]
        return self._table("cut off, %", self.labels, rows)

    def _table(self, name: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
        """Rows for the cells, each after its lengths."""
        lengths = [[str(cell.shots), f"{cell.prompt_tokens:.0f}", str(cell.gen_length)] for cell in self.cells]
        whole = [[*length, *row] for length, row in zip(lengths, rows, strict=True)]
        return Table(["examples", "prompt tokens", "gen_length", name, *names], whole)

    def markdown(self) -> str:
        full = (
            "Speed-up against plain decoding on the **full canvas**, as the paper's code decodes: every slot is "
            f"decoded, whatever stands in it, and the ratio is that of the times. {self._rounds()}"
        )
        ends = (
            "Speed-up **to the end token**: an answer ends when its end token is there, which is this library's "
            "default; tokens count up to it."
        )
        right = (
            "Right, % (95 % interval), of answers to the end token; *cut off*: plain decoding's answers without an "
            "end token, for which `gen_length` was too short, or which would not have ended."
        )
        speeds = [full, self.full().markdown(), ends, self.to_the_end().markdown()]
        costs = f"{measured(self.cells[0].contest.report)} Slots per second: on the full canvas."
        paragraphs = [*speeds, right, self.accuracy().markdown(), *self._missing(), self.numbers().markdown(), costs]
        return document(NAME, self.title, paragraphs, [cell.contest for cell in self.cells])

    def _rounds(self) -> str:
        count = len(self.cells[0].full["plain"])
        rounds = "One round" if count == 1 else f"Median (lowest-highest) of {count} interleaved rounds"
        return f"{rounds}, one prompt at a time, problems timed: {self.options.timed}."

    def _missing(self) -> list[str]:
        if not self.left_out:
            return []
        pairs = ", ".join(f"{pair.shots} with {pair.gen_length} ({pair.why})" for pair in self.left_out)
        return [f"Left out, examples with gen_length: {pairs}."]

    def as_json(self) -> dict[str, Any]:
        """Everything, JSON-ready."""
        return {
            "options": asdict(self.options),
            "full_canvas": [
                {"shots": shots, "timed": clocked.timed, "settings": dict(clocked.settings), "runs": list(clocked.runs)}
                for shots, clocked in self.clocked.items()
            ],
            "cells": [self._cell_json(cell) for cell in self.cells],
            "left_out": [asdict(pair) for pair in self.left_out],
        }

    def _cell_json(self, cell: Cell) -> dict[str, Any]:
        return {
            "shots": cell.shots,
            "gen_length": cell.gen_length,
            "prompt_tokens": cell.prompt_tokens,
            "cut_off": cell.endless,
            "full_canvas": {
                label: {"slots_per_second": list(rounds), "speedup": cell.full_ratios(label)}
                for label, rounds in cell.full.items()
            },
            **cell.contest.as_json(),
        }


def run(bench: Bench, posed: ProblemSet, count: int, options: LengthsOptions) -> Lengths:
    """Answer the first ``count`` problems, and time some, at all lengths.

    Raises:
        OptionError: there are too few problems for the examples, or no pair of lengths fits the model.
    """
    cells, left_out, clocked = list[Cell](), list[LeftOut](), dict[int, Clocked]()
    possible = [shots for shots in sorted(set(options.shots)) if not shots or are_worked(posed)]
    left_out += [
        LeftOut(shots, g, "no answers to show in full")
        for shots in sorted({*options.shots} - {*possible})
        for g in options.gen_lengths
    ]
    sets = [(shots, with_examples(posed, count, shots, max(possible))) for shots in possible]
    for shots, asked in sets:
        prompts = bench.engine.encode([problem.question for problem in asked.problems], chat=bench.chat)
        longest = max(map(len, prompts))
        fits = [g for g in options.gen_lengths if longest + g <= bench.engine.config.max_length]
        left_out += [LeftOut(shots, g, "too few positions") for g in options.gen_lengths if g not in fits]
        if fits:
            clocked[shots], found = _measure(bench, asked, fits, options)
            tokens = statistics.mean(map(len, prompts[: options.timed]))
            cells += [Cell(shots=shots, gen_length=g, prompt_tokens=tokens, contest=c, full=f) for g, c, f in found]
    if not cells:
        whys = " and ".join(sorted({pair.why for pair in left_out}))
        raise OptionError(
            f"shots={options.shots} with gen_lengths={options.gen_lengths} leave nothing to measure on {posed.name} "
            f"with the {bench.engine.config.max_length} positions of {bench.engine.name} ({whys})."
        )
    return Lengths(options=options, cells=cells, left_out=left_out, clocked=clocked)


def _measure(
    bench: Bench, asked: ProblemSet, gen_lengths: Sequence[int], options: LengthsOptions
) -> tuple[Clocked, list[tuple[int, Contest, dict[str, list[float]]]]]:
    """How the full canvases of one number of shots were timed; and for each gen_length what its cell holds."""
    methods = {gen_length: options.methods(gen_length) for gen_length in gen_lengths}
    texts = [text for one in methods.values() for text in one.values()]
    full = bench.clock(NAME, asked, texts, timed=options.timed, full=True)
    ends = bench.clock(NAME, asked, texts, timed=options.timed, full=False)
    cells = []
    for gen_length, one in methods.items():
        contest = with_turns(bench.hold(NAME, asked, one, timing=False), ends)
        slots = gen_length * full.timed
        speeds = {label: [slots / turn.seconds for turn in full.turns[key]] for label, key in contest.keys.items()}
        cells.append((gen_length, contest, speeds))
    return full, cells
