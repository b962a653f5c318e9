"""Random augmentation of whole batches on their device: every image draws its own parameters, keyed by the image.

The arithmetic is torchvision's (v2 functional, float images); only the drawing is ours, because torchvision draws one set
of parameters for a whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from robench.noise import uniform
from robench.recipe import Augment

Random = torch.Generator


def augment(x: Tensor, spec: Augment, generator: Random) -> Tensor:
    """One random view of each image.

    Args:
        x: images, (n, channels, height, width), float32 in [0, 1].
        spec: what to do.
        generator: randomness, per image.

    Returns:
        Views of the same shape, in [0, 1].
    """
    if spec.name == "crop-flip":
        return flip(shift(x, spec.pad, generator), generator) if spec.flip else shift(x, spec.pad, generator)
    if spec.name == "simclr":
        return simclr(x, spec, generator)
    return x


def simclr(x: Tensor, spec: Augment, generator: Random) -> Tensor:
    """Colour jitter (probability 0.8), grey, flip, resized crop.

    Source: Chen et al. 2020, appendix A; order and strengths of RoCL's code, which has no blur.
    """
    jittered = jitter(x, spec.jitter, spec.hue, generator)
    x = torch.where(_chance(0.8, x, generator), jittered, x)
    if x.shape[1] == 3:
        x = torch.where(_chance(spec.grey, x, generator), grey(x).expand_as(x), x)
    if spec.flip:
        x = flip(x, generator)
    return resized_crop(x, spec.area, generator)


def flip(x: Tensor, generator: Random) -> Tensor:
    """Mirror half of the images."""
    return torch.where(_chance(0.5, x, generator), x.flip(3), x)


def shift(x: Tensor, pad: int, generator: Random) -> Tensor:
    """Pad with zeros and cut the original size at a random place."""
    n, channels, height, width = x.shape
    corner = (uniform(generator, (n, 2), x.device) * (2 * pad + 1)).long()
    rows = corner[:, :1] + torch.arange(height, device=x.device)
    columns = corner[:, 1:] + torch.arange(width, device=x.device)
    padded = F.pad(x, (pad, pad, pad, pad))
    image = torch.arange(n, device=x.device).view(n, 1, 1, 1)
    channel = torch.arange(channels, device=x.device).view(1, channels, 1, 1)
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def resized_crop(x: Tensor, area: float, generator: Random) -> Tensor:
    """Cut a box of random area and shape at a random place and stretch it to the original size, bilinearly.

    Ten tries to find a box that fits; the whole image when none does (its shape is within the allowed ones).
    """
    n, _, height, width = x.shape
    tries = 10
    share = area + (1 - area) * uniform(generator, (n, tries), x.device)
    ratio = torch.exp(math.log(3 / 4) + math.log(16 / 9) * uniform(generator, (n, tries), x.device))
    wide = (share * height * width * ratio).sqrt().round()
    high = (share * height * width / ratio).sqrt().round()
    fits = (wide >= 1) & (high >= 1) & (wide <= width) & (high <= height)
    first = fits.to(torch.int8).argmax(1, keepdim=True)
    found = fits.any(1)
    high = torch.where(found, high.gather(1, first).squeeze(1), height)
    wide = torch.where(found, wide.gather(1, first).squeeze(1), width)
    place = uniform(generator, (n, 2), x.device)
    top = (place[:, 0] * (height - high + 1)).floor()
    left = (place[:, 1] * (width - wide + 1)).floor()
    return crop_resize(x, top, left, high, wide)


def crop_resize(x: Tensor, top: Tensor, left: Tensor, high: Tensor, wide: Tensor) -> Tensor:
    """Cut a box from each image and stretch it to the original size: two small matrix products an image.

    Args:
        x: images, (n, channels, height, width).
        top: first row of each box, (n,), whole numbers; likewise left.
        left: first column.
        high: rows of each box; likewise wide.
        wide: columns.
    """
    rows = _stretch(top, high, x.shape[2])
    columns = _stretch(left, wide, x.shape[3])
    return torch.einsum("nyh,nchw,nxw->ncyx", rows, x, columns)


def _stretch(first: Tensor, length: Tensor, size: int) -> Tensor:
    """Weights (n, size, size) of bilinear interpolation from a stretch of `length` pixels to all `size`."""
    centre = (torch.arange(size, device=first.device) + 0.5) * (length / size)[:, None] - 0.5
    centre = torch.minimum(centre.clamp_min(0), length[:, None] - 1) + first[:, None]
    source = torch.arange(size, device=first.device, dtype=centre.dtype)
    return (1 - (centre[:, :, None] - source).abs()).clamp_min(0)


def jitter(x: Tensor, strength: float, hue: float, generator: Random) -> Tensor:
    """Brightness, contrast, saturation and hue in an order of each image's own; grey images have the first two."""
    n = len(x)
    factor = 1 + strength * (2 * uniform(generator, (n, 3), x.device) - 1)
    turn = hue * (2 * uniform(generator, (n,), x.device) - 1)
    order = uniform(generator, (n, 4), x.device).argsort(1)
    operations: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda part, where: brightness(part, factor[where, 0]),
        lambda part, where: contrast(part, factor[where, 1]),
        lambda part, where: saturation(part, factor[where, 2]),
        lambda part, where: rotate_hue(part, turn[where]),
    ]
    x = x.clone()
    for slot in range(4):
        for index, operation in enumerate(operations[: 4 if x.shape[1] == 3 else 2]):
            where = (order[:, slot] == index).nonzero().squeeze(1)
            x[where] = operation(x[where], where)
    return x


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Scale towards black."""
    return (x * _per_image(factor)).clamp(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean grey of the image."""
    return _blend(x, grey(x).mean((1, 2, 3), keepdim=True), factor)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image."""
    return _blend(x, grey(x), factor)


def grey(x: Tensor) -> Tensor:
    """The luma of an image, (n, 1, height, width)."""
    if x.shape[1] != 3:
        return x
    return (0.2989 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2])[:, None]


def rotate_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue by a share of the colour circle, leaving saturation and value.

    With value v, chroma c and hue h in sixths, each channel is v - c * clip(min(k, 4 - k), 0, 1), k = (offset + h) mod 6,
    with offsets 5, 3 and 1 for red, green and blue: the same function as going through HSV.
    """
    red, green, blue = x.unbind(1)
    value, low = x.amax(1), x.amin(1)
    chroma = value - low
    safe = torch.where(chroma > 0, chroma, 1)
    sixth = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sixth = sixth + 6 * turn[:, None, None]
    offsets = torch.tensor([5.0, 3.0, 1.0], device=x.device).view(1, 3, 1, 1)
    k = (offsets + sixth[:, None]) % 6
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    share = _per_image(factor)
    return (share * x + (1 - share) * other).clamp(0, 1)


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _chance(probability: float, x: Tensor, generator: Random) -> Tensor:
    """Whether each image is chosen, (n, 1, 1, 1)."""
    return uniform(generator, (len(x), 1, 1, 1), x.device) < probability
