"""Where to compute."""

from __future__ import annotations

import torch

from robench.errors import UsageError


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
