"""A load test as a whole: what was asked of whom, every request's outcome, and what they come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from fastdllm.errors import OptionError
from fastdllm.load_test.drive import Turn
from fastdllm.load_test.plan import Load
from fastdllm.load_test.request import Outcome
from fastdllm.load_test.score import Part, Score, scores

MARK = "fastdllm_bench_serve"
COLUMNS = tuple(field.name for field in fields(Outcome))


@dataclass(frozen=True, kw_only=True)
class Report:
    """Turns, and everything their numbers depend on.

    Args:
        server: what it says of itself, JSON-ready, as ``asked`` (the requests), ``plan`` and ``client`` (this
            process and its machine) are.
        load_average: of this machine, before and after.
    """

    command: str
    server: Mapping[str, Any]
    asked: Mapping[str, Any]
    plan: Mapping[str, Any]
    client: Mapping[str, Any]
    load_average: Mapping[str, Sequence[float] | None]
    interrupted: bool
    turns: Sequence[Turn]

    @property
    def scores(self) -> list[Score]:
        return scores(self.turns)

    def as_json(self) -> dict[str, Any]:
        """Everything, JSON-ready; :meth:`from_json` reads it back but for the scores, which follow from the turns."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "turns"}
        return {
            MARK: 1, **own, "loads": [score_json(score) for score in self.scores],
            "turns": [turn_json(turn) for turn in self.turns],
        }  # fmt: skip

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Report:
        """The report of a file's content.

        Raises:
            OptionError: it is that of another kind of file.
        """
        if content.get(MARK) != 1:
            raise OptionError("the file does not come from fastdllm bench-serve.")
        own = {field.name: content[field.name] for field in fields(cls) if field.name != "turns"}
        return cls(**own, turns=[turn_of(one) for one in content["turns"]])


def score_json(score: Score) -> dict[str, Any]:
    """A load's numbers, JSON-ready."""
    rates = {"requests_per_second": score.requests_per_second, "tokens_per_second": score.tokens_per_second}
    times = {"latency": score.latency, "first_text": score.first_text}
    plain = ("answered", "unfinished", "nfe", "tokens_per_forward", "batch", "in_flight", "client", "shared")
    return {
        "load": score.load.name, "failures": dict(score.failures), **{name: getattr(score, name) for name in plain},
        **{name: found.as_json() if found else None for name, found in rates.items()},
        **{name: {f"p{percent}": value for percent, value in of.items()} for name, of in times.items()},
        "right": _part(score.right), "same_as_first_turn": _part(score.same),
    }  # fmt: skip


def _part(part: Part | None) -> dict[str, int] | None:
    return {"count": part.count, "of": part.of} if part else None


def turn_json(turn: Turn) -> dict[str, Any]:
    """A turn; its outcomes column by column."""
    columns = {name: [getattr(one, name) for one in turn.outcomes] for name in COLUMNS}
    return {**vars(turn), "load": vars(turn.load), "outcomes": columns}


def turn_of(content: Mapping[str, Any]) -> Turn:
    """What :func:`turn_json` has written."""
    rows = zip(*(content["outcomes"][name] for name in COLUMNS), strict=True)
    outcomes = [Outcome(**dict(zip(COLUMNS, row, strict=True))) for row in rows]
    return Turn(**{**content, "load": Load(**content["load"]), "outcomes": outcomes})
