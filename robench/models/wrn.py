"""Wide residual networks: pre-activation ResNets of three stages.

Source: Zagoruyko & Komodakis 2016; depth 6 b + 4 for b blocks a stage.
"""

from __future__ import annotations

from robench.models.resnet import ResNet, preact_network


def _wrn(channels: int, depth: int, width: int) -> ResNet:
    return preact_network(channels, [16 * width, 32 * width, 64 * width], (depth - 4) // 6, stem=16)


def wrn_28_10(channels: int) -> ResNet:
    """28 layers, 10 times as wide, 640 features."""
    return _wrn(channels, 28, 10)


def wrn_34_10(channels: int) -> ResNet:
    """34 layers, 10 times as wide, 640 features."""
    return _wrn(channels, 34, 10)
