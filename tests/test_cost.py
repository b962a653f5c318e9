"""The table of costs: sums are sums, what is not known stays unknown, and Pareto marks agree with a slow reference."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_results import CELL, SUBJECT, result

from robench import cost, exhibits, recipe, spending
from robench.checkpoint import open_checkpoint
from robench.errors import StoreError
from robench.exhibits import Training
from robench.meter import Cost, Work, spend
from robench.panels import Worth
from robench.reporting import Table
from robench.results import Result, Store
from robench.run import Run
from robench.training import train

Cli = Callable[..., tuple[int, str, str]]
POINTS = st.lists(st.tuples(st.none() | st.integers(0, 4), st.none() | st.integers(0, 4)), max_size=8)


@given(points=POINTS)
@settings(deadline=None, derandomize=True)
def test_pareto_marks_are_those_of_the_definition(points: list[tuple[int | None, int | None]]) -> None:
    for (price, value), marked in zip(points, spending.pareto(points), strict=True):
        if price is None or value is None:
            assert not marked
            continue
        better = [
            (c, v)
            for c, v in points
            if c is not None and v is not None and ((c < price and v >= value) or (c <= price and v > value))
        ]
        assert marked is (not better)


def spent(sha256: str, *stages: dict[str, float], device: str = "cpu") -> Training:
    return Training(sha256, device, stages)


def on(device: str, **changes: Any) -> Result:
    return result(provenance={"device": device}, **changes)


def shown(table: Table) -> dict[str, dict[str, str]]:
    return {row[1]: dict(zip(table.heads, row[1:], strict=True)) for row in table.rows}


def test_stages_add_up_and_an_unknown_one_makes_the_sum_unknown() -> None:
    stages = ({"seconds": 2.0, "peak_memory": 7.0}, {"seconds": 3.0, "peak_memory": 5.0, "joules": 1.0})
    assert spending.total(stages, "seconds") == 5.0
    assert spending.total(stages, "peak_memory") == 7.0
    assert spending.total(stages, "joules") is None
    assert spending.total((), "seconds") is None
    assert spending.total(({}, *stages), "seconds") is None


STAGES = (
    {
        "seconds": 10.0,
        "device_seconds": 40.0,
        "forwards": 300.0,
        "backwards": 200.0,
        "peak_memory": 2**21,
        "joules": 9.0,
    },
    {
        "seconds": 2.0,
        "device_seconds": 2.0,
        "forwards": 60.0,
        "backwards": 0.0,
        "peak_memory": 2**20,
        "joules": 1.0,
        "head": 1.0,
    },
)


def test_training_head_and_attack_stand_apart_and_add_up() -> None:
    gpu = "cuda (H100)"
    one = on(gpu, peak_memory=3 * 2**20, joules=5.0)
    (table,) = cost.tables([one], [spent(SUBJECT.sha256, *STAGES, device=gpu)])
    row = shown(table)["rocl"]
    assert [row[f"training {name}"] for name in ("image passes", "GPU s", "MiB", "J")] == ["500", "40.0", "2", "9"]
    assert [row[f"head {name}"] for name in ("image passes", "GPU s", "MiB", "J")] == ["60", "2.0", "1", "1"]
    attack = one.forwards + one.backwards
    assert [row[f"attack {name}"] for name in ("image passes", "GPU s", "MiB", "J")] == [str(attack), "1.5", "3", "5"]
    assert (row["total image passes"], row["total GPU s"]) == (f"{560 + attack:,}", "43.5")


def test_no_head_stage_costs_nothing_and_an_unknown_training_is_no_nought() -> None:
    row = shown(cost.tables([on("cpu")], [spent(SUBJECT.sha256, STAGES[0])])[0])["rocl"]
    assert (row["head image passes"], row["head CPU s"], row["head J"]) == ("0", "0.0", "-")
    assert row["total CPU s"] == "41.5"
    row = shown(cost.tables([on("cpu")], [])[0])["rocl"]
    assert {row[head] for head in row if head.startswith(("training", "head", "total"))} == {"-"}


def test_seconds_of_two_devices_are_no_sum_and_passes_are() -> None:
    (table,) = cost.tables([on("cpu")], [spent(SUBJECT.sha256, *STAGES, device="cuda (H100)")])
    row = shown(table)["rocl"]
    assert row["total device s"] == "-"
    assert row["total image passes"] != "-"
    assert any(
        "trained on cuda (H100); attacked on cpu; times on different devices do not compare" in n for n in table.notes
    )


DEAR = replace(SUBJECT, name="dear", sha256="e" * 64)
TWO = [on("cpu"), on("cpu", cell=replace(CELL, checkpoint=DEAR.sha256), subject=DEAR, robust=4)]


def test_rows_add_up_their_results_and_mark_what_is_worth_it() -> None:
    cheap = [result(peak_memory=2**20), result(replace(CELL, attack="fgsm"), robust=7, peak_memory=3 * 2**20)]
    costly = [
        result(replace(CELL, checkpoint="e" * 64), subject=DEAR, robust=4),
        result(replace(CELL, checkpoint="e" * 64, attack="fgsm"), subject=DEAR, robust=4),
    ]
    known = [spent(SUBJECT.sha256, {"seconds": 10.0}), spent(DEAR.sha256, {"seconds": 60.0})]
    (table,) = cost.tables([*cheap, *costly], known)
    first, second = shown(table)["rocl"], shown(table)["dear"]
    assert (first["training CPU s"], first["attack CPU s"]) == ("10.0", "3.0")
    assert (first["attack MiB"], second["attack MiB"]) == ("3", "-")
    assert (first["worst case"], second["worst case"]) == ("45.5", "36.4")
    assert (first["Pareto robust"], second["Pareto robust"]) == ("yes", "")
    (table,) = cost.tables([*cheap, costly[0]], known)
    assert shown(table)["dear"]["worst case"] == "-"  # fewer attacks would look more robust


@pytest.mark.parametrize(
    ("by", "unit", "worth"),
    [
        ("training", "seconds", ["dear", "rocl"]),  # dear trained faster, rocl is more robust
        ("training", "passes", ["rocl"]),
        ("evaluation", "seconds", ["rocl"]),
        ("total", "passes", ["rocl"]),
        ("total", "joules", []),
    ],
)
def test_a_pareto_mark_is_by_the_cost_that_was_asked_for(by: str, unit: str, worth: list[str]) -> None:
    known = [
        spent(SUBJECT.sha256, {"seconds": 9.0, "forwards": 1.0, "backwards": 1.0}),
        spent(DEAR.sha256, {"seconds": 5.0, "forwards": 8.0, "backwards": 1.0}),
    ]
    (table,) = cost.tables(TWO, known, by=by, unit=unit)
    assert sorted(name for name, row in shown(table).items() if row["Pareto robust"]) == worth
    if worth:
        (figure,) = cost.figures(TWO, known, by, unit)
        (panel,) = figure.panels
        assert isinstance(panel, Worth)
        assert sorted(each.name for each in panel.values if each.front) == worth
    else:
        with pytest.raises(StoreError, match="no checkpoint has a known cost of total in joules"):
            cost.figures(TWO, known, by, unit)


def test_seconds_on_two_devices_do_not_compete() -> None:
    known = [spent(SUBJECT.sha256, STAGES[0]), spent(DEAR.sha256, {"seconds": 50.0}, device="cuda (H100)")]
    (table,) = cost.tables(TWO, known)
    assert [row["Pareto robust"] for row in shown(table).values()] == ["yes", "yes"]
    assert len(cost.figures(TWO, known)[0].panels) == 2


def test_accuracies_have_intervals_where_asked() -> None:
    (table,) = cost.tables([result()], [], intervals=True)
    row = shown(table)["rocl"]
    assert (row["clean"], row["worst case"]) == ("81.8 (52.3-94.9)", "45.5 (21.3-72.0)")


def test_a_doubted_checkpoint_is_worth_nothing_and_beats_nobody() -> None:
    known = [spent(SUBJECT.sha256, {"seconds": 10.0})]
    (sure,), (doubted,) = (cost.tables([result(notes=notes)], known) for notes in ((), ("flag: zero gradients",)))
    assert (sure.rows[0][1], sure.rows[0][-2:]) == ("rocl", ("yes", "yes"))
    assert (doubted.rows[0][1], doubted.rows[0][-2:]) == ("rocl !", ("", ""))
    assert any("zero gradients" in note for note in doubted.notes)
    assert "zero gradients" in cost.csv([result(notes=("flag: zero gradients",))], known)


def test_training_records_what_it_cost(tmp_path: Path, run_cli: Cli) -> None:
    short = recipe.load("standard-digits", [("stage.0.epochs", 2), ("validation", 100)])
    made = train(Run(short, tmp_path / "a"))
    (stage,) = open_checkpoint(f"{made.folder}@last", tmp_path).cost
    lines = (made.folder / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert stage["seconds"] > 0
    assert stage["device_seconds"] == stage["seconds"]
    assert stage["images"] > 0
    assert stage["images"] % (2 * short.stage[0].batch) == 0
    assert stage["backwards"] == stage["images"]  # one gradient for each image of a step
    assert stage["forwards"] == stage["images"] + 2 * 100  # and the validation images after each epoch
    assert "peak_memory" not in stage  # a processor does not count it
    assert "head" not in stage
    assert all(each.stages == made.spent == (stage,) for each in spending.trained(tmp_path).values())
    line = ("evaluate", "a", "--attack", "fgsm", "--threat", "linf-0.1", "--count", 8, "--device", "cpu")
    for _ in range(2):  # the cell is there already the second time
        assert run_cli(*line, "--checkpoints", tmp_path, "--results", tmp_path / "r")[0] == 0
        (kept,) = exhibits.load(tmp_path / "r").training
        assert kept.stages == (stage,)
        assert kept.device == "cpu"
        next((tmp_path / "r" / "training").iterdir()).unlink()


def test_an_attack_inside_training_and_a_head_are_counted(tmp_path: Path) -> None:
    settings = [("stage.0.epochs", 1), ("stage.1.epochs", 1), ("validation", 0), ("stage.0.probe", 0)]
    made = train(Run(recipe.load("rocl-digits", settings), tmp_path / "a"))
    first, second = made.spent
    steps = made.recipe.stage[0].options["steps"]
    assert first["backwards"] >= (steps + 2) * first["images"]  # the climb, and the gradient of both views at least
    assert (second["head"], second["backwards"]) == (1.0, 0.0)  # no gradient passes a frozen encoder
    assert second["forwards"] == second["images"]
    assert "head" not in first


def test_what_an_earlier_version_did_not_count_stays_absent() -> None:
    costs: list[dict[str, float]] = [{"seconds": 1.0, "images": 8.0}]
    spend(costs, 0, Work(Cost(2.0, None, None), 8, 16, 8), first=False)
    assert costs == [{"seconds": 3.0, "images": 16.0}]
    spend(costs, 2, Work(Cost(2.0, None, None), 8, 16, 8, devices=4), first=True)
    assert costs[1] == {}
    assert (costs[2]["seconds"], costs[2]["device_seconds"]) == (2.0, 8.0)
    costs = []
    spend(costs, 0, Work(Cost(2.0, 5, 1.0), 8, 16, 8, devices=4, head=True), first=True)
    assert (costs[0]["device_seconds"], costs[0]["peak_memory"], costs[0]["head"]) == (8.0, 5.0, 1.0)


def test_checkpoints_of_before_open_without_a_cost(trained: Path, tmp_path: Path) -> None:
    source = next(trained.glob("*/last.json"))
    table = json.loads(source.read_bytes())
    del table["cost"], table["digest"]
    table["format"] = 1
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "last.json").write_text(json.dumps(table))
    assert open_checkpoint("old", tmp_path).cost == ()
    assert [each.stages for each in spending.trained(tmp_path).values()] == [()]


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"sha256": "a", "cost": [{"seconds": "x"}]}'])
def test_a_damaged_description_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.json").write_text(content)
    with pytest.raises(StoreError, match=r"last\.json is damaged"):
        spending.trained(tmp_path)


@pytest.mark.parametrize("form", ["terminal", "markdown", "csv"])
def test_the_command_prints_costs(tmp_path: Path, form: str, run_cli: Cli) -> None:
    Store(tmp_path).put(result())
    code, out, _ = run_cli(
        "report", "--table", "cost", "--format", form, "--results", tmp_path, "--checkpoints", tmp_path
    )
    assert code == 0
    assert "451" in out
    assert "Pareto" in out


def test_a_kept_cost_table_follows_from_the_results_alone(tmp_path: Path, run_cli: Cli) -> None:
    Store(tmp_path).put(on("cpu"))
    exhibits.put(spent(SUBJECT.sha256, *STAGES), tmp_path)
    exhibits.put(spent(SUBJECT.sha256, {"seconds": 1.0}), tmp_path)  # trained again: what was first stays
    line = ("report", "--results", tmp_path, "--table", "cost", "--format", "csv", "--by", "total", "--unit", "passes")
    assert run_cli(*line, "--out", tmp_path / "cost.csv")[0] == 0
    assert ",1011,43.5," in (tmp_path / "cost.csv").read_text()
    code, out, _ = run_cli("verify", tmp_path, "--check")
    assert (code, "cost.csv" in out) == (0, False)
    (tmp_path / "cost.csv").write_text((tmp_path / "cost.csv").read_text().replace("43.5", "41.0"))
    assert run_cli("verify", tmp_path, "--check")[0] == 1
    assert run_cli("report", "--results", tmp_path, "--by", "total")[0] == 2
