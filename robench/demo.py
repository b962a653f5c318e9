"""The demo: the main job at smoke size, on digits that ship with scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from robench import recipe, training
from robench.checkpoint import Checkpoint, open_checkpoint
from robench.evaluation import Engine, Job
from robench.protocols import Monitor, Progress
from robench.results import Failure, Result, Store
from robench.threat import ThreatModel

RECIPES = ("standard-digits", "pgd-at-digits", "trades-digits", "simclr-digits", "rocl-digits")
SEEN = ThreatModel.parse("linf-0.2")
UNSEEN = tuple(map(ThreatModel.parse, ("linf-0.3", "l2-0.5", "l2-1", "l1-2", "l1-4")))
SUMMARY = "five methods on 8x8 scans of digits; a smoke-sized experiment, not CIFAR-10"


def run(
    checkpoints: Path, results: Path, device: torch.device, monitor: Monitor
) -> Iterator[tuple[Job, Result | Failure, bool]]:
    """Train what is not trained, evaluate what is not evaluated; yields every cell.

    White-box: FGSM, PGD-20 and AutoAttack at the threat the adversarial recipes train against, PGD-20 at a larger linf
    radius, two l2 and two l1 radii. Black-box: PGD-20 crafted on every model for every other.
    """
    models = [_trained(name, checkpoints, device, monitor) for name in RECIPES]
    engine = Engine(device, monitor=monitor)
    jobs = engine.plan(models, attacks=["fgsm", "pgd-20", "autoattack"], threats=[SEEN])
    jobs += engine.plan(models, attacks=["pgd-20"], threats=UNSEEN)
    jobs += engine.plan(models, attacks=["pgd-20"], threats=[SEEN], sources=models)
    yield from engine.run(jobs, Store(results))


def _trained(name: str, checkpoints: Path, device: torch.device, monitor: Monitor) -> Checkpoint:
    """The checkpoint of a recipe, trained now unless it is there."""
    wanted = training.Run(recipe.load(name), checkpoints / name, device=device)
    if training.finished(wanted):
        return open_checkpoint(str(wanted.folder), checkpoints)
    resume = (wanted.folder / "run.json").is_file()
    return training.train(wanted, resume=resume, monitor=lambda p: monitor(Progress(f"{name} {p.task}", p.done, p.total, p.values)))
