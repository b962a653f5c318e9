"""Tables from results: pure functions of the records, so the same files give the same bytes. No torch here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from robench.bracket import interval
from robench.diagnosis import Diagnosis
from robench.errors import StoreError
from robench.registry import ATTACKS
from robench.results import Failure, Result, Subject, column, named, safe, searching
from robench.spec import digest
from robench.threat import Norm, ThreatModel

R = TypeVar("R", bound=Result | Failure)
Doubts = Mapping[str, tuple[str, ...]]  # by the digest of a checkpoint, why its numbers are unreliable
NORMS = list(Norm)
BLIND = {"torchattacks:Square", "torchattacks:SPSA"}  # of torchattacks, those that see no gradient
ATTACKS_THAT_SETTLE = {
    "autoattack",
    "autoattack-plus",
    "autoattack-rand",
    "apgd-t",
    "fab-t",
}  # strong enough to suspect the model
ABSENT = "-"
TOLD_APART = "v1, v2, or options after the name of an attack: different attacks, since one may be stronger."
DOUBTED = "!"


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


def tables(records: Iterable[Result | Failure], which: str = "all", diagnoses: Iterable[Diagnosis] = ()) -> list[Table]:
    """The paper-style tables of some records, one set per data set, images and seed; never mixed.

    Args:
        records: results and failures.
        which: `white-box`, `transfer` or `all`.
        diagnoses: of some checkpoints; those that failed are marked.

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
            made.append(_white_box(part, where, doubted, told))
        if which in ("all", "transfer"):
            made += _transfer(part, where, doubted, told)
    failures = [record for record in everything if isinstance(record, Failure)]
    if not made and not failures:
        raise StoreError(f"no {which} results among {len(everything)} records: robench evaluate, see --help")
    if failures:
        made.append(failed(failures))
    return made


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


def _row_of(attack: str) -> str:
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


def _white_box(results: Sequence[Result], where: str, doubted: Doubts, told: Sequence[str]) -> Table:
    """Rows: checkpoints, supervised first. Columns: clean, threats somebody trained against, unseen threats, worst."""
    subjects = _subjects(results)
    alone = unproven(results)
    bits = {
        (r.cell.checkpoint, r.cell.attack, r.cell.threat): r for r in results if not r.cell.source and r not in alone
    }
    seen = {subject.threat for subject in subjects}
    columns = sorted(
        {(r.cell.attack, r.cell.threat) for r in results if not r.cell.source},
        key=lambda c: (c[1] not in seen, NORMS.index(c[1].norm), c[1].eps, _rank(c[0]), c[0]),
    )
    threats = list(dict.fromkeys(threat for _, threat in columns))
    head: list[tuple[str, str, str]] = [("", "", "checkpoint"), ("", "", "clean")]
    for threat in threats:
        kind = "seen" if threat in seen else "unseen"
        names = [attack for attack, at in columns if at == threat]
        head += [(kind, str(threat), safe(name)) for name in names]
        head += [(kind, str(threat), "worst")] if _several(results, threat) else []
    head += [("", "", "worst of all")] if len(threats) > 1 else []
    rows = []
    for subject in subjects:
        every = [r for r in results if r.cell.checkpoint == subject.sha256]
        own = [r for r in every if r not in alone]
        asked = _asked(results, smoothed=every[0].cell.inference is not None)
        row = [marked(subject, doubted), accuracy([every[0].clean])]
        for threat in threats:
            for name in [attack for attack, at in columns if at == threat]:
                found = bits.get((subject.sha256, name, threat))
                row.append(shown(found) if found else ABSENT)
            if _several(results, threat):
                row.append(_worst([r for r in own if r.cell.threat == threat], [c for c in asked if c[1] == threat]))
        if len(threats) > 1:
            row.append(_worst(own, asked))
        rows.append((safe(subject.group), *row))
    notes = [
        "Accuracy in per cent; a robust accuracy is an upper bound, as strong as the attacks are.",
        "seen: a checkpoint of this table trained against that threat; unseen: none did.",
        "worst: still right under every attack at that threat, transfer included; worst of all: under every cell.",
        f"{ABSENT}: not evaluated; for a worst case, not evaluated under all of its attacks.",
        *told,
    ]
    notes += [safe(text) for text in (*_said(results), *smoothing(results), *suspicions(results))]
    notes += unreliable(subjects, doubted)
    return Table(f"White-box accuracy, {where}", tuple(zip(*head, strict=True)), tuple(rows), tuple(notes))


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
    )
    head = ("id", "indicator", "measured", "verdict", "seen", "fires when")
    return Table(f"Diagnosis of {safe(record.name)} at {record.threat}", (head,), rows, notes)


def doubts(results: Iterable[Result], diagnoses: Iterable[Diagnosis] = ()) -> Doubts:
    """Why the numbers of some checkpoints are unreliable, by digest; no ranking and no bold type may hold those.

    Args:
        results: whose flags, from the look every evaluation takes at its model, count.
        diagnoses: whose failed indicators count.
    """
    found: dict[str, set[str]] = {}
    for result in results:
        if result.flags:
            found.setdefault(result.cell.checkpoint, set()).update(result.flags)
    made = {digest: sorted(flags) for digest, flags in found.items()}
    for diagnosis in diagnoses:
        failed = [f"{row.id} {row.name} ({row.reason})" for row in diagnosis.rows if row.verdict == "fail"]
        if failed:
            said = f"at {diagnosis.threat} {', '.join(failed)}"
            made.setdefault(diagnosis.checkpoint, []).append(said)
    return {digest: tuple(dict.fromkeys(reasons)) for digest, reasons in made.items()}


def reasons(subject: Subject, doubted: Doubts) -> tuple[str, ...]:
    """Why the numbers of a table's row are unreliable; a smoothed classifier has the doubts of what it smooths."""
    base = subject.sha256.partition("+")[0]
    return tuple(dict.fromkeys([*doubted.get(subject.sha256, ()), *doubted.get(base, ())]))


def marked(subject: Subject, doubted: Doubts) -> str:
    """A checkpoint's name cell, with a mark where its numbers are unreliable."""
    return f"{safe(subject.name)} {DOUBTED}" if reasons(subject, doubted) else safe(subject.name)


def unreliable(subjects: Iterable[Subject], doubted: Doubts) -> list[str]:
    """What stands below a table about its marked rows."""
    return [
        safe(f"{subject.name} {DOUBTED} unreliable, and in no ranking: {'; '.join(why)}.")
        for subject in subjects
        if (why := reasons(subject, doubted))
    ]


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


def suspicions(results: Sequence[Result]) -> list[str]:
    """What union and transfer find that white-box attacks miss: a sign of masked gradients, or of weak attacks.

    Said from two images and 0.2 per cent on, for each checkpoint, set of images and threat with white-box results.

    Source: the check of AutoAttack on Square (Croce & Hein 2020), widened to transfer and compared image by image.
    """
    texts = []
    cases = {(r.cell.checkpoint, r.cell.data, r.cell.threat) for r in results}
    for checkpoint, images, threat in sorted(cases, key=str):
        part = [r for r in results if (r.cell.checkpoint, r.cell.data, r.cell.threat) == (checkpoint, images, threat)]
        white = [r for r in part if _sees_gradients(r)]
        if not white:
            continue
        left = [all(bits) for bits in zip(*(r.robust for r in white), strict=True)]
        found: dict[str, int] = {}
        beyond = set()
        for r in part:
            images_beyond = {
                i for i, (mine, theirs) in enumerate(zip(left, r.robust, strict=True)) if mine and not theirs
            }
            if r not in white and images_beyond:
                via = f" from {r.source.name}" if r.source else ""
                found[r.cell.attack + via] = len(images_beyond)
                beyond |= images_beyond
        if len(beyond) < max(2, 0.002 * len(left)):
            continue
        settles = "autoattack-rand" if part[0].cell.inference else "autoattack"
        strong = any(map(_settles, white))
        advice = "suspect masked gradients" if strong else f"weak attacks or masked gradients: add --attack {settles}"
        which = ", ".join(f"{name} {count}" for name, count in sorted(found.items()))
        texts.append(
            f"{part[0].subject.name} at {threat}: {len(beyond)} of {len(left)} images are broken by black-box attacks alone "
            f"({which}); {advice}."
        )
    return texts


def _settles(result: Result) -> bool:
    """Whether an attack is strong enough, at its full budget, to suspect the model rather than the attack."""
    options = result.cell.options
    full = all(options.get(name, least) >= least for name, least in (("steps", 100), ("queries", 5000)))
    return full and _row_of(result.cell.attack) in ATTACKS_THAT_SETTLE


def _sees_gradients(result: Result) -> bool:
    """Whether a result is of a white-box attack; one that no registry row describes is taken for one.

    Of a smoothed classifier's gradients an attack sees something only if it climbs through the augmentations.
    """
    if result.cell.inference is not None and not result.cell.inference.adaptive:
        return False
    name = _row_of(result.cell.attack)
    if name in BLIND:
        return False
    row = ATTACKS.rows.get(name)
    return not result.cell.source and (row is None or row.facts["knowledge"] in ("white-box", "varies"))


def _asked(results: Sequence[Result], *, smoothed: bool) -> list[tuple[str, ThreatModel]]:
    """The white-box columns that a row of its kind can have: who attacks through augmentations needs some."""
    kin = [r for r in results if not r.cell.source and (r.cell.inference is not None) is smoothed]
    return list(dict.fromkeys((r.cell.attack, r.cell.threat) for r in kin))


def smoothing(results: Iterable[Result]) -> list[str]:
    """How smoothed classifiers answer, and which of their numbers are left out, in words."""
    every = [r for r in results if r.cell.inference]
    texts = set()
    for r in every:
        assert r.cell.inference is not None
        look = ", ".join(f"{key} {value}" for key, value in sorted(r.cell.inference.augment.items()))
        what = "votes" if r.cell.inference.average == "votes" else "mean probabilities"
        texts.add(f"{r.subject.name}: {what} over {r.cell.inference.draws} random augmentations ({look}).")
    left: dict[tuple[str, str], set[str]] = {}
    for r in unproven(every):
        left.setdefault((r.subject.name, str(r.cell.threat)), set()).add(r.cell.attack)
    for (name, threat), attacks in left.items():
        texts.add(
            f"{name} at {threat}: {', '.join(sorted(attacks))} did not climb through the augmentations, so the number is "
            "shown only beside an adaptive one: --attack eot-pgd or autoattack-rand."
        )
    return sorted(texts)


def _worst(own: Sequence[Result], columns: Sequence[tuple[str, ThreatModel]]) -> str:
    """Accuracy under every result of a row; absent while one of its columns is, since fewer attacks look more robust."""
    there = {(r.cell.attack, r.cell.threat) for r in own if not r.cell.source}
    return accuracy([r.robust for r in own]) if own and there.issuperset(columns) else ABSENT


def _several(results: Sequence[Result], threat: ThreatModel) -> bool:
    """Whether a threat has more than one attack or source, so that its worst case says something new."""
    return len({(r.cell.attack, r.cell.source) for r in results if r.cell.threat == threat}) > 1


def _transfer(results: Sequence[Result], where: str, doubted: Doubts, told: Sequence[str]) -> list[Table]:
    """One matrix per attack and threat: crafted on the column's model, scored on the row's."""
    made = []
    crossed = [r for r in results if r.cell.source]
    kinds = {(r.cell.attack, r.cell.threat) for r in crossed}
    for attack, threat in sorted(kinds, key=lambda c: (NORMS.index(c[1].norm), c[1].eps, _rank(c[0]), c[0])):
        part = [r for r in results if (r.cell.attack, r.cell.threat) == (attack, threat)]
        targets = _subjects(part)
        sources = ordered({r.source.sha256: r.source for r in part if r.source}.values())
        bits = {(r.cell.checkpoint, r.cell.source): r.robust for r in part}
        rows = []
        for target in targets:
            row = []
            for source in sources:
                own = target.sha256 == source.sha256
                found = bits.get((target.sha256, "" if own else source.sha256))
                row.append(ABSENT if found is None else accuracy([found]) + ("*" if own else ""))
            rows.append((safe(target.group), marked(target, doubted), *row))
        header = ("target \\ source", *[safe(source.name) for source in sources])
        title = f"Black-box transfer, {safe(attack)} at {threat}, {where}"
        note = (
            "Accuracy in per cent of the row's model on images crafted on the column's; * white-box, the same attack."
        )
        made.append(Table(title, (header,), tuple(rows), (note, *told, *unreliable(targets, doubted))))
    return made


def failed(failures: Sequence[Failure]) -> Table:
    """The cells that gave no result, and why."""
    rows = tuple(
        ("", safe(f.subject.name), safe(f.cell.attack), str(f.cell.threat), safe(f.reason))
        for f in sorted(failures, key=lambda f: f.cell.key)
    )
    return Table("Cells without a result", (("checkpoint", "attack", "threat", "reason"),), rows)


def _subjects(results: Iterable[Result]) -> list[Subject]:
    return ordered({r.subject.sha256: r.subject for r in results}.values())


def ordered(subjects: Iterable[Subject]) -> list[Subject]:
    """Supervised first; within a group those without a threat first, then by name."""
    return sorted(subjects, key=lambda s: (s.group != "supervised", s.threat is not None, s.name, s.sha256))


def _rank(attack: str) -> int:
    """The attack's place in the registry."""
    order = list(ATTACKS.rows)
    return order.index(_row_of(attack)) if _row_of(attack) in order else len(order)


def shown(result: Result) -> str:
    """The robust accuracy of a result, or between what and what it lies."""
    found, highest = interval(result), accuracy([result.robust])
    return highest if found is None else f"{100 * found[0]:.{len(highest.partition('.')[2])}f} to {highest}"


def accuracy(columns: Sequence[Sequence[bool]]) -> str:
    """The share of images that are right in every column, in per cent, to what that many images can resolve."""
    share = sum(map(all, zip(*columns, strict=True))) / len(columns[0])
    return f"{100 * share:.{2 if len(columns[0]) >= 1000 else 1}f}"
