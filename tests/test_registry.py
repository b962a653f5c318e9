"""Names: three doors lead in, none opens by itself, and a wrong name is answered with the nearest right one."""

import sys
from dataclasses import fields
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from robench.attacks import attack_for
from robench.errors import UsageError
from robench.methods import method_for
from robench.names import Entry, Registry
from robench.registry import ATTACKS, DATASETS, METHODS, MODELS
from robench.threat import Norm, ThreatModel

REGISTRIES = [METHODS, ATTACKS, MODELS, DATASETS]
ROWS = [(registry, name) for registry in REGISTRIES for name in registry.rows]
LINF = ThreatModel.parse("linf-8/255")

PLUGIN = """
from dataclasses import dataclass
from robench.threat import Norm, ThreatModel

@dataclass(frozen=True)
class Still:
    threat: ThreatModel
    level: int = 1

    def __call__(self, model, x, y, *, generator):
        return x
"""


@pytest.fixture
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch)


def offer(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> None:
    """Let these be the installed entry points."""
    monkeypatch.setattr("robench.names.entry_points", lambda group: [p for p in points if p.group == group])


def point(name: str, value: str = "no_such_module_anywhere:Attack", group: str = "robench.attacks") -> EntryPoint:
    return EntryPoint(name, value, group)


def test_two_rows_of_one_name_are_refused() -> None:
    row = Entry("a", "m:o", "")
    with pytest.raises(ValueError, match="attack 'a' is registered twice"):
        Registry("attack", [row, row])


@pytest.mark.parametrize(("registry", "name"), ROWS, ids=[f"{r.kind} {n}" for r, n in ROWS])
def test_every_row_loads(registry: Registry, name: str) -> None:
    assert callable(registry.load(registry.rows[name]))
    assert registry.rows[name].summary


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda r: r.kind)
def test_every_typed_row_is_found_under_its_name(registry: Registry) -> None:
    for name, row in registry.rows.items():
        if not row.family:
            assert registry.entry(name) == row


@pytest.mark.usefixtures("no_plugins")
@pytest.mark.parametrize(
    ("registry", "typed", "meant"),
    [
        (METHODS, "rcol", "rocl"),
        (METHODS, "pgd_at", "pgd-at"),
        (ATTACKS, "autoatack", "autoattack"),
        (ATTACKS, "FGSM", "fgsm"),
        (MODELS, "resnet-18", "resnet18"),
        (DATASETS, "CIFAR-10", "cifar10"),
    ],
)
def test_a_near_miss_is_answered_with_the_name(registry: Registry, typed: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"Did you mean '{meant}'") as caught:
        registry.entry(typed)
    assert f"robench list {registry.kind}s" in str(caught.value)


def test_options_follow_an_at_sign() -> None:
    entry = ATTACKS.entry("pgd@steps=50,restarts=3,loss=dlr,step=0.1")
    assert entry.name == "pgd"
    assert entry.options == {"steps": 50, "restarts": 3, "loss": "dlr", "step": 0.1}


def test_options_override_the_row_and_leave_it_as_it_was() -> None:
    assert ATTACKS.entry("pgd-20@steps=5").options == {"steps": 5, "restarts": 1}
    assert ATTACKS.rows["pgd-20"].options == {"steps": 20, "restarts": 1}


def test_an_option_may_be_a_list_or_a_table() -> None:
    # a comma inside brackets does not part two options; torchattacks takes its options as one table
    assert ATTACKS.entry("my:Attack@sizes=[1, 2],steps=3").options == {"sizes": [1, 2], "steps": 3}
    options = ATTACKS.entry("torchattacks:MIFGSM@options={steps=5, decay=0.5}").options
    assert options == {"name": "MIFGSM", "options": {"steps": 5, "decay": 0.5}}


@pytest.mark.parametrize("text", ["pgd@", "pgd@steps", "pgd@steps=1,", "pgd@=3"])
def test_options_without_a_value_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"{text}: expected pgd@KEY=VALUE,KEY=VALUE"):
        ATTACKS.entry(text)


def test_unknown_options_are_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"attack pgd-20\.step_size: unknown key; did you mean 'steps?'"):
        attack_for("pgd-20@step_size=1", LINF)
    with pytest.raises(UsageError, match=r"method rocl\.regularised: unknown key; did you mean 'regularise'"):
        method_for("rocl", {"regularised": 1})


@pytest.mark.parametrize(
    ("method", "alias"), [(row.name, alias) for row in METHODS.rows.values() for alias in row.aliases]
)
def test_every_alias_of_an_option_means_one_that_is_there(method: str, alias: str) -> None:
    name = METHODS.rows[method].aliases[alias]
    value = next(field.default for field in fields(METHODS.load(METHODS.entry(method))) if field.name == name)
    assert alias not in {field.name for field in fields(METHODS.load(METHODS.entry(method)))}
    assert method_for(method, {alias: value}) == method_for(method, {name: value}) == method_for(method, {})
    with pytest.raises(UsageError, match=rf"{min(alias, name)} and {max(alias, name)} are one option of {method}"):
        method_for(method, {name: value, alias: value})


def test_options_have_the_names_of_the_paper_too() -> None:
    method: Any = method_for("rocl@lambda=1/16", {"regularize_to": "original", "attack_view": "original"})
    assert (method.regularise, method.regularise_to, method.attack_target) == (1 / 16, "original", "original")


@pytest.mark.parametrize(
    ("text", "steps", "restarts"), [("pgd-50x10", 50, 10), ("pgd-7", 7, 1), ("pgd-20x2", 20, 2), ("pgd-20", 20, 1)]
)
def test_pgd_shorthand(text: str, steps: int, restarts: int) -> None:
    attack: Any = attack_for(text, LINF)
    assert (attack.steps, attack.restarts) == (steps, restarts)
    assert ATTACKS.entry(text).name == text


@pytest.mark.usefixtures("no_plugins")
@pytest.mark.parametrize("text", ["pgd-", "pgd-x3", "pgd-5x", "pgd--5", "pgd-1.5"])
def test_pgd_shorthand_is_strict(text: str) -> None:
    with pytest.raises(UsageError, match="unknown attack"):
        ATTACKS.entry(text)


@pytest.mark.usefixtures("no_plugins")
def test_pgd_shorthand_is_no_method() -> None:
    with pytest.raises(UsageError, match="unknown method"):
        METHODS.entry("pgd-5")


def test_a_family_takes_its_name_after_the_colon() -> None:
    assert ATTACKS.entry("torchattacks:MIFGSM").options == {"name": "MIFGSM"}
    assert DATASETS.entry("imagefolder:C:/pictures").options == {"path": "C:/pictures"}


@pytest.mark.parametrize("text", ["torchattacks:", "torchattacks"])
def test_a_family_alone_shows_how_to_write_it(text: str) -> None:
    with pytest.raises(UsageError, match="torchattacks:"):
        ATTACKS.entry(text)


def test_the_file_door(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    attack: Any = attack_for(f"{tmp_path}/mine.py:Still@level=3", LINF)
    assert (attack.level, attack.threat) == (3, LINF)


def test_two_files_of_one_name_stay_apart(tmp_path: Path) -> None:
    for folder, level in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(PLUGIN.replace("level: int = 1", f"level: int = {level}"))
    levels = [getattr(attack_for(f"{tmp_path}/{folder}/mine.py:Still", LINF), "level", 0) for folder in "abab"]
    assert levels == [1, 2, 1, 2]


def test_the_module_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugin_of_a_test.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    attack: Any = attack_for("plugin_of_a_test:Still", LINF)
    assert type(attack).__name__ == "Still"
    monkeypatch.delitem(sys.modules, "plugin_of_a_test")


@pytest.mark.parametrize(
    "text", ["no_such_module_anywhere:Attack", "robench.threat:Attack", "nowhere/mine.py:Still", "./absent.py:X"]
)
def test_what_cannot_be_imported_says_what_was_tried(text: str) -> None:
    with pytest.raises(UsageError, match="cannot import"):
        attack_for(text, LINF)


def test_an_attack_without_a_threat_is_refused() -> None:
    with pytest.raises(UsageError, match="must be a dataclass with a field 'threat'"):
        attack_for("robench.protocols:Progress", LINF)


def test_the_entry_point_door(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = ModuleType("plugin_of_a_test")
    exec(PLUGIN, vars(plugin))  # a module that exists in memory only
    monkeypatch.setitem(sys.modules, "plugin_of_a_test", plugin)
    offer(monkeypatch, point("still", "plugin_of_a_test:Still"))
    attack: Any = attack_for("still@level=2", LINF)
    assert attack.level == 2


def test_listing_imports_no_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, point("broken"))  # its module does not exist, so importing it would raise
    assert ATTACKS.names() == [*ATTACKS.rows, "broken"]
    assert ATTACKS.entry("broken").target == "no_such_module_anywhere:Attack"
    with pytest.raises(UsageError, match="attack 'broken': cannot import"):
        attack_for("broken", LINF)


def test_a_plugin_serves_its_own_group_only(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, point("mine", group="robench.models"))
    assert "mine" in MODELS.names()
    assert "mine" not in ATTACKS.names()


@pytest.mark.parametrize("names", [["fgsm"], ["mine", "mine"]])
def test_a_plugin_never_takes_a_name_that_is_taken(monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    offer(monkeypatch, *map(point, names))
    with pytest.raises(UsageError, match=f"plug-in attack '{names[-1]}' .* has a name that is taken"):
        ATTACKS.names()


def test_a_clash_does_not_stop_built_in_names(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, point("fgsm"))
    assert ATTACKS.entry("fgsm").target == "robench.attacks.pgd:FGSM"


@pytest.mark.parametrize("name", [name for name, row in ATTACKS.rows.items() if not row.family])
def test_the_listed_cost_is_the_attacks_own(name: str) -> None:
    norm = ATTACKS.rows[name].facts["norms"].split()[0]
    attack: Any = attack_for(name, ThreatModel.parse(f"{norm}-0.5"))
    assert ATTACKS.rows[name].facts["cost"] == " + ".join(f"{passes:,}" for passes in attack.cost(10))


@pytest.mark.parametrize("name", [name for name, row in ATTACKS.rows.items() if not row.family])
@pytest.mark.parametrize("norm", list(Norm))
def test_a_norm_an_attack_does_not_have_is_refused_with_those_that_do(name: str, norm: Norm) -> None:
    threat = ThreatModel(norm, 0.5)
    if norm in ATTACKS.rows[name].facts["norms"].split():
        attack_for(name, threat)
    else:
        with pytest.raises(UsageError, match=f"attack {name} works in .*, not in {norm}; these do: fgsm, pgd"):
            attack_for(name, threat)


def test_a_script_named_like_a_module_is_told_from_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])  # as the command `robench` has it
    with pytest.raises(UsageError, match=r"ModuleNotFoundError: .*Did you mean only_here\.py:Still\?"):
        attack_for("only_here:Still", LINF)
    with pytest.raises(UsageError, match=r"only_here\.py:Still \(it has Still\)"):
        ATTACKS.entry("only_here.py")
    with pytest.raises(
        UsageError, match=r"cannot import 'Stil', which is not in only_here\.py\. Did you mean 'Still'\?"
    ):
        attack_for("only_here.py:Stil", LINF)
