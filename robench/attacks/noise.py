"""Random noise as an attack: the floor that every search has to beat, and a check that a model's gradients do not lie."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robench.errors import UsageError
from robench.geometry import norm_of, per_image, project
from robench.noise import branch, normal, uniform
from robench.protocols import Classifier
from robench.threat import Norm, ThreatModel


@dataclass(frozen=True)
class RandomNoise:
    """The first of some random points on the border of the ball that fools the model, or else the last.

    linf: corners, every value x + eps or x - eps; l2 and l1: uniform on the sphere. Then into the ball and [0, 1].

    Attributes:
        tries: points tried; an image already fooled is not tried again.

    Raises:
        UsageError: if tries is below 1.

    Source: for l1, independent exponentials over their sum, with random signs (Devroye 1986, chapter V).
    """

    threat: ThreatModel
    tries: int = 100

    def __post_init__(self) -> None:
        """Refuse an empty budget."""
        _check("random-noise", self.tries)

    def cost(self, classes: int) -> tuple[int, int]:
        """The most forward and backward passes for an image: the clean one and the tries."""
        return 1 + self.tries, 0

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Perturb a batch."""

        def draw(x: Tensor, noise: torch.Generator) -> Tensor:
            return self.threat.eps * _border(x, self.threat.norm, noise)

        return _first(model, x, y, draw, self.threat, self.tries, generator)


@dataclass(frozen=True)
class GaussianNoise:
    """The first of some images with independent normal noise that fools the model, or else the last.

    The deviation is the same for all values: the noise has about the norm eps in l2 (eps / sqrt(d) for d values) and in l1
    (eps sqrt(pi / 2) / d); in linf it is eps / 2, so that one value in twenty is cut. Then into the ball and [0, 1].

    Attributes:
        tries: images tried; an image already fooled is not tried again.

    Raises:
        UsageError: if tries is below 1.
    """

    threat: ThreatModel
    tries: int = 100

    def __post_init__(self) -> None:
        """Refuse an empty budget."""
        _check("gaussian-noise", self.tries)

    def cost(self, classes: int) -> tuple[int, int]:
        """The most forward and backward passes for an image: the clean one and the tries."""
        return 1 + self.tries, 0

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Perturb a batch."""

        def draw(x: Tensor, noise: torch.Generator) -> Tensor:
            return _deviation(self.threat, x[0].numel()) * normal(noise, x.shape, x.device)

        return _first(model, x, y, draw, self.threat, self.tries, generator)


def _check(name: str, tries: int) -> None:
    if tries < 1:
        raise UsageError(f"attack {name}: tries ({tries}) must be at least 1")


@torch.no_grad()
def _first(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    draw: Callable[[Tensor, torch.Generator], Tensor],
    threat: ThreatModel,
    tries: int,
    generator: torch.Generator,
) -> Tensor:
    """For each image the first of some noisy ones that fools the model, or else the last."""
    found = x.clone()
    todo = (model(x).argmax(1) == y).nonzero().squeeze(1)
    for number in range(tries):
        if not len(todo):
            break
        here = x[todo]
        noise = draw(here, branch(generator, "try", number, index=todo)).to(x.dtype)
        adv = project(here + noise, here, threat)
        found[todo] = adv
        todo = todo[model(adv).argmax(1) == y[todo]]
    return found


def _border(x: Tensor, norm: Norm, noise: torch.Generator) -> Tensor:
    """A point on the unit sphere for each image: a corner of the cube (linf), or uniform (l2, l1)."""
    if norm is Norm.L2:
        point = normal(noise, x.shape, x.device)
    else:
        point = 1 - 2 * (uniform(noise, x.shape, x.device) < 0.5).to(torch.float32)
        if norm is Norm.L1:
            point = point * -torch.log1p(-uniform(noise, x.shape, x.device))
    return point / per_image(norm_of(point, norm), x).clamp_min(torch.finfo(point.dtype).tiny)


def _deviation(threat: ThreatModel, values: int) -> float:
    """The standard deviation of noise whose norm is about eps."""
    if threat.norm is Norm.LINF:
        return threat.eps / 2
    return threat.eps * (values**-0.5 if threat.norm is Norm.L2 else math.sqrt(math.pi / 2) / values)
