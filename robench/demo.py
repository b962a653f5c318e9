"""The demo: the main job at smoke size, on digits that ship with scikit-learn, two models at a time."""

from __future__ import annotations

import multiprocessing
import os
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch

from robench import launching, recipe, training, trainings
from robench.checkpoint import Checkpoint, open_checkpoint
from robench.evaluation import Engine
from robench.handing import Order
from robench.job import Job
from robench.launch import Launch, Piece
from robench.protocols import Monitor, Progress, unheard
from robench.results import Store
from robench.run import Run, finished
from robench.sharing import Ran
from robench.signals import listening, terminating
from robench.threat import ThreatModel

# the longest first, so that two lanes end together
RECIPES = ("rocl-digits", "trades-digits", "pgd-at-digits", "simclr-digits", "standard-digits")
SEEN = ThreatModel.parse("linf-0.2")
UNSEEN = tuple(map(ThreatModel.parse, ("linf-0.25", "l2-0.25", "l2-0.5")))
COUNT = 240  # test images
UNSEEN_L1 = tuple(map(ThreatModel.parse, ("l1-1", "l1-2")))
SUMMARY = "five methods on 8x8 scans of digits; smoke-sized, not CIFAR-10"


def run(
    checkpoints: Path,
    results: Path,
    device: torch.device,
    monitor: Monitor,
    order: Order | None = None,
    tell: Callable[[str], None] = unheard,
) -> Iterator[Ran]:
    """Train what is not trained, evaluate what is not evaluated; yields every cell.

    White-box: FGSM, PGD-20 and AutoAttack at the threat the adversarial recipes train against, PGD at a larger linf
    radius and at two l2 and two l1 radii. Black-box: PGD-20 crafted on every model for every other.

    Args:
        checkpoints: where models go.
        results: where results go.
        device: where it computes.
        monitor: told about every step.
        order: how to hand training and then evaluation to other processes; None to do it in lanes here.
        tell: told how far those are.
    """
    if order is None:
        models = _in_lanes(checkpoints, results, device, monitor)
        engine = Engine(device, monitor=monitor)
        yield from engine.run(_jobs(engine, models), Store(results))
        return
    trainings.refuse_failed(trainings.hand_out(_runs(checkpoints, device), checkpoints, order, tell))
    engine = Engine(device, monitor=monitor, tell=tell)
    yield from launching.run(engine, _jobs(engine, _models(checkpoints)), Store(results), order)


def work(
    checkpoints: Path, results: Path, device: torch.device, monitor: Monitor, made: Launch, pieces: Sequence[Piece]
) -> Iterator[Ran]:
    """Train or evaluate what this process was handed; with one thread, as a lane does, so that the bits are a lane's."""
    torch.set_num_threads(1)
    if made.runs:
        with listening() as asked:
            trainings.work(_runs(checkpoints, device), made, pieces, checkpoints, monitor, asked)
        return
    engine = Engine(device, monitor=monitor)
    with terminating():
        yield from launching.work(engine, _jobs(engine, _models(checkpoints)), Store(results), made, pieces)


def _runs(checkpoints: Path, device: torch.device) -> list[Run]:
    return [Run(recipe.load(name), checkpoints / name, device=device) for name in RECIPES]


def _models(checkpoints: Path) -> list[Checkpoint]:
    return [open_checkpoint(str(checkpoints / name), checkpoints) for name in RECIPES]


def _jobs(engine: Engine, models: list[Checkpoint]) -> list[Job]:
    """Every cell."""
    jobs = white_box(engine, models)
    return jobs + engine.plan(models, attacks=["pgd-20"], threats=[SEEN], sources=models, count=COUNT)


def white_box(engine: Engine, models: list[Checkpoint]) -> list[Job]:
    """The white-box cells of some models; PGD has ten restarts in l1, where one says little."""
    jobs = engine.plan(models, attacks=["fgsm", "pgd-20", "autoattack"], threats=[SEEN], count=COUNT)
    jobs += engine.plan(models, attacks=["pgd-20"], threats=UNSEEN, count=COUNT)
    return jobs + engine.plan(models, attacks=["pgd-20x10"], threats=UNSEEN_L1, count=COUNT)


def _in_lanes(checkpoints: Path, results: Path, device: torch.device, monitor: Monitor) -> list[Checkpoint]:
    """Train and attack every recipe, one process a core (one in all on a GPU); results are in the store afterwards."""
    context = multiprocessing.get_context("spawn")
    lanes = min(len(RECIPES), os.cpu_count() or 1) if device.type == "cpu" else 1
    with context.Manager() as manager, ProcessPoolExecutor(lanes, mp_context=context) as pool:
        events: queue.Queue[Progress] = manager.Queue()
        futures: list[Future[None]] = [
            pool.submit(_lane, name, checkpoints, results, str(device), events) for name in RECIPES
        ]
        try:
            while not all(future.done() for future in futures):
                with suppress(queue.Empty):
                    monitor(events.get(timeout=0.2))
            for future in futures:
                future.result()
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()  # files appear whole or not at all, so nothing is half-written
            raise
    return _models(checkpoints)


def _lane(name: str, checkpoints: Path, results: Path, device: str, events: queue.Queue[Progress]) -> None:
    """Train one recipe unless it is trained, and run its white-box cells; in a process of its own with one thread."""
    torch.set_num_threads(1)
    sent = 0.0

    def told(progress: Progress) -> None:
        nonlocal sent
        if progress.done < progress.total and time.monotonic() - sent < 0.2:
            return  # a message between processes costs more than a step of these small networks
        sent = time.monotonic()
        short = name.removesuffix("-digits")
        tasks = {"evaluate": f"attack {short}", "  then linear": f"train {short}: linear"}
        values = {key: value.removeprefix(f"{name}: ") for key, value in progress.values.items()}
        events.put(Progress(tasks.get(progress.task, f"train {short}"), progress.done, progress.total, values))

    run = Run(recipe.load(name), checkpoints / name, device=torch.device(device))
    if not finished(run):
        training.train(run, monitor=told)
    engine = Engine(torch.device(device), monitor=told)
    for _ in engine.run(white_box(engine, [open_checkpoint(str(run.folder), checkpoints)]), Store(results)):
        pass
