"""Figures of others as rows: read from TOML, marked as not measured here, and never ranked."""

import csv
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_comparison import RECORDS as SUITE_RECORDS
from test_comparison import load
from test_reporting import LINF, PGDAT, ROCL, STANDARD, bits, result

from robench import comparison, reference, reporting
from robench.errors import UsageError
from robench.reference import Reference
from robench.results import Store
from robench.suite import suite

Cli = Callable[..., tuple[int, str, str]]
ENTRY = """
[[reference]]
name = "Wang2023Better_WRN-70-16"
source = "RobustBench, cifar10 Linf"
dataset = "cifar10"
clean = 0.9325
robust = 0.7069
attack = "autoattack"
threat = "linf-8/255"
count = 10000
note = "with 50 M generated images"
"""
SECOND = """
[[reference]]
name = "Wang2023Better_WRN-70-16"
source = "RobustBench, cifar10 L2"
dataset = "cifar10"
robust = 0.8497
attack = "autoattack"
threat = "l2-0.5"
"""
RECORDS = [
    result(STANDARD, "pgd-20", "1" + "0" * 39, clean=bits("1" * 40)),
    result(PGDAT, "pgd-20", "1" * 20 + "0" * 20, clean=bits("1" * 40)),
    result(PGDAT, "autoattack", "1" * 10 + "0" * 30, clean=bits("1" * 40)),
    result(ROCL, "autoattack", "1" * 40, LINF, clean=bits("1" * 40)),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "reference.toml"
    path.write_text(ENTRY + SECOND)
    return path


def test_a_file_is_read(file: Path) -> None:
    first, second = reference.load(file)
    assert (first.clean, first.robust, first.threat, first.count) == (0.9325, 0.7069, LINF, 10000)
    assert (second.clean, second.count) == (None, None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("note =", "nots ="), "reference.0.nots: unknown key; did you mean 'note'?"),
        (('source = "RobustBench, cifar10 Linf"', ""), "reference.0.source: missing"),
        (('source = "RobustBench, cifar10 Linf"', 'source = " "'), "name and source must say something"),
        (("0.9325", "93.25"), "clean (93.25) must be a fraction from 0 to 1; 93.25 per cent is 0.9325"),
        (("0.7069", "-0.1"), "robust (-0.1) must be a fraction"),
        (("0.7069", "nan"), "robust (nan) must be a fraction"),
        (('threat = "linf-8/255"', ""), "robust, attack and threat go together"),
        (('attack = "autoattack"', ""), "robust, attack and threat go together"),
        (("linf-8/255", "linf-8"), "did you mean linf-8/255"),
        (('"cifar10"', '"cifar11"'), "unknown dataset 'cifar11'. Did you mean 'cifar10'"),
        (("count = 10000", "count = 0"), "count (0) is the number of test images"),
        (('clean = 0.9325\nrobust = 0.7069\nattack = "autoattack"\nthreat = "linf-8/255"', ""), "has no figure"),
        (("[[reference]]", "[[references]]"), "and it has the key 'references'"),
        (("[[reference]]", "["), "is not TOML"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(change: tuple[str, str], words: str, tmp_path: Path) -> None:
    path = tmp_path / "reference.toml"
    assert change[0] in ENTRY
    path.write_text(ENTRY.replace(*change))
    with pytest.raises(UsageError) as caught:
        reference.load(path)
    assert str(caught.value).startswith(f"--reference {path}")
    assert words in str(caught.value)


def test_an_empty_file_a_missing_one_and_a_contradiction_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "reference.toml"
    with pytest.raises(UsageError, match="cannot be read"):
        reference.load(path)
    path.write_text("")
    with pytest.raises(UsageError, match="and it has none"):
        reference.load(path)
    path.write_text(ENTRY + ENTRY.replace("0.7069", "0.71"))
    with pytest.raises(UsageError, match="two values for autoattack linf-8/255"):
        reference.load(path)


def test_a_reference_is_a_line_of_its_own_and_never_ranked(file: Path) -> None:
    with_it, without = (reporting.tables(RECORDS, references=given)[0] for given in (reference.load(file), ()))
    assert with_it.rows[:-1] == without.rows
    assert with_it.bold == without.bold
    assert with_it.bold
    group, name, *cells = with_it.rows[-1]
    assert (group, name) == ("as published, not measured here", "Wang2023Better_WRN-70-16")
    shown = {head: text for head, text in zip(with_it.heads[1:], cells, strict=True) if text != "-"}
    assert shown == {"clean": "93.25", "seen linf-8/255 autoattack": "70.69"}
    notes = "\n".join(with_it.notes)
    assert "RobustBench, cifar10 Linf; 10,000 test images; with 50 M generated images." in notes
    assert "autoattack l2-0.5 84.97, of which no checkpoint here has a number" in notes
    assert "never bold" in notes


def test_a_reference_has_an_interval_where_its_size_is_known(file: Path) -> None:
    first, second = reference.load(file)
    assert first.text(0.7069, True) == "70.69 (69.79-71.57)"
    assert second.text(0.8497, True) == "84.97"


def test_a_reference_on_another_data_set_stays_away() -> None:
    other = Reference("x", "somewhere", "cifar100", clean=0.5)
    assert reporting.tables(RECORDS, references=[other]) == reporting.tables(RECORDS)


def test_a_suite_has_them_in_its_columns() -> None:
    pgd = Reference("theirs", "a paper", "cifar10", 0.8, 0.5, "pgd@step=0.1,steps=20", LINF)
    made = comparison.tables(SUITE_RECORDS, suite("rocl-table1"), load, references=[pgd])[0]
    shown = {head: text for head, text in zip(made.heads[1:], made.rows[-1][2:], strict=True) if text != "-"}
    assert shown == {"clean": "80.00", "PGD-20 linf-8/255": "50.00"}
    lines = list(csv.DictReader(io.StringIO(comparison.csv(SUITE_RECORDS, suite("rocl-table1"), load, [pgd]))))
    assert (lines[-1]["checkpoint"], lines[-1]["published"], lines[-1]["ours"]) == ("theirs", "0.5", "")
    assert lines[-1]["group"] == "not measured here"


def test_differences_have_intervals() -> None:
    records = [result(PGDAT, "pgd@steps=20,step=0.1", "1" * 20 + "0" * 20)]
    (made,) = comparison.tables(records, suite("rocl-table1"), load, intervals=True)
    shown = dict(zip(made.heads, made.rows[0][1:], strict=True))
    # 44.50 as measured on 10,000 images
    assert shown["PGD-20 linf-8/255"] == "50.0 (44.50, +5.5: -9.3 to +20.3)"
    assert any("10,000 separate test images" in note for note in made.notes)
    (line,) = [
        row
        for row in csv.DictReader(io.StringIO(comparison.csv(records, suite("rocl-table1"), load)))
        if row["threat"] == "linf-8/255"
    ]
    low, high = float(line["difference_low"]), float(line["difference_high"])
    assert (round(100 * low, 1), round(100 * high, 1)) == (-9.3, 20.3)
    assert (line["published_count"], float(line["low"]) < 0.5 < float(line["high"])) == ("10000.0", True)


def test_the_command_keeps_what_it_can_make_again(file: Path, tmp_path: Path, run_cli: Cli) -> None:
    results = tmp_path / "results"
    for record in RECORDS:
        Store(results).put(record)
    line = ("report", "--results", results, "--format", "markdown", "--reference")
    code, out, err = run_cli(*line, file)
    assert (code, err) == (0, "")
    assert "Wang2023Better_WRN-70-16" in out
    assert run_cli(*line, file, "--out", results / "outside.md")[0] == 0
    assert not (results / "tables.json").exists()  # it depends on a file elsewhere
    inside = results / "reference.toml"
    inside.write_text(file.read_text())
    assert run_cli(*line, inside, "--out", results / "inside.md")[0] == 0
    assert run_cli("verify", results, "--check")[0] == 0
    inside.write_text(file.read_text().replace("0.7069", "0.7068"))
    assert run_cli("verify", results, "--check")[0] == 1
    inside.write_text(file.read_text().replace("cifar10", "cifar100"))
    assert "none of its figures is on cifar10" in run_cli(*line, inside)[2]
    for table in ("transfer", "union", "cost"):
        assert "--reference is for" in run_cli(*line, file, "--table", table)[2]
    assert "needs --table" in run_cli("report", "--results", results, "--format", "csv", "--reference", file)[2]


def test_seeds_of_a_recipe_have_their_mean_beside_the_papers_figure() -> None:
    other = replace(PGDAT, name="pgd-at-seed1", seed=1, sha256="1" * 64)
    records = [
        result(on, "pgd@steps=20,step=0.1", ("1" * k).ljust(40, "0"), clean=bits("1" * 40))
        for on, k in ((PGDAT, 16), (other, 20))
    ]
    (made,) = comparison.tables(records, suite("rocl-table1"), load)
    assert [row[1:3] for row in made.rows] == [
        ("pgd-at", "seed 0"),
        ("pgd-at-seed1", "seed 1"),
        ("pgd-at, mean", "2 seeds"),
    ]
    assert dict(zip(made.heads, made.rows[-1][1:], strict=True))["PGD-20 linf-8/255"] == "45.0 +- 7.1 (44.50, +0.5)"
