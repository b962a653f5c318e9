"""Pixels and labels from anywhere, as the uint8 images NCHW and the class numbers that data sets keep."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from robench.errors import DataError, UsageError

SLACK = 1e-6  # how far beyond [0, 1] rounding may bring a pixel
GRID = 1e-3  # how far from a multiple of 1/255 a pixel may lie, in such multiples


def pixels_of(array: Any, what: str) -> Tensor:
    """Images as uint8 NCHW.

    Args:
        array: a tensor or array: uint8, or floats in [0, 1] that are multiples of 1/255; NCHW, NHWC, or NHW for grey.
        what: how messages call it.

    Raises:
        DataError: if it is nothing of that kind; images that look normalised are told how to become part of the model.
    """
    found = _tensor(array)
    if found.ndim == 3:
        found = found[:, None]
    if found.ndim != 4 or not found.numel():
        raise DataError(f"{what}: images are {tuple(found.shape)}; expected (n, height, width, channels) or NCHW")
    return _whole(_channels_first(found, what), what).contiguous()


def _tensor(array: Any) -> Tensor:
    """A tensor of an array's numbers, which stay as they are."""
    if isinstance(array, Tensor):
        return array.detach().cpu()
    found = np.asarray(array)
    return torch.from_numpy(found if found.flags.writeable and min(found.strides, default=1) > 0 else found.copy())


def _channels_first(images: Tensor, what: str) -> Tensor:
    first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
    if first == last:
        raise DataError(
            f"{what}: images {tuple(images.shape)} have 1 or 3 channels {'on both sides' if first else 'on neither side'}; "
            "give them as NCHW through a function: my.py:make_dataset"
        )
    return images if first else images.permute(0, 3, 1, 2)


def _whole(images: Tensor, what: str) -> Tensor:
    """Pixels as uint8."""
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        least, most = (int(bound) for bound in images.aminmax())
        if least < 0 or most > 255:
            raise DataError(f"{what}: pixels go from {least} to {most}; expected 0 to 255")
        return images.to(torch.uint8)
    low, high = (bound.item() for bound in images.aminmax())
    if not (low >= -SLACK and high <= 1 + SLACK):
        if not images.isfinite().all():
            raise DataError(f"{what}: some pixels are NaN or infinite")
        if low >= 0 and high <= 255:
            raise DataError(f"{what}: images span [{low:.2f}, {high:.2f}]: save them as uint8, or divide them by 255")
        raise DataError(
            f"{what}: images span [{low:.2f}, {high:.2f}]: they look normalised with mean/std. eps 8/255 has no meaning there. "
            "Remove Normalize from the data and give --preprocess cifar10 (or MEAN,STD) so that it becomes part of the model"
        )
    scaled = images.double() * 255
    if (scaled - scaled.round()).abs().max() > GRID:
        raise DataError(
            f"{what}: pixels are not multiples of 1/255, as those of files are; save them as uint8: (x * 255).round()"
        )
    return scaled.round().clamp(0, 255).to(torch.uint8)


def labels_of(array: Any, what: str) -> Tensor:
    """Class numbers, (n,), int64.

    Raises:
        DataError: if they are not whole numbers, one for each image.
    """
    found = _tensor(array)
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    whole = not found.is_floating_point() or bool((found == found.round()).all())
    if found.ndim != 1 or found.dtype == torch.bool or not whole:
        raise DataError(
            f"{what}: labels are {tuple(found.shape)} {found.dtype}; expected a class number for each image"
        )
    return found.to(torch.int64)


def stacked(images: Iterable[Any], names: Sequence[str], size: object = None) -> Tensor:
    """Single images as one tensor, (n, channels, height, width), uint8.

    Args:
        images: PIL images, or uint8 tensors CHW.
        names: how messages call each.
        size: make each this high and wide: the shorter side is resized to it, and the centre cut out.

    Raises:
        DataError: if they differ in size or channels.
    """
    found: list[Tensor] = []
    for name, image in zip(names, images, strict=True):
        tensor = image if isinstance(image, Tensor) else _from_pil(image)
        tensor = tensor if size is None else _cut(tensor, checked_size(size))
        if found and tensor.shape != found[0].shape:
            one, other = ("x".join(map(str, each.shape)) for each in (tensor, found[0]))
            raise DataError(
                f"{name} is {one} (channels, height, width), others are {other}; add @resize=32, or another size"
            )
        found.append(tensor)
    return torch.stack(found)


def _from_pil(image: Any) -> Tensor:
    """A grey image has one channel, any other becomes RGB."""
    array = np.array(image if image.mode == "L" else image.convert("RGB"))
    return torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1).contiguous()


def _cut(image: Tensor, size: int) -> Tensor:
    height, width = image.shape[1:]
    scale = size / min(height, width)
    high, wide = max(size, round(height * scale)), max(size, round(width * scale))
    made = _scaled(image[None], high, wide)[0] if (high, wide) != (height, width) else image
    top, left = (high - size) // 2, (wide - size) // 2
    return made[:, top : top + size, left : left + size]


def resized(pixels: Tensor, size: object) -> Tensor:
    """Square images of a size in pixels, by bilinear interpolation with antialiasing, uint8 like the originals.

    Raises:
        UsageError: if the size is not a whole number of at least 1.
    """
    side = checked_size(size)
    if tuple(pixels.shape[2:]) == (side, side):
        return pixels
    return torch.cat([_scaled(part, side, side) for part in pixels.split(1000)])


def checked_size(size: object) -> int:
    """The size in pixels.

    Raises:
        UsageError: if it is none.
    """
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise UsageError(f"resize must be a number of pixels of at least 1, such as 32, not {size!r}")
    return size


def _scaled(pixels: Tensor, height: int, width: int) -> Tensor:
    made = F.interpolate(pixels.float(), size=(height, width), mode="bilinear", antialias=True, align_corners=False)
    return made.round().clamp(0, 255).to(torch.uint8)
