"""How an accuracy is written, and what the sampling of test images means for a table, in words. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from robench.ranking import Ranking
from robench.statistic import at_least, at_most, interval, resolves
from robench.worst import left


def accuracy(columns: Sequence[Sequence[bool]], intervals: bool = False, mark: str = "") -> str:
    """The share of images that are right in every column, in per cent, to what that many images can resolve.

    Args:
        columns: bits.
        intervals: whether the Wilson interval follows: `47.1 (42.0-52.3)`.
        mark: what follows the number.
    """
    right, count = sum(left(columns)), len(columns[0])
    return percent(right / count, count, mark) + (between(interval(right, count), count) if intervals else "")


def percent(share: float, count: int | None, mark: str = "") -> str:
    """A share in per cent, to what so many images can resolve."""
    return f"{100 * share:.{2 if count is None or count >= 1000 else 1}f}{mark}"


def between(ends: tuple[float, float], count: int | None) -> str:
    """An interval as it follows a number."""
    return f" ({percent(ends[0], count)}-{percent(ends[1], count)})"


def caption(shown: Sequence[Sequence[bool]], found: Ranking, intervals: bool) -> list[str]:
    """What the sampling of test images means for a table's numbers, in words.

    Args:
        shown: the bits of every number.
        found: what comparing them gave.
        intervals: whether intervals are printed.
    """
    if not shown:
        return []
    count = len(shown[0])
    if intervals:
        notes = [f"(a-b): 95 % Wilson interval over {count:,} test images; training seeds vary besides."]
    else:
        notes = [
            f"n = {count:,} test images: 95 % Wilson intervals reach up to {100 * widest(shown):.1f} points to either side; "
            "training seeds vary besides."
        ]
    if any(not any(bits) for bits in shown):
        none, most = percent(0, count), percent(at_most(0, count), count)
        notes.append(
            f"Where none of {count:,} is right, {none}, up to {most} is possible (Clopper-Pearson, one-sided 95 %)."
        )
    if any(all(bits) for bits in shown):
        every, lowest = percent(1, count), percent(at_least(count, count), count)
        notes.append(
            f"Where all {count:,} are right, {every}, down to {lowest} is possible (Clopper-Pearson, one-sided 95 %)."
        )
    least = resolves(count, max(found.tests, 1))
    if not found.tests:
        takes = "no difference at all" if least is None else f"differences of {percent(least, count)} points or more"
        return [*notes, f"{count:,} images resolve {takes} between two models on them (exact McNemar, 5 %)."]
    how = f"exact McNemar on the same images, 5 %, Holm over {found.tests} comparisons"
    takes = (
        f"which {count:,} images cannot show"
        if least is None
        else f"which takes {percent(least, count)} points or more"
    )
    if found.wins:
        return [*notes, f"Bold: significantly better than every other row with a number there ({how}), {takes}."]
    return [*notes, f"No number is bold, since none is significantly better than every other row's ({how}), {takes}."]


def widest(shown: Iterable[Sequence[bool]]) -> float:
    """How far the widest of the Wilson intervals of several shares reaches to either side."""
    counts = {(sum(bits), len(bits)) for bits in shown}
    return max(max(k / n - low, high - k / n) for k, n in counts for low, high in [interval(k, n)])
