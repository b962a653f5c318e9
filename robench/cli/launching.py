"""Handing work out: its options, what a process runs, and `robench status`."""

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

from robench.cli.option import Choice, checkpoints_option, results_option
from robench.errors import RobenchError, UsageError

if TYPE_CHECKING:
    from robench.handing import Order
    from robench.launch import Launch
    from robench.watch import Standing

F = TypeVar("F", bound=Callable[..., Any])
OWN = (  # options that a process of a launch is not given
    *("launcher", "jobs", "slurm_settings", "minutes", "poll", "task"),
    *("thresholds", "strict", "as_json", "trackers", "quiet", "plan", "only_plan", "resume"),
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
        slurm_settings: tuple[str, ...],
        minutes: float | None,
        poll: float | None,
        task: str | None,
        **others: Any,
    ) -> None:
        command(launcher=Launcher(launcher, jobs, slurm_settings, minutes, poll, task), **others)

    made: Callable[..., None] = told
    options = (
        click.option("--task", metavar="FILE:NUMBER", hidden=True),
        click.option("--poll", type=click.FloatRange(min=0.1), help="Seconds between looks at results; 30 on Slurm."),
        click.option(
            "--minutes", type=click.FloatRange(min=0.01), help="A job on Slurm lasts about that; 10 by default."
        ),
        click.option(
            "--slurm", "slurm_settings", multiple=True, metavar="KEY=VALUE", help="partition=gpu, time=4h. May repeat."
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


def order(
    given: Launcher,
    context: click.Context,
    named: Callable[[Sequence[str]], Sequence[str]] = lambda checkpoints: (),
    keep: Sequence[str] = (),
) -> Order | None:
    """What was asked for; None to run here. Refuses before anything is planned what would not be heard.

    Args:
        given: on the command line.
        context: of the command.
        named: the arguments of a process of the launch, from the checkpoints that it needs.
        keep: options that its processes are given, though processes of an evaluation are not.

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
            only = " or --launcher local" if extra[0] in ("--jobs", "--poll") else ""
            raise UsageError(f"{extra[0]} goes with --launcher slurm{only}")
        return None
    if given.name == "local" and (given.settings or given.minutes is not None):
        raise UsageError(f"{'--slurm' if given.settings else '--minutes'} goes with --launcher slurm")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "--launcher starts processes of its own, and torchrun several of this one: leave one of the two out"
        )
    settings = slurm.parse(given.settings)
    if given.name == "slurm":
        slurm.check(settings, 1)

    from robench.handing import Order, imported

    imported()
    threads, command = _threads(given, context), context.info_name or ""

    def task(path: Path, number: int, checkpoints: Sequence[str]) -> Task:
        mine = "--task", f"{path.resolve()}:{number}"
        return Task((command, *named(checkpoints), *options(context, keep), *threads, *mine), str(Path.cwd()))

    return Order(given.name, task, given.jobs, given.minutes or 10.0, settings, given.poll)


def options(context: click.Context, keep: Sequence[str] = ()) -> list[str]:
    """The options that a command was called with, again as a line, without those of handing out."""
    from click.core import ParameterSource

    line = []
    for option in context.command.params:
        where = context.get_parameter_source(option.name or "")
        given = where in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
        if not isinstance(option, click.Option) or not given or (option.name in OWN and option.name not in keep):
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
    if given.name != "local" or context.params.get("threads", 1) is not None or not given.jobs or given.jobs == 1:
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
        requeue = _warned()
        sys.argv = ["robench", *self.line]
        try:
            runpy.run_module("robench", run_name="__main__", alter_sys=True)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 0
            if code > 128:
                requeue()
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


def _warned() -> Callable[[], None]:
    """Let the scheduler's warning stop the command as SIGTERM does, so that a training run saves its state first.

    Returns:
        What then has the job queued again, as the warning alone would have; nothing where none came.
    """
    import submitit

    name = submitit.core.job_environment.JobEnvironment.USR_SIG
    number = signal.Signals[f"SIG{name}"]
    before = signal.getsignal(number)
    came: list[FrameType | None] = []

    def warned(_number: int, frame: FrameType | None) -> None:
        came.append(frame)
        os.kill(os.getpid(), signal.SIGTERM)

    if not callable(before):
        return lambda: None
    signal.signal(number, warned)
    return lambda: before(number, None) if came else None


@click.command(short_help="How far launched evaluations and training runs are.")
@checkpoints_option
@results_option
@click.option("--clean", is_flag=True, help="Take away launches that are complete, or at which nobody works any more.")
def status(checkpoints: Path, results: Path, clean: bool) -> None:
    """Say of each cell and training run that was launched whether it is done, running, missing or failed, from the files alone.

    Shows the latest launch, and those before it that are not complete. Exit code 1 when something is missing or failed. What
    is missing is run by the command that launched it.
    """
    from robench import launch, watch
    from robench.terminal import say

    if clean:
        for root in (checkpoints, results):
            for each in watch.tidy(root, dead=True):
                say(f"removed: {launch.folder(root) / each.id}.json and what its processes said")
    found = [(made, root) for root in (checkpoints, results) for made in launch.every(root)]
    if clean and not found:
        return
    if not found:
        raise UsageError(
            f"nothing was launched into {results} or {checkpoints}: robench evaluate --attack pgd-20 --launcher local"
        )
    found.sort(key=lambda each: each[0].id)
    looks = [(made, watch.Watch(made, root).look()) for made, root in found]
    seen: set[str] = set()
    states: set[str] = set()
    for made, standings in reversed(looks):
        own = {each.wanted.key for each in standings}
        if seen and (own <= seen or all(map(watch.ended, standings))):
            continue  # what was handed out again is told once
        seen |= own
        _tell(made, standings)
        states |= {each.state for each in standings}
    if "missing" in states:
        say("the command that launched it runs what is missing, and only that")
    if states & {"missing", "failed"}:
        raise SystemExit(1)


def _tell(made: Launch, standings: Sequence[Standing]) -> None:
    """A launch, line by line."""
    from robench import watch
    from robench.results import safe
    from robench.terminal import rows, say

    lines = [
        [each.state, safe(each.wanted.label), each.reached, ", ".join(each.holders) or safe(each.reason)]
        for each in standings
    ]
    rows(["state", "run", "reached", "by"] if made.runs else ["state", "cell", "images", "by"], lines)
    say(watch.summary(standings))
    if made.scheduled and not all(map(watch.ended, standings)):
        say(f"in Slurm: squeue -j {','.join(made.scheduled)}")
