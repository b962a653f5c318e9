"""Images in memory: uint8 tensors with labels, in fixed splits, found by name."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robench.errors import DataError, RobenchError, UsageError
from robench.noise import permutation, seed_of
from robench.pixels import checked_size, labels_of, pixels_of, resized, stacked
from robench.registry import DATASETS


class Split(StrEnum):
    """Parts of a data set. Training and every choice made while training read `train` and `validation` only."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


@dataclass(frozen=True)
class Images:
    """Labelled images held in memory.

    Attributes:
        name: the name of the data set.
        split: which part of it.
        pixels: (n, channels, height, width), uint8.
        y: labels, (n,), int64.
        classes: how many classes there are.

    Raises:
        DataError: if shapes, types or labels do not fit together.
    """

    name: str
    split: Split
    pixels: Tensor
    y: Tensor
    classes: int

    def __post_init__(self) -> None:
        """Refuse what no evaluation could use."""
        if self.pixels.ndim != 4 or self.pixels.dtype != torch.uint8:
            raise DataError(
                f"{self.name}: expected uint8 images NCHW, not {tuple(self.pixels.shape)} {self.pixels.dtype}"
            )
        if len(self.pixels) == 0 or self.y.shape != (len(self.pixels),) or self.y.dtype != torch.int64:
            raise DataError(f"{self.name}: {len(self.pixels)} images with labels {tuple(self.y.shape)} {self.y.dtype}")
        outside = ((self.y < 0) | (self.y >= self.classes)).nonzero()
        if len(outside):
            first = int(outside[0])
            raise DataError(
                f"{self.name}: label {int(self.y[first])} of image {first} is not in 0 to {self.classes - 1}"
            )

    def __len__(self) -> int:
        """How many images."""
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    @cached_property
    def digest(self) -> str:
        """SHA-256 of shape, pixels and labels."""
        digest = hashlib.sha256(repr((tuple(self.pixels.shape), self.classes)).encode())
        digest.update(self.pixels.cpu().contiguous().numpy().tobytes())
        digest.update(self.y.cpu().numpy().tobytes())
        return digest.hexdigest()

    def x(self, index: Tensor | slice = slice(None)) -> Tensor:
        """Some images as float32 in [0, 1], on the device that holds them."""
        return self.pixels[index].to(torch.float32).div_(255)

    def take(self, index: Tensor | slice, split: Split | None = None) -> Images:
        """The images at some positions, as a data set of their own."""
        return Images(self.name, split or self.split, self.pixels[index], self.y[index], self.classes)

    def to(self, device: torch.device) -> Images:
        """The same images on a device."""
        return Images(self.name, self.split, self.pixels.to(device), self.y.to(device), self.classes)


def load(name: str, split: Split, root: Path) -> Images:
    """One part of a data set.

    Args:
        name: a registered name, a family such as `folder:PATH`, or `my.py:function`; `@resize=32` makes the images 32x32.
        split: `train` (with the validation images still inside, see `hold_out`) or `test`.
        root: the folder where downloads are kept.

    Raises:
        UsageError: if nobody knows the name.
        DataError: if the files are absent or damaged.
    """
    entry = DATASETS.entry(name)
    loader = DATASETS.load(entry)
    options = dict(entry.options)
    size = options.get("resize")
    if size is not None:
        checked_size(size)
    images = as_images(_called(loader, entry.name, split, root, options), entry.name, split)
    pixels = images.pixels if size is None else resized(images.pixels, size)
    return Images(entry.name, split, pixels, images.y, images.classes)


def _called(loader: Any, name: str, split: Split, root: Path, options: dict[str, Any]) -> Any:
    """What a loader returns; it is told `split`, `root` and `resize` if it takes them.

    Raises:
        DataError: if it takes no `split` and training images are wanted, which would be the test images.
        UsageError: if it does not take the options, or stops.
    """
    if not callable(loader):
        return loader
    try:
        bare = inspect.isclass(loader) and loader.__init__ is object.__init__
        parameters = {} if bare else dict(inspect.signature(loader).parameters)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"dataset {name!r}: cannot see what its function takes ({error}); wrap it in one of yours"
        ) from None
    open_ended = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    if "split" not in parameters and not open_ended and split is not Split.TEST:
        raise DataError(
            f"{name} takes no `split`, so its images are test images; give it an argument `split` to train on it"
        )
    told = {"split": split, "root": root, **options}
    if unknown := [key for key in options if key not in parameters and not open_ended and key != "resize"]:
        options_there = [key for key in (*parameters, "resize") if key not in ("split", "root")]
        raise UsageError(
            f"dataset {name!r} takes no option {unknown[0]!r} (options: {', '.join(dict.fromkeys(options_there))})"
        )
    if "resize" not in parameters:
        told.pop("resize", None)
    try:
        return loader(**{key: value for key, value in told.items() if key in parameters or open_ended})
    except RobenchError:
        raise
    except Exception as error:
        if getattr(loader, "__module__", "").startswith("robench."):
            raise
        raise UsageError(f"dataset {name!r} cannot be made: {type(error).__name__}: {error}") from error


def as_images(found: Any, name: str, split: Split) -> Images:
    """What a loader returned, as `Images`.

    Args:
        found: `Images`; a pair of images and labels as tensors or arrays; or what can be indexed for (image, label).
        name: of the data set.
        split: which part it is.

    Raises:
        DataError: if it is nothing of these, or its pixels are no pixels.
    """
    if isinstance(found, Images):
        return found
    if isinstance(found, tuple | list) and len(found) in (2, 3) and hasattr(found[0], "shape"):
        pixels, y = pixels_of(found[0], name), labels_of(found[1], name)
        return Images(name, split, pixels, y, int(found[2]) if len(found) == 3 else int(y.max()) + 1)
    if hasattr(found, "__len__") and hasattr(found, "__getitem__") and not isinstance(found, str | bytes | dict):
        pairs = [found[index] for index in range(len(found))]
        if pairs and all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
            return _from_pairs(found, pairs, name, split)
    raise DataError(
        f"{name} gave a {type(found).__name__}; expected (images, labels), a torch data set, or robench.data.Images"
    )


def _from_pairs(found: Any, pairs: list[Any], name: str, split: Split) -> Images:
    """The items of a torch data set."""
    y = labels_of([int(label) for _, label in pairs], name)
    named = getattr(found, "classes", None)
    classes = len(named) if named else int(y.max()) + 1
    if all(isinstance(image, Tensor) for image, _ in pairs):
        if len({image.shape for image, _ in pairs}) > 1:
            raise DataError(f"{name}: its images differ in size; resize them to one size")
        return Images(name, split, pixels_of(torch.stack([image for image, _ in pairs]), name), y, classes)
    pixels = stacked([image for image, _ in pairs], [f"{name} image {index}" for index in range(len(pairs))])
    return Images(name, split, pixels, y, classes)


def shuffled(images: Images) -> Images:
    """Images in one fixed order, where they stood class by class: `--count N` takes the first N."""
    if len(images) < 2 or bool((images.y.diff() < 0).any()) or bool((images.y == images.y[0]).all()):
        return images
    return images.take(permutation(seed_of("shuffled", images.split.value), len(images)))


def labelled(images: Images, share: float, seed: int) -> Images:
    """The images whose labels may be used: the same share of every class, which ones by the seed.

    Args:
        images: training images.
        share: in (0, 1].
        seed: of the run.

    Raises:
        DataError: if that leaves a class without an image.
    """
    return images if share == 1 else images.take(_chosen(images, share, seed))


def smallest_class(images: Images) -> int:
    """How many images the class has of which there are fewest."""
    return int(images.y.bincount(minlength=images.classes).min())


def unlabelled(images: Images, share: float, seed: int) -> Tensor:
    """The pixels of the images that `labelled` leaves out; their labels stay behind."""
    rest = torch.ones(len(images), dtype=torch.bool, device=images.pixels.device)
    rest[slice(None) if share == 1 else _chosen(images, share, seed)] = False
    return images.pixels[rest]


def _chosen(images: Images, share: float, seed: int) -> Tensor:
    """The positions of the same share of every class."""
    order = permutation(seed_of("labels", images.name, seed), len(images)).to(images.y.device)
    chosen = []
    for label in range(images.classes):
        here = order[images.y[order] == label]
        count = round(share * len(here))
        if count == 0:
            least = 0.5 / max(len(here), 1)
            raise DataError(
                f"labels={share:g} leaves no image of class {label} of {images.name}, which has {len(here)} to train on; "
                + (f"use more than {least:.2g}" if len(here) else "it can only be trained on with labels=1")
            )
        chosen.append(here[:count])
    return torch.cat(chosen).sort().values


def hold_out(images: Images, count: int) -> tuple[Images, Images | None]:
    """Cut a validation split from training images; which images is fixed for good by the data set's name.

    Args:
        images: all training images.
        count: how many to hold out.

    Returns:
        Training and validation images; None in place of the latter when count is 0.

    Raises:
        DataError: if that would leave no training images.
    """
    if not 0 <= count < len(images):
        raise DataError(f"{images.name}: cannot hold out {count} of {len(images)} training images; lower `validation`")
    if count == 0:
        return images, None
    order = permutation(seed_of("validation", images.name), len(images))
    held, kept = order[:count].sort().values, order[count:].sort().values
    return images.take(kept), images.take(held, Split.VALIDATION)
