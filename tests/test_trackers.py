"""Trackers get every epoch and every result, and RobustBench's form is what its zoo has."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from robench import trackers
from robench.errors import UsageError
from robench.leaderboard import About, differences, model_info
from robench.results import Cell, Result, Store, Subject
from robench.threat import ThreatModel
from robench.trackers import flat, trackers_for, tracking

Cli = Callable[..., tuple[int, str, str]]
HEARD: list[tuple[str, Any]] = []
SMALL = ("--set", "model=cnn@width=2", "--set", "validation=1200", "--set", "stage.0.epochs=2")


class Ear:
    """A tracker from outside: `test_trackers:Ear`."""

    def __init__(self, loud: bool = False) -> None:
        self.loud = loud

    def start(self, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        HEARD.append(("start", (name, dict(config))))

    def log(self, figures: Mapping[str, float], step: int) -> None:
        HEARD.append((str(step), dict(figures)))

    def finish(self) -> None:
        HEARD.append(("finish", None))


@pytest.fixture(autouse=True)
def silence() -> None:
    HEARD.clear()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_epoch_is_heard(here: Path, run_cli: Cli) -> None:
    code, _, err = run_cli("train", "standard-digits", *SMALL, "--track", "test_trackers:Ear@loud=true")
    assert code == 0, err
    assert [what for what, _ in HEARD] == ["start", "1", "2", "finish"]
    name, config = HEARD[0][1]
    assert (name, config["stage.0.epochs"], config["model"]) == ("standard-digits", 2, "cnn@width=2")
    kept = [json.loads(line) for line in (here / "checkpoints" / name / "metrics.jsonl").read_text().splitlines()]
    for (_, figures), row in zip(HEARD[1:3], kept, strict=True):
        assert figures == {key: value for key, value in row.items() if not isinstance(value, str)}


def test_every_result_is_heard(here: Path, trained: Path, run_cli: Cli) -> None:
    line = ("evaluate", "standard-digits", "--attack", "fgsm", "--attack", "test_cli:Broken", "--count", 20)
    run_cli(*line, "--checkpoints", trained, "--track", "test_trackers:Ear")
    (record,) = [each for each in Store(here / "results").records() if isinstance(each, Result)]
    assert [what for what, _ in HEARD] == ["start", "1", "finish"]
    figures = HEARD[1][1]
    assert figures["standard-digits/fgsm linf-0.2/robust"] == sum(record.robust) / 20
    assert figures["standard-digits/fgsm linf-0.2/clean"] == sum(record.clean) / 20


def test_a_refused_run_starts_no_tracker(here: Path, run_cli: Cli) -> None:
    assert run_cli("train", "standard-digits", "--set", "validation=5000", "--track", "test_trackers:Ear")[0] == 2
    assert HEARD == []


def test_a_run_is_ended_whatever_happens(tmp_path: Path) -> None:
    def work() -> None:
        with tracking([Ear()], "a", tmp_path, {}) as rows:
            rows({"loss": 1.0, "method": "standard", "on": True})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert HEARD == [("start", ("a", {})), ("1", {"loss": 1.0}), ("finish", None)]


def test_tables_are_flattened_to_paths() -> None:
    assert flat({"a": 1, "stage": [{"lr": 0.1}, {"lr": None}]}) == {"a": 1, "stage.0.lr": 0.1, "stage.1.lr": None}


# the three, by doubles of their packages


class Recorder:
    """Notes every call of every method."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def called(*args: Any, **options: Any) -> "Recorder":
            self.calls.append((name, args, options))
            return self

        return called


def double(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Any) -> None:
    module = ModuleType(name)
    for key, value in functions.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)


def told(text: str, folder: Path) -> None:
    with tracking(trackers_for([text]), "run", folder, {"seed": 3}) as rows:
        rows({"clean": 0.5, "pgd-20 (x)": 0.25})


def test_tensorboard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = Recorder()
    double(monkeypatch, "torch.utils.tensorboard", SummaryWriter=made.SummaryWriter)
    told("tensorboard", tmp_path)
    assert made.calls == [
        ("SummaryWriter", (), {"log_dir": str(tmp_path / "tensorboard")}),
        ("add_text", ("config", "    seed = 3"), {}),
        ("add_scalar", ("clean", 0.5, 1), {}),
        ("add_scalar", ("pgd-20 (x)", 0.25, 1), {}),
        ("close", (), {}),
    ]


def test_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = Recorder()
    double(monkeypatch, "wandb", init=made.init)
    told("wandb@project=mine", tmp_path)
    assert made.calls == [
        ("init", (), {"project": "mine", "name": "run", "config": {"seed": 3}, "dir": str(tmp_path)}),
        ("log", ({"clean": 0.5, "pgd-20 (x)": 0.25},), {"step": 1}),
        ("finish", (), {}),
    ]


def test_mlflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = Recorder()
    names = ("set_experiment", "start_run", "log_params", "log_metrics", "end_run")
    double(monkeypatch, "mlflow", **{name: getattr(made, name) for name in names})
    told("mlflow", tmp_path)
    assert made.calls == [
        ("set_experiment", ("robench",), {}),
        ("start_run", (), {"run_name": "run"}),
        ("log_params", ({"seed": "3"},), {}),
        ("log_metrics", ({"clean": 0.5, "pgd-20 _x_": 0.25},), {"step": 1}),
        ("end_run", (), {}),
    ]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("../x/robust", "_/x/robust"),
        ("/a//b", "a/b"),
        ("./my.py:make/pgd@steps=2", "my.py_make/pgd_steps_2"),
        (".", "_"),
    ],
)
def test_names_stay_paths_that_mlflow_takes(key: str, expected: str) -> None:
    assert trackers._plain(key) == expected


@pytest.mark.parametrize("when", ["start", "log", "finish"])
def test_a_tracker_that_fails_stops_nothing(when: str, tmp_path: Path) -> None:
    class Deaf(Ear):
        pass

    def fail(*_: object) -> None:
        raise OSError("no route\nto there")

    setattr(Deaf, when, fail)
    said: list[str] = []
    with tracking([Deaf(), Ear()], "a", tmp_path, {}, said.append) as rows:
        rows({"loss": 1.0})
        rows({"loss": 2.0})
    assert said == [f"tracker Deaf gets nothing more (OSError: no route); the figures are in {tmp_path} all the same"]
    heard = [what for what, _ in HEARD]
    assert heard.count("finish") == (1 if when in ("finish", "start", "log") else 2)
    assert [figures for what, figures in HEARD if what == "2"][-1] == {"loss": 2.0}  # the other one goes on


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb"), ("mlflow", "mlflow")]
)
def test_a_tracker_that_is_not_installed(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError) as caught:
        trackers_for([name])
    assert str(caught.value) == f"'{name}' comes with {name}, which is not installed: pip install 'robench[{name}]'"


def test_what_is_no_tracker() -> None:
    with pytest.raises(UsageError, match="Did you mean 'wandb'"):
        trackers_for(["wand"])
    with pytest.raises(UsageError, match="cannot be made"):
        trackers_for(["test_trackers:Ear@quiet=true"])


# RobustBench

LINF = ThreatModel.parse("linf-8/255")
ABOUT = About("A paper", "https://example.org", "A and B", "ICLR 2026", "ResNet-18")
CELL = Cell(
    "a" * 64, "", "autoattack", 2, {"version": "standard", "steps": 100, "queries": 5000}, LINF, "d" * 64, 10_000, 0
)
SUBJECT = Subject("mine", "mine", "outside", None, 0, "cifar10", "a" * 64)


def standard(**changes: Any) -> Result:
    clean, robust = (tuple(index < right for index in range(10_000)) for right in (8493, 4512))
    made = Result(CELL, SUBJECT, None, clean, robust, largest=0.03, seconds=1.0, forwards=1, backwards=1)
    return replace(made, **changes)


def test_the_form_is_that_of_the_zoo() -> None:
    found = json.loads(model_info([standard()], "mine", ABOUT, LINF))
    assert found == {
        "link": "https://example.org",
        "name": "A paper",
        "authors": "A and B",
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": "cifar10",
        "venue": "ICLR 2026",
        "architecture": "ResNet-18",
        "eps": "8/255",
        "clean_acc": "84.93",
        "reported": "45.12",
        "autoattack_acc": "45.12",
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cell": replace(CELL, count=1000)}, "1,000 images, not all 10,000"),
        ({"cell": replace(CELL, attack="pgd-20", options={})}, "the attack is pgd-20, not the standard AutoAttack"),
        ({"cell": replace(CELL, options={**CELL.options, "steps": 10})}, "not the standard AutoAttack"),
        ({"cell": replace(CELL, options={**CELL.options, "version": "rand"})}, "not the standard AutoAttack"),
        ({"subject": replace(SUBJECT, dataset="svhn")}, "there is no leaderboard for svhn linf-8/255"),
        ({"source": SUBJECT}, "it is a transfer from mine"),
        ({"notes": ("flag: zero gradients",)}, "flag: zero gradients"),
    ],
)
def test_what_is_no_entry_is_refused(changes: dict[str, Any], words: str) -> None:
    assert len(differences(standard(**changes))) == 1
    with pytest.raises(UsageError) as caught:
        model_info([standard(**changes)], "mine", ABOUT, LINF)
    assert str(caught.value).startswith("mine at linf-8/255 is not what RobustBench compares: ")
    assert words in str(caught.value)
    assert json.loads(model_info([standard(**changes), standard()], "mine", ABOUT, LINF))["autoattack_acc"] == "45.12"


def test_the_export_command(here: Path, run_cli: Cli) -> None:
    Store(here / "results").put(standard())
    told = "--title T --link L --authors A --venue V --architecture R".split()  # noqa: SIM905
    code, out, err = run_cli("export", "robustbench", "mine", *told, "--additional-data")
    assert (code, err) == (0, "")
    assert json.loads(out)["additional_data"] is True
    assert run_cli("export", "robustbench", "mine", *told, "--out", "info.json")[0] == 0
    assert json.loads((here / "info.json").read_text())["name"] == "T"
    code, out, err = run_cli("export", "robustbench", "mine", *told, "--threat", "l2-0.5")
    assert (code, out) == (2, "")
    assert "robench evaluate mine --attack autoattack --threat l2-0.5" in err
