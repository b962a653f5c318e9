"""Scanned digits, 8x8, that ship inside scikit-learn: real images without a download."""

from __future__ import annotations

from pathlib import Path

import torch

from robench.data import Images, Split
from robench.noise import permutation, seed_of

TEST = 360


def load(*, split: Split, root: Path) -> Images:
    """1,797 images of 43 writers, 1,437 to train and 360 to test, split once by a fixed permutation.

    Source: Kaynak 1995, the UCI data set "Optical Recognition of Handwritten Digits" (test part).
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = torch.from_numpy(found.images).mul(255 / 16).round().to(torch.uint8)[:, None]
    y = torch.from_numpy(found.target).to(torch.int64)
    order = permutation(seed_of("digits"), len(y))
    part = order[:TEST] if split is Split.TEST else order[TEST:]
    return Images("digits", split, pixels[part], y[part], 10)
