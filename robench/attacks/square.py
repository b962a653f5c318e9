"""Square: random search that repaints one square window at a time, and asks for nothing but logits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from robench.door import fooled
from robench.errors import UsageError
from robench.geometry import norm_of, per_image, project
from robench.losses import margin
from robench.noise import branch, uniform
from robench.protocols import Classifier
from robench.threat import Norm, ThreatModel

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # after these queries the share of the pixels is halved
AT_ONCE = 32  # queries whose places and signs are drawn together
_TINY = 1e-12


@dataclass(frozen=True)
class Square:
    """Repaints a random square window of the perturbation and keeps it where the margin falls.

    linf: every channel of the window goes to x + eps or x - eps, from a start of vertical stripes. l2 and l1: one window
    hands its share of the budget to another, which gets a bump of two halves of opposite sign added, from a start tiled
    with such bumps. An image is left alone once it fools the model, and returned at its lowest margin if it never does.

    Attributes:
        queries: windows tried in each restart.
        restarts: starts; an image already fooled is not tried again.
        share: the share of the pixels the first windows cover; it is halved along the way, at fixed queries.
        edge: let windows reach the last row and column, as in the paper; stronger on small images.

    Raises:
        UsageError: if queries or restarts are below 1, or share is not in (0, 1].

    Source: Andriushchenko et al. 2020, algorithms 1 to 3; the schedule is section 5's for 10,000 queries, not scaled to
        `queries`, as in AutoAttack (Croce & Hein 2020); for l1 the l2 attack in the other norm (Croce & Hein 2021).
    Differs: each image has places, signs and orientations of its own, where the reference code shares places (and in linf
        signs) among all images of a batch. As in that code, windows never reach the last row and column unless `edge`.
        Images smaller than five pixels are tiled with single pixels.
    """

    confirms: ClassVar[bool] = True

    threat: ThreatModel
    queries: int = 5000
    restarts: int = 1
    share: float = 0.8
    edge: bool = False

    def __post_init__(self) -> None:
        """Refuse empty budgets and windows."""
        if min(self.queries, self.restarts) < 1:
            raise UsageError(
                f"attack square: queries ({self.queries}) and restarts ({self.restarts}) must be at least 1"
            )
        if not 0 < self.share <= 1:
            raise UsageError(f"attack square: share ({self.share:g}) is a share of the pixels, above 0 and at most 1")

    def cost(self, classes: int) -> tuple[int, int]:
        """The most forward and backward passes for an image: the clean image, then each start and its windows."""
        return 1 + (1 + self.queries) * self.restarts, 0

    @torch.no_grad()
    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Perturb a batch."""
        found = x.clone()
        highest = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        todo = (~fooled(model, x, model(x), y)).nonzero().squeeze(1)
        for restart in range(self.restarts):
            if not len(todo):
                break
            noise = branch(generator, "restart", restart, index=todo)
            adv, value, broken = self._search(model, x[todo], y[todo], noise)
            better = broken | (value > highest[todo])
            found[todo[better]], highest[todo[better]] = adv[better], value[better]
            todo = todo[~broken]
        return found

    def _search(self, model: Classifier, x: Tensor, y: Tensor, noise: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """One restart: the images it ends with, the margins by which they fool the model, and whether they do."""
        adv = _start(x, self.threat, branch(noise, "start"))
        logits = model(adv)
        value, broken = margin(logits, y), fooled(model, adv, logits, y)
        ids = (~broken).nonzero().squeeze(1)
        for query in range(self.queries):
            if not len(ids):
                break
            if query % AT_ONCE == 0:
                draws = uniform(
                    branch(noise, "queries", query, index=ids), (len(ids), AT_ONCE, 5 + x.shape[1]), x.device
                )
            here, clean, labels = adv[ids], x[ids], y[ids]
            tried = _try(here, clean, self.threat, self._size(query, x), self.edge, draws[:, query % AT_ONCE])
            logits = model(tried)
            now, broke = margin(logits, labels), fooled(model, tried, logits, labels)
            better = broke | (now > value[ids])
            adv[ids] = torch.where(per_image(better, x), tried, here)
            value[ids] = torch.where(better, now, value[ids])
            if bool(broke.any()):
                broken[ids[broke]] = True
                ids, draws = ids[~broke], draws[~broke]
        return adv, value, broken

    def _size(self, query: int, x: Tensor) -> int:
        """The side of the window; in l2 and l1 odd and at least 3, as far as the image allows."""
        height, width = x.shape[2:]
        share = self.share / 2 ** sum(query > after for after in HALVINGS)
        side = round(math.sqrt(share * height * width))
        side = max(side, 1) if self.threat.norm is Norm.LINF else max(side, 3) // 2 * 2 + 1
        return min(side, height, width)


def _start(x: Tensor, threat: ThreatModel, noise: torch.Generator) -> Tensor:
    """Vertical stripes of +-eps, or a tiling of bumps: five by five tiles, or a few more where pixels are left."""
    n, channels, height, width = x.shape
    if threat.norm is Norm.LINF:
        sign = _signs(uniform(noise, (n, channels, 1, width), x.device), x.dtype)
        return project(x + threat.eps * sign, x, threat)
    side = max(1, min(height, width) // 5)
    edge = max(0, (min(height, width) - 5 * side) // 2)
    down, right = (height - edge) // side, (width - edge) // side
    sign = _signs(uniform(noise, (n, channels, down, right, 1, 1), x.device), x.dtype)
    bumps = _bumps(uniform(noise, (n, 1, down, right), x.device), side, threat.norm, x.dtype)
    tiles = (sign * bumps).transpose(3, 4).reshape(n, channels, down * side, right * side)
    delta = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    delta[:, :, edge : edge + down * side, edge : edge + right * side] = tiles
    return _into(delta, x, threat)


def _try(adv: Tensor, x: Tensor, threat: ThreatModel, side: int, edge: bool, draw: Tensor) -> Tensor:
    """Repaint one window of each image: five numbers of `draw` say where and which way, the others give the signs."""
    height, width = x.shape[2:]
    places = (max(1, height - side + edge), max(1, width - side + edge))
    top, left, top2, left2 = ((draw[:, i] * places[i % 2]).long().clamp_max(places[i % 2] - 1) for i in range(4))
    sign = _signs(draw[:, 5:, None, None], x.dtype)
    if threat.norm is Norm.LINF:
        inside = _window(top, left, side, height, width)
        return torch.where(inside, project(x + threat.eps * sign, x, threat), adv)
    first, second = (_places(*corner, side, width, x.shape[1]) for corner in ((top, left), (top2, left2)))
    bump = sign * _bumps(draw[:, 4, None], side, threat.norm, x.dtype)
    delta = _move((adv - x).flatten(2), first, second, bump.flatten(2), threat)
    return _into(delta.view(x.shape), x, threat)


def _window(top: Tensor, left: Tensor, side: int, height: int, width: int) -> Tensor:
    """A mask of each image's window, (n, 1, height, width)."""
    rows = torch.arange(height, device=top.device) - top[:, None]
    columns = torch.arange(width, device=top.device) - left[:, None]
    return (((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None])[:, None]


def _places(top: Tensor, left: Tensor, side: int, width: int, channels: int) -> Tensor:
    """Where each image's window lies among the pixels of a channel, (n, channels, side * side)."""
    steps = torch.arange(side, device=top.device)
    inside = (steps[:, None] * width + steps).flatten()
    return (top * width + left)[:, None, None] + inside.expand(1, channels, -1)


def _move(delta: Tensor, first: Tensor, second: Tensor, bump: Tensor, threat: ThreatModel) -> Tensor:
    """The second window's budget and what the image has to spare go to the first window, which gets a bump added.

    Args:
        delta: perturbations, (n, channels, pixels).
        first: places of the window that receives, (n, channels, window).
        second: places of the window that gives; they may overlap.
        bump: what is added to the first window, of unit norm in each channel.
        threat: the ball, of l2 or l1.

    Source: Andriushchenko et al. 2020, algorithm 3, lines 5 to 11.
    """
    order = 2 if threat.norm is Norm.L2 else 1

    def power(values: Tensor) -> Tensor:
        return values.abs().pow(order).sum(2, keepdim=True)

    old = delta.gather(2, first)
    left = delta.scatter(2, first, 0)
    both = power(old) + power(left.gather(2, second))
    spare = (threat.eps**order - power(delta.flatten(1)[:, None])).clamp_min(0)
    new = bump + old / (power(old) ** (1 / order) + _TINY)
    budget = (spare / delta.shape[1] + both) ** (1 / order)
    if threat.norm is Norm.L1:
        budget = budget * delta.shape[1]  # as in the reference code; the projection takes back what is too much
    new = new / (power(new) ** (1 / order) + _TINY) * budget
    return left.scatter(2, second, 0).scatter(2, first, new)


def _into(delta: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """Into the ball and [0, 1]; in l2 scaled to the full radius, then clipped, which only shortens."""
    if threat.norm is Norm.L1:
        return project(x + delta, x, threat)
    return (x + delta * per_image(threat.eps / (norm_of(delta, threat.norm) + _TINY), x)).clamp(0, 1)


def _bumps(draw: Tensor, side: int, norm: Norm, dtype: torch.dtype) -> Tensor:
    """The bump, upright or on its side as numbers in [0, 1) decide, (*draw.shape, side, side)."""
    bump = _bump(side, norm, dtype, draw.device)
    return torch.where(draw[..., None, None] < 0.5, bump, bump.T)


@lru_cache(maxsize=32)
def _bump(side: int, norm: Norm, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Two pyramids of opposite sign, one above the other, together of unit norm.

    Source: Andriushchenko et al. 2020, eq. 2 and section 4.3.
    """
    halves = (_pyramid(side // 2, side, norm), -_pyramid(side - side // 2, side, norm))
    bump = torch.cat([half / _length(half, norm).clamp_min(_TINY) for half in halves])
    return (bump / _length(bump, norm)).to(device, dtype)


def _pyramid(height: int, width: int, norm: Norm) -> Tensor:
    """The sum over k of 1/k^2 (l1: 1/k^4) on the rectangles of all pixels less than k away from the middle."""
    rows = (torch.arange(height, dtype=torch.float64) - height // 2).abs()
    columns = (torch.arange(width, dtype=torch.float64) - width // 2).abs()
    away = torch.maximum(rows[:, None], columns)
    reach = torch.arange(1, max(height, width) // 2 + 2, dtype=torch.float64)[:, None, None]
    return ((away < reach) / reach ** (2 if norm is Norm.L2 else 4)).sum(0)


def _length(values: Tensor, norm: Norm) -> Tensor:
    return norm_of(values[None], norm)


def _signs(draw: Tensor, dtype: torch.dtype) -> Tensor:
    """+1 or -1 as numbers in [0, 1) decide."""
    return 1 - 2 * (draw < 0.5).to(dtype)
