"""Cells and their results: what was asked, what came out, and the folder that keeps both. No torch here."""

from __future__ import annotations

import base64
import json
import math
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robench import files
from robench.errors import StoreError, UsageError
from robench.inference import Inference
from robench.spec import build, digest, plain
from robench.threat import ThreatModel

FORMAT = 2
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, UsageError)
FLAG = "flag: "  # what a note begins with that says a model is not fit for its numbers


@dataclass(frozen=True)
class Cell:
    """What was asked; equal cells have equal results.

    Attributes:
        checkpoint: SHA-256 of the weights under attack.
        source: SHA-256 of the weights the images were crafted on; empty for white-box.
        attack: the name of the attack.
        version: of that attack's code.
        options: all its options.
        threat: the ball.
        data: SHA-256 of the images and labels.
        count: how many there are.
        seed: of the attack's randomness, and of what `inference` draws.
        inference: how the checkpoint answers, where that is more than one look at the image.
        precision: of the search; the verdict is float32 whatever it is.
    """

    checkpoint: str
    source: str
    attack: str
    version: int
    options: Mapping[str, Any]
    threat: ThreatModel
    data: str
    count: int
    seed: int
    inference: Inference | None = None
    precision: str = "float32"

    @property
    def key(self) -> str:
        """The digest that names this cell's file."""
        return digest(_table(self))[:32]


def _table(cell: Cell) -> dict[str, Any]:
    """A cell as it is written and digested: what is as it was before there was a choice does not say so."""
    table: Any = plain(cell)
    if cell.inference is None:
        del table["inference"]
    if cell.precision == "float32":
        del table["precision"]
    found: dict[str, Any] = table
    return found


@dataclass(frozen=True)
class Subject:
    """What a table needs to know of a checkpoint.

    Attributes:
        name: of the run.
        recipe: the recipe's name.
        group: `supervised`, `self-supervised`, or `outside` for a classifier that robench did not train.
        threat: what it was trained against, if anything.
        seed: of its training.
        dataset: the data set it is evaluated on.
        sha256: of its weights.
        origin: of a classifier from elsewhere: the text that names it, its file of weights, how it normalises.
    """

    name: str
    recipe: str
    group: str
    threat: ThreatModel | None
    seed: int
    dataset: str
    sha256: str
    origin: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Result:
    """What came out of a cell: one bit per image, and what it cost.

    Attributes:
        cell: what was asked.
        subject: the checkpoint under attack.
        source: the checkpoint the images were crafted on; None for white-box.
        clean: for each image, whether the model was right about it.
        robust: for each image, whether it was right and stayed right.
        largest: the largest perturbation found inside the threat, in its norm.
        seconds: of wall time.
        forwards: images passed forward.
        backwards: images whose gradient was computed.
        notes: what a reader should know, such as a reduced attack.
        provenance: versions, device, command.
        norms: of an attack that looks for the smallest perturbation, its norm for each image: 0 where the model is wrong
            anyway, None where none was found.
        left: how many images each member of an ensemble, in its order, left unbroken.
        peak_memory: the most bytes of device memory that were in use at once; None where the device does not count them.
        joules: what the device's own counter says it drew meanwhile, other work on it included; None without a counter.
    """

    cell: Cell
    subject: Subject
    source: Subject | None
    clean: tuple[bool, ...]
    robust: tuple[bool, ...]
    largest: float
    seconds: float
    forwards: int
    backwards: int
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    norms: tuple[float | None, ...] | None = None
    left: Mapping[str, int] = field(default_factory=dict)
    peak_memory: int | None = None
    joules: float | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        """What was found wrong with the model, which none of its numbers may be shown without."""
        return tuple(note.removeprefix(FLAG) for note in self.notes if note.startswith(FLAG))

    @property
    def median_norm(self) -> float | None:
        """The median smallest perturbation of the images right when clean; infinite when over half were never fooled."""
        if self.norms is None or not any(self.clean):
            return None
        found = [norm for norm, clean in zip(self.norms, self.clean, strict=True) if clean]
        return statistics.median(math.inf if norm is None else norm for norm in found)


@dataclass(frozen=True)
class Failure:
    """A cell that gave no result, and why. It is never counted as robust, and is tried again when asked for again."""

    cell: Cell
    subject: Subject
    source: Subject | None
    reason: str
    provenance: Mapping[str, Any] = field(default_factory=dict)


def pack(bits: Iterable[bool]) -> str:
    """Bits as base64 text, eight to a byte, the first bit highest."""
    text = "".join("1" if bit else "0" for bit in bits)
    padded = text.ljust(-(-len(text) // 8) * 8, "0")
    return base64.b64encode(bytes(int(padded[i : i + 8], 2) for i in range(0, len(padded), 8))).decode()


def unpack(text: str, count: int) -> tuple[bool, ...]:
    """The first `count` bits of `pack`'s text.

    Raises:
        ValueError: if there are not that many, or the text is not base64.
    """
    raw = base64.b64decode(text, validate=True)
    if len(raw) != -(-count // 8):
        raise ValueError(f"{len(raw)} bytes cannot hold exactly {count} bits")
    return tuple(bool(raw[i // 8] >> (7 - i % 8) & 1) for i in range(count))


class Store:
    """A folder of results, one file per cell, written once.

    Args:
        folder: where; cells are in its sub-folder `cells`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, cell: Cell) -> Path:
        """The file of a cell."""
        return self.folder / "cells" / f"{cell.key}.json"

    def get(self, cell: Cell) -> Result | Failure | None:
        """What is known of a cell, or None.

        Raises:
            StoreError: if its file is damaged.
        """
        path = self.path(cell)
        return read(path) if path.is_file() else None

    def put(self, record: Result | Failure) -> None:
        """Keep a record. A result replaces a failure; the same result may be put twice, also by two processes at once.

        Raises:
            StoreError: if the cell already has another result, or the folder cannot be written.
        """
        path = self.path(record.cell)
        content = files.json_bytes(_sealed(record))
        if not path.exists() and files.write_new(path, content):
            return
        with files.alone(path.parent):  # nobody else replaces what is there meanwhile
            there = self.get(record.cell)
            if not isinstance(there, Result):
                files.write(path, content)
            elif isinstance(record, Result) and (said := differences(there, record)):
                raise StoreError(
                    f"{path} holds another result for the same cell: {said}. Move the file away to keep the new one, and find "
                    "out which is right"
                )

    def records(self) -> Iterator[Result | Failure]:
        """Every record, in the order of its key.

        Raises:
            StoreError: if the folder is empty or absent, or a file is damaged.
        """
        paths = sorted((self.folder / "cells").glob("*.json"))
        if not paths:
            raise nothing(self.folder)
        for path in paths:
            yield read(path)


def nothing(folder: Path) -> StoreError:
    """The error for a folder without results: what it is instead, and what to do."""
    if folder.is_file():
        return StoreError(f"no results in {folder}, which is a file: name the folder, such as --results results")
    if folder.name == "cells" and any(folder.glob("*.json")):
        return StoreError(f"no results in {folder}, which holds the cells of {folder.parent}: name that folder")
    return StoreError(f"no results in {folder}: robench evaluate --attack pgd-20, or robench demo")


def differences(there: Result, now: Result) -> str:
    """How two results of one cell contradict each other, in words; nothing if they do not.

    Bits must be the same. Norms may differ by what rounding does on another machine.
    """
    counts = f"{sum(there.robust)} robust images there, {sum(now.robust)} now"
    if (there.clean, there.robust) != (now.clean, now.robust):
        return counts
    if (there.norms is None) != (now.norms is None):
        return f"{counts}, and only one has the norms of single images"
    for image, (one, other) in enumerate(zip(there.norms or (), now.norms or (), strict=True)):
        far = math.inf
        if not math.isclose(far if one is None else one, far if other is None else other, rel_tol=1e-2, abs_tol=1e-6):
            return f"{counts}, and image {image} is broken at {one} there, at {other} now"
    return ""


def _sealed(record: Result | Failure) -> dict[str, Any]:
    table = plain_record(record)
    if isinstance(record, Result):
        table |= {"clean": pack(record.clean), "robust": pack(record.robust)}
    return sealed(FORMAT, type(record).__name__.lower(), table)


def plain_record(record: Any) -> dict[str, Any]:
    """A dataclass with a field `cell` as a table, the cell as it is digested."""
    table: Any = plain(record)
    for subject in filter(None, (table.get("subject"), table.get("source"))):
        if not subject["origin"]:  # ours are written as they were before there were others
            del subject["origin"]
    return {**table, "cell": _table(record.cell)}


def sealed(number: int, kind: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """A table as it is written: with its format, its kind, and a digest of all."""
    whole = {"format": number, "kind": kind, **table}
    return {**whole, "digest": digest(whole)}


def unsealed(path: Path) -> dict[str, Any]:
    """What `sealed` made, read from a file.

    Raises:
        Any of `DAMAGE`: if it is not what was written.
    """
    table: dict[str, Any] = json.loads(path.read_bytes())
    if digest({key: value for key, value in table.items() if key != "digest"}) != table.pop("digest"):
        raise ValueError("its content is not what was written: the digest differs")
    return table


def migrated(table: Mapping[str, Any]) -> dict[str, Any]:
    """A record's table in today's format, from any earlier one; what was not measured then is absent.

    Raises:
        ValueError: for a format that this version does not know.
    """
    found = dict(table)
    if found["format"] == 1:  # before device memory and energy were measured
        if found["kind"] == "result":
            found |= {"peak_memory": None, "joules": None}
        found["format"] = 2
    if found["format"] != FORMAT:
        raise ValueError(f"it has format {found['format']!r}, and this version of robench knows 1 to {FORMAT}")
    return found


def read(path: Path) -> Result | Failure:
    """The record in a file.

    Raises:
        StoreError: if it is damaged, or not what its name says.
    """
    try:
        table = migrated(unsealed(path))
        del table["format"]
        if table.pop("kind") == "failure":
            failure: Failure = build(Failure, table)
            record: Result | Failure = failure
        else:
            count = table["cell"]["count"]
            table["clean"], table["robust"] = unpack(table["clean"], count), unpack(table["robust"], count)
            record = build(Result, table)
            if record.norms is not None and len(record.norms) != count:
                raise ValueError(f"{len(record.norms)} norms for {count} images")
    except DAMAGE as error:
        raise StoreError(f"{path} is damaged: {error}. Move it away and evaluate again") from None
    if path.stem != record.cell.key:
        raise StoreError(
            f"{path} describes the cell {record.cell.key}: rename it to {record.cell.key}.json, or move it away"
        )
    return record


def named(subject: Subject, inference: Inference | None) -> str:
    """How tables call a checkpoint that answers so."""
    return f"{subject.name} +{inference.label}" if inference else subject.name


def column(attack: str, threat: ThreatModel) -> str:
    """How tables call an attack at a threat."""
    return f"{attack} {threat}"


def asked(cell: Cell) -> str:
    """The same for a cell, with the precision of its search where that is not the usual one."""
    return column(searching(cell), cell.threat)


def searching(cell: Cell) -> str:
    """How tables call a cell's attack: in another precision it is another attack."""
    return cell.attack if cell.precision == "float32" else f"{cell.attack} {cell.precision}"


def safe(text: str) -> str:
    """A name as one visible line: control and direction characters shown as escapes."""
    pattern = "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
    return re.sub(pattern, lambda match: f"\\x{ord(match[0]):02x}", text)
