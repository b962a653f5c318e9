"""`robench show`, `robench features` and `robench list`: one record, one encoder, and what there is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from robench.cli.option import Choice, Threat, Where, compute_on_runs, refuse, results_option
from robench.errors import UsageError
from robench.threat import ThreatModel

if TYPE_CHECKING:
    from robench.data import Images
    from robench.protocols import Target
    from robench.results import Result, Subject


@click.command(short_help="Explain one result.")
@click.argument("cell")
@click.option(
    "--images", type=click.IntRange(min=1), metavar="N", help="Draw the first N broken images; needs --out or --keep."
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The PNG to write.")
@click.option("--keep", is_flag=True, help="Store the images in the results, for reports and robench plot.")
@compute_on_runs
@results_option
@click.pass_context
def show(
    context: click.Context,
    cell: str,
    images: int | None,
    out: Path | None,
    keep: bool,
    where: Where,
    results: Path,
) -> None:
    """Explain one CELL in words: a key, its beginning, or the path of a record.

    With --images the attack is run again on the first broken images and a PNG shows each clean, adversarial, and the
    difference amplified. Exit code 1 when an image is not broken again; such an image is not kept.
    """
    from robench import showing
    from robench.results import Failure

    if (images is None) != (out is None and not keep):
        raise UsageError("--images N goes with --out FILE.png, with --keep, or with both")
    if out is not None and out.suffix.lower() != ".png":
        raise UsageError(f"--out {out}: pictures are PNG, so the name must end in .png")
    if images is None:
        computing = ["--checkpoints", "--data", "--device", "--threads"]
        refuse(
            context,
            computing,
            "goes with --images N, which runs the attack again; in words a record needs nothing else",
        )
    record = showing.find(results, cell)
    if images is None:
        click.echo(showing.words(record), nl=False)
        return
    if isinstance(record, Failure) or not showing.broken(record):
        raise UsageError("this cell has no broken images to draw: leave --images away to read what it says")
    _draw(record, images, out, results if keep else None, where)


def _draw(record: Result, count: int, out: Path | None, results: Path | None, where: Where) -> None:
    """Write the pictures of a record to a file, beside the results or both, and say whether they are what it says."""
    from robench import exhibits, pictures, showing
    from robench.evaluation import Engine
    from robench.files import write
    from robench.terminal import say

    parts = record.cell.source.split("+") if record.cell.source else []
    engine = Engine(where.device, where.data_root)
    needed = partial(engine.images, record.subject.dataset, record.cell.count)
    checkpoint = _again(record.cell.checkpoint, record.subject, needed, where.checkpoints)
    sources = [_again(sha256, record.source, needed, where.checkpoints) for sha256 in parts]
    loaded = needed()
    click.echo(showing.words(record), nl=False)
    made = pictures.again(record, checkpoint, sources, loaded, count)
    if out is not None:
        write(out, pictures.grid(made.clean, made.adv))
        told = ", ".join(map(str, made.numbers))
        say(f"{out}: images {told}, from top; clean, adversarial, difference amplified")
    if results is not None:
        say(f"stored: {exhibits.put(pictures.kept(record, made), results)}")
    if made.left:
        told = ", ".join(map(str, made.left))
        say(f"NOT broken again: {told}; another device or version can do that, or a wrong record")
        raise SystemExit(1)
    say("all of them are broken again, as the record says")


def _again(sha256: str, subject: Subject | None, images: Callable[[], Images], root: Path) -> Target:
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
    made = open_foreign(origin["model"], images(), stored=stored, preprocess=origin.get("preprocess", ""))
    if made.sha256 != sha256:
        raise UsageError(
            f"{origin['model']} is not what it was: its digest is {made.sha256[:12]}, the record's {sha256[:12]}. Restore its "
            "code and weights"
        )
    return made


@click.command(short_help="Lay out an encoder's features, clean and adversarial, in two dimensions.")
@click.argument("checkpoint")
@click.option("--attack", help="pgd-20 by default; feature-pgd for an encoder without a head.")
@click.option("--threat", type=Threat(), help="By default what the checkpoint was trained against.")
@click.option("--count", type=click.IntRange(min=4), help="The first COUNT test images; 500 by default, if there are.")
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Of the attack and t-SNE."
)
@compute_on_runs
@results_option
def features(
    checkpoint: str,
    attack: str | None,
    threat: ThreatModel | None,
    count: int | None,
    seed: int,
    where: Where,
    results: Path,
) -> None:
    """Store a t-SNE of the features of a CHECKPOINT's encoder for clean and adversarial images.

    `robench report --format html` and `robench plot --kind features` show it. An encoder without a head will do.
    """
    from robench import exhibits
    from robench.files import check_writable
    from robench.registry import ATTACKS

    if attack:
        ATTACKS.entry(attack)
    check_writable(results)

    from robench.checkpoint import open_checkpoint
    from robench.embedding import embedded
    from robench.evaluation import Engine
    from robench.terminal import say

    engine = Engine(where.device, where.data_root)
    made = embedded(
        engine, open_checkpoint(checkpoint, where.checkpoints), attack=attack, threat=threat, count=count, seed=seed
    )
    say(f"stored: {exhibits.put(made, results)}")
    say(f"next: robench plot --kind features --results {results} --out features.svg")


@click.command("list")
@click.argument(
    "what",
    type=Choice(
        ["methods", "attacks", "datasets", "models", "classifiers", "trackers", "recipes", "results", "suites"]
    ),
)
@click.option("--format", "form", type=Choice(["terminal", "markdown"]), default="terminal", show_default=True)
@results_option
@click.pass_context
def list_(context: click.Context, what: str, form: str, results: Path) -> None:
    """List what there is, instantly."""
    if what != "results":
        refuse(context, ["--results"], f"is for robench list results; {what} come with robench and its plug-ins")
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
