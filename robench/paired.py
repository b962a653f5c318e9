"""Two checkpoints on the same images, attack by attack: counts, intervals, exact tests and a verdict. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from robench.caption import accuracy, percent
from robench.diagnosis import Diagnosis
from robench.doubt import Doubts, doubts, marked, reasons, unreliable
from robench.errors import StoreError, UsageError, unknown
from robench.rendering.csv import as_csv
from robench.reporting import Table
from robench.results import Failure, Result, Subject, safe
from robench.sameness import apart, images_of, order, place, rank
from robench.statistic import LEVEL, Interval, discordant, holm, interval, mcnemar, paired_difference, resolves
from robench.threat import ThreatModel
from robench.worst import Bits, left

Images = tuple[str, str, int, int]


@dataclass(frozen=True)
class Row:
    """One attack on both.

    Attributes:
        threat: of the attack; None for clean accuracy and for all threats together.
        name: of the attack, with its source where it has one.
        one: which images the first is right on.
        other: which images the second is right on.
        alone: on how many only the first is right, and on how many only the second.
        ends: the 95 % interval of the difference, the first's accuracy minus the second's.
        p: of the exact McNemar test.
        corrected: the same, by Holm over all rows.
    """

    threat: ThreatModel | None
    name: str
    one: Bits
    other: Bits
    alone: tuple[int, int]
    ends: Interval
    p: float
    corrected: float

    @property
    def difference(self) -> float:
        """The first's accuracy minus the second's."""
        return (self.alone[0] - self.alone[1]) / len(self.one)

    @property
    def better(self) -> int | None:
        """0 where the first is significantly better, 1 where the second is; None where they are not told apart."""
        if self.corrected > 1 - LEVEL:
            return None
        return 0 if self.alone[0] > self.alone[1] else 1


@dataclass(frozen=True)
class Pair:
    """Two checkpoints on one set of images.

    Attributes:
        subjects: the two.
        images: which.
        rows: clean accuracy, then every attack both met, and worst cases over these.
        missed: what only one of them met, and why it is not compared.
        doubted: why numbers of some checkpoints are unreliable; one of the two that is among them is not ranked.
    """

    subjects: tuple[Subject, Subject]
    images: Images
    rows: tuple[Row, ...]
    missed: tuple[str, ...]
    doubted: Doubts

    @property
    def ranks(self) -> bool:
        """Whether one may be called better: not if the numbers of either are unreliable."""
        return not any(reasons(subject, self.doubted) for subject in self.subjects)

    def verdict(self, row: Row) -> str:
        """Which is better, by its name."""
        if not self.ranks:
            return "not ranked"
        return "not told apart" if row.better is None else self.subjects[row.better].name


def pairs(records: Iterable[Result | Failure], one: str, other: str, diagnoses: Iterable[Diagnosis] = ()) -> list[Pair]:
    """Every set of images on which both checkpoints met an attack.

    Args:
        records: results; failures are passed over.
        one: the name of a checkpoint as tables have it, or the beginning of its digest.
        other: the name of another.
        diagnoses: of some checkpoints; those that failed are not ranked.

    Raises:
        UsageError: if a name is unknown or means several, or both mean the same.
        StoreError: if there is nothing they share.
    """
    results = apart(sorted((r for r in records if isinstance(r, Result)), key=lambda r: r.cell.key))
    first, second = (_find(results, name) for name in (one, other))
    if first.sha256 == second.sha256:
        raise UsageError(f"{one} and {other} are the same checkpoint: name two")
    own = [[r for r in results if r.cell.checkpoint == subject.sha256] for subject in (first, second)]
    shared = sorted({images_of(r) for r in own[0]} & {images_of(r) for r in own[1]}, key=str)
    if not shared:
        there = [", ".join(sorted({_where(r) for r in part})) for part in own]
        raise StoreError(
            f"{safe(first.name)} and {safe(second.name)} were not attacked on the same images: {there[0]} and {there[1]}. "
            "robench evaluate both with the same --dataset, --count and --seed"
        )
    doubted = doubts(results, diagnoses)
    made = [_pair((first, second), [[r for r in p if images_of(r) == each] for p in own], doubted) for each in shared]
    if not any(made):
        met = [", ".join(sorted({f"{r.cell.attack} {r.cell.threat}" for r in part})) for part in own]
        raise StoreError(
            safe(f"{first.name} and {second.name} met no attack in common: {met[0]} and {met[1]}. ")
            + "robench evaluate both with the same --attack and --threat"
        )
    return [each for each in made if each]


def _find(results: Sequence[Result], text: str) -> Subject:
    """The checkpoint of a name, of what a path ends in, of a digest that begins so, or a suite's `NAME@last`."""
    subjects = {r.subject.sha256: r.subject for r in results}.values()
    name = Path(text).name if "/" in text else text
    found = [s for s in subjects if s.name == name]
    found = found or [s for s in subjects if len(text) > 3 and s.sha256.startswith(text)]
    found = found or [s for s in subjects if s.name == f"{name}@last"]
    if not found:
        raise unknown("checkpoint", text, {s.name for s in subjects}, "robench report")
    if len({s.sha256 for s in found}) > 1:
        digests = ", ".join(sorted(s.sha256[:12] for s in found))
        raise UsageError(
            f"{len(found)} checkpoints are called {text!r}: name one by the beginning of its digest, {digests}"
        )
    return found[0]


def _where(result: Result) -> str:
    dataset, digest, count, seed = images_of(result)
    return safe(f"{dataset}, {count:,} images {digest[:8]}, attack seed {seed}")


def _pair(subjects: tuple[Subject, Subject], own: Sequence[Sequence[Result]], doubted: Doubts) -> Pair | None:
    """What both have on one set of images; None where that is no attack."""
    blind = [[r for r in part if _looks_past(r)] for part in own]
    met = [{_kind(r): r for r in part if not _looks_past(r)} for part in own]
    kinds = sorted(met[0].keys() & met[1].keys(), key=_order)
    if not kinds:
        return None
    bits: list[tuple[ThreatModel | None, str, Bits, Bits]] = [(None, "clean", own[0][0].clean, own[1][0].clean)]
    threats = list(dict.fromkeys(threat for threat, _, _ in kinds))
    for threat in threats:
        here = [kind for kind in kinds if kind[0] == threat]
        for kind in here:
            via = met[0][kind].source
            name = kind[1] + (f" from {via.name}" if via else "")
            bits.append((threat, name, met[0][kind].robust, met[1][kind].robust))
        if len(here) > 1:
            one, other = (left(part[kind].robust for kind in here) for part in met)
            bits.append((threat, "worst", one, other))
    if len(threats) > 1:
        one, other = (left(part[kind].robust for kind in kinds) for part in met)
        bits.append((None, "worst of all", one, other))
    missed = [
        f"only {subject.name} met {kind[1]} {kind[0]}" + (f" from {source.name}." if source else ".")
        for subject, part, others in zip(subjects, met, reversed(met), strict=True)
        for kind in sorted(part.keys() - others.keys(), key=_order)
        for source in [part[kind].source]
    ]
    missed += [
        f"{r.subject.name}: {r.cell.attack} {r.cell.threat} did not climb through the augmentations, so it is not compared."
        for part in blind
        for r in part
    ]
    return Pair(subjects, images_of(own[0][0]), tuple(_rows(bits)), tuple(missed), doubted)


def _looks_past(result: Result) -> bool:
    """Whether a white-box attack did not climb through the augmentations of a smoothed classifier."""
    return result.cell.inference is not None and not result.cell.inference.adaptive and result.source is None


def _kind(result: Result) -> tuple[ThreatModel, str, str]:
    return result.cell.threat, result.cell.attack, result.cell.source


def _order(kind: tuple[ThreatModel, str, str]) -> tuple[object, ...]:
    threat, attack, source = kind
    return *order(threat), bool(source), rank(attack), attack, source


def _rows(bits: Sequence[tuple[ThreatModel | None, str, Bits, Bits]]) -> list[Row]:
    alone = [discordant(one, other) for _, _, one, other in bits]
    values = [mcnemar(*counts) for counts in alone]
    return [
        Row(threat, name, one, other, counts, paired_difference(one, other), p, corrected)
        for (threat, name, one, other), counts, p, corrected in zip(bits, alone, values, holm(values), strict=True)
    ]


def tables(found: Sequence[Pair]) -> list[Table]:
    """A table for each set of images on which `pairs` found something."""
    groups = [pair.images for pair in found]
    return [_table(pair, groups) for pair in found]


def _table(pair: Pair, groups: Sequence[Images]) -> Table:
    first, second = (marked(subject, pair.doubted) for subject in pair.subjects)
    count, tests = pair.images[2], len(pair.rows)
    head = ("attack", "A", "B", "only A", "only B", "A - B", "p", "p, Holm", "verdict")
    rows = tuple(
        (
            str(row.threat or ("all threats" if row.name != "clean" else "")),
            safe(row.name),
            *(accuracy([bits], True) for bits in (row.one, row.other)),
            *map(str, row.alone),
            _points(row),
            *(_p(value) for value in (row.p, row.corrected)),
            _verdict(pair, row),
        )
        for row in pair.rows
    )
    least, one = resolves(count, tests), resolves(count)
    takes = "no difference at all" if least is None else f"differences of {percent(least, count)} points or more"
    single = "" if one is None else f", {percent(one, count)} in a single row"
    notes = (
        "Accuracy in per cent (a-b: 95 % Wilson interval); only A: on how many images A is right and B is not.",
        "A - B: in points (a to b: 95 % interval of Newcombe for pairs, not corrected for the number of rows).",
        f"p: exact McNemar test, as it is and by Holm over the {tests} rows; better: Holm's p is 0.05 or less.",
        f"n = {count:,} test images, the same for both, resolve {takes}{single}. Training seeds vary besides.",
        "A robust accuracy is an upper bound, as strong as the attacks are.",
        *(safe(text) for text in pair.missed),
        *unreliable(pair.subjects, pair.doubted),
    )
    return Table(f"A: {first}, B: {second}; {place(pair.images, groups)}", (head,), rows, notes)


def _verdict(pair: Pair, row: Row) -> str:
    if pair.ranks and row.better is not None:
        return f"{'AB'[row.better]} is better"
    return pair.verdict(row)


def _points(row: Row) -> str:
    digits = 2 if len(row.one) >= 1000 else 1
    low, high = row.ends
    return f"{100 * row.difference:+.{digits}f} ({100 * low:+.{digits}f} to {100 * high:+.{digits}f})"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def csv(found: Sequence[Pair]) -> str:
    """The same as CSV, a row for each attack, accuracies as fractions."""
    import pandas

    rows = []
    for pair in found:
        for row in pair.rows:
            n = len(row.one)
            (low, high), (least, most) = interval(sum(row.one), n), interval(sum(row.other), n)
            rows.append(
                {
                    "dataset": pair.images[0],
                    "images": pair.images[1],
                    "count": n,
                    "attack_seed": pair.images[3],
                    "first": pair.subjects[0].name,
                    "second": pair.subjects[1].name,
                    "threat": str(row.threat or ""),
                    "attack": row.name,
                    "first_accuracy": sum(row.one) / n,
                    "first_low": low,
                    "first_high": high,
                    "second_accuracy": sum(row.other) / n,
                    "second_low": least,
                    "second_high": most,
                    "only_first": row.alone[0],
                    "only_second": row.alone[1],
                    "difference": row.difference,
                    "difference_low": row.ends[0],
                    "difference_high": row.ends[1],
                    "p": row.p,
                    "p_holm": row.corrected,
                    "better": pair.verdict(row),
                }
            )
    return as_csv(pandas.DataFrame(rows))
