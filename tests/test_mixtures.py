"""Records that differ in eps, n, data set or attack version are never averaged, nor in one column without saying so."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_reporting import FORMS, L2, LINF, PGDAT, ROCL, STANDARD, render, result

from robench import figures, paired, perclass, reporting, spending, standing, union
from robench.results import Result, Store
from robench.threat import ThreatModel

ONE = result(PGDAT, "pgd-20", "11110000")


def changed(**changes: object) -> Result:
    """The record with something else in its cell, of another checkpoint, and with other bits."""
    cell = replace(ONE.cell, checkpoint=ROCL.sha256, **changes)  # type: ignore[arg-type]
    made = replace(ONE, subject=ROCL, cell=cell, robust=(True, *[False] * 7))
    if cell.count != ONE.cell.count:
        made = replace(made, clean=made.clean[: cell.count], robust=made.robust[: cell.count])
    return made


EPS = changed(threat=ThreatModel.parse("linf-16/255"))
FEWER = changed(count=6, data="e" * 64)
ELSEWHERE = replace(changed(data="f" * 64), subject=replace(ROCL, dataset="digits"))
NEWER = changed(version=2)
TUNED = changed(options={"steps": 40})
ANOTHER_SEED = changed(seed=1)
LESS_PRECISE = changed(precision="bfloat16")

APART = {"fewer images": FEWER, "another data set": ELSEWHERE, "another seed": ANOTHER_SEED}
TOLD = {"another eps": EPS, "another version": NEWER, "other options": TUNED, "another precision": LESS_PRECISE}


@pytest.mark.parametrize("other", APART.values(), ids=APART)
def test_other_images_or_seeds_are_in_another_table_of_another_name(other: Result) -> None:
    makers: list[Callable[[list[Result]], list[reporting.Table]]] = [
        lambda records: reporting.tables(records, "white-box"),
        lambda records: union.tables(records),
        lambda records: standing.tables(records),
    ]
    for make in makers:
        if other is ANOTHER_SEED and make is makers[1]:
            continue  # a union is over the seeds of an attack, too, each a row of its own
        made = make([ONE, other])
        assert len(made) == 2
        assert len({table.title for table in made}) == 2
        for table in made:
            names = {row[1].removesuffix(" !") for row in table.rows} & {"pgd-at", "rocl"}
            assert len(names) <= 1
    assert len(spending.rows([ONE, other], ())) == 2
    assert len({figure.title for figure in figures.figures([ONE, other], "curves")}) == 2


@pytest.mark.parametrize("other", TOLD.values(), ids=TOLD)
def test_another_attack_is_in_a_column_of_another_name(other: Result) -> None:
    (table,) = reporting.tables([ONE, other], "white-box")
    columns = [i for i, head in enumerate(table.heads, 1) if "pgd-20" in head]
    assert len(columns) == 2
    for i in columns:  # none has the numbers of both
        assert sum(row[i] != reporting.ABSENT for row in table.rows) == 1
    worst = [i for i, head in enumerate(table.heads, 1) if "worst" in head]
    assert worst
    assert all(row[i] == reporting.ABSENT for row in table.rows for i in worst)  # neither met what the other met


@pytest.mark.parametrize("form", [form for form in FORMS if form not in ("cells", "transfer")])
@pytest.mark.parametrize("other", [NEWER, TUNED, LESS_PRECISE], ids=["version", "options", "precision"])
def test_what_is_told_apart_is_said_in_every_format(form: str, other: Result) -> None:
    made = render([ONE, other], form)
    words = {"pgd-20 v2": other is NEWER, "pgd-20 steps=40": other is TUNED, "pgd-20 bfloat16": other is LESS_PRECISE}
    assert all((word in made) is there for word, there in words.items())


def test_a_mean_over_seeds_says_how_many_met_that_eps() -> None:
    second = replace(PGDAT, name="pgd-at-seed1", seed=1, sha256="7" * 64)
    far = ThreatModel.parse("linf-16/255")
    three = [
        ONE,
        replace(ONE, subject=second, cell=replace(ONE.cell, checkpoint=second.sha256, threat=far)),
    ]
    (table,) = reporting.tables(three, "white-box")
    mean = next(row for row in table.rows if row[2] == "2 seeds")
    heads = dict(zip(table.heads, mean[1:], strict=True))
    assert all(text == "50.0 (1 of 2)" for head, text in heads.items() if "pgd-20" in head)  # not a mean over two
    assert all(text == reporting.ABSENT for head, text in heads.items() if "worst" in head)


def test_two_models_are_compared_only_where_both_met_the_same() -> None:
    same = result(ROCL, "pgd-20", "11100000", L2)
    mine = result(PGDAT, "pgd-20", "11100000", L2)
    for other in (*TOLD.values(), *APART.values()):
        made = paired.tables(paired.pairs([ONE, mine, same, other], "pgd-at", "rocl"))
        rows = [row for table in made for row in table.rows]
        assert any("l2-0.5" in text for row in rows for text in row)
        compared = [row for row in rows if any(str(LINF) in text for text in row) and reporting.ABSENT not in row]
        assert not compared


def test_no_class_is_counted_over_other_images() -> None:
    from robench.exhibits import Labels

    labels = Labels("d" * 64, "cifar10", 10, " ".join("01234567"))
    made = perclass.tables([ONE, FEWER, changed()], [labels])
    assert sum("8 test images" in table.title for table in made) == len(made)


def test_a_filter_that_empties_a_report_is_named(tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]) -> None:
    for record in (ONE, result(STANDARD, "fgsm", "11110000"), result(PGDAT, "pgd-20", "11100000", LINF, STANDARD)):
        Store(tmp_path).put(record)
    for asked, said in {
        "--attack fgsn": "--attack fgsn leaves none of the results",
        "--dataset mnist": "--dataset mnist leaves none of the results",
        "--threat l2": "--threat l2 leaves none of the results",
        "--attack fgsm --source standard": "--source standard leaves none of the results that --attack fgsm left",
        "--seed 3": "--seed 3 leaves none of the results",
    }.items():
        for table in ("all", "union", "cost", "indicators", "cells"):
            form = ("--format", "csv") if table == "cells" else ()
            code, out, err = run_cli("report", "--results", tmp_path, "--table", table, *form, *asked.split())
            assert (code, out) == (2, "")
            assert said in err
