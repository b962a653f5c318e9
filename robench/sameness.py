"""What may stand together in one table, and by which name: never mixed, never taken for one another. No torch here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from robench.registry import ATTACKS
from robench.results import Failure, Result, Subject, named, safe, searching
from robench.spec import digest
from robench.threat import Norm, ThreatModel

R = TypeVar("R", bound=Result | Failure)
NORMS = list(Norm)
TOLD_APART = "v1, v2, or options after the name of an attack: different attacks, since one may be stronger."


def place(group: tuple[str, str, int, int], groups: Sequence[tuple[str, str, int, int]]) -> str:
    """What tables are about, in words; which images and seed only where several of a data set would look alike."""
    dataset, images, count, seed = group
    many = sum(other[0] == dataset for other in groups) > 1
    return f"{safe(dataset)}, {count:,} test images" + (f" {images[:8]}, attack seed {seed}" if many else "")


def apart(records: Iterable[R]) -> list[R]:
    """Records in which whatever must not be taken for one another has another name.

    A checkpoint that answers in another way, such as smoothed, is a checkpoint of its own. An attack of which these records
    of the same images hold several versions, or several sets of options in one norm, is an attack for each.
    """
    made = [_searched(_apart(record) if record.cell.inference else record) for record in records]
    versions: dict[object, set[int]] = {}
    options: dict[object, list[dict[str, object]]] = {}
    for record in made:
        versions.setdefault(_named(record), set()).add(record.cell.version)
        options.setdefault(_tuned(record), []).append(dict(record.cell.options))
    told = {key: _differing(several) for key, several in options.items()}
    return [_called(r, len(versions[_named(r)]) > 1, told[_tuned(r)]) for r in made]


def _searched(record: R) -> R:
    """A record whose attack is called by its precision, too, where that is not float32."""
    cell = record.cell
    return record if cell.precision == "float32" else replace(record, cell=replace(cell, attack=searching(cell)))


def _named(record: Result | Failure) -> object:
    """What records share whose attacks a table would call the same."""
    return images_of(record), record.cell.attack


def _tuned(record: Result | Failure) -> object:
    """What records share whose attacks have the same options: transfer has no early stop, and norms have their own."""
    return (
        *images_of(record),
        record.cell.attack,
        record.cell.version,
        record.cell.threat.norm,
        bool(record.cell.source),
    )


def _differing(options: Sequence[Mapping[str, object]]) -> list[str]:
    """The options that are not the same in all of several sets."""
    names = sorted({name for each in options for name in each})
    return [name for name in names if len({digest(each.get(name)) for each in options}) > 1]


def _called(record: R, version: bool, options: Sequence[str]) -> R:
    """A record whose attack is called by its version or by some options, too, where those tell it apart."""
    cell = record.cell
    told = [f"v{cell.version}"] if version else []
    told += [", ".join(f"{name}={cell.options.get(name)}" for name in options)] if options else []
    return replace(record, cell=replace(cell, attack=" ".join([cell.attack, *told]))) if told else record


def row_of(attack: str) -> str:
    """The registry's name for an attack: without its options, and without what `apart` adds."""
    return re.split("[@ ]", attack, maxsplit=1)[0]


def _apart(record: R) -> R:
    inference = record.cell.inference
    assert inference is not None
    sha256 = f"{record.cell.checkpoint}+{digest(replace(inference, adaptive=False))[:16]}"
    who = replace(record.subject, name=named(record.subject, inference), sha256=sha256)
    return replace(record, subject=who, cell=replace(record.cell, checkpoint=sha256))


def unproven(results: Iterable[Result]) -> list[Result]:
    """White-box results of smoothed classifiers that say nothing alone.

    Their attacks do not climb through the augmentations, and no attack at the same threat that does stands beside them.
    """
    smoothed = [r for r in results if r.cell.inference and not r.cell.source]
    proven = {_where(r) for r in smoothed if _adaptive(r)}
    return [r for r in smoothed if not _adaptive(r) and _where(r) not in proven]


def _where(result: Result) -> tuple[object, ...]:
    """Which checkpoint, answering how, on which images at which threat."""
    answers = result.cell.inference and replace(result.cell.inference, adaptive=False)
    return (*images_of(result), result.cell.checkpoint, digest(answers), result.cell.threat)


def _adaptive(result: Result) -> bool:
    return result.cell.inference is not None and result.cell.inference.adaptive


def images_of(result: Result | Failure) -> tuple[str, str, int, int]:
    """What results must share to stand in one table: data set, images, how many, and the seed of the attacks."""
    return result.subject.dataset, result.cell.data, result.cell.count, result.cell.seed


def order(threat: ThreatModel) -> tuple[int, float]:
    """A key that sorts threats as tables list them: by norm, then from small to large."""
    return NORMS.index(threat.norm), threat.eps


def ordered(subjects: Iterable[Subject]) -> list[Subject]:
    """Supervised first, ours before those from outside; within a group those without a threat first, then by name."""
    place = {"supervised": 0, "outside": 2}
    return sorted(subjects, key=lambda s: (place.get(s.group, 1), s.threat is not None, s.name, s.sha256))


def rank(attack: str) -> int:
    """The attack's place in the registry."""
    order = list(ATTACKS.rows)
    return order.index(row_of(attack)) if row_of(attack) in order else len(order)
