"""SimCLR: contrastive learning of two views, without labels and without an adversary."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robench.errors import UsageError
from robench.losses import contrastive
from robench.models import Nets
from robench.protocols import Batch, Moment


@dataclass(frozen=True)
class SimCLR:
    """NT-Xent between two augmented views of each image.

    Attributes:
        temperature: of the softmax over similarities.
        hidden: width of the projector's hidden layer.
        dimensions: of the embedding.

    Source: Chen et al. 2020, eq. 1; projector as in RoCL's code (two layers, biases, no batch normalisation).
    """

    views: ClassVar[tuple[str, ...]] = ("augmented", "augmented")
    trains: ClassVar[tuple[str, ...]] = ("encoder", "projector")
    supervised: ClassVar[bool] = False
    select: ClassVar[str] = "last"
    fewest: ClassVar[int] = 2

    temperature: float = 0.5
    hidden: int = 2048
    dimensions: int = 128

    def __post_init__(self) -> None:
        """Refuse a temperature that cannot divide."""
        check_temperature("temperature", self.temperature)

    def heads(self, features: int, classes: int) -> dict[str, nn.Module]:
        """The projector."""
        return {"projector": projector(features, self.hidden, self.dimensions)}

    def terms(self, nets: Nets, batch: Batch, at: Moment) -> dict[str, Tensor]:
        """`contrastive`: the mean NT-Xent over both views as anchors."""
        z = nets.project(torch.cat(batch.views)).chunk(2)
        return {"contrastive": contrastive(z, temperature=self.temperature).mean()}


def projector(features: int, hidden: int, dimensions: int) -> nn.Module:
    """Two layers with biases, from features to embeddings."""
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, dimensions))


def check_temperature(name: str, temperature: float) -> None:
    """Refuse a temperature that cannot divide.

    Raises:
        UsageError: if it is not a finite number above 0; `name` opens the message.
    """
    if not 0 < temperature < math.inf:
        raise UsageError(f"{name} must be above 0 and finite, not {temperature}; 0.5 is usual")
