"""Masked toy models are caught by two or more indicators, honest ones by none, and reports carry what was found."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from robench import diagnosis, reporting
from robench.attacks.pgd import FGSM, PGD
from robench.diagnosis import Diagnosis, Row
from robench.door import frozen
from robench.errors import StoreError
from robench.indicators import INDICATORS, RULES, Case, diagnose
from robench.noise import ImageGenerator
from robench.threat import ThreatModel

THREAT = ThreatModel.parse("linf-0.1")


@cache
def digits() -> tuple[Tensor, Tensor]:
    held = load_digits()
    return torch.tensor(held.images / 16, dtype=torch.float32)[:, None], torch.tensor(held.target)


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 64), nn.ReLU(), nn.Linear(64, 10))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def smooth() -> nn.Module:
    """With batch statistics and no kink."""
    return nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.SiLU(), nn.Flatten(), nn.Linear(576, 10))


def bounds(net: nn.Module, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """What the logits of a box of images cannot leave: interval bound propagation."""
    centre, radius = (low + high) / 2, (high - low) / 2
    for layer in net:  # type: ignore[attr-defined]
        if isinstance(layer, nn.Conv2d):
            centre, radius = layer(centre), nn.functional.conv2d(radius, layer.weight.abs())
        elif isinstance(layer, nn.Linear):
            centre, radius = layer(centre), nn.functional.linear(radius, layer.weight.abs())
        elif isinstance(layer, nn.ReLU):
            below, above = (centre - radius).relu(), (centre + radius).relu()
            centre, radius = (below + above) / 2, (above - below) / 2
        else:
            centre, radius = layer(centre), layer(radius)
    return centre - radius, centre + radius


def certified(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """The logits a box allows that speak most against the right class."""
    low, high = bounds(net, (x - eps).clamp(0, 1), (x + eps).clamp(0, 1))
    return torch.where(nn.functional.one_hot(y, 10).bool(), low, high)


@cache
def net_for(
    how: str = "adversarial", seed: int = 0, make: Callable[[], nn.Module] = conv, steps: int = 240
) -> nn.Module:
    """A small net, trained on all but the last 300 digits; `certified` against linf-0.05, `one step` by FGSM."""
    x, y = (part[:-300] for part in digits())
    torch.manual_seed(seed)
    net = make()
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(steps):
        part = torch.randint(len(x), (128,))
        adv = x[part]
        if how in ("adversarial", "one step"):
            attack = PGD(THREAT, steps=4) if how == "adversarial" else FGSM(THREAT)
            with frozen(net):
                adv = attack(net, adv, y[part], generator=ImageGenerator(step, range(128)))
        loss = nn.functional.cross_entropy(net(adv), y[part])
        if how == "certified":
            worst = certified(net, adv, y[part], 0.05 * min(1, step / (0.6 * steps)))
            loss = loss / 2 + nn.functional.cross_entropy(worst, y[part]) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net.eval()


class Flipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class Noisy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (torch.rand_like(gradient) - 0.5)


def cosines() -> Tensor:
    """The orthogonal matrix of an 8-point cosine transform."""
    k = torch.arange(8.0)
    found = torch.cos(math.pi * (2 * k[None] + 1) * k[:, None] / 16) / 2
    found[0] /= math.sqrt(2)
    return found


def compressed(x: Tensor) -> Tensor:
    """Coarse coefficients of the cosine transform, as a JPEG keeps them."""
    table = cosines()
    return (table.T @ ((table @ x @ table.T / 0.4).round() * 0.4) @ table).clamp(0, 1)


def purified(net: nn.Module, x: Tensor) -> Tensor:
    """The logits after a step towards what the net believes in."""
    with torch.enable_grad():
        z = x.detach().clone().requires_grad_()
        slope = torch.autograd.grad(net(z).logsumexp(1).sum(), z)[0]
    return net(x + 0.01 * slope.sign())


MASKS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "quantised input": lambda net, x: net((x * 8).round() / 8),
    "compressed input": lambda net, x: net(compressed(x)),
    "quantised logits": lambda net, x: (2 * net(x)).round() / 2,
    "large logits": lambda net, x: 1e4 * net(x),
    "softmax": lambda net, x: (100 * net(x)).softmax(1),
    "sigmoids": lambda net, x: (30 * net(x)).sigmoid(),
    "tanh": lambda net, x: 10 * (10 * net(x)).tanh(),
    "sine": lambda net, x: net(x) + 2 * torch.sin(300 * net(x)),
    "turned gradient": lambda net, x: net(Flipped.apply(x)),
    "noisy gradient": lambda net, x: net(Noisy.apply(x)),
    "detached": lambda net, x: net(x.detach()),
    "random logits": lambda net, x: net(x) + torch.randn(len(x), 10),
    "random input": lambda net, x: net((x + 0.1 * torch.randn_like(x)).clamp(0, 1)),
}


class Masked(nn.Module):
    """An honest net behind something that keeps attacks from its gradient."""

    def __init__(self, mask: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.mask = net_for(), mask

    def forward(self, x: Tensor) -> Tensor:
        return self.mask(self.net, x)


def found(model: nn.Module, threat: ThreatModel = THREAT, sources: Sequence[nn.Module] = ()) -> Diagnosis:
    x, y = (part[-300:] for part in digits())
    with torch.no_grad():
        keep = (model(x).argmax(1) == y).nonzero().squeeze(1)[:96]
    rows = diagnose(Case(model, x[keep], y[keep], 10, threat, sources=sources))
    assert [row.id for row in rows] == list(RULES)
    return Diagnosis("", "", threat, "", 300, len(keep), 0, (), rows)


@pytest.mark.parametrize("kind", MASKS)
def test_masked_models_are_caught_by_independent_signs(kind: str) -> None:
    made = found(Masked(MASKS[kind]))
    assert len(made.kinds) >= 2, made.failed


HONEST = {
    "adversarially trained": (lambda: net_for(), "linf-0.1"),
    "another seed, a smaller ball": (lambda: net_for(seed=1), "linf-0.06"),
    "standard": (lambda: net_for("standard"), "linf-0.1"),
    "sure of itself": (lambda: net_for("standard", steps=1000), "linf-0.1"),
    "standard MLP": (lambda: net_for("standard", make=mlp), "linf-0.1"),
    "adversarially trained MLP": (lambda: net_for(make=mlp), "linf-0.1"),
    "trained on one step": (lambda: net_for("one step"), "linf-0.1"),
    "with batch statistics": (lambda: net_for("standard", make=smooth), "linf-0.06"),
    "certified": (lambda: net_for("certified", steps=400), "linf-0.05"),
    "in l2": (lambda: net_for(), "l2-0.5"),
    "in l1": (lambda: net_for(), "l1-2"),
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_models_raise_nothing(name: str) -> None:
    make, threat = HONEST[name]
    made = found(make(), ThreatModel.parse(threat))
    assert made.failed == ()
    g10 = next(row for row in made.rows if row.id == "G10")
    assert g10.verdict == "not run"
    assert "--source" in g10.reason


def test_no_attack_breaks_what_the_certified_net_certifies() -> None:
    x, y = (part[-300:] for part in digits())
    net = net_for("certified", steps=400)
    proven = certified(net, x, y, 0.05).argmax(1) == y
    assert proven.float().mean() > 0.5  # or nothing is said
    with frozen(net):
        assert not Case(net, x, y, 10, ThreatModel.parse("linf-0.05")).white[proven].any()


def test_images_of_the_undefended_twin_give_a_masked_model_away_and_no_honest_one() -> None:
    def g10(model: nn.Module, source: nn.Module) -> str:
        with frozen(model), frozen(source):
            x, y = (part[-96:] for part in digits())
            return INDICATORS["G10"](Case(model, x, y, 10, THREAT, sources=[source])).verdict

    assert g10(Masked(MASKS["quantised input"]).eval(), net_for()) == "fail"
    assert g10(net_for(), net_for(seed=1)) == "pass"


def test_what_a_masked_model_makes_meaningless_is_not_run() -> None:
    rows = {kind: {row.id: row for row in found(Masked(MASKS[kind])).rows} for kind in ("random logits", "detached")}
    assert rows["random logits"]["G13"].verdict == rows["detached"]["G2"].verdict == "fail"
    assert rows["random logits"]["G8"].verdict == "not run"
    assert rows["detached"]["G8"].verdict == "fail"  # an attack without gradients still says something
    assert rows["detached"]["G5"].verdict == "not run"
    assert next(row for row in found(Masked(purified)).rows if row.id == "G14").verdict == "fail"


def example() -> Diagnosis:
    rows = (Row("G1", "zero", 1.0, "rule", "fail", "seen"), Row("G8", "square", 0.0, "rule", "pass", "none"))
    return Diagnosis("a" * 64, "net", ThreatModel.parse("linf-0.1"), "b" * 64, 10, 9, 0, (), rows)


def test_stored_diagnoses_come_back_and_damage_is_named(tmp_path: Path) -> None:
    path = diagnosis.put(example(), tmp_path)
    assert diagnosis.put(example(), tmp_path) == path
    assert diagnosis.records(tmp_path) == [example()]
    assert [each.failed for each in diagnosis.records(tmp_path)] == [("G1",)]
    path.write_text(path.read_text().replace('"fail"', '"pass"'))
    with pytest.raises(StoreError, match="changed"):
        diagnosis.records(tmp_path)


def test_a_diagnosis_counts_independent_signs() -> None:
    bad = [Row(name, "", 1.0, "", "fail", "") for name in ("G1", "G3", "G8", "G15")]
    made = replace(example(), rows=tuple(bad))
    assert made.kinds == ("gradients", "attacks that see no gradient", "outputs")
    assert (
        "independent signs: gradients, attacks that see no gradient, outputs."
        in reporting.diagnosis_table(made).notes[-1]
    )


def test_only_failed_rows_make_doubts() -> None:
    good = replace(example(), rows=example().rows[1:])
    assert reporting.doubts([], [good]) == {}
    assert "G1" in reporting.doubts([], [example()])["a" * 64][0]


def test_the_command_stores_what_it_prints_and_reports_carry_it(
    trained: Path, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    where = ("--checkpoints", trained, "--results", tmp_path)
    code, out, err = run_cli("diagnose", "pgd-at-digits", "--source", "standard-digits", "--count", 64, *where)
    (made,) = diagnosis.records(tmp_path)
    assert code == bool(made.failed)
    assert [row.id for row in made.rows] == list(RULES)
    assert "G16" in out
    assert str(tmp_path) in err
    code, out, err = run_cli("diagnose", "pgd-at-digit", *where)
    assert (code, out) == (2, "")
    assert "pgd-at-digits" in err
    broken = replace(made, rows=(replace(made.rows[0], verdict="fail"), *made.rows[1:]))
    diagnosis.put(broken, tmp_path)
    run_cli("evaluate", "pgd-at-digits", "--attack", "fgsm", "--threat", "linf-0.1", "--count", 8, *where)
    for form in ("terminal", "markdown", "latex", "json"):
        code, out, err = run_cli("report", "--results", tmp_path, "--format", form)
        assert "pgd-at-digits !" in out
        assert "G1 zero" in out


TOYS = ("quantised input", "softmax", "sine", "turned gradient", "random logits")


SLOW = [pytest.param(kind, marks=pytest.mark.nightly) for kind in TOYS[:4]]


@pytest.mark.parametrize("kind", [*SLOW, "random logits", "honest"])
def test_the_command_catches_five_toys_and_no_honest_model(
    kind: str, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    (tmp_path / "toy.py").write_text(
        "from test_diagnosis import MASKS, Masked, net_for\n"
        f"def make():\n    return Masked(MASKS[{kind!r}]) if {kind != 'honest'} else net_for()\n"
    )
    line = ("diagnose", "--model", f"{tmp_path}/toy.py:make", "--dataset", "digits", "--threat", "linf-0.1")
    count = 16 if kind == "honest" else 64
    code, out, err = run_cli(*line, "--count", count, "--device", "cpu", "--results", tmp_path)
    (made,) = diagnosis.records(tmp_path)
    caught = [row.id for row in made.rows if row.verdict == "fail"]
    if kind == "honest":
        assert (code, caught) == (0, []), out
    else:
        assert code == 1, err
        assert len(caught) >= 2
        assert len(made.kinds) >= 2
        assert f"Failed: {', '.join(caught)}" in " ".join(out.split())
