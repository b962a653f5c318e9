"""A launch: which ranges of which cells, or which training runs, were handed out to other processes. No torch here.

It is one file: `launches/<id>.json` among the results where it is cells, among the checkpoints where it is runs. Beside it,
in `launches/<id>/`, is what the processes say.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from robench import files
from robench.errors import StoreError, UsageError
from robench.part import Span, gaps
from robench.results import DAMAGE
from robench.spec import build


@dataclass(frozen=True)
class Piece:
    """A range of a cell's images: those of the cell with this key, from `start` to the one before `stop`; of a run the whole."""

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
class Training:
    """A training run that a launch is to complete.

    Attributes:
        key: a digest of folder and identity.
        label: what to call it.
        folder: of the run, absolute.
        identity: of the run, as its folder has it.
        stages: of its recipe.
    """

    key: str
    label: str
    folder: str
    identity: str
    stages: int


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
        runs: all training runs that are wanted.
    """

    id: str
    robench: str
    launcher: str
    cells: tuple[Wanted, ...]
    tasks: tuple[tuple[Piece, ...], ...]
    scheduled: tuple[str, ...] = ()
    runs: tuple[Training, ...] = ()

    @property
    def wanted(self) -> tuple[Wanted | Training, ...]:
        """All that is to be completed."""
        return (*self.runs, *self.cells)


def folder(root: Path) -> Path:
    """Where launches are, in a folder of results or of checkpoints."""
    return root / "launches"


def logs(root: Path, name: str) -> Path:
    """Where the processes of a launch say what they do."""
    return folder(root) / name


def failure(root: Path, name: str, key: str) -> Path:
    """Where a process of a launch says why a training run failed."""
    return logs(root, name) / f"{key}.failed.json"


def put(launch: Launch, root: Path) -> Path:
    """Keep a launch, in one step."""
    path = folder(root) / f"{launch.id}.json"
    files.write_json(path, asdict(launch))
    return path


def read_launch(path: Path) -> Launch:
    """The launch in a file.

    Raises:
        StoreError: if it is absent or damaged.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise StoreError(
            f"{path} is not there: the folder of results or checkpoints must be on a disk that all machines share. Choose one "
            "with --results or --checkpoints"
        ) from None
    return _read(path, content)


def _read(path: Path, content: bytes) -> Launch:
    try:
        found: Launch = build(Launch, json.loads(content))
    except DAMAGE as error:
        raise StoreError(f"{path} is damaged: {error}. Remove it, and run the command again") from None
    return found


def every(root: Path) -> list[Launch]:
    """All launches that are kept, in the order in which they began.

    Raises:
        StoreError: if one is damaged.
    """
    found = []
    for path in sorted(folder(root).glob("*.json")):
        with suppress(FileNotFoundError):  # another process has tidied it away meanwhile
            found.append(_read(path, path.read_bytes()))
    return found


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


def scheduled(launch: Launch, name: str) -> Launch:
    """The launch with what the scheduler calls a part of it."""
    return replace(launch, scheduled=(*launch.scheduled, name))
