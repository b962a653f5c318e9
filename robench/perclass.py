"""Accuracy class by class: a mean can hide a class that is lost. Labels come from beside the cells. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from robench.diagnosis import Diagnosis
from robench.errors import StoreError
from robench.exhibits import Labels
from robench.panels import Classes
from robench.rendering.csv import as_csv
from robench.reporting import (
    ABSENT,
    Doubts,
    Table,
    accuracy,
    apart,
    doubts,
    images_of,
    marked,
    order,
    ordered,
    place,
    reasons,
    unproven,
    unreliable,
)
from robench.results import Failure, Result, Subject, safe
from robench.statistic import interval
from robench.threat import ThreatModel
from robench.worst import left

REMEDY = (
    "the classes of the images are not stored yet: run robench evaluate again; what is evaluated is not computed anew"
)


@dataclass(frozen=True)
class Share:
    """How many images of a class are right, of how many."""

    label: int
    right: int
    count: int

    @property
    def accuracy(self) -> float:
        """As a fraction."""
        return self.right / self.count


def shares(right: Sequence[bool], labels: Sequence[int]) -> list[Share]:
    """The accuracy of each class that has an image, by its number.

    Args:
        right: whether each image is right.
        labels: its class.
    """
    found = []
    for label in sorted(set(labels)):
        own = [bit for bit, each in zip(right, labels, strict=True) if each == label]
        found.append(Share(label, sum(own), len(own)))
    return found


def worst_class(right: Sequence[bool], labels: Sequence[int]) -> Share:
    """The class with the lowest accuracy; of several the first."""
    return min(shares(right, labels), key=lambda share: (share.accuracy, share.label))


def worst_case(results: Sequence[Result], subject: Subject, threat: ThreatModel) -> tuple[bool, ...] | None:
    """What all stored attacks at a threat leave of a checkpoint, transfer included.

    None while it has not met every white-box attack that another of its kind met there: fewer attacks look more robust.

    Args:
        results: on the same images.
        subject: whose.
        threat: the ball.
    """
    at = [r for r in results if r.cell.threat == threat]
    own = [r for r in at if r.cell.checkpoint == subject.sha256]
    if not own:
        return None
    smoothed = own[0].cell.inference is not None
    asked = {r.cell.attack for r in at if not r.cell.source and (r.cell.inference is not None) is smoothed}
    if not asked <= {r.cell.attack for r in own if not r.cell.source}:
        return None
    return left(r.robust for r in own)


Group = tuple[tuple[str, str, int, int], list[Result], list[int]]


def known(records: Iterable[Result | Failure], labels: Iterable[Labels]) -> list[Group]:
    """What the images are, their results and their classes, for those images whose classes are stored."""
    every = [r for r in records if isinstance(r, Result)]
    by = {each.data: each.each for each in labels}
    groups = sorted({images_of(r) for r in every}, key=str)
    return [
        (group, [r for r in every if images_of(r) == group], by[group[1]])
        for group in groups
        if len(by.get(group[1], ())) == group[2]
    ]


def tables(
    records: Iterable[Result | Failure],
    labels: Iterable[Labels],
    diagnoses: Iterable[Diagnosis] = (),
    intervals: bool = False,
) -> list[Table]:
    """The worst class of each checkpoint, clean and under all attacks at each threat.

    Args:
        records: results; failures are passed over.
        labels: of their images.
        diagnoses: of some checkpoints; those that failed are marked.
        intervals: whether means have theirs beside them. That of a class picked as the worst would be too narrow.

    Raises:
        StoreError: if the classes of none of the images are known.
    """
    results = apart(sorted((r for r in records if isinstance(r, Result)), key=lambda r: r.cell.key))
    doubted = doubts(results, diagnoses)
    groups = sorted({images_of(r) for r in results}, key=str)
    made = [
        _table(part, known_as, place(group, groups), doubted, intervals)
        for group, part, known_as in known(results, labels)
    ]
    if not made:
        raise StoreError(REMEDY)
    return made


def _table(results: Sequence[Result], labels: Sequence[int], where: str, doubted: Doubts, intervals: bool) -> Table:
    subjects = ordered({r.subject.sha256: r.subject for r in results}.values())
    alone = unproven(results)
    counted = [r for r in results if r not in alone]
    threats = sorted({r.cell.threat for r in counted}, key=order)
    outer, inner = ["", "clean", "clean"], ["checkpoint", "mean", "worst class"]
    for threat in threats:
        outer += [str(threat)] * 2
        inner += ["worst case", "worst class"]
    rows = []
    for subject in subjects:
        clean = next(r.clean for r in results if r.cell.checkpoint == subject.sha256)
        row = [marked(subject, doubted), *_cells(clean, labels, intervals)]
        for threat in threats:
            row += _cells(worst_case(counted, subject, threat), labels, intervals)
        rows.append((safe(subject.group), *row))
    sizes = [share.count for share in shares([True] * len(labels), labels)]
    notes = (
        "Accuracy in per cent, an upper bound; worst case: still right under every attack stored there, transfer included.",
        "worst class: the lowest accuracy of a class (its number: how many of its images are right).",
        f"{len(sizes)} classes of {min(sizes)} to {max(sizes)} images: the lowest of many small classes is low by chance, too.",
        f"{ABSENT}: not evaluated under all of the attacks.",
        *unreliable(subjects, doubted),
    )
    return Table(f"Worst class, {where}", (tuple(outer), tuple(inner)), tuple(rows), notes)


def csv(records: Iterable[Result | Failure], labels: Iterable[Labels], diagnoses: Iterable[Diagnosis] = ()) -> str:
    """A row for each checkpoint, threat and class; the threat is empty for clean images.

    Raises:
        StoreError: if the classes of none of the images are known.
    """
    import pandas

    results = apart(sorted((r for r in records if isinstance(r, Result)), key=lambda r: r.cell.key))
    doubted = doubts(results, diagnoses)
    rows: list[dict[str, object]] = []
    for (dataset, images, count, seed), part, classes in known(results, labels):
        for subject, threat, right in _columns(part):
            about = {
                "dataset": dataset,
                "images": images[:8],
                "count": count,
                "attack_seed": seed,
                "checkpoint": subject.name,
                "threat": str(threat or ""),
            }
            flags = "; ".join(reasons(subject, doubted))
            rows += [
                {
                    **about,
                    "class": s.label,
                    "right": s.right,
                    "of": s.count,
                    "accuracy": s.accuracy,
                    **dict(zip(("accuracy_low", "accuracy_high"), interval(s.right, s.count), strict=True)),
                    "flags": flags,
                }
                for s in shares(right, classes)
            ]
    if not rows:
        raise StoreError(REMEDY)
    return as_csv(pandas.DataFrame(rows))


def _columns(results: Sequence[Result]) -> Iterator[tuple[Subject, ThreatModel | None, Sequence[bool]]]:
    """Each checkpoint's bits, clean and in the worst case at each threat, where it met all attacks."""
    alone = unproven(results)
    counted = [r for r in results if r not in alone]
    threats = sorted({r.cell.threat for r in counted}, key=order)
    for subject in ordered({r.subject.sha256: r.subject for r in results}.values()):
        yield subject, None, next(r.clean for r in results if r.cell.checkpoint == subject.sha256)
        for threat in threats:
            right = worst_case(counted, subject, threat)
            if right is not None:
                yield subject, threat, right


def _cells(right: Sequence[bool] | None, labels: Sequence[int], intervals: bool) -> list[str]:
    """Mean and worst class, as text."""
    if right is None:
        return [ABSENT, ABSENT]
    lost = worst_class(right, labels)
    return [accuracy([right], intervals), f"{100 * lost.accuracy:.1f} ({lost.label}: {lost.right}/{lost.count})"]


def panels(results: Sequence[Result], labels: Sequence[int], names: Mapping[str, str]) -> list[Classes]:
    """A panel for clean images and one for each threat, a line for each checkpoint.

    Args:
        results: on the same images.
        labels: the classes of those.
        names: of checkpoints, by digest.
    """
    found: dict[str, list[tuple[str, tuple[float | None, ...]]]] = {"clean": []}
    for subject, threat, right in _columns(results):
        title = f"{threat}, all attacks" if threat else "clean"
        found.setdefault(title, []).append((names[subject.sha256], _line(right, labels)))
    return [Classes(title, tuple(lines)) for title, lines in found.items()]


def _line(right: Sequence[bool], labels: Sequence[int]) -> tuple[float | None, ...]:
    found = {share.label: share.accuracy for share in shares(right, labels)}
    return tuple(found.get(label) for label in range(max(labels) + 1))
