"""Your own images as one file of `numpy.savez`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from robench import files
from robench.data import Images, Split
from robench.errors import DataError, first_line
from robench.pixels import labels_of, pixels_of

PAIRS = (("x", "y"), ("images", "labels"), ("image", "label"), ("data", "labels"))


def load(*, file: str, split: Split, root: Path, classes: int | None = None) -> Images:
    """Read arrays `x_test` and `y_test` (and `x_train`, `y_train`), or `x` and `y`, which are test images.

    Args:
        file: of numpy.savez; images are uint8, or floats in [0, 1], NHWC or NCHW.
        split: which part.
        root: not used.
        classes: how many; else the array `classes`, or one more than the largest label.

    Raises:
        DataError: if it cannot be read, or the arrays are not there.
    """
    try:
        with np.load(file, allow_pickle=False) as found:
            arrays = {key: found[key] for key in found.files}
    except (OSError, ValueError, TypeError, EOFError, AttributeError, BadZipFile) as error:
        raise DataError(unreadable(Path(file), error)) from None
    part = "test" if split is Split.TEST else "train"
    keys = next((pair for pair in _pairs(part) if pair[0] in arrays and pair[1] in arrays), None)
    if keys is None:
        wanted = "x_test and y_test, or x and y" if split is Split.TEST else "x_train and y_train"
        raise DataError(f"{file} holds {', '.join(sorted(arrays)) or 'nothing'}; expected arrays {wanted}")
    pixels, y = pixels_of(arrays[keys[0]], f"{file} {keys[0]}"), labels_of(arrays[keys[1]], f"{file} {keys[1]}")
    return Images(f"npz:{file}", split, pixels, y, classes or _classes(arrays, int(y.max()) + 1 if len(y) else 1))


def unreadable(path: Path, error: Exception, maker: str = "savez") -> str:
    """Why a file is none that numpy reads without running code, in our words: numpy itself advises to run it.

    Args:
        path: of the file.
        error: what numpy said.
        maker: the function of numpy that writes such a file.
    """
    if page := files.web_page(path, "images"):
        return page
    whole = f"{path} cannot be read as a file of numpy.{maker}"
    if isinstance(error, OSError) and error.strerror:
        return f"{whole}: {error.strerror}"
    with contextlib.suppress(OSError), path.open("rb") as stream:
        begins = stream.read(6)
        if not begins:
            return f"{whole}: it is empty. Fetch it again, or save it again"
        if maker == "savez" and begins == b"\x93NUMPY":
            return (
                f"{whole}: it is one array, as numpy.save writes it; numpy.savez(FILE, x=images, y=labels) holds both"
            )
        known = begins == b"\x93NUMPY" or begins[:2] == b"PK"
        if known and "pickle" in str(error):
            return f"{whole}: it holds Python objects, which may run code. Save plain arrays of numbers"
        if known:
            return f"{whole}: it is damaged ({first_line(error)}). Fetch it again, or save it again"
    return f"{whole}: it is of another kind. Name the file that numpy.{maker} wrote"


def _pairs(part: str) -> list[tuple[str, str]]:
    """Names of arrays for a part; without one they are test images."""
    named = [(f"{x}_{part}", f"{y}_{part}") for x, y in PAIRS]
    return [*named, *PAIRS] if part == "test" else named


def _classes(arrays: Mapping[str, Any], least: int) -> int:
    """What the file says, or as many as its labels need in either part."""
    if "classes" in arrays and arrays["classes"].ndim == 0:
        return int(arrays["classes"])
    labels = [arrays[y] for pair in (*_pairs("test"), *_pairs("train")) if (y := pair[1]) in arrays]
    return max([least, *(int(each.max()) + 1 for each in labels if each.size)])
