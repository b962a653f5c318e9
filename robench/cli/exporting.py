"""`robench export`: a result in the form that another table asks for."""

from __future__ import annotations

from pathlib import Path

import click

from robench.cli.option import Choice, Threat, results_option
from robench.threat import ThreatModel


@click.command(short_help="A result in RobustBench's form.")
@click.argument("form", type=Choice(["robustbench"]))
@click.argument("checkpoint")
@click.option("--threat", type=Threat(), default="linf-8/255", show_default=True, help="Of the leaderboard.")
@click.option("--title", required=True, help="Of the paper.")
@click.option("--link", required=True, help="To the paper.")
@click.option("--authors", required=True, help="As the paper prints them.")
@click.option("--venue", required=True, help="Such as 'NeurIPS 2020'.")
@click.option("--architecture", required=True, help="Such as ResNet-18.")
@click.option("--additional-data/--no-additional-data", default=False, help="Whether it trained on other images too.")
@click.option("--footnote", default="", help="What a reader should know.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write to a file instead of stdout.")
@results_option
def export(
    form: str,
    checkpoint: str,
    threat: ThreatModel,
    title: str,
    link: str,
    authors: str,
    venue: str,
    architecture: str,
    additional_data: bool,
    footnote: str,
    out: Path | None,
    results: Path,
) -> None:
    """Print RobustBench's model-info JSON of a CHECKPOINT in results/: `robench export robustbench NAME ...`.

    Refuses what its leaderboard does not compare: another attack than the standard AutoAttack, part of the test images, other
    threats, transfer, flags.
    """
    from robench import diagnosis
    from robench.files import write
    from robench.leaderboard import About, model_info
    from robench.results import Store

    about = About(title, link, authors, venue, architecture, additional_data, footnote)
    made = model_info(Store(results).records(), checkpoint, about, threat, diagnosis.records(results))
    if out is not None:
        write(out, made.encode())
    else:
        click.echo(made, nl=False)
