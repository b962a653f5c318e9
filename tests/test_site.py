"""The site: its reference is what the program says, every page is in its menu, and every link leads somewhere."""

import dataclasses
import os
import re
from pathlib import Path

import click
import pytest

from robench.cli import cli
from robench.errors import RobenchError
from robench.listing import listing
from robench.names import Registry
from robench.registry import ATTACKS, METHODS
from robench.rendering.markdown import markdown
from robench.reporting import Table

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
KINDS = ("attacks", "methods", "models", "datasets", "classifiers", "trackers", "suites", "recipes")
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md"), ROOT / "benchmarks" / "README.md"])


def commands() -> str:
    """The help of every command."""
    root = click.Context(cli, info_name="robench", terminal_width=100, **cli.context_settings)
    parts = [f"## robench\n\n```text\n{cli.get_help(root)}\n```\n"]
    for name, command in sorted(cli.commands.items()):
        context = click.Context(command, info_name=name, parent=root, terminal_width=100)
        parts.append(f"## robench {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def options(registry: Registry) -> list[tuple[str, ...]]:
    """The options of every row that is a dataclass, with the values they have unless told otherwise."""
    rows = []
    for name, entry in registry.rows.items():
        try:
            cls = registry.load(entry)
        except RobenchError:
            continue
        if not dataclasses.is_dataclass(cls):
            continue
        given = dict(entry.options)
        fields = [field for field in dataclasses.fields(cls) if field.init and field.name not in ("threat", *given)]
        rows.append((name, ", ".join(f"{field.name}={_default(field)}" for field in fields)))
    return [("", *row) for row in rows if row[1]]


def _default(field: "dataclasses.Field[object]") -> str:
    if field.default is dataclasses.MISSING:
        return "" if field.default_factory is dataclasses.MISSING else str(field.default_factory())
    return str(getattr(field.default, "value", field.default))


def registries() -> str:
    """Every list that `robench list` prints, and the options of attacks and methods."""
    parts = []
    for kind in KINDS:
        head, lines = listing(kind, Path())
        made = markdown([Table(f"robench list {kind}", (tuple(head),), tuple(("", *line) for line in lines))])
        parts.append(f"## {kind.capitalize()}\n\n{made}")
        if kind in ("attacks", "methods"):
            rows = tuple(options(ATTACKS if kind == "attacks" else METHODS))
            parts.append(markdown([Table(f"Options of {kind}", ((kind[:-1], "options"),), rows)]))
    return "\n".join(parts)


@pytest.mark.parametrize("made", [commands, registries])
def test_the_reference_is_what_the_program_says(made: object) -> None:
    page = DOCS / f"{made.__name__}.md"  # type: ignore[attr-defined]
    text: str = made()  # type: ignore[operator]
    pattern = r"(?<=<!-- generated -->\n).*?(?=<!-- /generated -->)"
    if "RENEW_GOLDEN" in os.environ:
        page.write_text(re.sub(pattern, lambda _: text, page.read_text(), flags=re.DOTALL))
    assert re.search(pattern, page.read_text(), re.DOTALL)[0] == text  # type: ignore[index]


def test_every_page_is_in_the_menu_once() -> None:
    menu = re.findall(r"^ +- [^:\n]+: (\S+\.md)$", (DOCS / "site" / "mkdocs.yml").read_text(), re.MULTILINE)
    outside = re.findall(r'"([\w/]+\.md)"', (DOCS / "site" / "outside.py").read_text())
    assert sorted(menu) == sorted([*(path.name for path in DOCS.glob("*.md")), *outside])


def anchors(page: Path) -> set[str]:
    """The places of a page that a link may name."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(there), f"{page.name}: {link}"
