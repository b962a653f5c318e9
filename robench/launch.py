"""A launch: which ranges of which cells were handed out to other processes, and how far they are. No torch here.

It is one file, `launches/<id>.json` beside the folder `cells`. How far it is can be read from results, parts and claims
alone, so whoever asks, from whatever machine and long after the starter has ended, is told the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from robench import files
from robench.claim import Claims
from robench.errors import StoreError, UsageError
from robench.part import Span, gaps
from robench.results import DAMAGE, Result, read
from robench.spec import build

State = Literal["done", "failed", "running", "missing"]


@dataclass(frozen=True)
class Piece:
    """A range of a cell's images: those of the cell with this key, from `start` to the one before `stop`."""

    key: str
    start: int
    stop: int


@dataclass(frozen=True)
class Wanted:
    """A cell that a launch is to complete.

    Attributes:
        key: of the cell.
        label: what to call it.
        checkpoint: what opens its checkpoint; empty for a model from elsewhere, which an option of the command names.
        count: of images.
        passes: image passes an image takes, about.
        size: images in a part; the cell is cut at its multiples only.
        failed: when a failure that was there before was written, in ns; 0 if there was none.
    """

    key: str
    label: str
    checkpoint: str
    count: int
    passes: float
    size: int
    failed: int = 0


@dataclass(frozen=True)
class Launch:
    """What was handed out.

    Attributes:
        id: its name.
        robench: the version that did.
        launcher: `local` or `slurm`.
        cells: all that are wanted.
        tasks: what each process is to run; where several have the same piece, whoever is there first runs it.
        scheduled: what the scheduler calls it; empty where there is none.
    """

    id: str
    robench: str
    launcher: str
    cells: tuple[Wanted, ...]
    tasks: tuple[tuple[Piece, ...], ...]
    scheduled: tuple[str, ...] = ()


@dataclass(frozen=True)
class Standing:
    """How far a cell is: its state, how many images are done, and who works on it."""

    cell: Wanted
    state: State
    images: int
    holders: tuple[str, ...] = ()


def folder(results: Path) -> Path:
    """Where launches are."""
    return results / "launches"


def put(launch: Launch, results: Path) -> Path:
    """Keep a launch, in one step."""
    path = folder(results) / f"{launch.id}.json"
    files.write_json(path, asdict(launch))
    return path


def read_launch(path: Path) -> Launch:
    """The launch in a file.

    Raises:
        StoreError: if it is absent or damaged.
    """
    try:
        found: Launch = build(Launch, json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise StoreError(
            f"{path} is not there: the results folder must be on a disk that all machines share. Choose one with --results"
        ) from None
    except DAMAGE as error:
        raise StoreError(f"{path} is damaged: {error}. Remove it, and run the evaluation again") from None
    return found


def latest(results: Path) -> Launch:
    """The launch that was begun last.

    Raises:
        UsageError: if there is none.
    """
    paths = sorted(folder(results).glob("*.json"))
    if not paths:
        raise UsageError(f"nothing was launched into {results}: robench evaluate --attack pgd-20 --launcher local")
    return read_launch(paths[-1])


def task(text: str) -> tuple[Launch, tuple[Piece, ...]]:
    """What a process is to run, from FILE:NUMBER.

    Raises:
        StoreError: if the file is absent or damaged.
        UsageError: if it has no such task.
    """
    place, _, number = text.rpartition(":")
    found = read_launch(Path(place))
    if not number.isdecimal() or int(number) >= len(found.tasks):
        raise UsageError(f"--task {text}: {place} has the tasks 0 to {len(found.tasks) - 1}")
    return found, found.tasks[int(number)]


def cut(
    cells: Sequence[Wanted], done: Mapping[str, Sequence[Span]], pace: float, least: float
) -> list[tuple[Piece, ...]]:
    """Tasks that last at least as long as asked for: small cells together, large ones by ranges of their images.

    Args:
        cells: what is wanted, those that belong together beside each other.
        done: the ranges of each that are there already, by key.
        pace: image passes a second.
        least: seconds a task should last.
    """
    tasks: list[list[Piece]] = []
    full = math.inf
    for cell in cells:
        image = cell.passes / pace
        step = max(1, math.ceil(least / max(image, 1e-12) / cell.size)) * cell.size
        for start, stop in gaps(done.get(cell.key, ()), cell.count, step):
            if full >= least:
                tasks.append([])
                full = 0.0
            tasks[-1].append(Piece(cell.key, start, stop))
            full += (stop - start) * image
    if len(tasks) > 1 and full < least:
        short = tasks.pop()
        tasks[-1] += short
    return [tuple(each) for each in tasks]


def rotated(pieces: Sequence[Piece], workers: int) -> list[tuple[Piece, ...]]:
    """All pieces for each of some workers that share them, each beginning at another place."""
    if not pieces:
        return []
    starts = [number * len(pieces) // workers for number in range(workers)]
    return [(*pieces[start:], *pieces[:start]) for start in starts]


def within(pieces: Iterable[Piece]) -> dict[str, list[Span]]:
    """The ranges of each cell."""
    found: dict[str, list[Span]] = {}
    for piece in pieces:
        found.setdefault(piece.key, []).append((piece.start, piece.stop))
    return found


def spans(key: str, results: Path) -> list[Span]:
    """The ranges of a cell that have parts, by their names."""
    found = []
    for path in (results / "parts" / key).glob("*.json"):
        start, _, stop = path.stem.partition("-")
        if start.isdecimal() and stop.isdecimal():
            found.append((int(start), int(stop)))
    return sorted(found)


class Watch:
    """How far a launch is, asked again and again; what is done is not read twice.

    Args:
        launch: which.
        results: the folder of results.
    """

    def __init__(self, launch: Launch, results: Path) -> None:
        self.launch, self.results = launch, results
        self._final: dict[str, Standing] = {}
        self._claims = {cell.key: Claims(results / "parts" / cell.key) for cell in launch.cells}

    def look(self) -> list[Standing]:
        """Each cell, in the order of the launch."""
        return [self._final.get(cell.key) or self._standing(cell) for cell in self.launch.cells]

    def missing(self) -> dict[str, list[Span]]:
        """The ranges that are done of each cell that is neither done nor failed."""
        return {each.cell.key: spans(each.cell.key, self.results) for each in self.look() if not ended(each)}

    def _standing(self, cell: Wanted) -> Standing:
        path = self.results / "cells" / f"{cell.key}.json"
        if path.is_file() and path.stat().st_mtime_ns != cell.failed:
            state: State = "done" if isinstance(read(path), Result) else "failed"
            self._final[cell.key] = Standing(cell, state, cell.count if state == "done" else 0)
            return self._final[cell.key]
        left = sum(stop - start for start, stop in gaps(spans(cell.key, self.results), cell.count, cell.count))
        holders = tuple(dict.fromkeys(each.name for each in self._claims[cell.key].others().values()))
        return Standing(cell, "running" if holders else "missing", cell.count - left, holders)


def ended(standing: Standing) -> bool:
    """Whether nothing more is to be done for a cell."""
    return standing.state in ("done", "failed")


def summary(standings: Sequence[Standing]) -> str:
    """How many cells are in which state, and how many images of the others are done."""
    states = [each.state for each in standings]
    told = ", ".join(f"{states.count(state)} {state}" for state in ("done", "running", "missing", "failed"))
    images = sum(each.images for each in standings if not ended(each))
    return f"{len(states)} cells: {told}" + (f"; {images:,} images of those under way" if images else "")


def scheduled(launch: Launch, name: str) -> Launch:
    """The launch with what the scheduler calls a part of it."""
    return replace(launch, scheduled=(*launch.scheduled, name))
