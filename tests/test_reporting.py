"""Reports: pure functions of the records, to the byte, in which nothing that bears a name can do harm.

The files in golden/ were read by a person; after a change that is meant, renew them and read the difference:
`RENEW_GOLDEN=1 pytest tests/test_reporting.py`.
"""

import csv
import io
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robench import reporting, terminal
from robench.errors import StoreError
from robench.rendering.csv import csv as rendered
from robench.rendering.json import json
from robench.rendering.latex import latex
from robench.rendering.markdown import markdown
from robench.results import Cell, Failure, Result, Subject
from robench.threat import ThreatModel

Record = Result | Failure

LINF, L2 = ThreatModel.parse("linf-8/255"), ThreatModel.parse("l2-0.5")


def subject(name: str, group: str = "supervised", threat: ThreatModel | None = LINF, **changes: Any) -> Subject:
    fields = {"name": name, "recipe": name, "group": group, "threat": threat, "seed": 0, "dataset": "cifar10"}
    return Subject(**{**fields, "sha256": name.ljust(64, "0"), **changes})


STANDARD = subject("standard", threat=None)
PGDAT = subject("pgd-at")
ROCL = subject("rocl", "self-supervised")


def bits(text: str) -> tuple[bool, ...]:
    return tuple(character == "1" for character in text)


def result(
    on: Subject, attack: str, robust: str, threat: ThreatModel = LINF, source: Subject | None = None, **changes: Any
) -> Result:
    """One result; `robust` has a 1 for each image that stayed right, and as many images were right before or more."""
    cell = Cell(
        checkpoint=on.sha256,
        source=source.sha256 if source else "",
        attack=attack,
        version=1,
        options={},
        threat=threat,
        data=changes.pop("data", "d" * 64),
        count=len(robust),
        seed=changes.pop("seed", 0),
    )
    fields: dict[str, Any] = {
        "clean": bits(("1" * 7 + "0" if on.threat is None else "1" * 6 + "00").ljust(len(robust), "0")),
        "robust": bits(robust),
        "largest": threat.eps,
        "seconds": 1.5,
        "forwards": 10,
        "backwards": 5,
    }
    return Result(cell, on, source, **{**fields, **changes})


def failure(on: Subject, attack: str, reason: str, threat: ThreatModel = LINF) -> Failure:
    return Failure(replace(result(on, attack, "1" * 8, threat).cell), on, None, reason)


RECORDS: list[Record] = [
    result(STANDARD, "pgd-20", "10000000"),
    result(STANDARD, "fgsm", "01100000"),
    result(STANDARD, "pgd-20", "11000000", L2),
    result(PGDAT, "pgd-20", "11110000"),
    result(PGDAT, "pgd-20", "11111000", L2),
    result(ROCL, "pgd-20", "11100000"),
    result(ROCL, "fgsm", "11110000"),
    result(ROCL, "autoattack", "11000000", notes=("targets 9 classes, all there are",)),
    result(ROCL, "pgd-20", "11110000", L2, notes=("half the steps", "no restarts")),
    result(PGDAT, "pgd-20", "11111100", LINF, STANDARD),
    result(ROCL, "pgd-20", "01111100", LINF, STANDARD),
    result(STANDARD, "pgd-20", "11110000", LINF, PGDAT),
    result(ROCL, "pgd-20", "11101000", LINF, PGDAT),
    failure(STANDARD, "autoattack", "the attack left the ball: linf norm 0.5, allowed 0.031372549"),
]


def render(records: Sequence[Record], form: str) -> str:
    if form == "markdown":
        return markdown(reporting.tables(records))
    if form == "terminal":
        return terminal.text(reporting.tables(records), file=True)
    if form == "latex":
        return latex(reporting.tables(records))
    if form == "json":
        return json(reporting.tables(records), records)
    return rendered(records, form)


FORMS = ["markdown", "terminal", "latex", "json", "cells", "white-box", "transfer"]


def rows(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


def table(records: Sequence[Record], which: str = "all") -> dict[str, dict[str, str]]:
    """The first table as {row: {column: text}}."""
    made = reporting.tables(records, which)[0]
    heads = made.heads[1:]
    return {
        row[1]: {head: text for head, text in zip(heads, row[2:], strict=True) if head != "seeds"} for row in made.rows
    }


# to the byte


@pytest.mark.parametrize(
    ("form", "file"),
    [
        ("markdown", "tables.md"),
        ("terminal", "tables.txt"),
        ("latex", "tables.tex"),
        ("json", "tables.json"),
        ("cells", "cells.csv"),
        ("white-box", "white-box.csv"),
        ("transfer", "transfer.csv"),
    ],
)
def test_the_report_is_the_golden_file(form: str, file: str) -> None:
    path = Path(__file__).parent / "golden" / file
    made = render(RECORDS, form).encode()
    if "RENEW_GOLDEN" in os.environ:
        path.write_bytes(made)
    assert made == path.read_bytes()


@pytest.mark.parametrize("form", FORMS)
@given(order=st.permutations(range(len(RECORDS))))
@settings(deadline=None, derandomize=True, max_examples=10)
def test_the_order_of_the_records_does_not_matter(form: str, order: list[int]) -> None:
    assert render([RECORDS[i] for i in order], form) == render(RECORDS, form)


@pytest.mark.parametrize("form", FORMS)
def test_a_copied_run_is_shown_the_same_in_any_order(form: str) -> None:
    # the same weights under two names, as after copying a folder
    copy = replace(ROCL, name="copy")
    records = [result(ROCL, "fgsm", "11110000"), result(copy, "pgd-20", "11100000"), *RECORDS[-4:-1]]
    assert render(records, form) == render(records[::-1], form)


@pytest.mark.parametrize("form", FORMS)
def test_disagreeing_clean_bits_are_shown_the_same_in_any_order(form: str) -> None:
    # two devices may round a tie differently
    records = [*RECORDS, result(ROCL, "pgd-50", "11100000", clean=bits("11111110"))]
    assert render(records, form) == render(records[::-1], form)


@pytest.mark.parametrize("form", FORMS)
def test_the_report_depends_on_the_records_alone(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = render(RECORDS, form)
    for name, value in {
        "COLUMNS": "40",
        "LINES": "5",
        "TERM": "xterm-256color",
        "LANG": "tr_TR",
        "NO_COLOR": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert render(RECORDS, form) == before


# what the figures mean


def test_the_worst_case_is_taken_image_by_image() -> None:
    # 62.5 and 50 per cent, but only two of the eight images stay right under both
    found = table([result(PGDAT, "fgsm", "11111000"), result(PGDAT, "pgd-20", "11000110")])
    assert found["pgd-at"]["seen linf-8/255 fgsm"] == "62.5"
    assert found["pgd-at"]["seen linf-8/255 worst"] == "25.0"


def test_the_worst_of_all_is_taken_over_threats_and_sources() -> None:
    found = table(
        [
            result(PGDAT, "pgd-20", "11110000"),
            result(PGDAT, "pgd-20", "01111000", L2),
            result(PGDAT, "pgd-20", "10111000", LINF, STANDARD),
        ]
    )
    assert found["pgd-at"]["seen linf-8/255 worst"] == "37.5"
    assert found["pgd-at"]["worst of all"] == "25.0"


def test_the_worst_of_one_attack_is_not_shown() -> None:
    assert set(table([result(PGDAT, "pgd-20", "11110000")])["pgd-at"]) == {"clean", "seen linf-8/255 pgd-20"}


def test_a_threat_nobody_trained_against_is_unseen() -> None:
    found = table([result(PGDAT, "pgd-20", "11110000"), result(STANDARD, "pgd-20", "11110000", L2)])
    assert set(found["standard"]) == {"clean", "seen linf-8/255 pgd-20", "unseen l2-0.5 pgd-20", "worst of all"}


def test_what_was_not_run_is_absent_and_not_zero() -> None:
    found = table([result(PGDAT, "pgd-20", "11110000"), result(ROCL, "fgsm", "00000000")])
    assert found["pgd-at"]["seen linf-8/255 fgsm"] == "-"
    assert found["rocl"]["seen linf-8/255 fgsm"] == "0.0"


def test_a_checkpoint_may_have_no_result_at_a_threat() -> None:
    found = table([result(PGDAT, "fgsm", "1" * 8), result(PGDAT, "pgd-20", "1" * 8), result(ROCL, "fgsm", "1" * 8, L2)])
    assert found["rocl"]["seen linf-8/255 worst"] == "-"
    assert found["pgd-at"]["unseen l2-0.5 fgsm"] == "-"


def test_a_failure_is_listed_and_is_no_figure() -> None:
    records = [result(PGDAT, "pgd-20", "11110000"), failure(PGDAT, "autoattack", "it stopped")]
    assert not [name for name in table(records)["pgd-at"] if "autoattack" in name]
    last = reporting.tables(records)[-1]
    assert last.title == "Cells without a result"
    assert last.rows == (("", "pgd-at", "autoattack", "linf-8/255", "it stopped"),)
    assert "it stopped" in render(records, "markdown")
    assert "it stopped" in render(records, "terminal")


def test_failures_alone_are_a_report() -> None:
    (only,) = reporting.tables([failure(PGDAT, "autoattack", "it stopped")])
    assert only.title == "Cells without a result"


def test_transfer_has_targets_as_rows_and_sources_as_columns() -> None:
    found = table(RECORDS, "transfer")
    assert found["rocl"]["standard"] == "62.5"
    assert found["standard"]["pgd-at"] == "50.0"
    assert found["standard"]["standard"] == "12.5*"  # white-box, the same attack


@pytest.mark.parametrize(("count", "expected"), [(8, "37.5"), (999, "0.3"), (1000, "0.30"), (10000, "0.03")])
def test_accuracies_have_the_digits_that_the_images_resolve(count: int, expected: str) -> None:
    found = table([result(PGDAT, "pgd-20", "111".ljust(count, "0"))])
    assert found["pgd-at"]["seen linf-8/255 pgd-20"] == expected


def test_supervised_baselines_come_first() -> None:
    assert list(table(RECORDS)) == ["standard", "pgd-at", "rocl"]


# never mixed


@pytest.mark.parametrize(
    "other",
    [
        result(PGDAT, "fgsm", "1" * 4),
        result(replace(PGDAT, dataset="cifar100"), "fgsm", "1" * 8),
        result(PGDAT, "fgsm", "1" * 8, data="e" * 64),
        result(PGDAT, "fgsm", "1" * 8, seed=1),
    ],
    ids=["count", "data set", "images", "seed"],
)
def test_results_on_other_images_are_in_another_table(other: Result) -> None:
    made = reporting.tables([result(PGDAT, "pgd-20", "11110000"), other])
    assert len(made) == 2
    assert made[0].title != made[1].title
    assert all(("fgsm" in table.header[-1]) != ("pgd-20" in table.header[-1]) for table in made)


def remade(record: Result, **changes: Any) -> Result:
    """The same but for something of its cell, with no image left robust."""
    return replace(record, robust=(False,) * len(record.robust), cell=replace(record.cell, **changes))


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"version": 2}, ("pgd-20 v1", "pgd-20 v2")),
        ({"options": {"steps": 20}}, ("pgd-20 steps=None", "pgd-20 steps=20")),
    ],
)
def test_another_version_or_options_of_an_attack_are_another_column(
    changes: dict[str, Any], names: tuple[str, str]
) -> None:
    first = result(PGDAT, "pgd-20", "11110000")
    (made,) = reporting.tables([first, remade(first, **changes), result(ROCL, "pgd-20", "11100000")])
    shown = dict(zip(made.heads, made.rows[0][1:], strict=True))
    assert [shown[next(head for head in shown if head.endswith(name))] for name in names] == ["50.0", "0.0"]
    other = dict(zip(made.heads, made.rows[1][1:], strict=True))
    assert next(text for head, text in other.items() if head.endswith("worst")) == "-"  # it met only one of them
    assert any("different attacks" in note for note in made.notes)


def test_a_transfer_matrix_holds_one_version_of_an_attack() -> None:
    own, crossed = result(STANDARD, "pgd-20", "10000000"), result(PGDAT, "pgd-20", "11110000", LINF, STANDARD)
    records = [own, crossed, remade(crossed, version=2)]
    titles = [made.title for made in reporting.tables(records, "transfer")]
    assert [title.split(" at ")[0].removeprefix("Black-box transfer, ") for title in titles] == [
        "pgd-20 v1",
        "pgd-20 v2",
    ]


@given(st.lists(st.tuples(st.integers(1, 2), st.sampled_from([{}, {"step": 0.1}]), st.booleans()), max_size=6))
def test_no_two_records_share_a_cell_of_a_table(kinds: list[tuple[int, dict[str, float], bool]]) -> None:
    cells = [(version, options, LINF if small else L2) for version, options, small in kinds]
    base = result(PGDAT, "pgd-20", "11110000").cell
    records = [
        replace(result(PGDAT, "pgd-20", "11110000"), cell=replace(base, version=v, options=o, threat=t))
        for v, o, t in cells
    ]
    made = {r.cell.key: r for r in records}
    told = {(r.cell.attack, r.cell.threat) for r in reporting.apart(made.values())}
    assert len(told) == len(made)


def test_a_doubted_checkpoint_is_marked_in_every_table_and_told_below() -> None:
    records = [replace(r, notes=("flag: zero gradients",)) if r.subject == ROCL else r for r in RECORDS[:-1]]  # type: ignore[type-var]
    for made in reporting.tables(records):
        assert "rocl !" in {row[1] for row in made.rows}
        assert any("rocl ! unreliable" in note for note in made.notes)
        assert not {"pgd-at !", "standard !"} & {row[1] for row in made.rows}


def test_the_title_says_which_images() -> None:
    few, many = result(PGDAT, "fgsm", "1" * 4), result(PGDAT, "fgsm", "1" * 2000)
    titles = [table.title for table in reporting.tables([few, many])]
    assert any("cifar10, 4 test images" in title for title in titles)
    assert any("cifar10, 2,000 test images" in title for title in titles)


# nothing to show


@pytest.mark.parametrize("which", ["all", "white-box", "transfer"])
def test_no_records_are_an_error(which: str) -> None:
    with pytest.raises(StoreError, match=f"no {which} results among 0 records"):
        reporting.tables([], which)


@pytest.mark.parametrize("which", ["cells", "white-box", "transfer"])
def test_a_csv_of_nothing_is_an_error(which: str) -> None:
    with pytest.raises(StoreError, match=r"no .*results"):
        rendered([failure(PGDAT, "fgsm", "it stopped")], which)


def test_no_transfer_is_an_error() -> None:
    with pytest.raises(StoreError, match="no transfer results"):
        reporting.tables([result(PGDAT, "fgsm", "1" * 8)], "transfer")


# CSV


def test_a_row_of_cells_holds_fractions() -> None:
    head, *found = rows(rendered([result(ROCL, "pgd-20", "11100000", LINF, PGDAT)]))
    row = dict(zip(head, found[0], strict=True))
    assert len(found) == 1
    assert (float(row["clean_accuracy"]), float(row["robust_accuracy"])) == (0.75, 0.375)
    assert (row["checkpoint"], row["source"], row["threat"], row["seen"]) == ("rocl", "pgd-at", "linf-8/255", "True")
    assert float(row["largest_perturbation"]) == LINF.eps


@pytest.mark.parametrize("form", FORMS)
def test_two_runs_may_have_one_name(form: str) -> None:
    # the same recipe in two checkpoints folders
    twins = [replace(PGDAT, sha256="1" * 64), replace(PGDAT, sha256="2" * 64)]
    records: list[Record] = [result(one, "fgsm", "11110000", LINF, two) for one, two in (twins, twins[::-1])]
    records += [result(STANDARD, "fgsm", "1" * 8, LINF, twin) for twin in twins]
    records += [result(one, "fgsm", "11000000") for one in twins]
    assert render(records, form).count("pgd-at") >= 2


# names that would like to act

HOSTILE = [
    "a|b",
    "a\\|b",
    "<script>alert(1)</script>",
    "[click](javascript:alert(1))",
    "![x](http://example.invalid/x.png)",
    "`code`",
    "# heading",
    "=cmd()",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "line\nINJECTED",
    "line\r\nINJECTED",
    "line\u2028INJECTED",
    "\u202egnp.exe",
    "\u2066x\u2069",
    "[bold red]x[/]",
    "[/]",
    '"quoted", and more',
    "",
]
SECRET = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def named(text: str) -> list[Record]:
    """Results in which everything that can bear a name bears this one."""
    one = subject(text, text, dataset=text, recipe=text, sha256="1" * 64)
    two = subject("other" + text, "supervised", dataset=text, sha256="2" * 64)
    return [
        result(one, text, "11110000", notes=(text,)),
        result(two, text, "11110000", notes=(text,)),
        result(one, text, "11110000", LINF, two),
        result(two, text, "11110000", LINF, one),
        failure(one, "autoattack", text),
    ]


def pipes(line: str) -> int:
    """How many column borders a Markdown reader sees."""
    return re.sub(r"\\.", "", line).count("|")


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_names_are_inert_in_markdown(text: str) -> None:
    made, harmless = (markdown(reporting.tables(named(name))).splitlines() for name in (text, "name"))
    if text:  # an empty group has no line of its own
        assert [pipes(line) for line in made] == [pipes(line) for line in harmless]
    joined = re.sub(r"\\.", "", "\n".join(made))
    assert not SECRET.search(joined)
    assert "<" not in joined
    assert "`" not in joined
    assert "[" not in joined
    assert not [line for line in made if line.startswith("#")]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_names_are_inert_in_a_terminal(text: str) -> None:
    made = terminal.text(reporting.tables(named(text)), file=True)
    assert not SECRET.search(made)
    assert not [line for line in made.splitlines() if line.startswith("INJECTED")]
    if text.startswith("["):
        assert text in made  # shown, not obeyed


@pytest.mark.parametrize("which", ["cells", "white-box", "transfer"])
@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_names_are_inert_in_a_spreadsheet(text: str, which: str) -> None:
    made, harmless = (rendered(named(name), which) for name in (text, "name"))
    assert made.count("\n") == harmless.count("\n")
    assert not SECRET.search(made)
    for row in rows(made):
        assert len(row) == len(rows(harmless)[0])
        assert not [cell for cell in row if cell[:1] in ("=", "+", "@", "\t", "\r")]
        assert not [cell for cell in row if cell[:1] == "-" and cell != "-"]


def test_a_wide_table_is_cut_between_threats() -> None:
    threats = [ThreatModel.parse(f"l2-{i}") for i in range(1, 12)]
    records = [result(PGDAT, attack, "11110000", threat) for attack in ("fgsm", "pgd-20") for threat in threats]
    made = terminal.text(reporting.tables(records), file=True)
    assert max(map(len, made.splitlines())) <= 120
    assert made.count("checkpoint") > 1
    assert made.count("fgsm") == len(threats)
