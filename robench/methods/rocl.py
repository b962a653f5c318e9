"""RoCL: contrastive learning against an adversary that attacks the identity of single images. No labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robench.attacks.ascent import ascend, check_budget
from robench.door import frozen
from robench.geometry import random_start
from robench.losses import Positives, contrastive
from robench.methods.simclr import SimCLR
from robench.models import Nets
from robench.protocols import Batch, Moment


@dataclass(frozen=True)
class RoCL(SimCLR):
    """Three-view contrastive loss over (a, b, adv), plus `regularise` times NT-Xent(adv, its partner).

    `a` and `b` are augmented views; `adv` is `a` moved inside the threat so that its embedding is least like its
    partner's, among all other images of the batch (the instance-wise attack). The encoder and projector are in eval mode
    while it is made, so the partner's embedding is constant there and is computed once.

    Attributes:
        steps: of the instance-wise attack.
        step: their length as a fraction of eps.
        regularise: weight of the second term (lambda of the paper).
        positives: whether the sum over positives stands outside (`per-pair`) or inside (`in-log`) the logarithm.
        anchors: `all` three views, or the `first` one only.
        detach_keys: whether gradients reach anchors only, in attack and loss.
        attack_target: which view the attack moves away from: the `other` one, or the `original` it starts from.
        regularise_to: which view the second term pulls adv to: `other` (b) or `original` (a).

    Source: Kim, Tack & Hwang 2020, eq. 4 to 6 and algorithm 1.
    Differs: the defaults follow the released code (per-pair, all anchors, detached keys). The paper has positives
        `in-log`, anchors `first`, and gradients through the keys. In the code the second term's partner is always the
        attack's target; here the two are independent.
    """

    adversarial: ClassVar[bool] = True

    steps: int = 7
    step: float = 0.25
    regularise: float = 1 / 256
    positives: Positives = "per-pair"
    anchors: Literal["all", "first"] = "all"
    detach_keys: bool = True
    attack_target: Literal["other", "original"] = "other"
    regularise_to: Literal["other", "original"] = "other"

    def __post_init__(self) -> None:
        """Refuse an attack that would not climb, and what SimCLR refuses."""
        super().__post_init__()
        check_budget(self.steps, self.step)

    def instance_attack(self, nets: Nets, x: Tensor, target: Tensor, batch: Batch, at: Moment) -> Tensor:
        """Eq. 4: images near x whose embeddings are least recognisable as those of their targets, (n, ...)."""
        start = random_start(x, at.threat, batch.generator)
        with frozen(nets):
            with torch.no_grad():
                key = nets.project(target)

            def objective(adv: Tensor) -> Tensor:
                z = nets.project(adv)
                return contrastive((z, key), temperature=self.temperature, anchors=(0,), detach_keys=self.detach_keys)

            return ascend(objective, x, start, at.threat, steps=self.steps, step=self.step)

    def terms(self, nets: Nets, batch: Batch, at: Moment) -> dict[str, Tensor]:
        """`contrastive` over three views, and `regulariser`, already times its weight."""
        a, b = batch.views
        adv = self.instance_attack(nets, a, b if self.attack_target == "other" else a, batch, at)
        partner = b if self.regularise_to == "other" else a
        # two forward passes, each with its own batch statistics, as in the released code
        pair = nets.project(torch.cat([adv, partner])).chunk(2)
        three = nets.project(torch.cat([a, b, adv])).chunk(3)
        main = contrastive(
            three,
            temperature=self.temperature,
            positives=self.positives,
            anchors=None if self.anchors == "all" else (0,),
            detach_keys=self.detach_keys,
        )
        second = contrastive(
            pair,
            temperature=self.temperature,
            anchors=None if self.anchors == "all" else (0,),
            detach_keys=self.detach_keys,
        )
        return {"contrastive": main.mean(), "regulariser": self.regularise * second.mean()}
