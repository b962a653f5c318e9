"""For pipelines: thresholds and exit codes, one JSON document, silence, no colours, completion, and the doctor."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import robench
from robench import doctor
from robench.cli import cli
from robench.errors import UsageError
from robench.gates import Gate, judged, parse
from robench.registry import ATTACKS
from robench.results import Cell, Failure, Result, Subject
from robench.statistic import interval
from robench.threat import ThreatModel

Cli = Callable[..., tuple[int, str, str]]
HERE = {**os.environ, "PYTHONPATH": str(Path(robench.__file__).parent.parent)}  # the code under test, from any folder
LINF = ThreatModel.parse("linf-8/255")
CELL = Cell("a" * 64, "", "autoattack", 2, {}, LINF, "d" * 64, 100, 0)
SUBJECT = Subject("pgd-at", "pgd-at", "supervised", LINF, 0, "cifar10", "a" * 64)


def result(robust: int, clean: int = 80, **changes: object) -> Result:
    bits = tuple(index < clean for index in range(100)), tuple(index < robust for index in range(100))
    made = Result(CELL, SUBJECT, None, *bits, largest=0.03, seconds=1.0, forwards=1, backwards=1)
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def checkpoints(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


# thresholds


@given(st.integers(1, 500), st.data())
@settings(deadline=None)  # the first call imports what works it out
def test_the_interval_is_where_the_score_test_does_not_reject(count: int, draw: st.DataObject) -> None:
    right = draw.draw(st.integers(0, count))
    share = right / count
    for bound in interval(right, count):
        if 0 < bound < 1 and bound != pytest.approx(share):
            assert abs(share - bound) / math.sqrt(bound * (1 - bound) / count) == pytest.approx(
                NormalDist().inv_cdf(0.975), rel=1e-4
            )


@pytest.mark.parametrize(
    ("least", "passed", "text"),
    [
        (45, False, "FAIL pgd-at autoattack linf-8/255 43.0 [33.7, 52.8] < 45"),
        (43, True, "pass pgd-at autoattack linf-8/255 43.0 [33.7, 52.8] >= 43"),
        (0, True, "pass pgd-at autoattack linf-8/255 43.0 [33.7, 52.8] >= 0"),
    ],
)
def test_a_threshold_is_met_or_missed(least: float, passed: bool, text: str) -> None:
    (found,) = judged([Gate("autoattack", least)], [result(43)])
    assert (found.passed, found.text) == (passed, text)


def test_clean_is_judged_once_for_each_model() -> None:
    other = result(10, cell=replace(CELL, attack="square"))
    found = judged([Gate("clean", 81)], [result(43), other])
    assert [each.text for each in found] == ["FAIL pgd-at clean 80.0 [71.1, 86.7] < 81"]


def test_a_failed_cell_never_passes() -> None:
    (found,) = judged([Gate("autoattack", 0)], [Failure(CELL, SUBJECT, None, "it stopped")])
    assert not found.passed
    assert found.text == "FAIL pgd-at autoattack linf-8/255: no result, so it is not at least 0"


@pytest.mark.parametrize(
    "text", ["autoattack", "=3", "autoattack=", "autoattack=many", "autoattack=-1", "autoattack=nan"]
)
def test_what_is_no_threshold(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text, ["autoattack"])


def test_an_attack_with_options_can_have_one() -> None:
    assert parse("pgd@steps=3=45.5", ["pgd@steps=3"]) == Gate("pgd@steps=3", 45.5)
    with pytest.raises(UsageError, match="Did you mean 'pgd-20'"):
        parse("pgd-2=4", ["pgd-20"])


# the command line


LINE = ("evaluate", "standard-digits", "--attack", "fgsm", "--count", 20)


def test_exit_codes_of_thresholds(checkpoints: Path, run_cli: Cli) -> None:
    assert run_cli(*LINE, "--fail-under", "fgsm=0", "--fail-under", "clean=10")[0] == 0
    code, out, err = run_cli(*LINE, "--fail-under", "fgsm=100")
    assert (code, out) == (1, "")
    assert "FAIL standard-digits fgsm linf-0.2" in err


def test_one_document_on_stdout(checkpoints: Path, run_cli: Cli) -> None:
    code, out, err = run_cli(*LINE, "--attack", "test_cli:Broken", "--json", "--fail-under", "fgsm=100")
    assert code == 1
    found = json.loads(out)
    (cell,) = found["cells"]
    assert (cell["checkpoint"], cell["attack"], cell["count"]) == ("standard-digits", "fgsm", 20)
    (failure,) = found["failures"]
    assert failure["attack"] == "test_cli:Broken"
    (threshold,) = found["thresholds"]
    assert (threshold["passed"], threshold["gate"]) == (False, {"attack": "fgsm", "least": 100.0})
    assert threshold["accuracy"] == pytest.approx(100 * cell["robust_accuracy"])
    assert sorted(found["new"]) == sorted([cell["cell"], failure["cell"]])
    assert "2 cells: 1 new" in err
    assert json.loads(run_cli(*LINE, "--json")[1])["new"] == []


def test_quiet_says_only_what_is_wrong(checkpoints: Path, run_cli: Cli) -> None:
    assert run_cli(*LINE, "--quiet", "--fail-under", "clean=1") == (0, "", "")
    code, out, err = run_cli(*LINE, "--quiet", "--fail-under", "fgsm=100", "--attack", "test_cli:Broken")
    assert (code, out) == (1, "")
    assert [line.split()[0] for line in err.splitlines()] == ["FAILED", "FAIL"]


def test_strict_fails_for_what_is_suspect(checkpoints: Path, run_cli: Cli) -> None:
    assert run_cli(*LINE, "--strict")[0] == 0
    Path("soft.py").write_text(
        "import torch\n\n\ndef make_model(classes):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes), torch.nn.Softmax(1))\n"
    )
    line = ("evaluate", "--model", "soft.py:make_model", "--dataset", "digits", "--attack", "fgsm", "--count", 8)
    more = ("--threat", "linf-0.1", "--quiet", "--strict")
    assert run_cli(*line, *more[:-1])[0] == 0
    code, out, err = run_cli(*line, *more)
    assert (code, out) == (6, "")
    assert "softmax inside the model" in err
    assert "of the sentences above make these numbers suspect" in err.splitlines()[-1]
    code, out, _ = run_cli(*line, *more, "--json", "--fail-under", "clean=100")
    assert code == 1  # a threshold that is missed comes first
    assert json.loads(out)["thresholds"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_by_the_script(checkpoints: Path, run_cli: Cli) -> None:
    """The script is evaluated as a shell does, and its function asked as Tab asks."""
    (checkpoints.parent / "bin").mkdir()
    command = checkpoints.parent / "bin" / "robench"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m robench "$@"\n')
    command.chmod(0o755)
    script = run_cli("completion", "bash")[1]
    asks = (
        "complete -p robench >/dev/null && COMP_WORDS=(robench evaluate --attack autoatt) COMP_CWORD=3 && "
        '_robench_completion robench && printf "%s\\n" "${COMPREPLY[@]}"'
    )
    environment = {**HERE, "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"}
    ran = subprocess.run(
        ["bash", "--norc", "-c", f"{script}\n{asks}"], capture_output=True, text=True, check=True, env=environment
    )
    assert set(ran.stdout.split()) == {name for name in ATTACKS.rows if name.startswith("autoatt")}


@pytest.mark.parametrize("plain", [True, False])
def test_no_color_is_obeyed(plain: bool, checkpoints: Path, run_cli: Cli) -> None:
    run_cli(*LINE)
    environment = {**HERE, "FORCE_COLOR": "1", "TERM": "xterm-256color", **({"NO_COLOR": "1"} if plain else {})}
    command = [sys.executable, "-m", "robench", "report"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    colours = [code for code in ran.stdout.split("\x1b[")[1:] if code[:1] in "34" and code[1:2].isdigit()]
    assert not colours or not plain
    assert "standard-digits" in ran.stdout


# completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_names_the_command(shell: str, run_cli: Cli) -> None:
    code, out, err = run_cli("completion", shell)
    assert (code, err) == (0, "")
    assert "_ROBENCH_COMPLETE" in out


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("eval", {"evaluate"}),
        ("evaluate --attack auto", {name for name in ATTACKS.rows if name.startswith("auto")}),
        ("evaluate pgd-at", {"pgd-at-digits"}),
        ("evaluate --model ti", {"timm:"}),
        ("evaluate --dataset cifar100", {"cifar100", "cifar100-c:"}),
        ("evaluate --fail", {"--fail-under"}),
        ("train rocl-d", {"rocl-digits"}),
        ("report --format mark", {"markdown"}),
    ],
)
def test_names_are_completed(words: str, wanted: set[str], checkpoints: Path) -> None:
    line = f"robench {words}"
    environment = {
        **HERE,
        "_ROBENCH_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split()) - 1),
    }
    command = [sys.executable, "-m", "robench"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert {each.partition(",")[2] for each in ran.stdout.splitlines()} == wanted


# the doctor


def test_the_doctor(tmp_path: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "LOW", 0)
    code, out, err = run_cli("doctor")
    assert (code, err) == (0, ""), out
    for package in doctor.CORE:
        assert f"ok      {package}" in out
    assert not list(tmp_path.iterdir())


def test_the_doctor_names_what_is_absent_and_what_is_wrong(
    tmp_path: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "installed", lambda package: None if package in ("timm", "torch") else "1.0")
    monkeypatch.setattr(doctor, "LOW", 1e30)

    def broken() -> str:
        raise RuntimeError("operator torchvision::nms does not exist\nand more")

    monkeypatch.setattr(doctor, "_nms", broken)
    found = {each.what: each for each in doctor.findings({"results": tmp_path / "deep" / "results"})}
    assert found["timm"] == doctor.Finding("timm", "absent", "pip install 'robench[timm]'")
    assert found["torch"].state == "wrong"
    assert found["torchvision's compiled part"].text == (
        "RuntimeError: operator torchvision::nms does not exist; install the torchvision that belongs to this torch"
    )
    assert found["results"].state == "wrong"
    assert "make room" in found["results"].text
    assert run_cli("doctor")[0] == 1


@pytest.mark.parametrize("name", cli.commands)
def test_every_command_says_what_it_does(name: str, run_cli: Cli) -> None:
    code, out, err = run_cli(name, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: robench {name}")
    command = cli.commands[name]
    assert command.get_short_help_str()
    silent = [
        each.opts[0] for each in command.params if isinstance(each, click.Option) and not (each.help or each.hidden)
    ]
    assert set(silent) <= {"--device", "--seed", "--format"}  # whose names and choices say it


# what comes from elsewhere, and from empty variables


@pytest.mark.parametrize(
    "line",
    [
        ("report", "--dataset", ""),
        ("train", "pgd-at-digits", "--encoder", ""),
        ("evaluate", ""),
        ("train", "x", "--out", ""),
    ],
)
def test_an_empty_word_is_refused(line: Sequence[str], run_cli: Cli) -> None:
    code, out, err = run_cli(*line)
    assert (code, out) == (2, "")
    assert f"there is an empty word behind {line[-2]!r}" in err


@pytest.mark.parametrize("more", [("--json",), ("--fail-under", "fgsm=1"), ("--strict",)])
def test_a_plan_judges_nothing(more: Sequence[str], run_cli: Cli) -> None:
    code, _, err = run_cli("evaluate", "--attack", "fgsm", "--plan", *more)
    assert code == 2
    assert f"--plan attacks nothing, so {more[0]} has nothing to say" in err


@pytest.mark.usefixtures("checkpoints")
def test_what_a_script_prints_is_no_part_of_the_document(run_cli: Cli) -> None:
    Path("loud.py").write_text(
        "import torch\nprint('hello')\n\n\ndef make_model(classes):\n    print('making')\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes))\n"
    )
    line = ["evaluate", "--model", "loud.py:make_model", "--dataset", "digits", "--attack", "fgsm", "--count", "8"]
    code, out, err = run_cli(*line, "--threat", "linf-0.1", "--device", "cpu", "--json")
    assert code == 0
    assert json.loads(out)["new"]
    assert "making" in err


@pytest.mark.usefixtures("checkpoints")
def test_a_script_that_ends_the_process_is_an_error(run_cli: Cli) -> None:
    Path("ends.py").write_text("import sys\n\n\ndef make_model():\n    sys.exit(0)\n")
    code, _, err = run_cli("evaluate", "--model", "ends.py:make_model", "--dataset", "digits", "--attack", "fgsm")
    assert code == 2
    assert "cannot be made: SystemExit" in err


def test_a_picture_is_a_png(run_cli: Cli) -> None:
    code, _, err = run_cli("show", "abc", "--images", "1", "--out", "a.svg")
    assert code == 2
    assert "the name must end in .png" in err
