"""The test of "not worse by more than a margin": against counts by hand, brute force, and its own promise."""

from __future__ import annotations

import math
from functools import cache
from itertools import product
from statistics import NormalDist

import pytest
import torch

from fastdllm.tune.paired import Paired, least_problems, lower_bound, needed, p_value, z_score

MARGIN = 0.1


def pairs(total: int, gained: int, lost: int) -> Paired:
    return Paired(total=total, gained=gained, lost=lost)


def chance(counts: tuple[int, int, int], shares: tuple[float, float, float]) -> float:
    """Of so many (gained, lost, neither) problems when these are their true shares."""
    ways = math.factorial(sum(counts)) / math.prod(map(math.factorial, counts))
    return ways * math.prod(share**count for share, count in zip(shares, counts, strict=True))


def outcomes(total: int) -> list[tuple[int, int, int]]:
    return [(g, n, total - g - n) for g in range(total + 1) for n in range(total + 1 - g)]


def null_cases(margin: float, steps: int) -> list[tuple[float, float, float]]:
    """True shares under which a candidate is worse by the margin or by more."""
    grid = [i / steps for i in range(steps + 1)]
    return [(g, n, max(0.0, 1 - g - n)) for g, n in product(grid, grid) if g + n <= 1 and g - n <= -margin + 1e-12]


def test_tangos_example():
    """Tango (1998), table III: 44 pairs, one of which was lost, against a margin of 0.1 has a score of 1.709."""
    assert z_score(pairs(44, 0, 1), 0.1) == pytest.approx(1.709, abs=5e-4)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (0, 3), (4, 0), (2, 5), (9, 1)])
def test_the_score_has_the_error_of_the_likeliest_null(gained, lost):
    """The constrained maximum is found here by trying 100 000 values, not by Tango's formula."""
    total = 40
    share = torch.linspace(0, (1 - MARGIN) / 2, 100_001, dtype=torch.float64)[:-1]
    neither = 1 - 2 * share - MARGIN
    likelihood = (
        torch.xlogy(torch.tensor(float(gained)), share)
        + lost * (share + MARGIN).log()
        + (total - gained - lost) * neither.log()
    )
    best = float(share[likelihood.argmax()])
    error = math.sqrt(total * (2 * best + MARGIN - MARGIN**2))
    assert z_score(pairs(total, gained, lost), MARGIN) == pytest.approx((gained - lost + total * MARGIN) / error, 1e-3)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (2, 1), (0, 2), (5, 3)])
def test_the_p_value_is_the_worst_chance_over_all_of_the_null(gained, lost):
    total = 12
    own = z_score(pairs(total, gained, lost), MARGIN)
    as_high = [o for o in outcomes(total) if z_score(pairs(total, o[0], o[1]), MARGIN) >= own - 1e-9]
    worst = max(sum(chance(o, case) for o in as_high) for case in null_cases(MARGIN, 60))
    found = p_value(pairs(total, gained, lost), MARGIN)
    assert found >= worst - 1e-9
    assert found == pytest.approx(worst, abs=5e-3)


@pytest.mark.parametrize(("gained", "lost"), [(40, 40), (40, 51), (60, 50)])
def test_on_many_problems_the_normal_law_takes_over(gained, lost, monkeypatch):
    given = pairs(900, gained, lost)
    exact = p_value(given, 0.03)
    monkeypatch.setattr("fastdllm.tune.paired.COUNTABLE", 800)
    assert p_value(given, 0.03) == pytest.approx(exact, abs=0.005)
    assert p_value(given, 0.03) != exact


@pytest.mark.parametrize("margin", [0.1, 0.25])
def test_the_test_errs_as_often_as_it_says_at_most(margin):
    """All outcomes of 14 problems, under many true shares at and beyond the margin: exact, no simulation."""
    total, level = 14, 0.05
    passing = [o for o in outcomes(total) if p_value(pairs(total, o[0], o[1]), margin) <= level]
    errors = [sum(chance(o, case) for o in passing) for case in null_cases(margin, 40)]
    assert 0.6 * level < max(errors) <= level


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 2), (0, 3), (6, 1), (3, 9), (40, 0)])
def test_the_bound_agrees_with_the_test(gained, lost):
    given = pairs(60, gained, lost)
    bound = lower_bound(given, 0.95, MARGIN)
    assert (bound >= -MARGIN) == (p_value(given, MARGIN) <= 0.05)
    assert -1 <= bound < given.difference
    assert p_value(given, -bound) <= 0.05 + 1e-9
    assert p_value(given, -bound - 3e-4) > 0.04
    assert lower_bound(given, 0.99, MARGIN) < bound


def test_more_losses_are_worse_and_more_gains_better():
    bounds = [lower_bound(pairs(80, g, n), 0.95, 0.05) for g, n in ((0, 4), (0, 2), (0, 0), (2, 0), (5, 0))]
    assert bounds == sorted(bounds)


@pytest.mark.parametrize(("confidence", "margin"), [(0.95, 0.02), (0.95, 0.1), (0.9, 0.05), (0.99, 0.2)])
def test_with_fewer_than_the_least_problems_even_a_perfect_record_fails(confidence, margin):
    least = least_problems(confidence, margin)
    assert p_value(pairs(least - 1, 0, 0), margin) > 1 - confidence
    if confidence <= 0.95:
        assert p_value(pairs(least, 0, 0), margin) <= 1 - confidence


@pytest.mark.parametrize(("gained", "lost"), [(6, 6), (2, 5), (9, 3)])
def test_so_many_problems_as_are_needed_mostly_suffice(gained, lost):
    seen, margin = pairs(300, gained, lost), 0.03
    total = needed(seen, 0.95, margin)
    assert total is not None
    generator = torch.Generator().manual_seed(0)
    shares = torch.tensor([gained, lost, 300 - gained - lost]) / 300
    drawn = torch.multinomial(shares, 1000 * total, replacement=True, generator=generator).view(1000, total)
    passes = cache(lambda g, n: z_score(pairs(total, g, n), margin) >= NormalDist().inv_cdf(0.95))
    passed = [passes(int((row == 0).sum()), int((row == 1).sum())) for row in drawn]
    assert 0.75 < sum(passed) / len(passed) < 0.9


def test_no_number_of_problems_helps_what_is_worse():
    assert needed(pairs(100, 0, 5), 0.95, 0.05) is None
    assert needed(pairs(100, 0, 0), 0.95, 0.05) == least_problems(0.95, 0.05)
