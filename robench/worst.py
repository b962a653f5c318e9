"""Worst cases from stored bits: what several attacks together leave, and what each adds to the others. No torch here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from robench.results import Result

K = TypeVar("K")
Bits = tuple[bool, ...]


def left(columns: Iterable[Sequence[bool]]) -> Bits:
    """For each image whether it is right in every column."""
    return tuple(map(all, zip(*columns, strict=True)))


def broken(result: Result) -> frozenset[int]:
    """The numbers of the images that were right when clean and are not robust."""
    pairs = zip(result.clean, result.robust, strict=True)
    return frozenset(i for i, (clean, robust) in enumerate(pairs) if clean and not robust)


def alone(sets: Mapping[K, frozenset[int]]) -> dict[K, frozenset[int]]:
    """For each of several the images that only it broke: its marginal contribution to their union.

    Args:
        sets: the images that each broke.
    """
    times = Counter(image for images in sets.values() for image in images)
    return {name: frozenset(image for image in images if times[image] == 1) for name, images in sets.items()}
