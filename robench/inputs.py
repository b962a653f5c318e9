"""What images and labels an evaluation accepts."""

from __future__ import annotations

import torch
from torch import Tensor

from robench.errors import DataError


def check_images(x: Tensor, y: Tensor, classes: int) -> None:
    """Refuse what no evaluation can use, before any model runs.

    Raises:
        DataError: naming the first offence and its likely cause.
    """
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or x.device != y.device:
        raise DataError(f"images and labels must be tensors on one device, not {_kind(x)} and {_kind(y)}")
    if classes < 2:
        raise DataError(f"a classifier has at least 2 classes, not {classes}")
    if x.ndim != 4 or x.dtype not in (torch.float32, torch.float64):
        advice = " (divide by 255)" if not x.is_floating_point() else ""
        raise DataError(f"images are {tuple(x.shape)} {x.dtype}; expected NCHW float32 or float64 in [0, 1]{advice}")
    if len(x) == 0:
        raise DataError("there are 0 images; an accuracy needs at least one")
    if y.ndim != 1 or y.dtype != torch.int64 or len(y) != len(x):
        raise DataError(f"labels are {tuple(y.shape)} {y.dtype}; expected ({len(x)},) int64, a class number per image")
    wrong = ((y < 0) | (y >= classes)).nonzero()
    if len(wrong):
        first = int(wrong[0])
        raise DataError(f"label {int(y[first])} of image {first} is not in 0 to {classes - 1}")
    nan = (~x.isfinite()).flatten(1).any(1).nonzero()
    if len(nan):
        raise DataError(f"image {int(nan[0])} has NaN or infinite pixels ({len(nan)} of {len(x)} images have)")
    low, high = (bound.item() for bound in x.aminmax())
    if low < 0 or high > 1:
        cause = "they look normalised: put the normalisation into the model" if low < 0 else "divide by 255"
        raise DataError(f"pixels go from {low:.4g} to {high:.4g}, not in [0, 1]: {cause}")


def _kind(value: object) -> str:
    return f"a tensor on {value.device}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
