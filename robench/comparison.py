"""Our numbers beside published ones: the table of a suite, from results and recipe files alone. No torch here.

A published figure belongs to a recipe (`[[published]]` of its file) and is found again by what it says of itself: its table,
its attack (`clean`, `PGD-20`, `PGD, steps not stated`, `CW`, `AutoAttack`), its threat, and, anywhere in table, attack or
note, what it was crafted on (`from AT`, `TRADES source`) and whether the classifier was smoothed (`tInf`, `30 draws`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from robench import recipe, reporting
from robench.diagnosis import Diagnosis
from robench.errors import StoreError, UsageError
from robench.recipe import Published, Recipe
from robench.registry import ATTACKS
from robench.rendering.csv import as_csv
from robench.reporting import ABSENT, Doubts, Table, accuracy
from robench.results import Failure, Result, Subject, safe
from robench.spec import digest
from robench.suite import Column, Suite
from robench.threat import ThreatModel, number

Load = Callable[[str], Recipe]

CLOSE = 0.005  # relative; papers print 8/255 as 0.0314 or 0.031
SMOOTHED = re.compile(r"tinf|\btsi\b|smoothed", re.IGNORECASE)
QUALIFIES = re.compile(  # what may follow an attack's name; anything else makes it another one
    r"draws? \d+|\d+ draws?|\d+ steps|steps not stated|(?:from|on) [\w-]+|[\w-]+ (?:source|src)|tinf.*|tsi.*|smoothed.*"
)
ROLES = {"pgd-at": r"pgd-at|(?-i:AT)|adversarial training", "trades": "trades"}  # how papers name the methods


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
    """

    row: Subject
    column: Column | None
    result: Result | None
    adaptive: tuple[Result, ...] = ()
    published: Published | None = None
    withheld: bool = False

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
            entries.append(Entry(who, None, own[0], published=published(own[0], None, suite, known)))
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
                )
            )
    return entries


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
    if cell.precision != "float32" or cell.threat != column.threat or not _same_attack(column.attack, cell.attack):
        return False
    if column.draws and (cell.inference is None or cell.inference.draws != column.draws):
        return False
    if not column.source:
        return result.source is None
    return result.source is not None and known.plays(result.source, column.source)


def _same_attack(wanted: str, given: str) -> bool:
    """Whether two texts name the same attack, in whatever order they give its options."""
    if wanted == given:
        return True
    try:
        one, other = ATTACKS.entry(wanted), ATTACKS.entry(given)
    except UsageError:
        return False
    return (one.target, dict(one.options)) == (other.target, dict(other.options))


def _preferred(result: Result, column: Column) -> tuple[bool, int, int, str]:
    """The order among results of one column: several checkpoints may be the source, and the latest attack counts."""
    source, cell = result.source, result.cell
    return (source is None or source.recipe != column.source, source.seed if source else 0, -cell.version, cell.key)


def _sees(result: Result) -> bool:
    return result.cell.inference is not None and result.cell.inference.adaptive and result.source is None


def published(
    result: Result, column: Column | None, suite: Suite, known: Callable[[str], Recipe | None]
) -> Published | None:
    """The paper's figure for a checkpoint under a column, if its recipe's file has one for its data set.

    Args:
        result: any result of the checkpoint.
        column: of the suite; None for clean accuracy.
        suite: whose tables to look in.
        known: a recipe by its name, or None.
    """
    found = known(result.subject.recipe)
    if found is None or found.dataset != result.subject.dataset:
        return None
    draws = column.draws if column is not None and column.draws else 0
    if not draws and result.cell.inference is not None:
        draws = result.cell.inference.draws
    ranked = []
    known_of = settings(found)
    for position, each in enumerate(found.published):
        place = _place(each, suite)
        near = nearness(each, column)
        if place is not None and near is not None and _smoothed_alike(each, draws) and agrees(each, known_of):
            ranked.append((place, near, position))
    return found.published[min(ranked)[2]] if ranked else None


def for_settings(
    figures: Sequence[Published], column: Column | None, known: Mapping[str, Any], changed: Iterable[str]
) -> Published | None:
    """The figure of an ablation: it names every setting that was changed, and all it names is so.

    Args:
        figures: of the recipe that was changed.
        column: what it was attacked with; None for clean accuracy.
        known: all settings by their names, as `settings` gives them.
        changed: the names of those that were changed.
    """
    ranked = []
    for position, each in enumerate(figures):
        near = nearness(each, column)
        names = said(each, known)
        if near is not None and set(changed) <= names.keys() and agrees(each, known) and _smoothed_alike(each, 0):
            ranked.append((near, -len(names), position))
    return figures[min(ranked)[2]] if ranked else None


def beside(text: str, paper: Published | None, ours: float | None, decimals: int, mark: str = "") -> str:
    """`ours (paper, difference)`, where the two are fractions and the text shows ours."""
    if paper is None:
        return text if ours is None else f"{text} ({ABSENT})"
    gap = "" if ours is None else f", {100 * (ours - paper.accuracy):+.{decimals}f}"
    return f"{text} ({100 * paper.accuracy:.2f}{mark}{gap})"


def _place(each: Published, suite: Suite) -> int | None:
    """How early among a suite's tables a figure's table is; None when it is of another."""
    if not suite.tables:
        return 0
    for position, name in enumerate(suite.tables):
        if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", each.table, re.IGNORECASE):
            return position
    return None


def nearness(each: Published, column: Column | None) -> int | None:
    """0 where a figure says all that a column does; more the less it says; None where it says something else."""
    attack, *more = (part.strip().lower() for part in each.attack.split(","))
    if any(not QUALIFIES.fullmatch(part) for part in more):
        return None
    if column is None:
        return 0 if attack == "clean" and each.threat is None and not _crafted_on(each) else None
    attack = ", ".join((attack, *more))
    if (family := _family(attack)) is None or family != _family(column.attack):
        return None
    if not _crafted_alike(each, column):
        return None
    steps, wanted = _steps(attack), _steps(column.attack)
    if steps is not None and steps != wanted:
        return None
    if each.threat is None:
        return 2
    if not _close(each.threat, column.threat):
        return None
    return 0 if steps is not None or wanted is None else 1


def _family(text: str) -> str | None:
    """Which attack a text means, whatever its settings; the registry's texts and papers' words alike."""
    text = text.lower()
    if "loss=cw" in text or "cw loss" in text or "cw-margin" in text:
        return "pgd on cw"
    for family, pattern in (
        ("autoattack", r"auto-?attack|\baa\b"),
        ("apgd-dlr", r"apgd-dlr"),
        ("apgd-t", r"apgd-t\b"),
        ("apgd-ce", r"apgd|auto-?pgd"),
        ("cw", r"\bcw\b|c&w|carlini"),
        ("eot-pgd", r"\beot\b|adaptive"),
        ("pgd", r"\bpgd"),
    ):
        if re.search(pattern, text):
            return family
    return None


def _steps(text: str) -> int | None:
    """How many steps a text says, if it does: `PGD-20`, `pgd@steps=20`, `20 steps`."""
    found = re.search(r"pgd[- ]?(\d+)|steps=(\d+)|(\d+)[ -]steps?\b", text, re.IGNORECASE)
    return int(next(filter(None, found.groups()))) if found else None


def _crafted_alike(each: Published, column: Column) -> bool:
    """Whether a figure was crafted on what a column is crafted on."""
    roles = _crafted_on(each)
    if not column.source:
        return not roles and not re.search(r"crafted on|black[- ]box", _words(each), re.IGNORECASE)
    return column.source in roles


def _crafted_on(each: Published) -> set[str]:
    """The methods whose models a figure says it was crafted on."""
    return {
        role
        for role, words in ROLES.items()
        if re.search(
            rf"\b(?:from|on|source:?) (?:{words})\b|\b(?:{words}) (?:source|src)\b", _words(each), re.IGNORECASE
        )
    }


def _words(each: Published) -> str:
    """All a figure says of itself."""
    return f"{each.attack}; {each.table}; {each.note}"


def _smoothed_alike(each: Published, draws: int) -> bool:
    """Whether a figure is of a classifier smoothed over so many draws (0: of a plain one)."""
    text = _words(each)
    count = re.search(r"(\d+) draws?\b|\bdraws? (\d+)", text, re.IGNORECASE)
    if not SMOOTHED.search(text) and count is None:
        return draws == 0
    return draws > 0 and (count is None or draws in {int(text) for text in count.groups() if text})


def settings(recipe: Recipe) -> dict[str, Any]:
    """What a figure may say of the recipe that it belongs to: its data set, model, and the settings of its first stage."""
    first = recipe.stage[0]
    known = {"dataset": recipe.dataset, "model": recipe.model, "epochs": first.epochs, "batch": first.batch}
    return {**first.options, **known}


def said(each: Published, known: Iterable[str]) -> dict[str, str]:
    """The settings a figure names beside its table: `regularise 1/16`, `batch 128`, `epoch 50`, `CIFAR-100`, `ResNet-18`."""
    keys = set(known)
    found = {}
    for part in each.table.split(","):
        text = part.strip()
        if match := re.fullmatch(r"epochs? (\d+)|(\d+) epochs", text, re.IGNORECASE):
            found["epochs"] = match[1] or match[2]
        elif re.fullmatch(r"(?:CIFAR|STL)-?\d+", text, re.IGNORECASE):
            found["dataset"] = text.lower().replace("-", "")
        elif re.fullmatch(r"ResNet-?\d+", text, re.IGNORECASE):
            found["model"] = text.lower().replace("-", "")
        elif (match := re.fullmatch(r"(\w+) (\S+)", text)) and match[1] in keys:
            found[match[1]] = match[2]
    return found


def agrees(each: Published, known: Mapping[str, Any]) -> bool:
    """Whether a recipe has the settings a figure names."""
    return all(_equal(text, known[key]) for key, text in said(each, known).items())


def _equal(text: str, value: Any) -> bool:
    try:
        return math.isclose(number(text, ""), number(str(value), ""))
    except UsageError:
        return text.lower() == str(value).lower()


def _close(one: ThreatModel, other: ThreatModel) -> bool:
    return one.norm == other.norm and math.isclose(one.eps, other.eps, rel_tol=CLOSE)


def tables(
    records: Iterable[Result | Failure],
    suite: Suite,
    load: Load = recipe.load,
    diagnoses: Iterable[Diagnosis] = (),
) -> list[Table]:
    """The tables of a suite: ours, the paper's and the difference for each column.

    Args:
        records: results and failures.
        suite: the columns.
        load: reads a recipe by its name.
        diagnoses: of some checkpoints; those that failed are marked.

    Raises:
        StoreError: if none of the results belongs to the suite.
    """
    records = list(records)
    compared = compare(records, suite, load)
    doubted = reporting.doubts([record for record in records if isinstance(record, Result)], diagnoses)
    made = [_table(each, [other.where for other in compared], doubted) for each in compared]
    threats = {column.threat for column in suite.columns}
    lost = [
        each
        for each in records
        if isinstance(each, Failure)
        and each.cell.threat in threats
        and any(_same_attack(column.attack, each.cell.attack) for column in suite.columns)
    ]
    return made + ([reporting.failed(reporting.apart(lost))] if lost else [])


def _table(compared: Comparison, others: Sequence[tuple[str, str, int, int]], doubted: Doubts) -> Table:
    """One table, ready to render."""
    columns = compared.columns
    head = [("", "", "", "", "checkpoint")]
    for column in columns:
        seen = compared.smoothed and column is not None and not column.source
        head += [(*_heads(column), "")] + ([(*_heads(column), "adaptive")] if seen else [])
    marks = _marks(compared.entries)
    rows = []
    for start in range(0, len(compared.entries), len(columns)):
        own = compared.entries[start : start + len(columns)]
        cells = [text for entry in own for text in _cells(entry, marks, compared.smoothed)]
        rows.append((safe(own[0].row.group), reporting.marked(own[0].row, doubted), *cells))
    title = f"{compared.suite.summary}; {reporting.place(compared.where, others)}"
    subjects = [entry.row for entry in compared.entries[:: len(columns)]]
    notes = (*_notes(compared, marks), *reporting.unreliable(subjects, doubted))
    return Table(title, tuple(zip(*head, strict=True)), tuple(rows), notes)


def _heads(column: Column | None) -> tuple[str, str, str, str]:
    """Attack, source, draws and threat as heads above a column."""
    if column is None:
        return "", "", "", "clean"
    source = f"from {column.source}" if column.source else ""
    return column.label, source, f"draws {column.draws}" if column.draws else "", str(column.threat)


def _cells(entry: Entry, marks: Mapping[str, int], smoothed: bool) -> list[str]:
    """`ours (paper, difference)`, and the adaptive number where the table has it."""
    ours, paper = entry.ours, entry.published
    text = ABSENT if ours is None else accuracy([ours])
    mark = f" [{marks[paper.note]}]" if paper is not None and paper.note else ""
    share = None if ours is None else sum(ours) / len(ours)
    text = beside(text, paper, share, 2 if ours is not None and len(ours) >= 1000 else 1, mark)
    cells = [text]
    if smoothed and entry.column is not None and not entry.column.source:
        cells.append(accuracy([r.robust for r in entry.adaptive]) if entry.adaptive else ABSENT)
    return cells


def _marks(entries: Iterable[Entry]) -> dict[str, int]:
    """The notes of published figures, numbered as they come."""
    notes = [entry.published.note for entry in entries if entry.published is not None and entry.published.note]
    return {note: number for number, note in enumerate(dict.fromkeys(notes), 1)}


def _notes(compared: Comparison, marks: Mapping[str, int]) -> list[str]:
    """What a reader of the table must know."""
    suite, entries = compared.suite, compared.entries
    notes = ["Accuracy in per cent: ours (the paper's, ours minus the paper's in points)."]
    notes += [f"[{number}] {safe(note)}." for note, number in marks.items()]
    told = sorted({safe(entry.published.table) for entry in entries if entry.published is not None})
    notes += [f"paper: {'; '.join(told)}."] if told else []
    if told:
        notes.append(
            "Published figures are found by the name of the recipe: a run with changed settings stands beside the figures "
            "of the unchanged one."
        )
    notes.append(f"{ABSENT}: not evaluated, or not published for this recipe.")
    if compared.where[0] != suite.dataset:
        notes.append(f"The paper's table is on {suite.dataset}.")
    notes += suite.notes
    sources = {(e.column.source, e.result.source.name) for e in entries if e.column and e.result and e.result.source}
    notes += [f"from {role}: crafted on {safe(name)}." for role, name in sorted(sources)]
    if compared.smoothed:
        notes.append("adaptive: left right by every attack at that threat that climbs through the augmentations.")
    results = [r for entry in entries for r in (entry.result, *entry.adaptive) if r is not None]
    notes += [safe(text) for text in reporting.smoothing(_once(reporting.apart(results)))]
    return notes


def _once(results: Iterable[Result]) -> list[Result]:
    return list({r.cell.key: r for r in results}.values())


def csv(records: Iterable[Result | Failure], suite: Suite, load: Load = recipe.load) -> str:
    """The same as CSV, a row for each cell, accuracies as fractions.

    Args:
        records: results and failures.
        suite: the columns.
        load: reads a recipe by its name.

    Raises:
        StoreError: if none of the results belongs to the suite.
    """
    import pandas

    rows = [
        {
            "suite": suite.name,
            "dataset": compared.where[0],
            "count": compared.where[2],
            "attack_seed": compared.where[3],
            "group": entry.row.group,
            "checkpoint": entry.row.name,
            "recipe": entry.row.recipe,
            "column": "clean" if entry.column is None else entry.column.label,
            "threat": "" if entry.column is None else str(entry.column.threat),
            "draws": entry.column.draws if entry.column and entry.column.draws else None,
            "source": entry.result.source.name if entry.column and entry.result and entry.result.source else "",
            "ours": None if entry.ours is None else sum(entry.ours) / len(entry.ours),
            "published": entry.published.accuracy if entry.published else None,
            "difference": None if entry.difference is None else round(entry.difference, 6),
            "adaptive": _all_right(entry.adaptive),
            "published_table": entry.published.table if entry.published else "",
            "note": entry.published.note if entry.published else "",
            "cell": entry.result.cell.key if entry.column and entry.result else "",
        }
        for compared in compare(records, suite, load)
        for entry in compared.entries
    ]
    return as_csv(pandas.DataFrame(rows))


def _all_right(results: Sequence[Result]) -> float | None:
    """The share of images right under all results; None without any."""
    bits = list(map(all, zip(*(r.robust for r in results), strict=True)))
    return sum(bits) / len(bits) if bits else None
