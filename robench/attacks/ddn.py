"""DDN: decouple the direction of a perturbation, which gradients turn, from its norm, which success shrinks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robench.attacks.fab import shorten
from robench.errors import UsageError
from robench.geometry import norm_of, per_image, steepest
from robench.losses import log_odds
from robench.protocols import Classifier
from robench.threat import Norm, ThreatModel

HALVINGS = 10  # passes of the search at the end
LAST = 0.01  # the length of the last gradient step; the first is 1


@dataclass(frozen=True)
class DDN:
    """Decoupled direction and norm: a small l2 perturbation from plain gradient ascent on a sphere that breathes.

    Each step turns the perturbation along the gradient, then scales it to a radius that shrinks where the last image fooled
    the model and grows where it did not.

    Attributes:
        steps: gradient steps; their length falls from 1 to 0.01 along a half cosine.
        gamma: the share by which the radius changes at each step.
        radius: the first radius.

    Raises:
        UsageError: if the norm is not l2, steps are below 1, gamma is not between 0 and 1, or radius is not positive.

    Source: Rony et al. 2019, "Decoupling direction and norm for efficient gradient-based L2 adversarial attacks and
        defenses", algorithm 1.
    Differs: cross-entropy is climbed as its log-odds, which points the same way and does not vanish on confident models;
        images are not rounded to 256 levels; the radius never exceeds the farthest corner of [0, 1]; the last image is
        looked at too; and 10 halvings then look for the nearest fooling image between the clean one and the one found.
    """

    minimal: ClassVar[bool] = True

    threat: ThreatModel
    steps: int = 100
    gamma: float = 0.05
    radius: float = 1.0

    def __post_init__(self) -> None:
        """Refuse other norms and radii that cannot move."""
        if self.threat.norm is not Norm.L2:
            raise UsageError(f"attack ddn works in l2, not in {self.threat.norm}")
        if self.steps < 1 or not 0 < self.gamma < 1 or not 0 < self.radius < math.inf:
            raise UsageError(
                f"attack ddn: steps ({self.steps}) must be at least 1, gamma ({self.gamma:g}) between 0 and 1, "
                f"and radius ({self.radius:g}) positive"
            )

    def cost(self, classes: int) -> tuple[int, int]:
        """The most forward and backward passes for an image."""
        return 2 + self.steps + HALVINGS, self.steps

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Perturb a batch; no randomness is used."""
        found = x.clone()
        with torch.no_grad():
            right = (model(x).argmax(1) == y).nonzero().squeeze(1)
            if len(right):
                best = self._descend(model, x[right], y[right])
                found[right] = shorten(model, x[right], y[right], best, least=0.0, rounds=HALVINGS)
        return found

    def _descend(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        """The smallest fooling image of each, or the clean one."""
        at, best, size = x, x, torch.full_like(x.flatten(1)[:, 0], torch.inf)
        farthest = norm_of(torch.maximum(x, 1 - x), Norm.L2)
        radius = torch.full_like(size, self.radius)
        for step in range(self.steps):
            logits, gradient = _slope(model, at, y)
            fooled, best, size = _smaller(logits, at, x, y, best, size)
            rate = LAST + (1 - LAST) * (1 + math.cos(math.pi * step / self.steps)) / 2
            delta = at - x + rate * steepest(gradient, at, Norm.L2)
            radius = torch.where(fooled, 1 - self.gamma, 1 + self.gamma).to(x.dtype).mul(radius).minimum(farthest)
            at = (x + per_image(radius, x) * steepest(delta, x, Norm.L2)).clamp(0, 1)
        return _smaller(model(at), at, x, y, best, size)[1]


def _slope(model: Classifier, at: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of the log-odds."""
    with torch.enable_grad():
        leaf = at.detach().requires_grad_()
        logits = model(leaf)
        (gradient,) = torch.autograd.grad(log_odds(logits, y).sum(), leaf)
    return logits.detach(), gradient


def _smaller(
    logits: Tensor, at: Tensor, x: Tensor, y: Tensor, best: Tensor, size: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Which images fool the model, and the smallest perturbations so far with their norms."""
    fooled, length = logits.argmax(1) != y, norm_of(at - x, Norm.L2)
    better = fooled & (length < size)
    return fooled, torch.where(per_image(better, x), at, best), torch.where(better, length, size)
