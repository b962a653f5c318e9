"""The ascent loop behind every gradient attack here, in evaluation and inside training alike."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from robench.errors import UsageError
from robench.geometry import project, steepest
from robench.threat import ThreatModel


def check_budget(steps: int, step: float) -> None:
    """Refuse an inner maximisation that would not climb.

    Raises:
        UsageError: if there is no step, or its length is negative or not finite.
    """
    if steps < 1 or not 0 <= step < math.inf:
        raise UsageError(f"steps ({steps}) must be at least 1, and step ({step}) a share of eps that is not negative")


def ascend(
    objective: Callable[[Tensor], Tensor],
    x: Tensor,
    start: Tensor,
    threat: ThreatModel,
    *,
    steps: int,
    step: float,
) -> Tensor:
    """Climb an objective inside a threat: steepest step, then projection, `steps` times.

        adv <- project(adv + step * eps * steepest(gradient of the objective at adv))

    Args:
        objective: maps images (n, ...) to one value per image (n,), or to a sum over images; never to a mean, since
            an l2 or l1 step would not notice but a reader of the value would.
        x: clean images, the centre of the ball.
        start: where to begin, inside the ball and [0, 1].
        threat: the ball.
        steps: how many steps.
        step: the length of a step as a fraction of eps.

    Returns:
        The last iterate, detached. Every earlier iterate has been through the objective; the last has not.
    """
    adv = start.detach()
    for _ in range(steps):
        adv.requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(objective(adv).sum(), adv)
        with torch.no_grad():
            adv = project(adv + step * threat.eps * steepest(gradient, adv, threat.norm), x, threat)
    return adv.detach()
