"""Images without labels: where they come from, the labels a trained classifier gives them, and batches that mix both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from robench import data
from robench.data import Images, Split
from robench.data.npz import unreadable
from robench.device import halving
from robench.door import frozen
from robench.errors import DataError
from robench.models import Nets
from robench.noise import permutation, seed_of

FILE = "npz:"  # what the name of a file of images begins with


@dataclass(frozen=True)
class Mixed(Images):
    """Labelled images, followed by images with pseudo-labels.

    Attributes:
        labelled: how many have a label of their own; they come first.
        share: the share of each batch that has pseudo-labels.
        whole: labelled images an epoch takes, as often as it takes to come to so many.
    """

    labelled: int
    share: float
    whole: int

    def parts(self, batch: int) -> tuple[int, int]:
        """How many images of a batch are labelled, and how many have pseudo-labels; at least one of each."""
        pseudo = min(max(round(self.share * batch), 1), batch - 1)
        return batch - pseudo, pseudo


def pixels_like(name: str, like: Images, root: Path) -> Tensor:
    """The pixels of a data set's training images; whatever labels they have are left behind.

    Args:
        name: a data set, or `npz:FILE` with an array `image`.
        like: images they must have the shape of.
        root: where data sets are kept.

    Raises:
        DataError: if they are not there, or have another shape.
    """
    pixels = _file(name.removeprefix(FILE)) if name.startswith(FILE) else data.load(name, Split.TRAIN, root).pixels
    if pixels.shape[1:] != like.pixels.shape[1:]:
        theirs, ours = ("x".join(map(str, shape)) for shape in (pixels.shape[1:], like.shape))
        size, known = like.shape[1], not name.startswith(FILE) and "@" not in name
        way = f"--set extra={name}@resize={size}" if known and pixels.shape[1] == like.shape[0] else "name others"
        raise DataError(f"extra={name} has {theirs} images, and {like.name} has {ours}: {way}")
    return pixels


def _file(path: str) -> Tensor:
    """The images of a file, (n, channels, height, width)."""
    try:
        with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as found:
            image = found["image"]
    except KeyError:
        raise DataError(f"{path} holds no array `image`; save one with numpy.savez(FILE, image=...)") from None
    except (OSError, ValueError, TypeError, EOFError, BadZipFile) as error:
        raise DataError(unreadable(Path(path), error)) from None
    if image.dtype != np.uint8 or image.ndim not in (3, 4) or not len(image):
        raise DataError(
            f"{path}: `image` must be uint8 (images, height, width, channels), not {image.dtype} {image.shape}"
        )
    return torch.from_numpy(image.reshape(*image.shape[:3], -1)).permute(0, 3, 1, 2).contiguous()


def pseudo_labels(nets: Nets, pixels: Tensor, batch: int = 500) -> Tensor:
    """The class a classifier gives each image, (n,), int64, on the CPU."""
    with frozen(nets), torch.no_grad():
        return halving(
            lambda count: torch.cat(
                [nets(part.to(torch.float32).div_(255)).argmax(1).cpu() for part in pixels.split(count)]
            ),
            batch,
        )[0]


def mixed(few: Images, pixels: Tensor, labels: Tensor, *, share: float, whole: int) -> Mixed:
    """Labelled images and images with pseudo-labels as one set.

    Args:
        few: the labelled ones.
        pixels: the others.
        labels: their pseudo-labels.
        share: the share of each batch that is pseudo-labelled.
        whole: labelled images an epoch takes.
    """
    return Mixed(
        few.name,
        few.split,
        torch.cat([few.pixels, pixels]),
        torch.cat([few.y, labels.to(few.y.device)]),
        few.classes,
        labelled=len(few),
        share=share,
        whole=whole,
    )


def whole(images: Images) -> float:
    """How many images an epoch takes, repeated ones included."""
    return images.whole / (1 - images.share) if isinstance(images, Mixed) else len(images)


def order(images: Images, batch: int, *place: int | str) -> Tensor:
    """Which images an epoch takes, batch by batch, (steps, batch), int64 on the CPU.

    Entries are positions plus a multiple of how many images there are: an image that comes again in the same epoch has
    another number, and so is augmented and attacked with other draws. Plain images come once each, in a random order.
    Of mixed ones each batch takes labelled ones first, then pseudo-labelled ones, each kind in passes of random order.

    Args:
        images: all there are.
        batch: images a step.
        place: what the order depends on: seed, stage and epoch.
    """
    if not isinstance(images, Mixed):
        steps = len(images) // batch
        return permutation(seed_of(*place), len(images))[: steps * batch].view(steps, batch)
    own, pseudo = images.parts(batch)
    steps = max(images.whole // own, 1)
    kinds = ((0, images.labelled, own), (images.labelled, len(images) - images.labelled, pseudo))
    return torch.cat(
        [_passes(first, count, steps * taken, len(images), *place).view(steps, taken) for first, count, taken in kinds],
        dim=1,
    )


def _passes(first: int, count: int, wanted: int, stride: int, *place: int | str) -> Tensor:
    """The positions from `first` on, `count` of them, in a new random order whenever all have come, `wanted` in all."""
    passes = -(-wanted // count)
    return torch.cat(
        [first + permutation(seed_of(*place, first, number), count) + number * stride for number in range(passes)]
    )[:wanted]
