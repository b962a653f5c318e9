"""Hands training runs to other processes, and is what such a process runs.

A process claims a run before it trains it, so none is trained twice at once; a run whose process has ended is taken up by
another where its state was saved. One that fails is not tried again: the launch keeps the reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from robench import data, files, handing, launch, launching, slurm, training
from robench.admission import check_extra, check_stages
from robench.claim import Claims
from robench.data import Images, Split
from robench.errors import RobenchError, StoppedError, UsageError
from robench.handing import Order
from robench.launch import Launch, Piece, Training
from robench.methods import method_for
from robench.protocols import Monitor, Progress
from robench.run import Run, clear, finished, holds
from robench.signals import Asked
from robench.spec import digest
from robench.watch import Standing

PAUSE = 0.5  # seconds between two looks at what others train

Train = Callable[[Run, Monitor, Asked], object]


def trained_here(run: Run, monitor: Monitor, asked: Asked) -> None:
    """Train a run in this process."""
    training.train(run, monitor=monitor, asked=asked)


def wanted(runs: Sequence[Run]) -> list[Training]:
    """What a launch says of each run."""
    return [_wanted(run) for run in runs]


def _wanted(run: Run) -> Training:
    folder = str(run.folder.resolve())
    return Training(digest([folder, run.identity])[:32], run.folder.name, folder, run.identity, len(run.recipe.stage))


def check(runs: Sequence[Run]) -> list[Run]:
    """Refuse what cannot be trained, before anything is handed out.

    Returns:
        The runs that are not trained.

    Raises:
        UsageError: for folders that hold other runs, or stages that cannot be run.
        DataError: if data is absent.
    """
    todo = [run for run in runs if not finished(run)]
    images: dict[str, Images] = {}
    for run in todo:
        methods = [method_for(stage.method, stage.options) for stage in run.recipe.stage]
        check_extra(run, methods)
        name = run.recipe.dataset
        if name not in images:
            images[name] = data.load(name, Split.TRAIN, run.data_root)
        check_stages(run, methods, images[name])
    return todo


def begin_again(runs: Sequence[Run]) -> None:
    """Take away what interrupted processes have left of runs.

    Raises:
        UsageError: if one is finished, or another process is training it.
    """
    for run in runs:
        if finished(run):
            raise UsageError(f"{run.folder} holds this run already, finished: leave --restart away")
        if holds(run):
            with files.lock(run.folder):
                clear(run)


def told(runs: Sequence[Run], order: Order) -> str:
    """What would be handed out, in a sentence.

    Raises:
        UsageError: for what would be refused.
    """
    count = len(check(runs))
    if order.launcher == "slurm":
        slurm.check(order.settings, max(count, 1))
        limit = f", {order.jobs} at a time" if order.jobs else ""
        return f"--launcher slurm would submit one array of {count} jobs, one for each run that is not trained{limit}"
    return f"--launcher local would have {order.workers} processes share the {count} runs that are not trained"


def hand_out(runs: Sequence[Run], root: Path, order: Order, tell: Callable[[str], None]) -> list[Standing]:
    """Have other processes train what is not trained.

    Args:
        runs: what is wanted.
        root: the folder of checkpoints, where the launch is kept.
        order: how.
        tell: told what a person should know.

    Returns:
        How each that was not trained ended.

    Raises:
        UsageError: for what cannot be trained or handed out, before anything is.
        RobenchError: if something is missing though it was handed out twice.
    """
    todo = check(runs)
    if not todo:
        return []
    files.check_writable(root)

    def cut(left: Sequence[Training]) -> list[tuple[Piece, ...]]:
        pieces = [Piece(each.key, 0, 1) for each in left]
        return [(piece,) for piece in pieces] if order.launcher == "slurm" else launch.rotated(pieces, order.workers)

    standings = handing.hand_out(root, order, wanted(todo), cut, tell)
    handing.lost(standings, root)
    return standings


def refuse_failed(standings: Sequence[Standing]) -> None:
    """Refuse to go on where a run failed.

    Raises:
        RobenchError: naming the first, and its reason.
    """
    failed = [each for each in standings if each.state == "failed"]
    if failed:
        raise RobenchError(
            f"{len(failed)} of {len(standings)} runs failed, first {failed[0].wanted.label}: {failed[0].reason}"
        )


def work(
    runs: Sequence[Run],
    made: Launch,
    pieces: Sequence[Piece],
    root: Path,
    monitor: Monitor,
    asked: Asked,
    train: Train = trained_here,
) -> None:
    """Train what this process was handed, waiting at the end for what others train, and taking over what they leave.

    Args:
        runs: all of the command.
        made: the launch.
        pieces: what of it is this process's.
        root: the folder of checkpoints.
        monitor: told about every step.
        asked: by signals.
        train: trains one.

    Raises:
        UsageError: if the launch is of another version, or of runs that are none of these.
        StoppedError: if it was asked to stop.
    """
    launching.check_same(made)
    known = {_wanted(run).key: run for run in runs}
    if absent := [piece.key for piece in pieces if piece.key not in known]:
        raise UsageError(
            f"the run {absent[0]} of the launch is none of this command: folders or recipes have changed since"
        )
    waiting = [piece.key for piece in pieces]
    while waiting:
        later = []
        for key in waiting:
            if asked.stop:
                raise StoppedError("stopped between two runs: the same command goes on", asked.stop)
            why = launch.failure(root, made.id, key)
            if not finished(known[key]) and not why.is_file() and not _tried(known[key], why, monitor, asked, train):
                later.append(key)
        if len(later) == len(waiting):
            time.sleep(PAUSE)
        waiting = later


def _tried(run: Run, why: Path, monitor: Monitor, asked: Asked, train: Train) -> bool:
    """Train a run unless another process does; whether it is trained or has failed."""
    with Claims(run.folder).held(0, 1) as beat:
        if beat is None:
            return False
        if finished(run):
            return True
        beats = beat

        def watched(progress: Progress) -> None:
            beats()
            monitor(progress)

        try:
            train(run, watched, asked)
        except StoppedError:
            raise
        except Exception as error:
            known = isinstance(error, RobenchError)
            files.write_json(why, {"reason": str(error) if known else f"{type(error).__name__}: {error}"})
    return True
