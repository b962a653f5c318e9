"""benchmarks/loss_trace.py: runs that follow the released code's log, that depart from it, and that are another experiment."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_benchmark import load

from robench import recipe
from robench.spec import plain

TRACE = load("loss_trace")
REFERENCE = {0: 13.16, 1: 12.64, 5: 12.35, 10: 12.26}


def run(folder: Path, losses: dict[int, float], *changes: tuple[str, Any], second: float = 5.98) -> Path:
    """The folder of a run of `rocl-2020` that logged these losses, epochs counted from 0."""
    folder.mkdir()
    found = recipe.load("rocl-2020", changes)
    (folder / "run.json").write_text(json.dumps({"recipe": plain(found)}))
    row = {"stage": 0, "method": "rocl", "regulariser": second / 256}
    lines = [json.dumps({**row, "epoch": epoch + 1, "contrastive": loss}) for epoch, loss in losses.items()]
    lines.append(json.dumps({"stage": 1, "method": "linear", "epoch": 1, "ce": 2.0}))  # a later stage is no part of it
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def between(scale: float) -> dict[int, float]:
    """A loss at every epoch up to the tenth, the reference's times a factor where there is one."""
    return {epoch: scale * REFERENCE.get(epoch, 12.5) for epoch in range(11)}


@pytest.mark.parametrize(("scale", "code"), [(1.0, 0), (1.009, 0), (0.991, 0), (1.011, 1), (0.989, 1)])
def test_one_per_cent_is_the_border(
    scale: float, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert TRACE.main([str(run(tmp_path / "run", between(scale)))]) == code
    said = capsys.readouterr().out
    assert ("follows: the three-view loss is within 1 % at 4 epochs" in said) == (code == 0)
    assert "| 0 | three views | 13.16 | " in said
    assert "| 0 | second term | 5.98 | 5.98 | +0.0 % |" in said


def test_one_epoch_apart_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tmp_path / "run", {**between(1.0), 5: 12.35 * 1.05})
    assert TRACE.main([str(folder)]) == 1
    assert "departs: the three-view loss is +5.0 % apart at epoch 5" in capsys.readouterr().out
    assert TRACE.main([str(folder), "--tolerance", "0.06"]) == 0
    assert TRACE.main([str(folder), "--report"]) == 0  # says it, and lets a script go on


def test_the_second_term_is_shown_and_does_not_decide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert TRACE.main([str(run(tmp_path / "run", between(1.0), second=7.0))]) == 0
    assert "| 0 | second term | 5.98 | 7.00 | +17.1 % |" in capsys.readouterr().out


def test_the_comparison_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "trace.json"
    TRACE.main([str(run(tmp_path / "run", {0: 13.16 * 0.9})), "--out", str(out)])
    kept = json.loads(out.read_text())
    assert "departs" in kept["said"]
    assert kept["rows"][0]["apart"] == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("dataset", "cifar100"), "dataset = cifar100 (not cifar10)"),
        (("stage.0.batch", 256), "batch = 256 (not 512)"),
        (("stage.0.options.groups", 1), "groups = 1 (not 2)"),
        (("stage.0.options.lambda", "1/16"), "regularise = 0.0625"),
        (("threat", "linf-8/255"), "threat = "),
    ],
)
def test_another_experiment_is_not_compared(
    change: tuple[str, Any], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert TRACE.main([str(run(tmp_path / "run", between(1.0), change))]) == 2
    said = capsys.readouterr().out
    assert "not to be compared: another experiment" in said
    assert named in said


def test_what_moves_no_loss_may_differ(tmp_path: Path) -> None:
    assert TRACE.main([str(run(tmp_path / "run", between(1.0), ("stage.0.probe", 0), ("validation", 1000)))]) == 0


def test_a_log_without_a_shared_epoch_or_no_log_is_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert TRACE.main([str(run(tmp_path / "run", {2: 12.5}))]) == 2
    assert "no epoch that the reference has" in capsys.readouterr().out
    assert TRACE.main([str(tmp_path / "nothing")]) == 2
    (tmp_path / "run" / "metrics.jsonl").write_text("nonsense\n")
    assert TRACE.main([str(tmp_path / "run")]) == 2
    assert "is no log of a run" in capsys.readouterr().err
