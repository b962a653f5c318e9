"""Hands what a folder of results lacks to other processes, here or on a Slurm cluster, and watches its files till all is there.

Jobs go out through submitit. Each is the same command again with the number of a task, so it checks what the starter checked,
claims the ranges it runs, and may be killed at any moment. What counts is in the files; the scheduler is asked only whether
anybody is left who might still write some.
"""

from __future__ import annotations

import datetime
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from robench import __version__, exhibits, files, launch, planning, sharing, slurm
from robench.checkpoint import Checkpoint
from robench.errors import RobenchError, UsageError
from robench.evaluation import Engine, labels_of
from robench.job import Job
from robench.launch import Launch, Piece, Wanted, Watch
from robench.results import Result, Store, read
from robench.sharing import Ran

PAUSE = {"local": 0.5, "slurm": 30.0}  # seconds between two looks at the files
GRACE = 10.0  # seconds that workers here have to end when told to
TRIES = 2  # how often what is missing is handed out
FOREVER = 60 * 24 * 365  # minutes a worker here may run

MakeTask = Callable[[Path, int, Sequence[str]], Callable[[], object]]


@dataclass(frozen=True)
class Order:
    """How to hand out.

    Attributes:
        launcher: `local` or `slurm`.
        task: makes what a process runs, from the file of the launch, the number of its task, and the checkpoints it needs.
        jobs: processes at a time; by default one for each GPU here, and no limit on a cluster.
        minutes: that a job on a cluster should last at least.
        settings: of Slurm.
        pause: seconds between looks at the files; by default half a second here and 30 on a cluster.
    """

    launcher: str
    task: MakeTask
    jobs: int | None = None
    minutes: float = 10.0
    settings: Mapping[str, str | int] = field(default_factory=dict)
    pause: float | None = None

    @property
    def workers(self) -> int:
        """How many processes share the work here."""
        return self.jobs or max(1, torch.cuda.device_count())


def run(engine: Engine, jobs: Sequence[Job], store: Store, order: Order) -> Iterator[Ran]:
    """Have other processes run what the store does not hold.

    Yields:
        As `Engine.run`; what nobody completed is absent.

    Raises:
        UsageError: for what cannot be handed out, before anything is.
        RobenchError: at the end, if something is missing though it was handed out twice.
    """
    submitit = imported()
    todo = [job for job in jobs if not isinstance(store.get(job.cell), Result)]
    there = {job.cell.key for job in jobs} - {job.cell.key for job in todo}
    if todo:
        files.check_writable(store.folder)
        check_versions(store)
        for dataset, count in sorted({(job.dataset, job.cell.count) for job in todo}):
            exhibits.put(labels_of(engine.images(dataset, count)), store.folder)
        _hand_out(submitit, engine, todo, store, order)
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


def imported() -> Any:
    """The library that submits.

    Raises:
        UsageError: if it is not installed.
    """
    try:
        import submitit
    except ImportError:
        raise UsageError("--launcher needs submitit, which is not installed: pip install 'robench[cluster]'") from None
    return submitit


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


def wanted(engine: Engine, jobs: Sequence[Job], store: Store) -> tuple[Wanted, ...]:
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
                size=job.size(engine.batch),
                failed=path.stat().st_mtime_ns if path.is_file() else 0,
            )
        )
    return tuple(sorted(found, key=lambda cell: cell.checkpoint))


def _hand_out(submitit: Any, engine: Engine, jobs: Sequence[Job], store: Store, order: Order) -> None:
    """Hand out, watch, and hand out once more what is missing."""
    cells = wanted(engine, jobs, store)
    speed = pace(engine, jobs, store) if order.launcher == "slurm" else 1.0
    for number in range(TRIES):
        done = {cell.key: launch.spans(cell.key, store.folder) for cell in cells}
        if order.launcher == "slurm":
            tasks = launch.cut(cells, done, speed, 60 * order.minutes)
            slurm.check(order.settings, len(tasks))
        else:
            tasks = launch.rotated([Piece(cell.key, 0, cell.count) for cell in cells], order.workers)
        name = f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S.%fZ}-{os.getpid()}"
        made = Launch(name, __version__, order.launcher, cells, tuple(tasks))
        path = launch.put(made, store.folder)
        watch = Watch(made, store.folder)
        with _quitting(_submitted(submitit, made, path, order, engine.tell)) as alive:
            _follow(watch, alive, engine.tell, order.pause or PAUSE[order.launcher])
            until = time.monotonic() + GRACE
            while order.launcher == "local" and alive() and time.monotonic() < until:
                time.sleep(0.1)  # they end by themselves, having seen that all is there
        standings = watch.look()
        if all(each.state == "done" for each in standings):
            files.remove_folder(path.with_suffix(""))  # what processes said on the way
        if all(map(launch.ended, standings)):
            return
        cells = tuple(each.cell for each in standings if not launch.ended(each))
        if number + 1 < TRIES:
            engine.tell(f"{len(cells)} cells are missing and nobody runs them any more: once more, only these")


def _follow(watch: Watch, alive: Callable[[], bool], tell: Callable[[str], None], pause: float) -> None:
    """Look at the files till all is there or nobody is left, and say what changes."""
    said = ""
    while True:
        left = alive()  # asked first: what somebody wrote before ending is seen below
        standings = watch.look()
        text = launch.summary(standings)
        if text != said:
            tell(text)
            said = text
        if all(map(launch.ended, standings)) or not left:
            return
        time.sleep(pause)


@dataclass(frozen=True)
class Submitted:
    """Processes that were started: whether any is left, and how to end them."""

    alive: Callable[[], bool]
    stop: Callable[[], None]


def _submitted(submitit: Any, made: Launch, path: Path, order: Order, tell: Callable[[str], None]) -> Submitted:
    cells = {cell.key: cell for cell in made.cells}
    tasks = [
        order.task(path, number, list(dict.fromkeys(cells[piece.key].checkpoint for piece in pieces)))
        for number, pieces in enumerate(made.tasks)
    ]
    logs = path.with_suffix("")
    if order.launcher == "slurm":
        return _array(submitit, logs, tasks, made, path, order, tell)
    return _workers(submitit, logs, tasks)


def _workers(submitit: Any, logs: Path, tasks: Sequence[Callable[[], object]]) -> Submitted:
    """A process here for each task; with several GPUs, one for each in turn."""
    jobs, gpus = [], torch.cuda.device_count()
    with _no_hangup():
        for number, task in enumerate(tasks):
            executor = submitit.AutoExecutor(folder=logs, cluster="local")
            shown = {"gpus_per_node": 1, "local_visible_gpus": [number % gpus]} if gpus else {}
            executor.update_parameters(timeout_min=FOREVER, **shown)
            jobs.append(executor.submit(task))

    def stop() -> None:
        for job in jobs:
            if not job.done():
                os.kill(int(job.job_id), signal.SIGTERM)  # its controller hands it on
        until = time.monotonic() + GRACE
        while time.monotonic() < until and not all(job.done() for job in jobs):
            time.sleep(0.1)
        for job in jobs:
            job.cancel()

    return Submitted(lambda: not all(job.done() for job in jobs), stop)


def _array(
    submitit: Any,
    logs: Path,
    tasks: Sequence[Callable[[], object]],
    made: Launch,
    path: Path,
    order: Order,
    tell: Callable[[str], None],
) -> Submitted:
    """An array of jobs on a cluster, which outlives the starter."""
    if not slurm.check_shared(path, order.settings):
        tell("no node was free to look at the results folder; each job looks for itself before it computes")
    executor = submitit.AutoExecutor(folder=logs, cluster="slurm")
    parallel = {"slurm_array_parallelism": order.jobs} if order.jobs else {}
    executor.update_parameters(
        **{"slurm_job_name": "robench", "slurm_time": 240, **slurm.parameters(order.settings), **parallel}
    )
    with executor.batch():  # one array
        jobs = [executor.submit(task) for task in tasks]
    name = jobs[0].job_id.partition("_")[0]
    launch.put(launch.scheduled(made, name), path.parent.parent)
    tell(f"submitted {len(tasks)} jobs as {name}; they go on without this process: robench status")
    return Submitted(
        lambda: slurm.queued([name]), lambda: tell(f"the jobs {name} go on: robench status, or scancel {name}")
    )


@contextmanager
def _quitting(submitted: Submitted) -> Iterator[Callable[[], bool]]:
    """Inside, whatever ends this process is handed on."""
    try:
        yield submitted.alive
    except BaseException:
        submitted.stop()
        raise


@contextmanager
def _no_hangup() -> Iterator[None]:
    """What is started inside outlives the terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
