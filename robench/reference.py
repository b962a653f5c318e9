"""Figures that others measured, as a TOML file: rows beside ours that are never ranked. No torch here."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robench.errors import UsageError
from robench.files import web_page
from robench.registry import ATTACKS, DATASETS
from robench.spec import build
from robench.statistic import interval
from robench.suite import Column
from robench.threat import ThreatModel

TABLE = "reference"  # what each figure is called in the file: [[reference]]


@dataclass(frozen=True)
class Reference:
    """Figures of one model under one attack, as somebody published them; several may share a row by their name.

    Attributes:
        name: of the row.
        source: who says so, and where.
        dataset: a registered data set.
        clean: clean accuracy, as a fraction.
        robust: robust accuracy, as a fraction.
        attack: what left it, as `--attack` takes it.
        threat: the ball.
        count: on how many test images; None where it is not known.
        note: what else a reader must know.

    Raises:
        UsageError: if there is no source, no figure, or one that cannot be.
    """

    name: str
    source: str
    dataset: str
    clean: float | None = None
    robust: float | None = None
    attack: str = ""
    threat: ThreatModel | None = None
    count: int | None = None
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse what is no figure or of nobody."""
        who = f"{TABLE} {self.name!r}"
        if not self.name.strip() or not self.source.strip():
            raise UsageError(f"{who}: name and source must say something, such as a paper and its table")
        DATASETS.entry(self.dataset)
        if self.clean is None and self.robust is None:
            raise UsageError(f"{who} has no figure: clean, or robust with attack and threat")
        if (self.robust is None) != (self.threat is None) or bool(self.attack) != (self.robust is not None):
            raise UsageError(f'{who}: robust, attack and threat go together, such as "autoattack" and "linf-8/255"')
        for key in ("clean", "robust"):
            value = getattr(self, key)
            if value is not None and not (math.isfinite(value) and 0 <= value <= 1):
                meant = f"; {value:g} per cent is {value / 100:g}" if 1 < value <= 100 else ""
                raise UsageError(f"{who}: {key} ({value:g}) must be a fraction from 0 to 1{meant}")
        if self.count is not None and self.count < 1:
            raise UsageError(f"{who}: count ({self.count}) is the number of test images, at least 1")

    def at(self, column: Column | None, intervals: bool) -> str:
        """What a row shows in a column, None being that of clean accuracy; nothing if that is another attack or threat."""
        if column is None:
            return "" if self.clean is None else self.text(self.clean, intervals)
        fits = self.threat == column.threat and same_attack(column.attack, self.attack)
        if self.robust is None or not fits or column.source or column.draws:
            return ""
        return self.text(self.robust, intervals)

    @property
    def line(self) -> dict[str, object]:
        """The same as a row of CSV."""
        return {
            "group": "not measured here",
            "checkpoint": self.name,
            "column": self.attack or "clean",
            "threat": str(self.threat or ""),
            "published": self.clean if self.robust is None else self.robust,
            "published_count": self.count,
            "published_table": self.source,
            "note": self.note,
        }

    @property
    def said(self) -> str:
        """Where the row comes from, as a note."""
        size = "number of images not known" if self.count is None else f"{self.count:,} test images"
        return f"{self.name}: {self.source}; {size}" + (f"; {self.note}." if self.note else ".")

    def text(self, share: float, intervals: bool) -> str:
        """A figure in per cent, with its interval where that is asked for and the number of images known."""
        shown = f"{100 * share:.2f}"
        if not intervals or self.count is None:
            return shown
        low, high = interval(round(share * self.count), self.count)
        return f"{shown} ({100 * low:.2f}-{100 * high:.2f})"


def same_attack(wanted: str, given: str) -> bool:
    """Whether two texts name the same attack, in whatever order they give its options."""
    if wanted == given:
        return True
    try:
        one, other = ATTACKS.entry(wanted), ATTACKS.entry(given)
    except UsageError:
        return False
    return (one.target, dict(one.options)) == (other.target, dict(other.options))


def load(path: Path) -> tuple[Reference, ...]:
    """Every `[[reference]]` of a file.

    Raises:
        UsageError: if the file cannot be read, has other keys, or contradicts itself.
    """
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--reference {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        page = web_page(path, "figures")
        raise UsageError(
            f"--reference {path}: {page}" if page else f"--reference {path} is not TOML: {error}"
        ) from None
    listed = table.pop(TABLE, [])
    if table or not isinstance(listed, list) or not listed:
        odd = f"it has the key {min(table)!r}" if table else "it has none"
        raise UsageError(f"--reference {path}: it must hold [[{TABLE}]] tables and nothing else, and {odd}")
    made: list[Reference] = []
    for i, each in enumerate(listed):
        if not isinstance(each, dict):
            raise UsageError(f"--reference {path}: {TABLE}.{i} is not a table: write [[{TABLE}]]")
        try:
            made.append(build(Reference, each, f"{TABLE}.{i}"))
        except UsageError as error:
            raise UsageError(f"--reference {path}: {error}") from None
    _consistent(path, made)
    return tuple(made)


def _consistent(path: Path, made: Sequence[Reference]) -> None:
    """Refuse two values for one figure."""
    known: dict[tuple[object, ...], float] = {}
    for each in made:
        for key, value in (("clean", each.clean), (f"{each.attack} {each.threat}", each.robust)):
            if value is not None and known.setdefault((each.name, each.dataset, key), value) != value:
                raise UsageError(
                    f"--reference {path}: {each.name!r} has two values for {key}; give each a name of its own"
                )
