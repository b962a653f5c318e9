"""Several training seeds of one recipe: which checkpoints those are, and their mean and spread. No torch here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from robench.results import Subject
from robench.statistic import spread

Family = tuple[Subject, ...]


def family(subject: Subject) -> tuple[object, ...]:
    """What training seeds of one recipe share: all but their seed, which a run's name ends in."""
    name = re.sub(r"-seed\d+(?=$|[@ ])", "", subject.name)
    return subject.recipe, subject.group, subject.threat, subject.dataset, name


def families(subjects: Iterable[Subject]) -> list[Family]:
    """Checkpoints of one recipe that differ in their training seed, two or more; not those of which a seed stands twice."""
    found: dict[tuple[object, ...], list[Subject]] = {}
    for subject in subjects:
        found.setdefault(family(subject), []).append(subject)
    return [tuple(own) for own in found.values() if len({s.seed for s in own}) == len(own) > 1]


def over(seeds: Sequence[Sequence[bool] | None]) -> tuple[str, float] | None:
    """The mean accuracy over seeds with its standard deviation (n - 1), or the one number there is; None without any.

    Args:
        seeds: the bits of each; None for one that has no result.

    Returns:
        The text, in per cent, and the mean as a fraction.
    """
    there = [bits for bits in seeds if bits is not None]
    if not there:
        return None
    decimals = 2 if min(map(len, there)) >= 1000 else 1
    mean, deviation = spread([sum(bits) / len(bits) for bits in there])
    text = f"{100 * mean:.{decimals}f}"
    if deviation is not None:
        text += f" +- {100 * deviation:.{decimals}f}"
    if len(there) < len(seeds):
        text += f" ({len(there)} of {len(seeds)})"
    return text, mean
