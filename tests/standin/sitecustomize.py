"""Small pictures in place of the data sets that documented commands name, in every process that has this folder on its path.

Python imports a module of this name by itself at its start, so the workers of a launcher have the pictures too.
"""

from pathlib import Path

import torch

from robench.data import Images, Split, torchvision

SIZE = {"MNIST": (1, 28), "FashionMNIST": (1, 28), "STL10": (3, 96)}


def load(*, name: str, split: Split, root: Path) -> Images:
    """A bright square on noise, whose place and colour say the class."""
    classes = 100 if name == "CIFAR100" else 10
    count = 60 if split is Split.TEST else 200
    channels, size = SIZE.get(name, (3, 32))
    dice = torch.Generator().manual_seed(count)
    y = torch.arange(count) % classes
    x = torch.randint(0, 120, (count, channels, size, size), generator=dice, dtype=torch.uint8)
    half = size // 2
    for one, label in zip(x, y.tolist(), strict=True):
        down, across, channel = label % 2 * half, label // 2 % 2 * half, label // 4 % channels
        one[channel, down : down + half, across : across + half] += 120
    return Images(name, split, x, y, classes)


torchvision.load = load
