"""One-step adversarial training: FGSM from a random start, and FGSM on noisy images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from robench.attacks.ascent import ascend
from robench.errors import UsageError
from robench.geometry import random_start
from robench.losses import cross_entropy
from robench.methods.standard import Standard
from robench.models import Nets
from robench.protocols import Batch, Moment
from robench.threat import Norm, ThreatModel
from robench.twin import attacked


@dataclass(frozen=True)
class FGSMRS(Standard):
    """Cross-entropy on images one long step from a random start, put back into the ball.

    Cheap, and apt to overfit its own attack all at once (catastrophic overfitting): robust accuracy then falls to zero from one
    epoch to the next, which the best epoch by validation survives.

    Attributes:
        step: its length as a fraction of eps.
        attack_bn: `eval` crafts with running statistics, `train` with those of the batch, as the released code does.

    Source: Wong, Rice & Kolter 2020, "Fast is better than free", algorithm 3; step 10/255 at eps 8/255.
    """

    select = "robust"

    step: float = 1.25
    attack_bn: Literal["eval", "train"] = "eval"

    def __post_init__(self) -> None:
        """Refuse a step that goes nowhere."""
        super().__post_init__()
        if not 0 < self.step < math.inf:
            raise UsageError(f"step must be a share of eps above 0, such as 1.25, not {self.step:g}")

    def craft(self, nets: Nets, batch: Batch, at: Moment) -> Tensor:
        """The images to train on."""
        (x,) = batch.views
        start = random_start(x, at.threat, batch.generator)
        with attacked(nets, training=self.attack_bn == "train") as twin:
            return ascend(lambda adv: cross_entropy(twin(adv), batch.y), x, start, at.threat, steps=1, step=self.step)

    def terms(self, nets: Nets, batch: Batch, at: Moment) -> dict[str, Tensor]:
        """`ce`: the mean cross-entropy on the crafted images."""
        return {"ce": self.loss(nets(self.craft(nets, batch, at)), batch.y)}


@dataclass(frozen=True)
class NFGSM(FGSMRS):
    """Cross-entropy on noisy images moved one step, and not put back into the ball around the clean ones.

    The noise reaches `noise` times as far as the threat and is part of what is trained on, so images may lie up to
    (noise + step) eps from the clean ones; that, and not to clip, is what keeps it from catastrophic overfitting.

    Attributes:
        step: the length of the step as a fraction of eps.
        noise: the radius of the noise as a multiple of eps.

    Source: de Jorge et al. 2022, "Make some noise", algorithm 1; in other norms than linf the same in theirs.
    """

    step: float = 1.0
    noise: float = 2.0

    def __post_init__(self) -> None:
        """Refuse no noise, without which this is FGSM."""
        super().__post_init__()
        if not 0 < self.noise < math.inf:
            raise UsageError(f"noise must be a multiple of eps above 0, such as 2, not {self.noise:g}")

    def craft(self, nets: Nets, batch: Batch, at: Moment) -> Tensor:
        """The images to train on."""
        (x,) = batch.views
        threat = at.threat
        far = self.noise * threat.eps
        wide = ThreatModel(threat.norm, min(far, 1.0) if threat.norm is Norm.LINF else far)
        noisy = random_start(x, wide, batch.generator)
        reach = ThreatModel(threat.norm, self.step * threat.eps)  # around the noisy images, where one step ends anyway
        with attacked(nets, training=self.attack_bn == "train") as twin:
            return ascend(lambda adv: cross_entropy(twin(adv), batch.y), noisy, noisy, reach, steps=1, step=1.0)
