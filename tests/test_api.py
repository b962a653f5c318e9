"""The Python API: five words, lazily there, typed, and the same numbers as the command line's."""

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robench
from robench import api
from robench.checkpoint import Checkpoint
from robench.data import Images, Split
from robench.errors import CheckpointError, DataError, UsageError
from robench.foreign import Foreign
from robench.results import Failure, Result
from robench.threat import ThreatModel

Cli = Callable[..., tuple[int, str, str]]
WORDS = ("load_model", "load_data", "train", "evaluate", "report")


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False))
        nn.init.normal_(self.net[1].weight, generator=torch.Generator().manual_seed(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.fixture(scope="module")
def digits() -> Images:
    return robench.load_data("digits", count=30)


# what is there


def test_importing_it_imports_nothing() -> None:
    check = "import sys; import robench; print(*sys.modules)"
    here = {**os.environ, "PYTHONPATH": str(Path(robench.__file__).parent.parent)}
    ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, env=here)
    loaded = ran.stdout.split()
    assert [name for name in loaded if name.startswith("robench")] == ["robench"]
    assert not {name.partition(".")[0] for name in loaded} & {"torch", "numpy", "click", "rich", "pandas"}


@pytest.mark.parametrize("word", WORDS)
def test_every_word_is_typed_and_says_what_it_takes(word: str) -> None:
    found = getattr(robench, word)
    assert found is getattr(api, word)
    assert word in dir(robench)
    parameters = inspect.signature(found).parameters
    assert all(each.annotation is not inspect.Parameter.empty for each in parameters.values())
    told = re.findall(r"^    (\w+): ", inspect.getdoc(found) or "", re.MULTILINE)
    assert [name for name in told if name in parameters] == list(parameters)


def test_what_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'evalute'"):
        robench.evalute  # noqa: B018


# data


def test_data_by_name_and_by_hand(digits: Images) -> None:
    assert (digits.name, len(digits), digits.split) == ("digits", 30, Split.TEST)
    assert robench.load_data("digits@resize=4", split="train").shape == (1, 4, 4)
    same = robench.load_data((digits.x(), digits.y))
    assert torch.equal(same.pixels, digits.pixels)
    assert same.name == "data"
    assert robench.load_data(digits) is digits
    pairs = torch.utils.data.TensorDataset(digits.x(), digits.y)
    assert torch.equal(robench.load_data(pairs).pixels, digits.pixels)
    with pytest.raises(UsageError, match="expected 'test' or 'train'"):
        robench.load_data("digits", split="validation")
    with pytest.raises(UsageError, match="digits has 360 images; use 1 to 360"):
        robench.load_data("digits", count=361)
    with pytest.raises(DataError, match="they look normalised"):
        robench.load_data(((digits.x() - 0.5) / 0.25, digits.y))


# models


def test_models_of_every_kind(digits: Images, trained: Path) -> None:
    ours = robench.load_model("pgd-at-digits", checkpoints=trained)
    assert isinstance(ours, Checkpoint)
    assert robench.load_model(ours) is ours
    theirs = robench.load_model("test_api:Linear", digits, preprocess="half", trained_against="linf-0.1")
    assert isinstance(theirs, Foreign)
    assert theirs.threat == ThreatModel.parse("linf-0.1")
    assert (
        robench.load_model(Linear(), digits, preprocess="half").sha256
        == robench.load_model(Linear(), digits, preprocess="half").sha256
    )
    assert robench.load_model(Linear().forward, digits, name="mine").name == "mine"
    with pytest.raises(UsageError, match="needs the images it is for"):
        robench.load_model(Linear())
    with pytest.raises(UsageError, match="weights= goes with a text"):
        robench.load_model(Linear(), digits, weights="w.pt")
    with pytest.raises(CheckpointError, match="no checkpoint 'nowhere'"):
        robench.load_model("nowhere", checkpoints=trained)


# evaluation


def test_a_module_is_evaluated_as_by_hand(digits: Images) -> None:
    model = Linear()
    found = robench.evaluate(model, digits, ["fgsm", "pgd-3"], threats="linf-0.1")
    assert [record.cell.attack for record in found.records] == ["fgsm", "pgd-3"]
    for record in found.records:
        assert isinstance(record, Result)
        assert record.clean == tuple((model(digits.x()).argmax(1) == digits.y).tolist())
    # the gradient of the cross-entropy of a linear model, by hand
    x = digits.x().requires_grad_()
    nn.functional.cross_entropy(model(x), digits.y).backward()
    adv = (digits.x() + 0.1 * x.grad.sign()).clamp(0, 1)  # type: ignore[union-attr]
    expected = (model(adv).argmax(1) == digits.y) & (model(digits.x()).argmax(1) == digits.y)
    assert found.records[0].robust == tuple(expected.tolist())  # type: ignore[union-attr]
    assert not found.failures
    assert any("near chance" in note for note in found.notes)
    assert model.training  # which it was


def test_a_model_stays_what_it_was(digits: Images) -> None:
    model = nn.Sequential(Linear(), nn.Dropout(0.5))
    model[0].eval()
    robench.evaluate(model, digits, "fgsm", threats="linf-0.1")
    assert [module.training for module in (model, model[0], model[1])] == [True, False, True]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_the_same_numbers_as_the_command_line(trained: Path, tmp_path: Path, run_cli: Cli) -> None:
    line = ["evaluate", "--attack", "pgd-3", "--count", 30, "--checkpoints", trained, "--results", tmp_path / "a"]
    assert run_cli(*line)[0] == 0
    names = ["pgd-at-digits", "standard-digits"]
    found = robench.evaluate(names, attacks="pgd-3", count=30, checkpoints=trained, results=tmp_path / "b")
    stored = robench.report(tmp_path / "a")
    assert stored.table() == found.table() == robench.report(tmp_path / "b").table()
    again = robench.evaluate(names, attacks="pgd-3", count=30, checkpoints=trained, results=tmp_path / "a")
    assert {r.cell.key for r in again.records} == {path.stem for path in (tmp_path / "a" / "cells").iterdir()}
    assert stored.table() == run_cli("report", "--results", tmp_path / "a", "--format", "markdown")[1]


def test_transfer(digits: Images, trained: Path) -> None:
    found = robench.evaluate(
        Linear(), digits, "pgd-3", threats="linf-0.1", sources="standard-digits", checkpoints=trained
    )
    (record,) = found.records
    assert record.source is not None
    assert record.source.name == "standard-digits"
    assert "Black-box transfer" in found.table("transfer")
    assert robench.report(found, which="transfer").records == found.records
    assert robench.report(found, which="white-box").records == ()


def test_what_is_shown(digits: Images) -> None:
    name = "<script>alert(1)</script>"
    found = robench.evaluate(robench.load_model(Linear(), digits, name=name), digits, "fgsm", threats="linf-0.1")
    assert str(found) == found.table()
    html = found._repr_html_()
    assert "<table>" in html
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    frame = found.frame()
    assert frame["robust_accuracy"].tolist() == [
        sum(r.robust) / len(r.robust) for r in found.records if isinstance(r, Result)
    ]
    assert str(api.Results(())) == "no cells"


def test_failures_are_kept(digits: Images) -> None:
    found = robench.evaluate(Linear(), digits, ["test_cli:Broken"], threats="linf-0.1")
    (failure,) = found.failures
    assert isinstance(failure, Failure)
    assert "ValueError" in failure.reason
    assert "ValueError" in found.table()


def test_what_cannot_be_evaluated(digits: Images) -> None:
    with pytest.raises(UsageError, match="Did you mean 'autoattack'"):
        robench.evaluate(Linear(), digits, "autoatack", threats="linf-0.1")
    with pytest.raises(CheckpointError, match="does not take images"):
        robench.evaluate(nn.Conv2d(3, 10, 8), digits, "fgsm")
    images = robench.load_data((digits.x(), digits.y))
    with pytest.raises(UsageError, match="trained against no threat: name one"):
        robench.evaluate(Linear(), images, "fgsm")
    with pytest.raises(UsageError, match="leaves none of the results"):
        robench.report(robench.evaluate(Linear(), digits, "fgsm"), dataset="cifar10")


# training


def test_training(tmp_path: Path) -> None:
    changes = {"model": "cnn@width=2", "validation": 1200, "stage.0.epochs": 1}
    made = robench.train("standard-digits", changes, checkpoints=tmp_path, steps=2, device="cpu")
    assert made.folder == tmp_path / "standard-digits"
    seen: list[Any] = []
    robench.train("standard-digits", changes, folder=tmp_path / "b", seed=1, steps=2, device="cpu", monitor=seen.append)
    assert seen
    assert robench.load_model("b", checkpoints=tmp_path).sha256 != made.sha256
    with pytest.raises(UsageError, match="Did you mean"):
        robench.train("standart-digits")
