"""What the turns of each load come to."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastdllm.bench.spread import Spread
from fastdllm.load_test.drive import Turn
from fastdllm.load_test.plan import Load
from fastdllm.load_test.request import Outcome

PERCENTS = (50, 90, 99)
STEPS, PASSES = "fastdllm_steps_total", "fastdllm_passes_total"


@dataclass(frozen=True, kw_only=True)
class Part:
    """So many of so many."""

    count: int
    of: int


@dataclass(frozen=True, kw_only=True)
class Score:
    """One load, over all its rounds. Numbers are None where the server, or too few answers, do not give them."""

    load: Load
    answered: int
    failures: Mapping[str, int]
    """By kind."""
    unfinished: int
    """Sent, and not ended when the test was interrupted."""
    requests_per_second: Spread
    """Answered, of each round."""
    tokens_per_second: Spread | None
    """Of answers, of each round."""
    latency: Mapping[int, float | None]
    """Seconds until an answer's end, by percent of the answers."""
    first_text: Mapping[int, float | None]
    """Seconds until an answer's first text, of those that have any."""
    nfe: float | None
    """Mean of an answer's passes."""
    tokens_per_forward: float | None
    batch: float | None
    """Mean number of answers that a pass of the server works at."""
    in_flight: float
    """Mean number of requests on their way."""
    client: float
    """CPU time of this process, in parts of one core's."""
    right: Part | None
    """Answers that are right, of those of which it is known."""
    same: Part | None
    """Answers that are those of the first turn of the test, of those which both have."""
    shared: bool
    """The server had other requests, too."""


def scores(turns: Sequence[Turn]) -> list[Score]:
    """A score for each load that has an answer or a failure, in the order of the turns."""
    begun = [turn for turn in turns if turn.outcomes]
    found: dict[Load, list[Turn]] = {}
    for turn in begun:
        found.setdefault(turn.load, []).append(turn)
    first = {one.number: one.digest for one in answers(begun[:1])}
    return [_score(load, of, first, begun[0]) for load, of in found.items()]


def answers(turns: Sequence[Turn]) -> list[Outcome]:
    return [one for turn in turns for one in turn.outcomes if one.failure is None]


def _score(load: Load, turns: Sequence[Turn], first: Mapping[int, str | None], reference: Turn) -> Score:
    whole = answers(turns)
    seconds = sum(turn.seconds for turn in turns)
    nfe = _known([one.nfe for one in whole])
    tokens = _known([one.tokens for one in whole])
    judged = [one.right for one in whole if one.right is not None]
    again = [one for turn in turns if turn is not reference for one in answers([turn]) if one.number in first]
    return Score(
        load=load,
        answered=len(whole),
        failures=Counter(one.failure for turn in turns for one in turn.outcomes if one.failure is not None),
        unfinished=sum(turn.unfinished for turn in turns),
        requests_per_second=Spread(values=tuple(len(answers([turn])) / turn.seconds for turn in turns)),
        tokens_per_second=_token_rates(turns) if tokens else None,
        latency=percentiles([one.seconds for one in whole]),
        first_text=percentiles([one.first_text for one in whole if one.first_text is not None]),
        nfe=statistics.fmean(nfe) if nfe else None,
        tokens_per_forward=sum(tokens) / sum(nfe) if tokens and nfe else None,
        batch=_batch(turns),
        in_flight=sum(one.seconds for turn in turns for one in turn.outcomes) / seconds,
        client=sum(turn.client_seconds for turn in turns) / seconds,
        right=Part(count=sum(judged), of=len(judged)) if judged else None,
        same=Part(count=sum(one.digest == first[one.number] for one in again), of=len(again)) if again else None,
        shared=any(turn.shared for turn in turns),
    )


def _known(values: Sequence[int | None]) -> list[int] | None:
    """The values, where there are any and all are known."""
    known = [value for value in values if value is not None]
    return known if known and len(known) == len(values) else None


def _token_rates(turns: Sequence[Turn]) -> Spread:
    return Spread(values=tuple(sum(one.tokens or 0 for one in answers([turn])) / turn.seconds for turn in turns))


def _batch(turns: Sequence[Turn]) -> float | None:
    """Steps of answers divided by passes of the server."""
    grown = [turn.counters for turn in turns if turn.counters]
    passes = sum(counters.get(PASSES, 0.0) for counters in grown)
    return sum(counters.get(STEPS, 0.0) for counters in grown) / passes if passes else None


def percentiles(values: Sequence[float]) -> dict[int, float | None]:
    """By percent, linear between neighbours; None where the values are too few for one to lie above it."""
    found: dict[int, float | None] = dict.fromkeys(PERCENTS)
    if len(values) > 1:
        cuts = statistics.quantiles(values, n=100, method="inclusive")
        found |= {percent: cuts[percent - 1] for percent in PERCENTS if len(values) * (100 - percent) >= 100}
    return found
