"""Sweeps: every combination once, nothing twice, nothing lost, and a table whose numbers can be worked out by hand."""

import json
import shutil
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robench import recipe, sweep, training
from robench.errors import UsageError
from robench.protocols import Progress
from robench.recipe import Published
from robench.rendering.markdown import markdown
from robench.results import Cell, Failure, Result, Store, Subject
from robench.sweep import Axis, Plan, Point
from robench.threat import ThreatModel

Cli = Callable[..., tuple[int, str, str]]

SMALL = ("--set", "model=cnn@width=2", "--set", "validation=1100", "--set", "stage.0.epochs=1")
LINF = ThreatModel.parse("linf-0.1")


# reading


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1/16,1/256", ["1/16", "1/256"]),
        ("0", ["0"]),
        ("[30, 50],[100]", ["[30, 50]", "[100]"]),
        ('{name = "step", drops = [1, 2]},{name = "cosine"}', ['{name = "step", drops = [1, 2]}', '{name = "cosine"}']),
        ('"a,b",c', ['"a,b"', "c"]),
        ("'a,b' , c", ["'a,b'", "c"]),
        ("linf-8/255,l2-0.5", ["linf-8/255", "l2-0.5"]),
        ("", [""]),
        ("1,", ["1", ""]),
        ("cnn@width=2", ["cnn@width=2"]),
    ],
)
def test_values_are_parted_at_commas_outside_brackets_and_quotes(text: str, parts: list[str]) -> None:
    assert sweep.split(text) == parts


@given(st.lists(st.lists(st.integers(0, 9), min_size=1), min_size=1))
@settings(deadline=None, derandomize=True)
def test_lists_survive_parting(values: list[list[int]]) -> None:
    assert [json.loads(part) for part in sweep.split(",".join(map(str, values)))] == values


@pytest.mark.parametrize(
    ("given_", "hint"),
    [
        ([], "needs something to set"),
        (["seed="], "an empty value"),
        (["seed=0,,1"], "an empty value"),
        (["seed=0,1,0"], "0 stands twice"),
        (["seed=0", "seed=1"], "--set seed is given twice"),
        (["seed"], "expected KEY=VALUE"),
        (["=1"], "expected KEY=VALUE"),
    ],
)
def test_an_empty_or_double_grid_is_refused(given_: list[str], hint: str) -> None:
    with pytest.raises(UsageError) as raised:
        sweep.axes(given_)
    assert hint in str(raised.value)


# grids


def points(*given_: str, name: str = "rocl-digits") -> list[Point]:
    return sweep.grid(name, sweep.axes(given_))


def test_every_combination_once_in_order() -> None:
    found = points("stage.0.options.regularise=1/16,1/256", "stage.0.epochs=2,3", "seed=0,1")
    assert [(p.recipe.stage[0].options["regularise"], p.recipe.stage[0].epochs, p.seed) for p in found] == [
        (regularise, epochs, seed) for regularise in ("1/16", "1/256") for epochs in (2, 3) for seed in (0, 1)
    ]
    assert found[0].setting == (("regularise", "1/16"), ("epochs", "2"))


def test_runs_have_readable_names_of_their_own() -> None:
    names = [each.name for each in points("stage.0.options.regularise=1/16,1/256", "seed=0,2")]
    assert names == [
        "rocl-digits-regularise=1_16",
        "rocl-digits-regularise=1_16-seed2",
        "rocl-digits-regularise=1_256",
        "rocl-digits-regularise=1_256-seed2",
    ]
    found = points(
        "stage.0.optimiser.lr=1e-1,-0",
        "stage.1.epochs=1",
        'stage.0.schedule={name = "cosine", warmup = 2}',
        "threat=linf-0.1",
    )
    assert found[0].name.startswith(
        "rocl-digits-optimiser.lr=1e-1-stage.1.epochs=1-schedule=name_cosine_warmup_2-threat=linf-0.1"
    )


def test_an_axis_by_another_name_is_the_same_grid() -> None:
    assert points("stage.0.options.lambda=1/16,1/256", "seed=0,1") == points(
        "stage.0.options.regularise=1/16,1/256", "seed=0,1"
    )
    with pytest.raises(UsageError, match=r"regularise is given under two names: put all values in one"):
        points("stage.0.options.lambda=1/16", "stage.0.options.regularise=1/256")


def test_a_changed_recipe_has_another_name_so_that_no_published_figure_is_its() -> None:
    assert {each.recipe.name for each in points("stage.0.epochs=2", "seed=0,1")} == {"rocl-digits-epochs=2"}
    assert {each.recipe.name for each in points("seed=0,1")} == {"rocl-digits"}


def test_long_names_are_cut_and_stay_apart() -> None:
    long = ",".join(f"[{', '.join(str(i) for i in range(60))}, {last}]" for last in (70, 71))
    found = points(f"stage.0.schedule.drops={long}")
    assert len({each.name for each in found}) == 2
    assert all(len(each.name) < 150 for each in found)


@pytest.mark.parametrize(
    ("given_", "hint"),
    [
        (["stage.0.optimizer.lr=1,2"], "stage.0.optimizer: unknown key; did you mean 'optimiser'"),
        (["epochs=1,2"], "epochs: unknown key"),
        (["stage.0.options.regularised=1,2"], "regularised"),
        (["stage.0.options.step=0.1,much"], "much"),
        (["stage.5.epochs=1"], "there is no item '5'"),
        (["model=cnn,resnet81"], "Did you mean 'resnet18'"),
        (["threat=linf-8"], "did you mean linf-8/255?"),
        (["seed=0,x"], "x is not a whole number"),
        (["seed=-1"], "-1 is not a whole number"),
        (["stage.0.augment.area=0.5,2"], "area must be between"),
    ],
)
def test_keys_and_values_are_checked_over_the_whole_grid(given_: list[str], hint: str) -> None:
    with pytest.raises(UsageError) as raised:
        points(*given_)
    assert hint in str(raised.value)


def test_two_values_that_mean_the_same_run_are_refused() -> None:
    with pytest.raises(UsageError, match="twice"):
        points("stage.0.optimiser.lr=1/2,1_2")


# the table


def result(
    point: Point, robust: int, clean: int = 8, count: int = 10, attack: str = "pgd-20", threat: ThreatModel = LINF
) -> Result:
    cell = Cell(point.name, "", attack, 1, {}, threat, "d" * 64, count, 0)
    on = Subject(point.name, point.recipe.name, "supervised", threat, point.seed, "digits", point.name)
    bits = [tuple(i < n for i in range(count)) for n in (clean, robust)]
    return Result(cell, on, None, bits[0], bits[1], 0.1, 1.0, 1, 1)


def rows(ran: list[tuple[Point, list[Result | Failure]]]) -> list[tuple[str, ...]]:
    return [row[1:] for row in sweep.table("r", ran)[0].rows]  # type: ignore[arg-type]


def test_a_row_is_the_mean_and_deviation_over_seeds() -> None:
    grid = points("stage.0.epochs=2,3", "seed=0,1,2")
    counts = [(8, 4), (9, 5), (7, 3), (8, 1), (8, 1), (8, 2)]
    ran = [(p, [result(p, robust, clean)]) for p, (clean, robust) in zip(grid, counts, strict=True)]
    assert rows(ran) == [  # type: ignore[arg-type]
        ("epochs = 2", "3 seeds", "80.0 +- 10.0", "40.0 +- 10.0"),
        ("epochs = 3", "3 seeds", "80.0 +- 0.0", f"13.3 +- {statistics.stdev([10, 10, 20]):.1f}"),
    ]


def test_one_seed_is_called_one_and_has_no_deviation() -> None:
    ran = [(p, [result(p, 4)]) for p in points("stage.0.epochs=2,3")]
    assert rows(ran) == [("epochs = 2", "1 seed", "80.0", "40.0"), ("epochs = 3", "1 seed", "80.0", "40.0")]  # type: ignore[arg-type]
    notes = sweep.table("r", ran)[0].notes  # of 8 of 10 and 4 of 10 the former's reaches down to 49.0
    assert any(
        "95 % Wilson intervals of single runs, over the test images, reach up to 31.0 points" in n for n in notes
    )


def test_a_failed_seed_is_counted_out_and_said() -> None:
    one, two = points("seed=0,1")
    lost = result(two, 0)
    failure = Failure(lost.cell, lost.subject, None, "it broke")
    made = sweep.table("r", [(one, [result(one, 4)]), (two, [failure])])
    assert made[0].rows[0][1:] == ("as it is", "2 seeds", "80.0 (1 of 2)", "40.0 (1 of 2)")
    assert made[1].rows == (("", two.name, "pgd-20", "linf-0.1", "it broke"),)


def test_what_all_share_stands_above_and_attacks_at_one_threat_together() -> None:
    far = ThreatModel.parse("linf-0.2")
    ran = [
        (
            p,
            [
                result(p, n, attack=attack, threat=threat)
                for attack, threat, n in (("fgsm", LINF, 5), ("fgsm", far, 4), ("pgd-20", LINF, 3))
            ],
        )
        for p in points("stage.0.epochs=2,3", "stage.0.batch=64")
    ]
    (made,) = sweep.table("rocl-digits", ran)  # type: ignore[arg-type]
    assert made.title == "Sweep of rocl-digits: batch = 64; digits, 10 test images"
    assert made.header[0][3:] == ("linf-0.1", "linf-0.1", "linf-0.2")
    assert [row[4:] for row in made.rows] == [("50.0", "30.0", "40.0")] * 2
    assert markdown([made]) == markdown(sweep.table("rocl-digits", ran))  # type: ignore[arg-type]


def test_published_figures_of_the_settings_stand_beside() -> None:
    figures = [
        Published("paper, table 10, regularise 1/16", "clean", 0.75, note="batch not stated"),
        Published("paper, table 10, regularise 1/16", "PGD-20", 0.405, LINF),
        Published("paper, table 9, attack_target other, regularise 1/256", "clean", 0.9),
        Published("paper, table 9, attack_target original, regularise 1/256", "clean", 0.95),
        Published("paper, table 1", "PGD-20", 0.1, LINF),
    ]
    ran = [(p, [result(p, 4)]) for p in points("stage.0.options.regularise=1/16,1/256", "seed=0,1")]
    (made,) = sweep.table("rocl-digits", ran, figures)  # type: ignore[arg-type]
    assert [row[3:] for row in made.rows] == [
        ("80.0 +- 0.0 (75.00, +5.0)", "40.0 +- 0.0 (40.50, -0.5)"),
        ("80.0 +- 0.0 (90.00, -10.0)", "40.0 +- 0.0"),  # attack_target is the method's default
    ]
    assert any("table 10, regularise 1/16: batch not stated" in note for note in made.notes)


# running


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


LINE = [
    "sweep",
    "standard-digits",
    *SMALL,
    "--set",
    "stage.0.optimiser.lr=0.05,0.1",
    "--set",
    "seed=0,1",
    "--count",
    20,
    "--attack",
    "fgsm",
]


def test_a_sweep_trains_evaluates_and_prints_one_table(here: Path, run_cli: Cli) -> None:
    code, out, err = run_cli(*LINE)
    assert code == 0, err
    assert "4 runs, 4 to train" in err
    assert "4 cells: 4 new" in err
    assert (
        out.count(
            "Sweep of standard-digits: model = cnn@width=2, validation = 1100, epochs = 1; digits, 20 test images"
        )
        == 1
    )
    assert all(f"optimiser.lr = {n}" in out for n in ("0.05", "0.1"))
    before = files(here)
    again = run_cli(*LINE)
    assert (again[0], again[1]) == (0, out)
    assert "4 runs, 0 to train" in again[2]
    assert files(here) == before


def test_a_larger_sweep_takes_over_a_smaller(here: Path, run_cli: Cli) -> None:
    assert (
        run_cli(
            "sweep", "standard-digits", *SMALL, "--set", "stage.0.optimiser.lr=0.05", "--count", 20, "--attack", "fgsm"
        )[0]
        == 0
    )
    before = files(here / "checkpoints")
    code, _, err = run_cli(*LINE)
    assert code == 0
    assert "4 runs, 3 to train" in err
    assert before.items() <= files(here / "checkpoints").items()


def test_a_sweep_over_seeds_alone_takes_what_train_made(here: Path, run_cli: Cli) -> None:
    small = here / "small.toml"
    text = (recipe.folder() / "standard-digits.toml").read_text()
    small.write_text(text.replace("validation = 180", "validation = 1100").replace("epochs = 15", "epochs = 1"))
    assert run_cli("train", "small.toml", "--seed", 1)[0] == 0
    code, _, err = run_cli("sweep", "small.toml", "--set", "seed=0,1", "--count", 20, "--attack", "fgsm")
    assert code == 0
    assert "2 runs, 1 to train" in err


def test_an_interrupted_sweep_goes_on_where_it_stopped(here: Path) -> None:
    class StopError(Exception):
        pass

    def stopping(progress: Progress) -> None:
        if progress.task.startswith("3/4") and progress.done > 0:
            raise StopError

    grid = sweep.grid(
        "standard-digits",
        sweep.axes(
            ["model=cnn@width=2", "validation=1100", "stage.0.epochs=1", "stage.0.optimiser.lr=0.05,0.1", "seed=0,1"]
        ),
    )
    plan = Plan(Path("checkpoints"), Path("results"), attacks=("fgsm",), threats=(LINF,), count=20)
    with pytest.raises(StopError):
        list(sweep.run(grid, plan, stopping))
    states = sweep.check(grid, plan)
    assert list(states.values())[:2] == ["trained", "trained"]
    assert list(states.values())[2] in ("unfinished", "to train")
    assert list(states.values())[3] == "to train"
    assert len(list(Store(Path("results")).records())) == 2
    before = files(here)
    went_on = list(sweep.run(grid, plan))
    assert [there for _, cells in went_on for _, _, there in cells] == [True, True, False, False]
    kept = {path for path in before if path.parent.name in (grid[0].name, grid[1].name)}
    assert {path: before[path] for path in kept}.items() <= files(here).items()
    whole = replace(plan, checkpoints=Path("c2"), results=Path("r2"))
    straight = list(sweep.run(grid, whole))
    tables = [
        sweep.table("standard-digits", [(point, [record for _, record, _ in cells]) for point, cells in ran])
        for ran in (went_on, straight)
    ]
    assert tables[0] == tables[1]


def test_a_plan_prints_the_runs_and_writes_nothing(here: Path, run_cli: Cli) -> None:
    code, out, err = run_cli(*LINE, "--plan")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[1:]] == [
        f"standard-digits-model=cnn_width_2-validation=1100-epochs=1-optimiser.lr={lr}{seed}"
        for lr in (0.05, 0.1)
        for seed in ("", "-seed1")
    ]
    assert out.count("to train") == 4
    assert files(here) == {}


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("sweep standard-digits", "needs something to set"),
        ("sweep standard-digits --set seed=", "an empty value"),
        ("sweep standart-digits --set seed=0", "Did you mean 'standard-digits'"),
        ("sweep standard-digits --set stage.0.epochs=1,2 --set stage.0.optimizer.lr=1", "did you mean 'optimiser'"),
        ("sweep standard-digits --set stage.0.options.beta=1", "beta"),
        ("sweep standard-digits --set seed=0,1 --attack pgd-2o", "Did you mean 'pgd-20'"),
        ("sweep standard-digits --set seed=0,1 --attack pgd@stps=3", "did you mean 'steps'"),
        ("sweep standard-digits --set seed=0,1 --attack cw", "works in l2"),
        ("sweep standard-digits --set seed=0,1 --threat linf-8", "did you mean linf-8/255?"),
        ("sweep standard-digits --set seed=0,1 --encoder nowhere", "no checkpoint 'nowhere'"),
    ],
)
def test_a_mistake_is_said_before_anything_trains(line: str, hint: str, here: Path, run_cli: Cli) -> None:
    code, out, err = run_cli(*line.split())
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert hint in err
    assert files(here) == {}


def test_a_folder_of_another_run_is_refused_before_anything_trains(
    here: Path, trained: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained / "pgd-at-digits", here / "checkpoints" / "standard-digits-seed1")
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("it trained"))
    code, _, err = run_cli("sweep", "standard-digits", "--set", "seed=0,1")
    assert code == 2
    assert "standard-digits-seed1 holds another run" in err


def test_labels_leave_out_what_goes_without_saying() -> None:
    assert Axis("stage.0.options.regularise", ()).label == "regularise"
    assert Axis("stage.1.options.step", ()).label == "stage.1.step"
    assert Axis("seed", ()).label == "seed"
