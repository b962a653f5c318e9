"""The ascent loop behind every gradient attack here, in evaluation and inside training alike."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from robench.errors import UsageError
from robench.geometry import per_image, project, steepest
from robench.threat import ThreatModel


def check_budget(steps: int, step: float) -> None:
    """Refuse an inner maximisation that would not climb.

    Raises:
        UsageError: if there is no step, or its length is negative or not finite.
    """
    if steps < 1 or not 0 <= step < math.inf:
        raise UsageError(f"steps ({steps}) must be at least 1, and step ({step}) a share of eps that is not negative")


def default_step(steps: int) -> float:
    """The length of a step as a fraction of eps: enough to cross the ball and come back, and at least a tenth."""
    return max(0.1, 2.5 / steps)


def ascend(
    objective: Callable[[Tensor], Tensor],
    x: Tensor,
    start: Tensor,
    threat: ThreatModel,
    *,
    steps: int,
    step: float,
    momentum: float = 0.0,
    stay: Callable[[], Tensor | None] = lambda: None,
) -> Tensor:
    """Climb an objective inside a threat: steepest step, then projection, `steps` times.

        direction <- momentum * direction + gradient of the objective at adv, scaled to a mean size of 1
        adv <- project(adv + step * eps * steepest(direction))

    Args:
        objective: maps images (n, ...) to one value per image (n,), or to a sum over images; never to a mean, since
            an l2 or l1 step would not notice but a reader of the value would.
        x: clean images, the centre of the ball.
        start: where to begin, inside the ball and [0, 1].
        threat: the ball.
        steps: how many steps.
        step: the length of a step as a fraction of eps.
        momentum: how much of the direction so far enters the next.
        stay: asked after each look, gives a mask of the images to go on with, (n,), or None for all; the objective is then
            asked about those alone.

    Returns:
        The last iterate of the images that stayed, detached. Every earlier iterate has been through the objective; the
        last has not.

    Source: Madry et al. 2018, eq. 2.1; with momentum Dong et al. 2018, eq. 6 to 8.
    """
    adv = start.detach()
    direction = torch.zeros_like(adv)
    for _ in range(steps):
        adv.requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(objective(adv).sum(), adv)
        rows = stay()
        if rows is not None:
            adv, x, gradient, direction = adv[rows], x[rows], gradient[rows], direction[rows]
            if not len(adv):
                break
        with torch.no_grad():
            if momentum:
                size = gradient.abs().flatten(1).mean(1).clamp_min(torch.finfo(gradient.dtype).tiny)
                gradient = direction = momentum * direction + gradient / per_image(size, gradient)
            adv = project(adv + step * threat.eps * steepest(gradient, adv, threat.norm), x, threat)
    return adv.detach()
