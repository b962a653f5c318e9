"""The demo: its plan, and one lane of it from training to stored cells, on a recipe made small."""

import queue
from pathlib import Path

import pytest
import torch

from robench import demo, recipe, reporting
from robench.checkpoint import open_checkpoint
from robench.evaluation import Engine
from robench.protocols import Progress
from robench.registry import METHODS
from robench.results import Result, Store

CPU = torch.device("cpu")

SMALL = """
summary = "standard training, for a test"
dataset = "digits"
model = "cnn@width=2"
validation = 1200
[[stage]]
method = "standard"
epochs = 2
batch = 64
optimiser = { lr = 0.1 }
"""


def test_the_demo_trains_recipes_that_are_there() -> None:
    assert set(demo.RECIPES) <= set(recipe.names())
    assert len(set(demo.RECIPES)) == 5


def test_the_demo_shows_what_it_says() -> None:
    found = [recipe.load(name) for name in demo.RECIPES]
    assert {each.dataset for each in found} == {"digits"}  # real images, no download
    assert {each.threat for each in found} == {None, demo.SEEN}
    methods = {stage.method for each in found for stage in each.stage}
    assert methods == {"standard", "pgd-at", "trades", "simclr", "rocl", "linear"} <= set(METHODS.rows)


def test_the_white_box_cells_of_a_model(trained: Path) -> None:
    jobs = demo.white_box(Engine(CPU), [open_checkpoint("standard-digits", trained)])
    assert sorted((job.cell.attack, str(job.cell.threat)) for job in jobs) == [
        ("autoattack", "linf-0.2"),
        ("fgsm", "linf-0.2"),
        ("pgd-20", "l2-0.25"),
        ("pgd-20", "l2-0.5"),
        ("pgd-20", "linf-0.2"),
        ("pgd-20", "linf-0.25"),
        ("pgd-20x10", "l1-1"),
        ("pgd-20x10", "l1-2"),
    ]
    assert all(job.source is None for job in jobs)


def test_every_model_gets_the_same_cells(trained: Path) -> None:
    models = [open_checkpoint(name, trained) for name in ("standard-digits", "pgd-at-digits")]
    assert len(demo.white_box(Engine(CPU), models)) == 16


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of recipes and a plan that take a second; returns where to work."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "small-digits.toml").write_text(SMALL)
    monkeypatch.setattr(recipe, "folder", lambda: tmp_path / "recipes")

    def plan(engine: Engine, models: list[demo.Checkpoint]) -> list[demo.Job]:
        return engine.plan(models, attacks=["fgsm", "autoattack"], threats=[demo.SEEN], count=6)

    monkeypatch.setattr(demo, "white_box", plan)
    return tmp_path


def test_a_lane_trains_attacks_and_tells(small: Path) -> None:
    events: queue.Queue[Progress] = queue.Queue()
    demo._lane("small-digits", small / "checkpoints", small / "results", "cpu", events)

    assert open_checkpoint("small-digits", small / "checkpoints").recipe.name == "small-digits"
    records = list(Store(small / "results").records())
    assert sorted(record.cell.attack for record in records) == ["autoattack", "fgsm"]
    assert all(isinstance(record, Result) for record in records)

    told = [events.get() for _ in range(events.qsize())]
    last = {progress.task: progress for progress in told}
    assert [task.split()[0] for task in last] == ["train", "attack"]
    assert all("small" in task and "digits" not in task for task in last)
    assert all(progress.done == pytest.approx(progress.total) for progress in last.values())

    (table,) = reporting.tables(records)
    assert "autoattack" in table.header[-1]


def test_a_lane_does_nothing_twice(small: Path) -> None:
    first: queue.Queue[Progress] = queue.Queue()
    again: queue.Queue[Progress] = queue.Queue()
    for events in (first, again):
        demo._lane("small-digits", small / "checkpoints", small / "results", "cpu", events)
    assert first.qsize() > 0
    assert again.qsize() == 0


def test_a_lane_goes_on_with_an_interrupted_run(small: Path) -> None:
    class StoppedError(Exception):
        pass

    class Full(queue.Queue[Progress]):
        def put(self, item: Progress, block: bool = True, timeout: float | None = None) -> None:
            raise StoppedError

    with pytest.raises(StoppedError):
        demo._lane("small-digits", small / "checkpoints", small / "results", "cpu", Full())
    demo._lane("small-digits", small / "checkpoints", small / "results", "cpu", queue.Queue())
    assert len(list(Store(small / "results").records())) == 2
