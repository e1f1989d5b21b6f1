"""Decoders that weigh a pass's confidences with something else: where slots stand, which tokens they would get.

Shapes: B rows of the batch, M slots of a pass (padded), G answer slots, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastdllm import frequencies
from fastdllm.canvas import Delta, to_device
from fastdllm.checks import check_above, check_least
from fastdllm.decoders.base import Ranked, Turn, check_count, commit
from fastdllm.density import certainty_density
from fastdllm.errors import OptionError
from fastdllm.sampling import rank


@dataclass(frozen=True, kw_only=True)
class Certainty(Ranked):
    """The ``k`` best slots by confidence times certainty density: first what lies near decoded slots.

    d2Cache's certainty prior (arXiv 2509.23094). The smaller ``sigma``, the more from left to right;
    an infinite one is plain decoding. With ``threshold`` every slot whose product reaches it goes, too.
    """

    source: ClassVar[str] = "d2Cache, arXiv 2509.23094"
    sigma: float = 10.0
    k: int = 1
    threshold: float | None = None

    def __post_init__(self) -> None:
        check_count("k", self.k)
        check_above("sigma", self.sigma)
        if self.threshold is not None and not self.threshold >= 0:
            raise OptionError(f"threshold={self.threshold} must be 0 or more, or none.")

    def step(self, turn: Turn) -> Delta:
        canvas, prediction = turn.canvas, turn.prediction
        answer = canvas.answer
        density = certainty_density(canvas.tokens.gather(1, answer) != canvas.mask_id, self.sigma)
        at = (prediction.positions - answer[:, :1]).clamp(max=canvas.gen_length - 1)
        score = prediction.confidence * density.gather(1, at)
        chosen = rank(score, prediction.candidate) < self.k
        return commit(prediction, chosen if self.threshold is None else chosen | (score >= self.threshold))


@dataclass(frozen=True, kw_only=True)
class EntropyBound(Ranked):
    """The most slots for which the entropies of all but the largest sum to at most ``gamma`` (EB-Sampler).

    That sum bounds by how much the slots can depend on one another (arXiv 2505.24857).
    ``alg`` orders them; the best one is always committed.
    """

    source: ClassVar[str] = "EB-Sampler, arXiv 2505.24857"
    gamma: float = 0.1
    alg: str = "entropy"

    def __post_init__(self) -> None:
        if self.alg not in ("entropy", "maskgit_plus", "topk_margin"):
            raise OptionError(f"alg={self.alg!r} is not one of entropy, maskgit_plus, topk_margin.")
        if not self.gamma >= 0:
            raise OptionError(f"gamma={self.gamma} must be 0 or more.")

    def step(self, turn: Turn) -> Delta:
        prediction = turn.prediction
        place = rank(prediction.score(self.alg), prediction.candidate)
        entropy = -prediction.score("entropy").clamp(max=0)
        in_order = torch.zeros_like(entropy).scatter_(1, place, entropy)
        # The sum without its largest term, built up so that nothing is lost in a difference: a slot
        # adds the smaller of its own entropy and the largest before it.
        largest = in_order.cummax(dim=1).values.roll(1, dims=1)
        largest[:, 0] = 0
        bound = torch.minimum(in_order, largest).cumsum(1)
        return commit(prediction, place < (bound <= self.gamma).sum(1, keepdim=True))


@dataclass(frozen=True, kw_only=True)
class PositionAware(Ranked):
    """The ``k`` best slots by a confidence that common tokens and late positions lose (PC-Sampler).

    exp(-decay i) min(clip, -p log f): i counts slots from the block's start, p is the confidence and f the
    frequency of the proposed token in a corpus (arXiv 2508.13021). ``frequencies`` is the file
    of those, or the name of a model of this package.
    """

    source: ClassVar[str] = "PC-Sampler, arXiv 2508.13021"
    k: int = 1
    decay: float = 0.25
    clip: float = 10.0
    frequencies: str = ""

    def __post_init__(self) -> None:
        check_count("k", self.k)
        check_least("decay", self.decay)
        check_above("clip", self.clip)
        if not self.frequencies:
            raise OptionError(f"frequencies={self.frequencies!r} must be a file; make one with {frequencies.COMMAND}.")
        frequencies.read(self.frequencies)

    def check_vocabulary(self, size: int) -> None:
        frequencies.check(self.frequencies, size)

    def step(self, turn: Turn) -> Delta:
        prediction = turn.prediction
        table = frequencies.load(self.frequencies, prediction.logits.shape[-1], prediction.logits.device)
        surprise = -(table[prediction.tokens] + 1e-9).log()
        start = to_device(turn.region.start[:, None], prediction.positions.device)
        late = (-self.decay * (prediction.positions - start).double()).exp()
        score = late * (prediction.confidence.double() * surprise).clamp(max=self.clip)
        return commit(prediction, rank(score, prediction.candidate) < self.k)


@dataclass(frozen=True, kw_only=True)
class Hierarchy(Ranked):
    """The best slot of every run of open slots, if surer than ``low_threshold``; and what ``threshold`` would commit.

    dInfer's hierarchical decoding (arXiv 2510.08666): tokens far apart depend little on one another, so one
    in each gap may be less sure, and splits it.
    """

    source: ClassVar[str] = "dInfer, arXiv 2510.08666"
    threshold: float = 0.9
    low_threshold: float = 0.4

    def __post_init__(self) -> None:
        check_least("threshold", self.threshold)
        check_least("low_threshold", self.low_threshold)

    def step(self, turn: Turn) -> Delta:
        prediction = turn.prediction
        place = rank(prediction.confidence, prediction.candidate)
        sure = (place == best_of_runs(place, prediction.positions)) & (prediction.confidence > self.low_threshold)
        return commit(prediction, sure | (prediction.confidence >= self.threshold) | (place == 0))


def best_of_runs(place: Tensor, positions: Tensor) -> Tensor:
    """The first ``place`` (B, M) within each slot's run of neighbouring ``positions`` (B, M), which ascend."""
    run = torch.cat((torch.zeros_like(positions[:, :1]), (positions.diff(dim=1) != 1).cumsum(1)), dim=1)
    return torch.zeros_like(place).scatter_reduce_(1, run, place, "amin", include_self=False).gather(1, run)
