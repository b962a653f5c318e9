"""Your own images as files: a folder a class, in parts or not."""

from __future__ import annotations

from pathlib import Path

import torch

from robench.data import Images, Split, shuffled
from robench.data.imagefolder import load as parts
from robench.errors import DataError
from robench.pixels import stacked

KINDS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def load(*, path: str, split: Split, root: Path, resize: int | None = None) -> Images:
    """Read PATH/CLASS/IMAGE as test images, or PATH/train and PATH/test where those are there. Classes are sorted by name.

    The order of the images is mixed once, the same for the same files, since they lie class by class.

    Args:
        path: the folder.
        split: which part.
        root: not used.
        resize: make each image so high and wide, by its shorter side and its centre; else all must have one size.

    Raises:
        DataError: if there are no images, they cannot be read, or training images are asked for and there are none.
    """
    folder = Path(path)
    if (folder / "test").is_dir() or (folder / "train").is_dir():
        if resize is None:
            found = parts(path=path, split=split, root=root)
            return shuffled(Images(f"folder:{path}", split, found.pixels, found.y, found.classes))
        folder = folder / ("test" if split is Split.TEST else "train")
    elif split is not Split.TEST:
        raise DataError(
            f"{path} holds test images only; to train put them into {path}/train/CLASS and {path}/test/CLASS"
        )
    return _read(folder, f"folder:{path}", split, resize)


def _read(folder: Path, name: str, split: Split, resize: int | None) -> Images:
    from PIL import Image, UnidentifiedImageError

    classes = sorted(each.name for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else []
    paths = [
        (path, label)
        for label, each in enumerate(classes)
        for path in sorted((folder / each).rglob("*"))
        if path.suffix.lower() in KINDS
    ]
    if empty := [each for label, each in enumerate(classes) if all(label != other for _, other in paths)]:
        raise DataError(f"{folder / empty[0]} holds no images; take the folder away, or put some in")
    if not paths:
        raise DataError(f"{folder} holds no class folders; expected {folder}/CLASS/IMAGE")
    images = []
    for path, _ in paths:
        try:
            with Image.open(path) as image:
                images.append(image.copy())
        except (OSError, UnidentifiedImageError) as error:
            raise DataError(f"{path} cannot be read as an image: {error}") from error
    pixels = stacked(images, [str(path) for path, _ in paths], resize)
    y = torch.tensor([label for _, label in paths], dtype=torch.int64)
    return shuffled(Images(name, split, pixels, y, len(classes)))
