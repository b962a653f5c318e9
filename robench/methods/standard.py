"""Standard training: the baseline without an adversary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from robench.losses import cross_entropy
from robench.models import Nets
from robench.protocols import Batch, Moment


@dataclass(frozen=True)
class Standard:
    """Cross-entropy on augmented images."""

    views: ClassVar[tuple[str, ...]] = ("augmented",)
    trains: ClassVar[tuple[str, ...]] = ("encoder", "head")
    supervised: ClassVar[bool] = True
    select: ClassVar[str] = "clean"

    def heads(self, features: int, classes: int) -> dict[str, nn.Module]:
        """A linear classifier."""
        return {"head": nn.Linear(features, classes)}

    def terms(self, nets: Nets, batch: Batch, at: Moment) -> dict[str, Tensor]:
        """`ce`: the mean cross-entropy."""
        return {"ce": cross_entropy(nets(batch.views[0]), batch.y).mean()}
