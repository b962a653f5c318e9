"""FAB: walk along the decision boundary towards the clean image, one projection onto a linearised boundary a step."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor

from robench.door import confirmed, fooled
from robench.errors import UsageError
from robench.geometry import norm_of, per_image
from robench.noise import branch, normal, uniform
from robench.protocols import Classifier
from robench.threat import Norm, ThreatModel

DUAL = {Norm.LINF: Norm.L1, Norm.L2: Norm.L2, Norm.L1: Norm.LINF}  # the norm of a gradient that goes with a distance
PULL = 0.1  # the most weight that the projection from the clean image gets (alpha_max)
OVERSHOOT = 1.05  # how far a step goes, the boundary being at 1 (eta)
RETREAT = 0.9  # the share of a fooling perturbation from which the walk goes on (beta)


@dataclass(frozen=True)
class FAB:
    """Fast Adaptive Boundary: the smallest perturbation that fools the model, in linf, l2 or l1.

    Each step takes the boundary between the right class and another as the plane it looks like from here, and goes to a
    mixture of the two points of that plane nearest to where the walk is and to the clean image, both inside [0, 1]. Where
    that fools the model, the walk goes on from a little nearer to the clean image.

    Attributes:
        targeted: aim at one class after the other, the likeliest first; else at the nearest of all at each step, which
            takes the gradients of all classes.
        targets: how many classes to aim at, as far as there are.
        steps: for each target and restart.
        restarts: walks for each target; the first begins at the clean image, others at random points half of eps away.
        search: halvings of the search that ends each walk, on the line to the clean image; after 8 a norm is within 0.04 %
            of the smallest there. AutoAttack has none.
        early_stop: leave an image alone once it fools the model within eps, where only that counts. Off, every image is
            searched to the end for the smallest perturbation.

    Raises:
        UsageError: if targets, steps or restarts are below 1, or search below 0.

    Source: Croce & Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack", algorithm
        1; the targeted walk and the constants are those of AutoAttack (Croce & Hein 2020, section 5).
    Differs: the final search halves where the paper interpolates. AutoAttack keeps what lies within eps and stops at the
        first target that gives it; here the smallest perturbation of all is kept, also outside eps. Gradients below 1e-8
        count, so flat models are walked too.
    """

    minimal: ClassVar[bool] = True

    threat: ThreatModel
    targeted: bool = True
    targets: int = 9
    steps: int = 100
    restarts: int = 1
    search: int = 8
    early_stop: bool = False

    def __post_init__(self) -> None:
        """Refuse empty budgets."""
        if min(self.targets, self.steps, self.restarts, self.search + 1) < 1:
            raise UsageError(
                f"attack fab: targets ({self.targets}), steps ({self.steps}) and restarts ({self.restarts}) must be at least "
                f"1, and search ({self.search}) at least 0"
            )

    @property
    def confirms(self) -> bool:
        """Whether what ends it is confirmed: its smallest perturbations are not, only what fools within eps."""
        return self.early_stop and self.search == 0

    def cost(self, classes: int) -> tuple[int, int]:
        """The most forward and backward passes for an image."""
        walks = self.restarts * self._aims(classes)
        backwards = walks * self.steps * (1 if self.targeted else classes - 1)
        return 1 + walks * (2 * self.steps + self.search), backwards

    def notes(self, classes: int) -> tuple[str, ...]:
        """What is reduced for few classes."""
        few = self.targeted and classes - 1 < self.targets
        return (f"aims at {classes - 1} classes, all there are",) if few else ()

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Perturb a batch."""
        with torch.no_grad():
            logits = model(x)
            others = logits.scatter(1, y[:, None], torch.inf).argsort(dim=1, descending=True, stable=True)[:, 1:]
            todo = (~fooled(model, x, logits, y)).nonzero().squeeze(1)
            found, size = x.clone(), torch.full_like(x.flatten(1)[:, 0], torch.inf)
            for rank, restart in product(range(self._aims(logits.shape[1])), range(self.restarts)):
                if not len(todo):
                    break
                noise = branch(generator, "target", rank, "restart", restart, index=todo)
                start = _start(x[todo], self.threat, noise) if restart else x[todo]
                aims = others[todo, rank, None] if self.targeted else others[todo]
                adv, length = self._walk(model, x[todo], y[todo], aims, start)
                adv, length = self._shortened(model, x[todo], y[todo], adv, length)
                better = length < size[todo]
                found[todo[better]], size[todo[better]] = adv[better], length[better]
                if self.early_stop:
                    todo = todo[size[todo] > self.threat.eps]
        return found

    def _aims(self, classes: int) -> int:
        return min(self.targets, classes - 1) if self.targeted else 1

    def _shortened(self, model: Classifier, x: Tensor, y: Tensor, adv: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """The final search for those images that a walk found something for."""
        done = length <= self.threat.eps if self.early_stop else torch.zeros_like(length, dtype=torch.bool)
        ids = ((length < torch.inf) & ~done).nonzero().squeeze(1)
        if not self.search or not len(ids):
            return adv, length
        nearer = shorten(model, x[ids], y[ids], adv[ids], least=RETREAT, rounds=self.search)
        return adv.index_copy(0, ids, nearer), length.index_copy(0, ids, norm_of(nearer - x[ids], self.threat.norm))

    def _walk(self, model: Classifier, x: Tensor, y: Tensor, aims: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """One walk: the smallest fooling image of each, and its norm, infinite where there is none."""
        found, size = x.clone(), torch.full_like(x.flatten(1)[:, 0], torch.inf)
        todo, at = torch.arange(len(x), device=x.device), start
        for _ in range(self.steps):
            value, gradient = nearest_boundary(model, at, y, aims, self.threat.norm)
            at = _step(at, x, value, gradient, self.threat.norm)
            beyond = model(at).argmax(1) != y
            length = norm_of(at - x, self.threat.norm)
            counts = beyond
            if self.early_stop:  # what is within eps ends the walk; anything further only turns it back
                near = beyond & (length <= self.threat.eps)
                counts = (beyond & ~near) | confirmed(model, at, y, near)
            better = counts & (length < size[todo])
            found[todo] = torch.where(per_image(better, x), at, found[todo])
            size[todo] = torch.where(better, length, size[todo])
            at = torch.where(per_image(beyond, x), x + RETREAT * (at - x), at)
            if self.early_stop:
                stay = size[todo] > self.threat.eps
                if not stay.all():
                    todo, at, x, y, aims = (rows[stay] for rows in (todo, at, x, y, aims))
                    if not len(todo):
                        break
        return found, size


def shorten(model: Classifier, x: Tensor, y: Tensor, adv: Tensor, *, least: float, rounds: int) -> Tensor:
    """Fooling images moved towards the clean ones, as near as halving finds that they still fool the model.

    Args:
        model: maps images to logits; called once a round.
        x: clean images, (n, ...).
        y: labels, (n,).
        adv: fooling images, (n, ...).
        least: the share of the perturbation below which not to look.
        rounds: halvings of the interval from there to 1.
    """
    low = torch.full_like(x.flatten(1)[:, 0], least)
    high, best = torch.ones_like(low), adv
    for _ in range(rounds if len(x) else 0):
        middle = (low + high) / 2
        tried = x + per_image(middle, x) * (adv - x)
        fooled = model(tried).argmax(1) != y
        best = torch.where(per_image(fooled, x), tried, best)
        low, high = torch.where(fooled, low, middle), torch.where(fooled, middle, high)
    return best


def _start(x: Tensor, threat: ThreatModel, noise: torch.Generator) -> Tensor:
    """A random point at half of eps from x: uniform directions in linf and l2, normal numbers scaled in l1."""
    draw = (
        normal(noise, x.shape, x.device) if threat.norm is not Norm.LINF else 2 * uniform(noise, x.shape, x.device) - 1
    )
    direction = draw.to(x.dtype) / per_image(norm_of(draw, threat.norm).to(x.dtype), x)
    return (x + threat.eps / 2 * direction).clamp(0, 1)


def nearest_boundary(model: Classifier, at: Tensor, y: Tensor, aims: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """The rise of a wrong logit over the right one, and its gradient, for the aim whose plane is nearest.

    Args:
        model: maps images to logits.
        at: where the walk is, (n, ...).
        y: right classes, (n,).
        aims: wrong classes to choose from, (n, m); costs m backward passes.
        norm: the norm of the distance.
    """
    with torch.enable_grad():
        leaf = at.detach().requires_grad_()
        logits = model(leaf)
        rises = logits.gather(1, aims) - logits.gather(1, y[:, None])
        totals = rises.sum(0).unbind()
    rises = rises.detach()
    value, nearest, gradient = (
        torch.zeros_like(rises[:, 0]),
        torch.full_like(rises[:, 0], torch.inf),
        torch.zeros_like(at),
    )
    for k, total in enumerate(totals):
        (slope,) = torch.autograd.grad(total, leaf, retain_graph=k + 1 < len(totals))
        distance = rises[:, k].abs() / (norm_of(slope, DUAL[norm]) + 1e-12)
        nearer = distance < nearest
        value, nearest = torch.where(nearer, rises[:, k], value), torch.where(nearer, distance, nearest)
        gradient = torch.where(per_image(nearer, at), slope, gradient)
    return value, gradient


def _step(at: Tensor, x: Tensor, value: Tensor, gradient: Tensor, norm: Norm) -> Tensor:
    """Where a walk goes next, given the value and gradient of the rise at `at`."""
    here, home, w = at.flatten(1), x.flatten(1), gradient.flatten(1)
    points = torch.stack([here, home])
    values = torch.stack([value, value + (w * (home - here)).sum(1)])
    moves = move_to_plane(points, w, values, norm)
    near, far = norm_of(moves.flatten(0, 1), norm).clamp_min(1e-8).reshape(2, -1, 1)
    ahead, homeward = (points + OVERSHOOT * moves).unbind()
    return ahead.lerp(homeward, (near / (near + far)).clamp_max(PULL)).clamp(0, 1).reshape(x.shape)


def move_to_plane(z: Tensor, w: Tensor, value: Tensor, norm: Norm) -> Tensor:
    """The smallest move from z onto the plane where `value + w . move` is 0, staying in [0, 1].

    With gap = |value|, and for each pixel the weight v = |w| and the room r it has towards the plane, the sizes m of the
    moves minimise their norm subject to sum(v m) = gap and 0 <= m <= r. The conditions of optimality (KKT), with t the
    multiplier of the first constraint:

        linf: m = min(t, r)    l2: m = min(t v, r)    l1: m = r where v > t, 0 where v < t, and what is left where v = t

    Out of reach, sum(v r) <= gap, the answer is m = r, the corner that comes nearest. Pixels without weight stay.

    Args:
        z: points, (..., pixels), in [0, 1].
        w: normals of the planes, of a shape that broadcasts to z's.
        value: height over the plane, (...).
        norm: which norm is smallest.

    Source: Croce & Hein 2020, section 3.1 and appendix A; the search for t is ours.
    """
    uphill = w * torch.where(value >= 0, -1, 1).to(w.dtype).unsqueeze(-1)
    weight = uphill.abs()
    room = torch.where(uphill > 0, 1 - z, z).masked_fill(weight == 0, 0)
    largest = weight.amax(-1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)
    share, gap = weight / largest, value.abs().unsqueeze(-1) / largest  # so that squares of small weights do not vanish
    if norm is Norm.L1:
        return _fill_in_turn(share, room, gap).copysign(uphill)
    return _fill_evenly(share, torch.ones_like(share[..., :1]) if norm is Norm.LINF else share, room, gap).copysign(
        uphill
    )


def _fill_evenly(weight: Tensor, rate: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    """min(t rate, room) with the t at which the sum of weight times it is the gap.

    That sum is concave in t, so Newton's steps from below never pass the answer. Each fixes the pixels that have filled
    their room, and when there is no new one, t is exact: no sorting, and a handful of rounds.
    """
    reach = room / rate.clamp_min(torch.finfo(rate.dtype).tiny)  # the t that fills the room
    slopes, gains = weight * rate, weight * room
    t = torch.where(gains.sum(-1, keepdim=True) > gap, gap / slopes.sum(-1, keepdim=True), torch.inf)
    while True:
        full = t >= reach
        spent = torch.where(full, gains, 0).sum(-1, keepdim=True)
        slope = torch.where(full, 0, slopes).sum(-1, keepdim=True)
        further = torch.where(slope > 0, (gap - spent) / slope, t)
        if not (further > t).any():
            return torch.where(full, room, t * rate)
        t = torch.maximum(t, further)


def _fill_in_turn(weight: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    """The heaviest pixels first, each as far as it has room, until the gap is filled."""
    ranked, order = weight.sort(dim=-1, descending=True, stable=True)
    rooms = room.gather(-1, order)
    gains = ranked * rooms
    left = gap - (gains.cumsum(-1) - gains)
    moves = torch.where(left >= gains, rooms, left.clamp_min(0) / ranked.clamp_min(torch.finfo(ranked.dtype).tiny))
    return torch.zeros_like(room).scatter_(-1, order, moves)
