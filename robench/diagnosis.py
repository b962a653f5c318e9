"""What a diagnosis of a checkpoint found, as data and as a file. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from robench import sealed
from robench.spec import digest
from robench.threat import ThreatModel

Word = Literal["pass", "suspect", "fail", "not run"]
FOLDER = "diagnoses"
KINDS = {  # what an indicator looks at; two that look at different things are independent signs
    "gradients": ("G1", "G2", "G3"),
    "the margin around an image": ("G4",),
    "the climb of an attack": ("G5", "G6", "G7"),
    "attacks that see no gradient": ("G8", "G10", "G16"),
    "attacks that should be stronger": ("G9", "G11", "G12"),
    "passes": ("G13", "G14"),
    "outputs": ("G15",),
}


RULES = {
    "G1": ("zero or non-finite gradients", "zero for more than 1 % of images, or any not finite"),
    "G2": ("interrupted graph", "the gradient cannot be computed"),
    "G3": ("gradient against finite differences", "they disagree on more than 10 % of images"),
    "G4": ("unstable margin", "median relative change in a small box above 0.10"),
    "G5": ("incomplete optimisation", "more than 5 % of unbroken images still climb in the last steps"),
    "G6": ("more effort", "twice the steps break more than 0.5 % (at least 2) further images"),
    "G7": ("silent success", "an attack passed a fooling image and returned another"),
    "G8": ("black box beats white box", "Square breaks more than 0.2 % (at least 2) that no white-box attack broke"),
    "G9": ("one step beats many", "FGSM breaks over 0.5 % (at least 2) more than PGD"),
    "G10": ("transfer beats white box", "transfer breaks over 0.5 % (at least 2) that no white-box attack broke"),
    "G11": ("unbounded attack", "more than 1 % of images survive a ball as large as the box"),
    "G12": ("curve over eps", "accuracy rises with eps by over 0.5 % (at least 2)"),
    "G13": ("randomness", "an answer changes, or normalised logits by more than 1e-4, over 5 passes"),
    "G14": ("optimisation inside the model", "the forward pass computes gradients"),
    "G15": (
        "probabilities or saturated logits",
        "outputs are probabilities or at a ceiling, or cross-entropy rounds to zero",
    ),
    "G16": ("random corners", "a random corner breaks what no white-box attack broke"),
}


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


def row(name: str, measured: float | None, word: Word, reason: str) -> Row:
    """The row of an indicator, with its rule."""
    return Row(name, RULES[name][0], measured, RULES[name][1], word, reason)


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

    @property
    def kinds(self) -> tuple[str, ...]:
        """The independent things that failed indicators look at."""
        return tuple(kind for kind, ids in KINDS.items() if set(ids) & set(self.failed))


def put(record: Diagnosis, results: Path) -> Path:
    """Store a diagnosis under the digest of its content; the same content again changes nothing."""
    return sealed.put(results / FOLDER / f"{digest(record)[:32]}.json", "diagnosis", record)


def records(results: Path) -> list[Diagnosis]:
    """Every stored diagnosis.

    Raises:
        StoreError: naming a file that is damaged or was changed.
    """
    paths = sorted((results / FOLDER).glob("*.json"))
    return [sealed.read(path, "diagnosis", Diagnosis, "robench diagnose") for path in paths]
