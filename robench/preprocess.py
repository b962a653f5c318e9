"""Normalisation that a classifier from elsewhere expects, as a layer before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from robench.errors import UsageError, nearest
from robench.models import STATISTICS, Normalise

Statistics: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]

# mean and standard deviation of training pixels, as most training scripts write them
KNOWN: Mapping[str, Statistics] = {
    **STATISTICS,
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "half": ((0.5,), (0.5,)),
}


def statistics(text: str, channels: int) -> Statistics:
    """Read `--preprocess`: a name, `MEAN,STD`, or the means and then the deviations of all channels.

    Args:
        text: such as `cifar10`, `0.5,0.5` or `0.49,0.48,0.45,0.25,0.24,0.26`.
        channels: of the images.

    Raises:
        UsageError: for an unknown name, numbers that are not two for each channel, or a deviation that is not above 0.
    """
    if text in KNOWN:
        mean, std = KNOWN[text]
    else:
        mean, std = _numbers(text)
    if len(mean) not in (1, channels):
        raise UsageError(f"--preprocess {text} is for images of {len(mean)} channels; these have {channels}")
    return (mean * channels, std * channels) if len(mean) == 1 else (mean, std)


def _numbers(text: str) -> Statistics:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        match = nearest(text, KNOWN)
        guess = f" Did you mean {match!r}?" if match else ""
        raise UsageError(
            f"--preprocess {text}: expected {', '.join(KNOWN)}, or numbers MEAN,STD (or all means, then all deviations)."
            f"{guess}"
        ) from None
    half = len(values) // 2
    if len(values) % 2 or not all(0 < std < float("inf") for std in values[half:]):
        raise UsageError(f"--preprocess {text}: expected as many deviations above 0 as means: 0.5,0.5")
    return values[:half], values[half:]


def layer(text: str, channels: int) -> Normalise:
    """The layer that normalises so."""
    return Normalise(*statistics(text, channels))


def usual(dataset: str, channels: int) -> list[str]:
    """The names in `KNOWN` that a classifier of a data set may expect, likeliest first."""
    own = dataset.partition("@")[0].partition(":")[0].removesuffix("-c")
    names = [*([own] if own in KNOWN else []), "imagenet", "half"]
    return [name for name in dict.fromkeys(names) if len(KNOWN[name][0]) in (1, channels)]
