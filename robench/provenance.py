"""Where a number came from: versions, machine, command and time, recorded beside every checkpoint and result."""

from __future__ import annotations

import datetime
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from robench import __version__

PACKAGES = ("torch", "torchvision", "numpy", "pyautoattack", "torchattacks", "timm", "onnxruntime")


def provenance(device: str, threads: int) -> dict[str, Any]:
    """What a reader needs to repeat a run; pure text and numbers.

    Args:
        device: the device that computed, such as `cpu` or `cuda (NVIDIA H200)`.
        threads: CPU threads torch was allowed.
    """
    return {
        "robench": __version__,
        "python": platform.python_version(),
        **{package: found for package in PACKAGES if (found := installed(package))},
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device,
        "threads": threads,
        "command": [part if i else part.rsplit("/", 1)[-1] for i, part in enumerate(sys.argv)],
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def installed(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
