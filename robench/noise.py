"""Randomness that belongs to an image: draws depend on (seed, purpose, image id) and on nothing else.

A counter-based generator: each number is a hash of the image's key and its own position, so batch size, order,
neighbours and sharding never change it. Keys, hashes and uniform numbers come from 64-bit integer arithmetic, which is the
same on every device; normal numbers pass through a device's own logarithm and cosine.

Source: SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer, and so below
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed from numbers and words: `seed_of(0, "pgd", 3)`."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


class ImageGenerator(torch.Generator):
    """A `torch.Generator` that knows which images it serves.

    Our attacks draw through `uniform` and `normal` below, which give each image its own numbers. Code from elsewhere can
    use it as the plain CPU generator it also is, seeded with `seed`.

    Args:
        seed: everything the draws depend on besides the image, as made by `seed_of`.
        ids: one number per image of the batch.
        device: where draws appear.
    """

    def __new__(cls, *_args: object, **_kwargs: object) -> ImageGenerator:
        """Make the underlying CPU generator."""
        return super().__new__(cls)

    def __init__(self, seed: int, ids: Sequence[int] | Tensor, device: torch.device | str = "cpu") -> None:
        place = "cpu" if torch.device(device).type == "mps" else device  # which has no 64-bit arithmetic to rely on
        self.keys = _mix(torch.as_tensor(ids, dtype=torch.int64, device=place) * _GOLDEN + seed)
        self.drawn = 0
        self.manual_seed(seed)

    def branch(self, *purpose: int | str, index: Tensor | None = None) -> ImageGenerator:
        """Fresh numbers for a purpose, such as a restart or a step, for some of the images.

        They depend on the seed, the purposes on the way here and the image, not on what else was drawn, so an image's
        numbers stay the same when others of the batch drop out.

        Args:
            purpose: numbers and words.
            index: which images, as positions or as a mask; all when None.
        """
        made = ImageGenerator(seed_of(self.initial_seed(), *purpose), [])
        keys = self.keys if index is None else self.keys[index.to(self.keys.device)]
        made.keys = _mix(keys ^ made.initial_seed())
        return made

    def bits(self, count: int) -> Tensor:
        """`count` fresh 64-bit hashes for each image, (n, count)."""
        positions = torch.arange(self.drawn + 1, self.drawn + count + 1, dtype=torch.int64, device=self.keys.device)
        self.drawn += count
        return _mix(self.keys[:, None] + positions * _GOLDEN)


def branch(generator: torch.Generator, *purpose: int | str, index: Tensor | None = None) -> torch.Generator:
    """The branch of a generator for a purpose and some of its images; a plain generator simply goes on drawing."""
    return generator.branch(*purpose, index=index) if isinstance(generator, ImageGenerator) else generator


def uniform(generator: torch.Generator, shape: Sequence[int], device: torch.device | str) -> Tensor:
    """Numbers in [0, 1) in steps of 2^-24, float32, of a shape whose first axis is the image."""
    if isinstance(generator, ImageGenerator):
        hashes = generator.bits(math.prod(shape[1:]))
        return ((hashes >> 40) & 0xFFFFFF).to(torch.float32).mul_(2.0**-24).reshape(tuple(shape)).to(device)
    return torch.rand(tuple(shape), generator=generator, device=generator.device).to(device)


def normal(generator: torch.Generator, shape: Sequence[int], device: torch.device | str) -> Tensor:
    """Standard normal numbers, float32, by the Box-Muller transform of two uniforms."""
    radius = (-2 * torch.log1p(-uniform(generator, shape, device))).sqrt()
    return radius * torch.cos(2 * math.pi * uniform(generator, shape, device))


def content(x: Tensor) -> Tensor:
    """A number for each image that depends on its pixels and on nothing else, (n,), int64.

    Equal pixels have equal numbers; the smallest change of one of them gives another number.
    """
    place = "cpu" if x.device.type == "mps" else x.device
    pixels = (x.detach().to(place, torch.float32) + 0.0).contiguous().flatten(1)  # -0.0 is 0.0
    words = pixels.view(torch.int32).to(torch.int64)
    positions = torch.arange(1, words.shape[1] + 1, dtype=torch.int64, device=words.device) * _GOLDEN
    return _mix(words + _mix(positions)).sum(1)


def permutation(seed: int, count: int) -> Tensor:
    """The numbers 0 to count - 1 in an order that depends on the seed alone, int64 on the CPU."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def _mix(value: Tensor) -> Tensor:
    """The finaliser of SplitMix64; masks make the shifts logical."""
    value = (value ^ ((value >> 30) & ((1 << 34) - 1))) * _FIRST
    value = (value ^ ((value >> 27) & ((1 << 37) - 1))) * _SECOND
    return value ^ ((value >> 31) & ((1 << 33) - 1))
