"""Your own images, one folder a class."""

from __future__ import annotations

from pathlib import Path

import torch

from robench.data import Images, Split
from robench.errors import DataError


def load(*, path: str, split: Split, root: Path) -> Images:
    """Read PATH/train/CLASS/* or PATH/test/CLASS/*; all images must have one size. Classes are sorted by name.

    Raises:
        DataError: if the folders are absent, the classes of the two parts differ, or the sizes do.
    """
    from torchvision.datasets import ImageFolder
    from torchvision.transforms.functional import pil_to_tensor

    part = Path(path) / ("test" if split is Split.TEST else "train")
    names = _classes(part)
    other = Path(path) / ("train" if split is Split.TEST else "test")
    if other.is_dir() and _classes(other) != names:
        raise DataError(f"{part} and {other} hold different classes; give both the same sub-folders")
    try:
        found = ImageFolder(str(part), transform=pil_to_tensor)
    except OSError as error:
        raise DataError(f"{part}: {error}") from error
    pixels = []
    for number, (name, _) in enumerate(found.samples):
        try:
            pixels.append(found[number][0])
        except OSError as error:
            raise DataError(f"{name} cannot be read as an image: {error}") from error
    for (name, _), image in zip(found.samples, pixels, strict=True):
        if image.shape != pixels[0].shape:
            raise DataError(
                f"{name} is {image.shape[2]}x{image.shape[1]}, others are {pixels[0].shape[2]}x{pixels[0].shape[1]}; "
                "resize the images to one size first"
            )
    y = torch.tensor([label for _, label in found.samples], dtype=torch.int64)
    return Images(f"imagefolder:{path}", split, torch.stack(pixels), y, len(names))


def _classes(part: Path) -> list[str]:
    names = sorted(entry.name for entry in part.iterdir() if entry.is_dir()) if part.is_dir() else []
    if not names:
        raise DataError(f"{part} holds no class folders; expected {part}/CLASS/IMAGE")
    return names
