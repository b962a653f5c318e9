"""Results as CSV: tidy, a row per cell, or wide, a paper's table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from robench.diagnosis import Diagnosis
from robench.doubt import beyond_flags, doubts, reasons
from robench.errors import StoreError
from robench.reference import Reference
from robench.reporting import ABSENT, DOUBTED, Table, apart, tables, unproven
from robench.results import Failure, Result, safe, searching
from robench.statistic import interval

if TYPE_CHECKING:
    import pandas


def tidy(records: Iterable[Result | Failure], diagnoses: Iterable[Diagnosis] = ()) -> pandas.DataFrame:
    """One row per result: what was asked, accuracies as fractions, what it cost, and why it is unreliable, if it is.

    The robust accuracy of a smoothed classifier is absent where it says nothing alone, see `unproven`.
    """
    import pandas

    records = list(records)
    alone = unproven(r for r in records if isinstance(r, Result))
    doubted = beyond_flags((r for r in records if isinstance(r, Result)), diagnoses)
    rows = [
        {
            "dataset": r.subject.dataset,
            "checkpoint": r.subject.name,
            "recipe": r.subject.recipe,
            "group": r.subject.group,
            "trained_against": str(r.subject.threat or ""),
            "training_seed": r.subject.seed,
            "source": r.source.name if r.source else "",
            "inference": r.cell.inference.label if r.cell.inference else "",
            "attack": searching(r.cell),
            "attack_version": r.cell.version,
            "threat": str(r.cell.threat),
            "seen": r.cell.threat == r.subject.threat,
            "count": r.cell.count,
            "attack_seed": r.cell.seed,
            **_shares("clean", r.clean),
            **_shares("robust", None if r in alone else r.robust),
            "median_norm": None if r in alone else r.median_norm,
            "largest_perturbation": r.largest,
            "seconds": r.seconds,
            "forwards": r.forwards,
            "backwards": r.backwards,
            "peak_memory": r.peak_memory,
            "joules": r.joules,
            "flags": "; ".join([*r.flags, *reasons(r.subject, doubted)]),
            "cell": r.cell.key,
        }
        for r in records
        if isinstance(r, Result)
    ]
    if not rows:
        raise StoreError("no results to list: robench evaluate --attack pgd-20")
    order = [
        "dataset",
        "group",
        "checkpoint",
        "source",
        "inference",
        "threat",
        "attack",
        "count",
        "attack_seed",
        "cell",
    ]
    frame = pandas.DataFrame(rows)
    return frame.sort_values(order, ascending=[True, False, *[True] * 8], ignore_index=True)


def _shares(name: str, bits: Sequence[bool] | None) -> dict[str, float | None]:
    """An accuracy as a fraction, and the ends of its 95 % Wilson interval."""
    low, high = (None, None) if bits is None else interval(sum(bits), len(bits))
    share = None if bits is None else sum(bits) / len(bits)
    return {f"{name}_accuracy": share, f"{name}_low": low, f"{name}_high": high}


def csv(
    records: Iterable[Result | Failure],
    which: str = "cells",
    diagnoses: Iterable[Diagnosis] = (),
    intervals: bool = False,
    references: Sequence[Reference] = (),
) -> str:
    """One CSV table: `cells` is tidy, a row per result; `white-box` and `transfer` are the wide tables."""
    import pandas

    if which == "cells":
        frame = tidy(records, diagnoses)
    else:
        records, diagnoses = list(records), list(diagnoses)
        flags = _flagged([r for r in records if isinstance(r, Result)], diagnoses)
        frames = []
        results = [r for r in records if isinstance(r, Result)]
        for table in tables(results, which, diagnoses, intervals, references):
            made = pandas.DataFrame([row[1:] for row in table.rows], columns=table.heads)
            if table.bold:  # numbers stay numbers: which of them are bold is said beside them
                made["bold"] = ["; ".join(_bold(table, i)) for i in range(len(table.rows))]
            if flags:
                made["flags"] = ["; ".join(flags.get(row[1].removesuffix(f" {DOUBTED}"), ())) for row in table.rows]
            made.insert(0, "group", [row[0] for row in table.rows], allow_duplicates=True)
            made.insert(0, "table", table.title, allow_duplicates=True)
            frames.append(made)
        frame = frames[0] if len(frames) == 1 else pandas.concat(map(_distinct, frames), ignore_index=True)
    return as_csv(frame)


def as_csv(frame: pandas.DataFrame) -> str:
    """A frame as CSV; text that a spreadsheet would run as a formula gets a leading apostrophe."""
    frame = frame.map(_harmless)
    frame.columns = [_harmless(name) for name in frame.columns]
    return frame.to_csv(index=False, lineterminator="\n")


def _bold(table: Table, row: int) -> list[str]:
    """The heads of a row's bold cells."""
    return [table.heads[place - 1] for at, place in sorted(table.bold) if at == row and place]


def _flagged(results: Sequence[Result], diagnoses: Iterable[Diagnosis]) -> dict[str, list[str]]:
    """Why each row is unreliable, by its name as tables write it."""
    told = apart(results)
    doubted = doubts(told, diagnoses)
    return {safe(r.subject.name): list(why) for r in told if (why := reasons(r.subject, doubted))}


def _distinct(frame: pandas.DataFrame) -> pandas.DataFrame:
    seen: dict[str, int] = {}
    names = []
    for name in frame.columns:
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    frame.columns = names
    return frame


def _harmless(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = safe(value)
    return f"'{text}" if text[:1] in ("=", "+", "@") or (text != ABSENT and text[:1] == "-") else text
