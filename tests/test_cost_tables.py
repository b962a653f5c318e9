"""docs/reproducing-rocl.md: its hours follow from the operations that benchmarks/cost.py counted and kept."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_benchmark import FOLDER, load

from robench import recipe

COST = load("cost")
COUNTS: dict[str, Any] = json.loads((FOLDER / "cost.json").read_text())
TEXT = (Path(__file__).parent.parent / "docs" / "reproducing-rocl.md").read_text()
RATE = 25.0


@pytest.mark.parametrize("table", [COST.by_recipe, COST.by_attack], ids=["recipes", "attacks"])
def test_the_page_has_what_follows_from_the_counts(table: Callable[[Any, float], Iterator[str]]) -> None:
    assert "\n".join(table(COUNTS, RATE)) + "\n" in TEXT


@pytest.mark.parametrize("row", COST.rows(), ids=lambda row: row.name)
def test_the_page_has_the_hours_of_every_table(row: Any) -> None:
    trained, evaluated = COST.of(COUNTS, row)
    hours = f"| {COST.hours(trained, RATE)} | {COST.hours(evaluated, RATE)} |"
    (line,) = (each for each in TEXT.splitlines() if each.startswith(f"| {row.name}"))
    assert line.endswith(hours)


def test_every_table_of_the_page_is_counted() -> None:
    listed = TEXT.partition("| paper | train |")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(listed) == len(COST.rows())


def test_what_was_counted_is_of_the_recipes_that_are_there() -> None:
    for name, flops in COUNTS["stages"].items():
        assert len(flops) == len(recipe.load(name).stage), name
    rocl, rocl50 = (COUNTS["stages"][name][0] for name in ("rocl", "rocl-resnet50"))
    forward, backward = COUNTS["passes"]["resnet18"]
    assert rocl > COUNTS["stages"]["simclr"][0] + 7 * (forward + backward)  # seven attack steps besides
    assert 2 < rocl50 / rocl < 2.6
    assert re.search(r"ResNet-50 2\.3 times", TEXT)


def test_the_rate_divides() -> None:
    assert COST.hours(4e15 * 3600, 1.0) == "4,000"
    assert COST.hours(4e15 * 3600, 1000.0) == "4.0"
    assert COST.hours(0.0, 1.0) == "-"
    assert COST.hours(1.0, 1.0) == "< 0.1"


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["standard", "rocl", "finetune-trades"])
def test_the_counts_are_those_of_this_code(name: str) -> None:
    wanted = recipe.load(name)
    assert [COST.stage_flops(wanted, i) for i in range(len(wanted.stage))] == COUNTS["stages"][name]
