"""Where each checkpoint stands: all sixteen indicators of masked gradients, from results and from diagnoses. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from robench.diagnosis import RULES, Diagnosis, Row, Word
from robench.doubt import doubts
from robench.errors import StoreError
from robench.rendering.csv import as_csv
from robench.reporting import ABSENT, Table, images_of, marked, ordered, place
from robench.results import Failure, Result, Subject, safe
from robench.signs import signs
from robench.threat import ThreatModel

WORST: tuple[Word, ...] = ("fail", "suspect", "pass", "not run")
HEADER = ("checkpoint", "threat", "verdict", "run", "fail", "suspect", "pass")

Case = tuple[Subject, ThreatModel, tuple[Row, ...]]


def cases(results: Sequence[Result], diagnoses: Sequence[Diagnosis]) -> list[Case]:
    """Each checkpoint at each threat with its sixteen rows: of what results and a diagnosis say, the worse."""
    subjects = {r.subject.sha256: r.subject for r in results}
    found: dict[tuple[str, ThreatModel], tuple[Row, ...]] = {}
    for each in [*signs(results), *diagnoses]:
        if each.checkpoint in subjects:
            key = each.checkpoint, each.threat
            found[key] = tuple(map(_worse, found.get(key, each.rows), each.rows))
    order = [subject.sha256 for subject in ordered(subjects.values())]
    keys = sorted(found, key=lambda key: (order.index(key[0]), str(key[1])))
    return [(subjects[sha256], threat, found[sha256, threat]) for sha256, threat in keys]


def _worse(one: Row, other: Row) -> Row:
    return min(one, other, key=lambda row: WORST.index(row.verdict))


def verdict(rows: Iterable[Row]) -> Word:
    """The worst of some rows."""
    return min((row.verdict for row in rows), key=WORST.index)


def tables(records: Iterable[Result | Failure], diagnoses: Sequence[Diagnosis] = ()) -> list[Table]:
    """One table for each set of images.

    Args:
        records: results; failures are passed over.
        diagnoses: of some checkpoints.

    Raises:
        StoreError: if there is no result of a classifier that looks once.
    """
    results = [r for r in records if isinstance(r, Result) and r.cell.inference is None]
    if not results:
        raise StoreError("no results to judge: robench evaluate --attack pgd-20")
    groups = sorted({images_of(r) for r in results}, key=str)
    return [_table([r for r in results if images_of(r) == group], place(group, groups), diagnoses) for group in groups]


def _table(results: Sequence[Result], where: str, diagnoses: Sequence[Diagnosis]) -> Table:
    doubted, every = doubts(results, diagnoses), cases(results, diagnoses)
    rows = tuple(
        (
            safe(subject.group),
            marked(subject, doubted),
            str(threat),
            verdict(rows),
            f"{sum(row.verdict != 'not run' for row in rows)} of {len(rows)}",
            *(" ".join(row.id for row in rows if row.verdict == word) or ABSENT for word in WORST[:3]),
        )
        for subject, threat, rows in every
    )
    reasons = [
        safe(f"{subject.name} at {threat}: {row.verdict} {row.id} {row.name}: {row.reason}.")
        for subject, threat, rows in every
        for word in WORST[:2]
        for row in rows
        if row.verdict == word
    ]
    missing: dict[str, dict[str, None]] = {}
    for row in sorted((row for _, _, rows in every for row in rows), key=lambda row: list(RULES).index(row.id)):
        if row.verdict == "not run":
            missing.setdefault(row.reason, {})[row.id] = None
    notes = (
        "Indicators of masked gradients, of what stored results and robench diagnose say the worse. fail: the numbers are "
        f"unreliable and in no ranking; suspect: look closer; {ABSENT}: none.",
        "Passing every indicator does not prove robustness; adaptive attacks are still needed.",
        *reasons,
        *[safe(f"Not run in every row, {', '.join(ids)}: {reason}.") for reason, ids in missing.items()],
    )
    return Table(f"Indicators, {where}", (HEADER,), rows, tuple(notes))


def csv(records: Iterable[Result | Failure], diagnoses: Sequence[Diagnosis] = ()) -> str:
    """A row for each indicator of each checkpoint at each threat."""
    import pandas

    results = [r for r in records if isinstance(r, Result) and r.cell.inference is None]
    lines = [
        (subject.dataset, subject.name, str(threat), row.id, row.name, row.verdict, row.measured, row.reason)
        for subject, threat, rows in cases(results, diagnoses)
        for row in rows
    ]
    head = ["dataset", "checkpoint", "threat", "id", "indicator", "verdict", "measured", "reason"]
    return as_csv(pandas.DataFrame(lines, columns=head))
