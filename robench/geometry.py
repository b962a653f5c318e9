"""The geometry of a threat model: norms, steepest directions, projections and random starts, one place for all norms.

Tensors are batches (n, ...); images lie in [0, 1]. All functions are pure.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robench.noise import normal, uniform
from robench.threat import Norm, ThreatModel

# what float32 arithmetic may add to a norm: a relative part, and an absolute one per norm
RELATIVE = 1e-5
ROUNDING = {Norm.LINF: 1e-7, Norm.L2: 1e-6, Norm.L1: 1e-5}

_TINY = 1e-12
_ORDER = {Norm.LINF: math.inf, Norm.L2: 2, Norm.L1: 1}


def norm_of(delta: Tensor, norm: Norm) -> Tensor:
    """The norm of each perturbation of a batch, (n,)."""
    size: Tensor = torch.linalg.vector_norm(delta.flatten(1), _ORDER[norm], dim=1)
    return size


def exact_norm(adv: Tensor, x: Tensor, norm: Norm) -> Tensor:
    """The norm of each perturbation in float64, (n,); computed on the CPU, since some accelerators lack it."""
    parts = zip(adv.split(500), x.split(500), strict=True)
    size = torch.cat([norm_of(a.cpu().double() - b.cpu().double(), norm) for a, b in parts])
    return size.float().to(x.device) if x.device.type == "mps" else size.to(x.device)


def inside(size: Tensor, threat: ThreatModel) -> Tensor:
    """Whether perturbations of that size keep to the ball, up to what float32 arithmetic may add."""
    return size <= threat.eps * (1 + RELATIVE) + ROUNDING[threat.norm]


def steepest(gradient: Tensor, x: Tensor, norm: Norm, *, sparsity: float = 0.05) -> Tensor:
    """The direction of unit norm along which a linear function with this gradient rises (nearly) fastest.

    linf: the sign; l2: the gradient scaled to length one. l1: equal steps along the few largest coordinates, leaving out
    those that already sit on the border of [0, 1] they would move through. The exact answer for l1 is one
    coordinate, which is slow on a network; the share follows SLIDE.

    Args:
        gradient: (n, ...), any finite values.
        x: where the step starts, (n, ...), in [0, 1]; only l1 looks at it.
        norm: which norm is one.
        sparsity: the share of coordinates an l1 step moves.

    Source: Tramer & Boneh 2019, "Adversarial training and robustness for multiple perturbations", section 4 (SLIDE).
    """
    if norm is Norm.LINF:
        return gradient.sign()
    if norm is Norm.L2:
        largest = norm_of(gradient, Norm.LINF).clamp_min(torch.finfo(gradient.dtype).tiny)
        scaled = gradient / per_image(largest, gradient)  # so that squares of tiny or huge gradients do not vanish
        return scaled / per_image(norm_of(scaled, norm), gradient).clamp_min(_TINY)
    flat = gradient.flatten(1)
    stuck = torch.where(flat > 0, x.flatten(1) >= 1, x.flatten(1) <= 0)
    size = flat.abs().masked_fill(stuck, 0)
    count = max(1, round(sparsity * flat.shape[1]))
    top, index = size.topk(count, dim=1)
    moves = torch.zeros_like(flat).scatter_(1, index, flat.gather(1, index).sign() * (top > 0))
    return (moves / moves.abs().sum(1, keepdim=True).clamp_min(1)).view_as(gradient)


def project(adv: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """The nearest point (in Euclidean distance) inside the ball around x *and* inside [0, 1].

    Args:
        adv: points to project, (n, ...).
        x: clean images, (n, ...), in [0, 1].
        threat: the ball.

    Source: for l2 and l1, the stationarity conditions of the projection: with d = adv - x and r the room a coordinate
        has in the direction of d, the answer moves by min(s |d|, r) with one s <= 1 (l2), or by clip(|d| - t, 0, r) with
        one t >= 0 (l1; Croce & Hein 2021, proposition 2.1).
    """
    if threat.norm is Norm.LINF:
        return torch.minimum(torch.maximum(adv, x - threat.eps), x + threat.eps).clamp(0, 1)
    delta = (adv - x).flatten(1)
    flat = x.flatten(1)
    size = delta.abs()
    room = torch.where(delta > 0, 1 - flat, flat)
    shrink = _shrink_l2 if threat.norm is Norm.L2 else _shrink_l1
    moved = shrink(size, room, threat.eps)
    excess = norm_of(moved, threat.norm)[:, None] / max(threat.eps, _TINY)
    return (flat + moved / excess.clamp_min(1) * delta.sign()).clamp(0, 1).view_as(x)


def per_image(values: Tensor, x: Tensor) -> Tensor:
    """One value per image, shaped to multiply images."""
    return values.view(-1, *[1] * (x.ndim - 1))


def _shrink_l2(size: Tensor, room: Tensor, eps: float) -> Tensor:
    """min(s size, room) with the largest s <= 1 whose length is at most eps.

    Coordinates that hit their room stay there as s grows, so each round fixes more of them and s rises to the answer;
    every round is feasible, and eight are exact unless coordinates differ by a factor of millions.
    """
    scale = (eps / norm_of(size, Norm.L2)[:, None].clamp_min(_TINY)).clamp_max(1)
    for _ in range(8):
        full = scale * size >= room
        spent = torch.where(full, room, 0).square().sum(1, keepdim=True)
        free = torch.where(full, 0, size).square().sum(1, keepdim=True)
        better = ((eps**2 - spent).clamp_min(0) / free.clamp_min(_TINY**2)).sqrt().clamp_max(1)
        scale = torch.maximum(scale, better)
    return torch.minimum(scale * size, room)


def _shrink_l1(size: Tensor, room: Tensor, eps: float) -> Tensor:
    """clip(size - t, 0, room) with the smallest t >= 0 whose sum is at most eps, found exactly by sorting.

    The sum falls piecewise linearly in t, with a kink where a coordinate leaves its room (size - room) and where it
    reaches zero (size).
    """
    kinks, order = torch.cat([size, (size - room).clamp_min(0)], 1).sort(dim=1, descending=True)
    slope = torch.where(order < size.shape[1], 1.0, -1.0).to(size.dtype).cumsum(1)
    gaps = kinks - torch.cat([kinks[:, 1:], torch.zeros_like(kinks[:, :1])], 1)
    total = (slope * gaps).cumsum(1)  # the sum at the lower end of each gap
    over = total > eps
    first = over.to(torch.int8).argmax(1, keepdim=True)  # the gap in which the sum passes eps
    t = (kinks - gaps + (total - eps) / slope.clamp_min(1)).gather(1, first)
    t = torch.where(over.any(1, keepdim=True), t, 0)
    return torch.minimum((size - t).clamp_min(0), room)


def random_start(x: Tensor, threat: ThreatModel, generator: torch.Generator) -> Tensor:
    """A point drawn uniformly from the ball around x, then clipped to [0, 1].

    Source: for l2 a normal direction with radius eps U^(1/d); for l1 the first d of d + 1 exponentials, divided by
        their sum and given random signs (Devroye 1986, chapter V).
    """
    shape, device = tuple(x.shape), x.device
    axes = (len(x), *[1] * (x.ndim - 1))
    if threat.norm is Norm.LINF:
        delta = 2 * uniform(generator, shape, device) - 1
    elif threat.norm is Norm.L2:
        direction = normal(generator, shape, device)
        radius = uniform(generator, axes, device) ** (1 / x[0].numel())
        delta = direction / per_image(norm_of(direction, Norm.L2), x).clamp_min(_TINY) * radius
    else:
        exponential = -torch.log1p(-uniform(generator, shape, device))
        spare = -torch.log1p(-uniform(generator, axes, device))
        share = exponential / (per_image(norm_of(exponential, Norm.L1), x) + spare).clamp_min(_TINY)
        delta = share * (1 - 2 * (uniform(generator, shape, device) < 0.5).to(x.dtype))
    return (x + threat.eps * delta.to(x.dtype)).clamp(0, 1)
