"""PGD adversarial training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from robench.attacks.ascent import ascend, check_budget
from robench.geometry import random_start
from robench.losses import cross_entropy
from robench.methods.standard import Standard
from robench.models import Nets
from robench.protocols import Batch, Moment
from robench.twin import attacked


@dataclass(frozen=True)
class PGDAT(Standard):
    """Cross-entropy on images that PGD made as wrong as it could: min over weights of max over the ball.

    Attributes:
        steps: of the inner maximisation.
        step: their length as a fraction of eps.
        attack_bn: `eval` crafts with running statistics (Pang et al. 2021), `train` with those of the batch (Madry's,
            Rice's and Wong's code).

    Source: Madry et al. 2018, eq. 2.1.
    """

    select = "robust"

    steps: int = 10
    step: float = 0.25
    attack_bn: Literal["eval", "train"] = "eval"

    def __post_init__(self) -> None:
        """Refuse an attack that would not climb."""
        super().__post_init__()
        check_budget(self.steps, self.step)

    def terms(self, nets: Nets, batch: Batch, at: Moment) -> dict[str, Tensor]:
        """`ce`: the mean cross-entropy on the adversarial images."""
        (x,) = batch.views
        start = random_start(x, at.threat, batch.generator)
        with attacked(nets, training=self.attack_bn == "train") as twin:
            adv = ascend(
                lambda adv: cross_entropy(twin(adv), batch.y), x, start, at.threat, steps=self.steps, step=self.step
            )
        return {"ce": self.loss(nets(adv), batch.y)}
