"""Linear evaluation (LE) and robust linear evaluation (r-LE): a linear head on a frozen encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robench.attacks.ascent import ascend, check_budget
from robench.door import frozen
from robench.geometry import random_start
from robench.losses import cross_entropy
from robench.methods.standard import Standard
from robench.models import Nets
from robench.protocols import Batch, Moment


@dataclass(frozen=True)
class Linear(Standard):
    """Cross-entropy of a linear classifier on features that do not change. The encoder is in eval mode.

    Source: the linear evaluation protocol; Kim et al. 2020, section 4 (LE).
    """

    trains: ClassVar[tuple[str, ...]] = ("head",)

    def terms(self, nets: Nets, batch: Batch, at: Moment) -> dict[str, Tensor]:
        """`ce` of the head; no graph is built through the encoder."""
        return {"ce": _head_loss(nets, batch.views[0], batch.y)}


@dataclass(frozen=True)
class RobustLinear(Linear):
    """The same on images that PGD made wrong for encoder and head together.

    Attributes:
        steps: of PGD.
        step: their length as a fraction of eps.

    Source: Kim et al. 2020, section 4 (r-LE).
    """

    select = "robust"

    steps: int = 10
    step: float = 0.25

    def __post_init__(self) -> None:
        """Refuse an attack that would not climb."""
        check_budget(self.steps, self.step)

    def terms(self, nets: Nets, batch: Batch, at: Moment) -> dict[str, Tensor]:
        """`ce` of the head on adversarial images."""
        (x,) = batch.views
        start = random_start(x, at.threat, batch.generator)
        with frozen(nets):
            adv = ascend(
                lambda adv: cross_entropy(nets(adv), batch.y), x, start, at.threat, steps=self.steps, step=self.step
            )
        return {"ce": _head_loss(nets, adv, batch.y)}


def _head_loss(nets: Nets, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        features = nets.features(x)
    return cross_entropy(nets.parts["head"](features), y).mean()
