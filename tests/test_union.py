"""The union of attacks from stored bits: a worst case image by image, and what each attack adds to it."""

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_reporting import HOSTILE, L2, PGDAT, RECORDS, ROCL, SECRET, STANDARD, bits, named, result

from robench import reporting, terminal, union
from robench.errors import StoreError, UsageError
from robench.inference import Inference
from robench.rendering.markdown import markdown
from robench.results import Result, Store
from robench.selection import Selection, selected
from robench.worst import alone, broken, left

Cli = Callable[..., tuple[int, str, str]]
ALL = bits("1" * 8)


def on_all(attack: str, robust: str, **changes: object) -> Result:
    return result(PGDAT, attack, robust, clean=ALL, **changes)  # type: ignore[arg-type]


THREE = [on_all("fgsm", "01111111"), on_all("pgd-20", "00111111"), on_all("square", "10111011")]


def members(records: Sequence[Result], threat: str = "linf-8/255") -> dict[str, tuple[int, int]]:
    (found,) = [each for each in union.unions(records) if str(each.threat) == threat]
    return {member.name: (len(member.broken), len(member.alone)) for member in found.members}


def test_each_attack_is_told_with_what_only_it_broke() -> None:
    assert members(THREE) == {"pgd-20": (2, 0), "square": (2, 1), "fgsm": (1, 0)}
    (found,) = union.unions(THREE)
    assert found.robust == bits("00111011")
    assert union.lost(found) == {0, 1, 5}


@given(st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=5))
@settings(deadline=None, derandomize=True, max_examples=50)
def test_without_an_attack_the_union_loses_what_only_it_broke(columns: list[list[bool]]) -> None:
    names = [f"attack-{i}" for i in range(len(columns))]
    sets = {
        name: frozenset(i for i, right in enumerate(c) if not right) for name, c in zip(names, columns, strict=True)
    }
    whole = frozenset().union(*sets.values())
    assert sum(left(columns)) == 12 - len(whole)
    for name in names:
        rest = frozenset().union(*(images for other, images in sets.items() if other != name))
        assert alone(sets)[name] == whole - rest


def test_wrong_images_are_not_broken() -> None:
    assert broken(result(PGDAT, "fgsm", "01110000", clean=bits("11110000"))) == {0}


def test_seeds_of_attacks_and_sources_and_norms_are_united() -> None:
    records = [
        on_all("pgd-20", "01111111"),
        on_all("pgd-20", "10111111", seed=1),
        on_all("pgd-20", "11011111", source=STANDARD),
        on_all("pgd-20", "11101111", threat=L2),
    ]
    assert members(records) == {
        "pgd-20, seed 0": (1, 1),
        "pgd-20, seed 1": (1, 1),
        "pgd-20 from standard, seed 0": (1, 1),
    }
    whole = union.unions(records)[-1]
    assert whole.threat is None
    assert whole.robust == bits("00001111")
    assert [(m.name, len(m.alone)) for m in whole.members] == [("linf-8/255, 3 attacks", 3), ("l2-0.5, 1 attack", 1)]


def test_the_union_is_the_worst_case_of_the_other_table() -> None:
    made = reporting.tables(RECORDS, "white-box")[0]
    worst = {row[1]: row[-1] for row in made.rows}
    whole = {each.subject.name: each.robust for each in union.unions(RECORDS) if each.threat is None}
    assert worst["rocl"] == reporting.accuracy([whole["rocl"]]) == "12.5"


def test_what_was_not_met_by_all_is_said() -> None:
    records = [*THREE, result(ROCL, "pgd-20", "11110000"), result(ROCL, "fgsm", "11110000")]
    (made,) = union.tables(records)
    assert "rocl at linf-8/255 did not meet square." in made.notes


def test_smoothed_classifiers_of_two_seeds_are_two() -> None:
    look = Inference(draws=30, augment={"area": 0.5}, adaptive=True)
    records = [replace(r, cell=replace(r.cell, inference=look, seed=seed)) for seed in (0, 1) for r in THREE]
    assert [each.subject.name for each in union.unions(records)] == [
        f"pgd-at +tsi-30, draws by seed {seed}" for seed in (0, 1)
    ]
    blind = [replace(r, cell=replace(r.cell, inference=replace(look, adaptive=False))) for r in THREE]
    with pytest.raises(StoreError, match="no results whose worst case"):
        union.unions(blind)


def test_two_versions_of_an_attack_are_two_members() -> None:
    old = THREE[0]
    new = replace(old, cell=replace(old.cell, version=2), robust=bits("10111111"))
    assert set(members([old, new])) == {"fgsm v1", "fgsm v2"}


def test_a_doubted_checkpoint_is_marked() -> None:
    (made,) = union.tables([replace(r, notes=("flag: zero gradients",)) for r in THREE])
    assert {row[0] for row in made.rows} == {"pgd-at ! at linf-8/255"}
    assert any("zero gradients" in note for note in made.notes)


def test_the_order_of_the_records_does_not_matter() -> None:
    assert union.tables(RECORDS[::-1]) == union.tables(RECORDS)
    assert union.csv(RECORDS[::-1]) == union.csv(RECORDS)


@pytest.mark.parametrize("form", ["terminal", "markdown", "csv", "latex", "json"])
def test_the_command_prints_it_and_a_kept_table_is_made_again(form: str, tmp_path: Path, run_cli: Cli) -> None:
    for record in THREE:
        Store(tmp_path).put(record)
    line = (
        "report",
        "--table",
        "union",
        "--results",
        tmp_path,
        "--format",
        form,
        "--attack",
        "fgsm",
        "--attack",
        "square",
    )
    code, out, err = run_cli(*line)
    assert (code, err) == (0, "")
    assert "pgd-20" not in out
    if form == "csv":
        found = {row["attack"]: row for row in csv.DictReader(io.StringIO(out))}
        assert {name: (row["broken"], row["alone"]) for name, row in found.items()} == {
            "fgsm": ("1", "1"),
            "square": ("2", "2"),
            "union": ("3", ""),
        }
    assert run_cli(*line, "--out", tmp_path / "kept.txt")[0] == 0
    assert run_cli("verify", tmp_path, "--check")[0] == 0
    (tmp_path / "kept.txt").write_text(out + "x")
    assert run_cli("verify", tmp_path, "--check")[0] == 1


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_names_are_inert(text: str) -> None:
    made, harmless = (union.tables(named(name)) for name in (text, "name"))
    assert [len(table.rows) for table in made] == [len(table.rows) for table in harmless]
    for shown in (markdown(made), terminal.text(made, file=True), union.csv(named(text))):
        assert not SECRET.search(re.sub(r"\\.", "", shown))
    for row in csv.reader(io.StringIO(union.csv(named(text)))):
        assert not [cell for cell in row if cell[:1] in ("=", "+", "@", "-", "\t", "\r")]


# selections


def chosen(**filters: tuple[str, ...]) -> list[str]:
    return sorted(f"{r.subject.name} {r.cell.attack} {r.cell.threat}" for r in selected(RECORDS, Selection(**filters)))


def test_a_selection_leaves_what_all_filters_leave() -> None:
    assert chosen(attack=("fgsm",)) == ["rocl fgsm linf-8/255", "standard fgsm linf-8/255"]
    assert chosen(threat=("l2",), attack=("pgd-20",)) == [f"{n} pgd-20 l2-0.5" for n in ("pgd-at", "rocl", "standard")]
    assert chosen(threat=("linf-8/255",), source=("white-box",), attack=("pgd-20",)) == [
        f"{n} pgd-20 linf-8/255" for n in ("pgd-at", "rocl", "standard")
    ]
    assert chosen(source=("pgd-at",)) == ["rocl pgd-20 linf-8/255", "standard pgd-20 linf-8/255"]
    assert len(chosen(seed=("0",))) == len(chosen()) == len(RECORDS)


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        (
            {"attack": ("fgms",)},
            "--attack fgms leaves none of the results; there are some of --attack autoattack, fgsm",
        ),
        ({"attack": ("fgms",)}, "Did you mean 'fgsm'?"),
        ({"attack": ("fgsm", "square")}, "--attack square leaves none"),
        ({"threat": ("l2",), "attack": ("fgsm",)}, "--threat l2 leaves none of the results that --attack fgsm left"),
        ({"seed": ("3",)}, "--seed 3 leaves none of the results; there are some of --seed 0"),
        ({"source": ("rocl",)}, "pgd-at, standard, white-box"),
        ({"dataset": ("mnist",)}, "there are some on cifar10"),
        ({"threat": ("linf-8",)}, "did you mean linf-8/255?"),
        ({"seed": ("one",)}, "--seed one is not a whole number"),
    ],
)
def test_the_filter_that_leaves_nothing_is_named(filters: dict[str, tuple[str, ...]], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        chosen(**filters)
    assert words in str(caught.value)
