"""The demo: the main job at smoke size, on digits that ship with scikit-learn, two models at a time."""

from __future__ import annotations

import multiprocessing
import os
import queue
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch

from robench import recipe, training
from robench.checkpoint import Checkpoint, open_checkpoint
from robench.evaluation import Engine
from robench.job import Job
from robench.protocols import Monitor, Progress
from robench.results import Failure, Result, Store
from robench.run import Run, finished
from robench.threat import ThreatModel

# the longest first, so that two lanes end together
RECIPES = ("rocl-digits", "trades-digits", "pgd-at-digits", "simclr-digits", "standard-digits")
SEEN = ThreatModel.parse("linf-0.2")
UNSEEN = tuple(map(ThreatModel.parse, ("linf-0.25", "l2-0.25", "l2-0.5")))
COUNT = 240  # test images
UNSEEN_L1 = tuple(map(ThreatModel.parse, ("l1-1", "l1-2")))
SUMMARY = "five methods on 8x8 scans of digits; smoke-sized, not CIFAR-10"


def run(
    checkpoints: Path, results: Path, device: torch.device, monitor: Monitor
) -> Iterator[tuple[Job, Result | Failure, bool]]:
    """Train what is not trained, evaluate what is not evaluated; yields every cell.

    White-box: FGSM, PGD-20 and AutoAttack at the threat the adversarial recipes train against, PGD at a larger linf
    radius and at two l2 and two l1 radii. Black-box: PGD-20 crafted on every model for every other.
    """
    models = _in_lanes(checkpoints, results, device, monitor)
    engine = Engine(device, monitor=monitor)
    jobs = white_box(engine, models)
    jobs += engine.plan(models, attacks=["pgd-20"], threats=[SEEN], sources=models, count=COUNT)
    yield from engine.run(jobs, Store(results))


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
    return [open_checkpoint(str(checkpoints / name), checkpoints) for name in RECIPES]


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
