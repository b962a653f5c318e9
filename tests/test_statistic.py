"""Intervals and tests against scipy, statsmodels, closed forms and slow references."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import confint_proportions_2indep

from robench import statistic
from robench.statistic import (
    at_least,
    at_most,
    discordant,
    exact,
    holm,
    interval,
    mcnemar,
    paired_difference,
    published_difference,
    resolves,
    separate_difference,
    spread,
)

counts = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
bits = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)
few = settings(deadline=None, derandomize=True, max_examples=100)
fewer = settings(deadline=None, derandomize=True, max_examples=20)  # multipletests collects garbage at every call


def pair(both: int, one: int, other: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Two models' bits with these counts."""
    return (
        [True] * (both + one) + [False] * (other + neither),
        [True] * both + [False] * one + [True] * other + [False] * neither,
    )


# one share


@given(counts)
@few
def test_intervals_are_those_of_scipy(case: tuple[int, int]) -> None:
    k, n = case
    for ours, method in ((interval, "wilson"), (exact, "exact")):
        theirs = stats.binomtest(k, n).proportion_ci(0.95, method)
        assert ours(k, n) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@given(counts)
@few
def test_the_ends_of_a_wilson_interval_are_just_not_rejected(case: tuple[int, int]) -> None:
    k, n = case
    z = stats.norm.ppf(0.975)
    for end in interval(k, n):
        assert abs(k / n - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), abs=1e-7)


@given(counts)
@few
def test_intervals_hold_the_share_and_the_exact_one_is_not_narrower_at_an_end(case: tuple[int, int]) -> None:
    k, n = case
    for low, high in (interval(k, n), exact(k, n)):
        assert 0 <= low <= k / n <= high <= 1
    assert exact(0, n)[0] == 0
    assert exact(n, n)[1] == 1


@pytest.mark.parametrize(("right", "count", "low", "high"), [(500, 1000, 46.9, 53.1), (5000, 10000, 49.0, 51.0)])
def test_known_half_widths(right: int, count: int, low: float, high: float) -> None:
    assert [round(100 * end, 1) for end in interval(right, count)] == [low, high]
    assert round(100 * interval(9 * right // 5, count)[0], 1) == {1000: 88.0, 10000: 89.4}[count]


@given(st.integers(1, 3000))
@few
def test_what_none_of_many_still_allows(n: int) -> None:
    assert at_most(0, n) == pytest.approx(1 - 0.05 ** (1 / n))
    assert at_least(n, n) == pytest.approx(0.05 ** (1 / n))
    assert at_most(n, n) == 1
    assert at_least(0, n) == 0


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5])
@pytest.mark.parametrize("n", [10, 60])
def test_how_often_intervals_hold_the_true_share(share: float, n: int) -> None:
    weights = [stats.binom.pmf(k, n, share) for k in range(n + 1)]

    def holds(of: object) -> float:
        return sum(w for k, w in enumerate(weights) if of(k, n)[0] <= share <= of(k, n)[1])  # type: ignore[operator]

    assert holds(exact) >= 0.95
    assert holds(interval) >= 0.91  # about the level on average, not everywhere


# two models on the same images


@given(st.integers(0, 150), st.integers(0, 150))
@few
def test_mcnemar_is_the_binomial_test_of_scipy(b: int, c: int) -> None:
    expected = stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected)
    assert mcnemar(b, c) == mcnemar(c, b)


@pytest.mark.parametrize(("b", "c"), list(product(range(7), range(7))))
def test_mcnemar_counts_splits(b: int, c: int) -> None:
    # of all 2^m ways to give out the discordant images, how many are at least as uneven
    m = b + c
    uneven = sum(math.comb(m, k) for k in range(m + 1) if abs(2 * k - m) >= abs(b - c))
    assert mcnemar(b, c) == pytest.approx(uneven / 2**m)


def test_mcnemar_by_known_figures() -> None:
    assert round(mcnemar(120, 80), 3) == 0.006
    assert round(mcnemar(60, 40), 3) == 0.057


@given(bits)
def test_discordant_images_explain_the_difference(case: list[tuple[bool, bool]]) -> None:
    one, other = [a for a, _ in case], [b for _, b in case]
    b, c = discordant(one, other)
    assert b - c == sum(one) - sum(other)
    assert discordant(other, one) == (c, b)


def test_models_on_other_images_do_not_compare() -> None:
    with pytest.raises(ValueError, match="zip"):
        discordant([True], [True, False])


@given(bits)
@few
def test_a_paired_interval_holds_the_difference_and_turns_round(case: list[tuple[bool, bool]]) -> None:
    one, other = [a for a, _ in case], [b for _, b in case]
    low, high = paired_difference(one, other)
    assert -1 <= low <= (sum(one) - sum(other)) / len(one) <= high <= 1
    assert low < high
    assert paired_difference(other, one) == pytest.approx((-high, -low))


def test_a_paired_interval_by_a_worked_example() -> None:
    # Fagerland, Lydersen & Laake 2014, table of airway hyper-responsiveness: 1, 1, 7, 12
    low, high = paired_difference(*pair(1, 1, 7, 12))
    assert (round(low, 3), round(high, 3)) == (-0.507, -0.026)


@pytest.mark.parametrize("counts", [(20, 30, 40, 60), (8, 12, 2, 3), (25, 25, 25, 25)])
def test_without_correlation_a_paired_interval_is_that_of_separate_images(counts: tuple[int, ...]) -> None:
    one, other = pair(*counts)  # the product of the diagonal is that of the other
    n = len(one)
    assert paired_difference(one, other) == pytest.approx(separate_difference(sum(one), n, sum(other), n))


def test_a_pair_says_more_than_two_samples() -> None:
    one, other = pair(400, 60, 40, 500)
    low, high = paired_difference(one, other)
    least, most = separate_difference(460, 1000, 440, 1000)
    assert high - low < 0.6 * (most - least)


def test_models_that_never_differ_still_leave_a_doubt() -> None:
    low, high = paired_difference(*pair(120, 0, 0, 120))
    assert 0 < high == -low < 0.02


@pytest.mark.parametrize("shares", [(0.3, 0.1, 0.1, 0.5), (0.5, 0.2, 0.05, 0.25), (0.1, 0.4, 0.2, 0.3)])
def test_how_often_a_paired_interval_holds_the_true_difference(shares: tuple[float, ...]) -> None:
    n, held = 14, 0.0
    law = stats.multinomial(n, shares)
    for b, c, a in product(range(n + 1), repeat=3):
        if a + b + c <= n:
            low, high = paired_difference(*pair(a, b, c, n - a - b - c))
            held += law.pmf([a, b, c, n - a - b - c]) * (low <= shares[1] - shares[2] <= high)
    assert held >= 0.94


# a figure of a paper


@given(counts, counts)
@few
def test_separate_differences_are_those_of_statsmodels(one: tuple[int, int], other: tuple[int, int]) -> None:
    theirs = confint_proportions_2indep(*one, *other, method="newcomb", compare="diff")
    assert separate_difference(*one, *other) == pytest.approx(theirs)


def test_a_published_figure_of_known_size_adds_its_own_doubt() -> None:
    as_exact, known = published_difference(403, 1000, 0.45), published_difference(403, 1000, 0.45, 10_000)
    assert as_exact == pytest.approx(tuple(end - 0.45 for end in interval(403, 1000)))
    assert known[0] < as_exact[0] < as_exact[1] < known[1]
    assert published_difference(403, 1000, 0.45, 10**9) == pytest.approx(as_exact, abs=1e-4)


# families


@given(st.lists(st.floats(0, 1), max_size=12))
@fewer
def test_holm_steps_down(values: list[float]) -> None:
    order = sorted(range(len(values)), key=values.__getitem__)
    expected, worst = [0.0] * len(values), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(values) - rank) * values[i]))
        expected[i] = worst
    assert holm(values) == pytest.approx(tuple(expected))


@given(st.integers(1, 400), st.integers(1, 500))
@fewer
def test_the_smallest_difference_that_resolves(n: int, tests: int) -> None:
    images = next(k for k in range(1, 99) if 2 * 0.5**k <= 0.05 / tests)
    assert resolves(n, tests) == (images / n if images <= n else None)
    if images <= n:
        assert holm([mcnemar(images, 0), *[1.0] * (tests - 1)])[0] <= 0.05 + 1e-9


@given(st.lists(st.floats(0, 100), min_size=1, max_size=9))
@few
def test_the_spread_of_seeds(values: list[float]) -> None:
    mean, deviation = spread(values)
    assert mean == pytest.approx(np.mean(values))
    if len(values) == 1:
        assert deviation is None
    else:
        assert deviation == pytest.approx(np.std(values, ddof=1))


def test_no_library_is_loaded_before_it_is_needed() -> None:
    assert not {"scipy", "statsmodels"} & vars(statistic).keys()


def test_the_interval_of_a_mean_over_seeds() -> None:
    # of two values t is tan(0.475 pi) = 12.706, and the interval's half is t times half their distance
    assert statistic.mean_interval([0.2, 0.4]) == pytest.approx((0.3 - 1.27062, 0.3 + 1.27062), abs=1e-4)
    low, high = statistic.mean_interval([0.1, 0.2, 0.3])  # type: ignore[misc]
    assert (high - low) / 2 == pytest.approx(4.30265 * 0.1 / 3**0.5, abs=1e-5)
    assert statistic.mean_interval([0.25, 0.25, 0.25]) == (0.25, 0.25)
    assert statistic.mean_interval([0.2]) is None
