"""FGSM and PGD, and what are PGD with momentum (MI-FGSM) or over averaged gradients (EoT-PGD)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robench.attacks.ascent import ascend, default_step
from robench.door import Door, fooled
from robench.errors import UsageError
from robench.geometry import per_image, project, random_start
from robench.losses import LOSSES, few_classes, log_odds
from robench.noise import branch, uniform
from robench.protocols import Classifier
from robench.threat import Norm, ThreatModel


@dataclass(frozen=True)
class FGSM:
    """One steepest step of size eps from the clean image.

    Source: Goodfellow et al. 2015, section 4; for l2 and l1 the same step in the other norm.
    """

    confirms: ClassVar[bool] = True  # it never stops

    threat: ThreatModel

    def cost(self, classes: int) -> tuple[int, int]:
        """One forward and one backward pass."""
        return 1, 1

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Perturb a batch; no randomness is used."""
        return ascend(lambda adv: log_odds(model(adv), y), x, x, self.threat, steps=1, step=1.0)


@dataclass(frozen=True)
class PGD:
    """Projected gradient ascent from a random start, with the worst case kept over iterates and restarts.

    In l1 the first half of the steps climbs in a ball three times as large, whose end is projected: the l1 ball is so
    pointed that a climb from inside it soon sits in a corner.

    In l2 a start is at a uniform distance from the clean image: nearly all of a ball's volume lies at its border, from where
    a short climb finds less.

    An image is returned at its latest iterate that fools the model, and at its last iterate if none does. So white-box
    success counts any iterate, and what a transfer sees is (nearly always) the end of the climb. Behind a door that lets
    broken images go (`Door.exits`) they are returned as soon as they fool the model; the last iterate is then left to the judge.

    Attributes:
        steps: steps per restart.
        step: their length as a fraction of eps; None means 2.5 / steps (those in the ball itself), but at least a tenth.
        restarts: starts; an image already fooled is not tried again.
        loss: `ce`, `cw-margin` (Carlini-Wagner) or `dlr`. Cross-entropy is climbed as its log-odds, which points the same
            way and does not vanish on confident models.
        momentum: how much of the direction so far enters the next; MI-FGSM has 1.
        random_start: begin at a random point, or at the clean image.
        draws: forward passes averaged at each point, for models that answer differently each time (EoT).
        short: allow steps that together cannot cross the ball.

    Raises:
        UsageError: if steps, restarts or draws are below 1, momentum is negative, or the steps cannot cross the ball.

    Source: Madry et al. 2018, eq. 2.1 and section 3; for l1, the idea of Croce & Hein 2021, section 4.1 (larger radii
        first), and the steps of Tramer & Boneh 2019; momentum: Dong et al. 2018; draws: Athalye et al. 2018, section 4.2.
    """

    threat: ThreatModel
    steps: int = 20
    step: float | None = None
    restarts: int = 1
    loss: Literal["ce", "cw-margin", "dlr"] = "ce"
    momentum: float = 0.0
    random_start: bool = True
    draws: int = 1
    short: bool = False

    def __post_init__(self) -> None:
        """Refuse budgets that could never reach the border of the ball."""
        if min(self.steps, self.restarts, self.draws) < 1 or not 0 <= self.momentum < math.inf:
            raise UsageError(
                f"attack pgd: steps ({self.steps}), restarts ({self.restarts}) and draws ({self.draws}) must be at least 1, "
                f"and momentum ({self.momentum:g}) not negative"
            )
        if self.restarts > 1 and not self.random_start:
            raise UsageError("attack pgd: restarts from the clean image repeat themselves; use random_start=true")
        if self.step is not None and not (
            0 < self.step < math.inf and (self.short or self.step * self.steps >= 1 - 1e-9)
        ):
            raise UsageError(
                f"attack pgd: {self.steps} steps of {self.step:g} eps cannot cross the ball, so the result would look "
                f"robust for no reason; set step to at least {math.ceil(1e4 / self.steps) / 1e4:g}, or short=true to insist"
            )

    @property
    def randomised(self) -> bool:
        """Whether it is fit for models that answer differently each time."""
        return self.draws > 1

    @property
    def confirms(self) -> bool:
        """Whether what it stops on is confirmed in float32."""
        return self.draws == 1

    def cost(self, classes: int) -> tuple[int, int]:
        """The most forward and backward passes for an image."""
        return (self.steps + 1) * self.restarts * self.draws, self.steps * self.restarts * self.draws

    def notes(self, classes: int) -> tuple[str, ...]:
        """What is reduced for few classes."""
        return few_classes(self.loss, classes)

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Perturb a batch."""
        found = x.clone()
        todo = torch.arange(len(x), device=x.device)
        for restart in range(self.restarts):
            if not len(todo):
                break
            noise = branch(generator, "restart", restart, index=todo)
            final = restart == self.restarts - 1
            found[todo], broken = self._climb(model, x[todo], y[todo], noise, final)
            todo = todo[~broken]
        return found

    def _climb(
        self, model: Classifier, x: Tensor, y: Tensor, noise: torch.Generator, final: bool
    ) -> tuple[Tensor, Tensor]:
        """One restart: the images it ends with, and which of them are known to fool the model."""
        loss = LOSSES[self.loss]
        wide = ThreatModel(Norm.L1, 3 * self.threat.eps) if self.threat.norm is Norm.L1 else self.threat
        before = self.steps // 2 if wide != self.threat else 0
        steps = self.steps - before
        step = self.step if self.step is not None else default_step(steps)

        exits = isinstance(model, Door) and model.exits
        ids = torch.arange(len(x), device=x.device)

        def look(adv: Tensor) -> tuple[Tensor, Tensor]:
            """Logits and loss, as means over the draws."""
            each = [model(adv) for _ in range(self.draws)]
            return torch.stack(each).mean(0), torch.stack([loss(logits, y[ids]) for logits in each]).mean(0)

        adv = random_start(x, wide, noise) if self.random_start else x
        if self.threat.norm is Norm.L2:
            adv = x + per_image(uniform(noise, (len(x),), x.device).to(x.dtype), x) * (adv - x)
        if before:
            adv = ascend(lambda adv: look(adv)[1], x, adv, wide, steps=before, step=step, momentum=self.momentum)
        start = project(adv, x, self.threat)
        kept = start.clone()
        broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)

        def objective(adv: Tensor) -> Tensor:
            logits, value = look(adv)
            now = fooled(model, adv, logits, y[ids])
            kept[ids[now]] = adv.detach()[now]
            broken[ids[now]] = True
            return value

        def stay() -> Tensor | None:
            nonlocal ids
            rows = ~broken[ids]
            if not exits or bool(rows.all()):
                return None
            ids = ids[rows]
            return rows

        last = ascend(objective, x, start, self.threat, steps=steps, step=step, momentum=self.momentum, stay=stay)
        if len(ids) and not (exits and final):
            with torch.no_grad():
                objective(last)
        still = ~broken[ids]
        kept[ids[still]] = last[still]
        return kept, broken
