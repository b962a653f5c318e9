"""Networks: encoders found by name, and the nets that methods build around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robench.errors import UsageError
from robench.meter import Passes
from robench.registry import MODELS

# mean and standard deviation of the training pixels, for recipes that normalise; a data set not here uses 0.5 and 0.5
STATISTICS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


class Encoder(nn.Module):
    """A network from images to features.

    Attributes:
        features: how many numbers it returns per image.
    """

    features: int


class Stem(nn.Conv2d):
    """A first convolution, which computes at least in float32 under autocast too.

    bfloat16 resolves [0.5, 1] to 1/256, half a step of an attack: an image rounded to it is no longer the perturbed one.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name it has in torch)
        """What a convolution makes of images."""
        if not torch.is_autocast_enabled(input.device.type):
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input)


class Normalise(nn.Module):
    """(x - mean) / std per channel, inside the model, so that every threat is measured in pixels of [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Images of mean 0 and deviation 1."""
        return (x - self.mean) / self.std


class Nets(nn.Module):
    """An encoder and the heads that stages put on it; as a whole, the classifier.

    One `state_dict` of this module is the state of everything that learns.

    Attributes:
        entrance: normalisation, or nothing.
        encoder: from images to features.
        parts: heads by name, such as `projector` and `head`.
        precision: of the encoder's arithmetic; images, weights, heads and whatever follows them stay float32.
        twin: what stands in for these networks in attacks inside training (`robench.twin`), while they train.
        counter: what counts the images that pass, while they train.
    """

    def __init__(self, encoder: Encoder, entrance: nn.Module) -> None:
        super().__init__()
        self.precision = torch.float32
        self.twin: Any = None
        self.counter: Passes | None = None
        self.entrance = entrance
        self.encoder = encoder
        self.parts = nn.ModuleDict()

    def features(self, x: Tensor) -> Tensor:
        """What the encoder makes of images, (n, features)."""
        found = self._encoded(self.entrance(x))
        return found if self.counter is None else self.counter.counted(found)

    def _encoded(self, x: Tensor) -> Tensor:
        if self.precision is torch.float32:
            found: Tensor = self.encoder(x)
            return found
        with torch.autocast(x.device.type, self.precision):
            found = self.encoder(x)
        return found.float()

    def project(self, x: Tensor) -> Tensor:
        """The embeddings a contrastive loss compares, (n, dimensions), not normalised."""
        found: Tensor = self.parts["projector"](self.features(x))
        return found

    def forward(self, x: Tensor) -> Tensor:
        """The logits of images, (n, classes)."""
        found: Tensor = self.parts["head"](self.features(x))
        return found

    def named(self, name: str) -> nn.Module:
        """The encoder or a part, by name."""
        return self.encoder if name == "encoder" else self.parts[name]


def build_nets(model: str, shape: tuple[int, int, int], dataset: str, normalise: bool) -> Nets:
    """A fresh encoder for images of a shape, without heads.

    Args:
        model: a registered name or `module:function`; called with the number of channels, it returns an `Encoder`.
        shape: channels, height, width.
        dataset: whose statistics to normalise by.
        normalise: whether to.

    Raises:
        UsageError: if nobody knows the model, or it is not an encoder.
    """
    entry = MODELS.entry(model)
    make: Callable[..., Encoder] = MODELS.load(entry)
    try:
        encoder = make(shape[0], **entry.options)
    except (Exception, SystemExit) as error:  # whatever code from elsewhere does
        said = f"{type(error).__name__}: {error}"
        raise UsageError(
            f"model {model!r} cannot be made: {said}. It is called with the number of channels, and returns an encoder"
        ) from error
    if not isinstance(getattr(encoder, "features", None), int):
        raise UsageError(f"model {model!r}: its encoder needs an attribute `features`, the width of what it returns")
    half = (0.5,) * shape[0]
    mean, std = STATISTICS.get(dataset.partition("@")[0], (half, half))
    nets = Nets(encoder, Normalise(mean, std) if normalise else nn.Identity())
    return nets.to(memory_format=torch.channels_last)
