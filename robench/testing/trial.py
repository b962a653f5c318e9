"""How the laws run an attack: with its budget cut, on a case, judged or straight."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robench.attacks import attack_for, options_of
from robench.door import Door, frozen
from robench.errors import UsageError
from robench.noise import ImageGenerator, seed_of
from robench.protocols import Attack
from robench.testing.case import CLASSES, KINDS, LAYOUTS, RADII, Case
from robench.threat import Norm, ThreatModel
from robench.verdict import Verdict, evaluate

# what a budget is cut to, by the name of its field
BUDGETS = {
    "steps": 10,
    "queries": 40,
    "tries": 10,
    "targets": 3,
    "restarts": 2,
    "draws": 3,
    "searches": 3,
    "start_draws": 10,
    "evaluations": 5,
    "evaluations_max": 10,
}
# of these, more only adds: what the smaller budget tries is tried first
PREFIXES = {"restarts": (1, 3), "targets": (1, 3), "tries": (2, 8), "queries": (4, 20)}


def quick(attack: str, threat: ThreatModel, *, factor: int = 1, **overrides: Any) -> Attack:
    """The attack that a text names with its budgets cut, as far as it allows.

    Args:
        attack: such as `pgd-20` or `my_attacks:Mine`.
        threat: the ball.
        factor: times the budgets of `BUDGETS`.
        overrides: options that are not cut.

    Raises:
        UsageError: for an unknown name or option, or a norm it does not work in.
    """
    made = attack_for(attack, threat, **overrides)
    for name, budget in BUDGETS.items():
        given, most = options_of(made).get(name), budget * factor
        if name in overrides or not isinstance(given, int) or given <= most:
            continue
        try:
            made = replace(made, **{name: most})  # type: ignore[type-var]
        except UsageError:
            continue
    return made


def norms_of(attack: str) -> list[Norm]:
    """The norms an attack works in.

    Raises:
        UsageError: if there is none, as for an unknown name.
    """
    found, refusal = [], UsageError(f"attack {attack!r} works in no norm")
    for norm in Norm:
        try:
            attack_for(attack, ThreatModel(norm, 0.1))
            found.append(norm)
        except UsageError as error:
            refusal = error
    if not found:
        raise refusal
    return found


def cases_for(attack: str) -> list[Case]:
    """The cases that `check_attack` uses where none are given: every norm of the attack at every radius."""
    made: list[Case] = []
    for norm in norms_of(attack):
        for eps in RADII:
            if norm is Norm.LINF and eps > 1:
                continue
            i = len(made)
            made.append(
                Case(
                    ThreatModel(norm, eps),
                    kind=KINDS[(i + 2) % 3],
                    classes=CLASSES[(i + 2) % 4],
                    channels=(1, 3)[i % 2],
                    side=4 + i % 5,
                    count=(8, 20)[i % 5 == 4],
                    layout=LAYOUTS[i % 4],
                    double=i % 6 == 5,
                    seed=i,
                )
            )
    return made


def judged(
    attack: Attack,
    case: Case,
    model: nn.Module | None = None,
    *,
    x: Tensor | None = None,
    y: Tensor | None = None,
    ids: Tensor | None = None,
    batch: int = 500,
) -> Verdict:
    """The verdict of an evaluation; model, images and labels are the case's where none are given."""
    own_x, own_y = case.images()
    x, y = own_x if x is None else x, own_y if y is None else y
    model = case.model() if model is None else model
    return evaluate(model, attack, x, y, classes=case.classes, ids=ids, batch=batch)[0]


def proposed(
    attack: Attack,
    case: Case,
    model: nn.Module | None = None,
    *,
    x: Tensor | None = None,
    y: Tensor | None = None,
    ids: Iterable[int] | None = None,
) -> Tensor:
    """What an attack returns, with nothing between it and the caller but a door."""
    own_x, own_y = case.images()
    x, y = own_x if x is None else x, own_y if y is None else y
    model = case.model() if model is None else model
    door = model if isinstance(model, Door) else Door(model, case.classes)
    with frozen(door):
        return attack(door, x, y, generator=generator(range(len(x)) if ids is None else ids))


def generator(ids: Iterable[int]) -> ImageGenerator:
    """The randomness of some images."""
    return ImageGenerator(seed_of(0, "law"), list(ids))


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """What a model says, in passes that are filled up as a door fills them."""
    with torch.no_grad(), frozen(model):
        return Door(model, len(_first_logits(model, x)))(x) if len(x) else x.new_zeros(0, 1)


def _first_logits(model: nn.Module, x: Tensor) -> Tensor:
    first: Tensor = model(x[:1])[0]
    return first
