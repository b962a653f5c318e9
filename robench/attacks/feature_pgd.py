"""Feature PGD: push an image's features away from where they were, without looking at any label."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from robench.attacks.ascent import ascend, default_step
from robench.door import Door
from robench.errors import AttackError, UsageError
from robench.geometry import random_start
from robench.noise import branch
from robench.protocols import Classifier
from robench.threat import ThreatModel


@dataclass(frozen=True)
class FeaturePGD:
    """PGD on the cosine distance between an image's features and its clean ones: the attack an encoder can suffer by itself.

    It is a question about the encoder, whatever head it carries; the verdict is still the classifier's. Each restart is
    judged by the classifier once, at its end.

    Attributes:
        steps: steps per restart, of max(0.1, 2.5 / steps) eps.
        restarts: starts; an image already fooled is not tried again.

    Raises:
        UsageError: if steps or restarts are below 1.
        AttackError: if the model has no features to ask for.

    Source: the label-free attack of Kim et al. 2020 (RoCL), section 3, on the features instead of the embeddings; cosine
        distance as in Naseer et al. 2020, "A self-supervised approach for adversarial robustness", section 3.
    """

    threat: ThreatModel
    steps: int = 20
    restarts: int = 1

    def __post_init__(self) -> None:
        """Refuse empty budgets."""
        if min(self.steps, self.restarts) < 1:
            raise UsageError(
                f"attack feature-pgd: steps ({self.steps}) and restarts ({self.restarts}) must be at least 1"
            )

    def cost(self, classes: int) -> tuple[int, int]:
        """The most forward and backward passes for an image; a look at the features counts as a forward pass."""
        return 1 + (self.steps + 1) * self.restarts, self.steps * self.restarts

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Perturb a batch."""
        if not isinstance(model, Door):
            raise AttackError("feature-pgd asks for features, so it needs a model behind a door")
        with torch.no_grad():
            clean = model.features(x)
        found = x.clone()
        todo = torch.arange(len(x), device=x.device)
        step = default_step(self.steps)
        for restart in range(self.restarts):
            if not len(todo):
                break
            here, there = x[todo], clean[todo]
            start = random_start(here, self.threat, branch(generator, "restart", restart, index=todo))

            def away(adv: Tensor, there: Tensor = there) -> Tensor:
                return 1 - F.cosine_similarity(model.features(adv).flatten(1), there.flatten(1))

            adv = ascend(away, here, start, self.threat, steps=self.steps, step=step)
            with torch.no_grad():
                broken = model(adv).argmax(1) != y[todo]
            found[todo] = adv
            todo = todo[~broken]
        return found
