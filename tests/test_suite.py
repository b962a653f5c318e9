"""Suites: the paper's protocol to the letter, and the checkpoints they craft on."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from robench import recipe
from robench.attacks import attack_for
from robench.attacks.pgd import PGD
from robench.checkpoint import Checkpoint, open_checkpoint
from robench.errors import UsageError
from robench.evaluation import Engine, plan_suite, source_for
from robench.inference import Inference
from robench.registry import METHODS
from robench.results import Store
from robench.suite import SUITES, suite
from robench.threat import ThreatModel

Cli = Callable[..., tuple[int, str, str]]

TABLE1 = ["linf-8/255", "linf-16/255", "l2-0.25", "l2-0.5", "l1-7.84", "l1-12"]


@pytest.mark.parametrize("name", SUITES)
def test_every_column_can_be_run(name: str) -> None:
    found = suite(name)
    assert found.name == name
    assert found.columns
    for column in found.columns:
        attack_for(column.attack, column.threat)
        adaptive = attack_for(column.adaptive, column.threat)
        assert adaptive.randomised  # type: ignore[attr-defined]
    assert all(role in METHODS.rows for role in found.roles)
    keys = [(column.label, column.threat, column.source, column.draws) for column in found.columns]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", sorted(set(SUITES) - {"rocl-strong"}))
def test_pgd_is_the_papers(name: str) -> None:
    """Steps of eps/10, one uniform start, cross-entropy; 20 of them but in table 5."""
    for column in suite(name).columns:
        attack = attack_for(column.attack, column.threat)
        if column.attack == "cw":
            assert name == "rocl-table8"
            continue
        assert isinstance(attack, PGD)
        assert attack.step == 0.1
        assert (attack.restarts, attack.random_start, attack.momentum, attack.draws) == (1, True, 0.0, 1)
        assert attack.loss == ("cw-margin" if name == "rocl-table8" else "ce")
        assert attack.steps in ((20, 40, 100) if name == "rocl-table5" else (20,))
        assert f"PGD-{attack.steps}" in column.label


@pytest.mark.parametrize(
    ("name", "threats"),
    [
        ("rocl-table1", TABLE1),
        ("rocl-table2", ["linf-8/255", "linf-8/255", "linf-16/255", "linf-16/255"]),
        ("rocl-table3", ["linf-8/255"]),
        ("rocl-table5", ["linf-8/255"] * 3),
        ("rocl-table7", TABLE1),
        ("rocl-fig3c", ["linf-8/255", "linf-16/255"]),
        ("rocl-fig3d", [f"linf-{eps}/255" for eps in (2, 4, 8, 16, 32)] * 3),
        ("rocl-strong", [text for text in TABLE1 for _ in range(2)]),
    ],
)
def test_threats_are_the_papers(name: str, threats: list[str]) -> None:
    assert [column.threat for column in suite(name).columns] == [ThreatModel.parse(text) for text in threats]


def test_steps_sources_and_draws_are_the_papers() -> None:
    assert [attack_for(c.attack, c.threat).steps for c in suite("rocl-table5").columns] == [20, 40, 100]  # type: ignore[attr-defined]
    assert [c.source for c in suite("rocl-table2").columns] == ["pgd-at", "trades"] * 2
    assert [c.draws for c in suite("rocl-fig3d").columns] == [1] * 5 + [10] * 5 + [100] * 5
    assert {c.source for c in suite("rocl-fig3d").columns} == {"pgd-at"}
    assert suite("rocl-table7").dataset == "cifar100"
    assert [c.attack for c in suite("rocl-strong").columns] == ["apgd-ce", "autoattack"] * 6


def test_an_unknown_suite_is_told_the_nearest() -> None:
    with pytest.raises(
        UsageError, match=r"unknown suite 'rocl-tabel1'. Did you mean 'rocl-table1'\?.*robench list suites"
    ):
        suite("rocl-tabel1")


# planning


@pytest.fixture
def engine() -> Engine:
    return Engine(torch.device("cpu"))


@pytest.fixture
def standard(trained: Path) -> Checkpoint:
    return open_checkpoint("standard-digits@last", trained)


@pytest.fixture
def robust(trained: Path) -> Checkpoint:
    return open_checkpoint("pgd-at-digits@last", trained)


def test_a_suite_is_planned_in_full(engine: Engine, standard: Checkpoint) -> None:
    jobs = plan_suite(engine, suite("rocl-table1"), [standard])
    assert [str(job.cell.threat) for job in jobs] == TABLE1
    assert {job.cell.count for job in jobs} == {360}
    assert {job.cell.attack for job in jobs} == {"pgd@steps=20,step=0.1"}


def test_a_smoothed_checkpoint_is_attacked_adaptively_too(engine: Engine, standard: Checkpoint) -> None:
    jobs = plan_suite(engine, suite("rocl-table1"), [standard], count=10, inference=Inference(draws=3))
    found = {(str(job.cell.threat), job.cell.inference.adaptive) for job in jobs if job.cell.inference}
    assert found == {(text, adaptive) for text in TABLE1 for adaptive in (False, True)}
    assert {job.cell.attack for job in jobs} == {"pgd@steps=20,step=0.1", "eot-pgd@steps=20,step=0.1"}


def test_a_source_is_not_its_own_target(engine: Engine, standard: Checkpoint, robust: Checkpoint) -> None:
    only = replace(suite("rocl-table2"), columns=suite("rocl-table2").columns[:1])
    jobs = plan_suite(engine, only, [standard, robust], candidates=[standard, robust], count=10)
    assert [(job.checkpoint.name, job.source.name) for job in jobs if job.source] == [
        ("standard-digits@last", "pgd-at-digits@last")
    ]


def test_columns_bring_their_own_draws(engine: Engine, standard: Checkpoint, robust: Checkpoint) -> None:
    spec = Inference(average="votes", augment={"area": 0.5})
    jobs = plan_suite(engine, suite("rocl-fig3d"), [standard], candidates=[robust], count=10, inference=spec)
    found = [job.cell.inference for job in jobs if job.cell.inference]
    assert sorted(each.draws for each in found) == [1] * 5 + [10] * 5 + [100] * 5
    assert {(each.average, each.augment["area"], each.adaptive) for each in found} == {("votes", 0.5, False)}
    assert all(job.source and job.source.name == "pgd-at-digits@last" for job in jobs)


def named(checkpoint: Checkpoint, name: str, seed: int = 0) -> Checkpoint:
    """The same checkpoint as if trained by another recipe."""
    return replace(checkpoint, recipe=recipe.load(name), seed=seed, folder=Path(f"{name}-seed{seed}"))


def test_the_source_is_what_the_method_alone_trained(robust: Checkpoint) -> None:
    table2 = suite("rocl-table2")
    others = [named(robust, name) for name in ("standard", "rocl", "trades", "pgd-at-digits")]
    first, second = named(robust, "pgd-at", seed=1), named(robust, "pgd-at", seed=2)
    assert source_for(table2, "pgd-at", "cifar10", [second, *others, first]) == first
    assert source_for(table2, "trades", "cifar10", others) == others[2]
    assert source_for(table2, "pgd-at", "digits", [first, *others]) == others[3]
    large = replace(first, recipe=replace(first.recipe, name="pgd-at-resnet50", model="resnet50"))
    assert source_for(table2, "pgd-at", "cifar10", [large, first]) == first
    assert source_for(table2, "pgd-at", "cifar10", [large]) == large
    augmented = replace(first, recipe=replace(first.recipe, name="pgd-at-augment"))
    assert source_for(table2, "pgd-at", "cifar10", [augmented, second]) == second


def test_no_source_and_too_many_are_refused(robust: Checkpoint) -> None:
    table2 = suite("rocl-table2")
    with pytest.raises(UsageError, match=r"rocl-table2 crafts on a trades checkpoint for digits and there is none"):
        source_for(table2, "trades", "digits", [robust])
    other = replace(robust, folder=Path("other"), recipe=replace(robust.recipe, name="other", summary="x"))
    with pytest.raises(UsageError, match="any of other, pgd-at-digits@last: name one by --source"):
        source_for(table2, "pgd-at", "digits", [other, replace(robust, kind="last")])


# the command line


@pytest.fixture
def checkpoints(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with trained checkpoints."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("--suite rocl-tabel1", "Did you mean 'rocl-table1'"),
        ("--suite rocl-table1 --threat l2-1", "--threat goes with --attack"),
        ("--suite rocl-table1 --source pgd-at-digits", "suite rocl-table1 is white-box"),
        ("--suite rocl-fig3d --inference tsi --draws 3", "leave --draws out"),
        ("--suite rocl-table2", "crafts on a trades checkpoint for digits and there is none"),
        ("--suite rocl-table1 --inference tsi --draws 0", "0 draws answer nothing"),
        ("--attack pgd-20 --inference tsi --draws 0", "0 draws answer nothing"),
        ("--attack pgd-20 --inference tsi --average median", "'median' is not one of probabilities, votes"),
        ("--attack pgd-20 --inference tis", "Did you mean 'tsi'"),
        ("--attack pgd-20 --draws 3", "are for --inference tsi"),
        ("", "name an --attack (robench list attacks) or a --suite (robench list suites)"),
    ],
)
def test_a_mistake_is_one_line_that_helps(line: str, hint: str, checkpoints: Path, run_cli: Cli) -> None:
    code, out, err = run_cli("evaluate", *line.split())
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert hint in err
    assert not list(Path("results").rglob("*.json"))


def test_a_suite_attacks_the_last_epoch_unless_told_otherwise(checkpoints: Path, run_cli: Cli) -> None:
    assert run_cli("evaluate", "standard-digits", "pgd-at-digits@best", "--suite", "rocl-table3", "--count", 8)[0] == 0
    assert {r.subject.name for r in Store(Path("results")).records()} == {"standard-digits@last", "pgd-at-digits"}


def test_a_suite_and_an_attack_in_one_go(checkpoints: Path, run_cli: Cli) -> None:
    line = ["evaluate", "standard-digits", "--suite", "rocl-table3", "--attack", "fgsm", "--count", 8]
    code, _, err = run_cli(*line)
    assert code == 0
    assert "2 cells: 2 new, 0 already" in err
    found = {(r.cell.attack, str(r.cell.threat), r.subject.name) for r in Store(Path("results")).records()}
    assert found == {
        ("fgsm", "linf-0.2", "standard-digits"),
        ("pgd@steps=20,step=0.1", "linf-8/255", "standard-digits@last"),
    }
    assert "2 cells: 0 new, 2 already" in run_cli(*line)[2]


@pytest.mark.parametrize("form", ["terminal", "markdown", "csv"])
def test_the_table_of_a_suite_is_printed_and_written_alike(form: str, checkpoints: Path, run_cli: Cli) -> None:
    assert run_cli("evaluate", "standard-digits", "--suite", "rocl-table3", "--count", 8)[0] == 0
    line = ["report", "--table", "rocl-table3", "--format", form]
    code, out, _ = run_cli(*line)
    assert code == 0
    assert "standard-digits@last" in out
    assert run_cli(*line)[1] == out
    assert run_cli(*line, "--out", "table")[:2] == (0, "")
    assert Path("table").read_text() == out
    code, _, err = run_cli("report", "--table", "rocl-strong")
    assert code == 2
    assert "no results of suite rocl-strong: robench evaluate --suite rocl-strong" in err
    assert "Did you mean 'rocl-table3'" in run_cli("report", "--table", "rocl-tabel3")[2]


def test_smoothed_through_the_command_line(checkpoints: Path, run_cli: Cli) -> None:
    line = ["evaluate", "standard-digits", "--suite", "rocl-table3", "--inference", "tsi@area=0.6", "--draws", 3]
    code, _, err = run_cli(*line, "--count", 8)
    assert code == 0
    assert "standard-digits@last +tsi-3: pgd@steps=20,step=0.1 linf-8/255" in err
    assert err.count(", not adaptive") == 1
    out = run_cli("report", "--table", "rocl-table3")[1]
    assert "standard-digits@last +tsi-3" in out
    assert "adaptive" in out
    assert "mean probabilities over 3 random augmentations (area 0.6, flip False" in out
    assert "standard-digits@last +tsi-3" in run_cli("list", "results")[1]


def test_suites_are_listed(run_cli: Cli) -> None:
    code, out, _ = run_cli("list", "suites")
    assert code == 0
    for name in SUITES:
        assert name in out
