"""Adversarial full fine-tuning (AFF): a trained encoder and a fresh head, all weights learning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from robench.attacks.ascent import ascend
from robench.errors import UsageError
from robench.geometry import random_start
from robench.losses import contrastive, cross_entropy
from robench.methods.pgd_at import PGDAT
from robench.methods.simclr import check_temperature, projector
from robench.methods.trades import TRADES
from robench.models import Nets
from robench.protocols import Batch, Moment, Terms
from robench.twin import attacked

BN = Literal["train", "frozen"]


@dataclass(frozen=True)
class FinetuneAT(PGDAT):
    """PGD adversarial training of a trained encoder (RoCL+AT).

    Attributes:
        bn: `train` normalises by each batch and moves the running statistics, as fine-tuning should. `frozen` normalises by
            those the encoder came with and leaves them, as RoCL's released code does: its attack puts the model into eval
            mode and nothing puts it back.

    Source: Kim et al. 2020, section 4 (fine-tuning); Madry et al. 2018.
    Differs: the paper gives no hyper-parameters for it.
    """

    finetunes: ClassVar[bool] = True

    bn: BN = "train"

    def terms(self, nets: Nets, batch: Batch, at: Moment) -> dict[str, torch.Tensor]:
        """`ce`: the mean cross-entropy on the adversarial images."""
        with norms(nets, self.bn):
            return super().terms(nets, batch, at)


@dataclass(frozen=True)
class FinetuneTRADES(TRADES):
    """TRADES on a trained encoder (RoCL+TRADES; the AFF of later papers).

    Attributes:
        bn: as in `finetune-at`.

    Source: Kim et al. 2020, section 4 (fine-tuning); Zhang et al. 2019.
    Differs: the paper gives no hyper-parameters for it, and its code does not have it.
    """

    finetunes: ClassVar[bool] = True

    bn: BN = "train"

    def terms(self, nets: Nets, batch: Batch, at: Moment) -> dict[str, torch.Tensor]:
        """`ce` on clean images and `kl`, already times beta."""
        with norms(nets, self.bn):
            return super().terms(nets, batch, at)


@dataclass(frozen=True)
class FinetuneATSS(FinetuneAT):
    """Fine-tuning with the self-supervised loss beside it (RoCL+AT+SS).

    The mean cross-entropy over the image, an augmented view and an adversary of the image, plus `weight` times
    NT-Xent(image, view) through the projector. All three pass in one batch. The projector is the encoder's own where its
    checkpoint has one.

    Attributes:
        weight: of the self-supervised term.
        temperature: of its softmax.
        hidden: width of the projector's hidden layer.
        dimensions: of the embedding.

    Source: Kim et al. 2020, section 4 (RoCL+AT+SS); terms and weight of its released code, as they are meant there: its
        flags drop the pair when only adversarial images are asked for, and its slice cuts features instead of images.
    """

    views: ClassVar[tuple[str, ...]] = ("original", "augmented")
    trains: ClassVar[tuple[str, ...]] = ("encoder", "head", "projector")
    keeps: ClassVar[tuple[str, ...]] = ("projector",)
    fewest: ClassVar[int] = 2

    weight: float = 1.0
    temperature: float = 0.5
    hidden: int = 2048
    dimensions: int = 128

    def __post_init__(self) -> None:
        """Refuse what the attack or the loss could not use."""
        super().__post_init__()
        check_temperature("temperature", self.temperature)
        if not 0 <= self.weight < float("inf"):
            raise UsageError(f"weight must be a finite number of at least 0, not {self.weight}; 1 is usual")

    def heads(self, features: int, classes: int) -> dict[str, nn.Module]:
        """A linear classifier and a projector."""
        return {**super().heads(features, classes), "projector": projector(features, self.hidden, self.dimensions)}

    def terms(self, nets: Nets, batch: Batch, at: Moment) -> Terms:
        """`ce` over three images and `contrastive`, already times its weight."""
        x, view = batch.views
        start = random_start(x, at.threat, batch.generator)
        with norms(nets, self.bn):
            with attacked(nets, training=self.attack_bn == "train") as twin:
                adv = ascend(
                    lambda adv: cross_entropy(twin(adv), batch.y), x, start, at.threat, steps=self.steps, step=self.step
                )
            features = nets.features(torch.cat([x, view, adv]))
            pair = nets.parts["projector"](features[: 2 * len(x)]).chunk(2)
            return Terms(
                {
                    "ce": self.loss(nets.parts["head"](features), batch.y.repeat(3)),
                    "contrastive": self.weight * contrastive(pair, temperature=self.temperature).mean(),
                }
            )


@contextmanager
def norms(nets: nn.Module, mode: BN) -> Iterator[None]:
    """Inside, batch normalisation works as `mode` says; after, every layer has its own mode back."""
    layers = [module for module in nets.modules() if isinstance(module, _BatchNorm) and module.training]
    for layer in layers:
        layer.train(mode == "train")
    try:
        yield
    finally:
        for layer in layers:
            layer.train()
