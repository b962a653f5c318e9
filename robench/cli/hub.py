"""`robench push` and `robench pull`: checkpoints to and from the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import click

from robench.cli import naming
from robench.cli.option import checkpoints_option, results_option


@click.command(short_help="Send a checkpoint to the Hugging Face Hub.")
@click.argument("checkpoint", shell_complete=naming.checkpoints)
@click.argument("name", metavar="OWNER/NAME")
@click.option(
    "--public", is_flag=True, help="Make a new repository public; private by default, and as it is if it is there."
)
@click.option("--message", default="", help="Of the commit.")
@click.option("--revision", help="A branch that is there; main by default.")
@click.option("--plan", is_flag=True, help="Show what would be sent, and send nothing.")
@checkpoints_option
@results_option
def push(
    checkpoint: str,
    name: str,
    public: bool,
    message: str,
    revision: str | None,
    plan: bool,
    checkpoints: Path,
    results: Path,
) -> None:
    """Send a CHECKPOINT to OWNER/NAME on the Hub: weights, robench.json that vouches for them, and a README.

    The README lists what was measured of these weights in --results. robench.json says by which command, versions and machine it
    was trained: --plan shows all that would be sent. Needs robench[hub], and a token that hf auth login keeps or HF_TOKEN holds.
    """
    from robench import hub
    from robench.checkpoint import open_checkpoint
    from robench.results import Store
    from robench.terminal import say

    found = open_checkpoint(checkpoint, checkpoints)
    sent = hub.parcel(found)
    page = hub.card(found, name, list(Store(results).records()) if results.is_dir() else [])
    if plan:
        click.echo(f"{hub.CARD}:\n{page}\n{hub.DESCRIPTION}:\n{sent.description.decode()}")
        click.echo(f"{hub.WEIGHTS}: {len(sent.weights):,} bytes, SHA-256 {found.sha256}")
        return
    address = hub.push(sent, name, page, public=public, message=message, revision=revision)
    say(f"{found.name} is at {address}")


@click.command(short_help="Fetch a checkpoint from the Hugging Face Hub.")
@click.argument("name", metavar="OWNER/NAME")
@click.option(
    "--name", "called", default="", metavar="RUN", help="What to call the run here; what it was called by default."
)
@click.option("--revision", help="A branch, tag or commit.")
@checkpoints_option
def pull(name: str, called: str, revision: str | None, checkpoints: Path) -> None:
    """Fetch a checkpoint that robench push sent to OWNER/NAME (or a folder with its files) into checkpoints/.

    Digests are compared before anything is kept, and nothing of it is run. Needs robench[hub] unless it is a folder.
    """
    from robench import hub
    from robench.files import check_writable
    from robench.terminal import say

    check_writable(checkpoints)
    found, there = hub.pull(name, checkpoints, called=called, revision=revision)
    say(
        f"{found.folder}: {'is there already' if there else 'fetched'}; robench evaluate {found.folder} --attack autoattack"
    )
    if programs := hub.programs(found):
        say(f"it names {', '.join(programs)}, which is code: read it before you train or evaluate with it")
