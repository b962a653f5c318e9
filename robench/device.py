"""Where to compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from robench.errors import UsageError

T = TypeVar("T")
_SHORT = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "MPS backend out of memory",
)


def chosen(name: str) -> torch.device:
    """The device that was asked for, by torch's name, or with `auto` the best there is.

    Raises:
        UsageError: if it is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, is_there in there.items() if is_there)
    if not there.get(name.partition(":")[0], False):
        raise UsageError(f"--device {name}: this machine has none that torch can use; try --device auto")
    return torch.device(name)


def named(device: torch.device) -> str:
    """How provenance calls a device: a GPU by its model, too."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def exhausted(error: BaseException) -> bool:
    """Whether an error says that there was too little memory; not every device has a class for that."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SHORT)


def halving(run: Callable[[int], T], batch: int) -> tuple[T, int]:
    """Do something with so many images at once, with half as many where memory is short, and so on.

    Args:
        run: takes how many images pass at once; what it returns may not depend on that.
        batch: how many at first.

    Returns:
        What `run` returned, and how many it were at last.

    Raises:
        torch.OutOfMemoryError: if not even one image fits; or what else the device raises then.
    """
    while True:
        try:
            return run(batch), batch
        except (RuntimeError, MemoryError) as error:
            if batch == 1 or not exhausted(error):
                raise
            batch //= 2
