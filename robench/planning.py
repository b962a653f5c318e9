"""What an evaluation will cost, before anything is attacked: passes from the attacks' own counts, hours from a short look.

With F and B the most forward and backward passes of an image, and t and g the seconds of a forward pass and of a gradient on top,
measured on a few images of the data set, a cell takes at most

    images the model gets right * (F t + B g)

The share it gets right is that of the same few images. Images that are broken early take less: where half of them fall to the
first attack of an ensemble, about half.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from robench.door import Door, frozen
from robench.evaluation import Engine
from robench.job import Job
from robench.reporting import ABSENT, Table
from robench.results import Result, Store, safe

LOOKED = 64  # images that are timed
REPEATS = 3


@dataclass(frozen=True)
class Pace:
    """What a look at a model showed.

    Attributes:
        forward: seconds of a forward pass of an image.
        gradient: seconds of its gradient on top.
        right: the share of the images it gets right.
    """

    forward: float
    gradient: float
    right: float


def table(engine: Engine, jobs: Sequence[Job], store: Store) -> Table:
    """The cells of some jobs with what each will take at most; nothing is attacked or written."""
    paces: dict[tuple[str, str, str], Pace] = {}
    rows, total = [], 0.0
    for job in jobs:
        if isinstance(store.get(job.cell), Result):
            rows.append(("", safe(job.label), f"{job.cell.count:,}", ABSENT, ABSENT, "there already"))
            continue
        what = job.cell.checkpoint, job.cell.source, f"{type(engine.door(job).model).__name__} {job.cell.precision}"
        if what not in paces:
            paces[what] = pace(engine, job)
        most: Callable[[int], tuple[int, int]] | None = getattr(job.attack, "cost", None)
        if most is None:
            rows.append(("", safe(job.label), f"{job.cell.count:,}", "?", "?", "?"))
            continue
        forwards, backwards = most(job.checkpoint.classes)
        seconds = took(paces[what], job, forwards, backwards)
        total += seconds
        rows.append(("", safe(job.label), f"{job.cell.count:,}", f"{forwards:,}", f"{backwards:,}", _hours(seconds)))
    rows.append(("", "all", "", "", "", _hours(total)))
    head = ("cell", "images", "forward", "backward", "hours")
    notes = (
        "forward, backward: passes of an image at most; hours: if no image is broken early. Often it is half.",
        f"From {LOOKED} images looked at on this device; ?: the attack does not say how many passes it takes.",
    )
    return Table("What will be run, at most", (head,), tuple(rows), notes)


def took(pace: Pace, job: Job, forwards: int, backwards: int) -> float:
    """Seconds a job takes at most; a transfer attacks every image, and what images are right is looked at twice."""
    attacked = job.cell.count * (1.0 if job.source else pace.right)
    return attacked * (forwards * pace.forward + backwards * pace.gradient) + 2 * job.cell.count * pace.forward


def pace(engine: Engine, job: Job) -> Pace:
    """Look at what a job searches on."""
    door, images = engine.door(job), engine.images(job.dataset, job.cell.count)
    x, y = images.x(slice(LOOKED)), images.y[:LOOKED]
    with frozen(door.model):
        with torch.no_grad():
            right = (door(x).argmax(1) == y).float().mean().item()
        both = min(_seconds(door, x, gradient=True) for _ in range(REPEATS)) / len(x)
        forward = min(_seconds(door, x, gradient=False) for _ in range(REPEATS)) / len(x)
    return Pace(forward, max(0.0, both - forward), right)


def _seconds(door: Door, x: torch.Tensor, *, gradient: bool) -> float:
    began = time.perf_counter()
    with torch.set_grad_enabled(gradient):
        leaf = x.detach().requires_grad_(gradient)
        total = door(leaf).sum()
        if gradient and total.requires_grad:
            total = torch.autograd.grad(total, leaf)[0].sum()
    total.item()  # waits for the device
    return time.perf_counter() - began


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.3g}"
