"""What a diagnosis of a checkpoint found, as data and as a file. No torch here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from robench.errors import StoreError, UsageError
from robench.files import write_json
from robench.spec import build, digest, plain
from robench.threat import ThreatModel

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
        threat: the ball.
        data: digest of the images.
        count: how many images were looked at.
        correct: how many of them the model gets right, which the indicators are about.
        seed: of all randomness.
        sources: digests of the surrogates.
        rows: the indicators.
    """

    checkpoint: str
    name: str
    threat: ThreatModel
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


def put(record: Diagnosis, results: Path) -> Path:
    """Store a diagnosis under the digest of its content; the same content again changes nothing."""
    sealed = digest(record)
    path = results / FOLDER / f"{sealed[:32]}.json"
    if not path.exists():
        write_json(path, {"format": FORMAT, "digest": sealed, "diagnosis": plain(record)})
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
        if held["format"] != FORMAT or held["digest"] != digest(held["diagnosis"]):
            raise ValueError("its content does not fit its digest")
        found: Diagnosis = build(Diagnosis, held["diagnosis"])
        return found
    except (OSError, ValueError, KeyError, TypeError, UsageError) as error:
        raise StoreError(f"{path} is damaged or was changed ({error}): delete it and run robench diagnose") from error
