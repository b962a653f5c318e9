"""ResNets with the CIFAR stem (3x3, stride 1, no pooling).

Source: He et al. 2016a, "Deep residual learning", and 2016b, "Identity mappings" (pre-activation).
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from robench.models import Encoder, Stem


def conv(inside: int, outside: int, size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the size at stride 1."""
    return nn.Conv2d(inside, outside, size, stride, size // 2, bias=False)


class Block(nn.Module):
    """Convolutions with a short cut: two 3x3 (basic), or 1x1, 3x3, 1x1 to four times the width (bottleneck)."""

    def __init__(self, inside: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outside = 4 * width if bottleneck else width
        if bottleneck:
            convolutions = [conv(inside, width, 1), conv(width, width, 3, stride), conv(width, outside, 1)]
        else:
            convolutions = [conv(inside, width, 3, stride), conv(width, outside, 3)]
        self.convolutions = nn.ModuleList(convolutions)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c.out_channels) for c in convolutions)
        same = stride == 1 and inside == outside
        self.short = nn.Identity() if same else nn.Sequential(conv(inside, outside, 1, stride), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise, add the short cut, rectify."""
        y = x
        for i, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            y = norm(convolution(F.relu(y, inplace=True) if i else y))
        return F.relu(y.add_(self.short(x)), inplace=True)


class PreActBlock(nn.Module):
    """Normalise and rectify before each of two 3x3 convolutions; the short cut starts after the first rectifier."""

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inside), conv(inside, width, 3, stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(width), conv(width, width, 3)
        self.short = conv(inside, width, 1, stride) if stride != 1 or inside != width else None

    def forward(self, x: Tensor) -> Tensor:
        """The sum of the short cut and the convolutions."""
        ready = F.relu(self.norm1(x), inplace=True)
        y: Tensor = self.conv2(F.relu(self.norm2(self.conv1(ready)), inplace=True))
        return y.add_(x if self.short is None else self.short(ready))


class ResNet(Encoder):
    """A stem, stages of blocks, and the mean over the last map.

    Args:
        channels: of the images.
        blocks: one list per stage, of functions from the number of channels so far to a block.
        widths: channels after each stage.
        stem: channels after the stem.
        preact: whether blocks are pre-activation, which moves the first norm from the stem to the end.
    """

    def __init__(
        self,
        channels: int,
        blocks: list[list[Callable[[int], nn.Module]]],
        widths: list[int],
        stem: int,
        preact: bool = False,
    ) -> None:
        super().__init__()
        self.stem = Stem(channels, stem, 3, padding=1, bias=False)
        self.preact = preact
        inside, layers = stem, []
        for makers, outside in zip(blocks, widths, strict=True):
            for make in makers:
                layers.append(make(inside))
                inside = outside
        self.body = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(inside if preact else stem)
        self.features = inside

    def forward(self, x: Tensor) -> Tensor:
        """Features, (n, width of the last stage)."""
        y = self.stem(x)
        y = F.relu(self.norm(self.body(y))) if self.preact else self.body(F.relu(self.norm(y)))
        return F.adaptive_avg_pool2d(y, 1).flatten(1)


def _resnet(channels: int, depths: tuple[int, ...], bottleneck: bool, width: int) -> ResNet:
    widths = [width, 2 * width, 4 * width, 8 * width]
    blocks: list[list[Callable[[int], nn.Module]]] = [
        [_maker(Block, inner, 1 if stage == 0 or i else 2, bottleneck) for i in range(depth)]
        for stage, (inner, depth) in enumerate(zip(widths, depths, strict=True))
    ]
    return ResNet(channels, blocks, [4 * w if bottleneck else w for w in widths], stem=width)


def _maker(block: Callable[..., nn.Module], *arguments: object) -> Callable[[int], nn.Module]:
    return lambda inside: block(inside, *arguments)


def resnet18(channels: int, width: int = 64) -> ResNet:
    """Two basic blocks a stage, 8 width features."""
    return _resnet(channels, (2, 2, 2, 2), False, width)


def resnet50(channels: int, width: int = 64) -> ResNet:
    """3, 4, 6 and 3 bottlenecks, 32 width features."""
    return _resnet(channels, (3, 4, 6, 3), True, width)


def preact_network(channels: int, widths: list[int], depth: int, stem: int) -> ResNet:
    """A pre-activation network with `depth` blocks a stage; every stage but the first halves the map."""
    blocks: list[list[Callable[[int], nn.Module]]] = [
        [_maker(PreActBlock, width, 2 if stage and not i else 1) for i in range(depth)]
        for stage, width in enumerate(widths)
    ]
    return ResNet(channels, blocks, widths, stem, preact=True)


def preact_resnet18(channels: int) -> ResNet:
    """Two pre-activation blocks a stage, 512 features."""
    return preact_network(channels, [64, 128, 256, 512], 2, stem=64)
