"""Supervised contrastive learning: images of one class are each other's positives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from robench.losses import supervised_contrastive
from robench.methods.simclr import SimCLR
from robench.models import Nets
from robench.protocols import Batch, Moment, Terms


@dataclass(frozen=True)
class SupCon(SimCLR):
    """The supervised contrastive loss of two augmented views of each image; the head is a stage of its own.

    Attributes:
        temperature: of the softmax over similarities.

    Source: Khosla et al. 2020, eq. 2 (L_out, the sum over positives outside the logarithm); projector as in SimCLR here.
    """

    supervised: ClassVar[bool] = True

    temperature: float = 0.1

    def terms(self, nets: Nets, batch: Batch, at: Moment) -> Terms:
        """`contrastive`: the mean over both views as anchors."""
        z = nets.project(torch.cat(batch.views)).chunk(2)
        return Terms({"contrastive": supervised_contrastive(z, batch.y, temperature=self.temperature).mean()})
