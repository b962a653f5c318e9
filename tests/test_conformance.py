"""The public suites: everything built in obeys, every law can be broken, and a stranger's package passes."""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from robench import registry
from robench.data import Images, Split
from robench.errors import UsageError
from robench.losses import cross_entropy
from robench.methods.simclr import SimCLR
from robench.methods.standard import Standard
from robench.protocols import Batch, Moment
from robench.registry import METHODS, MODELS
from robench.testing import (
    LawError,
    cases_for,
    check_attack,
    check_dataset,
    check_method,
    check_model,
    dataset,
    method,
    model,
)

Cli = Callable[..., tuple[int, str, str]]
NOWHERE = Path("nowhere")
SMALL = {name: {"hidden": 32, "dimensions": 16} for name in ("simclr", "supcon", "rocl", "finetune-at-ss")}
QUICK = [law for law in method.LAWS if law != "M9"]


def all_obeyed(found: dict[str, str], laws: Any) -> None:
    assert found == dict.fromkeys(laws, "obeyed")


# what is built in


@pytest.mark.parametrize("name", METHODS.rows)
def test_methods_obey(name: str) -> None:
    all_obeyed(check_method(name, SMALL.get(name), QUICK), QUICK)


@pytest.mark.parametrize("name", ["standard", "trades", "simclr", "rst"])
def test_methods_obey_the_trainer(name: str) -> None:
    all_obeyed(check_method(name, SMALL.get(name), ["M9"]), ["M9"])


def test_an_exact_method_obeys() -> None:
    laws = ["M1", "M2", "M3"]
    all_obeyed(check_method("linear", {"solver": "exact"}, laws), laws)


def test_data_sets_obey() -> None:
    all_obeyed(check_dataset("digits"), dataset.LAWS)


@pytest.mark.parametrize("name", ["cnn", "resnet18", "preact-resnet18"])
def test_encoders_obey(name: str) -> None:
    all_obeyed(check_model(name, (3, 16, 16)), model.LAWS)
    assert set(MODELS.rows) > {name}


def test_classifiers_obey() -> None:
    all_obeyed(check_model("torchvision:squeezenet1_1", (3, 33, 33)), model.LAWS)


# every law can be broken; these do


@dataclass
class Melts:
    """Not frozen."""

    views: ClassVar[tuple[str, ...]] = ("augmented",)
    trains: ClassVar[tuple[str, ...]] = ("encoder", "head")
    supervised: ClassVar[bool] = True
    select: ClassVar[str] = "clean"
    heads, terms = Standard.heads, Standard.terms


@dataclass(frozen=True)
class Guesses(Standard):
    select: ClassVar[str] = "test"


@dataclass(frozen=True)
class OtherViews(Standard):
    views: ClassVar[tuple[str, ...]] = ("blurred",)


@dataclass(frozen=True)
class TrainsNobody(Standard):
    trains: ClassVar[tuple[str, ...]] = ("encoder", "teacher")


@dataclass(frozen=True)
class RandomHeads(Standard):
    def heads(self, features: int, classes: int) -> dict[str, nn.Module]:
        wide = 5 + int(torch.randint(0, 2**30, ()))  # another each time
        return {"head": nn.Sequential(nn.Linear(features, classes)), f"part{wide}": nn.Linear(1, 1)}


@dataclass(frozen=True)
class WideHead(Standard):
    def heads(self, features: int, classes: int) -> dict[str, nn.Module]:
        return {"head": nn.Linear(features, classes + 1)}


@dataclass(frozen=True)
class Infinite(Standard):
    def terms(self, nets: Any, batch: Batch, at: Moment) -> dict[str, Tensor]:
        return {"ce": super().terms(nets, batch, at)["ce"] * torch.inf}


@dataclass(frozen=True)
class PerImage(Standard):
    def terms(self, nets: Any, batch: Batch, at: Moment) -> dict[str, Tensor]:
        return {"ce": cross_entropy(nets(batch.views[0]), batch.y)}


@dataclass(frozen=True)
class Detached(Standard):
    def terms(self, nets: Any, batch: Batch, at: Moment) -> dict[str, Tensor]:
        features = nets.features(batch.views[0]).detach()
        return {"ce": cross_entropy(nets.parts["head"](features), batch.y).mean()}


@dataclass(frozen=True)
class Global(Standard):
    def terms(self, nets: Any, batch: Batch, at: Moment) -> dict[str, Tensor]:
        noise = torch.randn_like(batch.views[0])
        return {"ce": cross_entropy(nets(batch.views[0] + noise), batch.y).mean()}


@dataclass(frozen=True)
class Decays(Standard):
    def terms(self, nets: Any, batch: Batch, at: Moment) -> dict[str, Tensor]:
        with torch.no_grad():
            nets.parts["head"].weight.mul_(0.9)
        return super().terms(nets, batch, at)


@dataclass(frozen=True)
class Evaluates(Standard):
    def terms(self, nets: Any, batch: Batch, at: Moment) -> dict[str, Tensor]:
        nets.eval()
        return super().terms(nets, batch, at)


@dataclass(frozen=True)
class Peeks(SimCLR):
    def terms(self, nets: Any, batch: Batch, at: Moment) -> dict[str, Tensor]:
        found = super().terms(nets, batch, at)
        return {name: term * (1 + batch.y[0]) for name, term in found.items()}


@pytest.mark.parametrize(
    ("name", "law", "why"),
    [
        ("Melts", "M1", "is no frozen dataclass"),
        ("Guesses", "M1", "select is 'test'"),
        ("OtherViews", "M1", "views are"),
        ("TrainsNobody", "M1", "teacher"),
        ("RandomHeads", "M3", "differ"),
        ("WideHead", "M3", "returns (2, 5) for 2 rows and 4 classes"),
        ("Infinite", "M4", "ce is inf"),
        ("PerImage", "M4", "ce is no scalar tensor"),
        ("Detached", "M5", "encoder gets no gradient"),
        ("Global", "M6", "drew from the global generator"),
        ("Decays", "M6", "it changed parts.head.weight"),
        ("Evaluates", "M6", "left a network in another mode"),
        ("Global", "M7", "ce differ the second time"),
        ("Peeks", "M8", "depend on the labels"),
    ],
)
def test_a_method_that_breaks_a_law(name: str, law: str, why: str) -> None:
    with pytest.raises(LawError) as caught:
        check_method(f"test_conformance:{name}", laws=[law])
    assert f"{law} broken by method test_conformance:{name}" in str(caught.value)
    assert why in str(caught.value)


COUNTER = [0]


def images(split: Split, pixels: Tensor | None = None, y: Tensor | None = None, seed: int = 0) -> Images:
    dice = torch.Generator().manual_seed(seed + (split is Split.TEST))
    if pixels is None:
        pixels = torch.randint(0, 256, (240, 3, 4, 4), generator=dice, dtype=torch.uint8)
    return Images("mine", split, pixels, torch.arange(len(pixels)) % 3 if y is None else y, 3)


def changes(split: Split) -> Images:
    COUNTER[0] += 1
    return images(split, seed=10 * COUNTER[0])


def flat(split: Split) -> Images:
    return images(split, torch.full((240, 3, 4, 4), 7, dtype=torch.uint8))


def sorted_by_class(split: Split) -> Images:
    return images(split, y=torch.arange(240) // 230)


def leaks(split: Split) -> Images:
    return images(Split.TEST).take(slice(None), split)


def other_shape(split: Split) -> Images:
    return images(split, torch.randint(0, 256, (9, 1, 4, 4), dtype=torch.uint8) if split is Split.TRAIN else None)


def five_channels(split: Split) -> Images:
    return images(split, torch.randint(0, 256, (9, 5, 4, 4), dtype=torch.uint8))


@pytest.mark.parametrize(
    ("name", "law", "why"),
    [
        ("five_channels", "D1", "5 channels"),
        ("changes", "D2", "differ the second time"),
        ("flat", "D3", "240 of 240 images are of one colour"),
        ("sorted_by_class", "D4", "the first 200 images are all of class 0"),
        ("other_shape", "D5", "training images have shape and classes"),
        ("leaks", "D6", "240 of 240 test images are among the training images"),
    ],
)
def test_a_data_set_that_breaks_a_law(name: str, law: str, why: str) -> None:
    with pytest.raises(LawError) as caught:
        check_dataset(f"test_conformance:{name}", laws=[law])
    assert f"{law} broken by dataset test_conformance:{name}" in str(caught.value)
    assert why in str(caught.value)


class Double(nn.Module):
    """A classifier with something wrong."""

    def __init__(self, wrong: str = "") -> None:
        super().__init__()
        self.wrong = wrong
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(48, 10))
        self.norm = nn.BatchNorm1d(10, track_running_stats=wrong != "batch")

    def train(self, mode: bool = True) -> "Double":
        super().train(mode)
        if self.wrong == "mode":
            self.norm.training = True
        return self

    def forward(self, x: Tensor) -> Tensor:
        found = self.norm(self.net(x))
        if self.wrong == "random":
            return found + torch.randn_like(found)
        if self.wrong == "softmax":
            return found.softmax(1)
        if self.wrong == "cut":
            return found.detach()
        if self.wrong == "flat":
            return found * 0 + torch.arange(10.0)
        if self.wrong == "infinite":
            return found / 0
        return found


def double(wrong: str = "") -> Double:
    return Double(wrong)


def unseeded() -> nn.Module:
    made = Double()
    dice = torch.Generator()
    dice.seed()
    nn.init.normal_(made.net[1].weight, generator=dice)
    return made


class Narrow(nn.Module):
    """An encoder that says another width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.features = 7
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(16 * channels, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def narrow(channels: int) -> Narrow:
    return Narrow(channels)


@pytest.mark.parametrize(
    ("name", "law", "why"),
    [
        ("narrow", "N1", "it returned (20, 5); expected (20, 7)"),
        ("double@wrong=infinite", "N1", "NaN or infinite"),
        ("double@wrong=random", "N2", "answers differ by up to"),
        ("double@wrong=batch", "N3", "in another batch"),
        ("unseeded", "N4", "differ the second time"),
        ("double@wrong=cut", "N5", "the graph is cut"),
        ("double@wrong=flat", "N5", "it is zero for 20 of 20 images"),
        ("double@wrong=softmax", "N6", "its rows sum to 1"),
        ("double@wrong=mode", "N7", "body.norm stays in train mode"),
    ],
)
def test_a_model_that_breaks_a_law(name: str, law: str, why: str) -> None:
    with pytest.raises(LawError) as caught:
        check_model(f"test_conformance:{name}", (3, 4, 4), laws=[law])
    assert f"{law} broken by model test_conformance:{name}" in str(caught.value)
    assert why in str(caught.value)
    all_obeyed(check_model("test_conformance:double", (3, 4, 4)), model.LAWS)


@pytest.mark.parametrize("check", [check_method, check_dataset, check_model])
def test_unknown_names_and_laws(check: Any) -> None:
    with pytest.raises(UsageError, match="unknown"):
        check("no-such-name")
    known = {check_method: "standard", check_dataset: "digits", check_model: "cnn"}[check]
    with pytest.raises(UsageError, match="there is no law 'X1'"):
        check(known, laws=["X1"])


# a stranger's package


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its package is installed, as far as Python can tell."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "stranger"))


@pytest.mark.usefixtures("stranger")
def test_a_strangers_package_passes() -> None:
    tables = (registry.METHODS, registry.ATTACKS, registry.DATASETS, registry.MODELS, registry.CLASSIFIERS)
    assert all([name for name in table.plugins() if name.startswith("stranger")] for table in tables)
    found = check_attack("stranger-corner", cases_for("stranger-corner")[::4])
    assert {law for law, outcome in found.items() if outcome != "obeyed"} == {"I7"}
    all_obeyed(check_method("stranger-smooth"), method.LAWS)
    all_obeyed(check_dataset("stranger-stripes", NOWHERE), dataset.LAWS)
    all_obeyed(check_model("stranger-net"), model.LAWS)
    all_obeyed(check_model("stranger-classifier"), model.LAWS)


@pytest.mark.usefixtures("stranger")
def test_a_strangers_names_work_everywhere(tmp_path: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    changes = [
        "model=stranger-net",
        "stage.0.method=stranger-smooth",
        "stage.0.epochs=4",
        "stage.0.batch=20",
        "validation=100",
    ]
    settings = [part for change in changes for part in ("--set", change)]
    code, _, err = run_cli(
        "train", "standard-digits", "--dataset", "stranger-stripes", *settings, "--out", "checkpoints/a"
    )
    assert code == 0, err
    code, _, err = run_cli("evaluate", "--attack", "stranger-corner@tries=3", "--threat", "linf-0.2", "--count", 40)
    assert code == 0, err
    clean = re.search(r"clean ([\d.]+) %", err)
    assert clean
    assert float(clean[1]) > 40  # of four classes
    for kind in ("attacks", "methods", "datasets", "models", "classifiers"):
        assert "stranger" in run_cli("list", kind)[1]
    assert "plug-in classifier stranger-classifier" in run_cli("doctor")[1]
    shutil.rmtree(tmp_path / "results")


# the command


def test_the_command_tells_each_law(run_cli: Cli) -> None:
    code, out, err = run_cli("check", "model", "test_conformance:double@wrong=softmax", "--shape", "3x4x4")
    assert code == 1
    rows = {line.split()[0]: line.split()[1] for line in out.splitlines()[1:]}
    assert rows == {law: "broken:" if law == "N6" else "obeyed" for law in model.LAWS}
    assert err == "1 of 7 laws broken by model test_conformance:double@wrong=softmax\n"
    code, out, _ = run_cli("check", "attack", "fgsm", "--law", "I1", "--law", "I7")
    assert code == 0
    assert "exempt: one step does not reach every corner of the box" in out
    assert run_cli("check", "dataset", "digits", "--law", "D1")[0] == 0
    assert run_cli("check", "method", "standard", "--law", "M1")[0] == 0


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("check atack pgd", "Did you mean 'attack'"),
        ("check attack pgdd", "Did you mean 'pgd'"),
        ("check model resnet18 --shape 3x32", "expected CHANNELSxHEIGHTxWIDTH"),
        ("check method standard --law I1", "there is no law 'I1'"),
        ("check dataset digitz", "Did you mean 'digits'"),
    ],
)
def test_a_mistake_is_one_line(line: str, hint: str, run_cli: Cli) -> None:
    code, out, err = run_cli(*line.split())
    assert (code, out) == (2, "")
    assert hint in err
    assert len(err.splitlines()) == 1
