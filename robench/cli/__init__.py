"""The command line. Heavy imports happen inside commands, so that help, lists and reports answer at once."""

from __future__ import annotations

import errno
import re
import signal
import traceback as tracebacks
from collections.abc import Sequence

import click

from robench import __version__
from robench.cli.checking import check
from robench.cli.compare import compare
from robench.cli.environment import completion, doctor
from robench.cli.evaluation import demo, diagnose, evaluate
from robench.cli.exporting import export
from robench.cli.hub import pull, push
from robench.cli.launching import status
from robench.cli.record import features, list_, show
from robench.cli.report import plot, report, verify
from robench.cli.training import sweep, train
from robench.errors import DiskFullError, RobenchError, StoppedError, UsageError, nearest
from robench.results import safe

STOPPED = "stopped; what was finished is kept: the same command goes on"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="robench")
@click.option("--traceback", is_flag=True, help="Show the traceback of an error; goes anywhere in the line.")
def cli(traceback: bool) -> None:
    """Train, attack and tabulate: honest adversarial robustness tables.

    \b
    robench demo                              the main job on real digits, in minutes
    robench train rocl                        recipe -> checkpoints/
    robench evaluate --attack autoattack      checkpoints/ -> results/
    robench report                            results/ -> tables

    Exit codes: 0 done, 1 a cell failed and the others ran, 2 something to mend, 6 suspect with --strict, 70 a fault of
    robench, 74 no room on the disk, 130 interrupted, 143 terminated. After 74, 130 and 143 the same command goes
    on where it stopped.
    """  # noqa: D301 (to click the escape means: keep these lines)


for command in (
    train,
    evaluate,
    status,
    sweep,
    report,
    compare,
    plot,
    verify,
    show,
    diagnose,
    features,
    list_,
    demo,
    export,
    push,
    pull,
    check,
    doctor,
    completion,
):
    cli.add_command(command)


def _check_filled(given: Sequence[str]) -> None:
    """Refuse an empty word, as an unset variable of a shell leaves it: an empty path would mean the folder one is in.

    Raises:
        UsageError: naming the word before it.
    """
    for before, word in zip(["robench", *given], given, strict=False):
        if not word:
            raise UsageError(
                f"there is an empty word behind {before!r}; is a variable unset? Give it a value, or leave it away"
            )


def _said(error: click.ClickException, given: Sequence[str]) -> str:
    """What click says of a line it cannot read, with one near match and the help that lists what there is."""
    context = getattr(error, "ctx", None)
    command = context.info_name if context and context.parent else next((w for w in given if w in cli.commands), "")
    text = error.format_message()
    if isinstance(error, click.NoSuchOption):
        options = context.command.params if context else []
        shown = [name for each in options if not getattr(each, "hidden", False) for name in each.opts]
        match = nearest(error.option_name, shown)
        text = f"No such option {error.option_name!r}." + (f" Did you mean {match!r}?" if match else "")
    elif not command and text.startswith("No such command"):
        match = nearest(given[0], cli.commands)
        text = f"No such command {given[0]!r}." + (f" Did you mean {match!r}?" if match else "")
    text = re.sub(r"is not a valid (integer|float) range\.", "is not a number.", text)
    return f"{text} (robench {f'{command} ' if command else ''}--help)"


def _unwritten(error: Exception) -> int:
    """Say that there is no room where the output goes, or other code writes; 0 if that is not what happened."""
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return 0
    place = error.filename or "where the output goes"
    click.echo(f"error: {error.strerror}: {safe(str(place))}. Make room, or choose another place", err=True)
    return DiskFullError.code


def _fault(error: Exception, wants_traceback: bool) -> int:
    """Say what is no fault of the person who asked."""
    if wants_traceback:
        tracebacks.print_exc()
    click.echo(
        f"error: {type(error).__name__}: {safe(str(error))}. This is a fault of robench; the same command with --traceback "
        "shows where",
        err=True,
    )
    return 70


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors a person can mend are one line and exit code 2."""
    import os
    import sys

    # threads that wait sleep instead of spinning: where others use the machine too, spinning costs many times the work
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    given = list(sys.argv[1:] if arguments is None else arguments)
    wants_traceback = "--traceback" in given
    given = [argument for argument in given if argument != "--traceback"]
    code = 0
    try:
        _check_filled(given)
        code = cli(given, prog_name="robench", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        code = 2
    except click.exceptions.Abort:
        click.echo(STOPPED, err=True)
        code = 130
    except SystemExit as error:
        if error.code == 128 + signal.SIGTERM:
            click.echo(STOPPED, err=True)
        raise
    except StoppedError as error:
        click.echo(safe(str(error)), err=True)
        code = 128 + error.signal
    except (RobenchError, click.ClickException) as error:
        if wants_traceback:
            tracebacks.print_exc()
        text = _said(error, given) if isinstance(error, click.ClickException) else str(error)
        click.echo(f"error: {safe(text)}", err=True)
        code = error.code if isinstance(error, RobenchError) else 2
    except BrokenPipeError:
        code = 1
    except Exception as error:
        code = _unwritten(error) or _fault(error, wants_traceback)
    sys.exit(code)
