"""Handing an evaluation out: its options, what a process runs, and `robench status`."""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from robench.cli.option import Choice, results_option
from robench.errors import RobenchError, UsageError

if TYPE_CHECKING:
    from robench.launching import Order

F = TypeVar("F", bound=Callable[..., Any])
OWN = (  # options that a process of a launch is not given
    *("launcher", "jobs", "settings", "minutes", "poll", "task"),
    *("thresholds", "strict", "as_json", "trackers", "quiet", "plan"),
)


@dataclass(frozen=True)
class Launcher:
    """What the command line says about handing out.

    Attributes:
        name: `local`, `slurm`, or None to run here.
        jobs: processes at a time.
        settings: of Slurm, KEY=VALUE each.
        minutes: a job on a cluster should last.
        poll: seconds between looks at the files.
        task: FILE:NUMBER, where this process is one of a launch.
    """

    name: str | None
    jobs: int | None
    settings: tuple[str, ...]
    minutes: float | None
    poll: float | None
    task: str | None


def launched(command: F) -> Callable[..., None]:
    """Give a command the options of handing out, as one `launcher`."""

    @wraps(command)
    def told(
        launcher: str | None,
        jobs: int | None,
        settings: tuple[str, ...],
        minutes: float | None,
        poll: float | None,
        task: str | None,
        **others: Any,
    ) -> None:
        command(launcher=Launcher(launcher, jobs, settings, minutes, poll, task), **others)

    made: Callable[..., None] = told
    options = (
        click.option("--task", metavar="FILE:NUMBER", hidden=True),
        click.option("--poll", type=click.FloatRange(min=0.1), help="Seconds between looks at results; 30 on Slurm."),
        click.option(
            "--minutes", type=click.FloatRange(min=0.01), help="A job on Slurm lasts about that; 10 by default."
        ),
        click.option(
            "--slurm", "settings", multiple=True, metavar="KEY=VALUE", help="partition=gpu, time=4h. May repeat."
        ),
        click.option(
            "--jobs", type=click.IntRange(min=1), help="Processes at a time; by default one for each GPU here."
        ),
        click.option(
            "--launcher", type=Choice(["local", "slurm"]), help="Hand the work to processes here, or to Slurm."
        ),
    )
    for option in options:
        made = option(made)
    return made


def order(given: Launcher, context: click.Context) -> Order | None:
    """What was asked for; None to run here. Refuses before anything is planned what would not be heard.

    Raises:
        UsageError: for options without their launcher, unknown keys, or a library or Slurm that is absent.
    """
    from robench import slurm

    if given.name is None:
        extra = [
            name
            for name, value in (("--jobs", given.jobs), ("--minutes", given.minutes), ("--poll", given.poll))
            if value is not None
        ]
        extra += ["--slurm"] if given.settings else []
        if extra:
            raise UsageError(f"{extra[0]} goes with --launcher local or --launcher slurm")
        return None
    if given.name == "local" and (given.settings or given.minutes is not None):
        raise UsageError(f"{'--slurm' if given.settings else '--minutes'} goes with --launcher slurm")
    settings = slurm.parse(given.settings)
    if given.name == "slurm":
        slurm.check(settings, 1)

    from robench.launching import Order, imported

    imported()
    threads = _threads(given, context)

    def task(path: Path, number: int, checkpoints: Sequence[str]) -> Task:
        names = list(context.params["checkpoint"]) if "all" in context.params["sources"] else filter(None, checkpoints)
        return Task(
            ("evaluate", *names, *options(context), *threads, "--task", f"{path.resolve()}:{number}"), str(Path.cwd())
        )

    return Order(given.name, task, given.jobs, given.minutes or 10.0, settings, given.poll)


def options(context: click.Context) -> list[str]:
    """The options that a command was called with, again as a line, without those of handing out."""
    from click.core import ParameterSource

    line = []
    for option in context.command.params:
        where = context.get_parameter_source(option.name or "")
        given = where in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
        if not isinstance(option, click.Option) or option.name in OWN or not given:
            continue
        value = context.params[option.name]
        if option.is_flag:
            line.append(option.opts[0] if value else option.secondary_opts[0])
            continue
        for each in value if option.multiple else [value]:
            line += [option.opts[0], str(each)]
    return line


def _threads(given: Launcher, context: click.Context) -> tuple[str, ...]:
    """CPU threads of one of several processes here that share the cores, where nothing else was said."""
    if given.name != "local" or context.params["threads"] is not None or not given.jobs or given.jobs == 1:
        return ()
    return "--threads", str(max(1, (os.cpu_count() or 1) // given.jobs))


@dataclass(frozen=True)
class Task:
    """What a process of a launch runs: a command in a folder. It may be ended at any moment, and begun again.

    Attributes:
        line: what stands behind `robench`.
        folder: where.
    """

    line: tuple[str, ...]
    folder: str

    def __call__(self) -> int:
        """Run it; gives the exit code where it is that of a command which ran: 0, or 1 if a cell failed."""
        os.chdir(self.folder)
        signal.signal(signal.SIGTERM, _stop)
        sys.argv = ["robench", *self.line]
        try:
            runpy.run_module("robench", run_name="__main__", alter_sys=True)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 0
            if code > 128:
                raise
            if code > 1:
                raise RobenchError(f"robench {' '.join(self.line)} ended with exit code {code}: see its log") from None
            return code
        return 0

    def checkpoint(self) -> Any:
        """What runs when the scheduler takes the machine away and gives it back: the same, which goes on where parts end."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def _stop(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@click.command(short_help="How far a launched evaluation is.")
@results_option
def status(results: Path) -> None:
    """Say of each cell of the latest launch whether it is done, running, missing or failed, from the files alone.

    Exit code 1 when a cell is missing or failed. What is missing is run by the command that launched it.
    """
    from robench import launch
    from robench.results import safe
    from robench.terminal import rows, say

    found = launch.latest(results)
    standings = launch.Watch(found, results).look()
    lines = [
        [each.state, safe(each.cell.label), f"{each.images:,} of {each.cell.count:,}", ", ".join(each.holders)]
        for each in standings
    ]
    rows(["state", "cell", "images", "by"], lines)
    say(launch.summary(standings))
    if found.scheduled:
        say(f"in Slurm: squeue -j {','.join(found.scheduled)}")
    if any(each.state == "missing" for each in standings):
        say("the command that launched it runs what is missing, and only that")
    if any(each.state in ("missing", "failed") for each in standings):
        raise SystemExit(1)
