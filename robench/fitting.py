"""Weights from elsewhere into a network: all of them, or why they cannot be."""

from __future__ import annotations

import contextlib
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from robench import files, tensors
from robench.errors import CheckpointError
from robench.registry import MODELS

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.")  # what wrappers put before each name
ALIKE = 0.8  # the least share of tensors two architectures must have in common to be called near
FAMILIES = (
    "resnet",
    "wide_resnet",
    "resnext50",
    "vgg",
    "densenet",
    "mobilenet",
    "convnext_t",
    "efficientnet_b0",
    "vit_b",
)


def sniff(path: Path, sha256: str = "") -> None:
    """Look at the first bytes of what should be weights.

    Args:
        path: of the file.
        sha256: what its digest must be, if that is known.

    Raises:
        CheckpointError: if there is no such file, or it is a web page.
    """
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; name the file of the weights") from None
    if page := files.web_page(path, "weights", sha256):
        raise CheckpointError(page)


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, by `tensors.read_file`, which runs no code in it.

    Raises:
        CheckpointError: if it is absent, a web page, a whole model, would run code, or holds no weights.
    """
    sniff(path)
    if zipfile.is_zipfile(path):
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise CheckpointError(f"{path.name} is TorchScript, a whole model: --model torchscript:{path.name}")
    return tensors.read_file(path)


def fit(network: nn.Module, stored: Mapping[str, Tensor], what: str) -> str:
    """Put stored weights into a network, all of them.

    Args:
        network: gets the weights.
        stored: tensors by name; what wrappers such as DataParallel put before every name is taken away.
        what: how messages call the network.

    Returns:
        What was taken away, or nothing.

    Raises:
        CheckpointError: if a tensor is missing, left over, of another shape or not finite; it names the first, and the
            known architecture that is nearest.
    """
    wanted = network.state_dict()
    given, taken = _stripped(stored, wanted)
    differ = [key for key in {**wanted, **given} if not _same(given.get(key), wanted.get(key))]
    differ = [key for key in differ if key in given or not key.endswith("num_batches_tracked")]  # old files have none
    if differ:
        raise CheckpointError(_unfit(given, wanted, differ, what, taken))
    broken = [key for key, tensor in given.items() if tensor.is_floating_point() and not bool(tensor.isfinite().all())]
    if broken:
        raise CheckpointError(f"these weights hold NaN or infinite numbers (first in {broken[0]}); fetch them again")
    network.load_state_dict(dict(given), strict=False)
    return taken


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape


def _stripped(stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], str]:
    """The tensors by the network's own names, and the prefix that was taken away."""
    taken, given = "", stored
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in given)), ""):
        if any(key.startswith(prefix) for key in wanted):
            break
        given = {key.removeprefix(prefix): tensor for key, tensor in given.items()}
        taken += prefix
    return given, taken


def _unfit(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], differ: list[str], what: str, taken: str) -> str:
    """How weights and a network differ, in a line."""
    first = differ[0]
    have, want = given.get(first), wanted.get(first)
    total = len({*given, *wanted})
    text = f"these weights do not fit {what}: {len(differ)} of {total} tensors differ. First: "
    if have is None:
        text += f"{first} is missing, the model has {_shape(want)}"
    elif want is None:
        text += f"{first} is {_shape(have)}, the model has none"
    else:
        text += f"{first} is {_shape(have)}, the model has {_shape(want)}"
        if len(differ) <= 2 and have.shape[1:] == want.shape[1:]:
            text += f": {have.shape[0]} classes? pass {what}@num_classes={have.shape[0]}"
    text += f". Keys start with '{taken}': stripped automatically" if taken else ""
    near = nearest_architecture(given) if len(differ) > 2 else ""
    return text + (f". They look like {near}" if near else "")


def _shape(tensor: Tensor | None) -> str:
    return str(tuple(tensor.shape)) if tensor is not None else "none"


def nearest_architecture(stored: Mapping[str, Tensor]) -> str:
    """The known architecture whose tensors have the shapes of stored ones, but for the last layer; empty if none is near."""
    sizes = Counter(tuple(tensor.shape) for tensor in stored.values() if tensor.ndim)
    best, name = 0.0, ""
    for known, make in _known():
        try:
            with torch.device("meta"):
                built = Counter(tuple(tensor.shape) for tensor in make().state_dict().values() if tensor.ndim)
        except (NotImplementedError, RuntimeError, ValueError):
            continue  # a model that cannot be built without memory is not looked at
        both, either = sizes & built, sizes | built
        share = sum(both.values()) / max(sum(either.values()), 1)
        if share > best:
            best, name = share, known
    return name if best >= ALIKE else ""


def _known() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Architectures with a name: ours, then those of torchvision that people train."""
    for name, row in MODELS.rows.items():
        make = MODELS.load(row)
        yield name, lambda make=make: make(3)  # type: ignore[misc]
    from torchvision import models

    for name in models.list_models(module=models):
        if name.startswith(FAMILIES):
            yield f"torchvision:{name}", lambda name=name: models.get_model(name)  # type: ignore[misc]
