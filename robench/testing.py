"""Laws that every attack obeys, and `check_attack`, which holds any attack to them: also one from elsewhere.

A law is a small function of an attack and a case: it runs the attack, with its budget cut, on a small random network and
raises `LawError` where the outcome cannot be right. No reference result is needed.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy
import torch
from torch import Tensor, nn

from robench.attacks import attack_for, options_of
from robench.door import Door, frozen
from robench.errors import AttackError, RobenchError, UsageError
from robench.geometry import exact_norm, inside
from robench.losses import margin
from robench.noise import ImageGenerator, seed_of
from robench.protocols import Attack
from robench.registry import ATTACKS
from robench.threat import Norm, ThreatModel
from robench.verdict import Verdict, craft, evaluate, probe

Kind: TypeAlias = Literal["linear", "mlp", "conv"]
Layout: TypeAlias = Literal["plain", "channels-last", "transposed", "sliced"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
CLASSES = (2, 3, 4, 10)
RADII = (0.0, 1e-6, 1 / 255, 8 / 255, 0.3, 1.0, 10.0)
CLOSE = 1e-4  # a margin that rounding may turn

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


class LawError(AssertionError):
    """An attack broke a law; the text says which, on what, and how."""


@dataclass(frozen=True)
class Case:
    """A small random network and images, the same on every machine.

    The network is odd about grey: what it says of an image's negative is the negative of what it says of the image. So the
    negative is always of another class, and every image can be broken if the radius is large enough.

    Attributes:
        threat: the ball.
        kind: `linear`, `mlp`, or `conv` with batch norm and dropout.
        classes: how many.
        channels: of the images.
        side: height and width of the images.
        count: how many images; every fifth has a wrong label.
        layout: how the images lie in memory.
        double: float64 in place of float32.
        seed: of weights and images.
    """

    threat: ThreatModel
    kind: Kind = "conv"
    classes: int = 4
    channels: int = 1
    side: int = 5
    count: int = 8
    layout: Layout = "plain"
    double: bool = False
    seed: int = 0

    def model(self) -> nn.Module:
        """The network, in eval mode."""
        with torch.random.fork_rng(devices=[]):
            made = _Odd(self.kind, self.classes, self.channels, self.side)
        dice = torch.Generator().manual_seed(self.seed)
        for name, weights in made.state_dict().items():
            if name.endswith("running_var"):
                weights.uniform_(0.5, 1.5, generator=dice)
            elif weights.is_floating_point():
                spread = weights[0].numel() ** -0.5 if weights.ndim > 1 else 0.3
                weights.normal_(0, 2 * spread, generator=dice)
        return made.to(self.dtype).eval()

    def images(self) -> tuple[Tensor, Tensor]:
        """Images, (count, channels, side, side), a third of their pixels black or white, and labels, (count,)."""
        dice = torch.Generator().manual_seed(self.seed + 1)
        x = torch.rand(self.count, self.channels, self.side, self.side, generator=dice, dtype=torch.float64)
        x = (1.5 * x - 0.25).clamp(0, 1).to(self.dtype)
        with torch.no_grad():
            y = self.model()(x).argmax(1)
        y[4::5] = (y[4::5] + 1) % self.classes
        return laid_out(x, self.layout), y

    @property
    def dtype(self) -> torch.dtype:
        """Of images and weights."""
        return torch.float64 if self.double else torch.float32

    def at(self, eps: float) -> Case:
        """The same with another radius."""
        return replace(self, threat=replace(self.threat, eps=eps))


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same images, lying in memory in another way.

    Args:
        x: images, (n, channels, height, width).
        layout: one of `LAYOUTS`.
    """
    if layout == "channels-last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "sliced":
        return torch.stack([x, 1 - x], 4)[..., 0]
    return x.contiguous()


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


def check_attack(attack: str, cases: Iterable[Case] | None = None, laws: Iterable[str] | None = None) -> dict[str, str]:
    """Hold an attack to the laws.

    For the author of an attack, in a test:

        from robench.testing import check_attack

        def test_my_attack_obeys_the_laws():
            check_attack("my_attacks:Mine")

    Args:
        attack: as one writes it after `--attack`: a name, `NAME@key=value`, `module:object` or `path/to/file.py:object`.
        cases: networks, images and threats; a built-in list of all kinds, sizes and radii when None.
        laws: names of `LAWS`; all when None.

    Returns:
        For each law `obeyed`, or `exempt: ` and the reason that the attack's row in the registry gives.

    Raises:
        LawError: for the first law that is broken, naming the law, the attack and the case.
        UsageError: for an unknown attack or law.
    """
    norms_of(attack)  # which refuses what is no attack
    exempt = ATTACKS.entry(attack).exempt
    chosen = list(LAWS) if laws is None else list(laws)
    if unknown := [law for law in chosen if law not in LAWS]:
        raise UsageError(f"there is no law {unknown[0]!r}; laws are {', '.join(LAWS)}")
    tried = cases_for(attack) if cases is None else list(cases)
    found = {}
    for law in chosen:
        if law in exempt:
            found[law] = f"exempt: {exempt[law]}"
            continue
        for case in tried:
            check_law(law, attack, case)
        found[law] = "obeyed"
    return found


def check_law(law: str, attack: str, case: Case) -> None:
    """Hold an attack to one law in one case.

    Raises:
        LawError: if it is broken, or the attack stops with an error.
    """
    where = f"{law} broken by {attack} in {case}"
    try:
        LAWS[law](attack, case)
    except LawError as error:
        raise LawError(f"{where}: {error} (the law: {LAWS[law].__doc__})") from None
    except Exception as error:
        raise LawError(f"{where}: it stopped with {type(error).__name__}: {error}") from error


# the laws


def keeps_to_the_ball(attack: str, case: Case) -> None:
    """What an attack returns is inside the ball; from one that looks for the smallest norm, only that counts as success."""
    if case.threat.eps == 0:
        return
    made, x = quick(attack, case.threat), case.images()[0]
    if getattr(made, "minimal", False):
        found = judged(made, case)
        _demand(inside(exact_norm(found.adv, x, case.threat.norm), case.threat).all(), "a judged image is outside")
        assert found.norms is not None
        counted = found.clean & ~found.robust & ~inside(found.norms, case.threat)
        _none(counted, "counted as broken by a perturbation larger than eps")
        return
    size = exact_norm(proposed(made, case), x, case.threat.norm)
    _none(~inside(size, case.threat), f"outside the ball: up to {size.max().item():.8g} of {case.threat.eps:.8g}")


def returns_images(attack: str, case: Case) -> None:
    """Pixels are finite and in [0, 1], shape and dtype are the clean images', and what was handed over is not changed."""
    if case.threat.eps == 0:
        return
    x, y = case.images()
    before = x.clone(), y.clone()
    adv = proposed(quick(attack, case.threat), case, x=x, y=y)
    _demand((adv.shape, adv.dtype) == (x.shape, x.dtype), f"it returned {tuple(adv.shape)} {adv.dtype}")
    _demand(not adv.requires_grad, "the images it returned ask for gradients")
    _none(~adv.isfinite().flatten(1).all(1), "with NaN or infinite pixels")
    _none(((adv < 0) | (adv > 1)).flatten(1).any(1), "with pixels outside [0, 1]")
    _demand(torch.equal(x, before[0]) and torch.equal(y, before[1]), "it wrote into the images or labels it was given")


def keeps_what_it_saw(attack: str, case: Case) -> None:
    """An image is broken if and only if the model errs on what was returned, and what fooled it on the way is returned."""
    found = judged(quick(attack, case.threat), case)
    model, (x, y) = case.model(), case.images()
    _none(
        found.robust != (found.clean & (_logits(model, found.adv).argmax(1) == y)), "judged otherwise by a fresh pass"
    )
    if case.threat.eps == 0:
        return
    for i in found.clean.nonzero().flatten().tolist()[:4]:
        witness = _Witness(case.model(), x[i : i + 1], y[i : i + 1], case.threat)
        adv = proposed(quick(attack, case.threat), case, witness, x=x[i : i + 1], y=y[i : i + 1], ids=[i])
        seen = witness.seen
        _demand(
            not seen or witness.fooled_by(adv), f"image {i} fooled the model on the way, inside the ball, and was lost"
        )


def leaves_wrong_images(attack: str, case: Case) -> None:
    """An image that the model gets wrong as it is counts as broken and stays; one that keeps its label is no success."""
    made, (x, y) = quick(attack, case.threat), case.images()
    found = judged(made, case)
    wrong = _logits(case.model(), x).argmax(1) != y
    _none(wrong != ~found.clean, "wrong when clean and not so judged")
    _none(wrong & found.robust, "wrong when clean and judged robust")
    _none(wrong & _changed(found.adv, x), "wrong when clean and attacked all the same")
    _none(found.clean & ~found.robust & ~_changed(found.adv, x), "unchanged and judged broken")
    if found.norms is not None:
        _none(found.clean & (found.norms <= 0), "right when clean and broken by no perturbation")
    spared = proposed(made, case, x=x[wrong], y=y[wrong]) if wrong.any() and case.threat.eps else x[wrong]
    _none(_logits(case.model(), spared).argmax(1) == y[wrong], "wrong when clean and made right")


def does_nothing_without_room(attack: str, case: Case) -> None:
    """With eps = 0 robust accuracy is clean accuracy, and no pixel changes."""
    still = case.at(0.0)
    made, (x, _) = quick(attack, still.threat), case.images()
    found = judged(made, still)
    _none(found.robust != found.clean, "judged robust and right when clean are not the same")
    _demand(torch.equal(found.adv, x), "a judged image changed")
    if not getattr(made, "minimal", False):
        _none(_changed(proposed(made, still), x), "changed by the attack")


def grows_with_the_ball(attack: str, case: Case) -> None:
    """What is broken in a ball is broken in a larger one, but for one image, or one in a hundred where starts are random."""
    wider = min(1.5 * case.threat.eps, 1.0 if case.threat.norm is Norm.LINF else torch.inf)
    small, large = (judged(quick(attack, at.threat), at) for at in (case, case.at(wider)))
    lost = ~small.robust & large.robust
    _demand(
        int(lost.sum()) <= max(1, 0.01 * case.count),
        f"{int(lost.sum())} of {case.count} images are broken at eps {case.threat.eps:g} and not at {wider:g}",
    )


def breaks_all_without_bounds(attack: str, case: Case) -> None:
    """In a ball that holds all images nothing is left robust."""
    pixels = case.channels * case.side**2
    everywhere = case.at({Norm.LINF: 1.0, Norm.L2: pixels**0.5, Norm.L1: float(pixels)}[case.threat.norm])
    found = judged(quick(attack, everywhere.threat, factor=5), everywhere)
    _none(found.robust, f"robust at {everywhere.threat}, where every image is inside the ball")


def more_never_helps_the_model(attack: str, case: Case) -> None:
    """More restarts, targets, tries or queries never un-break an image, and an ensemble breaks what its members break."""
    made = quick(attack, case.threat)
    for name, (few, many) in PREFIXES.items():
        if not isinstance(options_of(made).get(name), int):
            continue
        try:
            less, more = (quick(attack, case.threat, **{name: budget}) for budget in (few, many))
        except UsageError:  # such as restarts without a random start
            continue
        lost = ~judged(less, case).robust & judged(more, case).robust
        _none(lost, f"broken with {name} = {few} and not with {name} = {many}")
    if hasattr(made, "members"):
        model, (x, y) = case.model(), case.images()
        found, crafted = evaluate(model, made, x, y, classes=case.classes)
        left = [int(found.clean.sum()), *crafted.left.values(), int(found.robust.sum())]
        _demand(left == sorted(left, reverse=True), f"left after each member, and in the end: {left}")


def repeats(attack: str, case: Case) -> None:
    """The same seed gives the same bits whatever the global random states, which stay as they are, as does the trace hook."""
    if case.threat.eps == 0:
        return
    made, found = quick(attack, case.threat), []
    for seed in (1, 2):
        with _global_seed(seed) as dice, _traced() as untouched:
            found.append(proposed(made, case))
            _demand(untouched(), "the trace hook (coverage, debuggers) was replaced")
            _demand(_dice() == dice, "a global random state moved")
    _none(_changed(found[0], found[1]), "of other pixels the second time, under another global seed")


def ignores_the_neighbours(attack: str, case: Case) -> None:
    """An image's verdict depends neither on the batch size, nor on the order, nor on the other images."""
    many = replace(case, count=max(case.count, 20))
    made, model, (x, y) = quick(attack, case.threat), many.model(), many.images()
    whole = judged(made, many, model)
    _same(whole, judged(made, many, model, batch=16), model, y, "in batches of 16")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(case.seed))
    back = order.argsort()
    _same(whole, judged(made, many, model, x=x[order], y=y[order], ids=order), model, y, "in another order", back)
    for i in (0, 11):
        alone = judged(made, many, model, x=x[i : i + 1], y=y[i : i + 1], ids=torch.tensor([i]))
        one = Verdict(whole.clean[i, None], whole.robust[i, None], whole.adv[i, None], 0.0, None, ())
        _same(one, alone, model, y[i, None], "alone")


def leaves_the_model(attack: str, case: Case) -> None:
    """Weights, statistics, modes, gradients and what asks for them stay as they are, also after an error in the model."""
    if case.threat.eps == 0:
        return
    made, (x, y) = quick(attack, case.threat), case.images()
    model = case.model()
    with frozen(model):
        before = _state(model)
        made(Door(model, case.classes), x, y, generator=_generator(range(len(x))))
        _demand(_state(model) == before, "inside the attack the model changed")
    for module in list(model.modules())[::2]:
        module.training = True
    before = _state(model)
    evaluate(model, made, x, y, classes=case.classes)
    _demand(_state(model) == before, "after the evaluation the model is not what it was")
    ids, which = torch.arange(len(x)), torch.ones(len(x), dtype=torch.bool)
    for calls in (1, 2, 5):
        bomb = _Bomb(model, calls)
        try:
            craft(Door(bomb, case.classes), made, x, y, which, ids=ids, seed=0)
        except Exception as error:
            _demand(bomb.went_off, f"it stopped with {error}")
        else:
            _demand(not bomb.went_off, "an error in the model was swallowed")
        _demand(_state(model) == before, f"after an error in pass {calls} the model is not what it was")


def ignores_names(attack: str, case: Case) -> None:
    """Renaming the classes, or adding a constant to all logits, changes no verdict, but for one image in a thousand, or one."""
    made, y, order = quick(attack, case.threat), case.images()[1], [*range(1, case.classes), 0]
    plain = judged(made, case).robust
    for what, names, shift in (
        ("the classes have other names", order, 0.0),
        ("all logits are 8 higher", list(range(case.classes)), 8.0),
    ):
        renamed = _Renamed(case.model(), names, shift)
        flips = int((judged(made, case, renamed, y=torch.tensor(names).argsort()[y]).robust != plain).sum())
        _demand(flips <= max(1, 0.001 * case.count), f"{flips} of {case.count} verdicts are others where {what}")


def keeps_its_budget(attack: str, case: Case) -> None:
    """No image takes more passes than `cost` says."""
    made, (x, y) = quick(attack, case.threat), case.images()
    cost: Callable[[int], tuple[int, int]] | None = getattr(made, "cost", None)
    if cost is None or case.threat.eps == 0:
        return
    most = cost(case.classes)
    for i in range(min(4, len(x))):
        door = Door(case.model(), case.classes)
        proposed(made, case, door, x=x[i : i + 1], y=y[i : i + 1], ids=[i])
        took = door.forwards, door.backwards
        _demand(
            took[0] <= most[0] and took[1] <= most[1], f"image {i} took {took} passes; at most {most} were announced"
        )


def reads_any_layout(attack: str, case: Case) -> None:
    """The verdict is the same however the images lie in memory."""
    made, model, (x, y) = quick(attack, case.threat), case.model(), case.images()
    plain = judged(made, case, model, x=laid_out(x, "plain"))
    for layout in LAYOUTS[1:]:
        _same(plain, judged(made, case, model, x=laid_out(x, layout)), model, y, f"laid out {layout}")


def knows_randomised_models(attack: str, case: Case) -> None:
    """A randomised model is refused by attacks that are not made for it, and by no others; a deterministic one never is."""
    made, (x, y) = quick(attack, case.threat), case.images()
    with torch.no_grad(), frozen(model := case.model()):
        _demand(not probe(model, x, y, case.classes).randomised, "a deterministic model was called randomised")
    fit = bool(getattr(made, "randomised", False))
    try:
        judged(made, case, _Noisy(case.model(), case.seed))
    except AttackError as error:
        _demand(not fit, f"it says it is made for randomised models, and refused one: {error}")
    else:
        _demand(fit, "it is not made for randomised models, and a result came out all the same")


def refuses_nonsense(attack: str, case: Case) -> None:
    """What cannot be meant is refused by an error of robench before the model is asked anything."""
    made, (x, y) = quick(attack, case.threat), case.images()
    for what, bad_x, bad_y in _nonsense(x, y, case.classes):
        counter = _Bomb(case.model(), -1)
        try:
            judged(made, case, counter, x=bad_x, y=bad_y)
        except RobenchError:
            _demand(counter.calls == 0, f"{what}: refused, but after {counter.calls} passes")
        else:
            raise LawError(f"{what}: not refused")
    for name in BUDGETS:
        if isinstance(options_of(made).get(name), int):
            _refused(f"{name} = 0", attack, case.threat, **{name: 0})
    _refused("an unknown option", attack, case.threat, no_such_option=1)
    named = ATTACKS.entry(attack).facts.get("norms", "linf l2 l1").split()
    for norm in set(Norm) - set(named):
        _refused(f"the norm {norm}", attack, ThreatModel(norm, 0.1))


LAWS: Mapping[str, Callable[[str, Case], None]] = {
    "I1": keeps_to_the_ball,
    "I2": returns_images,
    "I3": keeps_what_it_saw,
    "I4": leaves_wrong_images,
    "I5": does_nothing_without_room,
    "I6": grows_with_the_ball,
    "I7": breaks_all_without_bounds,
    "I8": more_never_helps_the_model,
    "I9": repeats,
    "I10": ignores_the_neighbours,
    "I11": leaves_the_model,
    "I12": ignores_names,
    "I13": keeps_its_budget,
    "I14": reads_any_layout,
    "I15": knows_randomised_models,
    "I16": refuses_nonsense,
}


# how the laws run an attack


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
        return attack(door, x, y, generator=_generator(range(len(x)) if ids is None else ids))


def _generator(ids: Iterable[int]) -> ImageGenerator:
    return ImageGenerator(seed_of(0, "law"), list(ids))


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    """What a model says, in passes that are filled up as a door fills them."""
    with torch.no_grad(), frozen(model):
        return Door(model, len(_first_logits(model, x)))(x) if len(x) else x.new_zeros(0, 1)


def _first_logits(model: nn.Module, x: Tensor) -> Tensor:
    first: Tensor = model(x[:1])[0]
    return first


def _demand(condition: Tensor | bool, otherwise: str) -> None:
    if not bool(condition):
        raise LawError(otherwise)


def _none(mask: Tensor, what: str) -> None:
    """Demand that no image is what `what` says."""
    if mask.any():
        raise LawError(f"{int(mask.sum())} of {len(mask)} images ({mask.nonzero().flatten().tolist()[:5]}): {what}")


def _refused(what: str, attack: str, threat: ThreatModel, **options: Any) -> None:
    try:
        attack_for(attack, threat, **options)
    except RobenchError:
        return
    raise LawError(f"{what}: not refused")


def _changed(adv: Tensor, x: Tensor) -> Tensor:
    return (adv != x).flatten(1).any(1)


def _same(one: Verdict, other: Verdict, model: nn.Module, y: Tensor, how: str, back: Tensor | None = None) -> None:
    """Demand equal verdicts but where a margin is so small that rounding decides.

    Args:
        one: of some images.
        other: of the same, in an order that `back` undoes.
        model: what judged them.
        y: labels in the order of the first.
        how: what is different about the second.
        back: positions in the second, for each of the first.
    """
    robust, adv = (other.robust, other.adv) if back is None else (other.robust[back], other.adv[back])
    near = torch.stack([margin(_logits(model, each), y).abs() for each in (one.adv, adv)]).amin(0) < CLOSE
    _none((one.robust != robust) & ~near, f"judged otherwise {how}")


def _state(model: nn.Module) -> list[object]:
    """Everything an attack could change of a model."""
    tensors = {key: value.numpy().tobytes() for key, value in model.state_dict().items()}
    asks = [(p.requires_grad, None if p.grad is None else p.grad.numpy().tobytes()) for p in model.parameters()]
    return [tensors, asks, [module.training for module in model.modules()]]


def _dice() -> list[object]:
    """The global random states."""
    return [torch.get_rng_state().tolist(), random.getstate(), repr(numpy.random.get_state())]


@contextmanager
def _global_seed(seed: int) -> Iterator[list[object]]:
    """Other global random states for a while; yields them."""
    before = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        numpy.random.seed(seed)
        try:
            yield _dice()
        finally:
            random.setstate(before[0])
            numpy.random.set_state(before[1])


@contextmanager
def _traced() -> Iterator[Callable[[], bool]]:
    """A trace hook of our own for a while; yields a question: is it still there?"""
    before = sys.gettrace()

    def hook(frame: object, event: str, argument: object) -> None:
        """See nothing."""

    sys.settrace(hook)
    try:
        yield lambda: sys.gettrace() is hook
    finally:
        sys.settrace(before)


def _nonsense(x: Tensor, y: Tensor, classes: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Images and labels that no evaluation can use."""

    def first(values: Tensor, value: float) -> Tensor:
        spoilt = values.clone()
        spoilt.flatten()[0] = value
        spoilt[0] = value
        return spoilt

    yield "a label beyond the classes", x, first(y, classes)
    yield "a label below 0", x, first(y, -1)
    yield "the label -100", x, first(y, -100)
    yield "labels that are no whole numbers", x, y.double()
    yield "one-hot labels", x, nn.functional.one_hot(y, classes)
    yield "a label too few", x, y[1:]
    yield "a NaN pixel", first(x, torch.nan), y
    yield "an infinite pixel", first(x, torch.inf), y
    yield "pixels up to 255", x * 255, y
    yield "normalised pixels", (x - 0.5) / 0.25, y
    yield "whole numbers as pixels", (x * 255).to(torch.uint8), y
    yield "images of three axes", x[:, 0], y
    yield "no images", x[:0], y[:0]


# networks


class _Odd(nn.Module):
    """A network whose logits at 1 - x are the negatives of those at x."""

    def __init__(self, kind: str, classes: int, channels: int, side: int) -> None:
        super().__init__()
        pixels, width = channels * side**2, 12
        layers: dict[str, list[nn.Module]] = {
            "linear": [nn.Flatten()],
            "mlp": [nn.Flatten(), nn.Linear(pixels, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()],
            "conv": [nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()],
        }
        self.body = nn.Sequential(*layers[kind])
        self.head = nn.Linear({"linear": pixels, "mlp": width, "conv": 6 * side**2}[kind], classes, bias=False)

    def features(self, x: Tensor) -> Tensor:
        """What the head reads, (n, features)."""
        found: Tensor = self.body(x) - self.body(1 - x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (n, classes)."""
        logits: Tensor = self.head(self.features(x))
        return logits


class _Around(nn.Module):
    """A network around another, with its features."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def features(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner.features(x)  # type: ignore[operator]
        return found

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        return logits


class _Witness(_Around):
    """Remembers whether it was shown an image inside a ball around the clean one that fooled it."""

    def __init__(self, inner: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> None:
        super().__init__(inner)
        self.x, self.y, self.threat, self.seen = x, y, threat, False

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        self.seen |= bool(self._fools(x.detach(), logits.detach()).any())
        return logits

    def fooled_by(self, adv: Tensor) -> bool:
        """Whether an image fools it inside the ball."""
        return bool(self._fools(adv, _logits(self.inner, adv)).all())

    def _fools(self, adv: Tensor, logits: Tensor) -> Tensor:
        size = exact_norm(adv, self.x.expand(len(adv), *self.x.shape[1:]), self.threat.norm)
        return (logits.argmax(1) != self.y) & inside(size, self.threat)


class _Bomb(_Around):
    """Counts passes and stops with an error in one of them."""

    def __init__(self, inner: nn.Module, fatal: int) -> None:
        super().__init__(inner)
        self.fatal, self.calls, self.went_off = fatal, 0, False

    def features(self, x: Tensor) -> Tensor:
        self._count()
        return super().features(x)

    def forward(self, x: Tensor) -> Tensor:
        self._count()
        return super().forward(x)

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self.fatal:
            self.went_off = True
            raise RuntimeError("a planted error in the model")


class _Renamed(_Around):
    """Gives the logits in another order, and higher."""

    def __init__(self, inner: nn.Module, names: list[int], shift: float) -> None:
        super().__init__(inner)
        self.names, self.shift = names, shift

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, self.names] + self.shift


class _Noisy(_Around):
    """Answers differently each time."""

    def __init__(self, inner: nn.Module, seed: int) -> None:
        super().__init__(inner)
        self.dice = torch.Generator().manual_seed(seed)

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits + 0.1 * torch.randn(logits.shape, generator=self.dice, dtype=logits.dtype)
