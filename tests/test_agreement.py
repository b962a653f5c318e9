"""From the same start our attacks go where the reference code goes: image by image, without any trained network."""

import math
from typing import Any

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import Tensor, nn

from robench.attacks import apgd
from robench.attacks.reference import run_reference
from robench.losses import LOSSES, dlr_targeted
from robench.models import build_nets
from robench.noise import ImageGenerator
from robench.threat import ThreatModel

CASES = [("linf-1/255", "Linf"), ("l2-0.05", "L2"), ("l1-0.5", "L1")]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nets = build_nets("cnn@width=8", (3, 12, 12), "cifar10", normalise=True)
        nets.parts["head"] = nn.Linear(nets.encoder.features, 10)
    return nets.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images(network: nn.Module) -> tuple[Tensor, Tensor]:
    x = torch.rand(100, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    return x, network(x).argmax(1)


def compared(
    network: nn.Module, images: tuple[Tensor, Tensor], text: str, reference: Any, objective: Any, level: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which images stay right and the best points: theirs, then ours, from one start."""
    (x, y), threat = images, ThreatModel.parse(text)
    start = apgd._start(x, threat, ImageGenerator(0, range(len(x))))
    with torch.random.fork_rng(devices=[]):
        reference.init_hyperparam(x)
        best, right, _, _ = reference.attack_single_run(x, y, x_init=start)
    found, _, broken = apgd._phase(network, objective, level, x, y, start, threat, 40, 1, early_stop=False)
    return right.bool(), best, ~broken, found


@pytest.mark.parametrize(("text", "norm"), CASES)
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_a_climb_is_the_references(
    network: nn.Module, images: tuple[Tensor, Tensor], text: str, norm: str, loss: str
) -> None:
    eps = ThreatModel.parse(text).eps
    reference = APGDAttack(network, n_iter=40, norm=norm, eps=eps, loss=loss, device="cpu")
    climbed, y = LOSSES[loss], images[1]
    level = -math.inf if loss == "ce" else 0.0
    theirs, best, ours, found = compared(
        network, images, text, reference, lambda logits, ids: climbed(logits, y[ids]), level
    )
    assert 0 < ours.sum() < len(ours)
    assert (ours != theirs).sum() <= 1  # an image whose margin rounds to the other side
    if (norm, loss) == ("Linf", "dlr"):  # the same arithmetic
        assert torch.equal(found, best)


@pytest.mark.parametrize(("text", "norm"), CASES)
def test_a_targeted_climb_is_the_references(
    network: nn.Module, images: tuple[Tensor, Tensor], text: str, norm: str
) -> None:
    (x, y), eps = images, ThreatModel.parse(text).eps
    reference = APGDAttack_targeted(network, n_iter=40, norm=norm, eps=eps, device="cpu")
    reference.y_target = target = network(x).argsort(dim=1)[:, -2]
    theirs, best, ours, found = compared(
        network, images, text, reference, lambda logits, ids: dlr_targeted(logits, y[ids], target[ids]), 0.0
    )
    assert 0 < ours.sum() < len(ours)
    assert (ours != theirs).sum() <= 1
    if norm == "Linf":
        assert torch.equal(found, best)


@pytest.mark.parametrize(("beyond", "left"), [(1e-7, 0.0), (1e-3, 1e-3)])
def test_the_references_rounding_is_put_back_into_the_box_and_nothing_else(
    beyond: float, left: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # seen on CIFAR-10: its Square in l1 returns pixels an ulp outside [0, 1]
    import pyautoattack

    def outside(_self: object, x: torch.Tensor, _y: torch.Tensor, batch_size: int) -> list[torch.Tensor]:
        return [torch.cat([torch.full_like(x[: len(x) // 2], -beyond), torch.full_like(x[len(x) // 2 :], 1 + beyond)])]

    monkeypatch.setattr(pyautoattack.AutoAttack, "run_standard_evaluation", outside)
    adv = run_reference(
        lambda x: x.flatten(1),
        torch.rand(4, 1, 2, 2, generator=torch.Generator().manual_seed(0)),
        torch.zeros(4, dtype=torch.int64),
        threat=ThreatModel.parse("l1-2"),
        version="standard",
        steps=1,
        queries=1,
        seed=0,
        batch_size=4,
    )
    assert (adv - adv.clamp(0, 1)).abs().max().item() == pytest.approx(left, abs=9e-8)
