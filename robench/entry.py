"""Which of our results stands beside which published figure: the cells of a suite's table, as data. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from robench import recipe, reporting
from robench.errors import StoreError, UsageError
from robench.publication import published
from robench.recipe import Published, Recipe
from robench.reference import same_attack
from robench.registry import DATASETS
from robench.results import Failure, Result, Subject
from robench.spec import digest
from robench.statistic import Interval, published_difference
from robench.suite import Column, Suite

Load = Callable[[str], Recipe]


@dataclass(frozen=True)
class Entry:
    """One cell of a table: ours and the paper's.

    Attributes:
        row: the checkpoint.
        column: of the suite; None for clean accuracy.
        result: ours; None where not evaluated.
        adaptive: what attacked a smoothed classifier through its augmentations, at the same threat.
        published: the paper's figure.
        withheld: whether ours is left out, since it says nothing without an adaptive attack beside it.
        counted: on how many images the paper's was measured; None where that is not known.
    """

    row: Subject
    column: Column | None
    result: Result | None
    adaptive: tuple[Result, ...] = ()
    published: Published | None = None
    withheld: bool = False
    counted: int | None = None

    @property
    def ours(self) -> tuple[bool, ...] | None:
        """Which images are right."""
        if self.result is None or self.withheld:
            return None
        return self.result.clean if self.column is None else self.result.robust

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's, as fractions."""
        if self.ours is None or self.published is None:
            return None
        return sum(self.ours) / len(self.ours) - self.published.accuracy

    @property
    def ends(self) -> Interval | None:
        """The interval of the difference."""
        if self.ours is None or self.published is None:
            return None
        return published_difference(sum(self.ours), len(self.ours), self.published.accuracy, self.counted)

    @property
    def ranks(self) -> tuple[bool, ...] | None:
        """The bits that may be compared with other rows: not those of a smoothed classifier whose attack looked past it."""
        inference = self.result.cell.inference if self.result and self.column and not self.column.source else None
        return self.ours if inference is None or inference.adaptive else None


@dataclass(frozen=True)
class Comparison:
    """One table: a suite on some images.

    Attributes:
        suite: the columns.
        where: the data set, the digest of the images, how many, and the seed of the attacks.
        entries: row by row, a cell for each column, clean accuracy first where the suite has it.
    """

    suite: Suite
    where: tuple[str, str, int, int]
    entries: tuple[Entry, ...]

    @property
    def columns(self) -> list[Column | None]:
        """The columns; None stands for clean accuracy."""
        return [*([None] if self.suite.clean else []), *self.suite.columns]

    @property
    def rows(self) -> list[tuple[Entry, ...]]:
        """The entries of each row."""
        width = len(self.columns)
        return [self.entries[start : start + width] for start in range(0, len(self.entries), width)]

    @property
    def smoothed(self) -> bool:
        """Whether some row is of a smoothed classifier under white-box attack."""
        return any(entry.adaptive or entry.withheld for entry in self.entries)


def compare(records: Iterable[Result | Failure], suite: Suite, load: Load = recipe.load) -> list[Comparison]:
    """Every cell of a suite's table, one table for each data set, images and seed.

    Args:
        records: results; failures are passed over.
        suite: the columns.
        load: reads a recipe by its name.

    Raises:
        StoreError: if none of the results belongs to the suite.
    """
    results = sorted((r for r in records if isinstance(r, Result)), key=lambda r: r.cell.key)
    known = _Recipes(load)
    made = []
    for where in sorted({reporting.images_of(r) for r in results}, key=str):
        part = [r for r in results if reporting.images_of(r) == where]
        chosen = [r for r in part if any(_fits(each, r, known) for each in suite.columns)]
        if chosen:
            made.append(Comparison(suite, where, tuple(_entries(part, chosen, suite, known))))
    if not made:
        raise StoreError(f"no results of suite {suite.name}: robench evaluate --suite {suite.name}")
    return made


def _entries(part: Sequence[Result], chosen: Sequence[Result], suite: Suite, known: _Recipes) -> list[Entry]:
    """The cells of one table, row by row."""
    alone = reporting.unproven(part)
    rows: dict[str, tuple[Subject, list[Result]]] = {}
    for r in part:
        who = _row(r, suite)
        rows.setdefault(who.sha256, (who, []))[1].append(r)
    wanted = {_row(r, suite).sha256 for r in chosen}
    entries = []
    for who in reporting.ordered(subject for key, (subject, _) in rows.items() if key in wanted):
        own = rows[who.sha256][1]
        if suite.clean:
            figure = published(own[0], None, suite, known)
            entries.append(Entry(who, None, own[0], published=figure, counted=_counted(suite, who)))
        for column in suite.columns:
            found = sorted((r for r in own if _fits(column, r, known)), key=lambda r: _preferred(r, column))
            result = found[0] if found else None
            entries.append(
                Entry(
                    row=who,
                    column=column,
                    result=result,
                    adaptive=tuple(r for r in own if _sees(r) and r.cell.threat == column.threat),
                    published=published(result or own[0], column, suite, known),
                    withheld=result is not None and result in alone,
                    counted=_counted(suite, who),
                )
            )
    return entries


def _counted(suite: Suite, row: Subject) -> int | None:
    """On how many images a suite's figures were measured: on all test images, where the paper says so."""
    base = row.dataset.partition("@")[0]
    if not suite.whole or base not in DATASETS.rows:
        return None
    size = DATASETS.rows[base].facts.get("images", "").rpartition("+")[2].strip().replace(",", "")
    return int(size) if size.isdecimal() else None


class _Recipes:
    """Recipes by name, each file read once; None for one that is gone."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._found: dict[str, Recipe | None] = {}

    def __call__(self, name: str) -> Recipe | None:
        if name not in self._found:
            try:
                self._found[name] = None if name.endswith(".toml") else self._load(name)
            except UsageError:
                self._found[name] = None
        return self._found[name]

    def plays(self, source: Subject, role: str) -> bool:
        """Whether a method alone trained a source; by its recipe's name where the recipe is gone."""
        found = self(source.recipe)
        if found is None:
            return source.recipe == role or source.recipe.startswith(f"{role}-")
        return [stage.method for stage in found.stage] == [role]


def _row(result: Result, suite: Suite) -> Subject:
    """The row of a result: a checkpoint, and how it answers but for what the columns say of that."""
    inference = result.cell.inference
    if inference is None:
        return result.subject
    if not suite.smooths:
        return reporting.apart([result])[0].subject
    rest = replace(inference, draws=1, adaptive=False)
    name = f"{result.subject.name} +{rest.label.replace('-1', '', 1)}"
    return replace(result.subject, name=name, sha256=f"{result.subject.sha256}+{digest(rest)[:16]}")


def _fits(column: Column, result: Result, known: _Recipes) -> bool:
    """Whether a result is of a column: its threat, attack, source and draws."""
    cell = result.cell
    if cell.precision != "float32" or cell.threat != column.threat or not same_attack(column.attack, cell.attack):
        return False
    if column.draws and (cell.inference is None or cell.inference.draws != column.draws):
        return False
    if not column.source:
        return result.source is None
    return result.source is not None and known.plays(result.source, column.source)


def _preferred(result: Result, column: Column) -> tuple[bool, int, int, str]:
    """The order among results of one column: several checkpoints may be the source, and the latest attack counts."""
    source, cell = result.source, result.cell
    return (source is None or source.recipe != column.source, source.seed if source else 0, -cell.version, cell.key)


def _sees(result: Result) -> bool:
    return result.cell.inference is not None and result.cell.inference.adaptive and result.source is None
