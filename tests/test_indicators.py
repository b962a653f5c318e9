"""Each indicator alone: one cause that fires it, and the same model without that cause, which does not."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from test_diagnosis import Flipped, digits, net_for
from torch import Tensor, nn

from robench import indicators, verdict
from robench.attacks.pgd import PGD
from robench.diagnosis import KINDS, Row
from robench.door import frozen
from robench.indicators import INDICATORS, RULES, Case
from robench.outputs import suspicious, unrest
from robench.threat import ThreatModel

THREAT = ThreatModel.parse("linf-0.1")


class Twisted(nn.Module):
    """A net and something done to it."""

    def __init__(self, twist: Callable[[nn.Module, Tensor], Tensor] = lambda net, x: net(x)) -> None:
        super().__init__()
        self.net, self.twist = net_for(), twist

    def forward(self, x: Tensor) -> Tensor:
        return self.twist(self.net, x)


class Plain(nn.Module):
    """Four logits of grey images: the first is a constant, the second what a function makes of the change from grey."""

    def __init__(self, function: Callable[[Tensor], Tensor], bar: float) -> None:
        super().__init__()
        self.function, self.bar = function, bar

    def forward(self, x: Tensor) -> Tensor:
        rise = self.function((x - 0.5).flatten(1)) / THREAT.eps - self.bar
        return torch.stack([torch.zeros_like(rise), 10 * rise, rise - 30, rise - 40], 1)


def of(model: nn.Module, count: int = 48, **changes: Any) -> Case:
    """Digits that the model gets right."""
    x, y = (part[-300:] for part in digits())
    with torch.no_grad():
        keep = (net_for()(x).argmax(1) == y).nonzero().squeeze(1)[:count]
    return Case(model.eval(), x[keep], y[keep], 10, THREAT, **changes)


def grey(model: nn.Module, side: int = 8, count: int = 24) -> Case:
    return Case(model.eval(), torch.full((count, 1, side, side), 0.5), torch.zeros(count, dtype=torch.long), 4, THREAT)


def row(name: str, case: Case) -> Row:
    """One indicator, by itself."""
    with frozen(case.model), verdict.guarded(0), verdict.exact():
        if name == "G14":
            return indicators.g14(case)
        if name in INDICATORS:
            return INDICATORS[name](case)
        return indicators._from_probe(name, verdict.probe(case.model, case.x, case.y, case.classes))


class Fork(torch.autograd.Function):
    """The identity, whose gradient is true for some images and turned round for the others."""

    @staticmethod
    def forward(ctx, x, true):
        ctx.save_for_backward(true)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        (true,) = ctx.saved_tensors
        return torch.where(true.view(-1, *[1] * (gradient.ndim - 1)), gradient, -gradient), None


def inner(net: nn.Module, x: Tensor) -> Tensor:
    with torch.enable_grad():
        z = x.detach().clone().requires_grad_()
        torch.autograd.grad(net(z).sum(), z)
    return net(x)


def on_grid(net: nn.Module, x: Tensor) -> Tensor:
    """The gradient is true where every pixel is a multiple of 1/16, as of clean digits."""
    return net(Fork.apply(x, ((16 * x - (16 * x).round()).abs() < 1e-4).flatten(1).all(1)))


def near_grey(x: Tensor) -> Tensor:
    """The gradient is true up to 0.6 eps from grey."""
    return Fork.apply(x, x.abs().amax(1) < 0.6 * THREAT.eps).mean(1)


def rough(x: Tensor) -> Tensor:
    """No gradient says so, but neighbours that differ by much fool the model; the corners of a ball do, its middle not."""
    step = x.view(-1, 8, 8).diff(dim=2).abs().flatten(1).mean(1) > 0.85 * THREAT.eps
    return x.mean(1) + step * 10


@dataclass(frozen=True)
class Pair:
    """What fires an indicator, and what is the same but for the cause."""

    fires: Callable[[], Case]
    honest: Callable[[], Case]


def twist(function: Callable[[nn.Module, Tensor], Tensor]) -> Pair:
    return Pair(lambda: of(Twisted(function)), lambda: of(Twisted()))


def lowest(x: Tensor) -> Tensor:
    """The lowest pixel alone has a gradient, so a climb is long, though nothing is hidden."""
    return x.amin(1)


def mean(x: Tensor) -> Tensor:
    return x.mean(1)


PAIRS = {
    "G1": twist(lambda net, x: (2 * net(x)).round() / 2 + 0 * net(x)),
    "G2": twist(lambda net, x: net(x.detach())),
    "G3": twist(lambda net, x: net(Flipped.apply(x))),
    "G4": twist(lambda net, x: net(x) + 2 * torch.sin(300 * net(x))),
    "G5": Pair(lambda: grey(Plain(lowest, 2.0), 4), lambda: grey(Plain(mean, 2.0), 4)),
    "G6": Pair(lambda: grey(Plain(lowest, 0.8)), lambda: grey(Plain(mean, 0.8))),
    "G8": twist(lambda net, x: net((8 * x).round() / 8)),
    "G9": twist(on_grid),
    "G10": Pair(
        lambda: of(Twisted(lambda net, x: net(Flipped.apply(x))), sources=[net_for()]),
        lambda: of(Twisted(), sources=[net_for(seed=1)]),
    ),
    "G11": twist(lambda net, x: net(Flipped.apply(x))),
    "G12": Pair(lambda: grey(Plain(near_grey, 0.3)), lambda: grey(Plain(mean, 0.3))),
    "G13": twist(lambda net, x: net(x) + torch.randn(len(x), 10)),
    "G14": twist(inner),
    "G15": twist(lambda net, x: net(x).softmax(1)),
    "G16": Pair(lambda: grey(Plain(rough, 2.0)), lambda: grey(Plain(mean, 2.0))),
}


@pytest.mark.parametrize("name", PAIRS)
def test_one_cause_fires_it_and_without_the_cause_it_passes(name: str) -> None:
    pair = PAIRS[name]
    assert row(name, pair.fires()).verdict == ("suspect" if name in ("G5", "G6") else "fail")
    assert row(name, pair.honest()).verdict == "pass"


def test_an_attack_that_returns_another_image_than_the_one_it_found_fires_g7(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful(PGD):
        def __call__(self, model, x, y, *, generator):
            super().__call__(model, x, y, generator=generator)
            return x.clone()

    case = of(Twisted())
    assert row("G7", case).verdict == "pass"
    monkeypatch.setattr(indicators, "PGD", Forgetful)
    assert row("G7", replace(case)).verdict == "fail"


def test_every_indicator_has_a_pair_and_a_kind() -> None:
    assert {*PAIRS, "G7"} == set(RULES)
    assert sorted(name for ids in KINDS.values() for name in ids) == sorted(RULES)


def test_gradients_that_are_not_finite_fire_g1() -> None:
    def twist(net: nn.Module, x: Tensor) -> Tensor:
        return net(x) + 0 * (x - x.detach()).abs().flatten(1).sum(1, keepdim=True).sqrt()

    found = row("G1", of(Twisted(twist)))
    assert found.verdict == "fail"
    assert "NaN or infinite" in found.reason


# G13: passes


class Counting(nn.Module):
    """Answers by what it has seen so far."""

    def __init__(self, answer: Callable[[Tensor, int, int], Tensor]) -> None:
        super().__init__()
        self.net, self.answer, self.passes, self.seen = net_for(), answer, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        self.seen += len(x)
        return self.answer(self.net(x), self.passes, self.seen)


def test_a_model_that_is_random_for_late_images_only_fires_g13() -> None:
    case = of(Twisted(), 200)
    late = case.x[150:].flatten(1)

    def answer(net: nn.Module, x: Tensor) -> Tensor:
        is_late = (torch.cdist(x.flatten(1), late).amin(1) < 1e-3)[:, None]
        return net(x) + is_late * torch.randn(len(x), 10)

    case.model = Twisted(answer)
    assert row("G13", case).verdict == "fail"


def test_a_model_that_turns_random_at_the_fifth_pass_fires_g13() -> None:
    assert row("G13", of(Counting(lambda z, passes, _: z + (passes == 5)))).verdict == "fail"


def test_an_answer_that_changes_fires_g13_however_little_logits_move() -> None:
    def answer(z: Tensor, passes: int, seen: int) -> Tensor:
        tie = torch.zeros_like(z)
        tie[:, :2] = 1
        tie[:, passes % 2] += 1e-6
        return tie

    found = row("G13", of(Counting(answer)))
    assert found.verdict == "fail"
    assert "answers change" in found.reason


def test_last_bits_are_told_and_are_no_failure() -> None:
    found = row("G13", of(Counting(lambda z, passes, _: z * (1 + 1e-6 * (passes % 2)))))
    assert (found.verdict, "last bits" in found.reason) == ("pass", True)
    assert found.measured is not None
    assert 0 < found.measured < 1e-5
    still = row("G13", of(Twisted()))
    assert (still.measured, still.reason) == (0.0, "nothing found")


def test_unrest_is_the_largest_change_of_scaled_logits() -> None:
    one, two = torch.tensor([[3.0, 4.0]]), torch.tensor([[6.0, 8.0]])
    assert unrest([one, two]).moved == pytest.approx(0, abs=1e-7)  # the same direction
    assert unrest([one, two]).bits
    other = unrest([one, torch.tensor([[4.0, 3.0]])])
    assert other.moved == pytest.approx(0.2)
    assert other.verdicts == 1


# G15: outputs

HIDING: dict[str, Callable[[Tensor], Tensor]] = {
    "probabilities": lambda z: z.softmax(1),
    "in half precision": lambda z: z.softmax(1).half().float(),
    "in bfloat16": lambda z: z.softmax(1).bfloat16().float(),
    "clamped": lambda z: z.softmax(1).clamp(0.01, 0.99),
    "scaled": lambda z: 255 * z.softmax(1),
    "sharp": lambda z: (100 * z).softmax(1),
    "saturated sigmoids": lambda z: (100 * z).sigmoid(),
    "a ceiling": lambda z: 10 * (20 * z).tanh(),
}
HONEST: dict[str, Callable[[Tensor], Tensor]] = {
    "logits": lambda z: z,
    "large": lambda z: 4 * z,
    "small": lambda z: 1e-3 * z,
    "shifted": lambda z: z + 100,
    "log-probabilities": lambda z: z.log_softmax(1),
    "sure log-probabilities": lambda z: (4 * z).log_softmax(1),
    "rectified": lambda z: z.relu(),
    "soft": lambda z: 10 * (z / 10).tanh(),
}


def logits() -> Tensor:
    with torch.no_grad():
        return net_for()(digits()[0][-128:])


@pytest.mark.parametrize("name", HIDING)
def test_outputs_that_hide_gradients_are_known(name: str) -> None:
    assert suspicious(HIDING[name](logits()))
    assert row("G15", of(Twisted(lambda net, x: HIDING[name](net(x))))).verdict == "fail"


@pytest.mark.parametrize("name", HONEST)
def test_logits_are_not_suspected(name: str) -> None:
    assert suspicious(HONEST[name](logits())) == ""
    assert row("G15", of(Twisted(lambda net, x: HONEST[name](net(x))))).verdict == "pass"


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_random_logits_are_not_suspected_and_their_probabilities_are(classes: int) -> None:
    z = 4 * torch.randn(128, classes, generator=torch.Generator().manual_seed(0))
    assert suspicious(z) == ""
    assert suspicious(z.softmax(1))


def test_of_probabilities_the_white_box_side_climbs_the_logarithms() -> None:
    sharp = of(Twisted(lambda net, x: (30 * net(x)).softmax(1)))
    with frozen(sharp.model):
        assert int(replace(sharp, probabilities=True).white.sum()) >= int(sharp.white.sum())
        logarithms = indicators._Logarithms(sharp.model)(sharp.x)
    assert torch.allclose(logarithms.softmax(1), sharp.model(sharp.x), atol=1e-6)
