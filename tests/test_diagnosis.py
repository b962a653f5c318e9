"""Masked toy models are caught by two or more indicators, honest ones by none, and reports carry what was found."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from robench import diagnosis, reporting
from robench.attacks.pgd import PGD
from robench.diagnosis import Diagnosis, Row
from robench.door import frozen
from robench.errors import StoreError
from robench.indicators import RULES, Case, diagnose
from robench.noise import ImageGenerator
from robench.threat import ThreatModel

THREAT = ThreatModel.parse("linf-0.1")


@cache
def digits() -> tuple[Tensor, Tensor]:
    held = load_digits()
    return torch.tensor(held.images / 16, dtype=torch.float32)[:, None], torch.tensor(held.target)


@cache
def net_for(robust: bool = True, seed: int = 0) -> nn.Module:
    """A small net, trained on all but the last 300 digits."""
    x, y = (part[:-300] for part in digits())
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 64), nn.ReLU(), nn.Linear(64, 10))
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(240):
        part = torch.randint(len(x), (128,))
        adv = x[part]
        if robust:
            with frozen(net):
                adv = PGD(THREAT, steps=4)(net, adv, y[part], generator=ImageGenerator(step, range(128)))
        loss = nn.functional.cross_entropy(net(adv), y[part])
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


class Masked(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.net, self.kind = net_for(), kind

    def forward(self, x: Tensor) -> Tensor:
        net = self.net
        match self.kind:
            case "quantised":
                return net((x * 8).round() / 8)
            case "large":
                return 1e4 * net(x)
            case "softmax":
                return (100 * net(x)).softmax(1)
            case "sine":
                logits = net(x)
                return logits + 2 * torch.sin(300 * logits)
            case "flipped":
                return net(Flipped.apply(x))
            case "random":
                return net(x) + torch.randn(len(x), 10)
            case "inner":
                with torch.enable_grad():
                    z = x.detach().clone().requires_grad_()
                    slope = torch.autograd.grad(net(z).logsumexp(1).sum(), z)[0]
                return net(x + 0.01 * slope.sign())
            case "interrupted":
                return net(x.detach())
        raise AssertionError(self.kind)


def found(model: nn.Module, threat: ThreatModel = THREAT, sources: Sequence[nn.Module] = ()) -> dict[str, Row]:
    x, y = (part[-300:] for part in digits())
    with torch.no_grad():
        keep = (model(x).argmax(1) == y).nonzero().squeeze(1)[:128]
    rows = diagnose(Case(model, x[keep], y[keep], 10, threat, sources=sources))
    assert [row.id for row in rows] == list(RULES)
    return {row.id: row for row in rows}


def failed(rows: dict[str, Row]) -> set[str]:
    return {name for name, row in rows.items() if row.verdict == "fail"}


@pytest.mark.parametrize("kind", ["quantised", "large", "softmax", "sine", "flipped"])
def test_masked_models_are_caught_twice(kind: str) -> None:
    assert len(failed(found(Masked(kind)))) >= 2


@pytest.mark.parametrize(("robust", "seed", "eps"), [(True, 0, "0.1"), (True, 1, "0.06"), (False, 0, "0.1")])
def test_honest_models_raise_nothing(robust: bool, seed: int, eps: str) -> None:
    rows = found(net_for(robust, seed), ThreatModel.parse(f"linf-{eps}"))
    assert not failed(rows)
    assert rows["G10"].verdict == "not run"
    assert "--source" in rows["G10"].reason


@pytest.mark.parametrize("threat", ["l2-0.5", "l1-2"])
def test_honest_models_raise_nothing_in_other_norms(threat: str) -> None:
    assert not failed(found(net_for(), ThreatModel.parse(threat)))


def test_images_of_the_undefended_twin_give_a_masked_model_away_and_no_honest_one() -> None:
    assert found(Masked("quantised"), sources=[net_for()])["G10"].verdict == "fail"
    assert found(net_for(), sources=[net_for(seed=1)])["G10"].verdict == "pass"


@pytest.mark.parametrize(("kind", "name"), [("random", "G13"), ("inner", "G14"), ("interrupted", "G2")])
def test_what_each_is_named_for(kind: str, name: str) -> None:
    rows = found(Masked(kind))
    assert rows[name].verdict == "fail"
    if kind != "inner":
        assert rows["G8"].verdict == "not run"


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
