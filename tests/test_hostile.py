"""Everything that prints or draws, met by names that would like to act and by files that were changed."""

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_exhibits import LABELS, embedding, pictures
from test_reporting import LINF, RECORDS, named

from robench import diagnosis, exhibits, figures, gallery
from robench.diagnosis import Diagnosis, Row
from robench.results import Result, Store

Cli = Callable[..., tuple[int, str, str]]
ACTS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
NAMES = [
    "=cmd()|a\\|b<script>alert(1)</script>\x1b[31m\x1b]0;t\x07\u202egnp\u2066\u061c\r\nINJECTED\u2028INJECTED`x`[y](z)",
    "../../../x/\\..\\x",
    "-1+1@SUM(A1)&amp;'\";%s$(id)\\input{x}$\\frac{",
]
FORMATS = ("terminal", "markdown", "csv", "latex", "json", "html")
KINDS = (*figures.KINDS, *gallery.KINDS)


@pytest.fixture(params=NAMES, ids=["everything", "path", "formula"])
def hostile(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Results in which whatever can bear a name bears such a one: cells, labels, pictures, features, diagnoses."""
    name, folder = request.param, tmp_path / "results"
    records = named(name)
    one = next(record for record in records if isinstance(record, Result))
    other = replace(one, cell=replace(one.cell, attack="other" + name), robust=(False,) * 8)
    for record in [*records, other]:
        Store(folder).put(record)
    exhibits.put(replace(LABELS, dataset=name), folder)
    exhibits.put(pictures(other), folder)
    exhibits.put(embedding(one.subject, attack=name), folder)
    rows = (Row("G1", name, 1.0, name, "fail", name),)
    diagnosis.put(Diagnosis(one.subject.sha256, name, LINF, "d" * 64, 8, 8, 0, (), rows), folder)
    return folder


def test_names_are_inert_in_every_report(hostile: Path, run_cli: Cli) -> None:
    for form in FORMATS:
        for table in ("all", "white-box", "transfer", "cost", "classes"):
            code, out, err = run_cli("report", "--results", hostile, "--format", form, "--table", table)
            assert (code, err) == (0, ""), (form, table, err)
            assert not ACTS.search(out), (form, table)
            assert not [line for line in out.splitlines() if line.startswith("INJECTED")]
            assert form == "json" or "<script>alert" not in out or form in ("csv", "terminal")


def test_names_are_inert_in_every_figure(hostile: Path, run_cli: Cli) -> None:
    pytest.importorskip("matplotlib")
    for kind in KINDS:
        out = hostile.parent / f"{kind}.svg"
        code, _, err = run_cli("plot", "--results", hostile, "--kind", kind, "--out", out)
        assert (code, err) == (0, ""), kind
        assert not ACTS.search("".join(ElementTree.parse(out).getroot().itertext()))
        assert "<script" not in out.read_text()
    assert sorted(path.name for path in hostile.parent.iterdir()) == sorted(
        [*(f"{kind}.svg" for kind in KINDS), "results"]
    )


def test_names_are_inert_where_records_are_told(hostile: Path, run_cli: Cli) -> None:
    commands = [("show", path) for path in sorted((hostile / "cells").glob("*.json"))]
    commands += [("verify", hostile), ("list", "results", "--results", hostile)]
    commands += [("list", "results", "--results", hostile, "--format", "markdown")]
    for command in commands:
        code, out, err = run_cli(*command)
        assert code == 0, (command, err)
        assert not ACTS.search(out + err), command
        assert not [line for line in out.splitlines() if line.startswith("INJECTED")]


# files that were changed by hand


@pytest.fixture
def changed(tmp_path: Path) -> Path:
    """A record with one more robust image than was stored."""
    for record in RECORDS:
        Store(tmp_path).put(record)
    path = sorted((tmp_path / "cells").glob("*.json"))[0]
    table = json.loads(path.read_bytes())
    table["seconds"] = 99.0
    path.write_text(json.dumps(table))
    return path


@pytest.mark.parametrize("form", FORMATS)
def test_no_report_shows_a_changed_record(changed: Path, run_cli: Cli, form: str) -> None:
    code, out, err = run_cli("report", "--results", changed.parent.parent, "--format", form)
    assert (code, out) == (2, "")
    assert changed.name in err
    assert "the digest differs" in err


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_no_figure_shows_a_changed_record(changed: Path, run_cli: Cli, kind: str) -> None:
    out = changed.parent.parent / "x.svg"
    code, _, err = run_cli("plot", "--results", changed.parent.parent, "--kind", kind, "--out", out)
    assert code == 2
    assert "the digest differs" in err
    assert not out.exists()


def test_show_and_verify_name_a_changed_record(changed: Path, run_cli: Cli) -> None:
    for command in (("show", changed), ("verify", changed.parent.parent)):
        code, out, err = run_cli(*command)
        assert code
        assert "the digest differs" in out + err


@pytest.mark.parametrize("text", ["", "bm90IGEgcGljdHVyZQ==", "*", "iVBORw0KGgo="])
def test_a_picture_that_is_none_is_one_line_though_its_digest_fits(tmp_path: Path, run_cli: Cli, text: str) -> None:
    pytest.importorskip("matplotlib")
    for record in RECORDS:
        Store(tmp_path).put(record)
    first = next(record for record in RECORDS if isinstance(record, Result))
    made = pictures(first, 1)
    exhibits.put(replace(made, examples=(replace(made.examples[0], clean=text),)), tmp_path)
    for command in (("plot", "--kind", "examples", "--out", tmp_path / "x.svg"), ("report", "--format", "html")):
        code, _, err = run_cli(*command, "--results", tmp_path)
        assert code == 2
        assert "is no PNG" in err
        assert "robench show" in err
        assert err.count("\n") == 1


def test_a_number_that_json_lacks_is_refused(tmp_path: Path, run_cli: Cli) -> None:
    path = exhibits.put(embedding(), tmp_path)
    table = json.loads(path.read_bytes())
    table["features"]["clean"][0][0] = 1e999
    path.write_text(json.dumps(table))
    code, _, err = run_cli("plot", "--results", tmp_path, "--kind", "features", "--out", tmp_path / "x.svg")
    assert code == 2
    assert "damaged" in err


# nothing left


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("report", "--dataset", "mnist"), "--dataset mnist leaves none of the results; there are some on cifar10"),
        (("report", "--dataset", "mnist", "--format", "html"), "--dataset mnist leaves none"),
        (("report", "--table", "classes"), "the classes of the images are not stored yet"),
        (("plot", "--kind", "union", "--dataset", "mnist", "--out", "x.svg"), "--dataset mnist leaves none"),
        (("plot", "--kind", "classes", "--dataset", "mnist", "--out", "x.svg"), "--dataset mnist leaves none"),
        (("plot", "--kind", "examples", "--out", "x.svg"), "no pictures are stored for these results"),
        (("plot", "--kind", "features", "--out", "x.svg"), "no features are stored"),
        (("report", "--table", "rocl-table8"), "rocl-table8"),
    ],
)
def test_an_empty_selection_says_what_emptied_it(
    tmp_path: Path, run_cli: Cli, command: tuple[str, ...], words: str
) -> None:
    for record in RECORDS:
        Store(tmp_path).put(record)
    code, out, err = run_cli(*command, "--results", tmp_path)
    assert (code, out) == (2, "")
    assert words in err
