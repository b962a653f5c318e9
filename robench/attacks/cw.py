"""Carlini and Wagner's l2 attack: weigh the size of a perturbation against the margin, and search for the weight."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robench.attacks.fab import shorten
from robench.errors import UsageError
from robench.geometry import norm_of, per_image
from robench.losses import margin
from robench.protocols import Classifier
from robench.threat import Norm, ThreatModel

ADAM = (0.9, 0.999)  # how slowly its averages of gradients and of their squares forget
HALVINGS = 10  # passes of the search at the end
WITHIN = 0.999  # how much of [0, 1] the start may use: at 0 and 1 themselves tanh has no slope to leave by


@dataclass(frozen=True)
class CW:
    """Carlini and Wagner's l2 attack: Adam on `norm^2 + c * (what is left of the margin)`, with a search for c.

    The image is written as (tanh(w) + 1) / 2, which is inside [0, 1] for all w. Where the model is fooled, the next search
    takes a smaller weight c, elsewhere a larger one.

    Attributes:
        searches: values of c tried for each image.
        steps: of Adam for each value.
        rate: its learning rate.
        c: the first value.

    Raises:
        UsageError: if the norm is not l2, searches or steps are below 1, or rate or c is not positive.

    Source: Carlini & Wagner 2017, "Towards evaluating the robustness of neural networks", section 5 and f6 of section
        4.1, with confidence 0; Kingma & Ba 2015, algorithm 1 (Adam).
    Differs: fewer and longer steps than the paper's 9 searches of up to 10,000 steps of 0.01 from c = 0.001; c falls and
        rises by factors (of 10, then to the geometric mean) so that it finds its scale both ways; and 10 halvings at the
        end look for the nearest fooling image between the clean one and the one found.
    """

    minimal: ClassVar[bool] = True

    threat: ThreatModel
    searches: int = 5
    steps: int = 200
    rate: float = 0.05
    c: float = 1.0

    def __post_init__(self) -> None:
        """Refuse other norms and empty budgets."""
        if self.threat.norm is not Norm.L2:
            raise UsageError(f"attack cw works in l2, not in {self.threat.norm}")
        if min(self.searches, self.steps) < 1 or not (0 < self.rate < math.inf and 0 < self.c < math.inf):
            raise UsageError(
                f"attack cw: searches ({self.searches}) and steps ({self.steps}) must be at least 1, "
                f"and rate ({self.rate:g}) and c ({self.c:g}) positive"
            )

    def cost(self, classes: int) -> tuple[int, int]:
        """The most forward and backward passes for an image."""
        return 1 + self.searches * self.steps + HALVINGS, self.searches * self.steps

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Perturb a batch; no randomness is used."""
        found = x.clone()
        with torch.no_grad():
            right = (model(x).argmax(1) == y).nonzero().squeeze(1)
            if len(right):
                best = self._search(model, x[right], y[right])
                found[right] = shorten(model, x[right], y[right], best, least=0.0, rounds=HALVINGS)
        return found

    def _search(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        """The smallest fooling image of each over all weights, or the clean one."""
        best, size = x, torch.full_like(x.flatten(1)[:, 0], torch.inf)
        c, low, high = torch.full_like(size, self.c), torch.zeros_like(size), torch.full_like(size, torch.inf)
        for _ in range(self.searches):
            found, length = self._descend(model, x, y, c)
            fooled, better = length < torch.inf, length < size
            best, size = torch.where(per_image(better, x), found, best), torch.where(better, length, size)
            low, high = torch.where(fooled, low, c), torch.where(fooled, c, high)
            between = torch.where(low > 0, (low * high).sqrt(), high / 10)
            c = torch.where(high < torch.inf, between, 10 * low)
        return best

    def _descend(self, model: Classifier, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """With one weight: the smallest fooling image of each and its norm, infinite where there is none."""
        best, size = x, torch.full_like(c, torch.inf)
        w = torch.atanh(WITHIN * (2 * x - 1))
        mean, square = torch.zeros_like(w), torch.zeros_like(w)
        for step in range(1, self.steps + 1):
            with torch.enable_grad():
                at = (w.requires_grad_().tanh() + 1) / 2
                logits = model(at)
                loss = (at - x).flatten(1).square().sum(1) + c * (-margin(logits, y)).clamp_min(0)
                (gradient,) = torch.autograd.grad(loss.sum(), w)
            at, logits = at.detach(), logits.detach()
            length = norm_of(at - x, Norm.L2)
            better = (logits.argmax(1) != y) & (length < size)
            best, size = torch.where(per_image(better, x), at, best), torch.where(better, length, size)
            mean, square = mean.lerp(gradient, 1 - ADAM[0]), square.lerp(gradient.square(), 1 - ADAM[1])
            first, second = mean / (1 - ADAM[0] ** step), square / (1 - ADAM[1] ** step)
            w = w.detach() - self.rate * first / (second.sqrt() + 1e-8)
        return best, size
