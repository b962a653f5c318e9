"""Classifiers from elsewhere: every way in, what is said of them, and the same engine behind."""

import importlib
import json
import linecache
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from robench import data, fitting
from robench.attacks import attack_for
from robench.checkup import checkup
from robench.data import Images, Split
from robench.errors import CheckpointError, UsageError
from robench.foreign import digest_of, foreign, open_foreign
from robench.preprocess import KNOWN, layer, statistics, usual
from robench.registry import ATTACKS
from robench.results import Result, Store
from robench.threat import ThreatModel
from robench.verdict import evaluate

Cli = Callable[..., tuple[int, str, str]]

SCRIPT = '''
"""A small classifier of digits, as a user has it."""

import torch
from torch import nn


class Small(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU())
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.body(x))


def make_model(width=32):
    return Small(width)
'''


def colours(split: Split, root: Path) -> Images:
    """Random 3x32x32 images of ten classes: `test_foreign:colours`."""
    dice = torch.Generator().manual_seed(int(split is Split.TEST))
    pixels = torch.randint(0, 256, (24, 3, 32, 32), generator=dice, dtype=torch.uint8)
    return Images("colours", split, pixels, torch.arange(24) % 10, 10)


@pytest.fixture(scope="module")
def digits() -> Images:
    return data.load("digits", Split.TEST, Path("data"))


@pytest.fixture(scope="module")
def trained_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a script and the weights that belong to it, trained on normalised digits."""
    folder = tmp_path_factory.mktemp("script")
    (folder / "my.py").write_text(SCRIPT)
    space: dict[str, Any] = {"__name__": "a_script"}
    exec(SCRIPT, space)
    torch.manual_seed(0)
    model, train = space["make_model"](), data.load("digits", Split.TRAIN, Path("data"))
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model((train.x() - 0.5) / 0.5), train.y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, folder / "w.pt")
    (folder / "w.safetensors").write_bytes(save_tensors(model.state_dict()))
    return folder


@pytest.fixture
def here(trained_script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for file in trained_script.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def only(results: Path) -> Result:
    (record,) = Store(results).records()
    assert isinstance(record, Result)
    return record


# end to end


@pytest.mark.parametrize("stored", ["w.pt", "w.safetensors"])
def test_a_script_is_evaluated_as_its_own_code_would_answer(
    stored: str, here: Path, run_cli: Cli, digits: Images
) -> None:
    line = f"evaluate --model my.py:make_model --weights {stored} --preprocess 0.5,0.5 --dataset digits --attack pgd-5"
    code, out, err = run_cli(*line.split(), "--count", 60)
    assert (code, out) == (0, ""), err
    assert ("names of weights start with 'module.': stripped" in err) == (stored == "w.pt")
    assert "Add --preprocess" not in err
    record = only(here / "results")
    assert record.subject.group == "outside"
    assert record.subject.origin == {
        "model": "my.py:make_model",
        "weights": stored,
        "weights_sha256": record.subject.origin["weights_sha256"],
        "preprocess": "0.5,0.5",
    }
    space: dict[str, Any] = {"__name__": "a_script"}
    exec(SCRIPT, space)
    model = space["make_model"]()
    model.load_state_dict(load_tensors((here / "w.safetensors").read_bytes()))
    part = digits.take(slice(60))
    expected = model((part.x() - 0.5) / 0.5).argmax(1) == part.y
    assert record.clean == tuple(expected.tolist())
    assert sum(record.clean) > 40
    found, _ = evaluate(
        lambda x: model((x - 0.5) / 0.5), attack_for("pgd-5", record.cell.threat), part.x(), part.y, classes=10
    )
    assert record.robust == tuple(found.robust.tolist())
    assert 0 < sum(record.robust) < sum(record.clean)
    code, _, err = run_cli(*line.split(), "--count", 60)
    assert code == 0
    assert "0 new, 1 already" in err
    code, out, _ = run_cli("show", record.cell.key)
    assert code == 0
    assert f"from outside (model my.py:make_model, preprocess 0.5,0.5, weights {stored}" in out
    again = shlex.split(out.partition("to repeat it")[2])[1:]
    assert run_cli(*again)[0] == 0
    assert only(here / "again").robust == record.robust
    code, _, err = run_cli("show", record.cell.key, "--images", 2, "--out", "x.png")
    assert code == 0, err
    assert "all of them are broken again" in err
    (here / "my.py").write_text(SCRIPT + "\n# changed\n")
    code, _, err = run_cli("show", record.cell.key, "--images", 2, "--out", "x.png")
    assert code == 2
    assert "my.py:make_model is not what it was" in err
    code, out, _ = run_cli("report", "--format", "markdown")
    assert code == 0
    assert "my.py:make_model (w, 0.5,0.5)" in out
    assert "*outside*" in out


@pytest.mark.parametrize("spec", ["timm:resnet10t", "torchvision:squeezenet1_1"])
def test_models_of_packages_are_evaluated(spec: str, here: Path, run_cli: Cli) -> None:
    if spec.startswith("timm"):
        pytest.importorskip("timm", reason="needs timm: pip install 'robench[timm]'")
    line = f"evaluate --model {spec} --preprocess imagenet --dataset test_foreign:colours --attack pgd-2"
    code, _, err = run_cli(*line.split(), "--threat", "linf-8/255", "--count", 8)
    assert code == 0, err
    record = only(here / "results")
    assert (record.subject.name, record.subject.recipe, len(record.clean)) == (f"{spec} (imagenet)", spec, 8)
    code, _, err = run_cli(*line.split(), "--threat", "linf-8/255", "--count", 8)
    assert code == 0
    assert "0 new, 1 already" in err  # random weights are the same each time


def test_a_model_beside_checkpoints(here: Path, trained: Path, run_cli: Cli) -> None:
    line = "evaluate pgd-at-digits --model my.py:make_model --weights w.pt --dataset digits --attack pgd-3 --count 12"
    code, _, err = run_cli(*line.split(), "--checkpoints", trained, "--source", "all")
    assert code == 0, err
    names = {(r.subject.name, r.source.name if r.source else "") for r in Store(here / "results").records()}
    assert names == {("pgd-at-digits", "my.py:make_model (w)"), ("my.py:make_model (w)", "pgd-at-digits")}
    code, out, _ = run_cli("report", "--table", "transfer")
    assert code == 0
    assert "Black-box transfer" in out


def test_a_model_can_be_diagnosed(here: Path, run_cli: Cli) -> None:
    line = "diagnose --model my.py:make_model --weights w.pt --preprocess half --dataset digits --count 4 --threat linf-0.1"
    code, out, err = run_cli(*line.split())
    assert code in (0, 1), err
    assert "G13" in out


def traced(folder: Path) -> Path:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.normal_(model[1].weight, generator=torch.Generator().manual_seed(0))
    path = folder / "m.ts"
    with pytest.warns((FutureWarning, DeprecationWarning)):
        torch.jit.save(torch.jit.trace(model.eval(), torch.rand(2, 1, 8, 8)), str(path))
    return path


def test_torchscript_is_a_black_box(here: Path, trained: Path, run_cli: Cli) -> None:
    traced(here)
    line = "evaluate --model torchscript:m.ts --dataset digits --count 12 --threat linf-0.2 --attack"
    code, _, err = run_cli(*line.split(), "pgd-20")
    assert code == 2
    assert err.splitlines()[-1] == (
        "error: torchscript:m.ts is a black box and pgd-20 climbs its gradients: attack it by queries (square, hopskipjump, "
        "random-noise, gaussian-noise) or by transfer (--source CHECKPOINT)"
    )
    code, _, err = run_cli(*line.split(), "square@queries=20")
    assert code == 0, err
    code, _, err = run_cli(*line.split(), "pgd-3", "--checkpoints", trained, "--source", "pgd-at-digits")
    assert code == 0, err
    code, _, err = run_cli(*line.split(), "pgd-3", "pgd-at-digits", "--checkpoints", trained, "--source", "all")
    assert code == 2  # a black box cannot be climbed as a source either
    assert "is a black box" in err


@pytest.mark.parametrize("fixed", [False, True])
def test_onnx_answers_as_the_network_it_holds(fixed: bool, tmp_path: Path, digits: Images) -> None:
    onnx = pytest.importorskip("onnx", reason="needs onnx, to write a file")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'robench[onnx]'")
    weight = torch.randn(10, 64, generator=torch.Generator().manual_seed(0))
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w"], ["y"], transB=1)],
        "g",
        [helper.make_tensor_value_info("x", kind, [5 if fixed else "n", 1, 8, 8])],
        [helper.make_tensor_value_info("y", kind, [5 if fixed else "n", 10])],
        [helper.make_tensor("w", kind, [10, 64], weight.flatten().tolist())],
    )
    path = tmp_path / "m.onnx"
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    made.ir_version = 8
    onnx.save(made, str(path))
    found = open_foreign(f"onnx:{path}", digits)
    assert found.black_box
    assert found.classes == 10
    x = digits.x(slice(12))
    torch.testing.assert_close(found.load()(x), x.flatten(1) @ weight.T)


def test_robustbench_is_asked_by_its_own_words(monkeypatch: pytest.MonkeyPatch, digits: Images) -> None:
    asked: dict[str, str] = {}

    def load_model(**options: str) -> nn.Module:
        asked.update(options)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    fake = ModuleType("robustbench")
    fake.utils = SimpleNamespace(load_model=load_model)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "robustbench", fake)
    open_foreign("robustbench:Standard@threat_model=L2", digits)
    assert asked == {"model_name": "Standard", "dataset": "cifar10", "threat_model": "L2", "model_dir": "models"}


def test_a_package_that_is_broken_is_not_called_absent(
    tmp_path: Path, digits: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "robustbench").mkdir()
    (tmp_path / "robustbench" / "__init__.py").write_text("import pkg_resources_of_long_ago\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith("robustbench")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UsageError) as caught:
        open_foreign("robustbench:Standard", digits)
    assert str(caught.value) == (
        "'robustbench:Standard' comes with robustbench, which is installed and cannot be imported (No module named "
        "'pkg_resources_of_long_ago'): pip install --upgrade 'robench[robustbench]'"
    )
    assert "autoattack" not in sys.modules


def test_what_robustbench_fetched_is_looked_at(tmp_path: Path, digits: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "models" / "cifar10" / "Linf"

    def load_model(**options: str) -> nn.Module:
        kept.mkdir(parents=True)
        (kept / "Standard.pt").write_text("<!doctype html>")  # what a refused download is
        raise ValueError("invalid load key, '<'.")

    fake = ModuleType("robustbench")
    utils = {"load_model": load_model, "BenchmarkDataset": str, "ThreatModel": str}
    fake.utils = SimpleNamespace(**utils, all_models={"cifar10": {"Linf": {"Standard": 1}}})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "robustbench", fake)
    with pytest.raises(UsageError) as asked:
        open_foreign("robustbench:Standrad", digits)
    assert str(asked.value) == (
        "robustbench knows no cifar10 model 'Standrad' for Linf. Did you mean 'Standard'? (1 known)"
    )
    with pytest.raises(CheckpointError) as caught:
        open_foreign(f"robustbench:Standard@model_dir={tmp_path}/models", digits)
    assert str(caught.value) == (
        "Standard.pt is a web page, not weights (starts with '<!doctype'): the download was refused or limited. Delete it and "
        "fetch it again"
    )


# what it is, in the record


def test_the_digest_follows_what_decides_the_answers(digits: Images, here: Path) -> None:
    def digest(**changes: Any) -> str:
        return open_foreign("my.py:make_model", digits, **changes).sha256

    first = digest()
    assert first == digest(name="another")
    assert len({first, digest(preprocess="half"), digest(stored=here / "w.pt")}) == 3
    assert digest(stored=here / "w.pt") == digest(stored=here / "w.safetensors")
    (here / "my.py").write_text(SCRIPT.replace("self.head(self.body(x))", "-self.head(self.body(x))"))
    assert digest() != first


def test_a_script_may_import_what_lies_beside_it(
    tmp_path: Path, digits: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "nets_beside_a_script.py").write_text(SCRIPT)
    (tmp_path / "main.py").write_text("from nets_beside_a_script import make_model\n")
    before = open_foreign(f"{tmp_path}/main.py:make_model", digits).sha256
    del sys.modules["nets_beside_a_script"]
    (tmp_path / "nets_beside_a_script.py").write_text(
        SCRIPT.replace("self.head(self.body(x))", "-self.head(self.body(x))")
    )
    importlib.invalidate_caches()
    linecache.clearcache()
    assert open_foreign(f"{tmp_path}/main.py:make_model", digits).sha256 != before


def test_a_module_changed_in_one_number_is_another() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    before = digest_of(model)
    assert before == digest_of(model)
    with torch.no_grad():
        model[1].bias[0] += 1e-6
    assert digest_of(model) != before


def test_a_function_is_known_by_its_code(digits: Images) -> None:
    one = foreign(lambda x: x.flatten(1)[:, :10], digits, name="one")
    two = foreign(lambda x: x.flatten(1)[:, 10:20], digits, name="two")
    assert one.sha256 != two.sha256
    assert one.classes == two.classes == 10


# what weights say when they do not fit; word for word


def stand(network: nn.Module, stored: Path, what: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        fitting.fit(network, fitting.read(stored), what)
    return str(caught.value)


def test_a_web_page(tmp_path: Path) -> None:
    path = tmp_path / "standard.pt"
    for start in ("<html><body>quota</body>", "\n <HTML>"):
        path.write_text(start)
        with pytest.raises(CheckpointError) as caught:
            fitting.read(path)
        assert str(caught.value) == (
            f"standard.pt is a web page, not weights (starts with '{start.strip()[:5]}'): the download was refused or limited. "
            "Delete it and fetch it again"
        )


def test_a_pickle_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(Trap(tmp_path / "sprung"), path)
    with pytest.raises(CheckpointError) as caught:
        fitting.read(path)
    assert str(caught.value) == (
        f"{path} needs full pickle, which can run code: it would run __builtin__.getattr when it is opened, so it was not; "
        "weights hold tensors only. Save the state_dict, best as safetensors"
    )
    assert not (tmp_path / "sprung").exists()
    torch.save(nn.Linear(2, 2), path)  # what people save most often
    with pytest.raises(CheckpointError, match=r"would run torch\.nn\.modules\.linear\.Linear when it is opened"):
        fitting.read(path)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("content", [b"", b"\x80\x02garbage", b"PK\x03\x04broken", b"plain text"])
def test_rubbish_is_called_no_weights(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"w\.pt (is empty|is a bare pickle|cannot be opened|is not a safetensors file)"
    ):
        fitting.read(tmp_path / "w.pt")


def test_weights_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file or directory; name the file of the weights"):
        fitting.read(tmp_path / "absent.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match=r"list\.pt holds no tensors by name"):
        fitting.read(tmp_path / "list.pt")
    path = traced(tmp_path)
    with pytest.raises(CheckpointError, match=r"m\.ts is TorchScript, a whole model: --model torchscript:m\.ts"):
        fitting.read(path)


def test_another_number_of_classes(tmp_path: Path) -> None:
    from torchvision import models

    torch.save({f"module.{k}": v for k, v in models.resnet18(num_classes=100).state_dict().items()}, tmp_path / "w.pt")
    assert stand(models.resnet18(num_classes=10), tmp_path / "w.pt", "torchvision:resnet18") == (
        "these weights do not fit torchvision:resnet18: 2 of 122 tensors differ. First: fc.weight is (100, 512), the model has "
        "(10, 512): 100 classes? pass torchvision:resnet18@num_classes=100. Keys start with 'module.': stripped automatically"
    )


def test_another_architecture(tmp_path: Path) -> None:
    from torchvision import models

    torch.save(models.resnet34(num_classes=10).state_dict(), tmp_path / "w.pt")
    assert stand(models.resnet18(num_classes=10), tmp_path / "w.pt", "torchvision:resnet18") == (
        "these weights do not fit torchvision:resnet18: 96 of 218 tensors differ. First: layer1.2.conv1.weight is "
        "(64, 64, 3, 3), the model has none. They look like torchvision:resnet34"
    )


def test_ours_are_recognised() -> None:
    from robench.models.resnet import preact_resnet18

    assert fitting.nearest_architecture(preact_resnet18(3).state_dict()) == "preact-resnet18"
    assert fitting.nearest_architecture({"w": torch.zeros(3, 5)}) == ""


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    network = nn.Linear(2, 2)
    stored = {**network.state_dict(), "bias": torch.tensor([1.0, torch.nan])}
    with pytest.raises(CheckpointError, match=r"NaN or infinite numbers \(first in bias\)"):
        fitting.fit(network, stored, "mine")


def test_weights_are_all_put_in() -> None:
    one, other = (nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)) for _ in range(2))
    stored = {f"module.model.{k}": v.half() for k, v in one.state_dict().items() if not k.endswith("tracked")}
    assert fitting.fit(other, stored, "mine") == "module.model."
    for key, tensor in one.state_dict().items():
        if key.endswith(("weight", "bias")):
            torch.testing.assert_close(other.state_dict()[key], tensor.half().float())


# normalisation


@given(st.sampled_from(sorted(KNOWN)), st.integers(0, 9))
def test_the_layer_normalises(name: str, seed: int) -> None:
    channels = len(KNOWN[name][0])
    mean, std = KNOWN[name]
    x = torch.rand(3, channels, 4, 4, generator=torch.Generator().manual_seed(seed))
    slow = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(channels)], 1)
    torch.testing.assert_close(layer(name, channels)(x), slow)


def test_preprocess_is_read() -> None:
    assert statistics("0.5,0.25", 3) == ((0.5,) * 3, (0.25,) * 3)
    assert statistics("0.1,0.2,0.3,1,2,3", 3) == ((0.1, 0.2, 0.3), (1, 2, 3))
    assert usual("cifar10-c:fog@severity=3", 3)[0] == "cifar10"
    assert usual("digits", 1) == ["half"]
    for text, words in (
        ("cifar01", "Did you mean 'cifar10'?"),
        ("0.5", "as many deviations above 0 as means"),
        ("0.5,0", "as many deviations above 0 as means"),
        ("0.5,nan", "as many deviations above 0 as means"),
        ("0.1,0.2,1,2", "for images of 2 channels; these have 3"),
        ("mnist,", "expected cifar10"),
    ):
        with pytest.raises(UsageError, match=words.replace("?", r"\?")):
            statistics(text, 3)


# a look before anything expensive; word for word


class Expects(nn.Module):
    """Right on the first `bare` images as they are, and on the first `normalised` ones normalised as CIFAR-10 is."""

    def __init__(self, bare: int, normalised: int) -> None:
        super().__init__()
        self.bare, self.normalised = bare, normalised

    def forward(self, x: Tensor) -> Tensor:
        mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in KNOWN["cifar10"])
        raw = x.flatten(1).amin(1) >= 0
        marks = torch.where(raw[:, None], x[:, 0].flatten(1), (x * std + mean)[:, 0].flatten(1))
        y, number = (marks[:, 0] * 255).round().long() // 20 % 10, (marks[:, 1] * 255).round()
        right = number < torch.where(raw, self.bare, self.normalised)
        return nn.functional.one_hot(torch.where(right, y, (y + 1) % 10), 10).float() * 5 + x.flatten(1)[:, :10]


def marked() -> Images:
    """256 images whose first pixels are their label and their number."""
    pixels = torch.zeros(256, 3, 4, 4, dtype=torch.uint8)
    y = torch.arange(256) % 10
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = (20 * y + 5).to(torch.uint8), torch.arange(256).to(torch.uint8)
    return Images("cifar10", Split.TEST, pixels, y, 10)


def looked(model: Any, images: Images | None = None, **options: Any) -> list[str]:
    images = images or marked()
    return checkup(foreign(model, images, name="mine", **options), images)


def test_missing_normalisation_is_noticed() -> None:
    model = Expects(49, 241)
    assert looked(model) == [
        "clean accuracy is 19 % here; with the usual cifar10 mean/std it is 94 %. Add --preprocess cifar10?"
    ]
    assert looked(model, preprocess="cifar10") == []


def test_normalising_twice_is_noticed() -> None:
    assert looked(Expects(241, 49), preprocess="cifar10") == [
        "clean accuracy is 19 % with --preprocess cifar10; without it is 94 %. Leave --preprocess away?"
    ]
    assert looked(Expects(241, 49)) == []


def test_chance_is_noticed() -> None:
    (said,) = looked(lambda x: (torch.eye(10)[3] * 5 - torch.arange(1, 11) / 10) * (1 + x[:, 0, 0, 1:2]))
    assert said == (
        "clean accuracy is 10 % on 256 images, near chance: are these the right weights, data set and order of classes?"
    )


def test_probabilities_are_noticed() -> None:
    said = looked(lambda x: Expects(256, 256)(x).softmax(1))
    assert said == [
        "outputs are non-negative and sum to 1: softmax inside the model. Attacks need logits; return what goes into the softmax"
    ]


def test_randomness_is_noticed() -> None:
    said = looked(lambda x: Expects(256, 256)(x) + torch.randn(len(x), 10))
    assert said == [
        "two passes differ: a randomised defence. Use --attack eot-pgd or --attack autoattack-rand; other attacks overstate "
        "its robustness"
    ]


class Stubborn(nn.Module):
    """Normalises by the batch, whatever mode it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(10, affine=False, track_running_stats=False)
        self.body = Expects(256, 256)

    def train(self, mode: bool = True) -> "Stubborn":
        super().train(mode)
        self.norm.training = True
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.body(x))


def test_dependence_on_the_batch_is_noticed() -> None:
    assert looked(Stubborn())[:2] == [
        "body.norm stays in train mode after eval(): results may depend on the batch",
        "the same image gives different logits alone and in a batch: BatchNorm in train mode? robench set eval(); it still "
        "differs, so results depend on the batch",
    ]


def test_a_zero_gradient_is_noticed() -> None:
    (said,) = looked(lambda x: Expects(256, 256)(x).detach())
    assert "the model has no gradient" in said


def test_other_classes_are_an_error(digits: Images) -> None:
    with pytest.raises(CheckpointError) as caught:
        looked(lambda x: x.flatten(1)[:, :7], digits)
    assert str(caught.value) == (
        "mine has 7 logits and digits has 10 classes: name the data set it was trained on (--dataset), or build it with as "
        "many classes"
    )


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Conv2d(3, 10, 3), "mine does not take images 1x8x8 of digits: RuntimeError"),
        (nn.Conv2d(1, 10, 3), r"mine returned \(2, 10, 6, 6\) for 2 images; expected logits \(2, classes\)"),
        (lambda x: "cat", "mine returned str for 2 images"),
    ],
)
def test_what_gives_no_logits(model: Any, words: str, digits: Images) -> None:
    with pytest.raises(CheckpointError, match=words):
        foreign(model, digits, name="mine")


# what is typed wrong


@pytest.mark.parametrize(
    ("package", "spec", "message"),
    [
        (
            "timm",
            "timm:resnet18",
            "'timm:resnet18' comes with timm, which is not installed: pip install 'robench[timm]'",
        ),
        (
            "huggingface_hub",
            "hf:owner/name",
            "'hf:owner/name' comes with huggingface_hub, which is not installed: pip install 'robench[hub]'",
        ),
        (
            "robustbench",
            "robustbench:Standard",
            "'robustbench:Standard' comes with robustbench, which is not installed: pip install 'robench[robustbench]'",
        ),
        (
            "onnxruntime",
            "onnx:my.py",
            "'onnx:my.py' comes with onnxruntime, which is not installed: pip install 'robench[onnx]'",
        ),
    ],
)
def test_an_extra_that_is_not_installed(
    package: str, spec: str, message: str, here: Path, digits: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError) as caught:
        open_foreign(spec, digits)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("--model absent.py:make", "there is no file"),
        ("--model my.py:mak_model", "'mak_model', which is not in my.py. Did you mean 'make_model'?"),
        ("--model my.py:make_model@depth=3", "cannot be made: TypeError"),
        ("--model my.py:torch", "is a module; expected a function that returns a module"),
        ("--model torchvision:resnet81", "Did you mean 'resnet18'?"),
        ("--model torchscript:absent.ts", "there is no file absent.ts"),
        ("--model torchscript:my.py", "my.py is not TorchScript"),
        ("--model resnet18", "unknown classifier 'resnet18'"),
        ("--model timm:", "write timm:NAME"),
        ("--weights w.pt", "--weights goes with --model"),
        ("--trained-against linf-0.1", "--trained-against goes with --model"),
        ("--model my.py:make_model --weights absent.pt", "name the file of the weights"),
        ("--model my.py:make_model --weights my.py", "my.py"),
        ("--model my.py:make_model@width=16 --weights w.pt", "do not fit my.py:make_model: 3 of 4 tensors differ"),
        ("--model my.py:make_model --preprocess cifar10", "is for images of 3 channels; these have 1"),
        ("--model my.py:make_model --fail-under pgd=3", "'pgd' is not run here; use fgsm, clean"),
        ("--model my.py:make_model --fail-under fgsm", "expected ATTACK=PERCENT"),
        ("--model my.py:make_model --fail-under fgsm=101", "expected ATTACK=PERCENT"),
    ],
)
def test_a_mistake_is_one_line(line: str, hint: str, here: Path, run_cli: Cli) -> None:
    code, out, err = run_cli("evaluate", "--dataset", "digits", "--attack", "fgsm", "--count", 8, *line.split())
    assert (code, out) == (2, "")
    assert hint in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("error: ")
    assert not (here / "results" / "cells").exists()


def test_threats_of_training_are_told(here: Path, run_cli: Cli) -> None:
    line = "evaluate --model my.py:make_model --weights w.pt --dataset digits --attack fgsm --count 8 --name mine"
    code, _, err = run_cli(*line.split(), "--trained-against", "linf-0.1")
    assert code == 0, err
    record = only(here / "results")
    assert record.subject.threat == record.cell.threat == ThreatModel.parse("linf-0.1")
    assert record.subject.name == "mine"


@pytest.mark.parametrize(
    ("given", "meant"), [("aa", "autoattack"), ("carlini", "cw"), ("HSJ", "hopskipjump"), ("autoatack", "autoattack")]
)
def test_what_people_call_an_attack_is_recognised(given: str, meant: str, here: Path, run_cli: Cli) -> None:
    code, _, err = run_cli("evaluate", "--attack", given)
    assert code == 2
    assert err.splitlines()[-1] == (
        f"error: unknown attack {given!r}. Did you mean {meant!r}? ({len(ATTACKS.names())} known: robench list attacks)"
    )


def test_a_web_page_in_place_of_a_checkpoints_weights_names_its_digest(
    tmp_path: Path, trained: Path, run_cli: Cli
) -> None:
    shutil.copytree(trained / "standard-digits", tmp_path / "run")
    (tmp_path / "run" / "best.safetensors").write_text("<html>quota</html>")
    expected = json.loads((tmp_path / "run" / "best.json").read_text())["sha256"]
    code, _, err = run_cli("evaluate", tmp_path / "run", "--attack", "fgsm", "--count", 8, "--results", tmp_path / "r")
    assert code in (1, 2)
    assert (
        "best.safetensors is a web page, not weights (starts with '<html'): the download was refused or limited. Delete it and "
        f"fetch it again; expected SHA-256 {expected}"
    ) in " ".join(err.split())
