"""A small convolutional network for digits and MNIST."""

from __future__ import annotations

from torch import Tensor, nn

from robench.models import Encoder, Stem


class CNN(Encoder):
    """Three 3x3 convolutions with batch normalisation, the last two of stride 2, averaged down to 2x2 places."""

    def __init__(self, channels: int, width: int = 16) -> None:
        super().__init__()
        self.features = 16 * width
        self.body = nn.Sequential(
            *_block(channels, width, 1, Stem),
            *_block(width, 2 * width, 2),
            *_block(2 * width, 4 * width, 2),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features, (n, 16 * width)."""
        found: Tensor = self.body(x)
        return found


def _block(inside: int, outside: int, stride: int, kind: type[nn.Conv2d] = nn.Conv2d) -> tuple[nn.Module, ...]:
    return kind(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()


def cnn(channels: int, width: int = 16) -> CNN:
    """The network with that many input channels."""
    return CNN(channels, width)
