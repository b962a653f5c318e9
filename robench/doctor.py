"""What `robench doctor` looks at: versions, devices, extras, plug-ins and room on the disk."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from robench import __version__, registry
from robench.errors import RobenchError, first_line
from robench.names import Registry
from robench.provenance import installed
from robench.recipe import names

State = Literal["ok", "absent", "wrong"]

# package -> the extra that brings it, or nothing for what robench cannot do without
CORE = (
    *("torch", "torchvision", "numpy", "pandas", "safetensors", "scikit-learn", "scipy", "statsmodels"),
    *("pyautoattack", "click", "rich"),
)
EXTRAS: Mapping[str, str] = {
    "torchattacks": "torchattacks",
    "matplotlib": "plot",
    "timm": "timm",
    "transformers": "transformers",
    "huggingface_hub": "hub",
    "onnxruntime": "onnx",
    "datasets": "hf",
    "robustbench": "robustbench",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "submitit": "cluster",
}
LOW = 2e9  # bytes that a few checkpoints of a ResNet-18 and their results need


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: it is.
        state: `ok`, `absent` (which only some commands mind), or `wrong`.
        text: what was seen, and what to do.
    """

    what: str
    state: State
    text: str


def findings(places: Mapping[str, Path], device: str = "auto", threads: int | None = None) -> list[Finding]:
    """Everything, in the order it is printed.

    Args:
        places: folders by what they are for.
        device: that was asked for.
        threads: of the CPU, likewise.
    """
    return [
        *_versions(),
        *_devices(threads),
        *_asked(device),
        _torchvision(),
        *_extras(),
        *_plugins(),
        _recipes(),
        *_disk(places),
    ]


def _versions() -> Iterator[Finding]:
    yield Finding(
        "robench", "ok", f"{__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}"
    )
    for package in CORE:
        found = installed(package)
        yield Finding(package, "ok" if found else "wrong", found or f"not installed: pip install {package}")


def _asked(name: str) -> Iterator[Finding]:
    """Whether the device that was asked for is there."""
    from robench.device import chosen

    if name == "auto":
        return
    try:
        yield Finding(f"--device {name}", "ok", f"torch computes on {chosen(name)}")
    except RobenchError as error:
        yield Finding(f"--device {name}", "wrong", str(error).partition(": ")[2])


def _devices(asked: int | None) -> Iterator[Finding]:
    import torch

    if asked:
        torch.set_num_threads(asked)
    count, threads = os.cpu_count() or 1, torch.get_num_threads()
    yield Finding("cpu", "ok", f"{count} cores, torch uses {threads} threads (--threads 1 on a busy machine)")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(index).total_memory / 2**30
            yield Finding(f"cuda:{index}", "ok", f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB")
    else:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        yield Finding("cuda", "absent", f"torch {torch.__version__} is {built} and sees no GPU: --device cpu is used")


def _torchvision() -> Finding:
    """Whether its compiled part loads, which a build for another torch does not."""
    return _tried("torchvision's compiled part", _nms, "install the torchvision that belongs to this torch")


def _nms() -> str:
    import torch
    from torchvision.ops import nms

    kept = nms(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([1.0]), 0.5)
    return f"loads ({len(kept)} box kept)"


def _tried(what: str, run: Callable[[], str], remedy: str) -> Finding:
    try:
        return Finding(what, "ok", run())
    except Exception as error:  # what is broken may break in any way
        return Finding(what, "wrong", f"{type(error).__name__}: {first_line(error)}; {remedy}")


def _extras() -> Iterator[Finding]:
    for package, extra in EXTRAS.items():
        found = installed(package)
        if found is None:
            yield Finding(package, "absent", f"pip install 'robench[{extra}]'")
        else:
            yield Finding(package, "ok", found)


def _plugins() -> Iterator[Finding]:
    for kind in (
        registry.METHODS,
        registry.ATTACKS,
        registry.DATASETS,
        registry.MODELS,
        registry.CLASSIFIERS,
        registry.TRACKERS,
    ):
        try:
            points = kind.plugins()
        except RobenchError as error:
            yield Finding(f"plug-ins: {kind.kind}s", "wrong", str(error))
            continue
        for name in points:
            yield _tried(
                f"plug-in {kind.kind} {name}",
                partial(_imported, kind, name),
                "its package is broken",
            )


def _imported(kind: Registry, name: str) -> str:
    entry = kind.entry(name)
    kind.load(entry)
    return entry.target


def _recipes() -> Finding:
    count = len(names())
    return Finding(
        "recipes", "ok" if count else "wrong", f"{count} in the package" + ("" if count else ": install it again")
    )


def _disk(places: Mapping[str, Path]) -> Iterator[Finding]:
    for what, path in places.items():
        there = next(each for each in (path.resolve(), *path.resolve().parents) if each.exists())
        room = os.statvfs(there)
        free = room.f_bavail * room.f_frsize
        writable = os.access(there, os.W_OK)
        text = f"{path}: {free / 1e9:.0f} GB free" + ("" if path.exists() else ", not there yet")
        if path.exists() and not path.is_dir():
            yield Finding(what, "wrong", f"{path} is a file: name a folder")
        elif not writable:
            yield Finding(what, "wrong", f"{path} cannot be written: name another folder")
        else:
            yield Finding(what, "ok" if free > LOW else "wrong", text + ("" if free > LOW else ": make room"))
