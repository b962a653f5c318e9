"""Attacks: against the computable optimum of a linear model, and the manners every attack must have."""

import hashlib
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy
import pytest
import torch
from oracle import images, linear, truth
from torch import Tensor, nn

from robench.attacks import attack_for, options_of
from robench.attacks.ascent import ascend
from robench.attacks.pgd import PGD
from robench.door import Door, frozen
from robench.errors import AttackError, UsageError
from robench.geometry import norm_of
from robench.models import build_nets
from robench.noise import ImageGenerator
from robench.threat import Norm, ThreatModel

NORMS = ("linf-0.03", "l2-0.3", "l1-1")
OWN = ("fgsm", "pgd-20", "pgd-10x3", "pgd-100x2", "pgd@steps=20,loss=cw-margin", "mi-fgsm")
AUTO = tuple(f"autoattack@queries=20,backend={backend}" for backend in ("engine", "reference"))
ADAPTED = (*AUTO, "torchattacks:MIFGSM", "torchattacks:PGDL2")
NORM_OF = {"torchattacks:MIFGSM": "linf", "torchattacks:PGDL2": "l2"}
CASES = [(name, norm) for name in (*OWN, *ADAPTED) for norm in NORMS if norm.startswith(NORM_OF.get(name, norm))]
needs_torchattacks = pytest.mark.skipif(find_spec("torchattacks") is None, reason="torchattacks is an extra")


def skip_without(name: str) -> None:
    if name.startswith("torchattacks:"):
        pytest.importorskip("torchattacks")


def attacked(name: str, text: str, classes: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The clean images, what an attack makes of them, and which of those fool the linear model."""
    model, x = linear(classes), images(n)
    y = model(x).argmax(1)
    with frozen(model):
        adv = attack_for(name, ThreatModel.parse(text))(
            Door(model, classes), x, y, generator=ImageGenerator(0, range(n))
        )
        return x, adv, model(adv).argmax(1) != y


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(("name", "text"), CASES)
def test_no_attack_does_more_than_can_be_done(name: str, text: str, classes: int) -> None:
    skip_without(name)
    n = 40 if name in AUTO else 300
    margin, _ = truth(classes, text, n)
    *_, broken = attacked(name, text, classes, n)
    assert not (broken & (margin < -1e-5)).any()
    if name in AUTO:  # which do all that can be done
        assert broken[margin > 1e-4].all()


@pytest.mark.parametrize("name", ["fgsm", "pgd-20", "pgd-100x2"])
@pytest.mark.parametrize("text", ["linf-0.01", "linf-0.03", "linf-0.1"])
def test_every_image_that_can_be_broken_in_linf_is(name: str, text: str) -> None:
    margin, _ = truth(2, text, 300)
    *_, broken = attacked(name, text, 2, 300)
    assert (margin > 0).sum() > 10
    assert broken[margin > 1e-5].all()


@pytest.mark.parametrize(
    ("name", "text", "share"),
    [
        ("pgd-100x2", "l2-0.3", 0.99),
        ("pgd-100x2", "l2-0.6", 0.99),
        # 20 steps end with 98 % of the highest rise where the box cuts the ball, which costs images at the edge
        ("pgd-20", "l2-0.3", 0.97),
        ("pgd-20", "l2-0.6", 0.97),
        # an l1 step moves a twentieth of the pixels where the optimum fills one after the other: measured 93 to 99 %
        ("pgd-20", "l1-1", 0.9),
        ("pgd-20", "l1-2", 0.97),
        ("pgd-100x2", "l1-1", 0.9),
        ("pgd-100x2", "l1-2", 0.97),
    ],
)
def test_nearly_every_image_that_can_be_broken_is(name: str, text: str, share: float) -> None:
    margin, _ = truth(2, text, 300)
    *_, broken = attacked(name, text, 2, 300)
    assert broken[margin > 0].double().mean() >= share


@pytest.mark.parametrize(("text", "share"), [("linf-0.03", 0.999), ("l2-0.3", 0.995), ("l1-1", 0.9)])
def test_a_climb_comes_close_to_the_highest_rise(text: str, share: float) -> None:
    x, adv, _ = attacked("pgd-100x2", text, 2, 300)
    w = linear(2)[1].weight.detach().double()
    y = (x.double().flatten(1) @ w.T).argmax(1)
    rise = ((adv - x).double().flatten(1) * (w[1 - y] - w[y])).sum(1)
    assert (rise / truth(2, text, 300)[1]).mean() >= share


@contextmanager
def tracing(hook: Callable[..., None]) -> Iterator[None]:
    before = sys.gettrace()
    sys.settrace(hook)
    try:
        yield
    finally:
        sys.settrace(before)


def no_trace(frame: object, event: str, argument: object) -> None: ...


def state(model: nn.Module) -> list[Any]:
    """Everything an attack could change of a model."""
    tensors = {key: hashlib.sha256(value.numpy().tobytes()).hexdigest() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    return [tensors, modes, [(p.requires_grad, p.grad is None) for p in model.parameters()]]


def mixed_network() -> nn.Module:
    """A small network with norms and dropout, its submodules in different modes, its head frozen."""
    nets = build_nets("cnn@width=4", (1, 8, 8), "digits", normalise=True)
    nets.parts["head"] = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 4))
    nets.train()
    nets.encoder.body[1].eval()
    nets.parts["head"].requires_grad_(False)
    return nets


@pytest.mark.parametrize(("name", "text"), CASES)
def test_an_attack_has_manners(name: str, text: str) -> None:
    skip_without(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = mixed_network()
    x, threat = images(6), ThreatModel.parse(text)
    with frozen(model):
        y = model(x).argmax(1)
    x0, y0, before = x.clone(), y.clone(), state(model)
    dice = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()  # type: ignore[index]

    with frozen(model), tracing(no_trace):
        adv = attack_for(name, threat)(Door(model, 4), x, y, generator=ImageGenerator(0, range(6)))
        assert sys.gettrace() is no_trace

    assert (adv.shape, adv.dtype, adv.requires_grad) == (x.shape, x.dtype, False)
    assert adv.min() >= 0
    assert adv.max() <= 1
    rounding = {Norm.LINF: 1e-7, Norm.L2: 1e-6, Norm.L1: 1e-5}[threat.norm]
    assert norm_of(adv.double() - x.double(), threat.norm).max() <= threat.eps * (1 + 1e-5) + rounding
    assert torch.equal(x, x0)
    assert torch.equal(y, y0)
    assert state(model) == before
    assert torch.equal(torch.get_rng_state(), dice[0])
    assert random.getstate() == dice[1]
    assert numpy.random.get_state()[1].tolist() == dice[2]  # type: ignore[index]


@pytest.mark.parametrize(("name", "text"), [case for case in CASES if case[1][:4] == "linf" or case[0] not in AUTO])
def test_an_attack_repeats(name: str, text: str) -> None:
    skip_without(name)
    (_, first, _), (_, second, _) = (attacked(name, text, 4, 5) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["fgsm", "pgd-20", "pgd-10x3"])
@pytest.mark.parametrize("text", NORMS)
def test_an_image_is_attacked_alike_in_any_batch_and_order(name: str, text: str) -> None:
    model, x, attack = linear(4), images(20), attack_for(name, ThreatModel.parse(text))
    y = model(x).argmax(1)
    whole = attack(model, x, y, generator=ImageGenerator(3, range(20)))
    for ids in torch.randperm(20, generator=torch.Generator().manual_seed(0)).split(7):
        part = attack(model, x[ids], y[ids], generator=ImageGenerator(3, ids))
        assert torch.allclose(part, whole[ids], atol=1e-6)


@pytest.mark.parametrize("text", NORMS)
def test_more_restarts_never_unbreak_an_image(text: str) -> None:
    once, more = (attacked(f"pgd@steps=3,step=0.5,restarts={restarts}", text, 4, 200)[2] for restarts in (1, 5))
    assert not (once & ~more).any()


@pytest.mark.parametrize("text", NORMS)
def test_restarts_find_what_one_start_misses(text: str) -> None:
    # darker images fool the model; brighter ones look better to the loss at first and never do
    def model(x: Tensor) -> Tensor:
        level = x.flatten(1).sum(1) - 32
        return torch.stack([0 * level, torch.maximum(-level, 0.4 * torch.tanh(level)) - 0.5], 1)

    x, y = torch.full((100, 1, 8, 8), 0.5), torch.zeros(100, dtype=torch.int64)
    shares = []
    for restarts in (1, 8):
        attack = PGD(ThreatModel.parse(text), steps=10, restarts=restarts)
        adv = attack(model, x, y, generator=ImageGenerator(0, range(100)))
        shares.append((model(adv).argmax(1) != y).double().mean().item())
    assert 0.25 < shares[0] < 0.75
    assert shares[1] > 0.95


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("text", NORMS[:2])
def test_an_image_once_broken_stays_broken(text: str, steps: int) -> None:
    # the model is fooled by images of middling brightness only, so a climb may walk through and out again
    class Window(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            level = x.flatten(1).sum(1)
            return torch.stack([level - level, 0.2 - (level - 32.3).abs()], 1)

    x, y = torch.full((50, 1, 8, 8), 0.5), torch.zeros(50, dtype=torch.int64)
    seen = torch.zeros(50, dtype=torch.bool)
    model = Window()

    def spied(adv: Tensor) -> Tensor:
        logits: Tensor = model(adv)
        inside = norm_of(adv.detach() - x, threat.norm) <= threat.eps * (1 + 1e-5)
        seen.logical_or_((logits.detach().argmax(1) != y) & inside)
        return logits

    threat = ThreatModel.parse(text)
    adv = PGD(threat, steps=steps, step=1.0)(spied, x, y, generator=ImageGenerator(0, range(50)))
    assert seen.sum() > 5
    assert (model(adv).argmax(1) != y)[seen].all()


@pytest.mark.parametrize(
    "options", [{"steps": 10, "step": 0.05}, {"steps": 1, "step": 0.5}, {"steps": 3, "step": float("nan")}]
)
def test_steps_that_cannot_cross_the_ball_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="cannot cross the ball"):
        PGD(ThreatModel.parse("linf-8/255"), **options)


@pytest.mark.parametrize("options", [{"steps": 0}, {"steps": -1}, {"restarts": 0}])
def test_no_steps_and_no_restarts_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        PGD(ThreatModel.parse("linf-8/255"), **options)


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(UsageError, match="'ce', 'cw-margin', 'dlr'"):
        attack_for("pgd@loss=kl", ThreatModel.parse("linf-8/255"))


def test_the_options_of_an_attack_are_its_fields() -> None:
    options = options_of(attack_for("pgd-50x10", ThreatModel.parse("l2-0.5")))
    assert options == {
        "steps": 50,
        "step": None,
        "restarts": 10,
        "loss": "ce",
        "momentum": 0.0,
        "random_start": True,
        "draws": 1,
        "short": False,
    }


def test_an_ascent_goes_up_step_by_step() -> None:
    # to the corner of a small box, by hand: 3 steps of a quarter of eps
    x = torch.full((1, 1, 1, 2), 0.5)
    direction = torch.tensor([1.0, -2.0]).view(1, 1, 1, 2)
    adv = ascend(lambda z: (z * direction).flatten(1).sum(1), x, x, ThreatModel.parse("linf-0.2"), steps=3, step=0.25)
    assert torch.allclose(adv, torch.tensor([0.65, 0.35]).view(1, 1, 1, 2))
    assert not adv.requires_grad


@pytest.mark.parametrize("text", NORMS)
def test_autoattack_says_what_it_leaves_out(text: str) -> None:
    threat = ThreatModel.parse(text)
    attack: Any = attack_for("autoattack", threat)
    assert attack.notes(10) == ()
    needs = "apgd-t, which needs 4 classes"
    assert attack.notes(3) == ("aims at 2 classes at most, all there are", f"climbs the margin in {needs}")
    reference: Any = attack_for("autoattack@backend=reference", threat)
    assert reference.notes(3) == ("aims at 2 classes at most, all there are", f"leaves out {needs}")
    less: Any = attack_for("autoattack@queries=50", threat)
    assert less.notes(10) == ("100 steps and 50 queries where AutoAttack has 100 and 5000",)


def test_frozen_gives_every_submodule_its_own_mode_back() -> None:
    model = mixed_network()
    before = state(model)
    with frozen(model):
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert state(model) == before
    with pytest.raises(KeyError), frozen(model):
        raise KeyError
    assert state(model) == before
    with frozen(model, training=True):
        assert all(module.training for module in model.modules())
    assert state(model) == before


def test_a_door_counts_images_both_ways() -> None:
    door = Door(linear(4), 4, micro_batch=4)
    x = images(10).requires_grad_()
    assert torch.allclose(door(x), linear(4)(x), atol=1e-6)
    assert (door.forwards, door.backwards) == (10, 0)
    torch.autograd.grad(door(x).sum(), x)
    assert (door.forwards, door.backwards) == (20, 10)


def test_a_door_lets_few_images_through_at_once() -> None:
    sizes: list[int] = []
    model = linear(4)
    model.register_forward_pre_hook(lambda _module, inputs: sizes.append(len(inputs[0])))
    Door(model, 4, micro_batch=4)(images(10))
    assert sizes == [4, 4, 4]  # the last filled up


def test_a_door_fills_small_passes_up_and_counts_what_was_asked() -> None:
    sizes: list[int] = []
    model = linear(4)
    model.register_forward_pre_hook(lambda _module, inputs: sizes.append(len(inputs[0])))
    door, x = Door(model, 4), images(3).requires_grad_()
    (gradient,) = torch.autograd.grad(door(x)[:, 0].sum(), x)
    assert (sizes, door.forwards, door.backwards) == ([16], 3, 3)
    assert torch.allclose(gradient.flatten(1), linear(4)[1].weight[0].expand(3, 64))


def test_a_door_tells_who_watches() -> None:
    seen: list[tuple[int, str]] = []
    door = Door(linear(4), 4, watch=lambda door: seen.append((door.forwards, door.said)))
    door(images(3))
    door.say("running")
    assert seen == [(3, ""), (3, "running")]


class Spoilt(nn.Module):
    """One bad logit among many."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.zeros(len(x), 4)
        logits[2, 2] = self.value
        return logits


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_door_refuses_logits_that_are_no_numbers(value: float) -> None:
    with pytest.raises(AttackError, match="NaN or infinite logits for 1 of 3 images"):
        Door(Spoilt(value), 4)(images(3))


def test_a_door_lets_large_logits_through() -> None:
    assert Door(Spoilt(3e38), 4)(images(3)).isfinite().all()


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf")])
def test_a_door_refuses_what_is_no_image(value: float) -> None:
    x = images(3)
    x[1, 0, 2, 3] = value
    with pytest.raises(AttackError, match=r"pixels from .* images are in \[0, 1\]"):
        Door(linear(4), 4)(x)


@pytest.mark.parametrize("x", [torch.zeros(3, 64), torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.zeros(1, 8, 8)])
def test_a_door_refuses_other_shapes_and_types(x: Tensor) -> None:
    with pytest.raises(AttackError, match="expected float NCHW images"):
        Door(linear(4), 4)(x)


def test_a_door_refuses_another_number_of_classes() -> None:
    with pytest.raises(AttackError, match=r"returned \(3, 4\); expected logits \(3, 10\)"):
        Door(linear(4), 10)(images(3))


def test_a_door_gives_plain_gradients_back() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (gradient,) = torch.autograd.grad(Door(model, 4)(x).sum(), x)
    assert gradient.is_contiguous()
    assert torch.allclose(gradient, torch.autograd.grad(model(x).sum(), x)[0])


LINF = ThreatModel.parse("linf-8/255")
LIBRARY_REFUSALS = [
    ("MIFGSMM", "linf-0.1", r"has no attack 'MIFGSMM'; did you mean torchattacks:MIFGSM\?"),
    ("mifgsm", "linf-0.1", r"did you mean torchattacks:MIFGSM\?"),
    ("AutoAttack", "linf-0.1", "10 steps where the standard has 100; use --attack autoattack"),
    ("CW", "l2-0.5", "CW has no eps"),
    ("PGDL2", "linf-0.1", "PGDL2 works in l2, not in linf"),
    ("MIFGSM", "l2-0.5", "MIFGSM works in linf, not in l2"),
    ("MIFGSM", "l1-1", "works in linf and l2, not in l1; these do: .*apgd-ce"),
    ("APGD", "l1-1", "l1"),
    ("Square", "l1-1", "l1"),
    ("MultiAttack", "linf-0.1", "has no attack 'MultiAttack'"),
]


@needs_torchattacks
@pytest.mark.parametrize(("name", "text", "message"), LIBRARY_REFUSALS)
def test_what_torchattacks_cannot_do_is_refused_before_anything_runs(name: str, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        attack_for(f"torchattacks:{name}", ThreatModel.parse(text))


@needs_torchattacks
@pytest.mark.parametrize("options", [{"step": 1}, {"eps": 0.5}, {"model": None}])
def test_unknown_options_of_torchattacks_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"unknown option .* alpha, steps, decay"):
        attack_for("torchattacks:MIFGSM", LINF, options=options)


@needs_torchattacks
def test_the_norm_of_torchattacks_is_the_threats() -> None:
    # another norm than the threat's would be measured in the wrong ball
    with pytest.raises(UsageError, match="norm"):
        attack_for("torchattacks:APGD", LINF, options={"norm": "L2"})


@needs_torchattacks
@pytest.mark.parametrize(("options", "alpha"), [({}, 0.25), ({"steps": 5}, 0.5), ({"alpha": 0.01}, 0.1)])
def test_the_step_of_torchattacks_crosses_the_ball(options: dict[str, Any], alpha: float) -> None:
    # the first step of MIFGSM is alpha along the sign of the gradient, as a share of eps
    seen: list[Tensor] = []
    model, x = linear(4), torch.full((2, 1, 8, 8), 0.5)

    def spied(adv: Tensor) -> Tensor:
        seen.append(adv.detach())
        logits: Tensor = model(adv)
        return logits

    attack = attack_for("torchattacks:MIFGSM", ThreatModel.parse("linf-0.1"), options=options)
    attack(Spy(spied), x, torch.tensor([0, 1]), generator=ImageGenerator(0, [0, 1]))
    assert (seen[1] - x).abs().amax().item() == pytest.approx(0.1 * alpha, rel=1e-4)


class Spy(nn.Module):
    """A function as a module with a device, as torchattacks wants it."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.place = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def test_without_torchattacks_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(UsageError, match=r"pip install 'robench\[torchattacks\]'"):
        attack_for("torchattacks:MIFGSM", LINF)
