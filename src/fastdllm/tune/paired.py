"""Is one setting not worse than another by more than a margin, when both have answered the same problems?

Only problems that one of the two has right and the other wrong tell them apart: ``gained`` by the candidate,
``lost`` by it. The difference of the two accuracies is (gained - lost) / total, and the question is a test of
the null hypothesis "difference <= -margin" (non-inferiority of paired proportions).

The statistic is Tango's score (T. Tango, Statistics in Medicine 17, 891-908, 1998), whose standard error holds
under the null: it is sound where nothing was lost, where the usual error would be 0. Its normal approximation
exceeds the level a little (up to 5.6 % instead of 5 % at 100 problems), so the last word has the exact
unconditional test on the same statistic (H. Hsueh, J. Liu, J. J. Chen, Biometrics 57, 478-483, 2001): the
chance of a score as high, at the worst possible share of problems that tell the two apart. Differences and
margins are fractions here; a point is 0.01.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

POWER = 0.8
"""Chance of success that :func:`needed` plans for, the usual one."""
GRID, REFINED = 64, 24
"""Values of the nuisance parameter that are tried: over all of its range, and about the worst of these."""
DEVIATIONS, SPARE = 9, 60
"""How far from their mean counts are looked at; what lies beyond has less than 1e-14 of the probability."""
COUNTABLE = 5000
"""Up to so many problems all outcomes are counted; beyond, they take gigabytes, and the normal law is as good."""
TINY = 1e-300
"""Stands for a chance of 0, whose logarithm no count of 0 could be multiplied with."""
PRECISION = 1e-4
"""Of bounds: a hundredth of a point."""


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A candidate against plain decoding on the same problems."""

    total: int
    gained: int
    """Problems that the candidate has right and plain decoding has not."""
    lost: int
    """Problems that plain decoding has right and the candidate has not."""

    @property
    def difference(self) -> float:
        return (self.gained - self.lost) / self.total


def z_score(pairs: Paired, margin: float) -> float:
    """Tango's score: how many standard errors the difference lies above -``margin``; high is good."""
    gained, lost = (torch.tensor(float(count), dtype=torch.float64) for count in (pairs.gained, pairs.lost))
    return float(_scores(gained, lost, pairs.total, margin))


def _scores(gained: Tensor, lost: Tensor, total: int, margin: float) -> Tensor:
    """Tango's score of every pair of counts.

    With the difference held at -margin the likeliest share of problems that are gained is the larger root of
    2 n q^2 + b q + c = 0 (Tango's equation with the two kinds of problems exchanged).
    """
    b = (2 * total + gained - lost) * margin - (gained + lost)
    c = -gained * margin * (1 - margin)
    share = (torch.sqrt((b * b - 8 * total * c).clamp(min=0)) - b) / (4 * total)
    error = torch.sqrt((total * (2 * share + margin * (1 - margin))).clamp(min=0))
    return ((gained - lost + total * margin) / error).nan_to_num(nan=0.0)  # nothing differs, and no margin is given


def p_value(pairs: Paired, margin: float) -> float:
    """Largest chance, over all cases of the null hypothesis, of a score as high as this one.

    The largest lies where the difference is -margin exactly (Hsueh et al., 2001); along that line the share of
    problems that tell the two apart is searched, on a grid and more finely about its worst value.
    """
    if pairs.total > COUNTABLE:
        return 1 - NormalDist().cdf(z_score(pairs, margin))
    outcomes = _Outcomes(pairs, margin)
    least = abs(margin)
    shares = [least + (1 - least) * (i / GRID) ** 2 for i in range(GRID + 1)]
    chances = [outcomes.chance(share) for share in shares]
    worst = chances.index(max(chances))
    low, high = shares[max(0, worst - 1)], shares[min(GRID, worst + 1)]
    finer = [outcomes.chance(low + (high - low) * i / REFINED) for i in range(1, REFINED)]
    return min(1.0, max(*chances, *finer))


class _Outcomes:
    """The counts (gained, lost) of ``total`` problems that score as high as ``pairs``, in the order of their sum."""

    def __init__(self, pairs: Paired, margin: float) -> None:
        self.total, self.margin = pairs.total, margin
        counts = torch.tril_indices(self.total + 1, self.total + 1)
        differing, gained = (side.double() for side in counts)
        # Ties must count as ties whatever the last bits say.
        as_high = _scores(gained, differing - gained, self.total, margin) >= z_score(pairs, margin) - 1e-9
        self.differing, self.gained = differing[as_high], gained[as_high]
        self.lost, self.neither = self.differing - self.gained, self.total - self.differing
        log_ways = math.lgamma(self.total + 1) - sum(
            torch.lgamma(n + 1) for n in (self.gained, self.lost, self.neither)
        )
        self.log_ways = torch.as_tensor(log_ways)

    def chance(self, share: float) -> float:
        """Of a score as high, when ``share`` of all problems tell the two apart and the difference is -margin."""
        mean, reach = self.total * share, DEVIATIONS * math.sqrt(self.total * share * (1 - share)) + SPARE
        ends = torch.searchsorted(self.differing, torch.tensor([mean - reach, mean + reach], dtype=torch.float64))
        at = slice(*ends.tolist())
        gained, lost, neither = (
            math.log(max(chance, TINY)) for chance in ((share - self.margin) / 2, (share + self.margin) / 2, 1 - share)
        )
        exponent = self.log_ways[at] + self.gained[at] * gained + self.lost[at] * lost + self.neither[at] * neither
        return float(exponent.exp().sum())


def lower_bound(pairs: Paired, confidence: float, margin: float) -> float:
    """The difference is above this with ``confidence``, by the exact test.

    It is above -``margin`` if and only if the test at that margin says so; found to a hundredth of a point,
    rounded down.
    """
    not_worse = p_value(pairs, margin) <= 1 - confidence
    refused, open_ = (-margin, pairs.difference) if not_worse else (-1.0, -margin)
    while open_ - refused > PRECISION:
        middle = (refused + open_) / 2
        if p_value(pairs, -middle) <= 1 - confidence:
            refused = middle
        else:
            open_ = middle
    return refused


def needed(pairs: Paired, confidence: float, margin: float) -> int | None:
    """Problems at which the test would succeed with a chance of :data:`POWER`, if the true rates are those seen.

    The usual normal approximation (J. Nam, Biometrics 53, 1422-1430, 1997), and no less than a candidate without
    a single loss would need; None where the candidate is worse by the margin.
    """
    room = pairs.difference + margin
    if room <= 0:
        return None
    normal = NormalDist()
    deviation = math.sqrt((pairs.gained + pairs.lost) / pairs.total - pairs.difference**2)  # of one problem
    # The score grows with the root of the problems, whatever its error under the null is.
    root = normal.inv_cdf(confidence) * math.sqrt(pairs.total) / z_score(pairs, margin)
    root += normal.inv_cdf(POWER) * deviation / room
    return max(math.ceil(root**2), least_problems(confidence, margin))


def least_problems(confidence: float, margin: float) -> int:
    """With fewer problems no candidate passes that is right where plain decoding is, and nowhere else.

    Were it worse by the margin and never better, it would look like that with a chance of (1 - margin) ** problems.
    """
    return math.ceil(math.log(1 - confidence) / math.log1p(-margin))
