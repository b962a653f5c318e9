"""FGSM and PGD."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robench.attacks.ascent import ascend
from robench.errors import UsageError
from robench.geometry import project, random_start
from robench.losses import cross_entropy, dlr, margin
from robench.protocols import Classifier
from robench.threat import Norm, ThreatModel

LOSSES = {"ce": cross_entropy, "margin": margin, "dlr": dlr}


@dataclass(frozen=True)
class FGSM:
    """One steepest step of size eps from the clean image.

    Source: Goodfellow et al. 2015, section 4; for l2 and l1 the same step in the other norm.
    """

    passes: ClassVar[int] = 1

    threat: ThreatModel

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Perturb a batch; no randomness is used."""
        return ascend(lambda adv: cross_entropy(model(adv), y), x, x, self.threat, steps=1, step=1.0)


@dataclass(frozen=True)
class PGD:
    """Projected gradient ascent from a random start, with the worst case kept over iterates and restarts.

    In l1 the first half of the steps climbs in a ball three times as large, whose end is projected: the l1 ball is so
    pointed that a climb from inside it soon sits in a corner.

    An image is returned at its latest iterate that fools the model, and at its last iterate if none does. So white-box
    success counts any iterate, and what a transfer sees is (nearly always) the end of the climb.

    Attributes:
        steps: steps per restart.
        step: their length as a fraction of eps; None means 2.5 / steps (those in the ball itself), but at least a tenth.
        restarts: starts; an image already fooled is not tried again.
        loss: `ce`, `margin` (Carlini-Wagner) or `dlr`. On a very confident model the gradient of `ce` loses the right
            class to float32 rounding; the other two do not.

    Raises:
        UsageError: if steps or restarts are below 1, or the steps together cannot cross the ball.

    Source: Madry et al. 2018, eq. 2.1 and section 3; for l1, the idea of Croce & Hein 2021, section 4.1 (larger radii
        first), and the steps of Tramer & Boneh 2019.
    """

    threat: ThreatModel
    steps: int = 20
    step: float | None = None
    restarts: int = 1
    loss: Literal["ce", "margin", "dlr"] = "ce"

    @property
    def passes(self) -> int:
        """The most forward passes an image can take."""
        return (self.steps + 1) * self.restarts

    def __post_init__(self) -> None:
        """Refuse budgets that could never reach the border of the ball."""
        if self.steps < 1 or self.restarts < 1:
            raise UsageError(f"attack pgd: steps ({self.steps}) and restarts ({self.restarts}) must be at least 1")
        if self.step is not None and not 1 - 1e-9 <= self.step * self.steps < math.inf:
            raise UsageError(
                f"attack pgd: {self.steps} steps of {self.step:g} eps cannot cross the ball, so the result would look "
                f"robust for no reason; set step to at least {math.ceil(1e4 / self.steps) / 1e4:g}"
            )

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Perturb a batch."""
        wide = ThreatModel(Norm.L1, 3 * self.threat.eps) if self.threat.norm is Norm.L1 else self.threat
        best, broken = self._climb(model, x, y, random_start(x, wide, generator), wide)
        for _ in range(self.restarts - 1):
            start = random_start(x, wide, generator)
            todo = (~broken).nonzero().squeeze(1)
            if not len(todo):
                break
            best[todo], broken[todo] = self._climb(model, x[todo], y[todo], start[todo], wide)
        return best

    def _climb(
        self, model: Classifier, x: Tensor, y: Tensor, start: Tensor, wide: ThreatModel
    ) -> tuple[Tensor, Tensor]:
        """One restart: the images it ends with, and which of them fool the model."""
        loss = LOSSES[self.loss]
        before = self.steps // 2 if wide != self.threat else 0
        steps = self.steps - before
        step = self.step if self.step is not None else max(0.1, 2.5 / steps)
        if before:
            start = ascend(lambda adv: loss(model(adv), y), x, start, wide, steps=before, step=step)
        start = project(start, x, self.threat)
        kept = start.clone()
        broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)

        def objective(adv: Tensor) -> Tensor:
            logits = model(adv)
            fooled = logits.detach().argmax(1) != y
            kept[fooled] = adv.detach()[fooled]
            broken.logical_or_(fooled)
            return loss(logits, y)

        last = ascend(objective, x, start, self.threat, steps=steps, step=step)
        with torch.no_grad():
            objective(last)
        return torch.where(broken.view(-1, *[1] * (x.ndim - 1)), kept, last), broken
