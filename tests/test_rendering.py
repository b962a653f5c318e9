"""Renderings beyond Markdown and CSV: bold, LaTeX, JSON, HTML in a real browser, and figures, to the byte and inert."""

import base64
import hashlib
import json as encoder
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from test_reporting import (
    FORMS,
    HOSTILE,
    L2,
    LINF,
    PGDAT,
    RECORDS,
    ROCL,
    SECRET,
    STANDARD,
    failure,
    named,
    render,
    result,
    rows,
)

from robench import figures, reporting, terminal
from robench.diagnosis import Diagnosis, Row
from robench.errors import StoreError, UsageError
from robench.panels import Cost, Curves, Matrix, Training, Union
from robench.rendering import drawing, look
from robench.rendering.csv import csv
from robench.rendering.html import html
from robench.rendering.json import json
from robench.rendering.latex import escape, latex, spans
from robench.rendering.markdown import markdown
from robench.reporting import Table
from robench.results import Store
from robench.threat import ThreatModel

TABLE = Table(
    "Bold",
    (("", "seen", "seen"), ("name", "a", "b")),
    (("one", "x", "10.0", "9.0"), ("one", "y", "2.0", "-")),
    ("a note",),
    frozenset({(0, 2), (1, 1)}),
)
KINDS = list(figures.KINDS)


@pytest.fixture
def plots() -> None:
    pytest.importorskip("matplotlib", reason="figures need matplotlib: pip install 'robench[plot]'")


def panels(records: Any, kind: str) -> list[Any]:
    return [panel for figure in figures.figures(records, kind) for panel in figure.panels]


# bold


def test_bold_cells_are_bold_in_markdown() -> None:
    found = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown([TABLE]).splitlines() if "|" in line]
    assert found[-2:] == [["x", "**10.0**", "9.0"], ["**y**", "2.0", "-"]]


def test_bold_cells_are_bold_in_latex() -> None:
    text = latex([TABLE])
    assert "x & \\textbf{10.0} & 9.0 \\\\" in text
    assert "\\textbf{y} & 2.0 & - \\\\" in text


def test_bold_cells_are_bold_in_html() -> None:
    assert re.findall(r'<t[hd][^>]* class="bold"[^>]*>([^<]*)<', html([TABLE])) == ["10.0", "y"]


def test_bold_cells_are_named_in_json() -> None:
    assert encoder.loads(json([TABLE]))["tables"][0]["bold"] == [{"row": 0, "cell": 1}, {"row": 1, "cell": 0}]


def test_bold_cells_are_bold_in_a_terminal() -> None:
    console = Console(force_terminal=True, color_system="truecolor", width=80)
    with console.capture() as captured:
        console.print(terminal._rich(TABLE, [0, 1, 2]))
    body = captured.get().rpartition("─")[2]  # heads are bold anyway
    assert re.findall(r"\x1b\[1m\s*([^\s\x1b]+)", body) == ["10.0", "y"]


def test_bold_cells_are_starred_in_a_text_file() -> None:
    lines = [line.split() for line in terminal.text([TABLE], file=True).splitlines()]
    assert ["x", "**10.0**", "9.0"] in lines
    assert ["**y**", "2.0", "-"] in lines


def test_bold_cells_are_named_in_a_wide_csv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robench.rendering.csv.tables", lambda *_: [TABLE])
    assert csv(RECORDS, "white-box").splitlines() == [
        "table,group,name,seen a,seen b,bold",
        "Bold,one,x,10.0,9.0,seen a",
        "Bold,one,y,2.0,-,name",
    ]


# LaTeX


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50% of $1 & #2_3", "50\\% of \\$1 \\& \\#2\\_3"),
        ("a\\b{c}^~", "a\\textbackslash{}b\\{c\\}\\textasciicircum{}\\textasciitilde{}"),
        ("<|>", "\\textless{}\\textbar{}\\textgreater{}"),
        ("12.5 +- 0.3", "12.5 $\\pm$ 0.3"),
        ("a--b ''c", "a-{}-b '{}'c"),
        ("[1]*", "{[}1{]}{*}"),
        ("é e\u0301", "é é"),
        ("中", "{[}U+4E2D{]}"),
    ],
)
def test_what_latex_would_obey_is_escaped(text: str, expected: str) -> None:
    assert escape(text) == expected


@given(st.text(st.characters(codec="utf-8"), max_size=30))
@settings(deadline=None, derandomize=True)
def test_no_text_has_a_command_of_its_own(text: str) -> None:
    known = r"\\(text(backslash|asciicircum|asciitilde|less|greater|bar)\{\}|char34\{\}|`\{\}|[{}$&#%_])|\$\\pm\$"
    rest = re.sub(known, "", escape(text))
    assert not set(rest) & set('\\$&#%_^~<>|"`')
    assert rest.count("{") == rest.count("}")
    assert not re.search(r"--|''|,,|\?`|!`", rest)


def test_heads_span_only_below_one_outer_head() -> None:
    header = (("", "seen", "seen", "unseen", "unseen"), ("", "l2", "l2", "l2", "l1"), ("name", "a", "b", "c", "d"))
    assert spans(header, 0) == [(0, 1), (1, 2), (3, 2)]
    assert spans(header, 1) == [(0, 1), (1, 2), (3, 1), (4, 1)]
    assert spans(header, 2) == [(i, 1) for i in range(5)]


def compiled(folder: Path, text: str) -> str:
    """What LaTeX says of some tables, with warnings and errors in it."""
    path = shutil.which("pdflatex")
    if path is None:
        pytest.skip("no pdflatex on this machine")
    body = "\\documentclass{article}\\usepackage{booktabs,graphicx}\\begin{document}\n" + text + "\\end{document}\n"
    (folder / "page.tex").write_text(body)
    command = [path, "-interaction=nonstopmode", "-no-shell-escape", "page.tex"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False).stdout


def test_plain_latex_sets_the_tables(tmp_path: Path) -> None:
    said = compiled(tmp_path, latex([*reporting.tables(RECORDS), TABLE]))
    assert "Output written" in said
    assert not re.search(r"^!|Overfull", said, re.MULTILINE)


def test_plain_latex_sets_every_name(tmp_path: Path) -> None:
    letters = ["".join(map(chr, range(start, start + 48))) for start in range(32, 0x250, 48)]
    made = [
        Table(text, (("name", "x"),), (("", text, text),), (text,)) for text in [*HOSTILE, *letters, "中\U0001f600"]
    ]
    said = compiled(tmp_path, "\\clearpage\n".join(latex([table]) for table in made))
    assert "Output written" in said
    assert not re.search(r"^!", said, re.MULTILINE), re.search(r"^!.*\n.*\n.*", said, re.MULTILINE)


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_names_add_no_line_to_latex(text: str) -> None:
    made, harmless = (latex(reporting.tables(named(name))) for name in (text, "name"))
    assert not SECRET.search(made)
    if text:
        assert made.count("\n") == harmless.count("\n")
        assert re.findall(r"(?<!\\)&", made) == re.findall(r"(?<!\\)&", harmless)


# JSON


def test_json_has_the_tables_and_the_cells() -> None:
    found = encoder.loads(json(reporting.tables(RECORDS), RECORDS))
    assert list(found) == ["format", "tables", "cells", "failures"]
    assert [table["title"] for table in found["tables"]] == [table.title for table in reporting.tables(RECORDS)]
    assert len(found["cells"]) == len(RECORDS) - 1
    assert found["failures"][0]["reason"].startswith("the attack left the ball")
    one = next(cell for cell in found["cells"] if cell["checkpoint"] == "rocl" and cell["attack"] == "autoattack")
    assert (one["clean_accuracy"], one["robust_accuracy"], one["median_norm"]) == (0.75, 0.25, None)


def test_json_has_no_number_that_json_lacks() -> None:
    never = result(ROCL, "cw", "1" * 6 + "00", norms=(None,) * 6 + (0.0, 0.0))
    (cell,) = encoder.loads(json([], [never]), parse_constant=pytest.fail)["cells"]
    assert cell["median_norm"] == "inf"


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_names_are_exact_and_inert_in_json(text: str) -> None:
    made = json([], named(text))
    assert made.isascii()
    assert text in {cell["checkpoint"] for cell in encoder.loads(made)["cells"]}


# figures


def test_a_curve_begins_at_the_clean_accuracy_and_says_what_all_attacks_leave() -> None:
    far = ThreatModel.parse("linf-16/255")
    records = [result(PGDAT, "pgd-20", "11110000"), result(PGDAT, "pgd-20", "11000000", far)]
    (panel,) = panels([*records, result(PGDAT, "fgsm", "00111000")], "curves")
    assert isinstance(panel, Curves)
    assert panel.title == "linf, pgd-20"
    assert panel.lines[0].points == ((0.0, 0.75), (LINF.eps, 0.5), (far.eps, 0.25))
    assert panel.lines[0].worst == ((LINF.eps, 0.25),)


def test_two_versions_of_an_attack_are_not_one_curve() -> None:
    new = result(PGDAT, "pgd-20", "11000000", ThreatModel.parse("linf-16/255"))
    new = replace(new, cell=replace(new.cell, version=2))
    (panel,) = panels([result(PGDAT, "pgd-20", "11110000"), new], "curves")
    assert len(panel.lines[0].points) == 2
    assert re.fullmatch(r"linf, pgd-20 v[12]", panel.title)


def test_the_matrix_is_the_transfer_table() -> None:
    (panel,) = panels(RECORDS, "transfer")
    assert isinstance(panel, Matrix)
    assert panel.targets == ("standard", "pgd-at", "rocl")
    assert panel.sources == ("standard", "pgd-at")
    assert panel.accuracy == ((0.125, 0.5), (0.75, 0.5), (0.625, 0.5))


@given(st.lists(st.lists(st.booleans(), min_size=8, max_size=8), min_size=2, max_size=4))
@settings(deadline=None, derandomize=True)
def test_a_union_counts_every_image_once(left: list[list[bool]]) -> None:
    clean = tuple(i < 6 for i in range(8))
    attacks = ("fgsm", "pgd-20", "cw", "fab")
    records = [
        result(PGDAT, attack, "".join("01"[bit and clean[i]] for i, bit in enumerate(each)))
        for attack, each in zip(attacks, left, strict=False)
    ]
    found = panels(records, "union") if any(sum(r.robust) < 6 for r in records) else []
    for panel in found:
        assert isinstance(panel, Union)
        assert sum(count for _, count in panel.bars) + panel.rest[0] + panel.left == panel.right == 6
        for k, total in enumerate(panel.broken):
            assert total >= sum(count for who, count in panel.bars if k in who)
    if found:
        assert found[0].left == sum(all(bits) for bits in zip(*(r.robust for r in records), strict=True))


def test_a_front_has_what_no_cheaper_attack_beats() -> None:
    costs = {"fgsm": (1, "11111100"), "pgd-20": (5, "11110000"), "cw": (7, "11111000"), "autoattack": (90, "11000000")}
    (panel,) = panels([result(PGDAT, name, bits, seconds=s) for name, (s, bits) in costs.items()], "pareto")
    assert isinstance(panel, Cost)
    assert [(point.attack, point.front) for point in panel.points] == [
        ("fgsm", True),
        ("pgd-20", True),
        ("cw", False),
        ("autoattack", True),
    ]


@pytest.mark.usefixtures("plots")
@pytest.mark.parametrize("seconds", [(3, 8), (0.4, 0.41), (0.02, 30), (7, 7)])
def test_an_axis_of_seconds_has_numbers(seconds: tuple[float, float]) -> None:
    costs = zip(("fgsm", "pgd-20"), seconds, ("11111100", "11110000"), strict=True)
    made = [result(PGDAT, name, bits, seconds=s) for name, s, bits in costs]
    drawn = ElementTree.fromstring(drawing.draw(figures.figures(made, "pareto"), "svg").decode())
    inside = [e for e in drawn.iter() if (e.get("id") or "").startswith("xtick") and "".join(e.itertext()).strip()]
    assert inside


def test_seconds_of_two_devices_are_not_compared() -> None:
    slow = [result(PGDAT, name, "11110000", provenance={"device": "cpu"}) for name in ("fgsm", "pgd-20")]
    fast = [result(ROCL, name, "11110000", provenance={"device": "cuda"}) for name in ("fgsm", "pgd-20")]
    assert [panel.title for panel in panels([*slow, *fast], "pareto")] == ["linf-8/255, cpu", "linf-8/255, cuda"]


@pytest.mark.parametrize("kind", KINDS)
def test_results_on_other_images_are_in_another_figure(kind: str) -> None:
    more = [replace(r, cell=replace(r.cell, data="e" * 64)) for r in RECORDS]
    one, two = figures.figures([*RECORDS, *more], kind)
    assert one.title != two.title


@pytest.mark.parametrize("form", FORMS)
def test_a_flag_is_in_every_format(form: str) -> None:
    records = [replace(r, notes=("flag: zero gradients",)) if r.subject == ROCL else r for r in RECORDS[:-1]]  # type: ignore[type-var]
    assert "zero gradients" not in render(RECORDS, form)
    made = render(records, form)
    if form in ("cells", "white-box", "transfer"):
        head, *lines = rows(made)
        name, flags = (
            head.index(text) for text in ("target \\ source" if form == "transfer" else "checkpoint", "flags")
        )
        doubted = "rocl" if form == "cells" else "rocl !"
        assert {(line[name], line[flags]) for line in lines} >= {(doubted, "zero gradients"), ("pgd-at", "")}
    else:
        assert "zero gradients" in made


@pytest.mark.parametrize("kind", KINDS)
def test_a_flag_is_in_every_figure(kind: str) -> None:
    records = [replace(r, notes=("flag: zero gradients",)) if r.subject == ROCL else r for r in RECORDS[:-1]]  # type: ignore[type-var]
    (figure,) = figures.figures(records, kind)
    assert "rocl: flag: zero gradients." in figure.caption
    assert "rocl (flagged)" in str(figure.panels)


@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_diagnosis_is_in_every_figure(kind: str) -> None:
    rows = (Row("G8", "black box", 5.0, "rule", "fail", "5 of 8 images"),)
    made = Diagnosis(ROCL.sha256, "rocl", LINF, "d" * 64, 8, 8, 0, (), rows)
    (figure,) = figures.figures(RECORDS, kind, [made])
    assert "rocl: unreliable at linf-8/255 G8 black box (5 of 8 images)." in figure.caption
    assert "rocl (flagged)" in str(figure.panels)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "curves"])
def test_no_figure_is_an_error_that_says_what_to_run(kind: str) -> None:
    with pytest.raises(StoreError, match=f"no {kind} in 1 results: .*robench evaluate"):
        figures.figures([result(PGDAT, "pgd-20", "11110000")], kind)


def test_training_curves_are_what_was_logged(tmp_path: Path) -> None:
    lines = [
        '{"stage": 0, "epoch": 1, "ce": 2.0, "validation clean": 0.5}',
        '{"stage": 1, "epoch": 1, "ce": NaN, "kl": 0.25}',
    ]
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (figure,) = figures.training(tmp_path)
    found = {panel.title: (panel.lines, panel.share) for panel in figure.panels if isinstance(panel, Training)}
    assert found == {
        "validation clean": ((("one", ((1, 0.5),)),), True),
        "ce": ((("one", ((1, 2.0),)),), False),
        "kl": ((("one", ((2, 0.25),)),), False),
    }
    assert figures.training(tmp_path / "absent") == []
    (tmp_path / "one" / "metrics.jsonl").write_text(lines[0] + "\n{")
    with pytest.raises(StoreError, match=r"metrics\.jsonl line 2 is damaged"):
        figures.training(tmp_path)


# drawings


@pytest.mark.usefixtures("plots")
@pytest.mark.parametrize("form", drawing.FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_figure_is_drawn_to_the_same_bytes(kind: str, form: str) -> None:
    made = drawing.draw(figures.figures(RECORDS, kind), form)
    assert made == drawing.draw(figures.figures(RECORDS[::-1], kind), form)
    assert made.startswith({"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}[form])


@pytest.mark.usefixtures("plots")
@pytest.mark.parametrize("kind", KINDS)
def test_an_svg_follows_the_page_and_asks_for_nothing(kind: str) -> None:
    text = drawing.draw(figures.figures(RECORDS, kind), "svg").decode()
    ElementTree.fromstring(text)
    assert "prefers-color-scheme:dark" in text
    assert text.count(look.INK) == 1  # in the style alone
    assert "currentColor" in text
    assert not re.search(r'(href|src)="(?!#)|url\((?!#)|<image|<script', text)


@pytest.mark.usefixtures("plots")
@pytest.mark.parametrize("text", [*HOSTILE, "$x^2", "_under", "$\\frac{"], ids=ascii)
def test_names_are_inert_in_a_drawing(text: str) -> None:
    for kind in ("curves", "transfer"):
        made = drawing.draw(figures.figures(named(text), kind), "svg").decode()
        drawn = "".join(ElementTree.fromstring(made).itertext())
        assert not SECRET.search(drawn)
        assert "<script" not in made
        if text and not SECRET.search(text + text.replace("\n", "\r")) and len(text) < 20:
            assert text in drawn


@pytest.mark.usefixtures("plots")
def test_more_checkpoints_than_colours_are_told_apart() -> None:
    looks = [str(look.look_of(i)) for i in range(30)]
    assert len(set(looks)) == 30


# HTML


class Page(HTMLParser):
    """Every tag of a page, and what would act."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.asks: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.ids += [value or ""] if name == "id" else []
            acts = name.startswith("on") or (
                name.endswith(("href", "src"))
                and not (value or "").startswith(("#", "data:,", "data:image/png;base64,"))
            )
            self.asks += [f"{tag} {name}={value}"] if acts else []


@pytest.mark.usefixtures("plots")
def test_a_page_has_every_table_note_and_figure() -> None:
    made, drawn = reporting.tables(RECORDS), figures.figures(RECORDS)
    text = html(made, drawn)
    page = Page(text)
    assert page.tags.count("table") == len(made)
    assert len(drawn) == len(KINDS)
    assert page.tags.count("svg") == sum(
        1 if drawing.narrow(figure) else 2 for figure in drawn
    )  # for wide pages and others
    assert len(page.ids) == len(set(page.ids))
    for table in made:
        for note in table.notes:
            assert f">{note.replace(chr(39), '&#x27;')}</li>" in text
    assert text == html(made, figures.figures(RECORDS[::-1]))


@pytest.mark.usefixtures("plots")
@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_names_are_inert_in_html(text: str) -> None:
    made = html(reporting.tables(named(text)), figures.figures(named(text), "transfer"))
    page = Page(made)
    assert page.tags.count("script") == 1
    assert not page.asks
    assert not SECRET.search(re.sub(r"<script>.*?</script>|<style>.*?</style>", "", made, flags=re.DOTALL))


def test_without_matplotlib_the_error_has_the_line_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"pip install 'robench\[plot\]'"):
        drawing.draw(figures.figures(RECORDS, "curves"), "svg")


# a real browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
NO_BROWSER = (
    "NOT OPENED IN A BROWSER: no chromium on this machine: playwright install chromium, or apt-get install chromium"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real one: the machine's own, or playwright's. Where there is none, the end of the test run says so."""
    api = pytest.importorskip("playwright.sync_api", reason="NOT OPENED IN A BROWSER: pip install playwright")
    with api.sync_playwright() as started:
        own = Path(started.chromium.executable_path)
        path = next(filter(None, map(shutil.which, BROWSERS)), str(own) if own.is_file() else None)
        if path is None:
            pytest.skip(NO_BROWSER)
        opened = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


def test_a_page_is_what_a_browser_needs_even_where_there_is_none() -> None:
    """What the browser tests look at, as far as it can be read from the page: structure, policy, heads that sort."""
    tables = [sortable(), *reporting.tables(RECORDS)]
    text = html(tables)
    page = Page(text)
    assert not page.asks
    assert Balance(text).open == []
    for made, table in zip(re.findall(r"<table>.*?</table>", text, re.DOTALL), tables, strict=True):
        heads = re.findall(r'<th scope="col" data-column="(\d+)" aria-sort="none"><button type="button">', made)
        assert heads == [str(i) for i in range(len(table.heads))]
        bodies = re.findall(r"<tr>(.*?)</tr>", made.partition("</thead>")[2], re.DOTALL)
        assert [len(re.findall("<t[hd][ >]", row)) for row in bodies] == [len(table.heads)] * len(table.rows)
    script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert "default-src &#x27;none&#x27;" in policy[1]
    assert digest in policy[1]


class Balance(HTMLParser):
    """The tags that are open at the end; one closed in the wrong order stays."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open[-1:] == [tag]:
            self.open.pop()


def balanced(text: str) -> bool:
    """Whether every group and environment of some LaTeX ends where it should, and each row has as many cells as its table."""
    depth, open_ = 0, list[str]()
    for found in re.finditer(r"(?<!\\)[{}]|\\(begin|end)\{(\w+)\}", re.sub(r"\\[{}]", "", text)):
        if found[1] == "begin":
            open_.append(found[2])
        elif found[1] == "end" and (not open_ or open_.pop() != found[2]):
            return False
        elif not found[1]:
            depth += 1 if found[0] == "{" else -1
        if depth < 0:
            return False
    return depth == 0 and not open_


@pytest.mark.parametrize("text", ["name", *HOSTILE], ids=ascii)
def test_latex_is_balanced_even_where_none_can_set_it(text: str) -> None:
    made = latex(reporting.tables(named(text)))
    assert balanced(made)
    assert not balanced(made.replace("\\end{tabular}", "", 1))
    assert not balanced(made + "{")
    for table in re.findall(r"\\toprule\n(.*?)\\bottomrule", made, re.DOTALL):
        lines = [line for line in table.splitlines() if line.endswith("\\\\") and "multicolumn" not in line]
        assert len({len(re.findall(r"(?<!\\)&", line)) for line in lines}) == 1


def column(page: Any, i: int) -> list[str]:
    return [
        text.strip()
        for text in page.locator(f"table >> nth=0 >> tbody tr:not(.group) >> :nth-child({i})").all_inner_texts()
    ]


@pytest.mark.usefixtures("plots")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 400])
def test_a_browser_opens_the_page(browser: Any, tmp_path: Path, scheme: str, width: int) -> None:
    path = tmp_path / "report.html"
    path.write_text(html([sortable(), *reporting.tables(RECORDS)], figures.figures(RECORDS)))
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shown = (
        "[...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().width > 0).map(s => s.ariaLabel)"
    )
    assert page.evaluate(shown) == [figure.title for figure in figures.figures(RECORDS)]  # each in one of its shapes
    head = page.locator("table >> nth=0 >> th[data-column='1'] button")
    head.click()
    assert column(page, 2) == ["-2.5", "9.0", "10.0*", "100 (90, +10)", "-"]
    assert column(page, 1) == ["e", "c", "a", "d", "b"]
    head.focus()
    page.keyboard.press("Enter")
    assert column(page, 2) == ["100 (90, +10)", "10.0*", "9.0", "-2.5", "-"]
    assert page.locator("table >> nth=0 >> [aria-sort=descending]").count() == 1
    page.locator("table >> nth=0 >> th[data-column='0'] button").click()
    assert column(page, 1) == ["a", "b", "c", "d", "e"]
    page.close()
    assert said == []
    assert asked == [path.as_uri()]


def sortable() -> Table:
    cells = ("10.0*", "-", "9.0", "100 (90, +10)", "-2.5")
    return Table("Sort", (("name", "x"),), tuple(("", name, cell) for name, cell in zip("abcde", cells, strict=True)))


@pytest.mark.usefixtures("plots")
def test_a_browser_runs_no_script_of_a_name(browser: Any, tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"
    path = tmp_path / "report.html"
    path.write_text(html(reporting.tables(named(name)), figures.figures(named(name))))
    page = browser.new_page()
    alerts: list[str] = []
    page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
    page.goto(path.as_uri())
    assert name in page.inner_text("body")
    page.close()
    assert alerts == []


# commands


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    for record in RECORDS:
        Store(tmp_path).put(record)
    return tmp_path


@pytest.mark.parametrize("form", ["latex", "json"])
def test_report_prints_what_it_writes(stored: Path, run_cli: Callable[..., tuple[int, str, str]], form: str) -> None:
    code, out, err = run_cli("report", "--results", stored, "--format", form)
    assert (code, err) == (0, "")
    assert run_cli("report", "--results", stored, "--format", form, "--out", stored / "x")[0] == 0
    assert (stored / "x").read_text() == out


@pytest.mark.usefixtures("plots")
@pytest.mark.parametrize("kind", KINDS)
def test_plot_writes_the_format_of_the_name(
    stored: Path, run_cli: Callable[..., tuple[int, str, str]], kind: str
) -> None:
    for form, magic in (("svg", b"<?xml"), ("PNG", b"\x89PNG"), ("pdf", b"%PDF")):
        out = stored / f"figure.{form}"
        assert run_cli("plot", "--results", stored, "--kind", kind, "--out", out) == (0, "", "")
        assert out.read_bytes().startswith(magic)


@pytest.mark.usefixtures("plots")
def test_training_curves_are_drawn_and_stand_in_the_page(
    stored: Path, trained: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    for name in ("one.svg", "two.svg"):
        line = ("plot", "--kind", "training", "--checkpoints", trained, "--out", stored / name)
        assert run_cli(*line) == (0, "", "")
    assert (stored / "one.svg").read_bytes() == (stored / "two.svg").read_bytes()
    code, out, _ = run_cli("report", "--results", stored, "--format", "html", "--checkpoints", trained)
    assert code == 0
    assert out.count('<figure class="') == len(KINDS) + 1
    code, _, err = run_cli("report", "--results", stored, "--checkpoints", trained)
    assert code == 2
    assert "--format terminal has no figures" in err


def test_plot_says_that_no_run_has_logged(stored: Path, run_cli: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = run_cli("plot", "--kind", "training", "--checkpoints", stored, "--out", stored / "figure.svg")
    assert code == 2
    assert "has logged an epoch: robench train rocl" in err


def test_plot_says_which_formats_there_are(stored: Path, run_cli: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = run_cli("plot", "--results", stored, "--out", stored / "figure.gif")
    assert code == 2
    assert "must end in .svg, .png, .pdf" in err


def test_plot_says_which_filter_left_nothing(stored: Path, run_cli: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = run_cli("plot", "--results", stored, "--dataset", "mnist", "--out", stored / "figure.svg")
    assert code == 2
    assert "--dataset mnist leaves none of the results; there are some on cifar10" in err


@pytest.mark.usefixtures("plots")
@pytest.mark.parametrize(
    ("asked", "kind", "there", "gone"),
    [
        (("--attack", "fgsm"), "curves", "linf, fgsm", "pgd-20"),
        (("--threat", "l2"), "curves", "l2, pgd-20", "linf"),
        (("--source", "pgd-at"), "transfer", "pgd-at", "autoattack"),
        (("--source", "white-box"), "union", "rocl at linf-8/255", "from"),
        (("--seed", "0", "--dataset", "cifar10"), "pareto", "seconds of the attack", "nothing"),
    ],
)
def test_plot_draws_what_a_filter_leaves(
    stored: Path, run_cli: Callable[..., tuple[int, str, str]], asked: tuple[str, ...], kind: str, there: str, gone: str
) -> None:
    out = stored / "figure.svg"
    assert run_cli("plot", "--results", stored, "--kind", kind, *asked, "--out", out) == (0, "", "")
    drawn = "\n".join(ElementTree.fromstring(out.read_text()).itertext())
    assert there in drawn
    assert gone not in drawn


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--attack", "fgsn"), "--attack fgsn leaves none of the results; there are some of --attack .* 'fgsm'"),
        (("--attack", "fgsm", "--threat", "l2"), "--threat l2 leaves none of the results that --attack fgsm left"),
        (("--source", "nobody"), "--source nobody leaves none"),
        (("--seed", "7"), "--seed 7 leaves none"),
    ],
)
def test_an_empty_drawing_says_which_filter_emptied_it(
    stored: Path, run_cli: Callable[..., tuple[int, str, str]], asked: tuple[str, ...], said: str
) -> None:
    for kind in ("curves", "examples", "pareto"):
        code, _, err = run_cli("plot", "--results", stored, "--kind", kind, *asked, "--out", stored / "figure.svg")
        assert code == 2
        assert re.search(said, err)


@pytest.mark.usefixtures("plots")
@pytest.mark.parametrize("unit", ["passes", "seconds"])
def test_plot_draws_what_attacks_cost_in_each_unit(
    stored: Path, run_cli: Callable[..., tuple[int, str, str]], unit: str
) -> None:
    out = stored / "figure.svg"
    assert run_cli("plot", "--results", stored, "--kind", "pareto", "--unit", unit, "--out", out) == (0, "", "")
    word = {"passes": "image passes of the attack", "seconds": "seconds of the attack"}[unit]
    assert word in "".join(ElementTree.fromstring(out.read_text()).itertext())
    line = ("plot", "--results", stored, "--kind", "pareto", "--by", "evaluation", "--unit", unit, "--out", out)
    assert run_cli(*line) == (0, "", "")
    assert "attack" in "".join(ElementTree.fromstring(out.read_text()).itertext())
    code, _, err = run_cli("plot", "--results", stored, "--kind", "curves", "--unit", unit, "--out", out)
    assert (code, "--kind pareto" in err) == (2, True)


def test_failures_alone_have_no_figure() -> None:
    assert figures.figures([failure(STANDARD, "pgd-20", "it stopped", L2)]) == []
