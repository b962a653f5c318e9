"""Standard training: the baseline without an adversary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from robench.errors import UsageError
from robench.losses import cross_entropy
from robench.models import Nets
from robench.protocols import Batch, Moment


@dataclass(frozen=True)
class Standard:
    """Cross-entropy on augmented images.

    Attributes:
        smoothing: the share of the target that is spread evenly over all classes (label smoothing). Attacks inside training
            climb the loss of the label itself.
    """

    views: ClassVar[tuple[str, ...]] = ("augmented",)
    trains: ClassVar[tuple[str, ...]] = ("encoder", "head")
    supervised: ClassVar[bool] = True
    select: ClassVar[str] = "clean"

    smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a smoothing that leaves nothing of the label."""
        if not 0 <= self.smoothing < 1:
            raise UsageError(f"smoothing must be at least 0 and below 1, not {self.smoothing:g}; 0.1 is usual")

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """The mean cross-entropy of labels, smoothed."""
        return cross_entropy(logits, y, self.smoothing).mean()

    def heads(self, features: int, classes: int) -> dict[str, nn.Module]:
        """A linear classifier."""
        return {"head": nn.Linear(features, classes)}

    def terms(self, nets: Nets, batch: Batch, at: Moment) -> dict[str, Tensor]:
        """`ce`: the mean cross-entropy."""
        return {"ce": self.loss(nets(batch.views[0]), batch.y)}
