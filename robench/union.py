"""The union of attacks: what they leave together, and what each of them adds, from stored bits. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from robench.diagnosis import Diagnosis
from robench.errors import StoreError
from robench.rendering.csv import as_csv
from robench.reporting import (
    Doubts,
    Table,
    accuracy,
    apart,
    doubts,
    marked,
    order,
    ordered,
    unproven,
    unreliable,
)
from robench.results import Failure, Result, Subject, safe
from robench.statistic import interval
from robench.threat import ThreatModel
from robench.worst import Bits, alone, broken, left

Images = tuple[str, str, int]  # data set, digest, how many; attacks of several seeds meet on them


@dataclass(frozen=True)
class Member:
    """One attack of a union, or all of one threat.

    Attributes:
        name: of the attack, with its source and seed where it has one, or of the threat.
        robust: which images are right under it.
        broken: the images that it broke.
        alone: those of them that no other member broke.
    """

    name: str
    robust: Bits
    broken: frozenset[int]
    alone: frozenset[int]


@dataclass(frozen=True)
class Union:
    """What several attacks did to one checkpoint.

    Attributes:
        subject: the checkpoint.
        images: which.
        threat: of the attacks; None for the union over all threats, whose members are threats.
        members: the strongest first; threats in the order of norms.
        clean: which images are right without an attack.
        robust: which are right under every member.
    """

    subject: Subject
    images: Images
    threat: ThreatModel | None
    members: tuple[Member, ...]
    clean: Bits
    robust: Bits


def unions(records: Iterable[Result | Failure]) -> list[Union]:
    """For each checkpoint and set of images: the union at each threat, and over all threats where there are several.

    Results of attacks by different seeds belong to one union, since an image that any of them broke is broken. A smoothed
    classifier draws by the seed, so each seed of it is a checkpoint of its own. Numbers that say nothing without an adaptive
    attack beside them are left out.

    Raises:
        StoreError: if there is no result.
    """
    results = apart(sorted((r for r in records if isinstance(r, Result)), key=lambda r: r.cell.key))
    withheld = unproven(results)
    fit = [_by_seed(r) for r in results if r not in withheld]
    if not fit:
        raise StoreError("no results whose worst case could be taken: robench evaluate --attack pgd-20 --attack fab-t")
    return [
        each
        for images in sorted({_images(r) for r in fit})
        for subject in ordered({r.subject.sha256: r.subject for r in fit if _images(r) == images}.values())
        for each in _of([r for r in fit if _images(r) == images and r.cell.checkpoint == subject.sha256])
    ]


def _images(result: Result) -> Images:
    return result.subject.dataset, result.cell.data, result.cell.count


def _by_seed(result: Result) -> Result:
    """A smoothed classifier's result as one of a checkpoint that its seed names."""
    if result.cell.inference is None:
        return result
    sha256 = f"{result.cell.checkpoint}+{result.cell.seed}"
    name = f"{result.subject.name}, draws by seed {result.cell.seed}"
    who = replace(result.subject, sha256=sha256, name=name)
    return replace(result, subject=who, cell=replace(result.cell, checkpoint=sha256))


def _of(own: Sequence[Result]) -> list[Union]:
    """The unions of one checkpoint."""
    threats = sorted({r.cell.threat for r in own}, key=order)
    made = []
    for threat in threats:
        part = _named([r for r in own if r.cell.threat == threat])
        sets = {name: broken(r) for name, r in part.items()}
        made.append(_union(own[0], threat, {name: r.robust for name, r in part.items()}, sets))
    if len(threats) > 1:
        names = [f"{each.threat}, {len(each.members)} attack{'s' * (len(each.members) > 1)}" for each in made]
        sets = dict(zip(names, map(lost, made), strict=True))
        made.append(_union(own[0], None, dict(zip(names, (each.robust for each in made), strict=True)), sets))
    return made


def _named(results: Sequence[Result]) -> dict[str, Result]:
    """Results by what tells them apart: the attack, its source and its seed, and the cell where that is not enough."""
    several = len({r.cell.seed for r in results}) > 1
    made: dict[str, Result] = {}
    for r in results:
        via = f" from {r.source.name}" if r.source else ""
        name = f"{r.cell.attack}{via}" + (f", seed {r.cell.seed}" if several else "")
        made[f"{name}, cell {r.cell.key[:8]}" if name in made else name] = r
    return made


def _union(any_of: Result, threat: ThreatModel | None, bits: dict[str, Bits], sets: dict[str, frozenset[int]]) -> Union:
    lone = alone(sets)
    ranked = sorted(sets, key=lambda name: (-len(sets[name]), name)) if threat else list(sets)
    members = tuple(Member(name, bits[name], sets[name], lone[name]) for name in ranked)
    return Union(any_of.subject, _images(any_of), threat, members, any_of.clean, left(bits.values()))


def tables(
    records: Iterable[Result | Failure], diagnoses: Iterable[Diagnosis] = (), intervals: bool = False
) -> list[Table]:
    """A table for each set of images: what every attack left and broke, and what it broke that no other did.

    Args:
        records: results; failures are passed over.
        diagnoses: of some checkpoints; those that failed are marked.
        intervals: whether every accuracy has its interval beside it.

    Raises:
        StoreError: if there is no result.
    """
    records = list(records)
    found = unions(records)
    doubted = doubts(apart(r for r in records if isinstance(r, Result)), diagnoses)
    groups = sorted({each.images for each in found})
    return [_table([u for u in found if u.images == images], groups, doubted, intervals) for images in groups]


def _table(found: Sequence[Union], groups: Sequence[Images], doubted: Doubts, intervals: bool) -> Table:
    dataset, digest, count = found[0].images
    many = sum(other[0] == dataset for other in groups) > 1
    whole = {each.subject.sha256 for each in found if each.threat is None}
    shown = [each for each in found if len(each.members) > 1 or each.subject.sha256 not in whole]
    rows = tuple(row for each in shown for row in _rows(each, doubted, intervals))
    subjects = {each.subject.sha256: each.subject for each in found}
    fewer = _fewer([each for each in found if each.threat is not None], subjects)
    notes = [
        "Accuracy in per cent; broken: images right when clean that the attack fooled.",
        "by it alone: images that no other row of the block broke; what the union would lose without that attack.",
        "union: right under every row of the block, image by image; an upper bound, as strong as the attacks are.",
        f"n = {count:,} test images" + ("; (a-b): 95 % Wilson interval over them." if intervals else "."),
        *(["A threat with a single attack has no block of its own."] if len(shown) < len(found) else []),
        *(["Unions over other attacks do not compare, since fewer attacks look more robust:"] if fewer else []),
        *(safe(text) for text in fewer),
        *unreliable(subjects.values(), doubted),
    ]
    where = f"{safe(dataset)}, {count:,} test images" + (f" {digest[:8]}" if many else "")
    head = ("attack", "accuracy", "broken", "by it alone")
    return Table(f"Union of attacks, {where}", (head,), rows, tuple(notes))


def _fewer(found: Sequence[Union], subjects: Mapping[str, Subject]) -> list[str]:
    """Which checkpoints did not meet what others met, transfer left out, of which each has its own sources."""
    met = {(each.subject.sha256, each.threat): {m.name for m in each.members} for each in found}
    texts = []
    for threat in dict.fromkeys(each.threat for each in found):
        asked = set().union(*(names for (_, at), names in met.items() if at == threat))
        for key, subject in subjects.items():
            gone = sorted(name for name in asked - met.get((key, threat), set()) if " from " not in name)
            texts += [f"{subject.name} at {threat} did not meet {', '.join(gone)}."] if gone else []
    return texts


def _rows(union: Union, doubted: Doubts, intervals: bool) -> list[tuple[str, ...]]:
    at = str(union.threat) if union.threat else "all threats"
    group = f"{marked(union.subject, doubted)} at {at}"
    rows = [
        (group, safe(m.name), accuracy([m.robust], intervals), str(len(m.broken)), str(len(m.alone)))
        for m in union.members
    ]
    return [*rows, (group, "union", accuracy([union.robust], intervals), str(len(lost(union))), "")]


def csv(records: Iterable[Result | Failure], diagnoses: Iterable[Diagnosis] = ()) -> str:
    """The same as tidy CSV, a row for each attack and each union, accuracies as fractions."""
    import pandas

    records = list(records)
    doubted = doubts(apart(r for r in records if isinstance(r, Result)), diagnoses)
    rows = []
    for each in unions(records):
        whole = Member("union", each.robust, lost(each), frozenset())
        for member in (*each.members, whole):
            low, high = interval(sum(member.robust), len(member.robust))
            rows.append(
                {
                    "dataset": each.images[0],
                    "images": each.images[1],
                    "count": each.images[2],
                    "checkpoint": marked(each.subject, doubted),
                    "threat": str(each.threat) if each.threat else "all",
                    "attack": member.name,
                    "accuracy": sum(member.robust) / len(member.robust),
                    "low": low,
                    "high": high,
                    "broken": len(member.broken),
                    "alone": "" if member is whole else len(member.alone),
                }
            )
    return as_csv(pandas.DataFrame(rows))


def lost(union: Union) -> frozenset[int]:
    """The images that any member of a union broke."""
    return frozenset().union(*(member.broken for member in union.members))
