"""Which published figure belongs to which column: a figure is found by what it says of itself. No torch here.

A published figure belongs to a recipe (`[[published]]` of its file). It says its table, its attack (`clean`, `PGD-20`, `PGD,
steps not stated`, `CW`, `AutoAttack`), its threat, and, anywhere in table, attack or note, what it was crafted on (`from AT`,
`TRADES source`) and whether the classifier was smoothed (`tInf`, `30 draws`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from robench.errors import UsageError
from robench.recipe import Published, Recipe
from robench.results import Result
from robench.suite import Column, Suite
from robench.threat import ThreatModel, number

CLOSE = 0.005  # relative; papers print 8/255 as 0.0314 or 0.031
SMOOTHED = re.compile(r"tinf|\btsi\b|smoothed", re.IGNORECASE)
QUALIFIES = re.compile(  # what may follow an attack's name; anything else makes it another one
    r"draws? \d+|\d+ draws?|\d+ steps|steps not stated|(?:from|on) [\w-]+|[\w-]+ (?:source|src)|tinf.*|tsi.*|smoothed.*"
)
ROLES = {"pgd-at": r"pgd-at|(?-i:AT)|adversarial training", "trades": "trades"}  # how papers name the methods


def published(
    result: Result, column: Column | None, suite: Suite, known: Callable[[str], Recipe | None]
) -> Published | None:
    """The paper's figure for a checkpoint under a column, if its recipe's file has one for its data set.

    Args:
        result: any result of the checkpoint.
        column: of the suite; None for clean accuracy.
        suite: whose tables to look in.
        known: a recipe by its name, or None.
    """
    found = known(result.subject.recipe)
    if found is None or found.dataset != result.subject.dataset:
        return None
    draws = column.draws if column is not None and column.draws else 0
    if not draws and result.cell.inference is not None:
        draws = result.cell.inference.draws
    ranked = []
    known_of = settings(found)
    for position, each in enumerate(found.published):
        place = _place(each, suite)
        near = nearness(each, column)
        if place is not None and near is not None and _smoothed_alike(each, draws) and agrees(each, known_of):
            ranked.append((place, near, position))
    return found.published[min(ranked)[2]] if ranked else None


def for_settings(
    figures: Sequence[Published], column: Column | None, known: Mapping[str, Any], changed: Iterable[str]
) -> Published | None:
    """The figure of an ablation: it names every setting that was changed, and all it names is so.

    Args:
        figures: of the recipe that was changed.
        column: what it was attacked with; None for clean accuracy.
        known: all settings by their names, as `settings` gives them.
        changed: the names of those that were changed.
    """
    ranked = []
    for position, each in enumerate(figures):
        near = nearness(each, column)
        names = said(each, known)
        if near is not None and set(changed) <= names.keys() and agrees(each, known) and _smoothed_alike(each, 0):
            ranked.append((near, -len(names), position))
    return figures[min(ranked)[2]] if ranked else None


def _place(each: Published, suite: Suite) -> int | None:
    """How early among a suite's tables a figure's table is; None when it is of another."""
    if not suite.tables:
        return 0
    for position, name in enumerate(suite.tables):
        if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", each.table, re.IGNORECASE):
            return position
    return None


def nearness(each: Published, column: Column | None) -> int | None:
    """0 where a figure says all that a column does; more the less it says; None where it says something else."""
    attack, *more = (part.strip().lower() for part in each.attack.split(","))
    if any(not QUALIFIES.fullmatch(part) for part in more):
        return None
    if column is None:
        return 0 if attack == "clean" and each.threat is None and not _crafted_on(each) else None
    attack = ", ".join((attack, *more))
    if (family := _family(attack)) is None or family != _family(column.attack):
        return None
    if not _crafted_alike(each, column):
        return None
    steps, wanted = _steps(attack), _steps(column.attack)
    if steps is not None and steps != wanted:
        return None
    if each.threat is None:
        return 2
    if not _close(each.threat, column.threat):
        return None
    return 0 if steps is not None or wanted is None else 1


def _family(text: str) -> str | None:
    """Which attack a text means, whatever its settings; the registry's texts and papers' words alike."""
    text = text.lower()
    if "loss=cw" in text or "cw loss" in text or "cw-margin" in text:
        return "pgd on cw"
    for family, pattern in (
        ("autoattack", r"auto-?attack|\baa\b"),
        ("apgd-dlr", r"apgd-dlr"),
        ("apgd-t", r"apgd-t\b"),
        ("apgd-ce", r"apgd|auto-?pgd"),
        ("cw", r"\bcw\b|c&w|carlini"),
        ("eot-pgd", r"\beot\b|adaptive"),
        ("pgd", r"\bpgd"),
    ):
        if re.search(pattern, text):
            return family
    return None


def _steps(text: str) -> int | None:
    """How many steps a text says, if it does: `PGD-20`, `pgd@steps=20`, `20 steps`."""
    found = re.search(r"pgd[- ]?(\d+)|steps=(\d+)|(\d+)[ -]steps?\b", text, re.IGNORECASE)
    return int(next(filter(None, found.groups()))) if found else None


def _crafted_alike(each: Published, column: Column) -> bool:
    """Whether a figure was crafted on what a column is crafted on."""
    roles = _crafted_on(each)
    if not column.source:
        return not roles and not re.search(r"crafted on|black[- ]box", _words(each), re.IGNORECASE)
    return column.source in roles


def _crafted_on(each: Published) -> set[str]:
    """The methods whose models a figure says it was crafted on."""
    return {
        role
        for role, words in ROLES.items()
        if re.search(
            rf"\b(?:from|on|source:?) (?:{words})\b|\b(?:{words}) (?:source|src)\b", _words(each), re.IGNORECASE
        )
    }


def _words(each: Published) -> str:
    """All a figure says of itself."""
    return f"{each.attack}; {each.table}; {each.note}"


def _smoothed_alike(each: Published, draws: int) -> bool:
    """Whether a figure is of a classifier smoothed over so many draws (0: of a plain one)."""
    text = _words(each)
    count = re.search(r"(\d+) draws?\b|\bdraws? (\d+)", text, re.IGNORECASE)
    if not SMOOTHED.search(text) and count is None:
        return draws == 0
    return draws > 0 and (count is None or draws in {int(text) for text in count.groups() if text})


def settings(recipe: Recipe) -> dict[str, Any]:
    """What a figure may say of the recipe that it belongs to: its data set, model, and the settings of its first stage."""
    first = recipe.stage[0]
    known = {"dataset": recipe.dataset, "model": recipe.model, "epochs": first.epochs, "batch": first.batch}
    return {**first.options, **known}


def said(each: Published, known: Iterable[str]) -> dict[str, str]:
    """The settings a figure names beside its table: `regularise 1/16`, `batch 128`, `epoch 50`, `CIFAR-100`, `ResNet-18`."""
    keys = set(known)
    found = {}
    for part in each.table.split(","):
        text = part.strip()
        if match := re.fullmatch(r"epochs? (\d+)|(\d+) epochs", text, re.IGNORECASE):
            found["epochs"] = match[1] or match[2]
        elif re.fullmatch(r"(?:CIFAR|STL)-?\d+", text, re.IGNORECASE):
            found["dataset"] = text.lower().replace("-", "")
        elif re.fullmatch(r"ResNet-?\d+", text, re.IGNORECASE):
            found["model"] = text.lower().replace("-", "")
        elif (match := re.fullmatch(r"(\w+) (\S+)", text)) and match[1] in keys:
            found[match[1]] = match[2]
    return found


def agrees(each: Published, known: Mapping[str, Any]) -> bool:
    """Whether a recipe has the settings a figure names."""
    return all(_equal(text, known[key]) for key, text in said(each, known).items())


def _equal(text: str, value: Any) -> bool:
    try:
        return math.isclose(number(text, ""), number(str(value), ""))
    except UsageError:
        return text.lower() == str(value).lower()


def _close(one: ThreatModel, other: ThreatModel) -> bool:
    return one.norm == other.norm and math.isclose(one.eps, other.eps, rel_tol=CLOSE)
