"""What numbers of test images can say: intervals, paired tests, corrections. By scipy and statsmodels. No torch here.

All of it is about the sampling of test images. Training seeds are another level, which only training again measures.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import lru_cache

LEVEL = 0.95  # of every interval; 1 - LEVEL is the error rate of every test

Interval = tuple[float, float]


@lru_cache(maxsize=4096)
def interval(right: int, count: int, level: float = LEVEL) -> Interval:
    """The Wilson score interval of a share.

    Args:
        right: how many images are right.
        count: how many there are.
        level: how often such an interval holds the true share.

    Source: Wilson 1927, by statsmodels' `proportion_confint`.
    """
    return _proportion(right, count, 1 - level, "wilson")


@lru_cache(maxsize=4096)
def exact(right: int, count: int, level: float = LEVEL) -> Interval:
    """The Clopper-Pearson interval of a share, which holds the true one at least as often as it says.

    Source: Clopper & Pearson 1934, by statsmodels' `proportion_confint`.
    """
    return _proportion(right, count, 1 - level, "beta")


def at_most(right: int, count: int, level: float = LEVEL) -> float:
    """The upper end of a one-sided Clopper-Pearson interval: the largest share that `right` of `count` still allows."""
    return exact(right, count, 2 * level - 1)[1]


def at_least(right: int, count: int, level: float = LEVEL) -> float:
    """The lower end of a one-sided Clopper-Pearson interval: the smallest share that `right` of `count` still allows."""
    return exact(right, count, 2 * level - 1)[0]


def _proportion(right: int, count: int, alpha: float, method: str) -> Interval:
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(right, count, alpha=alpha, method=method)
    return min(max(0.0, float(low)), right / count), max(
        min(1.0, float(high)), right / count
    )  # rounding may miss an end


def discordant(one: Sequence[bool], other: Sequence[bool]) -> tuple[int, int]:
    """On how many images only the one is right, and on how many only the other.

    Raises:
        ValueError: if they are not of equally many images.
    """
    pairs = list(zip(one, other, strict=True))
    return sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)


@lru_cache(maxsize=65536)
def mcnemar(only_one: int, only_other: int) -> float:
    """The exact two-sided McNemar test of two models on the same images.

    Args:
        only_one: images on which only the one is right.
        only_other: images on which only the other is right.

    Returns:
        How probable a split at least as uneven is if neither is better.

    Source: McNemar 1947, the exact binomial form, by statsmodels.
    """
    from statsmodels.stats.contingency_tables import mcnemar as test

    return float(test([[0, only_one], [only_other, 0]], exact=True).pvalue)


def holm(values: Sequence[float]) -> tuple[float, ...]:
    """The p-values of a family of tests, corrected so that any false finding at all is as rare as one test's.

    Source: Holm 1979, by statsmodels' `multipletests`.
    """
    return _holm(tuple(values)) if values else ()


@lru_cache(maxsize=256)
def _holm(values: tuple[float, ...]) -> tuple[float, ...]:
    # kept, since every call of multipletests collects garbage first, which takes longer than all the rest
    from statsmodels.stats.multitest import multipletests

    return tuple(map(float, multipletests(list(values), method="holm")[1]))


def paired_difference(one: Sequence[bool], other: Sequence[bool], level: float = LEVEL) -> Interval:
    """The interval of the difference of two shares on the same images, the one's minus the other's.

    Source: Newcombe 1998 (Statist. Med. 17, 2635-2650), method 10: Wilson intervals of either share, joined by their
        correlation with a correction for continuity.
    """
    ours, theirs = discordant(one, other)
    both, count = sum(map(min, one, other)), len(one)
    neither = count - both - ours - theirs
    share, rival = (both + ours) / count, (both + theirs) / count
    low, high = interval(both + ours, count, level)
    least, most = interval(both + theirs, count, level)
    margins = math.sqrt((both + ours) * (theirs + neither) * (both + theirs) * (ours + neither))
    product = both * neither - ours * theirs
    correlation = (max(product - count / 2, 0) if product > 0 else product) / margins if margins else 0.0
    below = _joined(share - low, most - rival, correlation)
    above = _joined(high - share, rival - least, correlation)
    return max(-1.0, share - rival - below), min(1.0, share - rival + above)


def _joined(one: float, other: float, correlation: float) -> float:
    return math.sqrt(max(0.0, one * one - 2 * correlation * one * other + other * other))


def separate_difference(right: int, count: int, other_right: int, other_count: int, level: float = LEVEL) -> Interval:
    """The interval of the difference of two shares on separate images.

    Source: Newcombe 1998 (Statist. Med. 17, 873-890), method 10, by statsmodels' `confint_proportions_2indep`.
    """
    from statsmodels.stats.proportion import confint_proportions_2indep

    low, high = confint_proportions_2indep(
        right, count, other_right, other_count, method="newcomb", compare="diff", alpha=1 - level
    )
    return float(low), float(high)


def published_difference(right: int, count: int, figure: float, figure_count: int | None = None) -> Interval:
    """The interval of ours minus a published share.

    Args:
        right: how many of our images are right.
        count: how many there are.
        figure: the published share.
        figure_count: on how many images it was measured; None to take it as exact.
    """
    if figure_count is None:
        low, high = interval(right, count)
        return low - figure, high - figure
    return separate_difference(right, count, round(figure * figure_count), figure_count)


@lru_cache(maxsize=1024)
def resolves(count: int, tests: int = 1, level: float = LEVEL) -> float | None:
    """The smallest difference of two shares on the same images that an exact McNemar test can find at all.

    It takes that many images, all of them right for the same one of the two.

    Args:
        count: how many images there are.
        tests: of how many tests this is the best, corrected by Holm.
        level: one minus the error rate.

    Returns:
        The difference; None where not even all images would do.
    """
    for images in range(1, count + 1):
        if mcnemar(images, 0) <= (1 - level) / tests + 1e-12:
            return images / count
    return None


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and the standard deviation (n - 1) of some training seeds; no deviation of a single one."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Student's t interval of the mean over training seeds; None for a single one.

    It holds where seeds spread normally. Of three seeds it is wide, 2.5 standard deviations to either side: three say no more.

    Source: Student 1908, by scipy.
    """
    from scipy.stats import t

    mean, deviation = spread(values)
    if deviation is None:
        return None
    half = float(t.ppf((1 + level) / 2, len(values) - 1)) * deviation / math.sqrt(len(values))
    return mean - half, mean + half
