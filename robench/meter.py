"""What work on a device costs: wall time, peak memory, and energy where the device has a counter."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Cost:
    """What some work took.

    Attributes:
        seconds: of wall time.
        peak_memory: the most bytes that tensors held on the device at once; None on a device that does not count them. The
            peak of a whole process is no substitute, since it never falls and so belongs to no single piece of work.
        joules: the difference of the board's energy counter, so other work on the same board counts too; None without one.
    """

    seconds: float
    peak_memory: int | None
    joules: float | None


class Passes:
    """Counts the images that pass through an encoder.

    Attributes:
        forwards: images passed forward.
        backwards: images whose gradient was computed, of weights or of pixels.
    """

    def __init__(self) -> None:
        self.forwards = 0
        self.backwards = 0

    def counted(self, features: torch.Tensor) -> torch.Tensor:
        """The same features, counted, and once more when a gradient passes them."""
        count = len(features)
        self.forwards += count
        if features.requires_grad:
            features.register_hook(lambda _gradient: self._backward(count))
        return features

    def _backward(self, count: int) -> None:
        self.backwards += count

    def take(self) -> tuple[int, int]:
        """Both counts since the last call."""
        found = self.forwards, self.backwards
        self.forwards = self.backwards = 0
        return found


@dataclass(frozen=True)
class Work:
    """What was done in an epoch, its validation included.

    Attributes:
        cost: seconds of wall time; of several devices the largest memory and the energy of all.
        images: that gradient steps were taken on.
        forwards: images passed forward through the encoder, on all devices.
        backwards: images whose gradient was computed.
        devices: how many worked side by side.
        head: whether the stage puts a head on an encoder that was there, by labels.
    """

    cost: Cost
    images: int
    forwards: int = 0
    backwards: int = 0
    devices: int = 1
    head: bool = False


def spend(costs: list[dict[str, float]], stage: int, work: Work, *, first: bool) -> None:
    """Add an epoch to what the stages of a training run have cost.

    Args:
        costs: of each stage so far, changed in place; empty for a stage that was not measured from its start. What an earlier
            version did not measure from a stage's start stays absent.
        stage: which one.
        work: of the epoch.
        first: whether it is the stage's first epoch.
    """
    while len(costs) <= stage:
        costs.append(_nothing(work.head) if first and len(costs) == stage else {})
    total, cost = costs[stage], work.cost
    if not total:  # its first epochs were run by a version that did not measure
        return
    added = {
        "seconds": cost.seconds,
        "device_seconds": cost.seconds * work.devices,
        "images": work.images,
        "forwards": work.forwards,
        "backwards": work.backwards,
    }
    for name, value in added.items():
        if name in total:
            total[name] = round(total[name] + value, 3)
    if cost.peak_memory is not None:
        total["peak_memory"] = max(total.get("peak_memory", 0.0), float(cost.peak_memory))
    if cost.joules is not None:
        total["joules"] = total.get("joules", 0.0) + cost.joules


def _nothing(head: bool) -> dict[str, float]:
    begun = dict.fromkeys(("seconds", "device_seconds", "images", "forwards", "backwards"), 0.0)
    return {**begun, "head": 1.0} if head else begun


class Meter:
    """Begins to measure when made.

    Args:
        device: where the work happens.
        counter: reads millijoules; by default NVML's for the device, where `pynvml` is installed and the board has one.
    """

    def __init__(self, device: torch.device, counter: Callable[[], int] | None = None) -> None:
        self.device = device
        self._counter = counter or _counter(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._energy = self._counter() if self._counter else 0
        self._began = time.perf_counter()

    def read(self) -> Cost:
        """What was spent since the start; waits until the device is done."""
        peak = None
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            peak = int(torch.cuda.max_memory_allocated(self.device))
        seconds = time.perf_counter() - self._began
        return Cost(seconds, peak, (self._counter() - self._energy) / 1000 if self._counter else None)


def _counter(device: torch.device) -> Callable[[], int] | None:
    """The energy counter of a device, in millijoules since its driver was loaded, or None."""
    if device.type != "cuda":
        return None
    with contextlib.suppress(Exception):  # no package, no driver library, or a board without a counter: not measured
        import pynvml  # type: ignore[import-not-found, import-untyped, unused-ignore]

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        return lambda: int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    return None
