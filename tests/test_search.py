"""What an attack searches on: shortcuts that change no verdict, each held to the search without it, or refused."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robench import verdict
from robench.attacks import attack_for
from robench.door import Door, fooled
from robench.errors import UsageError
from robench.models import Encoder, Nets, build_nets
from robench.results import Cell, asked
from robench.search import Searched, check_attack, check_search, searched
from robench.threat import ThreatModel

THREATS = ["linf-0.005", "l2-0.1", "l1-0.5"]
ATTACKS = ["pgd-20", "pgd@steps=5,restarts=3", "apgd-ce@steps=10", "apgd-t@steps=5,targets=3", "square@queries=30"]
SUITE = "autoattack@steps=5,queries=30"


@pytest.fixture(scope="module")
def nets() -> Nets:
    """Untrained, with running statistics as far from 0 and 1 as trained ones are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = build_nets("resnet18@width=4", (3, 12, 12), "cifar10", normalise=True)
        made.parts["head"] = nn.Linear(made.encoder.features, 10)
        made.train()
        for _ in range(5):
            made(torch.rand(32, 3, 12, 12))
        made.eval()
        with torch.no_grad():  # all classes are equally likely
            made.parts["head"].bias -= made(torch.rand(200, 3, 12, 12)).mean(0)
    return made


@pytest.fixture(scope="module")
def images(nets: Nets) -> tuple[Tensor, Tensor]:
    x = torch.rand(48, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return x, nets(x).argmax(1)


def flags(model: nn.Module, attack: Any, x: Tensor, y: Tensor, *, exits: bool) -> tuple[Tensor, Door]:
    """Which images the model is right about after an attack through a door, judged without it."""
    door = Door(model, 10, exits=exits)
    every = torch.ones(len(x), dtype=torch.bool)
    crafted = verdict.craft(door, attack, x, y, every, ids=torch.arange(len(x)), seed=0)
    judged = getattr(model, "judged", model)
    with torch.no_grad():
        return judged(crafted.adv).argmax(1) == y, door


@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize("text", [*ATTACKS, SUITE])
def test_the_twin_and_early_exit_change_no_flag(
    nets: Nets, images: tuple[Tensor, Tensor], text: str, threat: str
) -> None:
    attack = attack_for(text, ThreatModel.parse(threat))
    slow, _ = flags(nets, attack, *images, exits=False)
    fast, _ = flags(Searched(nets), attack, *images, exits=True)
    assert torch.equal(fast, slow)
    assert 0 < slow.sum() < len(slow)


def test_early_exit_saves_passes_and_returns_what_fools(nets: Nets, images: tuple[Tensor, Tensor]) -> None:
    attack = attack_for("pgd-20", ThreatModel.parse("linf-0.005"))
    slow, every = flags(nets, attack, *images, exits=False)
    fast, some = flags(nets, attack, *images, exits=True)
    assert torch.equal(fast, slow)
    assert some.backwards < every.backwards == 20 * len(images[0])
    stayed = int(fast.sum())
    assert some.backwards >= 20 * stayed


def test_the_twin_answers_as_the_network_does(nets: Nets, images: tuple[Tensor, Tensor]) -> None:
    made = Searched(nets)
    assert made.folds == 20  # every normalisation of a ResNet-18
    with torch.no_grad():
        assert (made(images[0]) - nets(images[0])).abs().max() < 1e-5 * nets(images[0]).abs().max()
    x = images[0].clone().requires_grad_()
    ours, theirs = (torch.autograd.grad(model(x)[:, 0].sum(), x)[0] for model in (made, nets))
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()


def test_the_twin_leaves_the_network_as_it_was(nets: Nets) -> None:
    nets.train()
    try:
        before = {name: tensor.clone() for name, tensor in nets.state_dict().items()}
        made = Searched(nets, "bfloat16")
        assert all(module.training for module in nets.modules())
        assert all(parameter.requires_grad for parameter in nets.parameters())
        assert nets.precision is torch.float32
        assert not any(parameter.requires_grad for parameter in made.twin.parameters())
        assert all(torch.equal(before[name], tensor) for name, tensor in nets.state_dict().items())
    finally:
        nets.eval()


class Tenth(Encoder):
    """Without any layer."""

    features = 10

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :10]


class Liar(nn.Module):
    """A stand-in that calls every image fooled, before a model that no image fools."""

    def __init__(self, y: Tensor) -> None:
        super().__init__()
        self.y = y
        self.asked = 0
        self.judged = Honest(self)

    def forward(self, x: Tensor) -> Tensor:
        slope = x.flatten(1)[:, :10] * 1e-3
        return slope + 5 * nn.functional.one_hot((self.y[:1] + 1) % 10, 10)


class Honest(nn.Module):
    def __init__(self, liar: Liar) -> None:
        super().__init__()
        self._liar = (liar,)

    def forward(self, x: Tensor) -> Tensor:
        self._liar[0].asked += len(x)
        return 5.0 * nn.functional.one_hot(self._liar[0].y[:1].expand(len(x)), 10).to(x.dtype)


@pytest.mark.parametrize("text", ["pgd-5", "apgd-ce@steps=5", "apgd-t@steps=5", "square@queries=5", SUITE])
def test_nothing_stops_on_what_only_the_twin_believes(images: tuple[Tensor, Tensor], text: str) -> None:
    x, y = images[0][:16], torch.zeros(16, dtype=torch.int64)
    liar = Liar(y)
    attack = attack_for(text, ThreatModel.parse("linf-0.005"))
    flag, door = flags(liar, attack, x, y, exits=True)
    assert flag.all()
    assert liar.asked > 16
    assert door.backwards == 16 * attack.cost(10)[1]  # type: ignore[attr-defined] # none was let go


def test_what_is_not_confirmed_is_not_fooled() -> None:
    liar = Liar(torch.zeros(4, dtype=torch.int64))
    x, y = torch.rand(4, 3, 4, 4), torch.zeros(4, dtype=torch.int64)
    door = Door(liar, 10)
    assert not fooled(door, x, door(x), y).any()
    assert fooled(liar, x, liar(x), y).all()  # without a door nobody confirms
    assert door.forwards == 8


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("text", ["pgd-20", SUITE])
def test_a_search_in_16_bits_is_judged_in_32(
    nets: Nets, images: tuple[Tensor, Tensor], text: str, precision: str
) -> None:
    attack = attack_for(text, ThreatModel.parse("linf-0.005"))
    exact, _ = verdict.evaluate(nets, attack, *images, classes=10)
    found, _ = verdict.evaluate(nets, attack, *images, classes=10, precision=precision)
    with torch.no_grad():
        assert torch.equal(found.robust, nets(found.adv).argmax(1) == images[1])
    assert abs(int(found.robust.sum()) - int(exact.robust.sum())) <= 3


def test_gradients_in_float16_do_not_vanish(nets: Nets, images: tuple[Tensor, Tensor]) -> None:
    made = Searched(nets, "float16")
    x = images[0].clone().requires_grad_()
    for size in (1.0, 1e-3):
        ours, theirs = (torch.autograd.grad(size * model(x)[:, 0].sum(), x)[0] for model in (made, nets))
        assert (ours - theirs).norm() < 0.05 * theirs.norm()


# where a shortcut is not exact it is refused


class Folding(Encoder):
    """One convolution and its normalisation."""

    features = 10

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.stem(x)).amax((2, 3))
        return y


class Shaky(Folding):
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = super().forward(x) + torch.randn(10)
        return found


def made_of(encoder: Encoder) -> Nets:
    made = Nets(encoder, nn.Identity())
    made.parts["head"] = nn.Identity()
    return made.eval()


def test_a_twin_that_answers_otherwise_is_refused(images: tuple[Tensor, Tensor]) -> None:
    assert isinstance(searched(made_of(Folding()), images[0]), Searched)
    model = made_of(Shaky())  # a trace keeps one draw for ever
    assert searched(model, images[0]) is model


def test_nothing_to_fold_means_the_network_itself(images: tuple[Tensor, Tensor]) -> None:
    model = made_of(Tenth())
    assert searched(model, images[0]) is model
    other = nn.Sequential(model)  # of nobody's known kind
    assert searched(other, images[0]) is other


class Entangled(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x - x.mean(0) / 2)
        return found


def test_where_images_read_each_other_none_may_leave(nets: Nets, images: tuple[Tensor, Tensor]) -> None:
    attack = attack_for("pgd-5", ThreatModel.parse("linf-0.005"))
    for model, alone in ((nets, True), (Entangled(nets), False)):
        with torch.no_grad():
            probe = verdict.probe(model, *images, 10)
        assert probe.entangled is not alone
        assert verdict.white_box(model, attack, images[0], probe, 10, 500).exits is alone


def test_the_networks_own_twin_is_refused_where_it_is_randomised(nets: Nets, images: tuple[Tensor, Tensor]) -> None:
    attack = attack_for("pgd-5", ThreatModel.parse("linf-0.005"))
    probe = verdict.Probe(randomised=True, notes=())
    door = verdict.white_box(nets, attack, images[0], probe, 10, 500)
    assert door.model is nets
    assert not door.exits
    with pytest.raises(UsageError, match="answers differently each time"):
        verdict.white_box(nets, attack, images[0], probe, 10, 500, precision="bfloat16")


@dataclass(frozen=True)
class Foreign:
    threat: ThreatModel

    def __call__(self, model: Any, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        assert not hasattr(model.model, "judged")
        return x


def test_attacks_from_outside_search_on_the_network_itself(nets: Nets, images: tuple[Tensor, Tensor]) -> None:
    verdict.evaluate(nets, Foreign(ThreatModel.parse("linf-0.005")), *images, classes=10)


@pytest.mark.parametrize(
    "text", ["fab", "cw", "ddn", "deepfool", "autoattack-rand", "autoattack@backend=reference", "eot-pgd"]
)
def test_attacks_that_do_not_confirm_are_named(text: str) -> None:
    attack = attack_for(text, ThreatModel.parse("l2-0.5"))
    check_attack(attack, text, "float32")
    with pytest.raises(UsageError, match=f"attack {text} does not confirm in float32"):
        check_attack(attack, text, "bfloat16")


def test_a_precision_that_does_not_exist_or_is_not_there() -> None:
    attack = attack_for("pgd-5", ThreatModel.parse("linf-0.005"))
    with pytest.raises(UsageError, match="use float32, float16, bfloat16"):
        check_attack(attack, "pgd-5", "float8")
    with pytest.raises(UsageError, match="a transfer"):
        check_search(attack, "pgd-5", "bfloat16", torch.device("cpu"), True)


def test_a_device_without_the_arithmetic_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **_named: Any) -> Tensor:
        raise RuntimeError("not implemented for 'BFloat16'")

    monkeypatch.setattr(torch.nn.functional, "conv2d", refuse)
    attack = attack_for("pgd-5", ThreatModel.parse("linf-0.005"))
    with pytest.raises(UsageError, match=r"device cpu has no arithmetic for it \(not implemented for"):
        check_search(attack, "pgd-5", "bfloat16", torch.device("cpu"), False)
    check_search(attack, "pgd-5", "float32", torch.device("cpu"), False)


def test_a_cell_in_another_precision_is_another_cell() -> None:
    cell = Cell("a", "", "pgd-20", 2, {}, ThreatModel.parse("linf-0.005"), "b", 4, 0)
    other = replace(cell, precision="bfloat16")
    assert cell.key != other.key
    assert (asked(cell), asked(other)) == ("pgd-20 linf-0.005", "pgd-20 bfloat16 linf-0.005")
