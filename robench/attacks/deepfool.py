"""DeepFool: step onto the nearest boundary of the model as a linear function, until it is crossed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robench.attacks.fab import DUAL, nearest_boundary, shorten
from robench.errors import UsageError
from robench.geometry import norm_of, per_image, steepest
from robench.protocols import Classifier
from robench.threat import Norm, ThreatModel

EXTRA = 1e-4  # added to each distance, so that a step is taken even from the boundary itself
HALVINGS = 10  # passes of the search at the end, after which a norm is within 0.1 % of the smallest on its line


@dataclass(frozen=True)
class DeepFool:
    """Steps onto the nearest linearised boundary until the model is fooled, then back towards the clean image.

    Fast, and the perturbation is small rather than smallest.

    Attributes:
        steps: at most; an image that fools the model takes no more.
        overshoot: how much further than the boundary a step goes, as a share of its length.
        candidates: how many wrong classes to look at, the likeliest on the clean image; each costs a backward pass a step.

    Raises:
        UsageError: if the norm is l1, steps or candidates are below 1, or overshoot is negative.

    Source: Moosavi-Dezfooli et al. 2016, "DeepFool: a simple and accurate method to fool deep neural networks", algorithm
        2, and section 3.4 for linf.
    Differs: each step is clipped to [0, 1] and overshoots, where the paper stretches the sum of all steps at the end; and
        10 halvings then look for the nearest fooling image between the clean one and the one found.
    """

    minimal: ClassVar[bool] = True

    threat: ThreatModel
    steps: int = 50
    overshoot: float = 0.02
    candidates: int = 10

    def __post_init__(self) -> None:
        """Refuse l1, empty budgets and steps that fall short."""
        if self.threat.norm is Norm.L1:
            raise UsageError("attack deepfool works in linf and l2, not in l1")
        if min(self.steps, self.candidates) < 1 or not 0 <= self.overshoot < math.inf:
            raise UsageError(
                f"attack deepfool: steps ({self.steps}) and candidates ({self.candidates}) must be at least 1, "
                f"and overshoot ({self.overshoot:g}) not negative"
            )

    def cost(self, classes: int) -> tuple[int, int]:
        """The most forward and backward passes for an image."""
        return 1 + 2 * self.steps + HALVINGS, self.steps * min(self.candidates, classes - 1)

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Perturb a batch; no randomness is used."""
        with torch.no_grad():
            logits = model(x)
            right = (logits.argmax(1) == y).nonzero().squeeze(1)
            others = logits.scatter(1, y[:, None], torch.inf).argsort(dim=1, descending=True, stable=True)[:, 1:]
            far, broken = self._cross(model, x[right], y[right], others[right, : self.candidates])
            found, ids = x.clone(), right[broken]
            if len(ids):
                found[ids] = shorten(model, x[ids], y[ids], far[broken], least=0.0, rounds=HALVINGS)
        return found

    def _cross(self, model: Classifier, x: Tensor, y: Tensor, aims: Tensor) -> tuple[Tensor, Tensor]:
        """Where the steps of each image end, and which of them fool the model."""
        norm, last = self.threat.norm, x.clone()
        todo = torch.arange(len(x), device=x.device)
        for _ in range(self.steps):
            if not len(todo):
                break
            at = last[todo]
            value, gradient = nearest_boundary(model, at, y[todo], aims[todo], norm)
            distance = value.abs() / (norm_of(gradient, DUAL[norm]) + 1e-12)
            length = (1 + self.overshoot) * (distance + EXTRA)
            last[todo] = at = (at + per_image(length, at) * steepest(gradient, at, norm)).clamp(0, 1)
            todo = todo[model(at).argmax(1) == y[todo]]
        broken = torch.ones(len(x), dtype=torch.bool, device=x.device)
        broken[todo] = False
        return last, broken
