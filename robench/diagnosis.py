"""What a diagnosis of a checkpoint found, as data and as a file. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from robench.errors import StoreError
from robench.files import sha256, write_json

Word = Literal["pass", "suspect", "fail", "not run"]
FORMAT = 1
FOLDER = "diagnoses"


@dataclass(frozen=True)
class Row:
    """One indicator.

    Attributes:
        id: G1 to G16.
        name: what it looks for.
        measured: the number it rests on; None where it was not run.
        rule: when it fires.
        verdict: pass, suspect, fail or not run.
        reason: what was seen, or why it was not run.
    """

    id: str
    name: str
    measured: float | None
    rule: str
    verdict: Word
    reason: str


@dataclass(frozen=True)
class Diagnosis:
    """All indicators of one checkpoint on one set of images at one threat.

    Attributes:
        checkpoint: its digest.
        name: how people call it.
        threat: as text.
        data: digest of the images.
        count: how many images were looked at.
        correct: how many of them the model gets right, which the indicators are about.
        seed: of all randomness.
        sources: digests of the surrogates.
        rows: the indicators.
    """

    checkpoint: str
    name: str
    threat: str
    data: str
    count: int
    correct: int
    seed: int
    sources: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def failed(self) -> tuple[str, ...]:
        """Ids of the indicators that failed."""
        return tuple(row.id for row in self.rows if row.verdict == "fail")


def unreliable(records: Iterable[Diagnosis]) -> dict[str, tuple[str, ...]]:
    """Which checkpoints no ranking may hold, by digest, and the indicators that say so."""
    found: dict[str, set[str]] = {}
    for record in records:
        if record.failed:
            found.setdefault(record.checkpoint, set()).update(record.failed)
    return {digest: tuple(sorted(ids, key=lambda name: int(name[1:]))) for digest, ids in found.items()}


def put(record: Diagnosis, results: Path) -> Path:
    """Store a diagnosis under the digest of its content; the same content again changes nothing."""
    content = asdict(record)
    digest = _digest(content)
    path = results / FOLDER / f"{digest[:32]}.json"
    if not path.exists():
        write_json(path, {"format": FORMAT, "digest": digest, "diagnosis": content})
    return path


def records(results: Path) -> list[Diagnosis]:
    """Every stored diagnosis.

    Raises:
        StoreError: naming a file that is damaged or was changed.
    """
    return [_read(path) for path in sorted((results / FOLDER).glob("*.json"))]


def _read(path: Path) -> Diagnosis:
    try:
        held = json.loads(path.read_bytes())
        content = held["diagnosis"]
        if held["format"] != FORMAT or held["digest"] != _digest(content):
            raise ValueError("its content does not fit its digest")
        rows = tuple(Row(**row) for row in content["rows"])
        return Diagnosis(**{**content, "rows": rows, "sources": tuple(content["sources"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is damaged or was changed ({error}): delete it and run robench diagnose") from error


def _digest(content: object) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode())
