"""Specifications: tables become dataclasses and come back unchanged; a mistake is named by its path."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robench.errors import UsageError
from robench.spec import assign, assignment, build, digest, plain
from robench.threat import ThreatModel


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Step:
    method: str
    epochs: int = 1
    lr: float = 0.1
    flip: bool = True
    drops: tuple[int, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    name: str
    step: tuple[Step, ...] = ()
    threat: ThreatModel | None = None
    colour: Colour = Colour.RED
    kind: Literal["sgd", "lars"] = "sgd"
    size: tuple[int, int] = (1, 2)
    derived: int = field(default=0, init=False)


TABLE: dict[str, Any] = {
    "name": "one",
    "threat": "linf-8/255",
    "colour": "blue",
    "step": [{"method": "pgd", "epochs": 2, "lr": 1, "drops": [3, 4], "options": {"steps": 7}}, {"method": "linear"}],
}

steps = st.builds(
    Step,
    method=st.text(max_size=5),
    epochs=st.integers(),
    lr=st.floats(allow_nan=False, allow_infinity=False),
    flip=st.booleans(),
    drops=st.lists(st.integers(), max_size=3).map(tuple),
    options=st.dictionaries(st.text(max_size=4), st.none() | st.booleans() | st.integers() | st.text(max_size=4)),
)
plans = st.builds(
    Plan,
    name=st.text(max_size=5),
    step=st.lists(steps, max_size=3).map(tuple),
    threat=st.none() | st.sampled_from(["linf-8/255", "l2-0.5", "l1-12"]).map(ThreatModel.parse),
    colour=st.sampled_from(Colour),
    kind=st.sampled_from(["sgd", "lars"]),
    size=st.tuples(st.integers(), st.integers()),
)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(plans)
def test_build_undoes_plain(plan: Plan) -> None:
    table: Any = plain(plan)
    table.pop("derived")
    assert build(Plan, table) == plan


def test_a_table_becomes_nested_dataclasses() -> None:
    made = build(Plan, TABLE)
    assert made.threat == ThreatModel.parse("linf-8/255")
    assert made.step == (Step("pgd", 2, 1.0, drops=(3, 4), options={"steps": 7}), Step("linear"))
    assert made.colour is Colour.BLUE
    assert type(made.step[0].lr) is float


def refused(table: Mapping[str, Any], where: str = "") -> str:
    with pytest.raises(UsageError) as caught:
        build(Plan, {"name": "one", **table}, where)
    return str(caught.value)


def test_an_unknown_key_has_its_path_and_the_nearest_key() -> None:
    message = refused({"step": [{"method": "a"}, {"method": "b", "epoch": 1}]})
    assert message.startswith("step.1.epoch: unknown key; did you mean 'epochs'?")


def test_where_opens_the_path() -> None:
    assert refused({"nmae": 1}, where="attack pgd").startswith("attack pgd.nmae: unknown key; did you mean 'name'?")


def test_a_far_off_key_lists_all() -> None:
    message = refused({"zzzzzz": 1})
    assert "did you mean" not in message
    assert "keys: name, step, threat, colour, kind, size" in message


def test_a_field_that_is_not_an_argument_is_unknown() -> None:
    assert refused({"derived": 1}).startswith("derived: unknown key")


def test_a_missing_key_has_its_path() -> None:
    assert refused({"step": [{"epochs": 1}]}) == "step.0.method: missing"


@pytest.mark.parametrize(
    ("table", "start"),
    [
        ({"name": 3}, "name: expected str, not 3"),
        ({"step": [{"method": "a", "epochs": "two"}]}, "step.0.epochs: expected int, not 'two'"),
        ({"step": [{"method": "a", "epochs": 1.5}]}, "step.0.epochs: expected int, not 1.5"),
        ({"step": [{"method": "a", "epochs": True}]}, "step.0.epochs: expected int, not True"),
        ({"step": [{"method": "a", "flip": 1}]}, "step.0.flip: expected bool, not 1"),
        ({"step": [{"method": "a", "lr": True}]}, "step.0.lr: expected float, not True"),
        ({"step": [{"method": "a", "lr": "fast"}]}, "step.0.lr must be a number or a fraction"),
        ({"step": [{"method": "a", "lr": None}]}, "step.0.lr: expected float, not None"),
        ({"step": [{"method": "a", "drops": [1, "x"]}]}, "step.0.drops.1: expected int, not 'x'"),
        ({"step": [{"method": "a", "drops": 3}]}, "step.0.drops: expected a list, not 3"),
        ({"step": [{"method": "a", "options": 3}]}, "step.0.options: expected "),
        ({"step": ["a"]}, "step.0: expected a table, not 'a'"),
        ({"step": "a"}, "step: expected a list, not"),
        ({"size": [1, 2, 3]}, "size: expected a list of 2, not"),
        ({"colour": "green"}, "colour: 'green' is not one of red, blue"),
        ({"kind": "adam"}, "kind: 'adam' is not one of 'sgd', 'lars'"),
        ({"threat": "linf-8"}, "threat linf-8: pixels are in [0, 1]"),
    ],
)
def test_a_wrong_value_says_where_and_what(table: dict[str, Any], start: str) -> None:
    assert refused(table).startswith(start)


def test_floats_may_be_fractions() -> None:
    assert build(Step, {"method": "a", "lr": "1/256"}).lr == 1 / 256


def test_assign_goes_through_tables_and_lists() -> None:
    table: dict[str, Any] = {"step": [{"epochs": 1}, {}]}
    assign(table, "step.0.epochs", 5)
    assign(table, "step.1.options.steps", 7)
    assign(table, "name", "x")
    assert table == {"step": [{"epochs": 5}, {"options": {"steps": 7}}], "name": "x"}


@pytest.mark.parametrize(
    ("path", "start"),
    [
        ("step.2.epochs", "step.2: there is no item '2'; items are 0 to 1"),
        ("step.first", "step.first: there is no item 'first'"),
        ("step.-1.epochs", "step.-1: there is no item '-1'"),
        ("name.first", "name.first: name is not a table"),
        ("step.0.epochs.a.b", "step.0.epochs.a: step.0.epochs is not a table"),
    ],
)
def test_assign_refuses_paths_that_lead_nowhere(path: str, start: str) -> None:
    with pytest.raises(UsageError) as caught:
        assign({"name": "x", "step": [{"epochs": 1}, {}]}, path, 1)
    assert str(caught.value).startswith(start)


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("stage.0.epochs=2", ("stage.0.epochs", 2)),
        ("lr = 0.1", ("lr", 0.1)),
        ("flip=true", ("flip", True)),
        ("drops=[1, 2]", ("drops", [1, 2])),
        ("threat=linf-8/255", ("threat", "linf-8/255")),
        ("name=a=b", ("name", "a=b")),
        ("name='1'", ("name", "1")),
        ("name=", ("name", "")),
    ],
)
def test_assignments_read_toml_or_else_text(text: str, pair: tuple[str, Any]) -> None:
    assert assignment(text) == pair


@pytest.mark.parametrize("text", ["epochs", "=2", " =2", ""])
def test_no_assignment_shows_the_form(text: str) -> None:
    with pytest.raises(UsageError, match="expected KEY=VALUE"):
        assignment(text)


def test_an_assignment_sets_one_key_only() -> None:
    # a value is one TOML value; text with a line break must not become a second key
    assert assignment("a=1\nb=2") == ("a", "1\nb=2")


def test_a_digest_ignores_the_order_of_keys_only() -> None:
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})
    assert digest([1, 2]) != digest([2, 1])
    assert digest(build(Plan, TABLE)) != digest(build(Plan, {**TABLE, "colour": "red"}))


def test_a_digest_is_that_of_canonical_json() -> None:
    # results are filed under it: a change here loses every stored cell
    text = '{"a":1,"b":"\\u00e9","c":[0.1,null,true]}'
    assert digest({"b": "é", "a": 1, "c": (0.1, None, True)}) == hashlib.sha256(text.encode()).hexdigest()


def test_nothing_without_a_plain_form_is_written() -> None:
    with pytest.raises(TypeError, match="no plain form"):
        plain({"a": object()})
    with pytest.raises(ValueError, match="JSON"):
        digest(float("nan"))
