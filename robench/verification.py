"""Checks on a folder of results: every record, what is missing of the grid, and whether its tables still follow from it.

A table that `robench report --out` writes into the folder of results is listed in `tables.json` there, with the options that
make it, so that anybody can make it again and compare. No torch here.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from robench import diagnosis, exhibits, files
from robench.errors import RobenchError, StoreError
from robench.part import Part, held, unfinished
from robench.reporting import Table, apart, images_of
from robench.results import DAMAGE, FLAG, Failure, Result, asked, column, differences, named, nothing, read, safe
from robench.signs import LOOKS, signs

MANIFEST = "tables.json"
TOLERANCE = 1e-4  # beyond eps, relative: what the rounding of float32 sums may add
OPTIONS = ("form", "table", "dataset", "intervals", "attack", "threat", "source", "seed", "reference", "by", "unit")

Render = Callable[[Sequence[Result | Failure], Mapping[str, str | None]], str]


@dataclass(frozen=True)
class Check:
    """One line of what was looked at.

    Attributes:
        name: what was checked.
        looked: how many things were looked at.
        wrong: what is wrong, in words; makes the whole verification fail.
        said: what a reader should know, and is not wrong.
    """

    name: str
    looked: int
    wrong: tuple[str, ...] = ()
    said: tuple[str, ...] = ()


def verify(folder: Path, checkpoints: Path | None = None) -> tuple[list[Check], list[Result | Failure]]:
    """Look at everything in a folder of results.

    Args:
        folder: of the results.
        checkpoints: where training runs are, to compare their weights with what the records name; None to leave that out.

    Returns:
        The checks, and the records that can be read.

    Raises:
        StoreError: if the folder is empty or absent.
    """
    paths = sorted(folder.glob("cells/**/*.json"))
    if not paths and not unfinished(folder)[0]:
        raise nothing(folder)
    opened, damaged = _opened(paths)
    records = [record for _, record in opened]
    results = [record for record in records if isinstance(record, Result)]
    failures = [record for record in records if isinstance(record, Failure)]
    checks = [
        Check("records: digest, format, key", len(paths), tuple(damaged)),
        Check("numbers agree with each other", len(results), tuple(t for r in results for t in inconsistent(r))),
        Check("one value for each cell", len(opened), tuple(_doubled(opened))),
        Check("failed cells", len(failures), said=tuple(f"{_label(f)}: {f.reason}" for f in failures)),
        Check("flags", len(results), said=tuple(f"{_label(r)}: {FLAG}{flag}" for r in results for flag in r.flags)),
        Check("indicators in the results", len(results), said=tuple(_signs(results))),
        Check("the grid is complete", len(results), said=tuple(absent(results))),
        _unfinished(folder),
        _diagnoses(folder),
        _exhibits(folder, results),
        _leftovers(folder),
    ]
    if checkpoints is not None:
        checks.append(_weights(results, checkpoints))
    return checks, records


def _signs(results: Sequence[Result]) -> list[str]:
    """What the bits of several attacks say of a model, beside the flags."""
    return [
        f"{each.name} at {each.threat}: {row.verdict} {row.id} {row.name}: {row.reason}"
        for each in signs(results)
        for row in each.rows
        if row.verdict in ("fail", "suspect") and row.id not in LOOKS
    ]


def inconsistent(result: Result) -> list[str]:
    """What in a result cannot be, in words."""
    cell, wrong = result.cell, []
    if risen := sum(robust and not clean for clean, robust in zip(result.clean, result.robust, strict=True)):
        wrong.append(f"{risen} images are robust that were wrong when clean")
    if {len(result.clean), len(result.robust)} != {cell.count}:
        wrong.append(f"{len(result.clean)} clean and {len(result.robust)} robust bits for {cell.count} images")
    if not 0 <= result.largest <= cell.threat.eps * (1 + TOLERANCE) + 1e-6:
        wrong.append(f"its largest perturbation is {result.largest:.6g}, and eps is {cell.threat.eps:.6g}")
    if min(result.forwards, result.backwards, result.seconds) < 0:
        wrong.append("it has a negative cost")
    if result.subject.sha256 != cell.checkpoint:
        wrong.append("its subject is not the checkpoint of its cell")
    if (result.source.sha256 if result.source else "") != cell.source:
        wrong.append("its source is not that of its cell")
    for place, norm in enumerate(result.norms or ()):
        if norm is not None and (norm < 0 or (norm == 0 and result.clean[place])):
            wrong.append(f"image {place} is right when clean and has the smallest perturbation {norm:g}")
            break
    return [f"{_label(result)}: {text}" for text in wrong]


def absent(results: Sequence[Result]) -> list[str]:
    """The cells that a full grid would have: every checkpoint under every column that any was attacked by.

    A grid holds one set of images and one seed; a model does not attack itself by transfer.
    """
    found = []
    every = apart(results)
    for images in sorted({images_of(result) for result in every}, key=str):
        part = [result for result in every if images_of(result) == images]
        subjects = {r.cell.checkpoint: r.subject for r in part}
        columns = {(r.cell.attack, str(r.cell.threat), r.cell.source): r for r in part}
        there = {(r.cell.checkpoint, r.cell.attack, str(r.cell.threat), r.cell.source) for r in part}
        for (sha256, subject), (what, one) in itertools.product(subjects.items(), columns.items()):
            if (sha256, *what) not in there and not (what[2] and sha256.partition("+")[0] in what[2]):
                via = f" from {one.source.name}" if one.source else ""
                found.append(f"{subject.dataset}: {subject.name}{via}: {column(one.cell.attack, one.cell.threat)}")
    return sorted(found)


def remember(folder: Path, out: Path, options: Mapping[str, str | None]) -> None:
    """List a table in the folder's manifest, if it was written there."""
    if not out.resolve().is_relative_to(folder.resolve()):
        return
    name = out.resolve().relative_to(folder.resolve()).as_posix()
    files.write_json(folder / MANIFEST, {**_manifest(folder), name: dict(options)})


def rederive(folder: Path, records: Sequence[Result | Failure], render: Render) -> Check:
    """Make every listed table again and compare it with its file, byte for byte."""
    try:
        listed = _manifest(folder)
    except StoreError as error:
        return Check("tables follow from the records", 0, (str(error),))
    wrong = [
        text for name, options in sorted(listed.items()) if (text := _differs(folder, name, options, records, render))
    ]
    known = {(folder / name).resolve() for name in listed}
    tables = [path for kind in ("md", "csv") for path in folder.glob(f"**/*.{kind}") if path.name != "README.md"]
    said = [
        f"{path.relative_to(folder)} is not listed in {MANIFEST}, so nothing says how it was made"
        for path in sorted(tables)
        if path.resolve() not in known
    ]
    return Check("tables follow from the records", len(listed), tuple(wrong), tuple(said))


def _differs(
    folder: Path, name: str, options: Mapping[str, str | None], records: Sequence[Result | Failure], render: Render
) -> str:
    """How a table's file differs from what the records give; nothing if it does not."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        return f"{MANIFEST} names {name}, which is outside {folder}"
    try:
        there = path.read_bytes()
        made = render(records, options).encode()
    except (OSError, RobenchError) as error:
        return f"{name}: {error}"
    if there == made:
        return ""
    pairs = itertools.zip_longest(there.splitlines(keepends=True), made.splitlines(keepends=True))
    number, (ours, theirs) = next((i, pair) for i, pair in enumerate(pairs, 1) if pair[0] != pair[1])
    return f"{name}, line {number}: the file says {_line(ours)}, the records give {_line(theirs)}"


def _line(content: bytes | None) -> str:
    return "nothing" if content is None else repr(content.decode(errors="replace").rstrip("\n")[:200])


def _manifest(folder: Path) -> dict[str, dict[str, str | None]]:
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
        for name, options in found.items():
            texts = all(value is None or isinstance(value, str) for value in options.values())
            if not texts or not {"form", "table"} <= set(options) <= set(OPTIONS):  # earlier versions had fewer
                raise ValueError(f"{name} needs options of {', '.join(OPTIONS)}")
    except DAMAGE as error:
        raise StoreError(
            f"{path} is damaged: {error}. Delete it and write the tables again: robench report --out"
        ) from None
    return dict(found)


def _opened(paths: Iterable[Path]) -> tuple[list[tuple[Path, Result | Failure]], list[str]]:
    opened, damaged = [], []
    for path in paths:
        try:
            opened.append((path, read(path)))
        except StoreError as error:
            damaged.append(str(error))
    return opened, damaged


def _doubled(opened: Iterable[tuple[Path, Result | Failure]]) -> list[str]:
    """Cells with different values in several files, as copying stores into sub-folders of one can leave them."""
    first: dict[str, tuple[Path, Result]] = {}
    wrong = []
    for path, record in opened:
        if not isinstance(record, Result):
            continue
        other, there = first.setdefault(record.cell.key, (path, record))
        if said := differences(there, record):
            wrong.append(f"{other} and {path} hold different results for one cell: {said}")
    return wrong


def _unfinished(folder: Path) -> Check:
    """Cells of which only some images were attacked: what was interrupted, or runs now."""
    cells, wrong = unfinished(folder)
    said = tuple(
        f"{_label(parts[0])}: {held(parts):,} of {parts[0].cell.count:,} images; the same robench evaluate goes on"
        for parts in cells
    )
    return Check("no unfinished cells", len(cells), tuple(wrong), said)


def _diagnoses(folder: Path) -> Check:
    """What `robench diagnose` stored there: whether it can be read, and what it found."""
    try:
        found = diagnosis.records(folder)
    except StoreError as error:
        return Check("diagnoses", 0, (str(error),))
    said = tuple(f"{each.name} at {each.threat}: {', '.join(each.failed)} failed" for each in found if each.failed)
    return Check("diagnoses", len(found), said=said)


def _exhibits(folder: Path, results: Sequence[Result]) -> Check:
    """Labels, pictures, features and costs of training beside the cells: whether they can be read, and fit some cell."""
    try:
        found = exhibits.load(folder)
    except StoreError as error:
        return Check("what lies beside the cells", 0, (str(error),))
    counts = {r.cell.data: r.cell.count for r in results}
    cells = {r.cell.key: r for r in results}
    wrong = [
        f"{each.dataset}: {len(each.each)} labels for the {counts[each.data]} images {each.data[:8]}"
        for each in found.labels
        if counts.get(each.data, len(each.each)) != len(each.each)
    ]
    for each in found.pictures:
        if (cell := cells.get(each.cell)) is not None:
            numbers = [e.number for e in each.examples if e.number >= cell.cell.count or not cell.clean[e.number]]
            numbers += [e.number for e in each.examples if e.number < cell.cell.count and cell.robust[e.number]]
            wrong += [f"pictures of {each.cell}: image {number} is not broken there" for number in numbers]
    said = [f"pictures of {each.cell}, which is not here" for each in found.pictures if each.cell not in cells]
    looked = len(found.labels) + len(found.pictures) + len(found.embeddings) + len(found.training)
    return Check("what lies beside the cells", looked, tuple(wrong), tuple(said))


def _leftovers(folder: Path) -> Check:
    """Temporary files of a process that was killed while it wrote, or that writes now."""
    found = sorted(folder.glob("**/.writing-*"))
    said = tuple(f"{path}: delete it, if no other robench is writing" for path in found)
    return Check("no left-over temporary files", len(found), said=said)


def _weights(results: Sequence[Result], root: Path) -> Check:
    """Whether the weights that records name are those in the folders at hand, and have the digest their JSON says."""
    wrong, there = [], set()
    paths = sorted(path for kind in ("best", "last") for path in root.glob(f"*/{kind}.json"))
    for path in paths:
        try:
            said = json.loads(path.read_bytes())["sha256"]
            content = files.read_vouched(path.with_suffix(".safetensors"), said)
            found = said if content else hashlib.sha256(path.with_suffix(".safetensors").read_bytes()).hexdigest()
        except DAMAGE as error:
            wrong.append(f"{path}: {error}")
            continue
        there.add(found)
        if said != found:
            wrong.append(f"{path.with_suffix('.safetensors')} is damaged: its SHA-256 is not the one in {path.name}")
    names = {r.subject.sha256: r.subject.name for r in results}
    gone = tuple(f"{name}: its weights are not in {root}" for sha, name in sorted(names.items()) if sha not in there)
    return Check("weights of checkpoints", len(paths), tuple(wrong), gone)


def tables(checks: Sequence[Check]) -> list[Table]:
    """The checks as a table; below it, one line for each thing found."""
    rows = tuple(
        (
            "",
            check.name,
            str(check.looked),
            "WRONG" if check.wrong else "ok",
            str(len(check.wrong)),
            str(len(check.said)),
        )
        for check in checks
    )
    notes = [f"WRONG {check.name}: {safe(text)}" for check in checks for text in check.wrong]
    notes += [f"{check.name}: {safe(text)}" for check in checks for text in check.said]
    return [Table("Verification", (("check", "looked at", "", "wrong", "to know"),), rows, tuple(notes))]


def _label(record: Result | Failure | Part) -> str:
    via = f" from {record.source.name}" if record.source else ""
    who = named(record.subject, record.cell.inference)
    return f"{record.cell.key[:8]} {who}{via}: {asked(record.cell)}"
