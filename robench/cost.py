"""What robustness costs: training and evaluation of each checkpoint, and which are worth their cost. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robench.diagnosis import Diagnosis
from robench.errors import StoreError
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
    ordered,
    place,
    reasons,
    unproven,
    unreliable,
)
from robench.results import DAMAGE, Failure, Result, Subject, safe
from robench.worst import Bits, left

HEADER = (
    *("checkpoint", "training s", "images trained on", "training MiB", "training J", "evaluation s", "forwards"),
    *("backwards", "evaluation MiB", "evaluation J", "clean", "worst case", "Pareto clean", "Pareto robust"),
)

Stages = tuple[Mapping[str, float], ...]


@dataclass(frozen=True)
class Row:
    """What one checkpoint cost and is worth, on one set of images.

    Attributes:
        subject: the checkpoint.
        training: of each of its stages; empty where nobody measured.
        results: of it.
        clean: the share of images right when clean.
        robust: which images are right under every result; None while it lacks a column that another row has.
    """

    subject: Subject
    training: Stages
    results: tuple[Result, ...]
    clean: float
    robust: Bits | None

    @property
    def seconds(self) -> float | None:
        """Of training, all stages; None unless all are known."""
        return total(self.training, "seconds")


def total(stages: Stages, name: str) -> float | None:
    """The sum over stages (of memory the largest); None where any stage lacks it."""
    values = [stage.get(name) for stage in stages]
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return max(known) if name == "peak_memory" else sum(known)


def trained(root: Path) -> dict[str, Stages]:
    """What training cost, by the SHA-256 of the weights, read from the JSON beside them.

    Raises:
        StoreError: if such a file is damaged.
    """
    found: dict[str, Stages] = {}
    for path in sorted(path for kind in ("best", "last") for path in root.glob(f"*/{kind}.json")):
        try:
            table: Any = json.loads(path.read_bytes())
            found[table["sha256"]] = tuple(
                {str(k): float(v) for k, v in each.items()} for each in table.get("cost", ())
            )
        except DAMAGE as error:
            raise StoreError(
                f"{path} is damaged ({error}): restore it, or name another folder by --checkpoints"
            ) from None
    return found


def rows(records: Iterable[Result | Failure], training: Mapping[str, Stages]) -> list[list[Row]]:
    """The rows of each set of images, supervised first."""
    results = apart(sorted((r for r in records if isinstance(r, Result)), key=lambda r: r.cell.key))
    if not results:
        raise StoreError("no results to tell the cost of: robench evaluate --attack pgd-20")
    return [
        _rows([r for r in results if images_of(r) == images], training)
        for images in sorted({images_of(r) for r in results}, key=str)
    ]


def _rows(part: Sequence[Result], training: Mapping[str, Stages]) -> list[Row]:
    alone = unproven(part)
    asked = {smooth: {_column(r) for r in part if bool(r.cell.inference) is smooth} for smooth in (False, True)}
    made = []
    for subject in ordered({r.subject.sha256: r.subject for r in part}.values()):
        every = tuple(r for r in part if r.cell.checkpoint == subject.sha256)
        own = [r for r in every if r not in alone]
        full = {_column(r) for r in own} >= asked[bool(every[0].cell.inference)]
        robust = left(r.robust for r in own) if own and full else None
        n = every[0].cell.count
        stages = training.get(subject.sha256.partition("+")[0], ())
        made.append(Row(subject, stages, every, sum(every[0].clean) / n, robust))
    return made


def _column(result: Result) -> tuple[str, str, bool]:
    return result.cell.attack, str(result.cell.threat), bool(result.cell.source)


def pareto(points: Sequence[tuple[float | None, float | None]]) -> list[bool]:
    """Which (cost, accuracy) nobody else beats: no cheaper one is as accurate, no more accurate one as cheap.

    A point of which either is unknown neither is optimal nor beats another.
    """

    def beaten(cost: float, value: float) -> bool:
        known = [(c, v) for c, v in points if c is not None and v is not None]
        return any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in known)

    return [cost is not None and value is not None and not beaten(cost, value) for cost, value in points]


def tables(
    records: Iterable[Result | Failure],
    training: Mapping[str, Stages],
    diagnoses: Iterable[Diagnosis] = (),
    intervals: bool = False,
) -> list[Table]:
    """One table of costs for each set of images; a checkpoint whose numbers are unreliable is Pareto-optimal nowhere.

    Raises:
        StoreError: if there is no result.
    """
    parts = rows(records, training)
    groups = [images_of(part[0].results[0]) for part in parts]
    doubted = doubts((result for part in parts for row in part for result in row.results), diagnoses)
    return [_table(part, place(group, groups), doubted, intervals) for part, group in zip(parts, groups, strict=True)]


def _table(part: Sequence[Row], where: str, doubted: Doubts, intervals: bool) -> Table:
    times = [None if reasons(row.subject, doubted) else row.seconds for row in part]
    on_clean = pareto([(time, row.clean) for time, row in zip(times, part, strict=True)])
    shares = [None if row.robust is None else sum(row.robust) / len(row.robust) for row in part]
    on_robust = pareto(list(zip(times, shares, strict=True)))
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
    notes = (
        "training: wall time on the device, validation and all stages included, those of a given encoder too.",
        "evaluation: the sum over all results of the row; images crafted once for several targets of a transfer count for each.",
        "MiB: the most that tensors held on the device; J: of the whole board; "
        f"{ABSENT}: not measured, or for a worst case not evaluated under every attack.",
        *(["(a-b): 95 % Wilson interval over the test images."] if intervals else []),
        "Pareto: among rows of known training time, no other is as cheap and as accurate, and better in one of the two.",
        *_devices(part),
        *unreliable([row.subject for row in part], doubted),
    )
    return Table(f"Cost, {where}", (HEADER,), lines, notes)


def _cells(row: Row, intervals: bool) -> list[str]:
    names = ("seconds", "images", "peak_memory", "joules")
    seconds, images, memory, joules = (total(row.training, name) for name in names)
    spent: list[dict[str, float]] = [_spent(result) for result in row.results]
    return [
        *(_number(seconds, 1), _number(images), _mib(memory), _number(joules)),
        *(
            _number(total(tuple(spent), name), 1 if name == "seconds" else 0)
            for name in ("seconds", "forwards", "backwards")
        ),
        *(_mib(total(tuple(spent), "peak_memory")), _number(total(tuple(spent), "joules"))),
        accuracy([row.results[0].clean], intervals),
        ABSENT if row.robust is None else accuracy([row.robust], intervals),
    ]


def _spent(result: Result) -> dict[str, float]:
    names = ("seconds", "forwards", "backwards", "peak_memory", "joules")
    return {name: float(value) for name in names if (value := getattr(result, name)) is not None}


def _devices(part: Sequence[Row]) -> list[str]:
    """Times on different devices do not compare, so say which there are."""
    found = sorted({str(r.provenance["device"]) for row in part for r in row.results if "device" in r.provenance})
    return (
        [f"evaluated on several devices, whose times do not compare: {safe(', '.join(found))}."]
        if len(found) > 1
        else []
    )


def _mib(value: float | None) -> str:
    return _number(None if value is None else value / 2**20)


def _number(value: float | None, digits: int = 0) -> str:
    return ABSENT if value is None else f"{value:,.{digits}f}"


def csv(
    records: Iterable[Result | Failure], training: Mapping[str, Stages], diagnoses: Iterable[Diagnosis] = ()
) -> str:
    """The tables of costs as one CSV table."""
    import pandas

    made = tables(records, training, diagnoses)
    lines = [(table.title, *row) for table in made for row in table.rows]
    return as_csv(pandas.DataFrame(lines, columns=["table", "group", *HEADER]))
