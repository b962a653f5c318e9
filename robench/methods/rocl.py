"""RoCL: contrastive learning against an adversary that attacks the identity of single images. No labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robench.attacks.ascent import ascend, check_budget
from robench.errors import UsageError
from robench.geometry import random_start
from robench.losses import Positives, contrastive, distance
from robench.methods.simclr import SimCLR, check_temperature
from robench.models import Nets
from robench.protocols import GAIN, Batch, Moment, Terms
from robench.twin import attacked

Loss = Literal["contrastive", "mse", "l1", "cosine"]


@dataclass(frozen=True)
class RoCL(SimCLR):
    """Three-view contrastive loss over (a, b, adv), plus `regularise` times a loss that pulls adv to its partner.

    `a` and `b` are augmented views; `adv` is `a` moved inside the threat so that its embedding is least like that of its
    target, among all other images of the batch (the instance-wise attack). The target is constant there, so it is encoded
    once; with running batch statistics the gradients are exactly those of encoding it at every step.

    Attributes:
        steps: of the instance-wise attack.
        step: their length as a fraction of eps.
        regularise: weight of the second term (lambda of the paper).
        positives: whether the sum over positives stands outside (`per-pair`) or inside (`in-log`) the logarithm.
        anchors: `all` views, or the `first` one of each term only.
        detach_keys: whether gradients reach anchors only, in attack and loss.
        attack_target: which view the attack moves away from: the `other` one, or the `original` it starts from.
        attack_loss: what the attack raises: the `contrastive` loss (among other images), or a distance to the target
            alone: `mse` or `l1` of the embeddings, or `cosine`.
        attack_temperature: of the attack's contrastive loss; None means `temperature`.
        attack_bn: `eval` attacks with running batch statistics, `train` with those of the batch, which then move.
        regularise_to: which view the second term pulls adv to: `other` (b) or `original` (a).
        regularise_loss: the second term: NT-Xent (`contrastive`), or one of the distances.
        groups: how many parts of the batch keep their negatives to themselves in attack and second term; the three-view
            loss always compares all. 2 is the released code on two GPUs.

    Source: Kim, Tack & Hwang 2020, eq. 4 to 6 and algorithm 1; attack losses: its table 6.
    Differs: the defaults follow the released code (per-pair, all anchors, detached keys). The paper has positives
        `in-log`, anchors `first`, and gradients through the keys. In the code the second term's partner is always the
        attack's target, its loss always the attack's, and the attack's temperature 0.5; here each is an option. The paper's
        cosine attack had its sign reversed and so pulled images together; here every attack pushes them apart.
    """

    adversarial: ClassVar[bool] = True

    steps: int = 7
    step: float = 0.25
    regularise: float = 1 / 256
    positives: Positives = "per-pair"
    anchors: Literal["all", "first"] = "all"
    detach_keys: bool = True
    attack_target: Literal["other", "original"] = "other"
    attack_loss: Loss = "contrastive"
    attack_temperature: float | None = None
    attack_bn: Literal["eval", "train"] = "eval"
    regularise_to: Literal["other", "original"] = "other"
    regularise_loss: Loss = "contrastive"
    groups: int = 1

    def __post_init__(self) -> None:
        """Refuse an attack that would not climb, and what SimCLR refuses."""
        super().__post_init__()
        check_budget(self.steps, self.step)
        if self.attack_temperature is not None:
            check_temperature("attack_temperature", self.attack_temperature)
        if not 0 <= self.regularise < math.inf:
            raise UsageError(f"regularise must be a finite weight of at least 0, such as 1/256, not {self.regularise}")
        if self.groups < 1:
            raise UsageError(f"groups must be at least 1, not {self.groups}; 1 compares the whole batch")

    @property
    def fewest(self) -> int:  # type: ignore[override]
        """Every group needs two images."""
        return 2 * self.groups

    def apart(self, adv: Tensor, target: Tensor) -> Tensor:
        """What the attack raises, one value an image, (n,): how far embeddings are from those of their targets."""
        if self.attack_loss != "contrastive":
            return distance(adv, target, self.attack_loss)
        return self.unrecognised(adv, target)

    def unrecognised(self, adv: Tensor, target: Tensor) -> Tensor:
        """The contrastive loss of the attack, one value an image, (n,): how little it is recognised as its target."""
        temperature = self.temperature if self.attack_temperature is None else self.attack_temperature
        return contrastive(
            (adv, target), temperature=temperature, anchors=(0,), detach_keys=self.detach_keys, groups=self.groups
        )

    def instance_attack(self, nets: Nets, x: Tensor, target: Tensor, batch: Batch, at: Moment) -> tuple[Tensor, Tensor]:
        """Eq. 4: images near x whose embeddings are least recognisable as those of their targets.

        Returns:
            The images (n, ...), and the attack's gain: the mean contrastive loss at the end minus at the random start,
            whatever it climbed, so that a loss with its sign reversed shows.
        """
        start = random_start(x, at.threat, batch.generator)
        reached: list[Tensor] = []
        with attacked(nets, training=self.attack_bn == "train") as twin:
            with torch.no_grad():
                key = twin.project(target)

            def objective(adv: Tensor) -> Tensor:
                embedded = twin.project(adv)
                if not reached:
                    reached.append(self.unrecognised(embedded.detach(), key).mean())
                return self.apart(embedded, key)

            adv = ascend(objective, x, start, at.threat, steps=self.steps, step=self.step)
            with torch.no_grad():
                reached.append(self.unrecognised(twin.project(adv), key).mean())
        return adv, reached[-1] - reached[0]

    def terms(self, nets: Nets, batch: Batch, at: Moment) -> Terms:
        """`contrastive` over three views, and `regulariser`, already times its weight; measures the `attack gain`."""
        a, b = batch.views
        adv, gain = self.instance_attack(nets, a, b if self.attack_target == "other" else a, batch, at)
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
        second = self.regularise * self._pull(pair[0], pair[1]).mean()
        return Terms({"contrastive": main.mean(), "regulariser": second}, {GAIN: gain})

    def _pull(self, adv: Tensor, partner: Tensor) -> Tensor:
        """The second term before its weight, one value an anchor."""
        if self.regularise_loss != "contrastive":
            return distance(adv, partner, self.regularise_loss)
        return contrastive(
            (adv, partner),
            temperature=self.temperature,
            anchors=None if self.anchors == "all" else (0,),
            detach_keys=self.detach_keys,
            groups=self.groups,
        )
