"""The parts of figures as data, ready to draw. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from robench.exhibits import Example

CROWD = 20  # so many classes have a place each; more are drawn in the order of their accuracy


@dataclass(frozen=True)
class Line:
    """One checkpoint's accuracy against eps.

    Attributes:
        name: of the checkpoint.
        points: (eps, accuracy under the panel's attack), from the clean accuracy at 0 upwards.
        worst: (eps, accuracy under all that is stored at that eps), where that is lower.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    worst: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Curves:
    """Robustness curves in one norm, under one attack."""

    title: str
    norm: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Matrix:
    """One transfer matrix: accuracy of each target (row) on images crafted on each source (column); None where absent."""

    title: str
    targets: tuple[str, ...]
    sources: tuple[str, ...]
    accuracy: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class Union:
    """Which attacks broke which images of one checkpoint at one threat.

    Attributes:
        title: of the panel.
        attacks: their names.
        broken: how many images each of them broke.
        bars: (places in `attacks`, how many images exactly these broke), the most first.
        rest: images in the smaller bars that were left out, and how many bars these were.
        left: images that no attack broke.
        right: images that were right when clean; only these can be broken.
    """

    title: str
    attacks: tuple[str, ...]
    broken: tuple[int, ...]
    bars: tuple[tuple[frozenset[int], int], ...]
    rest: tuple[int, int]
    left: int
    right: int


@dataclass(frozen=True)
class Point:
    """One cell's cost and what it left; `front` if no cheaper attack on the same checkpoint left fewer images right."""

    name: str
    attack: str
    cost: float
    accuracy: float
    front: bool


@dataclass(frozen=True)
class Cost:
    """Attacks at one threat, measured on one kind of device.

    Attributes:
        title: the threat, and the device.
        points: the cells.
        unit: of their cost, in words.
    """

    title: str
    points: tuple[Point, ...]
    unit: str = "seconds"


@dataclass(frozen=True)
class Value:
    """What one checkpoint cost and is worth.

    Attributes:
        name: of the checkpoint.
        cost: above zero.
        clean: accuracy.
        robust: accuracy under all attacks; None while it has not met them all.
        front: whether no other is as cheap and as robust, and better in one of the two.
    """

    name: str
    cost: float
    clean: float
    robust: float | None
    front: bool


@dataclass(frozen=True)
class Worth:
    """Checkpoints whose costs compare.

    Attributes:
        title: the device.
        cost: what their cost is, in words.
        values: the checkpoints, in the order of the tables.
    """

    title: str
    cost: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Training:
    """One logged quantity over the epochs of some runs.

    Attributes:
        title: the quantity.
        lines: a run's name, and (epoch, value) from its first stage on; epochs count on over stages.
        share: whether the quantity is an accuracy.
    """

    title: str
    lines: tuple[tuple[str, tuple[tuple[int, float], ...]], ...]
    share: bool


@dataclass(frozen=True)
class Classes:
    """The accuracy of some checkpoints for each class.

    Attributes:
        title: what is counted.
        lines: a checkpoint's name, and for each class its accuracy; None for a class without images.
    """

    title: str
    lines: tuple[tuple[str, tuple[float | None, ...]], ...]

    @property
    def many(self) -> bool:
        """Whether there are too many classes to give each a place."""
        return max(len(line) for _, line in self.lines) > CROWD


@dataclass(frozen=True)
class Examples:
    """Images of one cell that were fooled.

    Attributes:
        title: whose, and by what.
        examples: the images.
    """

    title: str
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Cloud:
    """Points of several classes in two dimensions.

    Attributes:
        title: whose features.
        points: where they are.
        labels: the class of each.
        reach: the least and the greatest coordinate of either axis, the same in panels that are compared.
    """

    title: str
    points: tuple[tuple[float, float], ...]
    labels: tuple[int, ...]
    reach: tuple[tuple[float, float], tuple[float, float]]


Panel = Curves | Matrix | Union | Cost | Worth | Training | Classes | Examples | Cloud


@dataclass(frozen=True)
class Figure:
    """One figure, ready to draw.

    Attributes:
        kind: a key of `figures.KINDS` or `gallery.KINDS`, `worth` or `training`.
        title: what it shows, and on which images.
        caption: what a reader must know.
        panels: of one kind.
    """

    kind: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
