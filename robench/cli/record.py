"""`robench show` and `robench list`: one record, and what there is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from robench.cli.option import Choice, Where, compute, results_option
from robench.errors import UsageError

if TYPE_CHECKING:
    import torch

    from robench.data import Images
    from robench.protocols import Target
    from robench.results import Result, Subject


@click.command(short_help="Explain one result.")
@click.argument("cell")
@click.option("--images", type=click.IntRange(min=1), metavar="N", help="Draw the first N broken images; needs --out.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The PNG to write.")
@compute
@results_option
def show(
    cell: str,
    images: int | None,
    out: Path | None,
    where: Where,
    results: Path,
) -> None:
    """Explain one CELL in words: a key, its beginning, or the path of a record.

    With --images the attack is run again on the first broken images and a PNG shows each clean, adversarial, and the
    difference amplified. Exit code 1 when an image is not broken again.
    """
    from robench import showing
    from robench.results import Failure

    if (images is None) != (out is None):
        raise UsageError("--images N and --out FILE.png go together")
    record = showing.find(results, cell)
    click.echo(showing.words(record), nl=False)
    if images is None or out is None:
        return
    if isinstance(record, Failure) or not showing.broken(record):
        raise UsageError("this cell has no broken images to draw")
    _draw(record, images, out, where.device, where.data_root, where.checkpoints)


def _draw(record: Result, count: int, out: Path, device: torch.device, data_root: Path, root: Path) -> None:
    """Write the pictures of a record, and say whether they are what it says."""
    from robench import pictures
    from robench.evaluation import Engine
    from robench.files import write
    from robench.terminal import say

    parts = record.cell.source.split("+") if record.cell.source else []
    loaded = Engine(device, data_root).images(record.subject.dataset, record.cell.count)
    checkpoint = _again(record.cell.checkpoint, record.subject, loaded, root)
    sources = [_again(sha256, record.source, loaded, root) for sha256 in parts]
    clean, adv, numbers, left = pictures.again(record, checkpoint, sources, loaded, count)
    write(out, pictures.grid(clean, adv))
    say(f"{out}: images {', '.join(map(str, numbers))}, from top; clean, adversarial, difference amplified")
    if left:
        say(f"NOT broken again: {', '.join(map(str, left))}; another device or version can do that, or a wrong record")
        raise SystemExit(1)
    say("all of them are broken again, as the record says")


def _again(sha256: str, subject: Subject | None, images: Images, root: Path) -> Target:
    """What a record speaks of, opened again: a checkpoint by its digest, a classifier from elsewhere by what named it.

    Raises:
        UsageError: if what has that name now is another.
    """
    from robench.checkpoint import at_hand
    from robench.foreign import open_foreign

    origin = subject.origin if subject is not None else {}
    if not origin:
        return at_hand(sha256, root)
    stored = Path(origin["weights"]) if "weights" in origin else None
    made = open_foreign(origin["model"], images, stored=stored, preprocess=origin.get("preprocess", ""))
    if made.sha256 != sha256:
        raise UsageError(
            f"{origin['model']} is not what it was: its digest is {made.sha256[:12]}, the record's {sha256[:12]}. Restore its "
            "code and weights"
        )
    return made


@click.command("list")
@click.argument(
    "what",
    type=Choice(
        ["methods", "attacks", "datasets", "models", "classifiers", "trackers", "recipes", "results", "suites"]
    ),
)
@click.option("--format", "form", type=Choice(["terminal", "markdown"]), default="terminal", show_default=True)
@results_option
def list_(what: str, form: str, results: Path) -> None:
    """List what there is, instantly."""
    from robench.listing import listing
    from robench.rendering.markdown import markdown
    from robench.reporting import Table
    from robench.terminal import rows

    head, lines = listing(what, results)
    if form == "terminal":
        rows(head, lines)
    else:
        table = Table(f"robench list {what}", (tuple(head),), tuple(("", *line) for line in lines))
        click.echo(markdown([table]), nl=False)
