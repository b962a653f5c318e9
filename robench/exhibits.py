"""What reports show and cannot work out from bits: labels, pictures, features, training. Kept beside cells; no torch here.

Each is computed by a command that has the images or the model and stored in a file of its own; a report stays a pure
function of files. Cells hold none of it: labels belong to the images, of which a cell holds the digest, so they are stored once
for each set of images and old cells need no new format.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from robench import sealed
from robench.errors import StoreError
from robench.results import Subject
from robench.spec import digest
from robench.threat import ThreatModel

T = TypeVar("T")


@dataclass(frozen=True)
class Labels:
    """The classes of the images of some cells.

    Attributes:
        data: the digest by which cells name these images.
        dataset: where they are from.
        classes: how many classes there are.
        labels: the class number of each image, in order, with spaces between.
    """

    data: str
    dataset: str
    classes: int
    labels: str

    @property
    def each(self) -> list[int]:
        """The class number of each image."""
        return [int(text) for text in self.labels.split()]


@dataclass(frozen=True)
class Example:
    """One image that was fooled.

    Attributes:
        number: which of the cell's images.
        label: its class.
        answer: what the model says of the adversarial image.
        clean: a PNG of it, as base64.
        adversarial: a PNG.
        difference: a PNG of their difference about grey, amplified to full range.
    """

    number: int
    label: int
    answer: int
    clean: str
    adversarial: str
    difference: str


@dataclass(frozen=True)
class Pictures:
    """Some adversarial images of one cell.

    Attributes:
        cell: its key.
        examples: the images.
    """

    cell: str
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Embedding:
    """Features of clean and adversarial images in two dimensions.

    Attributes:
        subject: the checkpoint whose encoder it is.
        attack: what perturbed the images.
        version: of that attack's code.
        threat: the ball.
        data: digest of the images.
        count: how many there are.
        seed: of the attack and of t-SNE.
        perplexity: of t-SNE.
        divergence: what t-SNE was left with, in nats.
        classes: how many classes there are.
        labels: the class number of each image.
        clean: where the features of the clean images are.
        adversarial: where those of the adversarial images are.
        clean_accuracy: of the classifier; None for an encoder without a head.
        robust_accuracy: of the classifier on the adversarial images.
    """

    subject: Subject
    attack: str
    version: int
    threat: ThreatModel
    data: str
    count: int
    seed: int
    perplexity: float
    divergence: float
    classes: int
    labels: tuple[int, ...]
    clean: tuple[tuple[float, float], ...]
    adversarial: tuple[tuple[float, float], ...]
    clean_accuracy: float | None = None
    robust_accuracy: float | None = None


@dataclass(frozen=True)
class Training:
    """What it cost to train a checkpoint.

    Attributes:
        checkpoint: SHA-256 of its weights.
        device: what it was trained on.
        stages: of each stage, those of the encoder it started from first, what `Checkpoint.cost` holds.
    """

    checkpoint: str
    device: str
    stages: tuple[Mapping[str, float], ...]


@dataclass(frozen=True)
class Exhibits:
    """Everything of the kind in a folder of results."""

    labels: tuple[Labels, ...] = ()
    pictures: tuple[Pictures, ...] = ()
    embeddings: tuple[Embedding, ...] = ()
    training: tuple[Training, ...] = ()


Exhibit = Labels | Pictures | Embedding | Training
FOLDERS: dict[type, str] = {Labels: "labels", Pictures: "pictures", Embedding: "features", Training: "training"}
REMEDY: dict[type, str] = {
    Labels: "robench evaluate",
    Pictures: "robench show CELL --images 8 --keep",
    Embedding: "robench features",
    Training: "robench evaluate",
}


def put(record: Exhibit, results: Path) -> Path:
    """Store a record: labels by their images, pictures by their cell, features by what was asked, training by its weights.

    The same weights trained again have cost something else; what is stored first stays.

    Raises:
        StoreError: if other labels are stored for the same images.
    """
    path = results / FOLDERS[type(record)] / f"{_name(record)}.json"
    if isinstance(record, Labels) and path.is_file() and _read(path, Labels) != record:
        raise StoreError(
            f"{path} holds other labels for the same images. Move it away, and find out which data set changed"
        )
    if isinstance(record, Training) and path.is_file() and _read(path, Training):
        return path
    return sealed.put(path, FOLDERS[type(record)], record)


def _name(record: Exhibit) -> str:
    if isinstance(record, Labels):
        return record.data[:32]
    if isinstance(record, Pictures):
        return record.cell
    if isinstance(record, Training):
        return record.checkpoint[:32]
    asked = (record.subject.sha256, record.attack, record.version, str(record.threat), record.data, record.seed)
    return digest(asked)[:32]


def load(results: Path) -> Exhibits:
    """Everything stored in a folder of results.

    Raises:
        StoreError: naming a file that is damaged, was changed, or is not what its name says.
    """
    return Exhibits(_all(results, Labels), _all(results, Pictures), _all(results, Embedding), _all(results, Training))


def _all(results: Path, kind: type[T]) -> tuple[T, ...]:
    return tuple(_read(path, kind) for path in sorted((results / FOLDERS[kind]).glob("*.json")))


def _read(path: Path, kind: type[T]) -> T:
    found = sealed.read(path, FOLDERS[kind], kind, REMEDY[kind])
    assert isinstance(found, Exhibit)
    reason = _impossible(found) if path.stem == _name(found) else "it is not what its name says"
    if reason:
        raise StoreError(f"{path} is damaged or was changed ({reason}): delete it and run {REMEDY[kind]}")
    return found


def _impossible(record: object) -> str:
    """What in a record cannot be; nothing if all can."""
    if isinstance(record, Labels):
        wrong = any(not text.isdecimal() or int(text) >= record.classes for text in record.labels.split())
        return f"a label is not one of {record.classes} classes" if wrong else ""
    if isinstance(record, Embedding):
        lengths = {len(record.labels), len(record.clean), len(record.adversarial)}
        wrong = lengths != {record.count} or not all(0 <= label < record.classes for label in record.labels)
        return f"labels and points are not of {record.count} images of {record.classes} classes" if wrong else ""
    if isinstance(record, Training):
        wrong = any(not 0 <= value < math.inf for stage in record.stages for value in stage.values())
        return "a cost is no finite number of at least 0" if wrong else ""
    return ""
