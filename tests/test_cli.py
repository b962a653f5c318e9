"""The command line: errors are one line that helps, the three commands meet, and exit codes are kept."""

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import save as save_tensors
from test_results import CELL, result
from torch import Tensor
from torchvision import datasets

from robench import __version__, exhibits, recipe, training
from robench.cli.telling import SUSPECT
from robench.errors import DiskFullError, UsageError
from robench.protocols import Classifier
from robench.results import Store
from robench.spec import digest
from robench.terminal import folded
from robench.threat import ThreatModel

Cli = Callable[..., tuple[int, str, str]]

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device that the test wants absent")
SMALL = ("--set", "model=cnn@width=2", "--set", "validation=1200", "--set", "stage.0.epochs=1")


@dataclass(frozen=True)
class Broken:
    """An attack that stops with a message made to confuse: `test_cli:Broken`."""

    threat: ThreatModel

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        raise ValueError("first line\nsecond line \x1b[31mred")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, so that default folders are there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROBENCH_DATA", raising=False)
    return tmp_path


@pytest.fixture
def checkpoints(here: Path, trained: Path) -> Path:
    """A copy of the trained checkpoints where commands look for them."""
    shutil.copytree(trained, here / "checkpoints")
    return here / "checkpoints"


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def refused(run: tuple[int, str, str], hint: str) -> None:
    """Exit code 2, and one line on stderr that helps."""
    code, out, err = run
    assert code == 2, err
    assert out == ""
    assert re.fullmatch(r"error: [^\n]+\n", err), err
    assert hint in err
    assert "Traceback" not in err


# what is typed wrong


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("train rokl", "Did you mean 'rocl"),
        ("train standart-digits", "Did you mean 'standard-digits'"),
        ("train absent.toml", "there is no recipe file absent.toml"),
        ("train", "RECIPE"),
        ("train standard-digits --dataset digitz", "Did you mean 'digits'"),
        ("train standard-digits --model resnet81", "Did you mean 'resnet18'"),
        (
            "train standard-digits --set stage.0.optimizer.lr=1",
            "stage.0.optimizer: unknown key; did you mean 'optimiser'",
        ),
        ("train standard-digits --set stage.0.epochs=many", "stage.0.epochs: expected int"),
        ("train standard-digits --set nonsense", "expected KEY=VALUE"),
        ("train standard-digits --set stage.3.epochs=1", "there is no item '3'"),
        ("train standard-digits --set threat=linf-8", "did you mean linf-8/255?"),
        ("train standard-digits --seed -1", "-1"),
        ("train standard-digits --encoder nowhere", "no checkpoint 'nowhere'"),
        ("train standard-digits --device gpu", "is not one of auto, cpu, cuda, mps"),
        ("train standard-digits --epochs 3", "--epochs"),
        ("train standard-digits --resize 0", "--resize"),
        ("train standard-digits --resize big", "--resize"),
        ("train standard-digits --set labels=0", "labels must be a share above 0 and up to 1"),
        ("train standard-digits --set labels=1.5", "labels must be a share above 0 and up to 1"),
        ("evaluate --attack autoatack", "Did you mean 'autoattack'"),
        ("evaluate --attack pgd-2o", "Did you mean 'pgd-20'"),
        ("evaluate --attack pgd-20 --threat linf-8", "did you mean linf-8/255?"),
        ("evaluate --attack pgd-20 --threat linf--1", "at least 0"),
        ("evaluate --attack pgd-20 --threat linf-nan", "finite number"),
        ("evaluate --attack pgd-20 --threat linf-inf", "finite number"),
        ("evaluate --attack pgd-20 --threat linf-8/0", "a fraction such as 8/255"),
        ("evaluate --attack pgd-20 --threat linf", "has no radius"),
        ("evaluate --attack pgd-20 --threat l3-1", "unknown norm 'l3'"),
        ("evaluate --attack pgd-20 --batch 0", "0"),
        ("evaluate --attack pgd-20 --count many", "many"),
        ("evaluate --attack pgd-20", "no checkpoints"),
        ("evaluate", "--attack"),
        ("evaluate nowhere --attack pgd-20", "no checkpoint 'nowhere'"),
        ("report", "no results in results"),
        ("report --format pdf", "terminal, markdown, csv"),
        ("report --format markdwon", "Did you mean 'markdown'"),
        ("report --table whitebox", "Did you mean 'white-box'"),
        ("report --colour", "--colour"),
        ("list atacks", "Did you mean 'attacks'"),
        ("list results", "no results in results"),
        ("list", "methods"),
        ("list attacks --results nowhere", "--results is for robench list results"),
        ("evaluate nowhere", "nothing to do: name an --attack"),
        ("evaluate nowhere", "and there is no checkpoint 'nowhere'"),
        ("evaluate --attack pgd@", "pgd@: expected pgd@KEY=VALUE,KEY=VALUE, and '' is no KEY=VALUE"),
        ("evaluate --attack pgd@steps", "and 'steps' is no KEY=VALUE"),
        ("evaluate --attack pgd@steps=3,steps=4", "steps is given twice"),
        ("evaluate --attack @steps=3", "attack '@steps=3' has no name: robench list attacks"),
        ("evaluate --attack mine.py:", "attack 'mine.py:' is a file: name what stands in it, mine.py:NAME"),
        ("evaluate --attack fgsm --inference tsi@", "expected --inference tsi@KEY=VALUE"),
        ("evaluate --attack fgsm --inference tsi@area", "and 'area' is no KEY=VALUE"),
        ("evaluate --attack fgsm --inference tsi@area=9", "--inference tsi: area must be between"),
        (
            "evaluate --attack fgsm --fail-under fgsm=101",
            "101 is no percentage from 0 to 100; expected",
        ),
        ("evaluate --attack fgsm --fail-under fgsm=x", "x is no percentage"),
        ("evaluate --attack fgsm --fail-under fgsm=nan", "nan is no percentage"),
        ("evaluate --attack fgsm --fail-under fgsm", "expected ATTACK=PERCENT, such as autoattack=45"),
        ("evaluate --attack fgsm --fail-under fgsn=9", "'fgsn' is not run here; use fgsm, clean. Did you mean 'fgsm'?"),
        ("evaluate --attack fgsm --minutes 5", "--minutes goes with --launcher slurm"),
        ("evaluate --attack fgsm --launcher local --minutes 5", "--minutes goes with --launcher slurm"),
        ("evaluate --attack fgsm --jobs 5", "--jobs goes with --launcher slurm or --launcher local"),
        ("evaluate --attack fgsm --model mine.py", "classifier 'mine.py' is a file: name what stands in it"),
        ("evaluate --attack fgsm --model mine.py", "mine.py:NAME, and it is not there"),
        (
            "evaluate --attack fgsm --model timm:resnet18 --weights w.pt",
            "there is no file w.pt; name the file of the weights",
        ),
        ("sweep nowhere", "unknown recipe 'nowhere'"),
        ("train weights.pt", "weights.pt is a file of weights: robench evaluate --model my.py:make_model --weights"),
        ("check attack fgsm --shape 3x4x4", "--shape is for robench check model, and this is robench check attack"),
        ("check dataset digits --classes 3", "--classes is for robench check model"),
        ("check method standard --data .", "--data is for robench check dataset"),
        ("check model timm:nowhere", "timm knows no model 'nowhere'"),
        ("check model torchvision:resnet18 --shape 1x8x8", "in place of 1x8x8: --shape 3x224x224"),
        ("check dataset folder:nowhere", "nowhere holds no class folders"),
        ("show results/nowhere", "there is no record results/nowhere: name a cell by its key"),
        ("show 014 --device cpu", "--device goes with --images N"),
        ("plot --kind curves --checkpoints . --out a.svg", "--checkpoints is for --kind training"),
        ("trian rocl", "No such command 'trian'. Did you mean 'train'? (robench --help)"),
        ("--versio", "No such option '--versio'. Did you mean '--version'? (robench --help)"),
        ("evaluate --atack fgsm", "No such option '--atack'. Did you mean '--attack'? (robench evaluate --help)"),
        ("check attack fgsm --law", "Option '--law' requires an argument. (robench check --help)"),
        ("evaluate --attack pgd-20,fgsm", "attack 'pgd-20,fgsm': name one at a time"),
        ("evaluate --attack fgsm --threat linf-0.1,l2-1", "name one threat at a time"),
        ("evaluate --attack fgsm --threads 99999", "99999 is not in the range 1<=x<=1024"),
        ("train rocl --set seed=3", "the seed belongs to the run and not to the recipe: --seed N"),
        ("train rocl --set stage=3", "stage: expected a list, not 3"),
        ("train rocl --set nothing=3", "nothing: unknown key (keys: name, dataset"),
        ("train rocl --set dataset=digits --dataset cifar10", "--dataset and --set dataset say the same thing twice"),
        (
            "train rocl --model timm:resnet18",
            "a recipe trains an encoder (robench list models); timm: names classifiers",
        ),
        ("train rocl --seed x", "'x' is not a number. (robench train --help)"),
        ("evaluate --attack fgsm --plan --track tensorboard", "so --track has nothing to say"),
        ("evaluate --attack fgsm --threat l0-3", "unknown norm 'l0' (norms: linf, l2, l1)"),
        ("evaluate --attack fgsm --inference tsi --average vote", "Did you mean 'votes'?"),
        ("report --format csv --intervals", "--intervals in CSV is for --table white-box or transfer"),
        ("report --format markdown --out a.html", "--out a.html has the ending of html, and --format is markdown"),
        ("compare a b --format csv --out a.json", "--out a.json has the ending of json, and --format is csv"),
        ("demo extra", "extra"),
    ],
)
def test_a_mistake_is_one_line_that_helps(line: str, hint: str, here: Path, run_cli: Cli) -> None:
    refused(run_cli(*line.split()), hint)
    assert files(here) == set()


@NO_GPU
@pytest.mark.parametrize("line", ["train standard-digits", "evaluate standard-digits --attack pgd-20", "demo"])
def test_a_device_that_is_not_there(line: str, checkpoints: Path, here: Path, run_cli: Cli) -> None:
    before = files(here)
    code, out, err = run_cli(*line.split(), "--device", "cuda", "--checkpoints", checkpoints)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: --device cuda: this machine has none")
    assert files(here) == before


@pytest.mark.parametrize(
    "line",
    [
        "report --table cost",
        "report --format html --out a.html",
        "verify",
        "plot --kind training --out a.svg",
        "show 014 --images 2 --out a.png",
        "evaluate standard-digits --attack fgsm",
        "diagnose standard-digits",
        "features standard-digits",
    ],
)
@pytest.mark.parametrize(
    ("folder", "why"), [("nowhere", "there is no such folder"), ("file", "is a file, not a folder")]
)
def test_a_folder_that_was_named_must_be_there(line: str, folder: str, why: str, here: Path, run_cli: Cli) -> None:
    (here / "file").touch()
    refused(run_cli(*line.split(), "--checkpoints", folder), f"--checkpoints {folder}: {why}")
    assert files(here) == {here / "file"}


@NO_GPU
def test_the_doctor_says_that_a_device_is_not_there(here: Path, run_cli: Cli) -> None:
    code, out, _ = run_cli("doctor", "--device", "cuda")
    assert code == 1
    assert re.search(r"^wrong +--device cuda +this machine has none that torch can use", out, re.MULTILINE)
    code, out, _ = run_cli("doctor", "--device", "cpu")
    assert re.search(r"^ok +--device cpu +torch computes on cpu", out, re.MULTILINE)


PAGE = b"\xef\xbb\xbf\n <!DOCTYPE html>\n<html>404</html>"


@pytest.fixture
def things(here: Path, trained: Path) -> Path:
    """Files and folders that people name in place of others."""
    for name in ("page.pt", "page.npz", "page.npy", "page.toml", "labels.npy", "page.txt"):
        (here / name).write_bytes(PAGE)
    (here / "empty.npz").touch()
    (here / "my.py").write_text(
        "import torch\n\n\ndef make_model():\n    return torch.nn.Flatten()\n\n\ndef stops():\n    raise ValueError('oh')\n"
    )
    (here / "ends.py").write_text("raise SystemExit(0)\n")
    (here / "syntax.py").write_text("def (:\n")
    numpy.savez(here / "objects.npz", x=numpy.array([{}]), y=numpy.array([0]))
    numpy.save(here / "one.npy", numpy.zeros((2, 8, 8), numpy.uint8))
    torch.save({"a": torch.zeros(1)}, here / "w.pt")
    shutil.copytree(trained / "pgd-at-digits", here / "checkpoints" / "pgd-at-digits")
    store = Store(here / "results")
    store.put(result())
    exhibits.put(exhibits.Labels("a" * 64, "digits", 2, "0 1 1"), here / "results")
    shutil.copy(store.path(CELL), here / "other.json")
    return here


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("a.md", "**White"),
        ("a.csv", "dataset,"),
        ("a.tex", "% needs"),
        ("a.json", "{"),
        ("a.html", "<!doctype html>"),
        ("a.txt", "White-box"),
    ],
)
def test_the_ending_of_a_file_says_its_format(name: str, begins: str, things: Path, run_cli: Cli) -> None:
    assert run_cli("report", "--out", name)[:2] == (0, "")
    assert (things / name).read_text().startswith(begins)


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("train w.pt", "w.pt is a file of weights: robench evaluate --model my.py:make_model --weights w.pt"),
        ("train checkpoints/pgd-at-digits", "is a training run: robench evaluate checkpoints/pgd-at-digits"),
        ("train checkpoints", "checkpoints is a folder; a recipe is a name (robench list recipes) or a TOML file"),
        ("train page.txt", "page.txt is a file of another kind; a recipe is a name"),
        ("train page.toml", "page.toml is a web page, not a recipe"),
        ("evaluate {} --dataset npz:page.npz", "page.npz is a web page, not images (starts with '<!DOCTYPE')"),
        ("evaluate {} --dataset npz:my.py", "my.py cannot be read as a file of numpy.savez: it is of another kind"),
        ("evaluate {} --dataset npz:empty.npz", "it is empty"),
        ("evaluate {} --dataset npz:objects.npz", "it holds Python objects, which may run code"),
        ("evaluate {} --dataset npz:one.npy", "it is one array, as numpy.save writes it; numpy.savez(FILE, x=images"),
        ("evaluate {} --dataset npz:nowhere.npz", "No such file or directory"),
        ("evaluate {} --dataset corruptions:page", "page.npy is a web page, not images"),
        ("train rst-digits --set extra=npz:page.npz --smoke", "page.npz is a web page, not images"),
        ("evaluate --model torchscript:page.pt {}", "page.pt is a web page, not model (starts with"),
        ("evaluate --model onnx:nowhere.onnx {}", "--model: there is no file nowhere.onnx; name the file of the model"),
        ("evaluate --model my.py:make_model --weights page.pt {}", "page.pt is a web page, not weights"),
        ("check model onnx:page.pt", "page.pt is a web page, not ONNX"),
        (
            "evaluate --model torchscript:w.pt --dataset digits {}",
            "was written by torch.save: if it holds weights, --model my.py",
        ),
        ("evaluate --model torchscript:my.py --dataset digits {}", "is not TorchScript, or is damaged"),
        ("evaluate --model my.py {}", "name what stands in it, my.py:NAME (it has make_model, stops)"),
        ("evaluate --model my.py: {}", "name what stands in it, my.py:NAME (it has make_model, stops)"),
        ("evaluate --model my.py:make_modle {}", "'make_modle', which is not in my.py. Did you mean 'make_model'?"),
        ("evaluate --model ends.py:make {}", "cannot import ends.py: SystemExit: 0"),
        ("evaluate --model syntax.py:make {}", "cannot import syntax.py: SyntaxError"),
        ("evaluate --model no_such_package:make {}", "cannot import no_such_package: ModuleNotFoundError"),
        ("evaluate --model my.py:torch.nothing --dataset digits {}", "'nothing', which is not in my.py:torch."),
        ("evaluate --attack my.py:nothing", "cannot import 'nothing', which is not in my.py"),
        ("evaluate {} pgd-at-digits@first", "behind the @ stands best or last: pgd-at-digits@last"),
        ("evaluate {} pgd-at-digits,pgd-at-digits", "Those are 2, each a word of its own: pgd-at-digits pgd-at-digits"),
        (
            "evaluate {} --checkpoints checkpoints/pgd-at-digits",
            "is one run, and not the folder of runs: robench evaluate",
        ),
        ("evaluate {} pgd-at-digit", "Did you mean 'pgd-at-digits'?"),
        ("evaluate {} checkpoints/pgd-at-digits/last.json", "named by its folder: checkpoints/pgd-at-digits"),
        ("evaluate {} checkpoints", "it holds runs: name one, such as checkpoints/pgd-at-digits"),
        ("evaluate {} w.pt", "Weights from elsewhere: robench evaluate --model my.py:make_model --weights w.pt"),
        ("evaluate {} my.py:make_model", "A classifier from elsewhere: robench evaluate --model my.py:make_model"),
        ("evaluate {} timm:resnet18", "A classifier from elsewhere: robench evaluate --model timm:resnet18"),
        ("evaluate {} --source pgd-at-digits+pgd-at-digits", "an ensemble holds each checkpoint once"),
        ("evaluate {} --dataset digits@x=1", "takes no option 'x' (options: resize)"),
        ("evaluate {} pgd-at-digits --results page.txt", "cannot write in page.txt: it is a file"),
        ("diagnose pgd-at-digits --source pgd-at-digits --count 8", "a model is no surrogate of itself"),
        ("report --results results/cells", "which holds the cells of results: name that folder"),
        ("verify page.txt", "no results in page.txt, which is a file: name the folder"),
        ("report --reference page.toml", "page.toml is a web page, not figures"),
        ("check model my.py:stops", "model 'my.py:stops' cannot be made: ValueError: oh"),
        ("check model torchscript:page.pt", "page.pt is a web page, not TorchScript"),
        ("check dataset npz:page.npz", "page.npz is a web page, not images"),
        ("show results/labels/" + "a" * 32 + ".json", "is a file of the labels of test images"),
        (
            "show checkpoints/pgd-at-digits/last.json",
            "is the description of a checkpoint, which robench evaluate attacks",
        ),
        ("show checkpoints/pgd-at-digits", "is a training run: name a cell by its key"),
        ("show page.txt", "page.txt is a file of another kind. (1 there: robench list results)"),
        ("show results", "results is a folder of results (--results)."),
        ("show rocl", "That is a checkpoint, with the cells " + CELL.key[:8]),
        ("show other.json", f"other.json describes the cell {CELL.key}: rename it to {CELL.key}.json"),
        (f"show {CELL.key} --images 1 --out a.png", "no checkpoint in checkpoints has the weights"),
    ],
)
def test_one_thing_named_in_place_of_another(line: str, hint: str, things: Path, run_cli: Cli) -> None:
    before = files(things)
    code, out, err = run_cli(*line.format("--attack fgsm --count 4").split())
    assert (code, out) == (2, ""), err
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    assert hint in last
    assert not {"allow_pickle", "robench_file", "Traceback", "miniz"} & set(re.findall(r"\w+", err))
    assert files(things) == before


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--count", "100000"], "digits has 360 test images; use 1 to 360"),
        (["--count", "0"], "use 1 to 360"),
        (["--attack", "pgd@step=0.01"], "cannot cross the ball"),
        (["--attack", "pgd@stps=3"], "did you mean 'steps'"),
        (["--attack", "no.such.module:Attack"], "cannot import"),
        (["--attack", "test_cli:Nothing"], "cannot import"),
        (["--source", "nowhere"], "no checkpoint 'nowhere'"),
        (["--dataset", "imagefolder:absent"], "holds no class folders"),
        (["--dataset", "digitz"], "Did you mean 'digits'"),
        (["--results", "file/results"], "cannot write in file/results"),
    ],
    ids=str,
)
def test_what_cannot_be_evaluated_is_said_at_once(
    arguments: list[str], hint: str, checkpoints: Path, here: Path, run_cli: Cli
) -> None:
    (here / "file").touch()
    before = files(here)
    refused(run_cli("evaluate", "standard-digits", "--attack", "fgsm", *arguments), hint)
    assert files(here) == before


def test_a_damaged_checkpoint(checkpoints: Path, here: Path, run_cli: Cli) -> None:
    path = checkpoints / "standard-digits" / "best.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    before = files(here)
    refused(run_cli("evaluate", "standard-digits", "--attack", "fgsm", "--count", 4), "is damaged")
    assert files(here) == before


@pytest.mark.parametrize("out", ["file", "file/run", "file/deep/run"])
def test_an_unwritable_folder_is_said_before_training(
    out: str, here: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a folder below a file: also root cannot write there
    def never(*_: object, **__: object) -> None:
        pytest.fail("training began")

    monkeypatch.setattr(training, "_run_stage", never)
    (here / "file").touch()
    code, _, err = run_cli("train", "standard-digits", *SMALL, "--out", out)
    assert code == 2
    assert re.search(r"^error: cannot write in file\S*: [^\n]+\n\Z", err, re.MULTILINE), err
    assert files(here) == {here / "file"}


def test_a_report_that_cannot_be_written(here: Path, checkpoints: Path, run_cli: Cli) -> None:
    (here / "file").touch()
    assert run_cli("evaluate", "standard-digits", "--attack", "fgsm", "--count", 4)[0] == 0
    refused(run_cli("report", "--out", "file/report.md"), "cannot write file/report.md")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--set", "stage.0.options.steps=3"], "method standard.steps: unknown key"),
        (["--set", "stage.0.method=linear"], "--encoder"),
        (["--set", "stage.0.method=pgd-at"], "--set threat=linf-8/255"),
        (["--set", "stage.0.method=rocl"], "--set threat=linf-8/255"),
        (["--set", "stage.0.method=no.such.module:Method"], "cannot import"),
        (["--set", "stage.0.optimiser.lr=-1"], "lr"),
        (["--set", "stage.0.optimiser.lr=nan"], "lr"),
        (["--set", "validation=5000"], "lower `validation`"),
        (["--dataset", "cifar10"], "CIFAR10 is not in"),
        (["--dataset", "imagefolder:absent"], "holds no class folders"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_leaves_no_files(
    arguments: list[str], hint: str, here: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(root: str, download: bool, **_: object) -> None:
        raise OSError("no route to host") if download else RuntimeError("Dataset not found")

    monkeypatch.setattr(datasets, "CIFAR10", offline)
    code, out, err = run_cli("train", "standard-digits", *SMALL, *arguments)
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    assert hint in last
    assert "Traceback" not in err
    assert files(here) == set()


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("train standard-digits --set resize=-4", "resize must be a number of pixels"),
        ("train rocl-digits --set stage.0.options.temperature=0", "temperature must be above 0"),
        (
            "train rocl-digits --set stage.0.options.attack_loss=cos",
            "is not one of 'contrastive', 'mse', 'l1', 'cosine'",
        ),
        ("train rocl-digits --set stage.0.options.detach_keys=False", "detach_keys: expected bool"),
        ("train rocl-digits --set stage.0.batch=1", "needs at least 2 a step, not 1: --set stage.0.batch=2"),
        ("train simclr-digits --set labels=1/1000", "leaves no image of class"),
        ("train finetune-at-digits", "fine-tunes an encoder, and nothing has trained one"),
        ("train linear-exact-digits", "keeps the encoder as it is, and nothing has trained one"),
    ],
)
def test_what_only_the_method_knows_is_said_before_training(line: str, hint: str, here: Path, run_cli: Cli) -> None:
    code, out, err = run_cli(*line.split())
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert hint in err.splitlines()[-1]
    assert files(here) == set()


def test_a_traceback_is_shown_on_request(here: Path, run_cli: Cli) -> None:
    for line in (["train", "rokl", "--traceback"], ["--traceback", "train", "rokl"]):
        code, _, err = run_cli(*line)
        assert code == 2
        assert err.startswith("Traceback")
        assert "UsageError" in err
        assert err.splitlines()[-1].startswith("error: unknown recipe 'rokl'")


def test_a_fault_of_robench_is_called_one(here: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(recipe, "load", fault)
    code, _, err = run_cli("train", "rocl")
    assert code == 70
    assert re.fullmatch(r"error: ZeroDivisionError: oh\. This is a fault of robench; .*--traceback.*\n", err)


def test_output_that_finds_no_room_is_no_fault_of_robench(
    here: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(recipe, "load", full)
    code, _, err = run_cli("train", "rocl")
    assert (code, err) == (
        DiskFullError.code,
        "error: No space left on device: where the output goes. Make room, or choose another place\n",
    )


def test_interrupting_says_how_to_go_on(here: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupted)
    code, _, err = run_cli("train", "standard-digits")
    assert code == 130
    assert "the same command goes on" in err.splitlines()[-1]


# help and lists


@pytest.mark.parametrize("command", [[], ["train"], ["evaluate"], ["report"], ["list"], ["demo"]])
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help(command: list[str], option: str, run_cli: Cli) -> None:
    code, out, err = run_cli(*command, option)
    assert (code, err) == (0, "")
    assert out.startswith("Usage: robench")


def test_without_arguments_help_is_shown(run_cli: Cli) -> None:
    _, out, err = run_cli()
    assert "robench demo" in out + err
    assert "error:" not in err


def test_the_version(run_cli: Cli) -> None:
    assert run_cli("--version") == (0, f"robench, version {__version__}\n", "")


@pytest.mark.parametrize(
    ("what", "some"),
    [
        ("methods", ["rocl", "pgd-at", "linear"]),
        ("attacks", ["autoattack", "pgd-20", "torchattacks:NAME"]),
        ("datasets", ["cifar10", "digits", "imagefolder:PATH"]),
        ("models", ["resnet18", "cnn"]),
        ("recipes", ["standard-digits", *recipe.names()]),
    ],
)
def test_lists(what: str, some: list[str], here: Path, run_cli: Cli) -> None:
    code, out, err = run_cli("list", what)
    assert (code, err) == (0, "")
    assert {line.split()[0] for line in out.splitlines()[1:]} >= set(some)
    assert files(here) == set()


def test_a_list_is_folded_into_a_narrow_terminal() -> None:
    line, widths = ["cpu", "ok", "a cold-start of many words that go on"], [5, 4, 37]
    assert (
        folded(line, widths, None) == folded(line, widths, 50) == "cpu    ok    a cold-start of many words that go on"
    )
    beside = folded(line, widths, 40).split("\n")
    assert [part[:13].strip() for part in beside] == ["cpu    ok", ""]
    assert " ".join(part[13:] for part in beside) == line[-1]
    below = folded(line, widths, 30).split("\n")
    assert below[0].startswith("cpu    ok    a cold-start")
    assert below[1].startswith("    ")
    assert " ".join(" ".join(below).split()) == "cpu ok a cold-start of many words that go on"
    assert max(map(len, beside)) <= 40
    assert max(map(len, below)) <= 30


def test_the_module_is_the_command() -> None:
    found = subprocess.run([sys.executable, "-m", "robench", "--version"], capture_output=True, text=True, check=True)
    assert found.stdout == f"robench, version {__version__}\n"


# the three commands


def test_train_evaluate_report(here: Path, run_cli: Cli) -> None:
    code, out, err = run_cli("train", "standard-digits", *SMALL)
    assert (code, out) == (0, "")
    assert "done: checkpoints/standard-digits (best epoch 1" in err
    assert "next: robench evaluate checkpoints/standard-digits --attack pgd-20" in err

    evaluate = ("evaluate", "--attack", "pgd-5", "--attack", "fgsm", "--threat", "linf-0.1", "--count", 20)
    code, out, err = run_cli(*evaluate)
    assert (code, out) == (0, "")
    assert "2 cells: 2 new, 0 already in results, 0 failed" in err

    code, _, err = run_cli(*evaluate)
    assert code == 0
    assert err.count("(was there already)") == 2
    assert "2 cells: 0 new, 2 already in results, 0 failed" in err

    code, out, err = run_cli("report")
    assert (code, err) == (0, "")
    assert "White-box accuracy, digits, 20 test images" in out
    assert "pgd-5" in out

    code, out, _ = run_cli("report", "--format", "csv")
    assert (code, len(out.splitlines())) == (0, 3)

    code, out, _ = run_cli("report", "--format", "markdown", "--out", "deep/report.md")
    assert (code, out) == (0, "")
    assert (here / "deep" / "report.md").read_text() == run_cli("report", "--format", "markdown")[1]

    code, out, _ = run_cli("list", "results")
    assert (code, len(out.splitlines())) == (0, 3)

    refused(run_cli("report", "--dataset", "cifar10"), "there are some on digits")
    refused(run_cli("report", "--table", "cells"), "--format csv")


def test_a_percentage_below_one_is_spoken_of(checkpoints: Path, here: Path, run_cli: Cli) -> None:
    asked = ("evaluate", "standard-digits", "--attack", " fgsm ", "--count", 4, "--fail-under")
    code, _, err = run_cli(*asked, "clean=0.45")
    assert code == 0
    assert "note: --fail-under clean=0.45 is 0.45 per cent, not 45" in err
    assert "note:" not in run_cli(*asked, "clean=4.5")[2]
    (record,) = Store(here / "results").records()
    assert record.cell.attack == "fgsm"


def test_transfer(checkpoints: Path, here: Path, run_cli: Cli) -> None:
    code, _, err = run_cli(
        *("evaluate", "--attack", "pgd-3", "--count", 8, "--source", "standard-digits", "--source", "pgd-at-digits")
    )
    assert code == 0, err
    assert "pgd-at-digits from standard-digits" in err
    code, out, _ = run_cli("report", "--table", "transfer")
    assert code == 0
    assert "Black-box transfer, pgd-3 at linf-0.2" in out


def test_a_failed_cell_is_exit_code_1_and_the_rest_still_ran(checkpoints: Path, here: Path, run_cli: Cli) -> None:
    evaluate = ("evaluate", "standard-digits", "--attack", "test_cli:Broken", "--attack", "fgsm", "--count", 8)
    code, _, err = run_cli(*evaluate)
    assert code == 1
    assert "2 cells: 1 new, 0 already in results, 1 failed" in err
    (failed,) = [line for line in err.splitlines() if line.startswith("FAILED")]
    assert "ValueError: first line" in failed
    code, out, _ = run_cli("report", "--format", "markdown")
    assert code == 0
    assert "Cells without a result" in out
    assert "ValueError: first line" in out
    # it is tried again, and what went well is not
    code, _, err = run_cli(*evaluate)
    assert code == 1
    assert "2 cells: 0 new, 1 already in results, 1 failed" in err


def test_what_an_attack_says_cannot_act_on_the_terminal(checkpoints: Path, here: Path, run_cli: Cli) -> None:
    _, _, err = run_cli("evaluate", "standard-digits", "--attack", "test_cli:Broken", "--count", 8)
    assert "\x1b" not in err
    assert not [line for line in err.splitlines() if line.startswith("second line")]


@pytest.mark.parametrize("name", ["\x1b[31mred\x1b]0;title\x07", "two\nlines", "\u202edirection"])
@pytest.mark.parametrize(
    "command",
    [("train", "{}"), ("train", "{}.toml"), ("evaluate", "{}", "--attack", "fgsm"), ("evaluate", "--attack", "{}")],
    ids=" ".join,
)
def test_what_was_typed_cannot_act_on_the_terminal(
    command: tuple[str, ...], name: str, here: Path, run_cli: Cli
) -> None:
    code, out, err = run_cli(*(part.format(name) for part in command))
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert not set("\x1b\x07\u202e") & set(err)


def test_what_a_strangers_file_names_cannot_act_on_the_terminal(checkpoints: Path, here: Path, run_cli: Cli) -> None:
    folder = here / "checkpoints" / "mine"
    content = save_tensors({"encoder.\x1b[31m\u202e": torch.zeros(1)})
    described = json.loads((checkpoints / "standard-digits" / "best.json").read_bytes())
    described["sha256"] = hashlib.sha256(content).hexdigest()
    del described["digest"]
    folder.mkdir(parents=True)
    (folder / "best.safetensors").write_bytes(content)
    (folder / "best.json").write_text(json.dumps({**described, "digest": digest(described)}))
    _, _, err = run_cli("evaluate", "mine", "--attack", "fgsm", "--count", 4)
    assert "does not fit the model" in err
    assert not set("\x1b\u202e") & set(err)


def test_every_exit_code_is_in_the_help_and_the_readme(run_cli: Cli) -> None:
    codes = {0, 1, UsageError.code, SUSPECT, 70, DiskFullError.code, 128 + signal.SIGINT, 128 + signal.SIGTERM}
    _, out, _ = run_cli("--help")
    said = " ".join(out.partition("Exit codes:")[2].split()).partition(". After")[0]
    readme = (Path(__file__).parent.parent / "README.md").read_text().partition("## Exit codes")[2].partition("\n\n")[2]
    for text in (said, readme.partition("\n\n")[0]):
        assert set(map(int, re.findall(r"\b\d+\b", text))) == codes


def test_a_run_can_be_resumed(here: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    train = ("train", "simclr-digits", *SMALL, "--set", "stage.1.epochs=1")
    with monkeypatch.context() as patched:
        patched.setattr(training, "validate", interrupt)  # in the second stage
        assert run_cli(*train)[0] == 130
    code, _, err = run_cli(*train)
    assert code == 0
    assert "going on with the run that was interrupted in checkpoints/simclr-digits" in err
    assert "simclr: " not in err.split("->")[1]  # the first stage was not run again
    code, _, err = run_cli(*train)
    assert code == 0
    assert "finished: nothing is left to do" in err
    code, _, err = run_cli(*train, "--restart")
    assert code == 2
    assert "finished" in err


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_unfinished_runs_are_left_out_and_named(
    checkpoints: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(training, "validate", interrupt)
        assert run_cli("train", "simclr-digits", *SMALL)[0] == 130
    code, _, err = run_cli("evaluate", "--attack", "fgsm", "--count", 4)
    assert code == 0
    assert "left out: simclr-digits is not finished" in err
    assert "2 cells: 2 new" in err


def test_names_of_runs_tell_them_apart(here: Path, run_cli: Cli) -> None:
    for extra in ([], ["--seed", 1], ["--smoke"], ["--smoke", "--seed", 1], ["--out", "elsewhere/mine"]):
        code, _, err = run_cli("train", "standard-digits", *SMALL, *extra)
        assert code == 0, err
    found = {path.parent.relative_to(here).as_posix() for path in files(here) if path.name == "run.json"}
    names = {"standard-digits", "standard-digits-seed1", "standard-digits-smoke", "standard-digits-smoke-seed1"}
    assert found == {f"checkpoints/{name}" for name in names} | {"elsewhere/mine"}


def test_a_smoke_run_says_what_a_full_one_takes(here: Path, run_cli: Cli) -> None:
    code, _, err = run_cli("train", "simclr-digits", "--set", "model=cnn@width=2", "--smoke")
    assert code == 0
    assert re.search(r"a full run would take here about .+ \+ .+; this one was 2 small steps a stage", err)


def test_a_head_on_a_trained_encoder(checkpoints: Path, here: Path, run_cli: Cli) -> None:
    line = "train standard-digits --set stage.0.method=linear --set stage.0.epochs=1 --encoder pgd-at-digits --out heads/one"
    code, _, err = run_cli(*line.split())
    assert code == 0, err
    code, _, err = run_cli("evaluate", "heads/one", "--attack", "fgsm", "--count", 4)
    assert code == 0, err


def test_a_run_on_own_images_is_found_again(here: Path, run_cli: Cli) -> None:
    # the path of the images must not become a path below checkpoints/
    for part in ("train", "test"):
        for label in ("cat", "dog"):
            (here / "my" / "images" / part / label).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(here / "my" / "images" / part / label / "0.png")
    small = ("--set", "model=cnn@width=2", "--set", "validation=0", "--smoke")
    code, _, err = run_cli("train", "standard-digits", "--dataset", "imagefolder:my/images", *small)
    assert code == 0, err
    code, _, err = run_cli("evaluate", "--attack", "fgsm")
    assert code == 0, err
    assert "1 cell: 1 new" in err


# real images


@pytest.mark.skipif("ROBENCH_DATA" not in os.environ, reason="needs CIFAR-10: set ROBENCH_DATA to a torchvision root")
@pytest.mark.skipif("rocl" not in recipe.names(), reason="needs the recipe rocl")
@pytest.mark.timeout(600)
def test_rocl_on_cifar10(tmp_path: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run_cli("train", "rocl", "--smoke", "--device", "cpu")
    assert code == 0, err
    assert "a full run would take here about" in err
    code, _, err = run_cli("evaluate", "rocl-smoke", "--attack", "pgd-20", "--count", 8, "--device", "cpu")
    assert code == 0, err
    assert "rocl-smoke: pgd-20 linf-8/255" in err
    code, out, _ = run_cli("report")
    assert code == 0
    assert "cifar10, 8 test images" in out


@pytest.mark.parametrize("source", ["pgd-at-digits", "all", "pgd-at-digits+standard-digits"])
def test_a_source_that_leaves_no_target_is_said(
    run_cli: Callable[..., tuple[int, str, str]], trained: Path, tmp_path: Path, source: str
) -> None:
    where = ("--checkpoints", trained, "--results", tmp_path)
    code, _, err = run_cli("evaluate", "pgd-at-digits", "--attack", "fgsm", "--source", source, "--count", 5, *where)
    assert code == 2
    assert f"--source {source} leaves nothing to do: no checkpoint is its own target" in err


def test_an_ensemble_is_named_part_by_part(
    run_cli: Callable[..., tuple[int, str, str]], trained: Path, tmp_path: Path
) -> None:
    where = ("--checkpoints", trained, "--results", tmp_path)
    code, _, err = run_cli("evaluate", "--attack", "fgsm", "--source", "pgd-at-digits+", "--count", 5, *where)
    assert (code, "a name on each side of the plus sign" in err) == (2, True)
    code, _, err = run_cli(
        "evaluate", "standard-digits", "--attack", "fgsm", "--source", "pgd-at-digits@last", "--count", 5, *where
    )
    assert code == 0, err
