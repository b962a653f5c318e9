"""`robench doctor` and `robench completion`: the machine and the shell."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import get_completion_class

from robench.cli.option import Choice, Where, compute, results_option

VARIABLE = "_ROBENCH_COMPLETE"


@click.command(short_help="Look at versions, devices, extras, plug-ins and disk.")
@compute
@results_option
def doctor(where: Where, results: Path) -> None:
    """Look at what robench needs and has here. Exit code 1 when something is wrong; what is only absent is not."""
    from robench import doctor as looked
    from robench.terminal import rows

    places = {"data": where.data_root, "checkpoints": where.checkpoints, "results": results}
    found = looked.findings(places, where.name, where.threads)
    rows(["state", "what", "found"], [[each.state, each.what, each.text] for each in found])
    if any(each.state == "wrong" for each in found):
        raise SystemExit(1)


@click.command(short_help="Print the shell's completion script.")
@click.argument("shell", type=Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes commands, options and names in a SHELL.

    \b
    robench completion bash >> ~/.bashrc
    robench completion zsh >> ~/.zshrc
    robench completion fish > ~/.config/fish/completions/robench.fish
    """  # noqa: D301 (to click the escape means: keep these lines)
    made = get_completion_class(shell)
    assert made is not None, "click knows the shells of the choice above"
    click.echo(made(context.find_root().command, {}, "robench", VARIABLE).source())
