"""Which numbers of a table may be bold: those that beat every other row's beyond chance. No torch here."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations

from robench.statistic import LEVEL, holm, mcnemar

Bits = Sequence[bool]


@dataclass(frozen=True)
class Ranking:
    """What the comparisons of one table gave.

    Attributes:
        wins: (row, column) of each number that is significantly better than every other row's in its column.
        tests: how many comparisons were made.
    """

    wins: frozenset[tuple[int, int]]
    tests: int


def ranking(columns: Sequence[Sequence[Bits | None]], kin: Sequence[Hashable]) -> Ranking:
    """Compare all rows of each column on the same images: exact McNemar, Holm over every comparison of the table.

    Every pair is a comparison, since which row is best is only known afterwards.

    Args:
        columns: for each column its rows' bits; None where a row has none, or may be in no ranking.
        kin: for each row what it shares with rows that are not its rivals, such as other seeds of one recipe.
    """
    pairs: list[tuple[int, int, int, float]] = []  # column, better row, other row, p
    for place, column in enumerate(columns):
        masks = [None if bits is None else _mask(bits) for bits in column]
        for (i, one), (k, other) in combinations(enumerate(masks), 2):
            if one is None or other is None or kin[i] == kin[k]:
                continue
            ours, theirs = (one & ~other).bit_count(), (other & ~one).bit_count()
            better, worse = (i, k) if ours >= theirs else (k, i)
            pairs.append((place, better, worse, mcnemar(max(ours, theirs), min(ours, theirs))))
    adjusted = holm([p for *_, p in pairs])
    met: dict[tuple[int, int], bool] = {}
    for (place, better, worse, _), p in zip(pairs, adjusted, strict=True):
        met[better, place] = met.get((better, place), True) and p <= 1 - LEVEL
        met[worse, place] = False
    return Ranking(frozenset(cell for cell, won in met.items() if won), len(pairs))


def _mask(bits: Bits) -> int:
    """Bits as one number, so that counting those of ten thousand images takes no time."""
    return int("".join(map("01".__getitem__, bits)), 2)
