"""A package that robench does not know, as its author would write it: one plug-in of each kind."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from robench.errors import UsageError
from robench.geometry import random_start
from robench.threat import ThreatModel


@dataclass(frozen=True)
class Corner:
    """The worst of some random points of the ball."""

    exempt: ClassVar[dict[str, str]] = {"I7": "a few random points are a floor, not a search"}

    threat: ThreatModel
    tries: int = 5

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise UsageError(f"attack stranger-corner: tries ({self.tries}) must be at least 1")

    def cost(self, classes: int) -> tuple[int, int]:
        return self.tries, 0

    @torch.no_grad()
    def __call__(self, model: Any, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        best = x.clone()
        for _ in range(self.tries):
            adv = random_start(x, self.threat, generator)
            fooled = model(adv).argmax(1) != y
            best[fooled] = adv[fooled]
        return best


@dataclass(frozen=True)
class Smooth:
    """Cross-entropy with smoothed labels."""

    views: ClassVar[tuple[str, ...]] = ("augmented",)
    trains: ClassVar[tuple[str, ...]] = ("encoder", "head")
    supervised: ClassVar[bool] = True
    select: ClassVar[str] = "clean"

    smoothing: float = 0.1

    def heads(self, features: int, classes: int) -> dict[str, nn.Module]:
        return {"head": nn.Linear(features, classes)}

    def terms(self, nets: Any, batch: Any, at: Any) -> dict[str, Tensor]:
        return {"ce": functional.cross_entropy(nets(batch.views[0]), batch.y, label_smoothing=self.smoothing)}


def stripes(split: str) -> tuple[Tensor, Tensor, int]:
    """Noise whose brightest row says the class."""
    dice = torch.Generator().manual_seed(len(split))
    y = torch.randint(0, 4, (240 if split == "test" else 600,), generator=dice)
    x = torch.randint(0, 120, (len(y), 1, 8, 8), generator=dice, dtype=torch.uint8)
    x[torch.arange(len(y)), :, 2 * y] += 120
    return x, y, 4


class Net(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.features = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def net(channels: int, width: int = 8) -> Net:
    return Net(channels, width)


def classifier() -> nn.Module:
    return nn.Sequential(Net(3, 8), nn.Linear(32, 10))
