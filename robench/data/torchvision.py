"""Data sets through torchvision, which checks the digest of every file it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import torch

from robench.data import Images, Split, archive
from robench.errors import DataError

# what to put where when there is no network: the file to fetch, and the folder below the root
_FILES = {
    "CIFAR10": ("cifar-10-python.tar.gz", "cifar-10-batches-py"),
    "CIFAR100": ("cifar-100-python.tar.gz", "cifar-100-python"),
    "SVHN": ("train_32x32.mat and test_32x32.mat", ""),
    "MNIST": ("train-images-idx3-ubyte.gz and its three sisters", "MNIST/raw"),
    "FashionMNIST": ("train-images-idx3-ubyte.gz and its three sisters", "FashionMNIST/raw"),
    "STL10": ("stl10_binary.tar.gz", "stl10_binary"),
}

# torchvision checks the archives of these when it downloads them, but not the unpacked files it reads later
_RAW = {
    "MNIST": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    }
}


def load(*, name: str, split: Split, root: Path) -> Images:
    """One part of a torchvision data set, downloaded when absent.

    Raises:
        DataError: if it is absent and cannot be downloaded; the message names the folder, the file and the remedy.
    """
    from torchvision import datasets

    test = split is Split.TEST
    by_split = {"split": "test" if test else "train"}
    arguments: dict[str, Any] = by_split if name in ("SVHN", "STL10") else {"train": not test}
    cls = getattr(datasets, name)
    try:
        found = cls(str(root), download=False, **arguments)
    except (RuntimeError, OSError):
        _check_files(cls, root)  # which torchvision would fetch again without a word
        found = _download(cls, name, root, arguments)
    _check_raw(name, root)
    data = numpy.asarray(found.data)
    pixels = torch.from_numpy(numpy.ascontiguousarray(data))
    if name in ("CIFAR10", "CIFAR100"):
        pixels = pixels.permute(0, 3, 1, 2).contiguous()
    elif pixels.ndim == 3:
        pixels = pixels[:, None]
    y = torch.as_tensor(numpy.asarray(found.labels if name in ("SVHN", "STL10") else found.targets), dtype=torch.int64)
    return Images(name, split, pixels, y, 100 if name == "CIFAR100" else 10)


def _check_files(cls: Any, root: Path) -> None:
    """Tell a file that is there, but not what was published, from one that is absent."""
    folder = root / getattr(cls, "base_folder", "")
    listed = [*getattr(cls, "train_list", ()), *getattr(cls, "test_list", ())]
    listed += [row[1:] for row in getattr(cls, "split_list", {}).values()]
    for file, expected in listed:
        if (path := folder / file).is_file():
            archive.check(path, expected)


def _check_raw(name: str, root: Path) -> None:
    """Check the files that torchvision reads without checking them."""
    for file, expected in _RAW.get(name, {}).items():
        archive.check(root / name / "raw" / file, expected)


def _download(cls: Any, name: str, root: Path, arguments: dict[str, Any]) -> Any:
    file, folder = _FILES[name]
    from torchvision.datasets.utils import download_url

    try:
        if not hasattr(cls, "tgz_md5") or name == "STL10":  # whose archive is too large to go through each time
            return cls(str(root), download=True, **arguments)
        if not (root / cls.filename).is_file():
            download_url(cls.url, str(root), cls.filename, cls.tgz_md5)
        return archive.read(cls, root, arguments["train"])
    except (RuntimeError, OSError, ValueError) as error:
        raise DataError(
            f"{name} is not in {root.resolve()} and cannot be downloaded ({type(error).__name__}). Fetch {file} where "
            f"there is a network, put it into {root.resolve() / folder} (archives unpacked; CIFAR's may "
            f"also lie in {root.resolve()} as they are), or name another folder with --data. robench demo needs no "
            "network"
        ) from error
