"""Every recipe that comes with robench runs, in small; and the rows of RoCL's table 1 are all there."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robench import recipe
from robench.checkpoint import Checkpoint
from robench.cli.training import SMOKE_BATCH, SMOKE_STEPS
from robench.errors import DataError
from robench.methods import method_for
from robench.methods.rocl import RoCL
from robench.protocols import Progress
from robench.publication import nearness
from robench.run import Run
from robench.suite import Column
from robench.threat import ThreatModel
from robench.training import FULL, smoke, train

# supervised; semi-supervised; self-supervised; on a self-supervised encoder
ROWS = ("standard", "pgd-at", "trades", "trades-rocl-augment", "rst", "supcon", "simclr", "rocl")
PROTOCOLS = ("robust-linear", "finetune-at", "finetune-trades", "finetune-at-ss")
SUFFIXES = {
    "": ("cifar10", "resnet18"),
    "-resnet50": ("cifar10", "resnet50"),
    "-cifar100": ("cifar100", "resnet18"),
    "-cifar100-resnet50": ("cifar100", "resnet50"),
}


def small(
    name: str, folder: Path, told: list[Progress], encoder: Checkpoint | None = None, model: str = "cnn@width=2"
) -> Checkpoint:
    """What `robench train NAME --dataset digits --smoke` does, with a network of few weights or the recipe's own."""
    changes = [("dataset", "digits")] + ([("model", model)] if model else [])
    run = Run(smoke(recipe.load(name, changes), SMOKE_BATCH), folder, steps=SMOKE_STEPS, encoder=encoder)
    return train(run, monitor=told.append)


@pytest.mark.parametrize("name", recipe.names())
def test_every_recipe_runs_on_digits_in_small(name: str, tmp_path: Path) -> None:
    told: list[Progress] = []
    made = small(name, tmp_path / "run", told)
    assert made.stages == len(made.recipe.stage)
    assert all(progress.values[FULL] for progress in {p.task: p for p in told}.values())
    made.load()


@pytest.mark.nightly
@pytest.mark.parametrize("name", recipe.names())
def test_every_recipe_runs_on_digits_with_the_network_it_names(name: str, tmp_path: Path) -> None:
    made = small(name, tmp_path / "run", [], model="")
    assert made.recipe.model == recipe.load(name).model
    assert made.stages == len(made.recipe.stage)


@pytest.mark.parametrize("name", ["finetune-at", "linear-labels-1", "standard-resnet50"])
def test_the_command_line_runs_a_recipe_on_digits_with_the_network_it_names(
    name: str, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, err = run_cli(
        "train", name, "--dataset", "digits", "--smoke", "--checkpoints", tmp_path, "--device", "cpu"
    )
    assert code == 0, err
    assert f"{recipe.load(name).model} on digits" in err
    smallest = "labels=0.01 leaves a class of digits without an image; this smoke run uses 0.02"
    assert (smallest in err) == (name == "linear-labels-1")
    assert (tmp_path / f"{name}-digits-smoke" / "last.json").is_file()


def test_a_full_run_still_refuses_a_share_that_leaves_a_class_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels=0\.01 leaves no image of class \d of digits"):
        train(Run(recipe.load("linear-labels-1", [("dataset", "digits"), ("model", "cnn@width=2")]), tmp_path / "run"))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_goes_on_from_the_encoder_its_recipe_names(protocol: str, tmp_path: Path) -> None:
    encoder = small("rocl", tmp_path / "rocl", [])
    made = small(protocol, tmp_path / "run", [], encoder)
    assert made.sha256 != encoder.sha256


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", [*ROWS, *PROTOCOLS])
def test_every_row_of_table_1_has_a_recipe_for_each_data_set_and_network(name: str, suffix: str) -> None:
    found, base = recipe.load(name + suffix), recipe.load(name)
    assert (found.dataset, found.model) == SUFFIXES[suffix]
    same: dict[str, Any] = {"name": "same", "summary": "", "dataset": "", "model": "", "published": ()}
    assert dataclasses.replace(found, **{**same, "dataset": "digits", "model": "cnn"}) == dataclasses.replace(
        base, **{**same, "dataset": "digits", "model": "cnn"}
    )
    if "cifar100" not in suffix and name + suffix != "rst-resnet50":  # of which the paper has dashes
        figures = [
            (figure.attack, str(figure.threat or "")) for figure in found.published if "table 1," in figure.table
        ]
        assert figures[:3] == [("clean", ""), ("PGD-20", "linf-8/255"), ("PGD-20", "linf-16/255")]
        assert [threat for _, threat in figures[3:7]] == ["l2-0.25", "l2-0.5", "l1-7.84", "l1-12"]


@pytest.mark.parametrize(
    ("name", "table", "attack", "threat", "accuracy"),
    [
        ("rocl", "table 1, ResNet-18", "PGD-20", "linf-8/255", 0.4027),
        ("rst", "table 1, ResNet-18", "PGD-20", "linf-8/255", 0.5657),
        ("rocl", "table 5", "PGD-100", "linf-8/255", 0.3974),
        ("rocl", "table 2", "PGD-20 from trades", "linf-16/255", 0.6298),
        ("rocl-resnet50", "table 1, ResNet-50", "clean", "", 0.8599),
        ("rocl-cifar100", "table 7", "PGD-20", "linf-8/255", 0.1931),
        ("robust-linear-cifar100", "table 8", "CW", "", 0.4477),
        ("finetune-at-ss-resnet50", "table 1, ResNet-50", "PGD-20", "linf-8/255", 0.5244),
        ("transfer-cifar100", "table 3", "PGD-20", "linf-8/255", 0.1533),
        ("transfer-cifar10", "table 3", "PGD-20", "linf-8/255", 0.1862),
        ("transfer-cifar10", "table 3", "clean, Shafahi et al. 2020", "", 0.7205),
        ("transfer-cifar10", "table 3", "PGD-20, Shafahi et al. 2020", "linf-8/255", 0.1770),
        ("transfer-cifar100", "table 3", "clean, Shafahi et al. 2020", "", 0.4159),
        ("transfer-cifar100", "table 3", "PGD-20, Shafahi et al. 2020", "linf-8/255", 0.1163),
        ("rocl-attack-cosine", "table 6", "PGD-20", "linf-8/255", 0.0930),
        ("rocl-ablation", "table 10, regularise 1/16", "PGD-20", "linf-8/255", 0.3512),
        ("rocl", "figure 3c, epoch 1000", "clean", "", 0.839),
    ],
)
def test_published_figures_stand_where_the_paper_has_them(
    name: str, table: str, attack: str, threat: str, accuracy: float
) -> None:
    found = [
        figure.accuracy
        for figure in recipe.load(name).published
        if table in figure.table and (figure.attack, str(figure.threat or "")) == (attack, threat)
    ]
    assert found == [accuracy]


@pytest.mark.parametrize("name", ["finetune-at", "finetune-trades", "finetune-at-ss"])
def test_norms_learn_unless_a_recipe_says_it_copies_the_released_code(name: str) -> None:
    assert method_for(name, recipe.load(name).stage[0].options).bn == "train"  # type: ignore[attr-defined]
    assert recipe.load("finetune-at-2020").stage[0].options["bn"] == "frozen"


@pytest.mark.parametrize("name", ["transfer-cifar10", "transfer-cifar100", "rocl-resnet50"])
def test_a_figure_quoted_of_another_method_is_never_set_beside_ours(name: str) -> None:
    found = recipe.load(name).published
    quoted = [figure for figure in found if "quoted there from" in figure.note]
    assert len(quoted) == 2
    column = Column("", "pgd@steps=20,step=0.1", ThreatModel.parse("linf-8/255"))
    assert all(nearness(figure, column) is nearness(figure, None) is None for figure in quoted)
    assert any(nearness(figure, column) == 0 for figure in found)


def test_suspect_figures_say_why() -> None:
    notes = [
        figure.note for name in recipe.names() for figure in recipe.load(name).published if "suspect" in figure.note
    ]
    assert len(notes) > 50
    assert all(len(note.partition("suspect: ")[2]) > 20 for note in notes)


def test_the_page_on_training_names_recipes_that_are_there() -> None:
    page = (Path(__file__).parent.parent / "docs" / "training.md").read_text()
    named = {name for pair in re.findall(r"robench train ([\w-]+)(?:.*--encoder\s+([\w-]+))?", page) for name in pair}
    assert len(named) > 12
    assert named - {"", "NAME"} <= set(recipe.names())


def test_the_page_on_training_says_what_the_presets_are() -> None:
    page = (Path(__file__).parent.parent / "docs" / "training.md").read_text()
    rows = re.findall(r"^\| `(\w+)`.*?\| (.*?) \| (.*?) \|", page, re.MULTILINE)
    options = {name: values for name, *values in rows if name in RoCL.__dataclass_fields__}
    assert len(options) == 10
    for number, preset in enumerate(("rocl", "rocl-2020")):
        method: Any = method_for("rocl", recipe.load(preset).stage[0].options)
        for name, values in options.items():
            value = getattr(method, name)
            shown = {None: "none", 1 / 256: "1/256"}.get(value, str(value).lower())
            assert values[number].strip("`") == shown, name
