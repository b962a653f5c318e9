"""Linear evaluation (LE) and robust linear evaluation (r-LE): a linear head on a frozen encoder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robench.attacks.ascent import ascend, check_budget
from robench.convex import softmax_regression
from robench.errors import UsageError
from robench.geometry import random_start
from robench.losses import cross_entropy
from robench.methods.standard import Standard
from robench.models import Nets
from robench.protocols import Batch, Moment, Terms
from robench.twin import attacked


@dataclass(frozen=True)
class Linear(Standard):
    """Cross-entropy of a linear classifier on features that do not change. The encoder is in eval mode.

    Attributes:
        solver: `sgd` takes the stage's optimiser, schedule, batch and augmentation. `exact` computes the features of all
            images once and solves the convex problem to convergence: no learning rate, epochs or order to choose.
        weight_decay: the penalty of `exact` on the weights (not the bias); 1e-4 when None. `sgd` has its optimiser's.

    Source: the linear evaluation protocol; Kim et al. 2020, section 4 (LE).
    """

    trains: ClassVar[tuple[str, ...]] = ("head",)

    solver: Literal["sgd", "exact"] = "sgd"
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        """Refuse a penalty that nothing reads, or without which there is no minimum."""
        super().__post_init__()
        if self.solver == "exact" and self.smoothing:
            raise UsageError(
                'options.smoothing is for solver = "sgd"; the exact solution is that of the labels themselves'
            )
        if self.solver == "sgd" and self.weight_decay is not None:
            raise UsageError(
                'options.weight_decay is for solver = "exact"; with sgd set the stage\'s optimiser.weight_decay'
            )
        if self.weight_decay is not None and not 0 < self.weight_decay < float("inf"):
            raise UsageError(f"weight_decay must be a finite number above 0, such as 1e-4, not {self.weight_decay}")

    @property
    def exact(self) -> bool:
        """Whether the trainer calls `solve` once, instead of stepping."""
        return self.solver == "exact"

    def terms(self, nets: Nets, batch: Batch, at: Moment) -> Terms:
        """`ce` of the head; no graph is built through the encoder."""
        return _head_loss(self, nets, batch.views[0], batch.y)

    def solve(self, nets: Nets, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Put the exact solution into the head.

        Args:
            nets: in eval mode.
            batches: all training images and labels, in parts.

        Returns:
            `ce`, the `gradient` it stopped at, and how many `rounds` that took.

        Raises:
            TrainingError: if it does not converge.
        """
        head = nets.parts["head"]
        assert isinstance(head, torch.nn.Linear)
        with torch.no_grad():
            parts = [(nets.features(x), y) for x, y in batches]
        features, y = (torch.cat(found) for found in zip(*parts, strict=True))
        if features.device.type == "mps":  # which has no float64
            features, y = features.cpu(), y.cpu()
        decay = 1e-4 if self.weight_decay is None else self.weight_decay
        fit = softmax_regression(features, y, head.out_features, weight_decay=decay)
        with torch.no_grad():
            head.weight.copy_(fit.weight)
            head.bias.copy_(fit.bias)
        return {"ce": fit.loss, "gradient": fit.gradient, "rounds": float(fit.rounds)}


@dataclass(frozen=True)
class RobustLinear(Standard):
    """The head's cross-entropy on images that PGD made wrong for encoder and head together.

    Attributes:
        steps: of PGD.
        step: their length as a fraction of eps.

    Source: Kim et al. 2020, section 4 (r-LE).
    """

    trains: ClassVar[tuple[str, ...]] = ("head",)
    select = "robust"

    steps: int = 10
    step: float = 0.25

    def __post_init__(self) -> None:
        """Refuse an attack that would not climb."""
        super().__post_init__()
        check_budget(self.steps, self.step)

    def terms(self, nets: Nets, batch: Batch, at: Moment) -> Terms:
        """`ce` of the head on adversarial images."""
        (x,) = batch.views
        start = random_start(x, at.threat, batch.generator)
        with attacked(nets) as twin:
            adv = ascend(
                lambda adv: cross_entropy(twin(adv), batch.y), x, start, at.threat, steps=self.steps, step=self.step
            )
        return _head_loss(self, nets, adv, batch.y)


def _head_loss(method: Standard, nets: Nets, x: Tensor, y: Tensor) -> Terms:
    with torch.no_grad():
        features = nets.features(x)
    return Terms({"ce": method.loss(nets.parts["head"](features), y)})
