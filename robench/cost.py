"""Tables and figures of what robustness costs, and which checkpoints are worth it. No torch here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from robench.diagnosis import Diagnosis
from robench.errors import StoreError
from robench.exhibits import Training
from robench.figures import flags_of, names_of
from robench.panels import Figure, Panel, Value, Worth
from robench.rendering.csv import as_csv
from robench.reporting import (
    ABSENT,
    Doubts,
    Table,
    accuracy,
    doubts,
    images_of,
    marked,
    place,
    reasons,
    unreliable,
)
from robench.results import Failure, Result, safe
from robench.spending import AMOUNTS, BY, PHASES, UNITS, Row, fronts, rows

SPELLED = {"passes": "image passes", "peak_memory": "MiB", "joules": "J"}


def tables(
    records: Iterable[Result | Failure],
    training: Iterable[Training],
    diagnoses: Iterable[Diagnosis] = (),
    intervals: bool = False,
    by: str = "training",
    unit: str = "seconds",
) -> list[Table]:
    """One table of costs for each set of images; a checkpoint whose numbers are unreliable is Pareto-optimal nowhere.

    Args:
        records: results; failures are passed over.
        training: what training cost.
        diagnoses: of some checkpoints; those that failed are marked.
        intervals: whether every accuracy has its interval beside it.
        by: a key of `BY`: whose cost the Pareto marks are about.
        unit: a key of `UNITS`: of that cost.

    Raises:
        StoreError: if there is no result.
    """
    parts, groups, doubted = _parts(records, training, diagnoses)
    return [
        _table(part, place(group, groups), doubted, intervals, by, unit)
        for part, group in zip(parts, groups, strict=True)
    ]


def _parts(
    records: Iterable[Result | Failure], training: Iterable[Training], diagnoses: Iterable[Diagnosis]
) -> tuple[list[list[Row]], list[tuple[str, str, int, int]], Doubts]:
    parts = rows(records, training)
    groups = [images_of(part[0].results[0]) for part in parts]
    return parts, groups, doubts((r for part in parts for row in part for r in row.results), diagnoses)


def header(seconds: str = "seconds") -> tuple[tuple[str, ...], ...]:
    """The heads of the table, in two rows."""
    names = [SPELLED.get(name, seconds) for name in AMOUNTS]
    phases = [(phase, name) for phase in PHASES for name in names]
    ends = [("total", names[0]), ("total", names[1]), ("", "clean"), ("", "worst case")]
    pairs = [("", "checkpoint"), *phases, *ends, ("Pareto", "clean"), ("Pareto", "robust")]
    return tuple(zip(*pairs, strict=True))


def _table(part: Sequence[Row], where: str, doubted: Doubts, intervals: bool, by: str, unit: str) -> Table:
    sure = [not reasons(row.subject, doubted) for row in part]
    on_clean = fronts(part, [_share(row.clean) if ok else None for row, ok in zip(part, sure, strict=True)], by, unit)
    on_robust = fronts(part, [_share(row.robust) if ok else None for row, ok in zip(part, sure, strict=True)], by, unit)
    lines = tuple(
        (
            safe(row.subject.group),
            marked(row.subject, doubted),
            *_cells(row, intervals),
            "yes" if clean else "",
            "yes" if robust else "",
        )
        for row, clean, robust in zip(part, on_clean, on_robust, strict=True)
    )
    seconds, said = _seconds(part)
    notes = (
        "image passes: images forward and images whose gradient was computed, through the encoder in training and through the "
        "classifier in attacks; the same on every machine.",
        said,
        "training: every stage but the head's, validation included; head: the stages that put a head on an encoder that was "
        "there, linear or fine-tuned, 0 without such a stage; attack: all results of the row.",
        "Images crafted once for several targets of a transfer count for each of them.",
        "MiB: the most that tensors held on a device; J: of whole boards; "
        f"{ABSENT}: not measured, or for a worst case not evaluated under every attack.",
        *(["(a-b): 95 % Wilson interval over the test images."] if intervals else []),
        f"Pareto, by {_spelled(by, unit)}: among rows of known cost"
        + (" on the same device" if unit != "passes" else "")
        + ", no other is as cheap and as accurate, and better in one of the two.",
        *unreliable([row.subject for row in part], doubted),
    )
    return Table(f"Cost, {where}", header(seconds), lines, notes)


def _spelled(by: str, unit: str) -> str:
    what = {"training": "training and head", "evaluation": "attack", "total": "training, head and attack"}[by]
    return f"{UNITS[unit]} of {what}"


def _share(bits: Sequence[bool] | None) -> float | None:
    return None if bits is None else sum(bits) / len(bits)


def _cells(row: Row, intervals: bool) -> list[str]:
    cells = []
    for phase in PHASES:
        passes, seconds, memory, joules = (row.spent(phase, name) for name in AMOUNTS)
        cells += [_number(passes), _number(seconds, 1), _number(memory and memory / 2**20), _number(joules)]
    return [
        *cells,
        _number(row.cost("total", "passes")),
        _number(row.cost("total", "seconds"), 1),
        accuracy([row.clean], intervals),
        ABSENT if row.robust is None else accuracy([row.robust], intervals),
    ]


def _seconds(part: Sequence[Row]) -> tuple[str, str]:
    """What a column of seconds is called, and what is said of it: seconds of different devices do not compare."""
    training = sorted({row.training.device for row in part if row.training} - {""})
    attack = sorted({device for row in part for device in row.devices} - {""})
    kinds = {
        device.partition(" ")[0].partition(":")[0] for name in (*training, *attack) for device in name.split(" + ")
    }
    name = {"cpu": "CPU s", "cuda": "GPU s"}.get(kinds.pop(), "device s") if len(kinds) == 1 else "device s"
    said = [f"{name}: wall time times the devices that worked side by side"]
    said += [f"trained on {safe(', '.join(training))}"] if training else []
    said += [f"attacked on {safe(', '.join(attack))}"] if attack else []
    mixed = len(training) > 1 or len(attack) > 1 or (training and attack and training != attack)
    return name, "; ".join([*said, *(["times on different devices do not compare"] if mixed else [])]) + "."


def _number(value: float | None, digits: int = 0) -> str:
    return ABSENT if value is None else f"{value:,.{digits}f}"


def csv(
    records: Iterable[Result | Failure],
    training: Iterable[Training],
    diagnoses: Iterable[Diagnosis] = (),
    by: str = "training",
    unit: str = "seconds",
) -> str:
    """The tables of costs as one CSV table, with why a row is unreliable beside it."""
    import pandas

    parts, groups, doubted = _parts(records, training, diagnoses)
    lines = []
    for part, group in zip(parts, groups, strict=True):
        table = _table(part, place(group, groups), doubted, False, by, unit)
        lines += [
            (table.title, *map(_plain, cells), "; ".join(reasons(row.subject, doubted)))
            for row, cells in zip(part, table.rows, strict=True)
        ]
    heads = [" ".join(filter(None, pair)) for pair in zip(*header(), strict=True)]
    return as_csv(pandas.DataFrame(lines, columns=["table", "group", *heads, "flags"]))


def _plain(text: str) -> str:
    """A number as programs read it."""
    return text.replace(",", "") if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?", text) else text


def figures(
    records: Iterable[Result | Failure],
    training: Iterable[Training],
    by: str = "training",
    unit: str = "seconds",
    diagnoses: Iterable[Diagnosis] = (),
) -> list[Figure]:
    """What each checkpoint cost and is worth, a figure for each set of images and a panel for each device.

    Raises:
        StoreError: if no cost of that kind is known.
    """
    parts, groups, doubted = _parts(records, training, diagnoses)
    made = []
    for part, group in zip(parts, groups, strict=True):
        every = [result for row in part for result in row.results]
        names = names_of(every, doubted)
        panels: list[Panel] = []
        for device in sorted({row.place(by, unit) for row in part}):
            here = [row for row in part if row.place(by, unit) == device]
            if points := _values(here, names, doubted, by, unit):
                panels.append(Worth(safe(device) or "every device", _spelled(by, unit), tuple(points)))
        if panels:
            caption = (
                f"{_spelled(by, unit).capitalize()} against accuracy: filled, under all attacks of the table; hollow, clean. "
                "Further up and left is better; the line joins the checkpoints that no other beats."
            )
            title = f"What a checkpoint costs and is worth, {place(group, groups)}"
            text = " ".join([caption, *flags_of(every, doubted)])
            made.append(Figure("worth", title, text, tuple(panels)))
    if not made:
        raise StoreError(
            f"no checkpoint has a known cost of {by} in {unit}: robench evaluate stores what training cost beside the "
            "results; seconds and joules of several devices are no sum, passes are"
        )
    return made


def _values(part: Sequence[Row], names: dict[str, str], doubted: Doubts, by: str, unit: str) -> list[Value]:
    sure = [not reasons(row.subject, doubted) for row in part]
    marks = fronts(part, [_share(row.robust) if ok else None for row, ok in zip(part, sure, strict=True)], by, unit)
    found = []
    for row, mark in zip(part, marks, strict=True):
        cost, clean = row.cost(by, unit), _share(row.clean)
        if cost and clean is not None:
            found.append(Value(names[row.subject.sha256], cost, clean, _share(row.robust), mark))
    return found


__all__ = ["BY", "UNITS", "csv", "figures", "header", "tables"]
