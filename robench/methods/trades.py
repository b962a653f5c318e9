"""TRADES: accuracy on clean images, and agreement between a clean image and its neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robench.attacks.ascent import ascend, check_budget
from robench.geometry import project
from robench.losses import kl
from robench.methods.standard import Standard
from robench.models import Nets
from robench.noise import normal
from robench.protocols import Batch, Moment
from robench.twin import attacked


@dataclass(frozen=True)
class TRADES(Standard):
    """Cross-entropy(f(x), y) + beta * KL(f(x) || f(adv)), where adv maximises the second term.

    The clean logits do not change during the attack, so they are computed once. The attack starts a little off the
    clean image, because at the image itself the KL term has no gradient.

    Attributes:
        beta: weight of the second term.
        steps: of the inner maximisation.
        step: their length as a fraction of eps.
        start: deviation of the normal noise the attack starts from, in pixels of [0, 1].

    Source: Zhang et al. 2019, eq. 5 and algorithm 1.
    """

    select = "robust"

    beta: float = 6.0
    steps: int = 10
    step: float = 0.25
    start: float = 0.001

    def __post_init__(self) -> None:
        """Refuse an attack that would not climb."""
        super().__post_init__()
        check_budget(self.steps, self.step)

    def terms(self, nets: Nets, batch: Batch, at: Moment) -> dict[str, Tensor]:
        """`ce` on clean images and `kl`, already times beta."""
        (x,) = batch.views
        start = project(x + self.start * normal(batch.generator, x.shape, x.device), x, at.threat)
        with attacked(nets) as twin:
            with torch.no_grad():
                clean = twin(x)
            adv = ascend(lambda adv: kl(clean, twin(adv)), x, start, at.threat, steps=self.steps, step=self.step)
        logits = nets(x)
        return {
            "ce": self.loss(logits, batch.y),
            "kl": self.beta * kl(logits, nets(adv)).mean(),
        }
