"""What robustness cost, worked out from records: training, head and attack of each checkpoint. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robench.errors import StoreError
from robench.exhibits import Training
from robench.reporting import apart, images_of, ordered, unproven
from robench.results import DAMAGE, Failure, Result, Subject
from robench.worst import Bits, left

PHASES = ("training", "head", "attack")
BY: Mapping[str, tuple[str, ...]] = {"training": PHASES[:2], "evaluation": PHASES[2:], "total": PHASES}  # their sums
UNITS = {"seconds": "seconds", "passes": "image passes", "joules": "J"}
AMOUNTS = ("passes", "seconds", "peak_memory", "joules")

Stages = tuple[Mapping[str, float], ...]


@dataclass(frozen=True)
class Row:
    """What one checkpoint cost and is worth, on one set of images.

    Attributes:
        subject: the checkpoint.
        training: what its training cost; None where nobody knows.
        results: of it.
        clean: which images are right when clean.
        robust: which images are right under every result; None while it lacks a column that another row has.
    """

    subject: Subject
    training: Training | None
    results: tuple[Result, ...]
    clean: Bits
    robust: Bits | None

    @property
    def devices(self) -> tuple[str, ...]:
        """What it was attacked on."""
        return tuple(sorted({str(r.provenance.get("device", "")) for r in self.results}))

    def spent(self, phase: str, name: str) -> float | None:
        """How much of something a phase took; None where it was not measured."""
        if phase == "attack":
            return total(tuple(_attack(result) for result in self.results), name)
        known = self.training.stages if self.training else ()
        stages = tuple(_stage(stage) for stage in known if bool(stage.get("head")) is (phase == "head"))
        if known and not stages and all(known) and name in ("passes", "seconds"):
            return 0.0  # there was no such stage
        return total(stages, name)

    def cost(self, by: str, unit: str) -> float | None:
        """The sum over some phases; None where one is not known, or where seconds or joules are of different devices."""
        phases = [phase for phase in BY[by] if phase == "attack" or self._has(phase)]
        if unit != "passes" and by == "total" and self.training and self.devices != (self.training.device,):
            return None
        found = [self.spent(phase, unit) for phase in phases]
        known = [value for value in found if value is not None]
        return sum(known) if known and len(known) == len(found) else None

    def place(self, by: str, unit: str) -> str:
        """What else a row must share to be compared with by that cost: passes are the same everywhere."""
        if unit == "passes":
            return ""
        return (self.training.device if self.training else "") if by == "training" else " + ".join(self.devices)

    def _has(self, phase: str) -> bool:
        known = self.training.stages if self.training else ()
        heads = {bool(stage.get("head")) for stage in known}
        return (phase == "head") in heads or not known


def total(stages: Stages, name: str) -> float | None:
    """The sum over stages (of memory the largest); None where any stage lacks it."""
    values = [stage.get(name) for stage in stages]
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return max(known) if name == "peak_memory" else sum(known)


def _stage(stage: Mapping[str, float]) -> dict[str, float]:
    """A stage of training in the words of `AMOUNTS`; seconds are those of all devices together."""
    found = {name: stage[name] for name in ("peak_memory", "joules") if name in stage}
    if "seconds" in stage:
        found["seconds"] = stage.get("device_seconds", stage["seconds"])
    if {"forwards", "backwards"} <= stage.keys():
        found["passes"] = stage["forwards"] + stage["backwards"]
    return found


def _attack(result: Result) -> dict[str, float]:
    found: dict[str, float] = {"passes": result.forwards + result.backwards, "seconds": result.seconds}
    for name in ("peak_memory", "joules"):
        if (value := getattr(result, name)) is not None:
            found[name] = float(value)
    return found


def trained(root: Path) -> dict[str, Training]:
    """What training cost, by the SHA-256 of the weights, read from the JSON beside them.

    A best epoch is known when its run is over, so it has cost what the last one has.

    Raises:
        StoreError: if such a file is damaged.
    """
    found: dict[str, Training] = {}
    for folder in sorted({path.parent for kind in ("best", "last") for path in root.glob(f"*/{kind}.json")}):
        made = [_described(path) for kind in ("last", "best") if (path := folder / f"{kind}.json").is_file()]
        for each in made:
            found[each.checkpoint] = Training(each.checkpoint, made[0].device, made[0].stages)
    return found


def _described(path: Path) -> Training:
    try:
        table: Any = json.loads(path.read_bytes())
        stages = tuple({str(k): float(v) for k, v in each.items()} for each in table.get("cost", ()))
        return Training(str(table["sha256"]), str(table.get("provenance", {}).get("device", "")), stages)
    except DAMAGE as error:
        raise StoreError(f"{path} is damaged ({error}): restore it, or name another folder by --checkpoints") from None


def rows(records: Iterable[Result | Failure], training: Iterable[Training]) -> list[list[Row]]:
    """The rows of each set of images, supervised first.

    Raises:
        StoreError: if there is no result.
    """
    results = apart(sorted((r for r in records if isinstance(r, Result)), key=lambda r: r.cell.key))
    if not results:
        raise StoreError("no results to tell the cost of: robench evaluate --attack pgd-20")
    known = {each.checkpoint: each for each in training}
    return [
        _rows([r for r in results if images_of(r) == images], known)
        for images in sorted({images_of(r) for r in results}, key=str)
    ]


def _rows(part: Sequence[Result], training: Mapping[str, Training]) -> list[Row]:
    alone = unproven(part)
    asked = {smooth: {_column(r) for r in part if bool(r.cell.inference) is smooth} for smooth in (False, True)}
    made = []
    for subject in ordered({r.subject.sha256: r.subject for r in part}.values()):
        every = tuple(r for r in part if r.cell.checkpoint == subject.sha256)
        own = [r for r in every if r not in alone]
        full = {_column(r) for r in own} >= asked[bool(every[0].cell.inference)]
        robust = left(r.robust for r in own) if own and full else None
        made.append(Row(subject, training.get(subject.sha256.partition("+")[0]), every, every[0].clean, robust))
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


def fronts(part: Sequence[Row], values: Sequence[float | None], by: str, unit: str) -> list[bool]:
    """Which rows are Pareto-optimal in some accuracy, each among those whose cost compares with its own."""
    marks = [False] * len(part)
    for place in {row.place(by, unit) for row in part}:
        at = [i for i, row in enumerate(part) if row.place(by, unit) == place]
        for i, mark in zip(at, pareto([(part[i].cost(by, unit), values[i]) for i in at]), strict=True):
            marks[i] = mark
    return marks
