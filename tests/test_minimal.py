"""DeepFool, DDN and CW: against the linear optimum, and the manners of attacks that look for the smallest perturbation."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import images, linear, truth
from torch import Tensor, nn

from robench.attacks.cw import CW
from robench.attacks.ddn import DDN
from robench.attacks.deepfool import DeepFool
from robench.attacks.fab import FAB, move_to_plane
from robench.errors import UsageError
from robench.geometry import norm_of
from robench.noise import ImageGenerator
from robench.protocols import Attack
from robench.threat import Norm, ThreatModel

CASES = [(DeepFool, "linf"), (DeepFool, "l2"), (DDN, "l2"), (CW, "l2")]
FEW: dict[Any, dict[str, Any]] = {DeepFool: {}, DDN: {"steps": 30}, CW: {"searches": 3, "steps": 30}}  # enough to fool
SHORT: dict[Any, dict[str, Any]] = {DeepFool: {"steps": 4}, DDN: {"steps": 6}, CW: {"searches": 2, "steps": 5}}


def attack_of(kind: Any, text: str, **options: Any) -> Any:
    return kind(ThreatModel.parse(text), **options)


def run(attack: Attack, model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    return attack(model, x, y, generator=ImageGenerator(0, range(len(x))))


def sizes(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, adv: Tensor, norm: Norm) -> Tensor:
    """The norm of each fooling image's perturbation, infinite for the others."""
    with torch.no_grad():
        return norm_of(adv.double() - x.double(), norm).masked_fill(model(adv).argmax(1) == y, torch.inf)


def network(classes: int, channels: int = 1) -> nn.Sequential:
    """A small convolutional network with random weights."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(72, classes)).eval().requires_grad_(False)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(
    ("kind", "text", "most"),
    [
        (DeepFool, "linf-0.03", 0),
        (DeepFool, "linf-0.1", 0),
        (DeepFool, "l2-0.3", 0),
        (DeepFool, "l2-1", 0),
        # with four classes they follow one of them, which is not always the nearest: measured 2 and 1 of 128
        (DDN, "l2-0.3", 3),
        (DDN, "l2-1", 0),
        (CW, "l2-0.3", 3),
        (CW, "l2-1", 0),
    ],
)
def test_nearly_every_image_that_can_be_broken_is_and_no_other(kind: Any, text: str, most: int, classes: int) -> None:
    attack, model, x = attack_of(kind, text), linear(classes), images(200)
    y = model(x).argmax(1)
    margin, _ = truth(classes, text, 200)
    broken = sizes(model, x, y, run(attack, model, x, y), attack.threat.norm) <= attack.threat.eps * (1 + 1e-5)
    assert (margin > 0).sum() > 50
    assert not (broken & (margin < -1e-5)).any()
    assert (~broken & (margin > 1e-5)).sum() <= most


@pytest.mark.parametrize(
    ("kind", "norm", "middle", "most"),
    [
        # measured 1.0005 and 1.0020, and in l2 1.0002 and 1.0009
        (DeepFool, "linf", 1.002, 1.02),
        (DeepFool, "l2", 1.002, 1.02),
        # measured 1.0004 and 1.0076
        (DDN, "l2", 1.002, 1.02),
        # measured 1.0016; and 1.37 where the nearest fooling image is nearer than the shrunken start is
        (CW, "l2", 1.005, 2),
    ],
)
def test_perturbations_of_a_linear_model_are_nearly_smallest(kind: Any, norm: str, middle: float, most: float) -> None:
    attack, model, x = attack_of(kind, f"{norm}-1"), linear(2), images(200)
    y = model(x).argmax(1)
    w = (model[1].weight[1 - y] - model[1].weight[y]).detach().double()
    flat = x.flatten(1).double()
    smallest = norm_of(move_to_plane(flat, w, (w * flat).sum(1), attack.threat.norm), attack.threat.norm)
    ratio = sizes(model, x, y, run(attack, model, x, y), attack.threat.norm) / smallest
    assert ratio.min() > 1 - 1e-4
    assert ratio.median() < middle
    assert ratio.max() < most


@pytest.mark.parametrize(("kind", "norm"), CASES)
def test_on_a_network_norms_are_in_fabs_neighbourhood(kind: Any, norm: str) -> None:
    # FAB looks towards all classes, these follow one; logits are scaled to the size that a trained network gives them;
    # medians measured 1.02 (DeepFool), 0.996 (DDN) and 0.997 (CW) times FAB's
    attack, net, x = attack_of(kind, f"{norm}-1", **({"steps": 100} if kind is CW else {})), network(4), images(20)
    y = net(x).argmax(1)

    def model(z: Tensor) -> Tensor:
        return 50 * net(z)

    own = sizes(model, x, y, run(attack, model, x, y), attack.threat.norm)
    fab = sizes(model, x, y, run(FAB(attack.threat, steps=30), model, x, y), attack.threat.norm)
    assert own.isfinite().all()
    assert (own / fab).median() < 1.2


@pytest.mark.parametrize(("kind", "norm"), CASES)
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_an_image_is_attacked_alike_in_any_batch_and_order(kind: Any, norm: str, classes: int) -> None:
    attack, model, x = attack_of(kind, f"{norm}-1", **SHORT[kind]), linear(classes), images(20)
    y = model(x).argmax(1)
    whole = run(attack, model, x, y)
    for ids in torch.randperm(20, generator=torch.Generator().manual_seed(0)).split(7):
        assert torch.allclose(run(attack, model, x[ids], y[ids]), whole[ids], atol=1e-5)


@pytest.mark.parametrize(("kind", "norm"), CASES)
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_no_image_costs_more_than_is_said(kind: Any, norm: str, classes: int) -> None:
    attack, model, x = attack_of(kind, f"{norm}-1", **SHORT[kind]), network(classes), images(3)
    y = model(x).argmax(1)
    spent = [0, 0]

    def back(gradient: Tensor) -> None:
        spent[1] += len(gradient)

    def counted(z: Tensor) -> Tensor:
        spent[0] += len(z)
        logits: Tensor = model(z)
        if logits.requires_grad:
            logits.register_hook(back)
        return logits

    for one in range(3):
        spent[:] = [0, 0]
        run(attack, counted, x[one : one + 1], y[one : one + 1])
        assert spent[0] <= attack.cost(classes)[0]
        assert spent[1] <= attack.cost(classes)[1]
        if kind is not DeepFool:  # which stops when it is there
            assert tuple(spent) == attack.cost(classes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", ["0", "0.000001", "1"])
@pytest.mark.parametrize(("kind", "norm"), CASES)
def test_manners(kind: Any, norm: str, eps: str, dtype: torch.dtype) -> None:
    attack, model = attack_of(kind, f"{norm}-{eps}", **FEW[kind]), network(3, 3)
    model.to(dtype)
    pixels = images(18).reshape(6, 3, 8, 8).to(dtype)
    y = model(pixels).argmax(1)
    y[0] = (y[0] + 1) % 3  # wrong from the start
    found = []
    for x in (
        pixels,
        pixels.to(memory_format=torch.channels_last),
        pixels.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        before = x.clone()
        with torch.no_grad():
            adv = run(attack, model, x, y)
        assert torch.equal(x, before)
        assert (adv.shape, adv.dtype, adv.requires_grad) == (x.shape, dtype, False)
        assert adv.isfinite().all()
        assert adv.min() >= 0
        assert adv.max() <= 1
        assert torch.equal(adv[0], x[0])
        found.append(adv)
    assert (sizes(model, pixels, y, found[0], attack.threat.norm) < torch.inf).all()
    assert all(torch.allclose(adv, found[0], atol=1e-3) for adv in found)


@pytest.mark.parametrize(("kind", "norm"), CASES)
def test_an_image_that_nothing_fools_is_returned_as_it_is(kind: Any, norm: str) -> None:
    x, y = images(5), torch.zeros(5, dtype=torch.int64)

    def model(x: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.0, 0.0]) + 0 * x.flatten(1)[:, :3]

    attack = attack_of(kind, f"{norm}-1", **SHORT[kind])
    assert torch.equal(run(attack, model, x, y), x)
    assert torch.equal(run(attack, model, x, y + 1), x)  # all wrong from the start


@pytest.mark.parametrize(("kind", "norm"), CASES)
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_logits_of_any_scale_are_fooled(kind: Any, norm: str, scale: float) -> None:
    model, x = linear(4), images(20)
    y = model(x).argmax(1)
    # CW's first c is far from right for these, and nine searches get there; with faint logits the log-odds that DDN climbs
    # weigh all wrong classes alike, which costs it 19 % here
    attack = attack_of(kind, f"{norm}-1", **({"searches": 9, "steps": 60} if kind is CW else {}))
    own = sizes(model, x, y, run(attack, lambda x: scale * model(x), x, y), attack.threat.norm)
    plain = sizes(model, x, y, run(attack, model, x, y), attack.threat.norm)
    assert (own / plain).median() < (1.3 if kind is DDN else 1.1)


def test_deepfool_steps_onto_the_boundary() -> None:
    # from 0.5 in both pixels, the plane 2 a + b = 2 is 0.5 / sqrt(5) away in l2 and 0.5 / 3 in linf
    def model(x: Tensor) -> Tensor:
        rise = x.flatten(1) @ torch.tensor([2.0, 1.0]) - 2
        return torch.stack([0 * rise, rise], 1)

    x, y = torch.full((1, 1, 1, 2), 0.5), torch.zeros(1, dtype=torch.int64)
    for text, norm in (("l2-1", 0.5 / math.sqrt(5)), ("linf-1", 0.5 / 3)):
        attack = attack_of(DeepFool, text)
        assert sizes(model, x, y, run(attack, model, x, y), attack.threat.norm).item() == pytest.approx(norm, rel=2e-3)


def test_deepfool_looks_at_no_more_classes_than_asked() -> None:
    assert attack_of(DeepFool, "l2-1", steps=5, candidates=3).cost(10)[1] == 15
    assert attack_of(DeepFool, "l2-1", steps=5).cost(4)[1] == 15


@pytest.mark.parametrize("kind", [DDN, CW])
def test_border_pixels_can_move(kind: Any) -> None:
    # all pixels are exactly black or white; the boundary is only reached by moving them
    x = (images(20) > 0.5).float()
    model = linear(4)
    y = model(x).argmax(1)
    attack = attack_of(kind, "l2-1", **({"steps": 100} if kind is CW else {}))
    own = sizes(model, x, y, run(attack, model, x, y), Norm.L2)
    fab = sizes(model, x, y, run(FAB(attack.threat), model, x, y), Norm.L2)
    assert (own / fab).median() < 1.05


REFUSED = [
    (DeepFool, "l1-1", {}, "works in linf and l2, not in l1"),
    (DDN, "linf-0.1", {}, "works in l2, not in linf"),
    (CW, "l1-1", {}, "works in l2, not in l1"),
    (DeepFool, "l2-1", {"steps": 0}, "at least 1"),
    (DeepFool, "l2-1", {"candidates": 0}, "at least 1"),
    (DeepFool, "l2-1", {"overshoot": -0.1}, "not negative"),
    (DDN, "l2-1", {"steps": 0}, "at least 1"),
    (DDN, "l2-1", {"gamma": 1.0}, "between 0 and 1"),
    (DDN, "l2-1", {"radius": 0.0}, "positive"),
    (CW, "l2-1", {"searches": 0}, "at least 1"),
    (CW, "l2-1", {"rate": 0.0}, "positive"),
    (CW, "l2-1", {"c": float("nan")}, "positive"),
]


@pytest.mark.parametrize(("kind", "text", "options", "message"), REFUSED)
def test_what_cannot_work_is_refused(kind: Any, text: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        attack_of(kind, text, **options)
