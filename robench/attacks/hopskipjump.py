"""HopSkipJump: a walk along the decision boundary that sees nothing of a model but the class it decides on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robench.errors import UsageError
from robench.geometry import norm_of, per_image
from robench.noise import branch, normal, uniform
from robench.protocols import Classifier
from robench.threat import Norm, ThreatModel

CUTS = 24  # the most halvings of a binary search: float32 tells no finer
LEAPS = 16  # the most lengths tried of a step
AT_ONCE = 16  # evaluations of an image in one pass; part of the random numbers, so not of the batch size


@dataclass(frozen=True)
class HopSkipJump:
    """The smallest perturbation found by walking along the boundary with the model's decisions alone.

    From a random image of another class, each step searches the line to the clean image for the boundary, estimates the
    boundary's normal from which of many small random moves change the decision, and leaps along it. What is returned is
    the nearest of all images that fooled the model; an image without a start stays as it is.

    Attributes:
        steps: leaps.
        start_draws: random images tried for a start; every second is the negative of the one before, and each pair is made
            of larger cells than the last, from single pixels to one grey, and again.
        evaluations: random moves in the first step; they grow with the square root of the step's number.
        evaluations_max: and no further than this.

    Raises:
        UsageError: in l1, or if one of the options is below 1.

    Source: Chen, Jordan & Wainwright 2020, algorithms 1 and 2 and section III.
    Differs: starts of larger cells, since models tend to give one class to all noise of single pixels. The first step
        probes as far as the others, at 1/d of the distance (the reference code at 0.1); no probe is so near that rounding
        swallows it. A step is halved 15 times at most; the nearest image is kept, not the last.
    """

    minimal: ClassVar[bool] = True

    threat: ThreatModel
    steps: int = 50
    start_draws: int = 100
    evaluations: int = 100
    evaluations_max: int = 10000

    def __post_init__(self) -> None:
        """Refuse l1 and empty budgets."""
        if self.threat.norm is Norm.L1:
            raise UsageError("attack hopskipjump works in linf and l2, not in l1")
        if min(self.steps, self.start_draws, self.evaluations, self.evaluations_max) < 1:
            raise UsageError(
                f"attack hopskipjump: steps ({self.steps}), start_draws ({self.start_draws}), evaluations "
                f"({self.evaluations}) and evaluations_max ({self.evaluations_max}) must be at least 1"
            )

    def cost(self, classes: int) -> tuple[int, int]:
        """The most forward and backward passes for an image."""
        evaluations = sum(self._count(step) for step in range(1, self.steps + 1))
        return 1 + self.start_draws + CUTS * (self.steps + 1) + evaluations + LEAPS * self.steps, 0

    @torch.no_grad()
    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Perturb a batch."""
        seen = _Seen(model, x, y, self.threat.norm)
        ids = (model(x).argmax(1) == y).nonzero().squeeze(1)
        ids, point = _start(seen, ids, self.start_draws, generator)
        if not len(ids):
            return seen.nearest
        point = _approach(seen, ids, point)
        for step in range(1, self.steps + 1):
            noise = branch(generator, "step", step, index=ids)
            normals = _normals(seen, ids, point, self._count(step), noise)
            point = _approach(seen, ids, _leap(seen, ids, point, normals, step))
        return seen.nearest

    def _count(self, step: int) -> int:
        return min(int(self.evaluations * math.sqrt(step)), self.evaluations_max)


class _Seen:
    """The model's decisions, and for each image the nearest one that fooled the model so far.

    Attributes:
        x: clean images.
        norm: which norm says what is near.
        nearest: the nearest fooling images; the clean image where there is none.
    """

    def __init__(self, model: Classifier, x: Tensor, y: Tensor, norm: Norm) -> None:
        self.model, self.x, self.y, self.norm = model, x, y, norm
        self.nearest = x.clone()
        self._size = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)

    def fooled(self, ids: Tensor, tried: Tensor) -> Tensor:
        """Which of some images fool the model, (m, k), of k tried for each of m clean ones, (m, k, ...)."""
        m, k = tried.shape[:2]
        flat = tried.flatten(0, 1)
        fooled = self.model(flat).argmax(1).view(m, k) != self.y[ids, None]
        size = norm_of(flat - self.x[ids].repeat_interleave(k, 0), self.norm).view(m, k)
        least, place = size.masked_fill(~fooled, torch.inf).min(1)
        nearer = (least < self._size[ids]).nonzero().squeeze(1)
        self.nearest[ids[nearer]] = tried[nearer, place[nearer]]
        self._size[ids[nearer]] = least[nearer]
        return fooled


def _start(seen: _Seen, ids: Tensor, draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The first random image of another class for each image, and the images that have one."""
    point = seen.x.clone()
    todo = ids
    for number in range(draws):
        if not len(todo):
            break
        noise = branch(generator, "start", number // 2, index=todo)
        tried = _cells(seen.x[todo], number // 2, noise)
        tried = 1 - tried if number % 2 else tried
        fooled = seen.fooled(todo, tried[:, None])[:, 0]
        point[todo[fooled]] = tried[fooled]
        todo = todo[~fooled]
    ids = ids[~torch.isin(ids, todo)]
    return ids, point[ids]


def _cells(x: Tensor, number: int, noise: torch.Generator) -> Tensor:
    """Uniform noise in square cells, whose sides double from one pixel to the whole image, and begin again."""
    n, channels, height, width = x.shape
    sizes = math.ceil(math.log2(max(height, width))) + 1
    side = 2 ** (number % sizes)
    drawn = uniform(noise, (n, channels, math.ceil(height / side), math.ceil(width / side)), x.device).to(x.dtype)
    return drawn.repeat_interleave(side, 2)[:, :, :height].repeat_interleave(side, 3)[:, :, :, :width]


def _approach(seen: _Seen, ids: Tensor, point: Tensor) -> Tensor:
    """From fooling images towards the clean ones until just before they no longer fool the model.

    Source: Chen, Jordan & Wainwright 2020, algorithm 1: on the line in l2, by clipping to smaller cubes in linf, down to
        a share of d^-3/2 (l2) or d^-2 (linf) of the way.
    """
    x, pixels = seen.x[ids], point[0].numel()
    power = 1.5 if seen.norm is Norm.L2 else 2
    far = point - x
    size = per_image(norm_of(far, seen.norm), x)
    low, high = torch.zeros_like(size), torch.ones_like(size)
    for _ in range(min(CUTS, math.ceil(power * math.log2(pixels)))):
        middle = (low + high) / 2
        moved = middle * far if seen.norm is Norm.L2 else far.maximum(-middle * size).minimum(middle * size)
        tried = (x + moved).clamp(0, 1)
        fooled = per_image(seen.fooled(ids, tried[:, None])[:, 0], x)
        point = torch.where(fooled, tried, point)
        low, high = torch.where(fooled, low, middle), torch.where(fooled, middle, high)
    return point


def _normals(seen: _Seen, ids: Tensor, point: Tensor, count: int, noise: torch.Generator) -> Tensor:
    """The direction in which more of the small random moves fool the model: of length one in l2, signs in linf.

    Source: Chen, Jordan & Wainwright 2020, eq. 9 and 16: decisions less their mean, times the moves.
    """
    pixels = point[0].numel()
    reach = norm_of(point - seen.x[ids], seen.norm) / pixels
    reach = reach.clamp_min(4 * torch.finfo(point.dtype).eps * math.sqrt(pixels))[:, None, None]
    here = point.flatten(1)[:, None]
    total, signed = torch.zeros_like(here[:, 0]), torch.zeros_like(here[:, 0])
    decisions = torch.zeros(len(ids), 1, dtype=point.dtype, device=point.device)
    for done in range(0, count, AT_ONCE):
        shape = (len(ids), min(AT_ONCE, count - done), pixels)
        tried = (here + reach * _directions(branch(noise, "moves", done), shape, seen.norm, point)).clamp(0, 1)
        fooled = seen.fooled(ids, tried.view(*shape[:2], *point.shape[1:]))
        decided = 2 * fooled.to(point.dtype) - 1
        moves = (tried - here) / reach
        total, signed = total + moves.sum(1), signed + (decided[:, :, None] * moves).sum(1)
        decisions = decisions + decided.sum(1, keepdim=True)
    mean = decisions / count
    found = (signed - torch.where(mean.abs() < 1, mean, 0) * total).view(point.shape)
    if seen.norm is Norm.LINF:
        return found.sign()
    return found / per_image(norm_of(found, Norm.L2).clamp_min(torch.finfo(found.dtype).tiny), found)


def _directions(noise: torch.Generator, shape: tuple[int, int, int], norm: Norm, like: Tensor) -> Tensor:
    """Random directions of Euclidean length one: uniform on the sphere for l2, from the cube for linf."""
    drawn = normal(noise, shape, like.device) if norm is Norm.L2 else 2 * uniform(noise, shape, like.device) - 1
    length: Tensor = torch.linalg.vector_norm(drawn, dim=2, keepdim=True)
    return (drawn / length.clamp_min(torch.finfo(drawn.dtype).tiny)).to(like.dtype)


def _leap(seen: _Seen, ids: Tensor, point: Tensor, normals: Tensor, step: int) -> Tensor:
    """A step along the normal: 1 / sqrt(step) of the distance to the clean image, halved until it fools the model.

    Source: Chen, Jordan & Wainwright 2020, section III-C2.
    """
    length = per_image(norm_of(point - seen.x[ids], seen.norm), point) / math.sqrt(step)
    there = point.clone()
    todo = torch.arange(len(ids), device=ids.device)
    for halvings in range(LEAPS):
        if not len(todo):
            break
        tried = (point[todo] + length[todo] / 2**halvings * normals[todo]).clamp(0, 1)
        fooled = seen.fooled(ids[todo], tried[:, None])[:, 0]
        there[todo[fooled]] = tried[fooled]
        todo = todo[~fooled]
    return there
