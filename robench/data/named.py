"""Any data set of torchvision by its class, and of the Hugging Face Hub by its name."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch

from robench.data import Images, Split, shuffled
from robench.errors import DataError, UsageError, first_line, missing, nearest
from robench.pixels import stacked


def torchvision_set(*, name: str, split: Split, root: Path, resize: int | None = None, **options: Any) -> Images:
    """One part of a data set of torchvision, downloaded when absent.

    Args:
        name: its class there, such as KMNIST or GTSRB.
        split: by its `train=`, or its `split=` where the options do not say that.
        root: where downloads are kept.
        resize: make each image so high and wide; needed where they differ.
        options: of the class.

    Raises:
        UsageError: if there is no such class, or it takes other options.
        DataError: if it is absent and cannot be downloaded, or holds no labelled images.
    """
    from torchvision import datasets

    cls = getattr(datasets, name, None)
    if not inspect.isclass(cls):
        match = nearest(name, datasets.__all__)
        guess = f" Did you mean {match!r}?" if match else ""
        raise UsageError(
            f"torchvision has no data set {name!r}.{guess} ({len(datasets.__all__)} known: torchvision.datasets)"
        )
    known = inspect.signature(cls).parameters
    if bad := [key for key in options if key not in known]:
        raise UsageError(f"torchvision:{name} takes no option {bad[0]!r} (options: {', '.join(known)})")
    found = _opened(cls, name, {**_part(name, known, split, options), **_kept(known, root), **options}, known)
    return _images(f"torchvision:{name}", found, split, resize)


def _part(name: str, known: Any, split: Split, options: dict[str, Any]) -> dict[str, Any]:
    """How a class is told which part is wanted.

    Raises:
        DataError: for training images of a set that has no parts.
    """
    if "train" in known:
        return {"train": split is not Split.TEST}
    if "split" in known and "split" not in options:
        return {"split": "test" if split is Split.TEST else "train"}
    if split is not Split.TEST:
        raise DataError(f"torchvision:{name} has no parts for training and test; its images are test images")
    return {}


def _kept(known: Any, root: Path) -> dict[str, Any]:
    return {"root": str(root)} if "root" in known else {}


def _opened(cls: Any, name: str, arguments: dict[str, Any], known: Any) -> Any:
    """The data set as it lies there, or else downloaded."""
    for download in [{"download": False}, {"download": True}] if "download" in known else [{}]:
        try:
            return cls(**arguments, **download)
        except Exception as error:  # its classes raise as they like for what is not there
            last = error
    raise DataError(
        f"torchvision:{name} is not in {arguments.get('root', 'the given place')} and cannot be downloaded "
        f"({type(last).__name__}: {first_line(last)}). Fetch it where there is a network, or name another folder with --data"
    ) from last


def _images(name: str, found: Any, split: Split, resize: int | None) -> Images:
    """Every (image, label) of a data set that can be indexed."""
    pairs = [found[index] for index in range(len(found))]
    if not pairs or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise DataError(f"{name} does not give pairs of an image and a label; write a function: my.py:make_dataset")
    try:
        y = torch.tensor([int(label) for _, label in pairs], dtype=torch.int64)
    except (TypeError, ValueError):
        raise DataError(f"{name}: its labels are not class numbers; write a function: my.py:make_dataset") from None
    pixels = stacked((image for image, _ in pairs), [f"image {index}" for index in range(len(pairs))], resize)
    named = getattr(found, "classes", None)
    return shuffled(Images(name, split, pixels, y, len(named) if named else int(y.max()) + 1))


def hub_set(
    *,
    name: str,
    split: Split,
    root: Path,
    resize: int | None = None,
    config: str | None = None,
    image: str = "",
    label: str = "",
    part: str = "",
) -> Images:
    """One part of a data set that the package `datasets` can load: from the Hub, or a folder it saved.

    Args:
        name: OWNER/NAME on the Hub, or a folder.
        split: which part.
        root: where downloads are kept, under `hf`.
        resize: make each image so high and wide; needed where they differ.
        config: its configuration, where it has several.
        image: the column of images; the only one when empty.
        label: the column of labels; the only one of class labels when empty.
        part: what it calls the part; train, or test or else validation, when empty.

    Raises:
        UsageError: if `datasets` is not installed.
        DataError: if it cannot be loaded, or has no such column or part.
    """
    try:
        import datasets
    except ImportError as error:
        raise missing(f"hf:{name}", "datasets", "hf", error) from None
    try:
        if Path(name).is_dir() and any((Path(name) / each).is_file() for each in ("dataset_dict.json", "state.json")):
            every = datasets.load_from_disk(name)
        else:
            every = datasets.load_dataset(name, config, cache_dir=str(root / "hf"))
    except Exception as error:  # its errors are of many kinds, also those of the network below it
        raise DataError(
            f"hf:{name} cannot be loaded ({type(error).__name__}: {first_line(error)}). Fetch it where there is a network and "
            "name its folder"
        ) from error
    table = _table(every, name, split, part)
    kinds = {column: type(feature).__name__ for column, feature in table.features.items()}
    image = image or _column(name, kinds, "Image", "image")
    label = label or _column(name, kinds, "ClassLabel", "label")
    for column in (image, label):
        if column not in kinds:
            raise DataError(f"hf:{name} has no column {column!r} (columns: {', '.join(kinds)})")
    pixels = stacked(table[image], [f"hf:{name} image {index}" for index in range(len(table))], resize)
    y = torch.tensor(list(table[label]), dtype=torch.int64)
    classes = getattr(table.features[label], "num_classes", None) or int(y.max()) + 1
    return shuffled(Images(f"hf:{name}", split, pixels, y, classes))


def _table(every: Any, name: str, split: Split, part: str) -> Any:
    """The part that is wanted."""
    if not hasattr(every, "keys"):
        if split is not Split.TEST:
            raise DataError(f"hf:{name} is one part without a name; its images are test images")
        return every
    wanted = [part] if part else ["test", "validation"] if split is Split.TEST else ["train"]
    found = next((each for each in wanted if each in every), None)
    if found is None:
        raise DataError(f"hf:{name} has no part {wanted[0]!r} (parts: {', '.join(every)}): name one with @part=")
    return every[found]


def _column(name: str, kinds: dict[str, str], kind: str, option: str) -> str:
    found = [column for column, each in kinds.items() if each == kind]
    if len(found) != 1:
        raise DataError(
            f"hf:{name} has {len(found)} columns of kind {kind} (columns: {', '.join(kinds)}): name one with @{option}="
        )
    return found[0]
