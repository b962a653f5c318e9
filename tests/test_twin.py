"""The frozen twin: the same network up to rounding, wherever it stands in; and nowhere where it would not be."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from robench.methods import method_for
from robench.models import Encoder, Nets, Normalise, build_nets
from robench.noise import ImageGenerator
from robench.protocols import Batch, Moment
from robench.threat import ThreatModel
from robench.twin import Twin, attacked, folded

MODELS = {"cnn@width=4": 3, "resnet18@width=4": 20, "resnet50@width=4": 53, "preact-resnet18": 8}
N = 8


def images(seed: int = 0, channels: int = 3, size: int = 16) -> Tensor:
    return torch.rand(N, channels, size, size, generator=torch.Generator().manual_seed(seed))


def trained(model: str) -> Nets:
    """Networks whose normalisations do something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nets = build_nets(model, (3, 16, 16), "cifar10", normalise=True)
        nets.parts["head"] = nn.Linear(nets.encoder.features, 4)
        for norm in (module for module in nets.modules() if isinstance(module, nn.BatchNorm2d)):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.2)
        for seed in range(20):
            nets(images(seed))
    return nets.train()


def answers(nets: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of the cross-entropy at the images."""
    x = x.clone().requires_grad_()
    logits = nets(x)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, torch.arange(N) % 4, reduction="sum"), x)
    return logits.detach(), gradient


def far(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize(("model", "folds"), MODELS.items())
def test_folding_changes_logits_and_gradients_by_rounding_alone(model: str, folds: int) -> None:
    nets = trained(model)
    twin = Twin(nets)
    assert twin.folds == folds
    found, expected = answers(twin.current(), images(9)), answers(copy.deepcopy(nets).eval(), images(9))
    assert far(found[0], expected[0]) < 1e-5
    assert far(found[1], expected[1]) < 1e-4
    assert far(answers(trained(model).train(), images(9))[0], expected[0]) > 1e-3  # and not whatever happens


@pytest.mark.parametrize("fold", [False, True])
def test_the_twin_follows_steps_and_statistics(fold: bool) -> None:
    nets = trained("resnet18@width=4")
    twin = Twin(nets, fold=fold)
    optimiser = torch.optim.SGD(nets.parameters(), lr=0.1)
    for seed in range(3):
        optimiser.zero_grad()
        nets(images(seed)).square().mean().backward()
        optimiser.step()
    found, expected = answers(twin.current(), images(9)), answers(copy.deepcopy(nets).eval(), images(9))
    assert far(found[0], expected[0]) < (1e-5 if fold else 1e-9)


def test_the_twin_shares_storage_and_leaves_the_networks_alone() -> None:
    nets = trained("resnet18@width=4")
    modes = [module.training for module in nets.modules()]
    twin = Twin(nets, fold=False)
    theirs = dict(twin.nets.named_parameters())
    assert all(theirs[name].data_ptr() == p.data_ptr() for name, p in nets.named_parameters())
    assert not any(p.requires_grad for p in twin.nets.parameters())
    with attacked(nets):
        assert not any(p.requires_grad for p in nets.parameters())  # without a twin the networks themselves are frozen
    nets.twin = twin
    with attacked(nets) as view:
        assert view is twin.nets
        answers(view, images())
    assert [module.training for module in nets.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in nets.parameters())


def test_with_the_statistics_of_the_batch_the_networks_are_asked_themselves() -> None:
    nets = trained("cnn@width=4")
    nets.twin = Twin(nets)
    with attacked(nets, training=True) as view:
        assert view is nets
        assert all(module.training for module in nets.modules())


class Odd(Encoder):
    """An encoder built of what folding must leave alone, by name."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.features = 4
        self.kind = kind
        self.a = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect" if kind == "padding" else "zeros")
        self.norm = nn.BatchNorm2d(4, track_running_stats=kind != "batch")
        if kind == "hook":
            self.a.register_forward_hook(lambda _module, _x, y: 2 * y)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "data" and x.sum() < 0:
            return x.mean((2, 3))
        y = self.a(x)
        z = self.norm(y)
        if self.kind == "twice":
            z = self.norm(self.a(x.flip(3))) + z
        return (z + y if self.kind == "read" else z).mean((2, 3))


@pytest.mark.parametrize("kind", ["padding", "batch", "hook", "data", "twice", "read"])
def test_what_cannot_be_folded_exactly_is_left_alone(kind: str) -> None:
    encoder = Odd(kind)
    encoder(images())
    encoder.eval()
    assert folded(encoder) is encoder


def test_an_encoder_from_outside_is_folded_where_it_can_be() -> None:
    nets = Nets(Odd("plain"), Normalise((0.5,) * 3, (0.5,) * 3))
    nets.parts["head"] = nn.Linear(4, 4)
    nets(images())
    twin = Twin(nets)
    assert twin.folds == 1  # with the bias of its convolution
    assert far(answers(twin.current(), images(9))[0], answers(nets.eval(), images(9))[0]) < 1e-5


def terms(name: str, prepare: Callable[[Nets], Any], **options: Any) -> tuple[dict[str, Tensor], Tensor]:
    """A method's terms and the gradient of the stem, from the same start."""
    small = {"hidden": 32, "dimensions": 16} if name in ("rocl", "finetune-at-ss") else {}
    method, nets = method_for(name, {**small, **options}), trained("resnet18@width=4")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        nets.parts.update(method.heads(nets.encoder.features, 4))
    nets.train()
    prepare(nets)
    views = tuple(images(seed) for seed in range(len(method.views)))
    batch = Batch(views, torch.arange(N) % 4, ImageGenerator(0, range(N)))
    found = method.terms(nets, batch, Moment(0, 1, ThreatModel.parse("linf-8/255")))
    torch.stack(list(found.values())).sum().backward()
    gradient = next(nets.encoder.parameters()).grad
    return found, torch.zeros(1) if gradient is None else gradient


def with_twin(nets: Nets) -> None:
    nets.twin = Twin(nets)


@pytest.mark.parametrize("name", ["pgd-at", "trades", "rocl", "finetune-at-ss"])
def test_a_step_with_a_twin_is_the_step_without(name: str) -> None:
    # one attack step, whose sign rounding could only flip where the gradient vanishes; more would amplify that
    found, slope = terms(name, with_twin, steps=1, step=0.5)
    expected, wanted = terms(name, lambda nets: None, steps=1, step=0.5)
    assert all(found[key].item() == pytest.approx(expected[key].item(), rel=1e-3) for key in expected)
    assert far(slope, wanted) < 1e-2


@pytest.mark.parametrize("name", ["pgd-at", "rocl"])
def test_attacks_with_batch_statistics_are_untouched_by_a_twin(name: str) -> None:
    found, slope = terms(name, with_twin, attack_bn="train")
    expected, wanted = terms(name, lambda nets: None, attack_bn="train")
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert torch.equal(slope, wanted)


def test_an_attack_asks_no_weight_for_a_gradient() -> None:
    nets = trained("resnet18@width=4")
    nets.twin = Twin(nets)
    seen: list[bool] = []
    with attacked(nets) as view:
        logits = view(images().requires_grad_())
        seen += [p.requires_grad for p in view.parameters()]
        logits.sum().backward()
    assert not any(seen)
    assert all(p.grad is None for p in [*nets.parameters(), *view.parameters()])
