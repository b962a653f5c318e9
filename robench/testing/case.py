"""Small random networks and images for the laws, the same on every machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from robench.threat import ThreatModel

Kind: TypeAlias = Literal["linear", "mlp", "conv"]
Layout: TypeAlias = Literal["plain", "channels-last", "transposed", "sliced"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
CLASSES = (2, 3, 4, 10)
RADII = (0.0, 1e-6, 1 / 255, 8 / 255, 0.3, 1.0, 10.0)


@dataclass(frozen=True)
class Case:
    """A small random network and images, the same on every machine.

    The network is odd about grey: what it says of an image's negative is the negative of what it says of the image. So the
    negative is always of another class, and every image can be broken if the radius is large enough.

    Attributes:
        threat: the ball.
        kind: `linear`, `mlp`, or `conv` with batch norm and dropout.
        classes: how many.
        channels: of the images.
        side: height and width of the images.
        count: how many images; every fifth has a wrong label.
        layout: how the images lie in memory.
        double: float64 in place of float32.
        seed: of weights and images.
    """

    threat: ThreatModel
    kind: Kind = "conv"
    classes: int = 4
    channels: int = 1
    side: int = 5
    count: int = 8
    layout: Layout = "plain"
    double: bool = False
    seed: int = 0

    def model(self) -> nn.Module:
        """The network, in eval mode."""
        with torch.random.fork_rng(devices=[]):
            made = Odd(self.kind, self.classes, self.channels, self.side)
        dice = torch.Generator().manual_seed(self.seed)
        for name, weights in made.state_dict().items():
            if name.endswith("running_var"):
                weights.uniform_(0.5, 1.5, generator=dice)
            elif weights.is_floating_point():
                spread = weights[0].numel() ** -0.5 if weights.ndim > 1 else 0.3
                weights.normal_(0, 2 * spread, generator=dice)
        return made.to(self.dtype).eval()

    def images(self) -> tuple[Tensor, Tensor]:
        """Images, (count, channels, side, side), a third of their pixels black or white, and labels, (count,)."""
        dice = torch.Generator().manual_seed(self.seed + 1)
        x = torch.rand(self.count, self.channels, self.side, self.side, generator=dice, dtype=torch.float64)
        x = (1.5 * x - 0.25).clamp(0, 1).to(self.dtype)
        with torch.no_grad():
            y = self.model()(x).argmax(1)
        y[4::5] = (y[4::5] + 1) % self.classes
        return laid_out(x, self.layout), y

    @property
    def dtype(self) -> torch.dtype:
        """Of images and weights."""
        return torch.float64 if self.double else torch.float32

    def at(self, eps: float) -> Case:
        """The same with another radius."""
        return replace(self, threat=replace(self.threat, eps=eps))


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same images, lying in memory in another way.

    Args:
        x: images, (n, channels, height, width).
        layout: one of `LAYOUTS`.
    """
    if layout == "channels-last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "sliced":
        return torch.stack([x, 1 - x], 4)[..., 0]
    return x.contiguous()


class Odd(nn.Module):
    """A network whose logits at 1 - x are the negatives of those at x."""

    def __init__(self, kind: str, classes: int, channels: int, side: int) -> None:
        super().__init__()
        pixels, width = channels * side**2, 12
        layers: dict[str, list[nn.Module]] = {
            "linear": [nn.Flatten()],
            "mlp": [nn.Flatten(), nn.Linear(pixels, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()],
            "conv": [nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()],
        }
        self.body = nn.Sequential(*layers[kind])
        self.head = nn.Linear({"linear": pixels, "mlp": width, "conv": 6 * side**2}[kind], classes, bias=False)

    def features(self, x: Tensor) -> Tensor:
        """What the head reads, (n, features)."""
        found: Tensor = self.body(x) - self.body(1 - x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (n, classes)."""
        logits: Tensor = self.head(self.features(x))
        return logits
