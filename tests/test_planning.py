"""What an evaluation will cost is said before anything is attacked; and `--precision`, which makes other cells of it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from robench import planning, reporting
from robench.checkpoint import open_checkpoint
from robench.evaluation import Engine
from robench.results import Result, Store
from robench.threat import ThreatModel

Cli = Callable[..., tuple[int, str, str]]
LINF = ThreatModel.parse("linf-0.2")


def test_hours_are_passes_times_the_pace(trained: Path) -> None:
    engine = Engine(torch.device("cpu"))
    (job,) = engine.plan([open_checkpoint("standard-digits", trained)], attacks=["pgd-20"], threats=[LINF], count=40)
    pace = planning.Pace(forward=2.0, gradient=3.0, right=0.5)
    assert planning.took(pace, job, 21, 20) == 20 * (21 * 2 + 20 * 3) + 2 * 40 * 2


def test_a_transfer_attacks_every_image(trained: Path) -> None:
    engine = Engine(torch.device("cpu"))
    one, other = (open_checkpoint(name, trained) for name in ("standard-digits", "pgd-at-digits"))
    (job,) = engine.plan([one], attacks=["pgd-20"], threats=[LINF], sources=[other], count=40)
    assert planning.took(planning.Pace(1.0, 0.0, 0.5), job, 10, 0) == 40 * 10 + 80


def test_a_look_at_a_model(trained: Path) -> None:
    engine = Engine(torch.device("cpu"))
    model = open_checkpoint("standard-digits", trained)
    (job,) = engine.plan([model], attacks=["pgd-20"], threats=[LINF], count=40)
    found = planning.pace(engine, job)
    result = engine.evaluate(job)
    assert isinstance(result, Result)
    assert found.right == pytest.approx(sum(result.clean) / 40)
    assert found.forward > 0


def test_a_plan_lists_cells_and_runs_nothing(trained: Path, tmp_path: Path, run_cli: Cli) -> None:
    asked = (
        *("evaluate", "standard-digits", "pgd-at-digits", "--attack", "pgd-20", "--attack", "autoattack"),
        *("--threat", LINF, "--count", 30, "--checkpoints", trained, "--results", tmp_path / "results"),
    )
    code, out, _ = run_cli(*asked, "--plan")
    assert code == 0
    assert not (tmp_path / "results").exists()
    for text in ("standard-digits: pgd-20 linf-0.2", "pgd-at-digits: autoattack linf-0.2", "7,818", "1,900", "all"):
        assert text in out
    assert "there already" not in out


def test_a_plan_knows_what_is_there(trained: Path, tmp_path: Path) -> None:
    engine, store = Engine(torch.device("cpu")), Store(tmp_path)
    model = open_checkpoint("standard-digits", trained)
    jobs = engine.plan([model], attacks=["pgd-5", "fgsm"], threats=[LINF], count=10)
    list(engine.run(jobs[:1], store))
    made = planning.table(engine, jobs, store)
    assert [row[-1] == "there already" for row in made.rows] == [True, False, False]
    assert made.rows[-1][-1] == made.rows[1][-1]  # what is there costs nothing


def test_another_precision_is_another_column(trained: Path, tmp_path: Path, run_cli: Cli) -> None:
    asked = ("evaluate", "pgd-at-digits", "--attack", "pgd-5", "--count", 20, "--checkpoints", trained)
    for more in ((), ("--precision", "bfloat16")):
        code, _, err = run_cli(*asked, "--results", tmp_path, *more)
        assert code == 0, err
    records = list(Store(tmp_path).records())
    assert sorted(record.cell.precision for record in records) == ["bfloat16", "float32"]
    (table,) = reporting.tables(records)
    assert [head for head in table.heads if "pgd-5" in head] == ["seen linf-0.2 pgd-5", "seen linf-0.2 pgd-5 bfloat16"]


@pytest.mark.parametrize(
    ("more", "hint"),
    [
        (("--attack", "cw", "--threat", "l2-0.5"), "attack cw does not confirm in float32"),
        (("--attack", "pgd-5", "--source", "all"), "a transfer"),
        (("--suite", "rocl-table1"), "goes with --attack"),
    ],
)
def test_where_a_precision_cannot_be(
    more: tuple[object, ...], hint: str, trained: Path, tmp_path: Path, run_cli: Cli
) -> None:
    code, _, err = run_cli(
        "evaluate", *more, "--precision", "float16", "--count", 20, "--checkpoints", trained, "--results", tmp_path
    )
    assert code == 2
    assert hint in err
    assert not list(tmp_path.iterdir())
