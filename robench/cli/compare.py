"""`robench compare`: whether one checkpoint is better than another, on the same images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from robench.cli.option import Choice, format_of, results_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from robench.reporting import Table


@click.command(short_help="Test whether one checkpoint beats another.")
@click.argument("first")
@click.argument("second")
@click.option(
    "--format",
    "form",
    type=Choice(["terminal", "markdown", "csv", "latex", "json", "html"]),
    default="terminal",
    show_default=True,
    help="Unless named, what the ending of --out says.",
)
@click.option("--dataset", help="Only results on this data set.")
@results_option
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write to a file instead of stdout.")
def compare(first: str, second: str, form: str, dataset: str | None, results: Path, out: Path | None) -> None:
    """Compare two checkpoints, FIRST and SECOND, under every attack that both met on the same images.

    They are named as tables have them, or by the beginning of their digest. For each attack, and for the worst case: both
    accuracies, the images that only one of them is right on, the difference with its interval, and the exact McNemar test.
    """
    from robench import diagnosis, paired
    from robench.cli.report import stored
    from robench.files import write

    form = format_of(form, out)
    records = stored(results, dataset)
    found = paired.pairs(records, first, second, diagnosis.records(results))
    text = paired.csv(found) if form == "csv" else _text(paired.tables(found), form, file=out is not None)
    if out is not None:
        write(out, text.encode())
    else:
        click.echo(text, nl=False)


def _text(made: Sequence[Table], form: str, *, file: bool) -> str:
    from robench import terminal
    from robench.rendering.html import html
    from robench.rendering.json import json
    from robench.rendering.latex import latex
    from robench.rendering.markdown import markdown

    if form == "terminal":
        return terminal.text(made, file=file)
    return {"markdown": markdown, "latex": latex, "json": json, "html": html}[form](made)
