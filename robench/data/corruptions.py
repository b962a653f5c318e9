"""Corrupted test images in the layout of CIFAR-10-C: NAME.npy for each corruption, five severities in turn, and labels.npy.

Source: Hendrycks & Dietterich 2019.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from robench.data import Images, Split
from robench.data.npz import unreadable
from robench.errors import DataError, UsageError, nearest
from robench.pixels import labels_of, pixels_of

SEVERITIES = 5


def load(
    *,
    corruption: str,
    split: Split,
    root: Path,
    folder: str = "",
    severity: int | None = None,
    classes: int | None = None,
) -> Images:
    """The images of one corruption, at one severity or at all five.

    Args:
        corruption: the file without `.npy`; it may have a path before it.
        split: test; there is nothing to train on.
        root: where data sets are kept.
        folder: where the files are, under `root` unless it is there as it stands.
        severity: 1 to 5; all when None, whose accuracy is the mean over severities.
        classes: how many; one more than the largest label when None.

    Raises:
        DataError: if the files are absent, damaged or do not fit together, or training images are asked for.
        UsageError: for a severity that is not 1 to 5.
    """
    if split is not Split.TEST:
        raise DataError(f"{corruption}: corrupted images are for tests only; train on the data set they are made of")
    if severity is not None and severity not in range(1, SEVERITIES + 1):
        raise UsageError(f"severity must be 1 to {SEVERITIES}, or left away for all of them, not {severity!r}")
    path = Path(folder or ".") / f"{corruption}.npy"
    path = path if path.is_file() else root / path
    pixels = _array(path, corruption)
    labels = _array(path.parent / "labels.npy", "labels")
    count = len(pixels) // SEVERITIES
    if len(pixels) % SEVERITIES or len(labels) not in (count, len(pixels)):
        raise DataError(
            f"{path} has {len(pixels)} images and labels.npy {len(labels)}; expected five severities of equal size"
        )
    labels = labels if len(labels) == len(pixels) else np.tile(labels, SEVERITIES)
    kept = slice(None) if severity is None else slice((severity - 1) * count, severity * count)
    y = labels_of(labels, str(path.parent / "labels.npy"))
    return Images(corruption, split, pixels_of(pixels[kept], str(path)), y[kept], classes or int(y.max()) + 1)


def _array(path: Path, name: str) -> Any:
    """A file of numpy.save, read only where it is looked at."""
    if not path.is_file():
        there = sorted(each.stem for each in path.parent.glob("*.npy") if each.stem != "labels")
        match = nearest(name, there)
        guess = f" Did you mean {match!r}?" if match else ""
        listed = f" (there: {', '.join(there)})" if there else " Unpack the archive of the corrupted images there"
        raise DataError(f"there is no {path.name} in {path.parent}.{guess}{listed}")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(unreadable(path, error, "save")) from None
