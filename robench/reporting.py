"""Tables from results: pure functions of the records, so the same files give the same bytes. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from robench import seeds
from robench.bracket import interval
from robench.caption import accuracy, caption
from robench.diagnosis import Diagnosis
from robench.doubt import DOUBTED, Doubts, doubts, marked, reasons, smoothing, suspicions, unreliable
from robench.errors import StoreError
from robench.ranking import Ranking, ranking
from robench.reference import Reference
from robench.results import Failure, Result, Subject, column, safe
from robench.sameness import NORMS, TOLD_APART, apart, images_of, order, ordered, place, rank, unproven
from robench.seeds import families
from robench.suite import Column
from robench.threat import ThreatModel
from robench.worst import left

# what tables say of results has one door
__all__ = ["ABSENT", "DOUBTED", "NORMS", "NOT_MEASURED", "REFERRED", "Doubts", "Table", "accuracy", "apart", "order"]
__all__ += ["caption", "diagnosis_table", "doubts", "failed", "images_of", "marked", "mean_name", "ordered"]
__all__ += ["place", "ranked", "reasons", "smoothing", "suspicions", "tables", "unproven", "unreliable"]
ABSENT = "-"
NOT_MEASURED = "as published, not measured here"
REFERRED = f"{NOT_MEASURED}: figures of others; neither compared nor ranked, and never bold."


@dataclass(frozen=True)
class Table:
    """One table, ready to render.

    Attributes:
        title: what it shows.
        header: rows of column heads, outermost first; equal neighbours in an outer row span.
        rows: a group label (may repeat) and the cells.
        notes: what a reader must know.
        bold: cells that every format sets bold, as (row, place in that row; the group label is place 0).
    """

    title: str
    header: tuple[tuple[str, ...], ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    bold: frozenset[tuple[int, int]] = frozenset()

    @property
    def heads(self) -> list[str]:
        """One text per column, for formats without spanning heads."""
        return [" ".join(filter(None, parts)) for parts in zip(*self.header, strict=True)]


def tables(
    records: Iterable[Result | Failure],
    which: str = "all",
    diagnoses: Iterable[Diagnosis] = (),
    intervals: bool = False,
    references: Sequence[Reference] = (),
) -> list[Table]:
    """The paper-style tables of some records, one set per data set, images and seed; never mixed.

    Args:
        records: results and failures.
        which: `white-box`, `transfer` or `all`.
        diagnoses: of some checkpoints; those that failed are marked.
        intervals: whether every accuracy has its interval beside it.
        references: figures that others measured, rows of the white-box table.

    Raises:
        StoreError: if there is nothing of that kind.
    """
    given = sorted(records, key=lambda record: record.cell.key)
    everything, asked = apart(given), {record.cell.attack for record in given}
    results = [record for record in everything if isinstance(record, Result)]
    doubted = doubts(results, diagnoses)
    made: list[Table] = []
    groups = sorted({images_of(result) for result in results}, key=str)
    for group in groups:
        part = [result for result in results if images_of(result) == group]
        where = place(group, groups)
        told = (TOLD_APART,) if any(result.cell.attack not in asked for result in part) else ()
        if which in ("all", "white-box") and any(not r.cell.source for r in part):
            made.append(_white_box(part, where, doubted, told, intervals, references))
        if which in ("all", "transfer"):
            made += _transfer(part, where, doubted, told, intervals)
    failures = [record for record in everything if isinstance(record, Failure)]
    if not made and not failures:
        raise StoreError(f"no {which} results among {len(everything)} records: robench evaluate, see --help")
    if failures:
        made.append(failed(failures))
    return made


@dataclass(frozen=True)
class _Column:
    """One column of the white-box table.

    Attributes:
        head: three levels.
        bits: by the digest of a checkpoint, which images are right; absent where not evaluated.
        asked: the attack, where the column is of a single one.
        alone: digests of checkpoints whose number is in no comparison: smoothed, with an attack here that did not climb
            through the augmentations, or known only to lie in an interval.
        between: of the latter, the interval in words.
    """

    head: tuple[str, str, str]
    bits: Mapping[str, Sequence[bool]]
    asked: Column | None = None
    alone: frozenset[str] = frozenset()
    between: Mapping[str, str] = field(default_factory=dict)


def _white_box(
    results: Sequence[Result],
    where: str,
    doubted: Doubts,
    told: Sequence[str],
    intervals: bool,
    references: Sequence[Reference],
) -> Table:
    """Rows: checkpoints, supervised first. Columns: clean, threats somebody trained against, unseen threats, worst."""
    subjects = _subjects(results)
    columns = _columns(results, subjects)
    grid = [[column.bits.get(subject.sha256) for subject in subjects] for column in columns]
    fit = [[None if s.sha256 in column.alone else column.bits.get(s.sha256) for s in subjects] for column in columns]
    found = ranked(fit, subjects, doubted)
    several = families(subjects)
    rows: list[tuple[str, ...]] = []
    bold: set[tuple[int, int]] = set()
    for i, subject in enumerate(subjects):
        own = [column[i] for column in grid]
        kin = next((each for each in several if subject in each), ())
        cells = [
            column.between.get(subject.sha256) or (ABSENT if bits is None else accuracy([bits], intervals))
            for column, bits in zip(columns, own, strict=True)
        ]
        bold |= {(len(rows), place + 3) for place in range(len(columns)) if (i, place) in found.wins}
        rows.append(
            (safe(subject.group), marked(subject, doubted), f"seed {subject.seed}" if kin else "1 seed", *cells)
        )
        if kin and subject == [each for each in subjects if each in kin][-1]:
            at = [subjects.index(each) for each in kin]
            means = [seeds.over([column[k] for k in at]) for column in grid]
            bold |= {(len(rows), p + 3) for p in range(len(columns)) if all((k, p) in found.wins for k in at)}
            name = mean_name(kin, doubted)
            rows.append(
                (safe(subject.group), name, f"{len(kin)} seeds", *(mean[0] if mean else ABSENT for mean in means))
            )
    lines, said = _referred(references, results, columns, intervals)
    head = [("", "", "checkpoint"), ("", "", "seeds"), *(column.head for column in columns)]
    notes = [
        "Accuracy in per cent; a robust accuracy is an upper bound, as strong as the attacks are.",
        "seen: a checkpoint of this table trained against that threat; unseen: none did.",
        "worst: still right under every attack at that threat, transfer included; worst of all: under every cell.",
        f"{ABSENT}: not evaluated; for a worst case, not evaluated under all of its attacks.",
        *caption([bits for column in grid for bits in column if bits is not None], found, intervals),
        *(["a +- b: mean and standard deviation (n - 1) over the training seeds of one recipe."] if several else []),
        *said,
        *told,
    ]
    notes += [safe(text) for text in (*_said(results), *smoothing(results), *suspicions(results))]
    notes += unreliable(subjects, doubted)
    made = tuple(zip(*head, strict=True))
    return Table(f"White-box accuracy, {where}", made, (*rows, *lines), tuple(notes), frozenset(bold))


def _columns(results: Sequence[Result], subjects: Sequence[Subject]) -> list[_Column]:
    """Clean, every attack at every threat with the worst of each, and the worst of all."""
    alone = unproven(results)
    proven = [r for r in results if r not in alone]
    seen = {subject.threat for subject in subjects}
    kinds = sorted(
        {(r.cell.attack, r.cell.threat) for r in results if not r.cell.source},
        key=lambda c: (c[1] not in seen, *order(c[1]), rank(c[0]), c[0]),
    )
    threats = list(dict.fromkeys(threat for _, threat in kinds))
    made = [_Column(("", "", "clean"), {r.cell.checkpoint: r.clean for r in reversed(results)})]
    for threat in threats:
        above = ("seen" if threat in seen else "unseen", str(threat))
        for attack in [attack for attack, at in kinds if at == threat]:
            own = [r for r in proven if not r.cell.source and (r.cell.attack, r.cell.threat) == (attack, threat)]
            bits = {r.cell.checkpoint: r.robust for r in own}
            blind = frozenset(r.cell.checkpoint for r in own if r.cell.inference and not r.cell.inference.adaptive)
            between = {r.cell.checkpoint: text for r in own if (text := _between(r))}
            made.append(
                _Column((*above, safe(attack)), bits, Column(attack, attack, threat), blind | between.keys(), between)
            )
        if _several(results, threat):
            made.append(_Column((*above, "worst"), _worst(results, proven, subjects, threat)))
    if len(threats) > 1:
        made.append(_Column(("", "", "worst of all"), _worst(results, proven, subjects)))
    return made


def _between(result: Result) -> str:
    """Between what and what a robust accuracy lies that is known no better; empty for others."""
    found, highest = interval(result), accuracy([result.robust])
    return "" if found is None else f"{100 * found[0]:.{len(highest.partition('.')[2])}f} to {highest}"


def ranked(grid: Sequence[Sequence[Sequence[bool] | None]], subjects: Sequence[Subject], doubted: Doubts) -> Ranking:
    """Which numbers of a grid of columns beat every other row's; a doubted row is in no comparison."""
    doubtful = [bool(reasons(subject, doubted)) for subject in subjects]
    fit = [[None if bad else bits for bits, bad in zip(column, doubtful, strict=True)] for column in grid]
    return ranking(fit, [seeds.family(subject) for subject in subjects])


def mean_name(kin: Sequence[Subject], doubted: Doubts) -> str:
    """What the mean over seeds is called: the recipe's name, with a mark if any of the seeds has one."""
    first = min(kin, key=lambda subject: (len(subject.name), subject.seed))
    mark = f" {DOUBTED}" if any(reasons(subject, doubted) for subject in kin) else ""
    return f"{safe(first.name)}, mean{mark}"


def _referred(
    references: Sequence[Reference], results: Sequence[Result], columns: Sequence[_Column], intervals: bool
) -> tuple[list[tuple[str, ...]], list[str]]:
    """Rows of figures that others measured, and what to say of them."""
    own = [each for each in references if each.dataset == results[0].subject.dataset]
    rows, notes = [], []
    for name in dict.fromkeys(each.name for each in own):
        lines = [each for each in own if each.name == name]
        cells = [
            next((text for each in lines if (text := each.at(c.asked, intervals))), ABSENT) if c.asked else ABSENT
            for c in columns[1:]
        ]
        clean = next((text for each in lines if (text := each.at(None, intervals))), ABSENT)
        rows.append((NOT_MEASURED, safe(name), ABSENT, clean, *cells))
        notes += [safe(text) for text in dict.fromkeys(each.said for each in lines)]
        for each in lines:
            if each.robust is not None and not any(each.at(c.asked, intervals) for c in columns[1:] if c.asked):
                shown = f"{each.attack} {each.threat} {each.text(each.robust, intervals)}"
                notes.append(safe(f"{name}: {shown}, of which no checkpoint here has a number."))
    return rows, [*([REFERRED] if rows else []), *notes]


def diagnosis_table(record: Diagnosis) -> Table:
    """A diagnosis as a table."""
    rows = tuple(
        ("", r.id, r.name, ABSENT if r.measured is None else f"{r.measured:.3g}", r.verdict, r.reason, r.rule)
        for r in record.rows
    )
    notes = (
        f"On the {record.correct} of {record.count} images the model gets right; seed {record.seed}.",
        "suspect: look closer, stronger attacks may find more; fail: the robust accuracy is unreliable.",
        "Passing every indicator does not prove robustness; adaptive attacks are still needed.",
        *(
            [f"Failed: {', '.join(record.failed)}; independent signs: {', '.join(record.kinds)}."]
            if record.failed
            else []
        ),
    )
    head = ("id", "indicator", "measured", "verdict", "seen", "fires when")
    return Table(f"Diagnosis of {safe(record.name)} at {record.threat}", (head,), rows, notes)


def _said(results: Sequence[Result]) -> list[str]:
    """What the results note, each text once with the attacks it is about, and the median of smallest perturbations."""
    about: dict[tuple[str, str], list[str]] = {}
    for r in results:
        for note in r.notes:
            via = f" from {r.source.name}" if r.source else ""
            about.setdefault((r.subject.name, note), []).append(column(r.cell.attack, r.cell.threat) + via)
        if r.median_norm is not None and not r.source:
            found = f"median {r.cell.threat.norm.value} norm of the smallest perturbation found: {r.median_norm:.3g}"
            about.setdefault((r.subject.name, found), []).append(r.cell.attack)
    return sorted(f"{name}, {', '.join(sorted(set(which)))}: {note}." for (name, note), which in about.items())


def _asked(results: Sequence[Result], *, smoothed: bool) -> list[tuple[str, ThreatModel]]:
    """The white-box columns that a row of its kind can have: who attacks through augmentations needs some."""
    kin = [r for r in results if not r.cell.source and (r.cell.inference is not None) is smoothed]
    return list(dict.fromkeys((r.cell.attack, r.cell.threat) for r in kin))


def _worst(
    results: Sequence[Result], proven: Sequence[Result], subjects: Sequence[Subject], threat: ThreatModel | None = None
) -> dict[str, Sequence[bool]]:
    """What every result of a checkpoint leaves, at one threat or at all.

    Absent while one of its columns is, since fewer attacks look more robust.
    """
    made: dict[str, Sequence[bool]] = {}
    for subject in subjects:
        smoothed = any(r.cell.inference for r in results if r.cell.checkpoint == subject.sha256)
        asked = [column for column in _asked(results, smoothed=smoothed) if threat in (None, column[1])]
        own = [r for r in proven if r.cell.checkpoint == subject.sha256 and threat in (None, r.cell.threat)]
        there = {(r.cell.attack, r.cell.threat) for r in own if not r.cell.source}
        if own and there.issuperset(asked):
            made[subject.sha256] = left(r.robust for r in own)
    return made


def _several(results: Sequence[Result], threat: ThreatModel) -> bool:
    """Whether a threat has more than one attack or source, so that its worst case says something new."""
    return len({(r.cell.attack, r.cell.source) for r in results if r.cell.threat == threat}) > 1


def _transfer(
    results: Sequence[Result], where: str, doubted: Doubts, told: Sequence[str], intervals: bool
) -> list[Table]:
    """One matrix per attack and threat: crafted on the column's model, scored on the row's."""
    made = []
    crossed = [r for r in results if r.cell.source]
    kinds = {(r.cell.attack, r.cell.threat) for r in crossed}
    for attack, threat in sorted(kinds, key=lambda c: (*order(c[1]), rank(c[0]), c[0])):
        part = [r for r in results if (r.cell.attack, r.cell.threat) == (attack, threat)]
        title = f"Black-box transfer, {safe(attack)} at {threat}, {where}"
        made.append(_matrix(title, part, doubted, told, intervals))
    return made


def _matrix(title: str, part: Sequence[Result], doubted: Doubts, told: Sequence[str], intervals: bool) -> Table:
    """Targets are rows and sources columns; where they meet, the attack is white-box and in no comparison."""
    targets = _subjects(part)
    sources = ordered({r.source.sha256: r.source for r in part if r.source}.values())
    bits = {(r.cell.checkpoint, r.cell.source): r.robust for r in part}
    grid = [[bits.get((target.sha256, source.sha256)) for target in targets] for source in sources]
    found = ranked(grid, targets, doubted)
    rows = []
    for target in targets:
        row = []
        for source in sources:
            own = target.sha256 == source.sha256
            there = bits.get((target.sha256, "" if own else source.sha256))
            row.append(ABSENT if there is None else accuracy([there], intervals, "*" if own else ""))
        rows.append((safe(target.group), marked(target, doubted), *row))
    header = ("target \\ source", *[safe(source.name) for source in sources])
    notes = (
        "Accuracy in per cent of the row's model on images crafted on the column's; * white-box, the same attack.",
        *caption([r.robust for r in part], found, intervals),
        *told,
        *unreliable(targets, doubted),
    )
    bold = frozenset((row, column + 2) for row, column in found.wins)
    return Table(title, (header,), tuple(rows), notes, bold)


def failed(failures: Sequence[Failure]) -> Table:
    """The cells that gave no result, and why."""
    rows = tuple(
        ("", safe(f.subject.name), safe(f.cell.attack), str(f.cell.threat), safe(f.reason))
        for f in sorted(failures, key=lambda f: f.cell.key)
    )
    return Table("Cells without a result", (("checkpoint", "attack", "threat", "reason"),), rows)


def _subjects(results: Iterable[Result]) -> list[Subject]:
    return ordered({r.subject.sha256: r.subject for r in results}.values())
