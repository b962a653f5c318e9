"""Transformation-smoothed inference: a classifier that answers from many random augmentations of the image.

What counts is decided by `Smoothed`, whose draws are hashes of (seed, image, draw): it is deterministic, so its answers can
be checked, and two images that differ anywhere get draws of their own. What an adaptive attack climbs is `Glimpse`, one
augmentation a pass, of which `eot-pgd` averages many; its draws are others than those of the verdict. Augmentations are
differentiable in the pixels, crops and colours alike, so gradients pass through them exactly.

Source: Kim, Tack & Hwang 2020 (v1, "tInf"); the attack: Athalye et al. 2018, section 4.2 (expectation over transformation).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robench.augment import augment
from robench.inference import Inference
from robench.noise import ImageGenerator, content, seed_of

REMEMBERED = 1_000_000  # images whose looks are counted before the count begins anew


class Smoothed(nn.Module):
    """A classifier averaged over `draws` augmented views of each image.

    Args:
        model: maps images to logits.
        inference: draws, views and what is averaged.
        seed: of the draws.
        purpose: draws for another purpose are independent.

    Attributes:
        passes: looks at an image per answer, for whoever counts.
    """

    def __init__(self, model: nn.Module, inference: Inference, seed: int, purpose: str = "verdict") -> None:
        super().__init__()
        self.model = model
        self.inference = inference
        self.seed = seed
        self.purpose = purpose
        self.view = inference.view()
        self.passes = inference.draws

    def forward(self, x: Tensor) -> Tensor:
        """Logarithms of the mean probabilities, or of the votes, (n, classes).

        Equal votes are parted by the mean probabilities, which count for less than a vote.
        """
        images = content(x)
        each = []
        for draw in range(self.inference.draws):
            generator = ImageGenerator(seed_of(self.seed, "tsi", self.purpose, draw), images, x.device)
            each.append(self.model(augment(x, self.view, generator)))
        logits = torch.stack(each)
        found = logits.log_softmax(2).logsumexp(0) - math.log(len(each))
        if self.inference.average == "votes":
            votes = torch.zeros_like(logits).scatter_(2, logits.argmax(2, keepdim=True), 1).sum(0)
            found = ((votes + found.exp() / 2) / (len(each) + 0.5)).clamp_min(torch.finfo(found.dtype).tiny).log()
        return found


class Glimpse(nn.Module):
    """A classifier that sees one augmented view of each image, a new one each time it is shown the same image.

    How often it has been shown an image is counted, so that its draws depend neither on batches nor on other images.

    Args:
        model: maps images to logits.
        inference: the views.
        seed: of the draws, which are others than those of `Smoothed`.
    """

    def __init__(self, model: nn.Module, inference: Inference, seed: int) -> None:
        super().__init__()
        self.model = model
        self.seed = seed_of(seed, "tsi", "attack")
        self.view = inference.view()
        self._shown: dict[int, int] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Logits of one view, (n, classes)."""
        images = content(x)
        keys = images.tolist()
        times = torch.tensor([self._shown.get(key, 0) for key in keys], dtype=torch.int64, device=images.device)
        if len(self._shown) > REMEMBERED:
            self._shown.clear()
        for key, count in zip(keys, times.tolist(), strict=True):
            self._shown[key] = count + 1
        generator = ImageGenerator(self.seed, images + times, x.device)
        found: Tensor = self.model(augment(x, self.view, generator))
        return found
