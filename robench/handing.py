"""Hands work to other processes, here or on a Slurm cluster, and watches files till all is there.

Jobs go out through submitit. Each is the same command again with the number of a task, so it checks what the starter checked,
claims what it runs, and may be killed at any moment. What counts is in the files; the scheduler is asked only whether anybody is
left who might still write some.
"""

from __future__ import annotations

import datetime
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from robench import __version__, files, launch, slurm, watch
from robench.errors import RobenchError, UsageError
from robench.launch import Launch, Piece, Training, Wanted
from robench.watch import Standing, Watch

PAUSE = {"local": 0.5, "slurm": 30.0}  # seconds between two looks at the files
GRACE = 10.0  # seconds that workers here have to end when told to
TRIES = 2  # how often what is missing is handed out
FOREVER = 60 * 24 * 365  # minutes a worker here may run
TIMEOUTS = 1000  # how often a job whose time is up is queued again, where it left off

_STARTED: list[Any] = []  # jobs here, kept till their processes have ended, so that those are reaped

MakeTask = Callable[[Path, int, Sequence[str]], Callable[[], object]]
W = TypeVar("W", Wanted, Training)


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


def hand_out(
    root: Path,
    order: Order,
    wanted: Sequence[W],
    cut: Callable[[Sequence[W]], Sequence[tuple[Piece, ...]]],
    tell: Callable[[str], None],
) -> list[Standing]:
    """Hand out, watch, and hand out once more what is missing.

    Args:
        root: the folder of results or checkpoints.
        order: how.
        wanted: what.
        cut: makes tasks of some of that.
        tell: told what a person should know.

    Returns:
        How far each is in the end.

    Raises:
        UsageError: for what the cluster would refuse, before anything is submitted.
    """
    submitit = imported()
    found: dict[str, Standing] = {}
    left = list(wanted)
    for number in range(TRIES):
        tasks = cut(left)
        if order.launcher == "slurm":
            slurm.check(order.settings, len(tasks))
        watch.tidy(root)
        name = f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S.%fZ}-{os.getpid()}"
        cells = tuple(each for each in left if isinstance(each, Wanted))
        runs = tuple(each for each in left if isinstance(each, Training))
        made = Launch(name, __version__, order.launcher, cells, tuple(tasks), runs=runs)
        looked = Watch(made, root)
        with _quitting(_submitted(submitit, made, root, order, tell)) as alive:
            _follow(looked, alive, tell, order.pause or PAUSE[order.launcher])
            until = time.monotonic() + GRACE
            while order.launcher == "local" and alive() and time.monotonic() < until:
                time.sleep(0.1)  # they end by themselves, having seen that all is there
        standings = looked.look()
        found |= {each.wanted.key: each for each in standings}
        if all(each.state == "done" for each in standings):
            files.remove_folder(launch.logs(root, name))  # what processes said on the way
        missing = {each.wanted.key for each in standings if not watch.ended(each)}
        left = [each for each in left if each.key in missing]
        if not left:
            break
        if number + 1 < TRIES:
            tell(f"{len(left)} {_things(left)} are missing and nobody runs them any more: once more, only these")
    return list(found.values())


def lost(standings: Sequence[Standing], root: Path) -> None:
    """Refuse to go on where something is missing though it was handed out twice.

    Raises:
        RobenchError: naming the first, and where its processes said what happened.
    """
    left = [each.wanted for each in standings if not watch.ended(each)]
    if left:
        raise RobenchError(
            f"{len(left)} of {len(standings)} {_things(left)} are missing, first {left[0].label}: their processes ended early; "
            f"what they said is in {launch.folder(root)}. The same command runs only what is missing"
        )


def _things(wanted: Sequence[Wanted | Training]) -> str:
    return "runs" if isinstance(wanted[0], Training) else "cells"


def _follow(looked: Watch, alive: Callable[[], bool], tell: Callable[[str], None], pause: float) -> None:
    """Look at the files till all is there or nobody is left, and say what changes."""
    said = ""
    while True:
        left = alive()  # asked first: what somebody wrote before ending is seen below
        standings = looked.look()
        text = watch.summary(standings)
        if text != said:
            tell(text)
            said = text
        if all(map(watch.ended, standings)) or not left:
            return
        time.sleep(pause)


@dataclass(frozen=True)
class Submitted:
    """Processes that were started: whether any is left, and how to end them."""

    alive: Callable[[], bool]
    stop: Callable[[], None]


def _submitted(submitit: Any, made: Launch, root: Path, order: Order, tell: Callable[[str], None]) -> Submitted:
    """Keep a launch and start its processes; what was refused leaves nothing behind."""
    path = launch.put(made, root)
    cells = {cell.key: cell.checkpoint for cell in made.cells}
    tasks = [
        order.task(path, number, list(dict.fromkeys(cells[piece.key] for piece in pieces if piece.key in cells)))
        for number, pieces in enumerate(made.tasks)
    ]
    try:
        if order.launcher == "slurm":
            return _array(submitit, tasks, made, root, order, tell)
        return _workers(submitit, launch.logs(root, made.id), tasks)
    except Exception:
        files.remove(path)
        files.remove_folder(launch.logs(root, made.id))
        files.remove_empty(launch.folder(root))
        raise


def _workers(submitit: Any, logs: Path, tasks: Sequence[Callable[[], object]]) -> Submitted:
    """A process here for each task; with several GPUs, one for each in turn."""
    jobs, gpus = [], torch.cuda.device_count()
    with _no_hangup():
        for number, task in enumerate(tasks):
            executor = submitit.AutoExecutor(folder=logs, cluster="local")
            shown = {"gpus_per_node": 1, "local_visible_gpus": [number % gpus]} if gpus else {}
            executor.update_parameters(timeout_min=FOREVER, **shown)
            jobs.append(executor.submit(task))
    _STARTED[:] = [job for job in (*_STARTED, *jobs) if job.get_info()["jobState"] == "RUNNING"]

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
    tasks: Sequence[Callable[[], object]],
    made: Launch,
    root: Path,
    order: Order,
    tell: Callable[[str], None],
) -> Submitted:
    """An array of jobs on a cluster, which outlives the starter."""
    option = "--checkpoints" if made.runs else "--results"
    if not slurm.check_shared(launch.folder(root) / f"{made.id}.json", order.settings, option):
        tell("no node was free to look at the folder; each job looks for itself before it computes")
    executor = submitit.AutoExecutor(folder=launch.logs(root, made.id), cluster="slurm", slurm_max_num_timeout=TIMEOUTS)
    parallel = {"slurm_array_parallelism": order.jobs} if order.jobs else {}
    executor.update_parameters(
        **{"slurm_job_name": "robench", "slurm_time": 240, **slurm.parameters(order.settings), **parallel}
    )
    try:
        with executor.batch():  # one array
            jobs = [executor.submit(task) for task in tasks]
    except submitit.core.utils.FailedJobError as error:
        raise RobenchError(f"Slurm took no job: {' '.join(str(error).split())}") from None
    name = jobs[0].job_id.partition("_")[0]
    launch.put(launch.scheduled(made, name), root)
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
