"""Auto-PGD: gradient ascent with momentum that chooses its own step sizes, plain and targeted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from robench.door import fooled
from robench.errors import UsageError
from robench.geometry import norm_of, per_image, project
from robench.losses import LOSSES, dlr_targeted, few_classes
from robench.noise import branch, normal, uniform
from robench.protocols import Classifier
from robench.threat import Norm, ThreatModel

SPARSE = 0.2  # the share of pixels that the first steps in l1 move
LONGEST = 2.0  # the first step, in eps, for linf and l2; l1 starts with 1
MOMENTUM = 0.25  # how much of the last move enters the next
ENOUGH = 0.75  # a step stays as long as more than this share of its moves went up

Objective: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # logits and which images they are of -> values
State: TypeAlias = dict[str, Tensor]  # everything a climb knows, one row per image


@dataclass(frozen=True)
class APGD:
    """Auto-PGD on an untargeted loss: momentum, and a step that is halved where it no longer pays.

    In l1 the climb starts in a ball three times as large, then twice, then in the ball itself, moves along a few pixels
    only, and adapts how many.

    Attributes:
        steps: in each restart.
        restarts: starts; an image already fooled is not tried again.
        loss: `ce`, `dlr` (scale-free) or `cw-margin`. Cross-entropy is climbed as its log-odds, which points the same way
            and does not vanish on confident models.
        draws: forward passes averaged at each point, for models that answer differently each time.
        early_stop: leave an image alone once it fools the model. Off, every image is climbed to the end and returned where
            its loss was highest, which transfers better.

    Raises:
        UsageError: if steps, restarts or draws are below 1.

    Source: Croce & Hein 2020, algorithm 1 and section 3; for l1 Croce & Hein 2021, section 4 and algorithm 1.
    Differs: as in the reference code, the first comparison of a climb is not with its start but with a loss of 0, and the
        l2 ball is entered by scaling and clipping rather than by projection. In l1 the first steps move a fifth of the
        pixels, as in the paper; the reference code counts those that its start moved, to which rounding adds hundreds.
        Averages over `draws` decide success, not the last one.
    """

    confirms: ClassVar[bool] = True

    threat: ThreatModel
    steps: int = 100
    restarts: int = 1
    loss: Literal["ce", "dlr", "cw-margin"] = "ce"
    draws: int = 1
    early_stop: bool = True

    def __post_init__(self) -> None:
        """Refuse empty budgets."""
        _check(self.steps, self.restarts, self.draws)

    def cost(self, classes: int) -> tuple[int, int]:
        """The most forward and backward passes for an image."""
        forwards, backwards = _climb_cost(self.threat, self.steps)
        return forwards * self.restarts * self.draws, backwards * self.restarts * self.draws

    def notes(self, classes: int) -> tuple[str, ...]:
        """What is reduced for few classes."""
        return few_classes(self.loss, classes)

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Perturb a batch."""
        loss = LOSSES[self.loss]
        level = -math.inf if self.loss == "ce" else 0.0

        def run(ids: Tensor, restart: int) -> tuple[Tensor, Tensor, Tensor]:
            labels = y[ids]

            def objective(logits: Tensor, index: Tensor) -> Tensor:
                return loss(logits, labels[index])

            noise = branch(generator, "restart", restart, index=ids)
            return _climb(
                model, objective, level, x[ids], labels, self.threat, self.steps, self.draws, self.early_stop, noise
            )

        return _worst(run, self.restarts, x, self.early_stop)


@dataclass(frozen=True)
class APGDT:
    """Auto-PGD towards one class after the other, the likeliest first, on the targeted DLR loss.

    Attributes:
        steps: for each target.
        targets: how many classes to aim at, as far as there are.
        early_stop: leave an image alone once it fools the model (towards any class).

    Raises:
        UsageError: if steps or targets are below 1.

    Source: Croce & Hein 2020, section 4.2.
    """

    confirms: ClassVar[bool] = True

    threat: ThreatModel
    steps: int = 100
    targets: int = 9
    early_stop: bool = True

    def __post_init__(self) -> None:
        """Refuse empty budgets."""
        _check(self.steps, self.targets, 1)

    def cost(self, classes: int) -> tuple[int, int]:
        """The most forward and backward passes for an image."""
        forwards, backwards = _climb_cost(self.threat, self.steps)
        targets = min(self.targets, classes - 1)
        return 1 + forwards * targets, backwards * targets

    def notes(self, classes: int) -> tuple[str, ...]:
        """What is reduced for few classes."""
        few = [f"aims at {classes - 1} classes, all there are"] if classes - 1 < self.targets else []
        return tuple(few + ["targeted dlr needs four classes; climbs the margin to each"] * (classes < 4))

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Perturb a batch."""
        with torch.no_grad():
            ranked = model(x).scatter(1, y[:, None], torch.inf).argsort(dim=1, descending=True)[:, 1:]

        def run(ids: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
            labels, target = y[ids], ranked[ids, rank]

            def objective(logits: Tensor, index: Tensor) -> Tensor:
                return dlr_targeted(logits, labels[index], target[index])

            noise = branch(generator, "target", rank, index=ids)
            return _climb(model, objective, 0.0, x[ids], labels, self.threat, self.steps, 1, self.early_stop, noise)

        return _worst(run, min(self.targets, ranked.shape[1]), x, self.early_stop)


def _check(steps: int, runs: int, draws: int) -> None:
    if min(steps, runs, draws) < 1:
        raise UsageError(
            f"attack apgd: steps ({steps}), restarts or targets ({runs}) and draws ({draws}) must be at least 1"
        )


def _worst(
    run: Callable[[Tensor, int], tuple[Tensor, Tensor, Tensor]], runs: int, x: Tensor, early_stop: bool
) -> Tensor:
    """The outcome of several runs: for each image the first that fools the model, or else the one of highest loss."""
    found = x.clone()
    highest = torch.full((len(x),), -math.inf, dtype=x.dtype, device=x.device)
    todo = torch.arange(len(x), device=x.device)
    for number in range(runs):
        if not len(todo):
            break
        adv, value, broken = run(todo, number)
        better = broken | (value > highest[todo]) if early_stop else value > highest[todo]
        found[todo[better]] = adv[better]
        highest[todo[better]] = value[better]
        if early_stop:
            todo = todo[~broken]
    return found


def _phases(threat: ThreatModel, steps: int) -> list[tuple[ThreatModel, int]]:
    """The balls of a climb and the steps in each: in l1 larger ones first."""
    if threat.norm is not Norm.L1:
        return [(threat, steps)]
    first = min(math.ceil(0.3 * steps), (steps - 1) // 2)
    sizes = [(3, first), (2, first), (1, steps - 2 * first)]
    return [(replace(threat, eps=factor * threat.eps), count) for factor, count in sizes if count]


def _climb_cost(threat: ThreatModel, steps: int) -> tuple[int, int]:
    return steps + len(_phases(threat, steps)), steps


def _climb(
    model: Classifier,
    objective: Objective,
    level: float,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    steps: int,
    draws: int,
    early_stop: bool,
    noise: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """One run through all phases: images, their losses, and which of them fool the model inside the threat."""
    phases = _phases(threat, steps)
    adv = _start(x, phases[0][0], noise)
    for number, (ball, count) in enumerate(phases):
        stops = early_stop and number == len(phases) - 1
        adv, value, broken = _phase(
            model, objective, level, x, y, _into(adv, x, ball), ball, count, draws, stops, fresh=number == 0
        )
    return adv, value, broken


def _phase(
    model: Classifier,
    objective: Objective,
    level: float,
    x: Tensor,
    y: Tensor,
    start: Tensor,
    threat: ThreatModel,
    steps: int,
    draws: int,
    early_stop: bool,
    fresh: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Climb inside one ball; an image is returned where it fooled the model (early_stop), or where its loss was highest.

    A fresh climb starts from noise, which says nothing about how many pixels to move.
    """
    found = start.clone()
    value = torch.full((len(x),), -math.inf, dtype=x.dtype, device=x.device)
    broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    ids = torch.arange(len(x), device=x.device)

    def look(adv: Tensor, ids: Tensor, last: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Which images fool the model, their losses, and the gradients (of which the last look has no need)."""
        adv = adv.detach().requires_grad_(not last)
        logits_sum = values = gradient = torch.zeros((), dtype=adv.dtype, device=adv.device)
        for _ in range(draws):
            with torch.set_grad_enabled(not last):
                logits = model(adv)
                each = objective(logits, ids)
                gradient = gradient if last else gradient + torch.autograd.grad(each.sum(), adv)[0]
            logits_sum, values = logits_sum + logits.detach(), values + each.detach() / draws
        return fooled(model, adv, logits_sum, y[ids]), values, gradient

    schedule = _sparse if threat.norm is Norm.L1 else _halving
    broke, now, gradient = look(start, ids)
    state = _begin(x, start, now, gradient, level, threat, fresh)
    check, every = 0, _first_check(threat, steps)
    for i in range(steps + 1):
        if i:
            state["adv"], state["old"] = _step(state, threat, first=i == 1), state["adv"]
            broke, now, gradient = look(state["adv"], ids, last=i == steps)
            _note(state, now, None if i == steps else gradient)
        found[ids[broke]], broken[ids[broke]] = state["adv"][broke], True
        if early_stop and bool(broke.any()):
            ids, state = ids[~broke], {key: rows[~broke] for key, rows in state.items()}
            if not len(ids):
                break
        if i and i == check + every:
            schedule(state, every, threat)
            check, every = i, every if threat.norm is Norm.L1 else _next_check(every, steps)
    value[ids] = state["best_value"]
    found[ids] = state["best"]
    return found, value, broken


def _begin(
    x: Tensor, start: Tensor, value: Tensor, gradient: Tensor, level: float, threat: ThreatModel, fresh: bool
) -> State:
    """What a climb knows at its start."""
    longest = threat.eps * (1 if threat.norm is Norm.L1 else LONGEST)
    filled = ((start - x) != 0).flatten(1).sum(1).to(x.dtype)
    share = filled / x[0].numel() / 1.5
    if fresh:
        filled, share = torch.full_like(filled, x[0].numel()), torch.full_like(share, SPARSE)
    return {
        "x": x,
        "adv": start,
        "old": start,
        "gradient": gradient,
        "best": start,
        "best_gradient": gradient,
        "best_value": value,
        "length": torch.full_like(value, longest),
        "previous": torch.full_like(value, level),
        "rises": torch.zeros_like(value),
        "best_before": value,
        "halved": torch.ones_like(value, dtype=torch.bool),
        "filled": filled,
        "share": share,
    }


def _step(state: State, threat: ThreatModel, first: bool) -> Tensor:
    """The next point: a step along the gradient, in linf and l2 averaged with the last move."""
    x, adv, gradient = state["x"], state["adv"], state["gradient"]
    length = per_image(state["length"], x)
    if threat.norm is Norm.L1:
        signs = _largest_share(gradient, state["share"])
        return project(adv + length * signs / per_image(signs.abs().flatten(1).sum(1) + 1e-10, x), x, threat)
    if threat.norm is Norm.LINF:
        there = _into(adv + length * gradient.sign(), x, threat)
    else:
        there = _into(adv + length * gradient / per_image(norm_of(gradient, threat.norm) + 1e-12, x), x, threat)
    part = 0.0 if first else MOMENTUM
    return _into(adv + (there - adv) * (1 - part) + (adv - state["old"]) * part, x, threat)


def _largest_share(gradient: Tensor, share: Tensor) -> Tensor:
    """The signs of that share of each gradient's entries that is largest in size, 0 elsewhere."""
    size = gradient.abs().flatten(1)
    place = ((1 - share) * size.shape[1]).clamp(0, size.shape[1] - 1).long()
    least = size.sort(dim=1).values.gather(1, place[:, None])
    return gradient.sign() * (size >= least).to(gradient.dtype).view_as(gradient)


def _into(adv: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """Into the ball and into [0, 1]; in l2 by scaling, then clipping, which only shortens."""
    if threat.norm is not Norm.L2:
        return project(adv, x, threat)
    delta = adv - x
    size = norm_of(delta, threat.norm)
    return (x + delta * per_image(size.clamp_max(threat.eps) / (size + 1e-12), x)).clamp(0, 1)


def _note(state: State, value: Tensor, gradient: Tensor | None) -> None:
    """Remember whether the loss rose, and the best point so far; the last point has no gradient."""
    state["rises"] = state["rises"] + (value > state["previous"])
    state["previous"] = value
    better = value > state["best_value"]
    rows = per_image(better, state["adv"])
    state["best"] = torch.where(rows, state["adv"], state["best"])
    state["best_value"] = torch.where(better, value, state["best_value"])
    if gradient is not None:
        state["gradient"] = gradient
        state["best_gradient"] = torch.where(rows, gradient, state["best_gradient"])


def _halving(state: State, moves: int, threat: ThreatModel) -> None:
    """In linf and l2: halve the step and go back to the best point where few moves went up, or nothing was gained.

    Source: Croce & Hein 2020, section 3.2, conditions 1 and 2.
    """
    halve = (state["rises"] <= moves * ENOUGH) | (~state["halved"] & (state["best_before"] >= state["best_value"]))
    state["length"] = torch.where(halve, state["length"] / 2, state["length"])
    _return(state, halve)
    state["halved"], state["best_before"] = halve, state["best_value"]
    state["rises"] = torch.zeros_like(state["rises"])


def _sparse(state: State, moves: int, threat: ThreatModel) -> None:
    """In l1: move fewer pixels as the best point gets sparser, with shorter steps while its sparsity stays the same.

    Source: Croce & Hein 2021, algorithm 1.
    """
    filled = ((state["best"] - state["x"]) != 0).flatten(1).sum(1).to(state["filled"].dtype)
    sparser = filled / state["filled"] < 0.95
    state["share"] = filled / state["x"][0].numel() / 1.5
    state["length"] = torch.where(sparser, threat.eps, (state["length"] / 1.5).clamp_min(threat.eps / 10))
    state["filled"] = filled
    _return(state, sparser)


def _return(state: State, where: Tensor) -> None:
    """Some images go back to their best point."""
    rows = per_image(where, state["adv"])
    state["adv"] = torch.where(rows, state["best"], state["adv"])
    state["gradient"] = torch.where(rows, state["best_gradient"], state["gradient"])


def _first_check(threat: ThreatModel, steps: int) -> int:
    return max(int((0.04 if threat.norm is Norm.L1 else 0.22) * steps), 1)


def _next_check(every: int, steps: int) -> int:
    """Checks come more often as the climb goes on."""
    return max(every - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))


def _start(x: Tensor, threat: ThreatModel, noise: torch.Generator) -> Tensor:
    """A random point on the border of the ball (in l1 the projection of normal noise), inside [0, 1]."""
    if threat.norm is Norm.L1:
        return project(x + normal(noise, x.shape, x.device).to(x.dtype), x, threat)
    draw = uniform(noise, x.shape, x.device) * 2 - 1 if threat.norm is Norm.LINF else normal(noise, x.shape, x.device)
    draw = draw.to(x.dtype)
    return (x + threat.eps * draw / per_image(norm_of(draw, threat.norm) + 1e-12, x)).clamp(0, 1)
