"""The laws, each a small function of an attack and a case that raises `LawError` where the outcome cannot be right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robench.attacks import attack_for, options_of
from robench.door import Door, frozen
from robench.errors import AttackError, RobenchError, UsageError
from robench.geometry import exact_norm, inside
from robench.losses import margin
from robench.registry import ATTACKS
from robench.testing.case import LAYOUTS, Case, laid_out
from robench.testing.doubles import Bomb, Noisy, Renamed, Witness, global_seed, random_states, traced
from robench.testing.trial import BUDGETS, PREFIXES, generator, judged, logits_of, proposed, quick
from robench.threat import Norm, ThreatModel
from robench.verdict import Verdict, craft, evaluate, probe

CLOSE = 1e-4  # a margin that rounding may turn


class LawError(AssertionError):
    """An attack broke a law; the text says which, on what, and how."""


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
        found.robust != (found.clean & (logits_of(model, found.adv).argmax(1) == y)), "judged otherwise by a fresh pass"
    )
    if case.threat.eps == 0:
        return
    for i in found.clean.nonzero().flatten().tolist()[:4]:
        witness = Witness(case.model(), x[i : i + 1], y[i : i + 1], case.threat)
        adv = proposed(quick(attack, case.threat), case, witness, x=x[i : i + 1], y=y[i : i + 1], ids=[i])
        seen = witness.seen
        _demand(
            not seen or witness.fooled_by(adv), f"image {i} fooled the model on the way, inside the ball, and was lost"
        )


def leaves_wrong_images(attack: str, case: Case) -> None:
    """An image that the model gets wrong as it is counts as broken and stays; one that keeps its label is no success."""
    made, (x, y) = quick(attack, case.threat), case.images()
    found = judged(made, case)
    wrong = logits_of(case.model(), x).argmax(1) != y
    _none(wrong != ~found.clean, "wrong when clean and not so judged")
    _none(wrong & found.robust, "wrong when clean and judged robust")
    _none(wrong & _changed(found.adv, x), "wrong when clean and attacked all the same")
    _none(found.clean & ~found.robust & ~_changed(found.adv, x), "unchanged and judged broken")
    if found.norms is not None:
        _none(found.clean & (found.norms <= 0), "right when clean and broken by no perturbation")
    spared = proposed(made, case, x=x[wrong], y=y[wrong]) if wrong.any() and case.threat.eps else x[wrong]
    _none(logits_of(case.model(), spared).argmax(1) == y[wrong], "wrong when clean and made right")


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
        with global_seed(seed) as dice, traced() as untouched:
            found.append(proposed(made, case))
            _demand(untouched(), "the trace hook (coverage, debuggers) was replaced")
            _demand(random_states() == dice, "a global random state moved")
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
        made(Door(model, case.classes), x, y, generator=generator(range(len(x))))
        _demand(_state(model) == before, "inside the attack the model changed")
    for module in list(model.modules())[::2]:
        module.training = True
    before = _state(model)
    evaluate(model, made, x, y, classes=case.classes)
    _demand(_state(model) == before, "after the evaluation the model is not what it was")
    ids, which = torch.arange(len(x)), torch.ones(len(x), dtype=torch.bool)
    for calls in (1, 2, 5):
        bomb = Bomb(model, calls)
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
        renamed = Renamed(case.model(), names, shift)
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
        judged(made, case, Noisy(case.model(), case.seed))
    except AttackError as error:
        _demand(not fit, f"it says it is made for randomised models, and refused one: {error}")
    else:
        _demand(fit, "it is not made for randomised models, and a result came out all the same")


def refuses_nonsense(attack: str, case: Case) -> None:
    """What cannot be meant is refused by an error of robench before the model is asked anything."""
    made, (x, y) = quick(attack, case.threat), case.images()
    for what, bad_x, bad_y in _nonsense(x, y, case.classes):
        counter = Bomb(case.model(), -1)
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
    near = torch.stack([margin(logits_of(model, each), y).abs() for each in (one.adv, adv)]).amin(0) < CLOSE
    _none((one.robust != robust) & ~near, f"judged otherwise {how}")


def _state(model: nn.Module) -> list[object]:
    """Everything an attack could change of a model."""
    tensors = {key: value.numpy().tobytes() for key, value in model.state_dict().items()}
    asks = [(p.requires_grad, None if p.grad is None else p.grad.numpy().tobytes()) for p in model.parameters()]
    return [tensors, asks, [module.training for module in model.modules()]]


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
