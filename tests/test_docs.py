"""Docs are true: what is generated is current, and the example attack obeys the laws."""

import contextlib
import os
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import pytest
from documented import PAGES, blocks

from robench import cost, exhibits, reporting, standing, terminal
from robench.cli import cli
from robench.listing import listing
from robench.registry import ATTACKS
from robench.rendering.markdown import markdown
from robench.reporting import Table
from robench.results import Store
from robench.testing import (
    LAWS,
    cases_for,
    check_attack,
    check_dataset,
    check_method,
    check_model,
    dataset,
    method,
    model,
)

README = Path(__file__).parent.parent / "README.md"
DEMO = README.parent / "results" / "reference" / "demo"
PAGE = Path(__file__).parent.parent / "docs" / "attacks.md"


def exemptions() -> str:
    """Every law an attack does not obey, and why."""
    rows = [(name, law, reason) for name, row in ATTACKS.rows.items() for law, reason in row.exempt.items()]
    return markdown([Table("Exemptions", (("attack", "law", "reason"),), tuple(("", *row) for row in rows))])


def attacks() -> str:
    """The registry as a table."""
    head, lines = listing("attacks", Path())
    return markdown([Table("robench list attacks", (tuple(head),), tuple(("", *line) for line in lines))])


@pytest.mark.parametrize("part", [attacks, exemptions])
def test_what_is_generated_is_current(part: object) -> None:
    mark = {attacks: "attacks", exemptions: "exempt"}[part]  # type: ignore[index]
    text, made = PAGE.read_text(), part()  # type: ignore[operator]
    pattern = rf"(?<=<!-- {mark} -->\n).*?(?=<!-- /{mark} -->)"
    if "RENEW_GOLDEN" in os.environ:
        PAGE.write_text(re.sub(pattern, lambda _: made, text, flags=re.DOTALL))
    assert re.search(pattern, PAGE.read_text(), re.DOTALL)[0] == made  # type: ignore[index]


def test_what_reliability_names_as_proof_is_there() -> None:
    text = (PAGE.parent / "reliability.md").read_text()
    commands = re.findall(r"`pytest ((?:tests/\w+\.py ?)+)(?:-k (\"[^\"]+\"|\w+))?", text)
    shorts = re.findall(r"`-k (\w+) -m nightly`", text)
    assert len(commands) > 20
    folder = Path(__file__).parent
    everything = "\n".join(path.read_text() for path in folder.glob("test_*.py"))
    for files, words in commands:
        here = "\n".join((folder.parent / name).read_text() for name in files.split())
        for word in words.strip('"').split(" or ") if words else []:
            assert re.search(rf"def test_\w*{word}", here), f"{files}: {word}"
    assert all(re.search(rf"nightly\ndef test_\w*{word}", everything) for word in shorts)


def files(page: str) -> dict[str, str]:
    """The files that a page shows, by name."""
    return {block.file: block.text for block in blocks(f"docs/{page}") if block.file}


def test_the_example_attack_obeys_the_laws(tmp_path: Path) -> None:
    text = files("own-attack.md")["my_attacks.py"]
    path = tmp_path / "my_attacks.py"
    path.write_text(text)
    assert len(text.splitlines()) <= 30
    attack = f"{path}:Corner"
    laws = [law for law in LAWS if law != "I7"]  # ten random points are a floor, not a search
    outcome = check_attack(attack, cases_for(attack)[::4], laws)
    assert set(outcome.values()) == {"obeyed"}


EXTENDING = PAGE.parent / "extending.md"


def laws() -> str:
    """What methods, data sets and models are held to."""
    every = {**method.LAWS, **dataset.LAWS, **model.LAWS}
    rows = tuple(("", law, (demand.__doc__ or "").splitlines()[0]) for law, demand in every.items())
    return markdown([Table("Laws", (("law", "what it demands"),), rows)])


def test_the_laws_are_listed() -> None:
    text, made = EXTENDING.read_text(), laws()
    pattern = r"(?<=<!-- laws -->\n).*?(?=<!-- /laws -->)"
    if "RENEW_GOLDEN" in os.environ:
        EXTENDING.write_text(re.sub(pattern, lambda _: made, text, flags=re.DOTALL))
    assert re.search(pattern, EXTENDING.read_text(), re.DOTALL)[0] == made  # type: ignore[index]


def test_the_example_plug_ins_obey_the_laws(tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]) -> None:
    pages = {"own-method.md": "my_methods.py", "own-data.md": "my_data.py", "own-model.md": "my_models.py"}
    for page, name in pages.items():
        (tmp_path / name).write_text(files(page)[name])
    check_method(f"{tmp_path}/my_methods.py:Smooth")
    check_dataset(f"{tmp_path}/my_data.py:stripes", tmp_path)
    check_model(f"{tmp_path}/my_models.py:net", shape=(1, 8, 8))
    line = f"train standard-digits --dataset {tmp_path}/my_data.py:stripes --model {tmp_path}/my_models.py:net --smoke"
    settings = (
        "--set",
        f"stage.0.method={tmp_path}/my_methods.py:Smooth",
        "--set",
        "validation=100",
        "--out",
        tmp_path / "a",
    )
    code, _, err = run_cli(*line.split(), *settings)
    assert code == 0, err


def test_the_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    found = re.search(r"<!-- python -->\n```python\n(.*?)```", (PAGE.parent / "python.md").read_text(), re.DOTALL)
    assert found is not None
    exec(found[1], {"__name__": "example"})
    assert "White-box accuracy, digits, 100 test images" in capsys.readouterr().out


def commands() -> list[str]:
    """Every call of robench in a code block of README and docs, and in the text between unless it has a gap to fill."""
    lines = [line for page in PAGES for block in blocks(page) for line in block.commands]
    inline = [span for path in PAGES.values() for span in re.findall(r"`(robench [^`\n]+)`", path.read_text())]
    lines += [span for span in inline if not re.search(r"\.\.\.|[A-Z]{3}|\||\w/$", span)]
    return [line for line in dict.fromkeys(lines) if line.startswith("robench ")]


@pytest.mark.parametrize("line", commands())
def test_every_command_is_one(line: str) -> None:
    """Commands, options and values are known; what they name need not be there. tests/test_commands.py runs them."""
    context = click.Context(cli, info_name="robench", **cli.context_settings)
    words = shlex.split(re.split(r" >>? ", line)[0], comments=True)[1:]
    command = cli.commands[words[0]]
    whole = any(line in block.commands for page in PAGES for block in blocks(page))
    mentioned = () if whole else (click.MissingParameter, click.BadOptionUsage)  # text may name a command alone
    with contextlib.suppress(*mentioned):
        command.make_context(words[0], words[1:], parent=context)


def test_the_agreement_table_is_what_is_kept() -> None:
    folder = PAGE.parent.parent / "benchmarks"
    files = [folder / f"agreement-{name}.json" for name in ("digits", "cifar10")]
    command = [sys.executable, str(folder / "agreement.py"), "table", *map(str, files)]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    page = folder / "README.md"
    pattern = r"(?<=<!-- agreement -->\n).*?(?=<!-- /agreement -->)"
    if "RENEW_GOLDEN" in os.environ:
        page.write_text(re.sub(pattern, lambda _: made, page.read_text(), flags=re.DOTALL))
    assert re.search(pattern, page.read_text(), re.DOTALL)[0] == made  # type: ignore[index]


def test_the_table_of_the_readme_is_what_the_command_prints(run_cli: Callable[..., tuple[int, str, str]]) -> None:
    code, made, _ = run_cli("report", "--results", DEMO, "--format", "markdown")
    assert code == 0
    pattern = r"(?<=<!-- demo -->\n).*?(?=<!-- /demo -->)"
    if "RENEW_GOLDEN" in os.environ:
        README.write_text(re.sub(pattern, lambda _: made, README.read_text(), flags=re.DOTALL))
    assert re.search(pattern, README.read_text(), re.DOTALL)[0] == made  # type: ignore[index]


def test_the_figure_of_the_readme_is_what_the_command_draws(
    tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    pytest.importorskip("matplotlib", reason="figures need matplotlib: pip install 'robench[plot]'")
    kept, made = README.parent / "docs" / "demo-curves.svg", tmp_path / "made.svg"
    assert run_cli("plot", "--results", DEMO, "--kind", "curves", "--out", made)[0] == 0
    if "RENEW_GOLDEN" in os.environ:
        kept.write_bytes(made.read_bytes())
    assert "docs/demo-curves.svg" in README.read_text()
    assert parts(kept) == parts(made)
    before, after = places(kept), places(made)
    assert len(before) == len(after)
    assert max(abs(one - other) for one, other in zip(before, after, strict=True)) < 0.5


def places(path: Path) -> list[float]:
    """Every coordinate of the paths and texts of an SVG."""
    every = ElementTree.fromstring(path.read_text()).iter()
    texts = [each.get(name, "") for each in every for name in ("d", "x", "y", "transform")]
    return [float(number) for text in texts for number in re.findall(r"-?\d+\.?\d*", text)]


def parts(path: Path) -> list[tuple[str, str, str]]:
    """What an SVG is made of, but for coordinates: another release of matplotlib may round them in another way."""
    every = ElementTree.fromstring(path.read_text()).iter()
    return [(each.tag, (each.text or "").strip(), re.sub(r"[\d.-]+", "", each.get("style", ""))) for each in every]


def test_the_demos_report_in_every_format_follows_from_its_records(
    run_cli: Callable[..., tuple[int, str, str]],
) -> None:
    kept = sorted(path.name for path in DEMO.glob("*.*") if path.name != "tables.json")
    assert kept == ["cost.md", "indicators.md", *(f"report.{form}" for form in ("csv", "json", "md", "tex"))]
    code, said, err = run_cli("verify", DEMO, "--check")
    assert code == 0, said + err
    assert re.search(r"tables follow from the records\W+6\W+ok", said + err)


def test_the_demos_page_follows_from_its_records(run_cli: Callable[..., tuple[int, str, str]]) -> None:
    pytest.importorskip("matplotlib", reason="figures need matplotlib: pip install 'robench[plot]'")
    page = README.parent / "docs" / "demo-report.html"
    code, made, err = run_cli("report", "--results", DEMO, "--format", "html")
    assert code == 0, err
    if "RENEW_GOLDEN" in os.environ:
        page.write_text(made)
    kept = page.read_text()
    assert "docs/demo-report.html" in README.read_text()
    assert len(kept) < 600_000
    pattern = r"<svg.*?</svg>"  # another release of matplotlib may round coordinates in another way
    assert re.sub(pattern, "", kept, flags=re.DOTALL) == re.sub(pattern, "", made, flags=re.DOTALL)
    before, after = ([words(svg) for svg in re.findall(pattern, text, re.DOTALL)] for text in (kept, made))
    assert before == after
    assert len(before) > 8


def words(svg: str) -> list[str]:
    """The texts of a drawing, in order."""
    every = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(each.itertext()).strip() for each in every]


@pytest.mark.parametrize("table", ["white-box", "transfer", "cost", "indicators"])
def test_a_report_fits_a_terminal_of_eighty(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "Console", partial(terminal.Console, width=80, force_terminal=True))
    records = list(Store(DEMO).records())
    if table == "cost":
        made = cost.tables(records, exhibits.load(DEMO).training)
    elif table == "indicators":
        made = standing.tables(records)
    else:
        made = reporting.tables(records, table)
    shown = re.sub("\x1b\\[[0-9;]*m", "", terminal.text(made))
    assert made[0].title in shown
    assert max(map(len, shown.splitlines())) <= 80
