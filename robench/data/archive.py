"""CIFAR's archives, read in memory: digest first, then the members that are known by name; nothing is extracted."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from robench.errors import DataError

LARGEST = 200 * 2**20  # bytes of a member; the largest there is has 155 million
_ARRAYS = {(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")} | {
    *(("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")),
}


@dataclass(frozen=True)
class Found:
    """The images of an archive as torchvision has them.

    Attributes:
        data: (n, 32, 32, 3), uint8.
        targets: labels, (n,).
    """

    data: numpy.ndarray[Any, Any]
    targets: list[int]


class _Arrays(pickle.Unpickler):
    """Opens what is made of arrays, numbers and texts."""

    def find_class(self, module: str, name: str) -> Any:
        """What makes an array.

        Raises:
            ValueError: for anything else.
        """
        if (module, name) not in _ARRAYS:
            raise ValueError(f"it would run {module}.{name}, and images are arrays")
        return super().find_class(module, name)


def read(cls: Any, root: Path, train: bool) -> Found | None:
    """One part of a data set, from its archive.

    Args:
        cls: the torchvision class, which knows names and MD5 of the archive and its members.
        root: the folder the archive is in.
        train: whether the training images are wanted, not the test images.

    Returns:
        The images, or None if there is no archive.

    Raises:
        DataError: if archive or member is not what was published.
    """
    path = root / cls.filename
    if not path.is_file():
        return None
    check(path, cls.tgz_md5)
    wanted = {f"{cls.base_folder}/{name}": md5 for name, md5 in (cls.train_list if train else cls.test_list)}
    tables: dict[str, Any] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if member.name in wanted and (stream := archive.extractfile(member)) is not None:
                    tables[member.name] = _table(stream.read(LARGEST + 1), wanted[member.name])
    except (OSError, tarfile.TarError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise DataError(f"{path} cannot be read: {error}: delete it and fetch it again") from None
    if missing := sorted(wanted.keys() - tables.keys()):
        raise DataError(f"{path} has no {missing[0]}: delete it and fetch it again")
    parts = [tables[name] for name in wanted]
    data = numpy.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Found(data, [label for part in parts for label in part.get("labels", part.get("fine_labels"))])


def check(path: Path, expected: str) -> None:
    """Compare a file with the MD5 it was published with.

    Raises:
        DataError: if it differs.
    """
    with path.open("rb") as stream:
        actual = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if actual != expected:
        raise DataError(f"{path} is damaged (MD5 {actual}, expected {expected}): delete it and fetch it again")


def _table(content: bytes, md5: str) -> Any:
    if len(content) > LARGEST:
        raise ValueError(f"a member has over {LARGEST:,} bytes")
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise ValueError("a member is not what was published: its MD5 differs")
    return _Arrays(io.BytesIO(content), encoding="latin1").load()
