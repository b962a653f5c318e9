"""Hands what a folder of results lacks to other processes, and is what such a process runs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence

from robench import __version__, exhibits, files, handing, launch, planning, sharing, slurm
from robench.checkpoint import Checkpoint
from robench.errors import RobenchError, UsageError
from robench.evaluation import Engine, labels_of
from robench.handing import Order
from robench.job import Job
from robench.launch import Launch, Piece, Wanted
from robench.reporting import Table
from robench.results import Result, Store, read
from robench.sharing import Ran

SHOWN = 20  # jobs that a plan lists one by one

Cut = Callable[[Sequence[Wanted]], list[tuple[Piece, ...]]]


def run(engine: Engine, jobs: Sequence[Job], store: Store, order: Order) -> Iterator[Ran]:
    """Have other processes run what the store does not hold.

    Yields:
        As `Engine.run`; what nobody completed is absent.

    Raises:
        UsageError: for what cannot be handed out, before anything is.
        RobenchError: at the end, if something is missing though it was handed out twice.
    """
    handing.imported()
    todo = [job for job in jobs if not isinstance(store.get(job.cell), Result)]
    there = {job.cell.key for job in jobs} - {job.cell.key for job in todo}
    if todo:
        files.check_writable(store.folder)
        check_versions(store)
        for dataset, count in sorted({(job.dataset, job.cell.count) for job in todo}):
            exhibits.put(labels_of(engine.images(dataset, count)), store.folder)
        speed = pace(engine, todo, store) if order.launcher == "slurm" else 1.0
        handing.hand_out(
            store.folder, order, wanted(todo, store, engine.batch), cutter(store, order, speed), engine.tell
        )
    left = []
    for job in jobs:
        record = sharing.collected(job, store)
        if record is None:
            left.append(job.label)
        else:
            yield job, record, job.cell.key in there
    if left:
        raise RobenchError(
            f"{len(left)} of {len(jobs)} cells are missing, first {left[0]}: their processes ended early; what they said is in "
            f"{launch.folder(store.folder)}. The same command runs only what is missing"
        )


def work(engine: Engine, jobs: Sequence[Job], store: Store, made: Launch, pieces: Sequence[Piece]) -> Iterator[Ran]:
    """Run what this process was handed.

    Raises:
        UsageError: if the launch is of another version, or of cells that are none of the jobs.
    """
    check_same(made)
    within = launch.within(pieces)
    known = {job.cell.key: job for job in jobs}
    if absent := [key for key in within if key not in known]:
        raise UsageError(
            f"the cell {absent[0]} of the launch is none of this command: data or checkpoints have changed since"
        )
    yield from engine.run([known[key] for key in within], store, within)


def check_same(made: Launch) -> None:
    """Refuse a launch of another version.

    Raises:
        UsageError: naming both.
    """
    if made.robench != __version__:
        raise UsageError(
            f"the launch is by robench {made.robench}, and here is {__version__}: install the same version on all machines"
        )


def check_versions(store: Store) -> None:
    """Refuse a folder with results of another version, which its tables would mix.

    Raises:
        UsageError: naming both.
    """
    for path in sorted((store.folder / "cells").glob("*.json")):
        made = str(read(path).provenance.get("robench", __version__))
        others = sorted({each.strip() for each in made.split("+")} - {__version__})
        if others:
            raise UsageError(
                f"{store.folder} holds results of robench {others[0]}, and this is {__version__}: choose another folder with "
                "--results, so that no table mixes them"
            )


def pace(engine: Engine, jobs: Sequence[Job], store: Store) -> float:
    """Image passes a second of one worker: as the results that are there had it, else as a look at a model here has it."""
    kept = [read(path) for path in sorted((store.folder / "cells").glob("*.json"))]
    known = [each.forwards / each.seconds for each in kept if isinstance(each, Result) and each.seconds > 0]
    if known:
        return statistics.median(known)
    seen = planning.pace(engine, jobs[0])
    return 1 / max(seen.forward + seen.gradient, 1e-9)


def wanted(jobs: Sequence[Job], store: Store, batch: int) -> tuple[Wanted, ...]:
    """What a launch says of each job; those of a checkpoint beside each other."""
    found = []
    for job in jobs:
        path = store.path(job.cell)
        found.append(
            Wanted(
                key=job.cell.key,
                label=job.label,
                checkpoint=f"{job.checkpoint.folder}@{job.checkpoint.kind}"
                if isinstance(job.checkpoint, Checkpoint)
                else "",
                count=job.cell.count,
                passes=job.passes,
                size=job.size(batch),
                failed=path.stat().st_mtime_ns if path.is_file() else 0,
            )
        )
    return tuple(sorted(found, key=lambda cell: cell.checkpoint))


def cutter(store: Store, order: Order, speed: float) -> Cut:
    """What makes tasks of cells: jobs of a cluster that last long enough, or the work of processes here, which share all.

    Args:
        store: what is there.
        order: how to hand out.
        speed: image passes a second.
    """

    def cut(cells: Sequence[Wanted]) -> list[tuple[Piece, ...]]:
        if order.launcher == "local":
            return launch.rotated([Piece(cell.key, 0, cell.count) for cell in cells], order.workers)
        done = {cell.key: launch.spans(cell.key, store.folder) for cell in cells}
        return launch.cut(cells, done, speed, 60 * order.minutes)

    return cut


def plan(engine: Engine, jobs: Sequence[Job], store: Store, order: Order) -> Table:
    """What would be handed out, job by job; nothing is submitted or written.

    Raises:
        UsageError: for what would be refused.
    """
    todo = [job for job in jobs if not isinstance(store.get(job.cell), Result)]
    check_versions(store)
    cells = {cell.key: cell for cell in wanted(todo, store, engine.batch)}
    speed = pace(engine, todo, store) if todo else 1.0
    tasks = cutter(store, order, speed)(list(cells.values())) if todo else []
    if order.launcher == "slurm":
        slurm.check(order.settings, len(tasks))
        costs = [_cost(task, cells) for task in tasks]
        settings = ", ".join(f"{key}={value}" for key, value in order.settings.items())
        limit = f", {order.jobs} at a time" if order.jobs else ""
        how = f"one array of {len(tasks):,} jobs{limit}" + (f" ({settings}; time in minutes)" if settings else "")
    else:
        everything = _cost(tasks[0], cells) if tasks else (0, 0, 0.0)
        costs = [everything] if tasks else []
        how = f"{order.workers} processes here that share all of it"
    rows = [("", str(number), *_shown(cost, speed)) for number, cost in enumerate(costs)]
    if order.launcher == "local":
        rows = []
    if len(rows) > SHOWN:
        rows = [*rows[:SHOWN], ("", f"and {len(rows) - SHOWN:,} more", "", "", "", "")]
    images, passes = sum(cost[1] for cost in costs), sum(cost[2] for cost in costs)
    rows.append(("", "all", f"{len(cells):,}", f"{images:,}", f"{passes:,.0f}", f"{passes / speed / 3600:.3g}"))
    notes = (
        f"{how}. Hours of one GPU or process, as jobs are cut: every pass at the pace of one with its gradient, no image broken "
        "early, images that are done left out.",
    )
    if not todo:
        notes = ("All is there already: nothing would be submitted.",)
    return Table(
        f"What --launcher {order.launcher} would hand out",
        (("job", "cells", "images", "passes", "hours"),),
        tuple(rows),
        notes,
    )


def _cost(task: Sequence[Piece], cells: dict[str, Wanted]) -> tuple[int, int, float]:
    """Cells, images and image passes of a task."""
    images = sum(piece.stop - piece.start for piece in task)
    passes = sum((piece.stop - piece.start) * cells[piece.key].passes for piece in task)
    return len({piece.key for piece in task}), images, passes


def _shown(cost: tuple[int, int, float], speed: float) -> tuple[str, str, str, str]:
    cells, images, passes = cost
    return f"{cells:,}", f"{images:,}", f"{passes:,.0f}", f"{passes / speed / 3600:.3g}"
