"""How far launches are, from results, parts, runs and claims alone; whoever asks, from whatever machine, is told the same.

No torch here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from robench import files, launch, slurm
from robench.claim import STALE, Claims
from robench.errors import StoreError
from robench.launch import Launch, Training, Wanted, spans
from robench.part import gaps
from robench.results import DAMAGE, Result, read

State = Literal["done", "failed", "running", "missing"]


@dataclass(frozen=True)
class Standing:
    """How far a cell or a run is.

    Attributes:
        wanted: which.
        state: whether it is done, failed, worked on, or none of these.
        reached: how far, in words.
        images: of a cell, done.
        holders: who works on it.
        reason: why a run failed.
    """

    wanted: Wanted | Training
    state: State
    reached: str = ""
    images: int = 0
    holders: tuple[str, ...] = ()
    reason: str = ""


class Watch:
    """How far a launch is, asked again and again; what is done is not read twice.

    Args:
        made: the launch.
        root: the folder of results or checkpoints it is in.
    """

    def __init__(self, made: Launch, root: Path) -> None:
        self.made, self.root = made, root
        self._final: dict[str, Standing] = {}
        self._claims = {
            each.key: Claims(Path(each.folder) if isinstance(each, Training) else root / "parts" / each.key)
            for each in made.wanted
        }

    def look(self) -> list[Standing]:
        """Each cell or run, in the order of the launch."""
        found = []
        for each in self.made.wanted:
            standing = self._final.get(each.key) or (
                self._run(each) if isinstance(each, Training) else self._cell(each)
            )
            if ended(standing):
                self._final[each.key] = standing
            found.append(standing)
        return found

    def _cell(self, cell: Wanted) -> Standing:
        path = self.root / "cells" / f"{cell.key}.json"
        if path.is_file() and path.stat().st_mtime_ns != cell.failed:
            if isinstance(read(path), Result):
                return Standing(cell, "done", f"{cell.count:,} of {cell.count:,}", cell.count)
            return Standing(cell, "failed", f"0 of {cell.count:,}")
        left = sum(stop - start for start, stop in gaps(spans(cell.key, self.root), cell.count, cell.count))
        holders, images = self._holders(cell.key), cell.count - left
        return Standing(cell, "running" if holders else "missing", f"{images:,} of {cell.count:,}", images, holders)

    def _run(self, run: Training) -> Standing:
        if trained(run):
            return Standing(run, "done")
        with suppress(OSError, *DAMAGE):
            said = json.loads(launch.failure(self.root, self.made.id, run.key).read_bytes())
            return Standing(run, "failed", reason=str(said["reason"]))
        holders = self._holders(run.key)
        return Standing(run, "running" if holders else "missing", _epoch(run), holders=holders)

    def _holders(self, key: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(each.name for each in self._claims[key].others().values()))


def trained(run: Training) -> bool:
    """Whether a folder holds a run, trained to its end, as `run.finished` says it where there is torch."""
    folder = Path(run.folder)
    if (folder / "state.pt").exists():
        return False
    with suppress(OSError, *DAMAGE):
        made, last = (json.loads((folder / name).read_bytes()) for name in ("run.json", "last.json"))
        return bool(made["identity"] == run.identity and last["stages"] == run.stages)
    return False


def _epoch(run: Training) -> str:
    """The last epoch that the log of a run has; it is written when the state is."""
    with suppress(OSError, *DAMAGE):
        lines = (Path(run.folder) / "metrics.jsonl").read_text().splitlines()
        if lines and json.loads((Path(run.folder) / "run.json").read_bytes())["identity"] == run.identity:
            last = json.loads(lines[-1])
            return f"stage {last['stage'] + 1} of {run.stages}, epoch {last['epoch']}"
    return ""


def ended(standing: Standing) -> bool:
    """Whether nothing more is to be done."""
    return standing.state in ("done", "failed")


def summary(standings: Sequence[Standing]) -> str:
    """How many are in which state, and how many images are done of cells under way."""
    states = [each.state for each in standings]
    told = ", ".join(f"{states.count(state)} {state}" for state in ("done", "running", "missing", "failed"))
    images = sum(each.images for each in standings if not ended(each))
    what = "runs" if standings and isinstance(standings[0].wanted, Training) else "cells"
    return f"{len(states)} {what}: {told}" + (f"; {images:,} images of those under way" if images else "")


def tidy(root: Path, *, dead: bool = False, now: Callable[[], float] = time.time) -> list[Launch]:
    """Take away launches that are of no use any more, with what their processes said.

    Args:
        root: a folder of results or checkpoints.
        dead: those too that are not complete, but at which nobody works and nobody will: no claim, no job in the queue, and
            older than a process needs to begin. Without it only those of which all is done or failed.
        now: the time.

    Returns:
        Which.
    """
    gone = []
    for path in sorted(launch.folder(root).glob("*.json")):
        with suppress(OSError, StoreError):  # another process tidies too; a damaged one is for a person to look at
            made = launch.read_launch(path)
            if _useless(made, root) or (dead and _dead(made, root, now() - path.stat().st_mtime)):
                files.remove(path)
                files.remove_folder(launch.logs(root, made.id))
                gone.append(made)
    for folder in launch.folder(root).glob("*/"):
        if not folder.with_name(f"{folder.name}.json").exists():  # a process that ended late wrote after all
            files.remove_folder(folder)
    files.remove_empty(launch.folder(root))
    return gone


def _useless(made: Launch, root: Path) -> bool:
    return all(map(ended, Watch(made, root).look()))


def _dead(made: Launch, root: Path, age: float) -> bool:
    """Whether nobody works at a launch any more, and nobody will."""
    running = any(each.state == "running" for each in Watch(made, root).look())
    return not running and age > STALE and not slurm.queued(made.scheduled)
