"""Parts: what an attack did to a range of a cell's images, kept until the cell is whole. No torch here.

A cell is run in ranges of images. What came out of one is an immutable file, `parts/<key of the cell>/<start>-<stop>.json`
beside the folder `cells`, so an interrupted evaluation goes on behind the last range, and ranges from several machines are
put together by copying their files together. Since noise belongs to the image, a result does not depend on how it was cut.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robench import files
from robench.errors import StoreError
from robench.results import DAMAGE, Cell, Result, Subject, pack, plain_record, sealed, unpack, unsealed
from robench.spec import build

FORMAT = 1
Span = tuple[int, int]
Finds = Callable[[Mapping[str, int], int], Iterable[str]]


@dataclass(frozen=True)
class Part:
    """What came out of the images `start` to `stop - 1` of a cell.

    Attributes:
        cell: what was asked.
        subject: the checkpoint under attack.
        source: the checkpoint the images were crafted on; None for white-box.
        start: the first image.
        stop: the one behind the last.
        clean: for each image, whether the model was right about it; likewise robust and norms, as in `Result`.
        robust: whether it was right and stayed right.
        largest: the largest perturbation found inside the threat.
        seconds: of wall time.
        forwards: images passed forward.
        backwards: images whose gradient was computed.
        notes: what a reader should know, the same for every part.
        told: what an attack noted on the way.
        left: how many images each member of an ensemble left unbroken; in a transfer, on the source.
        answers: of a model that answers differently each time, summed over images: passes, those that were right about the
            clean image, and the fewer of those and of the ones right about the other.
        norms: of an attack that looks for the smallest perturbation.
        peak_memory: as in `Result`; likewise joules and provenance.
        joules: energy.
        provenance: versions, device, command.
    """

    cell: Cell
    subject: Subject
    source: Subject | None
    start: int
    stop: int
    clean: tuple[bool, ...]
    robust: tuple[bool, ...]
    largest: float
    seconds: float
    forwards: int
    backwards: int
    notes: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    left: Mapping[str, int] = field(default_factory=dict)
    answers: tuple[int, int, int] | None = None
    norms: tuple[float | None, ...] | None = None
    peak_memory: int | None = None
    joules: float | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def span(self) -> Span:
        """Its range of images."""
        return self.start, self.stop

    @property
    def attacked(self) -> int:
        """How many images were attacked: those the model is right about, in a transfer all."""
        return len(self.clean) if self.source else sum(self.clean)


class Parts:
    """The folder of a cell's parts.

    Args:
        results: the folder of results.
        cell: whose parts.
        tell: told of each damaged file, once.
    """

    def __init__(self, results: Path, cell: Cell, tell: Callable[[str], None] = lambda text: None) -> None:
        self.folder = results / "parts" / cell.key
        self.cell = cell
        self._tell = tell
        self._read: dict[Path, Part] = {}
        self._damaged: set[Path] = set()

    def put(self, part: Part) -> None:
        """Keep a part, in one step; where another process has kept one of these images, it must say the same.

        Raises:
            StoreError: if it cannot be written, or contradicts the one that is there.
        """
        path = self.folder / f"{part.start}-{part.stop}.json"
        table = {**plain_record(part), "clean": pack(part.clean), "robust": pack(part.robust)}
        content = files.json_bytes(sealed(FORMAT, "part", table))
        if not files.write_new(path, content):
            self._replace(path, part, content)
        self._read[path] = part
        self._damaged.discard(path)

    def _replace(self, path: Path, part: Part, content: bytes) -> None:
        """Put a part in the place of one that is damaged; one that is whole stays, if it says the same."""
        try:
            there = read(path)
        except (StoreError, FileNotFoundError):
            files.write(path, content)
            return
        if (there.clean, there.robust) != (part.clean, part.robust):
            raise StoreError(
                f"{path} holds another result for the same images of one cell: {sum(there.robust)} robust there, "
                f"{sum(part.robust)} now. Move the wrong one away, and evaluate again"
            )

    def every(self) -> list[Part]:
        """All parts that can be read, in the order of their images. Damaged ones are told of, and are to be run again.

        Raises:
            StoreError: if two of them contradict each other.
        """
        paths = list(self.folder.glob("*.json"))
        for path in paths:
            if path not in self._read and path not in self._damaged:
                try:
                    self._read[path] = read(path)
                except FileNotFoundError:  # another process has put the cell together meanwhile
                    continue
                except StoreError as error:
                    self._damaged.add(path)
                    self._tell(str(error))
        found = sorted((self._read[path] for path in paths if path in self._read), key=lambda part: part.span)
        if clashes := contradictions((self.folder / f"{part.start}-{part.stop}.json", part) for part in found):
            raise StoreError(f"{clashes[0]}. Move the wrong one away, and evaluate again")
        return found

    def clear(self) -> None:
        """Remove the folder, with whatever a killed process left in it."""
        self._read.clear()
        files.remove_folder(self.folder)

    def drop(self) -> None:
        """Remove all parts: of an attack that broke its contract nothing is believed."""
        self._read.clear()
        for path in self.folder.glob("*.json"):
            files.remove(path)


def read(path: Path) -> Part:
    """The part in a file.

    Raises:
        FileNotFoundError: if there is none.
        StoreError: if it is damaged, or not what its name says.
    """
    try:
        table = unsealed(path)
        if (table.pop("kind"), number := table.pop("format")) != ("part", FORMAT):
            raise ValueError(f"it is no part of format {FORMAT}, but of {number!r}")
        count = table["stop"] - table["start"]
        table["clean"], table["robust"] = unpack(table["clean"], count), unpack(table["robust"], count)
        part = build(Part, table)
        _check(part, path)
    except FileNotFoundError:
        raise
    except DAMAGE as error:
        raise StoreError(f"{path} is damaged: {error}. Its images are to be attacked again") from None
    return part


def _check(part: Part, path: Path) -> None:
    """Refuse a part that cannot be, or that is not what the names of its file and folder say."""
    if not 0 <= part.start < part.stop <= part.cell.count:
        raise ValueError(f"images {part.start} to {part.stop} of {part.cell.count}")
    if (path.stem, path.parent.name) != (f"{part.start}-{part.stop}", part.cell.key):
        raise ValueError(f"it describes the images {part.start}-{part.stop} of the cell {part.cell.key}")
    if part.norms is not None and len(part.norms) != len(part.clean):
        raise ValueError(f"{len(part.norms)} norms for {len(part.clean)} images")
    if any(robust and not clean for clean, robust in zip(part.clean, part.robust, strict=True)):
        raise ValueError("images are robust that were wrong when clean")
    if not 0 <= part.largest < math.inf:
        raise ValueError(f"its largest perturbation is {part.largest}")


def contradictions(parts: Iterable[tuple[Path, Part]]) -> list[str]:
    """Pairs of parts of one cell that say different things of one image, in words."""
    ordered, wrong = sorted(parts, key=lambda pair: pair[1].span), []
    for number, (one, first) in enumerate(ordered):
        for other, second in ordered[number + 1 :]:
            if second.start >= first.stop:
                break
            span = second.start, min(first.stop, second.stop)
            for image in range(*span):
                if _bits(first, image) != _bits(second, image):
                    wrong.append(f"{one} and {other} hold different results for image {image} of one cell")
                    break
    return wrong


def _bits(part: Part, image: int) -> tuple[bool, bool]:
    return part.clean[image - part.start], part.robust[image - part.start]


def cover(parts: Sequence[Part]) -> list[Part]:
    """Parts that do not overlap and together hold the most images, in order."""
    ordered = sorted(parts, key=lambda part: (part.stop, part.start))
    stops = [part.stop for part in ordered]
    best: list[tuple[int, int]] = [(0, -1)]  # images held by the first k parts, and whether the k-th is one of them
    for number, part in enumerate(ordered):
        before = bisect_right(stops, part.start, hi=number)
        held = best[before][0] + part.stop - part.start
        best.append((held, before) if held > best[number][0] else (best[number][0], -1))
    found, number = [], len(ordered)
    while number:
        before = best[number][1]
        if before >= 0:
            found.append(ordered[number - 1])
        number = before if before >= 0 else number - 1
    return found[::-1]


def gaps(spans: Iterable[Span], count: int, size: int) -> Iterator[Span]:
    """The ranges of images that are in none of some ranges, cut at the multiples of `size`."""
    done = 0
    for start, stop in [*sorted(spans), (count, count)]:
        while done < start:
            end = min(start, (done // size + 1) * size)
            yield done, end
            done = end
        done = max(done, stop)


def together(parts: Sequence[Part], finds: Finds = lambda left, attacked: ()) -> Result:
    """The result of a cell from parts that hold each of its images once.

    Args:
        parts: in the order of their images.
        finds: what an attack has to say about all images: from how many each of its members left, and how many there were.

    Raises:
        ValueError: if an image is absent, or there twice.
    """
    first = parts[0]
    if [part.start for part in parts] + [first.cell.count] != [0] + [part.stop for part in parts]:
        raise ValueError(f"{', '.join(f'{a}-{b}' for a, b in (part.span for part in parts))} of {first.cell.count}")
    left: dict[str, int] = {}
    for part in parts:
        for member, count in part.left.items():
            left[member] = left.get(member, 0) + count
    notes = dict.fromkeys(note for part in parts for note in part.notes)
    told = dict.fromkeys(note for part in parts for note in part.told)
    told |= dict.fromkeys(finds(left, sum(part.attacked for part in parts)))
    norms = [norm for part in parts for norm in part.norms or ()]
    peaks = [part.peak_memory for part in parts if part.peak_memory is not None]
    joules = [part.joules for part in parts if part.joules is not None]
    return Result(
        cell=first.cell,
        subject=first.subject,
        source=first.source,
        clean=tuple(bit for part in parts for bit in part.clean),
        robust=tuple(bit for part in parts for bit in part.robust),
        largest=max(part.largest for part in parts),
        norms=tuple(norms) if first.norms is not None else None,
        seconds=round(sum(part.seconds for part in parts), 3),
        peak_memory=max(peaks) if peaks else None,
        joules=sum(joules) if len(joules) == len(parts) else None,
        forwards=sum(part.forwards for part in parts),
        backwards=sum(part.backwards for part in parts),
        left={} if first.source else left,
        notes=(*notes, *_means(parts), *told),
        provenance=_made(parts),
    )


def mean_note(passes: int, clean: float, worst: float) -> str:
    """What is said of a model that answers differently each time, from two shares of right answers."""
    return f"mean over {passes} passes: clean {100 * clean:.1f} %, robust {100 * worst:.1f} %"


def _means(parts: Sequence[Part]) -> list[str]:
    answers = [part.answers for part in parts if part.answers is not None]
    if not answers:
        return []
    passes = answers[0][0]
    every = passes * sum(len(part.clean) for part in parts)
    return [mean_note(passes, sum(each[1] for each in answers) / every, sum(each[2] for each in answers) / every)]


def _made(parts: Sequence[Part]) -> dict[str, Any]:
    """The first part's provenance, with every device and version of robench that took part."""
    made = dict(parts[0].provenance)
    for key in ("device", "robench"):
        if key in made:
            made[key] = " + ".join(dict.fromkeys(str(part.provenance.get(key)) for part in parts))
    return made


def held(parts: Sequence[Part]) -> int:
    """How many images parts hold, each counted once."""
    return len({image for part in parts for image in range(*part.span)})


def unfinished(results: Path) -> tuple[list[list[Part]], list[str]]:
    """The parts of every cell that is not whole yet, and what is damaged or contradictory, in words."""
    found, wrong = [], []
    for folder in sorted((results / "parts").glob("*/")):
        if not re.fullmatch("[0-9a-f]{32}", folder.name) or (results / "cells" / f"{folder.name}.json").is_file():
            continue
        opened = []
        for path in sorted(folder.glob("*.json")):
            try:
                opened.append((path, read(path)))
            except FileNotFoundError:
                continue
            except StoreError as error:
                wrong.append(str(error))
        wrong += contradictions(opened)
        if opened:
            found.append(sorted((part for _, part in opened), key=lambda part: part.span))
    return found, wrong
