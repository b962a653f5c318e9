"""The table of costs: sums are sums, what is not known stays unknown, and Pareto marks agree with a slow reference."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_results import CELL, SUBJECT, result

from robench import cost, recipe
from robench.checkpoint import open_checkpoint
from robench.errors import StoreError
from robench.results import Store
from robench.run import Run
from robench.training import train

Cli = Callable[..., tuple[int, str, str]]
POINTS = st.lists(st.tuples(st.none() | st.integers(0, 4), st.none() | st.integers(0, 4)), max_size=8)


@given(points=POINTS)
@settings(deadline=None, derandomize=True)
def test_pareto_marks_are_those_of_the_definition(points: list[tuple[int | None, int | None]]) -> None:
    for (price, value), marked in zip(points, cost.pareto(points), strict=True):
        if price is None or value is None:
            assert not marked
            continue
        better = [
            (c, v)
            for c, v in points
            if c is not None and v is not None and ((c < price and v >= value) or (c <= price and v > value))
        ]
        assert marked is (not better)


def test_stages_add_up_and_an_unknown_one_makes_the_sum_unknown() -> None:
    stages = ({"seconds": 2.0, "peak_memory": 7.0}, {"seconds": 3.0, "peak_memory": 5.0, "joules": 1.0})
    assert cost.total(stages, "seconds") == 5.0
    assert cost.total(stages, "peak_memory") == 7.0
    assert cost.total(stages, "joules") is None
    assert cost.total((), "seconds") is None
    assert cost.total(({}, *stages), "seconds") is None


def test_rows_add_up_their_results_and_mark_what_is_worth_it() -> None:
    dear = replace(SUBJECT, name="dear", sha256="e" * 64)
    cheap = [result(peak_memory=2**20), result(replace(CELL, attack="fgsm"), robust=7, peak_memory=3 * 2**20)]
    costly = [
        result(replace(CELL, checkpoint="e" * 64), subject=dear, robust=4),
        result(replace(CELL, checkpoint="e" * 64, attack="fgsm"), subject=dear, robust=4),
    ]
    spent = {SUBJECT.sha256: ({"seconds": 10.0},), dear.sha256: ({"seconds": 60.0},)}
    (table,) = cost.tables([*cheap, *costly], spent)
    by_name = {row[1]: dict(zip(cost.HEADER, row[1:], strict=True)) for row in table.rows}
    first, second = by_name["rocl"], by_name["dear"]
    assert (first["training s"], first["evaluation s"], first["forwards"]) == ("10.0", "3.0", "462")
    assert (first["evaluation MiB"], second["evaluation MiB"]) == ("3", "-")
    assert (first["worst case"], second["worst case"]) == ("45.5", "36.4")
    assert (first["Pareto robust"], second["Pareto robust"]) == ("yes", "")
    (table,) = cost.tables([*cheap, costly[0]], spent)
    assert next(row for row in table.rows if row[1] == "dear")[12] == "-"  # fewer attacks would look more robust


def test_accuracies_have_intervals_where_asked() -> None:
    (table,) = cost.tables([result()], {}, intervals=True)
    shown = dict(zip(table.heads, table.rows[0][1:], strict=True))
    assert (shown["clean"], shown["worst case"]) == ("81.8 (52.3-94.9)", "45.5 (21.3-72.0)")


def test_a_doubted_checkpoint_is_worth_nothing_and_beats_nobody() -> None:
    spent = {SUBJECT.sha256: ({"seconds": 10.0},)}
    (sure,), (doubted,) = (cost.tables([result(notes=notes)], spent) for notes in ((), ("flag: zero gradients",)))
    assert (sure.rows[0][1], sure.rows[0][-2:]) == ("rocl", ("yes", "yes"))
    assert (doubted.rows[0][1], doubted.rows[0][-2:]) == ("rocl !", ("", ""))
    assert any("zero gradients" in note for note in doubted.notes)


def test_training_records_what_it_cost(tmp_path: Path, run_cli: Cli) -> None:
    short = recipe.load("standard-digits", [("stage.0.epochs", 2)])
    made = train(Run(short, tmp_path / "a"))
    (stage,) = open_checkpoint(f"{made.folder}@last", tmp_path).cost
    lines = (made.folder / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert stage["seconds"] > 0
    assert stage["images"] > 0
    assert stage["images"] % (2 * short.stage[0].batch) == 0
    assert "peak_memory" not in stage  # a processor does not count it
    assert cost.trained(tmp_path)[made.sha256] == made.cost


def test_checkpoints_of_before_open_without_a_cost(trained: Path, tmp_path: Path) -> None:
    source = next(trained.glob("*/last.json"))
    table = json.loads(source.read_bytes())
    del table["cost"], table["digest"]
    table["format"] = 1
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "last.json").write_text(json.dumps(table))
    assert open_checkpoint("old", tmp_path).cost == ()
    assert cost.trained(tmp_path) == {table["sha256"]: ()}


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"sha256": "a", "cost": [{"seconds": "x"}]}'])
def test_a_damaged_description_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.json").write_text(content)
    with pytest.raises(StoreError, match=r"last\.json is damaged"):
        cost.trained(tmp_path)


@pytest.mark.parametrize("form", ["terminal", "markdown", "csv"])
def test_the_command_prints_costs(tmp_path: Path, form: str, run_cli: Cli) -> None:
    Store(tmp_path).put(result())
    code, out, _ = run_cli(
        "report", "--table", "cost", "--format", form, "--results", tmp_path, "--checkpoints", tmp_path
    )
    assert code == 0
    assert "231" in out
    assert "Pareto" in out
