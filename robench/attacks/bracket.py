"""AutoAttack's standard version between two bounds: its dear members see a random part of what the others left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robench.attacks.autoattack import QUERIES, STEPS, AutoAttack, in_turn
from robench.bracket import MEMBERS, SAMPLED
from robench.door import Door
from robench.errors import UsageError
from robench.noise import branch, uniform
from robench.protocols import Attack, Classifier
from robench.threat import ThreatModel


@dataclass(frozen=True)
class Bracket:
    """APGD-CE and APGD-T on all images; FAB-T and Square on a random share of those they left. Not AutoAttack.

    FAB-T and Square take nearly all of AutoAttack's time and break next to nothing after APGD-T. From what they break of the
    sample follows a bound on what they would break of the rest, so what comes out is an interval (`robench.bracket`). Which
    images are sampled depends on the seed and the image alone.

    Attributes:
        steps: of each gradient attack.
        queries: of Square.
        share: of the images left that FAB-T and Square attack. The wider the interval may be the smaller: of 100 sampled
            images none broken leaves 3 % of the rest in doubt, of 500 0.6 %.

    Raises:
        UsageError: if a budget is below 1, or the share is not in (0, 1].

    Source: the members and their order are those of Croce & Hein 2020.
    """

    whole: ClassVar[bool] = True
    separable: ClassVar[bool] = True
    confirms: ClassVar[bool] = True

    threat: ThreatModel
    steps: int = STEPS
    queries: int = QUERIES
    share: float = 0.1

    def __post_init__(self) -> None:
        """Refuse empty budgets and samples."""
        if min(self.steps, self.queries) < 1 or not 0 < self.share <= 1:
            raise UsageError(
                f"attack autoattack-bracket: steps ({self.steps}) and queries ({self.queries}) must be at least 1, and share "
                f"({self.share:g}) above 0 and at most 1"
            )

    def stages(self) -> tuple[dict[str, Attack], dict[str, Attack]]:
        """The attacks on all images, and those on the sample."""
        every = AutoAttack(self.threat, steps=self.steps, queries=self.queries).members()
        return {n: a for n, a in every.items() if n not in MEMBERS}, {n: every[n] for n in MEMBERS}

    def cost(self, classes: int) -> tuple[int, int]:
        """The most forward and backward passes for an image: for one that is sampled, as in AutoAttack."""
        return AutoAttack(self.threat, steps=self.steps, queries=self.queries).cost(classes)

    def notes(self, classes: int) -> tuple[str, ...]:
        """What it is not."""
        said = AutoAttack(self.threat, steps=self.steps, queries=self.queries).notes(classes)
        what = f"not AutoAttack: {' and '.join(MEMBERS)} on a random {100 * self.share:g} % of what the others left"
        return (f"{what}; between the two values with 95 % confidence", *said)

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Perturb all images."""
        everywhere, sampled = self.stages()
        found = x.clone()
        left = in_turn(everywhere, model, x, y, found, torch.arange(len(x), device=x.device), generator)
        drawn = uniform(branch(generator, "sample", index=left), (len(left), 1), x.device).squeeze(1)
        chosen = left[drawn < self.share]
        if isinstance(model, Door):
            model.left[SAMPLED] = len(chosen)
        in_turn(sampled, model, x, y, found, chosen, generator)
        return found
