"""What one report was asked to show, as options that make the same report again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from robench.errors import StoreError
from robench.selection import Selection

SPACIOUS = ("markdown", "html", "json")  # formats with room for an interval beside every number
FILTERS = ("dataset", "attack", "threat", "source", "seed")


@dataclass(frozen=True)
class Asked:
    """A report.

    Attributes:
        form: its format.
        table: which.
        selection: of which results.
        intervals: whether intervals stand beside numbers; None as the format usually has them.
        reference: a file of figures that others measured.
        checkpoints: where training runs are, for what is told of them.
        by: whose cost a cost table's Pareto marks are about.
        unit: of that cost.
    """

    form: str
    table: str = "all"
    selection: Selection = field(default_factory=Selection)
    intervals: bool | None = None
    reference: Path | None = None
    checkpoints: Path | None = None
    by: str = "training"
    unit: str = "seconds"

    @property
    def spelled(self) -> bool:
        """Whether intervals are printed."""
        return self.form in SPACIOUS if self.intervals is None else self.intervals

    def options(self, results: Path) -> dict[str, str | None] | None:
        """The report as plain options; None where it depends on more than the folder of results holds."""
        if self.checkpoints:
            return None
        file = None
        if self.reference:
            inside, folder = self.reference.resolve(), results.resolve()
            if not inside.is_relative_to(folder):
                return None
            file = inside.relative_to(folder).as_posix()
        filters = {name: "\n".join(getattr(self.selection, name)) or None for name in FILTERS}
        return {
            "form": self.form,
            "table": self.table,
            "intervals": "yes" if self.spelled else "no",
            "reference": file,
            **({"by": self.by, "unit": self.unit} if self.table == "cost" or self.form == "html" else {}),
            **filters,
        }


def again(options: Mapping[str, str | None], results: Path) -> Asked:
    """The report that plain options describe; the inverse of `Asked.options`.

    Raises:
        StoreError: if they name a file outside the folder of results.
    """
    name = options.get("reference")
    file = results / name if name else None
    if file and not file.resolve().is_relative_to(results.resolve()):
        raise StoreError(f"its reference {name} is outside {results}")
    filters = {name: tuple((options.get(name) or "").splitlines()) for name in FILTERS}
    said = options.get("intervals")
    return Asked(
        options.get("form") or "markdown",
        options.get("table") or "all",
        Selection(**filters),
        None if said is None else said == "yes",
        file,
        by=options.get("by") or "training",
        unit=options.get("unit") or "seconds",
    )
