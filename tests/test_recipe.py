"""Recipes: everything in baselines/ is usable, and mistakes are named by their TOML path."""

import json
from pathlib import Path

import pytest

from robench import recipe
from robench.checkpoint import nets_after
from robench.cli.training import SMOKE_BATCH
from robench.errors import UsageError
from robench.methods import method_for
from robench.recipe import Recipe, Schedule
from robench.registry import DATASETS
from robench.spec import assignment, build, plain
from robench.training import smoke

NAMES = recipe.names()

MINIMAL = """
dataset = "digits"
model = "cnn"
[[stage]]
method = "standard"
epochs = 2
batch = 8
optimiser = { lr = 0.1 }
"""


def written(folder: Path, text: str = MINIMAL, name: str = "mine.toml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_there_are_recipes() -> None:
    assert "standard-digits" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_methods_data_set_and_model_of_every_recipe_can_be_made(name: str) -> None:
    found = recipe.load(name)
    facts = DATASETS.entry(found.dataset).facts
    channels, height, width = map(int, facts["shape"].split("x"))
    DATASETS.load(DATASETS.entry(found.dataset))
    nets = nets_after(found, len(found.stage), int(facts["classes"]), (channels, height, width))
    for stage in found.stage:
        method = method_for(stage.method, stage.options)
        assert all(nets.named(network) for network in method.trains)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_survives_json(name: str) -> None:
    found = recipe.load(name)
    assert build(Recipe, json.loads(json.dumps(plain(found)))) == found


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_called_what_its_file_is_called(name: str) -> None:
    found = recipe.load(name)
    assert found.name == name
    assert found.summary


@pytest.mark.parametrize("name", NAMES)
def test_published_figures_are_fractions_with_a_place_in_a_paper(name: str) -> None:
    found = recipe.load(name)
    for figure in found.published:
        assert 0 <= figure.accuracy <= 1
        assert figure.table
        assert figure.attack
    assert found.source or not found.published


@pytest.mark.parametrize("name", NAMES)
def test_a_method_that_needs_a_threat_has_one(name: str) -> None:
    found = recipe.load(name)
    robust = [s.method for s in found.stage if method_for(s.method, s.options).select == "robust"]
    assert found.threat is not None or not robust


def test_the_recipe_that_messages_name_is_there() -> None:
    # the error for an encoder without a head says `robench train linear --encoder ...`
    assert "linear" in NAMES


def test_an_unknown_key_is_named_by_its_path_with_the_nearest_key() -> None:
    with pytest.raises(UsageError, match=r"stage\.0\.optimizer: unknown key; did you mean 'optimiser'"):
        recipe.load("standard-digits", [("stage.0.optimizer.lr", 1)])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("stage.0.schedule.nam=cosine", r"stage\.0\.schedule\.nam: unknown key; did you mean 'name'"),
        ("stage.0.epochs=many", r"stage\.0\.epochs: expected int, not 'many'"),
        ("stage.0.epochs=2.5", r"stage\.0\.epochs: expected int"),
        ("stage.0.epochs=true", r"stage\.0\.epochs: expected int"),
        ("stage.0.epochs=0", "at least 1"),
        ("stage.0.batch=0", "at least 1"),
        ("stage.0.optimiser.lr=fast", r"stage\.0\.optimiser\.lr must be a number"),
        ("stage.0.optimiser.nesterov=1", r"stage\.0\.optimiser\.nesterov: expected bool"),
        ("stage.0.optimiser.name=adam", r"'adam' is not one of 'sgd', 'lars'"),
        ("stage.0.augment=7", r"stage\.0\.augment: expected a table"),
        ("stage.1.epochs=1", r"stage\.1: there is no item '1'; items are 0 to 0"),
        ("stage.first.epochs=1", r"there is no item 'first'"),
        ("stage.0.epochs.more=1", "is not a table"),
        ("stage=[]", r"has no \[\[stage\]\]"),
        ("group=other", "'other' is not one of"),
        ("threat=linf-8", "did you mean linf-8/255"),
        ("dataset=digitz", "Did you mean 'digits'"),
        ("model=cmn", "Did you mean 'cnn'"),
        ("stage.0.method=standart", "Did you mean 'standard'"),
    ],
)
def test_a_bad_change_says_what_and_where(change: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected) as caught:
        recipe.load("standard-digits", [assignment(change)])
    assert "recipe standard-digits: " in str(caught.value) or "stage." in str(caught.value)


def test_changes_reach_every_depth() -> None:
    changes = ["stage.0.epochs=7", "stage.0.optimiser.lr=1e-3", "threat=l2-0.5", "validation=9", "normalise=true"]
    found = recipe.load("standard-digits", map(assignment, changes))
    assert (found.stage[0].epochs, found.stage[0].optimiser.lr) == (7, 1e-3)
    assert (str(found.threat), found.validation, found.normalise) == ("l2-0.5", 9, True)


def test_a_change_can_begin_a_table_the_file_does_not_have(tmp_path: Path) -> None:
    found = recipe.load(written(tmp_path), [("stage.0.schedule.name", "step"), ("stage.0.schedule.drops", [1])])
    assert found.stage[0].schedule == Schedule("step", drops=(1,))


def test_changes_leave_the_file_as_it_is() -> None:
    before = recipe.load("standard-digits")
    recipe.load("standard-digits", [("stage.0.epochs", 1)])
    assert recipe.load("standard-digits") == before


def test_a_recipe_by_the_path_of_its_file(tmp_path: Path) -> None:
    found = recipe.load(written(tmp_path))
    assert (found.name, found.stage[0].epochs, found.threat) == ("mine", 2, None)


def test_a_recipe_may_be_like_another(tmp_path: Path) -> None:
    text = """
like = "rocl"
summary = "mine"
dataset = "cifar100"
[change]
"stage.0.epochs" = 7
"stage.1.options.solver" = "exact"
"""
    found, base = recipe.load(written(tmp_path, text)), recipe.load("rocl")
    assert (found.name, found.summary, found.dataset, found.published) == ("mine", "mine", "cifar100", ())
    assert (found.stage[0].epochs, found.stage[1].options["solver"]) == (7, "exact")
    assert (found.model, found.threat, found.stage[0].options) == (base.model, base.threat, base.stage[0].options)
    assert found.differs == base.differs
    assert recipe.load("rocl") == base  # which stays as it was


def test_likeness_goes_on_and_changes_come_from_far_to_near(tmp_path: Path) -> None:
    first = written(tmp_path, MINIMAL, "first.toml")
    second = written(
        tmp_path, f'like = "{first}"\nchange = {{ "stage.0.epochs" = 3, "stage.0.batch" = 9 }}', "second.toml"
    )
    third = written(tmp_path, f'like = "{second}"\nchange = {{ "stage.0.epochs" = 4 }}', "third.toml")
    found = recipe.load(third, [("stage.0.optimiser.lr", 0.5)])
    assert (found.name, found.stage[0].epochs, found.stage[0].batch, found.stage[0].optimiser.lr) == (
        "third",
        4,
        9,
        0.5,
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('like = "{here}"', "is like itself: .*mine.toml -> .*mine.toml"),
        ('like = "rokl"', r"Did you mean 'rocl"),
        ("like = 3", "like: expected the name of a recipe"),
        ('like = "rocl"\nchange = 3', "change: expected a table"),
        ('like = "rocl"\nchange = { "stage.7.epochs" = 3 }', "there is no item '7'"),
        ('like = "rocl"\nchange = { "stage.0.epoch" = 3 }', "did you mean 'epochs'"),
    ],
)
def test_a_likeness_that_means_nothing_is_refused(text: str, expected: str, tmp_path: Path) -> None:
    path = written(tmp_path, text.replace("{here}", str(tmp_path / "mine.toml")))
    with pytest.raises(UsageError, match=expected):
        recipe.load(path)


@pytest.mark.parametrize(
    ("alias", "own", "value"), [("lambda", "regularise", "1/16"), ("regularize_to", "regularise_to", "original")]
)
def test_an_option_by_another_of_its_names_is_the_same_recipe(alias: str, own: str, value: str, tmp_path: Path) -> None:
    expected = recipe.load("rocl", [(f"stage.0.options.{own}", value)])
    assert expected.stage[0].options[own] == value
    assert recipe.load("rocl", [(f"stage.0.options.{alias}", value)]) == expected
    given = {**recipe.load("rocl").stage[0].options, alias: value}
    with pytest.raises(UsageError, match="are one option of rocl"):
        recipe.load("rocl", [("stage.0.options", {own: value, alias: value})])
    given.pop(own, None)
    assert recipe.load("rocl", [("stage.0.options", given)]).stage[0].options == expected.stage[0].options
    path = tmp_path / "mine.toml"
    path.write_text(f'like = "rocl"\n[change]\n"stage.0.options.{alias}" = "{value}"\n')
    assert recipe.load(str(path)).stage == expected.stage


def test_other_methods_keep_their_options_names() -> None:
    # an alias is a name of RoCL's option, not a word that is read otherwise everywhere
    found = recipe.load("rocl", [("stage.0.method", "my_methods.py:Mine"), ("stage.0.options.lambda", 2)])
    assert found.stage[0].options["lambda"] == 2


def test_a_size_is_short_for_an_option_of_the_data_set(tmp_path: Path) -> None:
    assert recipe.load(written(tmp_path, "resize = 4" + MINIMAL)).dataset == "digits@resize=4"
    assert recipe.load("standard-digits", [("resize", 4)]).dataset == "digits@resize=4"
    path = written(tmp_path, MINIMAL.replace('"digits"', '"imagefolder:a@b=1"'))
    assert recipe.load(path, [("resize", 4)]).dataset == "imagefolder:a@b=1,resize=4"


def test_a_file_may_not_be_toml(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"mine\.toml is not TOML.*line 1"):
        recipe.load(written(tmp_path, "dataset = = digits"))


def test_a_file_may_not_be_text(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is not TOML"):
        recipe.load(str(tmp_path / "mine.toml"))


def test_a_file_may_be_absent(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no recipe file .*robench list recipes"):
        recipe.load(str(tmp_path / "absent.toml"))


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"stage\.0\.epochs: missing"):
        recipe.load(written(tmp_path, MINIMAL.replace("epochs = 2", "")))


def test_an_unknown_recipe_gets_the_nearest_one() -> None:
    with pytest.raises(UsageError, match=r"Did you mean 'standard-digits'.*robench list recipes"):
        recipe.load("standart-digits")


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("pgd-at", {"stepz": 3}, "method pgd-at.stepz: unknown key; did you mean 'step"),
        ("pgd-at", {"steps": "3"}, "method pgd-at.steps: expected int"),
        # an unknown mode must not quietly mean one of the known ones
        ("pgd-at", {"attack_bn": "Train"}, "attack_bn"),
        ("rocl", {"positives": "both"}, "'both' is not one of"),
        ("simclr", {"temperature": 0.0}, "temperature must be above 0"),
    ],
)
def test_a_bad_option_of_a_method_is_refused(method: str, options: dict[str, object], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        method_for(method, options)


def test_cosine_falls_to_zero_after_the_warm_up() -> None:
    schedule = Schedule("cosine", warmup=2)
    assert schedule.rate(1, 10) == 0.5
    assert schedule.rate(2, 10) == 1
    assert schedule.rate(6, 10) == pytest.approx(0.5)
    assert schedule.rate(10, 10) == pytest.approx(0, abs=1e-12)


def test_steps_drop_at_their_epochs() -> None:
    schedule = Schedule("step", drops=(2, 4), factor=0.1)
    assert [schedule.rate(epoch, 5) for epoch in (0, 1.9, 2, 4)] == pytest.approx([1, 1, 0.1, 0.01])


def test_a_smoke_run_changes_the_batch_only() -> None:
    found = recipe.load("simclr-digits")
    small = smoke(found, SMOKE_BATCH)
    assert [stage.batch for stage in small.stage] == [SMOKE_BATCH, SMOKE_BATCH]
    assert [stage.epochs for stage in small.stage] == [stage.epochs for stage in found.stage]


@pytest.mark.parametrize(
    "name",
    ["", "../outside", "/etc/x", "a/b", "a\\b", ".", "..", ".hidden", "a\nb", "a\x1b[31m", "a\u202eb", "a" * 201],
)
def test_a_name_that_would_lead_a_run_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is to name a folder"):
        recipe.load("standard-digits", [("name", name)])


@pytest.mark.parametrize("name", ["größe 数字", "rocl-regularise=1_16+x", "@last", "-run", "a" * 200])
def test_a_name_that_names_a_folder_is_taken(name: str) -> None:
    assert recipe.load("standard-digits", [("name", name)]).name == name
