"""Decoders that read the confidences of one pass alone: the best, those above a threshold, Fast-dLLM's factor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fastdllm.canvas import Delta
from fastdllm.checks import check_above
from fastdllm.decoders.base import Ranked, Turn, check_count, commit
from fastdllm.errors import OptionError
from fastdllm.sampling import check_alg, rank


@dataclass(frozen=True, kw_only=True)
class TopK(Ranked):
    """The ``k`` best slots at each pass; ``k=1`` is plain decoding."""

    source: ClassVar[str] = "LLaDA, arXiv 2502.09992"
    k: int = 1
    alg: str = "maskgit_plus"

    def __post_init__(self) -> None:
        check_alg(self.alg)
        check_count("k", self.k)

    def step(self, turn: Turn) -> Delta:
        prediction = turn.prediction
        return commit(prediction, rank(prediction.score(self.alg), prediction.candidate) < self.k)


@dataclass(frozen=True, kw_only=True)
class Threshold(Ranked):
    """Every slot whose confidence is at least ``threshold``, and always the best one (Fast-dLLM, section 3.3)."""

    source: ClassVar[str] = "Fast-dLLM, arXiv 2505.22618"
    threshold: float = 0.9
    alg: str = "maskgit_plus"

    def __post_init__(self) -> None:
        check_alg(self.alg)
        if not self.threshold >= 0:
            raise OptionError(
                f"threshold={self.threshold} must be 0 or more; above 1 it commits one token at each pass."
            )

    def step(self, turn: Turn) -> Delta:
        prediction = turn.prediction
        best = rank(prediction.score(self.alg), prediction.candidate) == 0
        return commit(prediction, best | (prediction.confidence >= self.threshold))


@dataclass(frozen=True, kw_only=True)
class Factor(Ranked):
    """The longest run of best slots for which parallel decoding provably equals greedy decoding.

    Fast-dLLM, Theorem 1: n tokens may be committed together when each has a confidence above
    1 - e with (n + 1) e <= 1. ``factor`` f loosens or tightens that: the n-th best slot must have
    at least 1 - f / (n + 1). The best slot is always committed.
    """

    source: ClassVar[str] = "Fast-dLLM, arXiv 2505.22618"
    factor: float = 1.0
    alg: str = "maskgit_plus"

    def __post_init__(self) -> None:
        check_alg(self.alg)
        check_above("factor", self.factor)

    def step(self, turn: Turn) -> Delta:
        prediction = turn.prediction
        place = rank(prediction.score(self.alg), prediction.candidate)
        enough = prediction.candidate & (prediction.confidence >= 1 - self.factor / (place + 2))
        in_order = torch.zeros_like(enough).scatter_(1, place, enough)
        run = in_order.long().cumprod(1).sum(1, keepdim=True).clamp(min=1)
        return commit(prediction, place < run)
