"""Our numbers beside published ones: the table of a suite, from results and recipe files alone. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from robench import recipe, reporting, seeds
from robench.diagnosis import Diagnosis
from robench.entry import Comparison, Entry, Load, compare
from robench.recipe import Published
from robench.reference import Reference, same_attack
from robench.rendering.csv import as_csv
from robench.reporting import ABSENT, NOT_MEASURED, Doubts, Table, accuracy
from robench.results import Failure, Result, safe
from robench.statistic import Interval, interval
from robench.suite import Column, Suite
from robench.worst import left


def beside(
    text: str, paper: Published | None, ours: float | None, decimals: int, mark: str = "", ends: Interval | None = None
) -> str:
    """`ours (paper, difference)`, where the two are fractions and the text shows ours.

    Args:
        text: ours, as it is shown.
        paper: the published figure.
        ours: as a fraction.
        decimals: of the difference.
        mark: what follows the published figure.
        ends: the interval of the difference, to be shown.
    """
    if paper is None:
        return text if ours is None else f"{text} ({ABSENT})"
    gap = "" if ours is None else f", {100 * (ours - paper.accuracy):+.{decimals}f}"
    if gap and ends:
        gap += f": {100 * ends[0]:+.{decimals}f} to {100 * ends[1]:+.{decimals}f}"
    return f"{text} ({100 * paper.accuracy:.2f}{mark}{gap})"


def tables(
    records: Iterable[Result | Failure],
    suite: Suite,
    load: Load = recipe.load,
    diagnoses: Iterable[Diagnosis] = (),
    intervals: bool = False,
    references: Sequence[Reference] = (),
) -> list[Table]:
    """The tables of a suite: ours, the paper's and the difference for each column.

    Args:
        records: results and failures.
        suite: the columns.
        load: reads a recipe by its name.
        diagnoses: of some checkpoints; those that failed are marked.
        intervals: whether each difference, or ours where there is none, has its interval beside it.
        references: figures that others measured, rows of their own.

    Raises:
        StoreError: if none of the results belongs to the suite.
    """
    records = list(records)
    compared = compare(records, suite, load)
    doubted = reporting.doubts([record for record in records if isinstance(record, Result)], diagnoses)
    others = [other.where for other in compared]
    made = [_table(each, others, doubted, intervals, references) for each in compared]
    threats = {column.threat for column in suite.columns}
    lost = [
        each
        for each in records
        if isinstance(each, Failure)
        and each.cell.threat in threats
        and any(same_attack(column.attack, each.cell.attack) for column in suite.columns)
    ]
    return made + ([reporting.failed(reporting.apart(lost))] if lost else [])


def _table(
    compared: Comparison,
    others: Sequence[tuple[str, str, int, int]],
    doubted: Doubts,
    intervals: bool,
    references: Sequence[Reference],
) -> Table:
    """One table, ready to render."""
    wide = [compared.smoothed and column is not None and not column.source for column in compared.columns]
    head = [("", "", "", "", "checkpoint"), ("", "", "", "", "seeds")]
    for column, adaptive in zip(compared.columns, wide, strict=True):
        head += [(*_heads(column), "")] + ([(*_heads(column), "adaptive")] if adaptive else [])
    places = [3 + place + sum(wide[:place]) for place in range(len(wide))]  # of each column in a row of the table
    subjects = [own[0].row for own in compared.rows]
    grid = [[own[place].ranks for own in compared.rows] for place in range(len(compared.columns))]
    found = reporting.ranked(grid, subjects, doubted)
    rows, bold = _rows(compared, _marks(compared.entries), doubted, intervals, found.wins)
    shown = [entry.ours for entry in compared.entries if entry.ours is not None]
    lines, said = _referred(compared, references, intervals)
    notes = (
        *_notes(compared, _marks(compared.entries), intervals),
        *reporting.caption(shown, found, intervals),
        *said,
        *reporting.unreliable(subjects, doubted),
    )
    title = f"{compared.suite.summary}; {reporting.place(compared.where, others)}"
    set_bold = frozenset((row, places[column]) for row, column in bold)
    return Table(title, tuple(zip(*head, strict=True)), (*rows, *lines), notes, set_bold)


def _rows(
    compared: Comparison,
    marks: Mapping[str, int],
    doubted: Doubts,
    intervals: bool,
    wins: frozenset[tuple[int, int]],
) -> tuple[list[tuple[str, ...]], set[tuple[int, int]]]:
    """The rows, those of several seeds with their mean, and which of their columns are bold."""
    every = compared.rows
    several = seeds.families(own[0].row for own in every)
    rows: list[tuple[str, ...]] = []
    bold: set[tuple[int, int]] = set()
    for i, own in enumerate(every):
        who = own[0].row
        kin = [k for k, other in enumerate(every) if any({who, other[0].row} <= set(each) for each in several)]
        cells = [text for entry in own for text in _cells(entry, marks, compared.smoothed, intervals)]
        bold |= {(len(rows), column) for row, column in wins if row == i}
        rows.append((safe(who.group), reporting.marked(who, doubted), f"seed {who.seed}" if kin else "1 seed", *cells))
        if kin and i == kin[-1]:
            means = [text for column in zip(*(every[k] for k in kin), strict=True) for text in _mean(column, compared)]
            name = reporting.mean_name([every[k][0].row for k in kin], doubted)
            bold |= {(len(rows), p) for p in range(len(own)) if all((k, p) in wins for k in kin)}
            rows.append((safe(who.group), name, f"{len(kin)} seeds", *means))
    return rows, bold


def _mean(column: Sequence[Entry], compared: Comparison) -> list[str]:
    """The mean of one column over training seeds, beside the paper's."""
    found = seeds.over([entry.ours for entry in column])
    text, mean = found if found else (ABSENT, None)
    decimals = 2 if compared.where[2] >= 1000 else 1
    cells = [beside(text, column[0].published, mean, decimals)]
    if compared.smoothed and column[0].column is not None and not column[0].column.source:
        adaptive = [left(r.robust for r in entry.adaptive) if entry.adaptive else None for entry in column]
        average = seeds.over(adaptive)
        cells.append(average[0] if average else ABSENT)
    return cells


def _referred(
    compared: Comparison, references: Sequence[Reference], intervals: bool
) -> tuple[list[tuple[str, ...]], list[str]]:
    """Rows of figures that others measured, and what to say of them."""

    def cells(lines: Sequence[Reference], column: Column | None) -> list[str]:
        found = next((text for each in lines if (text := each.at(column, intervals))), ABSENT)
        return [found, ABSENT] if compared.smoothed and column is not None and not column.source else [found]

    own = [each for each in references if each.dataset == compared.where[0]]
    rows, notes = [], []
    for name in dict.fromkeys(each.name for each in own):
        lines = [each for each in own if each.name == name]
        texts = [text for column in compared.columns for text in cells(lines, column)]
        rows.append((NOT_MEASURED, safe(name), ABSENT, *texts))
        notes += [safe(text) for text in dict.fromkeys(each.said for each in lines)]
    return rows, [*([reporting.REFERRED] if rows else []), *notes]


def _heads(column: Column | None) -> tuple[str, str, str, str]:
    """Attack, source, draws and threat as heads above a column."""
    if column is None:
        return "", "", "", "clean"
    source = f"from {column.source}" if column.source else ""
    return column.label, source, f"draws {column.draws}" if column.draws else "", str(column.threat)


def _cells(entry: Entry, marks: Mapping[str, int], smoothed: bool, intervals: bool) -> list[str]:
    """`ours (paper, difference)`, and the adaptive number where the table has it."""
    ours, paper = entry.ours, entry.published
    text = ABSENT if ours is None else accuracy([ours], intervals and paper is None)
    mark = f" [{marks[paper.note]}]" if paper is not None and paper.note else ""
    share = None if ours is None else sum(ours) / len(ours)
    decimals = 2 if ours is not None and len(ours) >= 1000 else 1
    cells = [beside(text, paper, share, decimals, mark, entry.ends if intervals else None)]
    if smoothed and entry.column is not None and not entry.column.source:
        cells.append(accuracy([r.robust for r in entry.adaptive], intervals) if entry.adaptive else ABSENT)
    return cells


def _marks(entries: Iterable[Entry]) -> dict[str, int]:
    """The notes of published figures, numbered as they come."""
    notes = [entry.published.note for entry in entries if entry.published is not None and entry.published.note]
    return {note: number for number, note in enumerate(dict.fromkeys(notes), 1)}


def _notes(compared: Comparison, marks: Mapping[str, int], intervals: bool) -> list[str]:
    """What a reader of the table must know."""
    suite, entries = compared.suite, compared.entries
    notes = ["Accuracy in per cent: ours (the paper's, ours minus the paper's in points)."]
    notes += _about_differences(entries, intervals)
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


def _about_differences(entries: Sequence[Entry], intervals: bool) -> list[str]:
    """How sure the differences from the paper's figures are."""
    there = [(each, each.ends, each.difference) for each in entries]
    known = [(each, ends, gap) for each, ends, gap in there if ends is not None and gap is not None]
    if not known:
        return []
    sizes = sorted({each.counted for each, _, _ in known if each.counted})
    taken = f"as measured on {sizes[0]:,} separate test images" if sizes else "as exact"
    if intervals:
        return [
            f"a to b: 95 % interval of the difference, which takes the paper's figure {taken} (Newcombe's, or Wilson's)."
        ]
    widest = max(max(gap - low, high - gap) for _, (low, high), gap in known)
    return [
        f"95 % intervals of the differences reach up to {100 * widest:.1f} points to either side; the paper's figures are "
        f"taken {taken}."
    ]


def _once(results: Iterable[Result]) -> list[Result]:
    return list({r.cell.key: r for r in results}.values())


def csv(
    records: Iterable[Result | Failure],
    suite: Suite,
    load: Load = recipe.load,
    references: Sequence[Reference] = (),
) -> str:
    """The same as CSV, a row for each cell, accuracies as fractions.

    Args:
        records: results and failures.
        suite: the columns.
        load: reads a recipe by its name.
        references: figures that others measured, rows with nothing of ours.

    Raises:
        StoreError: if none of the results belongs to the suite.
    """
    import pandas

    compared = compare(records, suite, load)
    rows = [_line(each, entry) for each in compared for entry in each.entries]
    rows += [
        {**base, **each.line}
        for each in references
        for base in [_where(other) for other in compared if other.where[0] == each.dataset]
    ]
    return as_csv(pandas.DataFrame(rows))


def _where(compared: Comparison) -> dict[str, object]:
    dataset, _, count, seed = compared.where
    return {"suite": compared.suite.name, "dataset": dataset, "count": count, "attack_seed": seed}


def _line(compared: Comparison, entry: Entry) -> dict[str, object]:
    """One cell of a table as a row."""
    column, result, ours, paper, ends = entry.column, entry.result, entry.ours, entry.published, entry.ends
    low, high = (None, None) if ours is None else interval(sum(ours), len(ours))
    return {
        **_where(compared),
        "group": entry.row.group,
        "checkpoint": entry.row.name,
        "recipe": entry.row.recipe,
        "training_seed": entry.row.seed,
        "column": "clean" if column is None else column.label,
        "threat": "" if column is None else str(column.threat),
        "draws": column.draws if column and column.draws else None,
        "source": result.source.name if column and result and result.source else "",
        "ours": None if ours is None else sum(ours) / len(ours),
        "low": low,
        "high": high,
        "published": paper.accuracy if paper else None,
        "published_count": entry.counted if paper else None,
        "difference": None if entry.difference is None else round(entry.difference, 6),
        "difference_low": None if ends is None else round(ends[0], 6),
        "difference_high": None if ends is None else round(ends[1], 6),
        "adaptive": _all_right(entry.adaptive),
        "published_table": paper.table if paper else "",
        "note": paper.note if paper else "",
        "cell": result.cell.key if column and result else "",
    }


def _all_right(results: Sequence[Result]) -> float | None:
    """The share of images right under all results; None without any."""
    bits = left(r.robust for r in results)
    return sum(bits) / len(bits) if bits else None
