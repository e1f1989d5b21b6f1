"""Decoders that share out a number of passes given beforehand: LLaDA's schedule and Dream's."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastdllm.canvas import Delta, Region, to_device
from fastdllm.decoders.base import Ranked, Turn, check_count, commit
from fastdllm.errors import OptionError
from fastdllm.sampling import check_alg, rank


def steps_in_block(steps: int, region: Region) -> Tensor:
    """Share (B,) of ``steps`` that falls to each row's block, by its length; all shares sum to ``steps``."""
    total = region.length - region.prompt
    done_before, done_after = (steps * (slot - region.prompt) // total for slot in (region.start, region.end))
    return done_after - done_before


@functools.cache
def noise_levels(steps: int, eps: float) -> Tensor:
    """Dream's noise levels (steps + 1,), from 1 to ``eps``, float32 as in its own sampler."""
    return torch.linspace(1, eps, steps + 1)


def check_steps(steps: int, gen_length: int, block_length: int) -> None:
    blocks = math.ceil(gen_length / block_length)
    if steps < blocks:
        raise OptionError(
            f"steps={steps} is less than the {blocks} blocks of gen_length={gen_length} and "
            f"block_length={block_length}; each block needs a step."
        )


@dataclass(frozen=True, kw_only=True)
class Schedule(Ranked):
    """LLaDA's schedule: ``steps`` passes in all, shared out over the blocks (arXiv 2502.09992, appendix).

    A block of n masks with S passes commits n // S slots at each, and one more at the first n % S.
    ``steps`` beyond the number of slots would be passes that commit nothing; they are not made.
    """

    source: ClassVar[str] = "LLaDA, arXiv 2502.09992"
    steps: int = 128
    remasking: str = "low_confidence"
    alg: str = "maskgit_plus"

    def __post_init__(self) -> None:
        check_alg(self.alg)
        check_count("steps", self.steps)
        if self.remasking not in ("low_confidence", "random"):
            raise OptionError(f"remasking={self.remasking!r} is not one of low_confidence, random.")
        if self.remasking == "random" and self.alg not in ("maskgit_plus", "random"):
            raise OptionError(f"remasking='random' contradicts alg={self.alg!r}; give one of the two.")

    def check(self, gen_length: int, block_length: int) -> None:
        check_steps(self.steps, gen_length, block_length)

    def step(self, turn: Turn) -> Delta:
        region, prediction = turn.region, turn.prediction
        size, share = region.end - region.start, steps_in_block(self.steps, region)
        quota = to_device((size // share + (region.step < size % share)).clamp(min=1), prediction.positions.device)
        alg = "random" if self.remasking == "random" else self.alg
        return commit(prediction, rank(prediction.score(alg), prediction.candidate) < quota[:, None])


@dataclass(frozen=True, kw_only=True)
class Timestep(Ranked):
    """Dream's schedule: noise levels fall in a line from 1 to ``eps`` in ``steps`` passes (arXiv 2508.15487).

    From level t to level s a pass commits int(n (1 - s/t)) of the n masks, which may be none (with as
    many steps as slots it is none at the first pass and two at the last); the last pass commits all.
    ``alg=origin`` instead lets every mask go with probability 1 - s/t. ``alg_temp`` above 0 draws the
    slots in proportion to exp(score / alg_temp) instead of taking the best.
    """

    source: ClassVar[str] = "Dream, arXiv 2508.15487"
    steps: int = 128
    alg: str = "entropy"
    alg_temp: float = 0.0
    eps: float = 1e-3

    def __post_init__(self) -> None:
        if self.alg != "origin":
            check_alg(self.alg)
        check_count("steps", self.steps)
        if not self.alg_temp >= 0:
            raise OptionError(f"alg_temp={self.alg_temp} must be 0 or more.")
        if not 0 < self.eps < 1:
            raise OptionError(f"eps={self.eps} must be between 0 and 1.")

    def check(self, gen_length: int, block_length: int) -> None:
        check_steps(self.steps, gen_length, block_length)

    def _share(self, region: Region) -> Tensor:
        """Share (B,) of the masks to commit in this pass; 1 at the last."""
        share = []
        for step, steps in zip(region.step.tolist(), steps_in_block(self.steps, region).tolist(), strict=True):
            level = noise_levels(steps, self.eps)
            share.append(1 - level[step + 1] / level[step] if step + 1 < steps else torch.tensor(1.0))
        return torch.stack(share)

    def step(self, turn: Turn) -> Delta:
        region, prediction = turn.region, turn.prediction
        share, device = self._share(region), prediction.positions.device
        if self.alg == "origin":
            go = prediction.noise.uniform(prediction.positions) < to_device(share[:, None], device)
            return commit(prediction, go)
        score = prediction.score(self.alg)
        if self.alg_temp > 0:
            score = score / self.alg_temp + prediction.noise.gumbel(prediction.positions)
        quota = to_device((region.masked.float() * share).long(), device)
        return commit(prediction, rank(score, prediction.candidate) < quota[:, None])
