"""Random augmentation of whole batches on their device: every image draws its own parameters, keyed by the image.

The arithmetic is torchvision's (v2 functional, float images); only the drawing is ours, because torchvision draws one set
of parameters for a whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from robench.noise import uniform
from robench.recipe import Augment

Random = torch.Generator
CACHED = 64  # images that a CPU's cache holds, with what an operation makes of them


def augment(x: Tensor, spec: Augment, generator: Random) -> Tensor:
    """One random view of each image.

    Args:
        x: images, (n, channels, height, width), uint8, or float32 in [0, 1].
        spec: what to do.
        generator: randomness, per image.

    Returns:
        Views of the same shape, float32 in [0, 1].
    """
    if spec.name == "crop-flip":  # which only moves pixels, so in uint8 it moves a quarter of the bytes
        moved = shift(x, spec.pad, generator)
        return as_float(flip(moved, generator) if spec.flip else moved)
    if spec.name == "simclr":
        return simclr(x, spec, generator)
    return as_float(x)


def as_float(x: Tensor) -> Tensor:
    """Images as float32 in [0, 1]."""
    return x if x.is_floating_point() else x.to(torch.float32).div_(255)


def simclr(x: Tensor, spec: Augment, generator: Random) -> Tensor:
    """Colour jitter (probability 0.8), grey, flip, resized crop.

    Source: Chen et al. 2020, appendix A; order and strengths of RoCL's code, which has no blur.
    """
    colours = Colours.drawn(x, spec.jitter, spec.hue, generator)
    jittered = _chance(0.8, x, generator)
    greyed = _chance(spec.grey, x, generator) if x.shape[1] == 3 else None
    flipped = _chance(0.5, x, generator) if spec.flip else None
    boxes = box(x, spec.area, generator)
    found = torch.empty(x.shape, dtype=torch.float32 if x.dtype is torch.uint8 else x.dtype, device=x.device)
    for part, place in _parts(x, jittered, colours):
        view = x[part].clone() if x.is_floating_point() and isinstance(part, slice) else as_float(x[part])
        if place is None:
            view = _either(jittered[part], colours.at(part).of(view), view)
        elif place >= 0:
            view = colours.at(part).of(view, place)
        if greyed is not None:
            view = _changed(view, greyed[part], grey)
        if flipped is not None:
            view = _changed(view, flipped[part], _mirrored)
        found[part] = crop_resize(view, *(values[part] for values in boxes))
    return found


def _parts(x: Tensor, jittered: Tensor, colours: Colours) -> list[tuple[Tensor | slice, int | None]]:
    """Which images to work on together, and the one place of the hue among their colours: -1 for no colours, None for any.

    All at once, so that nothing is asked of the device. A CPU answers at once: there images are few at a time, so that they stay
    in its cache from one operation to the next, and of a kind, so that none goes through what it does not want.
    """
    if x.device.type != "cpu" or x.requires_grad:
        return [(slice(None), None)]
    if x.shape[1] != 3 or len(x) < 4 * CACHED:
        return [(slice(first, first + CACHED), None) for first in range(0, len(x), CACHED)]
    kind = torch.where(jittered.flatten(), colours.hue, -1)
    return [
        (part, place)
        for place in range(-1, 4)
        for part in (kind == place).nonzero().squeeze(1).split(CACHED)
        if len(part)
    ]


def flip(x: Tensor, generator: Random) -> Tensor:
    """Mirror half of the images."""
    return torch.where(_chance(0.5, x, generator), x.flip(3), x)


def shift(x: Tensor, pad: int, generator: Random) -> Tensor:
    """Pad with zeros and cut the original size at a random place."""
    n, _, height, width = x.shape
    corner = (uniform(generator, (n, 2), x.device) * (2 * pad + 1)).long()
    windows = F.pad(x, (pad, pad, pad, pad)).unfold(2, height, 1).unfold(3, width, 1)  # a view of all places
    return windows[torch.arange(n, device=x.device), :, corner[:, 0], corner[:, 1]]


def box(x: Tensor, area: float, generator: Random) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The top, left, height and width of a random box for each image, (n,) each.

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
    return top, left, high, wide


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
    return (centre[:, :, None] - source).abs_().neg_().add_(1).clamp_min_(0)


@dataclass(frozen=True)
class Colours:
    """Brightness, contrast, saturation and hue in an order of each image's own.

    Each image goes through three blends x <- clip(s x + m mean(grey) + g grey), the hue, and three blends; the three that are
    not its own have s = 1 and m = g = 0. So nobody has to ask the device which image wants what next, and the hue, which
    costs most, is turned once. Grey images have two blends and no hue.

    Attributes:
        blends: s, m and g of each blend, (n, blends, 3).
        turn: of the hue, as a share of the circle, (n,).
        hue: how many blends of its own come before the hue, (n,).
    """

    blends: Tensor
    turn: Tensor
    hue: Tensor

    @classmethod
    def drawn(cls, x: Tensor, strength: float, hue: float, generator: Random) -> Colours:
        """Random ones for some images."""
        n = len(x)
        factor = 1 + strength * (2 * uniform(generator, (n, 3), x.device) - 1)
        turn = hue * (2 * uniform(generator, (n,), x.device) - 1)
        return cls.ordered(factor, turn, uniform(generator, (n, 4), x.device).argsort(1), x.shape[1])

    @classmethod
    def ordered(cls, factor: Tensor, turn: Tensor, order: Tensor, channels: int) -> Colours:
        """Those of given parameters.

        Args:
            factor: of brightness (0), contrast (1) and saturation (2), (n, 3).
            turn: of the hue (3), (n,).
            order: which of the four comes at each place, (n, 4).
            channels: of the images.
        """
        hue = (order == 3).to(torch.int8).argmax(1)
        if channels == 3:
            places = torch.arange(3, device=order.device)
            after = places >= hue[:, None]
            kind = order.gather(1, places + after).repeat(1, 2)  # without the hue, before it and after it
            share = torch.where(torch.cat([~after, after], 1), factor.gather(1, kind), 1)
        else:
            place = order.argsort(1)
            first = (place[:, 1:2] < place[:, :1]).long()
            kind = torch.cat([first, 1 - first], 1)
            share = factor.gather(1, kind)
        rest = 1 - share
        return cls(torch.stack([share, rest * (kind == 1), rest * (kind == 2)], 2), turn, hue)

    def at(self, part: Tensor | slice) -> Colours:
        """Those of some images."""
        return Colours(self.blends[part], self.turn[part], self.hue[part])

    def of(self, x: Tensor, place: int | None = None) -> Tensor:
        """The images with these colours.

        Args:
            x: images.
            place: of the hue, if it is the same for all; then only their own blends are computed.
        """
        blends = self.blends.view(*self.blends.shape, 1, 1, 1).unbind(1)
        own = range(len(blends)) if place is None else (*range(place), *range(3 + place, 6))
        turned = x.shape[1] != 3
        for number in own:
            if number >= 3 and not turned:
                x, turned = rotate_hue(x, self.turn), True
            share, mean, saturation = blends[number].unbind(1)
            luma = grey(x)
            rest = luma.mean((1, 2, 3), keepdim=True) * mean
            x = (x * share).add_(rest if x.shape[1] != 3 else luma.mul_(saturation).add_(rest)).clamp_(0, 1)
        return x if turned else rotate_hue(x, self.turn)


def grey(x: Tensor) -> Tensor:
    """The luma of an image, (n, 1, height, width)."""
    if x.shape[1] != 3:
        return x
    red, green, blue = x.split(1, 1)
    luma: Tensor = (0.2989 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)
    return luma


def rotate_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue by a share of the colour circle, leaving saturation and value.

    With hue h in sixths of the circle, the channels rise from the smallest value to the largest as trapezia of h: red as
    clip(|h - 3| - 1, 0, 1), green as clip(2 - |h - 2|, 0, 1), blue as clip(2 - |h - 4|, 0, 1): the same function as going
    through HSV.
    """
    red, green, blue = x.split(1, 1)
    value = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - low
    is_red = (red - value).detach().sign_().add_(1)  # 1 or 0; comparing and choosing costs a CPU ten times as much
    rest = 1 - is_red
    is_green = (green - value).detach().sign_().add_(1).mul_(rest)
    is_blue = rest.sub_(is_green)
    rise = (green - blue).mul_(is_red).addcmul_(is_green, blue - red).addcmul_(is_blue, red - green)
    sixth = rise / chroma.clamp_min(torch.finfo(x.dtype).tiny)
    sixth.add_(is_green, alpha=2).add_(is_blue, alpha=4).add_(6 * _per_image(turn))
    sixth.sub_((sixth / 6).floor_(), alpha=6)
    corner, slope, foot = _trapezia(x.device, x.dtype)
    away = torch.addcmul(foot, (sixth - corner).abs_(), slope)
    return away.clamp_(0, 1).mul_(chroma).add_(low)


@cache  # made once, since each copy from here to a device is a wait
def _trapezia(device: torch.device, kind: torch.dtype) -> Tensor:
    numbers = [[3, 2, 4], [1, -1, -1], [-1, 2, 2]]  # middle, slope and height of each channel's
    return torch.tensor(numbers, device=device, dtype=kind).view(3, 3, 1, 1)


def _either(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """One or the other for each image, exactly; on a CPU faster than `torch.where`, for which each pixel is a case."""
    return (b * ~mask).add_(a * mask)


def _changed(x: Tensor, mask: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The images with some of them changed, exactly, maybe in place: a CPU looks at those only, nothing else is asked which."""
    if x.device.type != "cpu" or x.requires_grad:
        return _either(mask, change(x), x)
    chosen = mask.flatten().nonzero().squeeze(1)
    return x.index_copy_(0, chosen, change(x.index_select(0, chosen)).expand(-1, *x.shape[1:]))


def _mirrored(x: Tensor) -> Tensor:
    return x.flip(3)


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _chance(probability: float, x: Tensor, generator: Random) -> Tensor:
    """Whether each image is chosen, (n, 1, 1, 1)."""
    return uniform(generator, (len(x), 1, 1, 1), x.device) < probability
