"""What several commands understand: types, folders, and where to compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from robench.errors import UsageError, nearest
from robench.threat import ThreatModel

if TYPE_CHECKING:
    import torch

ENDINGS = {".md": "markdown", ".csv": "csv", ".tex": "latex", ".json": "json", ".html": "html"}
BY = ("training", "evaluation", "total")  # `spending.BY`, which is not imported for --help
UNITS = ("seconds", "passes", "joules")
F = TypeVar("F", bound=Callable[..., Any])


class Threat(click.ParamType[ThreatModel]):
    """A threat model on the command line."""

    name = "NORM-EPS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> ThreatModel:
        """Read it."""
        if "," in str(value):
            raise UsageError(
                f"{value}: name one threat at a time; where several may be, --threat linf-8/255 --threat l2-0.5"
            )
        return value if isinstance(value, ThreatModel) else ThreatModel.parse(value)


class Choice(click.Choice[str]):
    """A choice that names the nearest match."""

    def get_missing_message(self, param: click.Parameter, ctx: click.Context | None) -> str:
        """The choices, on the same line."""
        return f"Choose from {', '.join(self.choices)}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The choice, or an error with the nearest one."""
        if value not in self.choices:
            match = nearest(str(value), self.choices)
            guess = f" Did you mean {match!r}?" if match else ""
            raise UsageError(f"{value!r} is not one of {', '.join(self.choices)}.{guess}")
        return super().convert(value, param, ctx)


def there(context: click.Context, option: click.Parameter, folder: Path | None) -> Path | None:
    """The folder, which must be there if somebody named it; a callback of an option.

    Raises:
        UsageError: if it is not.
    """
    named = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
    if named and folder is not None and not folder.is_dir():
        kind = "is a file, not a folder" if folder.exists() else "there is no such folder"
        raise UsageError(f"{option.opts[0]} {folder}: {kind}; name one that robench train or robench demo has filled")
    return folder


def _folder(name: str, default: str, what: str, check: Any = None) -> Callable[[F], F]:
    kind: Any = click.Path(path_type=Path)
    return click.option(name, type=kind, default=default, show_default=True, help=what, callback=check)


checkpoints_option = _folder("--checkpoints", "checkpoints", "Where training runs are.")
runs_option = _folder("--checkpoints", "checkpoints", "Where training runs are.", there)
results_option = _folder("--results", "results", "Where results are.")
data_option = click.option(
    "--data",
    "data_root",
    type=click.Path(path_type=Path),
    default="data",
    envvar="ROBENCH_DATA",
    show_default=True,
    show_envvar=True,
    help="Where data sets are kept, or downloaded to.",
)
track_option = click.option(
    "--track",
    "trackers",
    multiple=True,
    metavar="NAME",
    help="Send figures to a tracker too: tensorboard, wandb, mlflow (robench list trackers). May repeat.",
)
device_option = click.option("--device", type=Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True)
threads_option = click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    help="CPU threads; one is often faster for small models or on a busy machine. By default torch decides.",
)


@dataclass(frozen=True)
class Where:
    """Where a command computes, and where it finds what it needs.

    Attributes:
        name: of the device, or `auto`.
        threads: of the CPU; torch decides when None.
        data_root: where data sets are.
        checkpoints: where training runs are.
    """

    name: str
    threads: int | None
    data_root: Path
    checkpoints: Path

    @property
    def device(self) -> torch.device:
        """The device that was asked for, which imports torch."""
        return torch_device(self.name, self.threads)


def compute(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of whatever computes, as one `where`."""
    return _computing(command, checkpoints_option)


def compute_on_runs(command: Callable[..., None]) -> Callable[..., None]:
    """The same for a command that reads training runs and makes none."""
    return _computing(command, runs_option)


def _computing(command: Callable[..., None], folder: Callable[[Any], Any]) -> Callable[..., None]:
    @wraps(command)
    def told(device: str, threads: int | None, data_root: Path, checkpoints: Path, **others: Any) -> None:
        command(where=Where(device, threads, data_root, checkpoints), **others)

    made: Callable[..., None] = told
    for option in (folder, data_option, threads_option, device_option):
        made = option(made)
    return made


def format_of(form: str, out: Path | None) -> str:
    """The format of a report: the one that was named, or else what the ending of its file says.

    Args:
        form: of the option `--format` of the command that runs.
        out: the file, if any.

    Raises:
        UsageError: if both were named and differ; text for a terminal goes into any file.
    """
    meant = ENDINGS.get(out.suffix.lower(), form) if out is not None else form
    named = click.get_current_context().get_parameter_source("form") is ParameterSource.COMMANDLINE
    if not named or meant == form or form == "terminal":
        return form if named else meant
    raise UsageError(
        f"--out {out} has the ending of {meant}, and --format is {form}: leave --format away, or end otherwise"
    )


def refuse(context: click.Context, names: Sequence[str], why: str) -> None:
    """Refuse options that were given and would not be heard.

    Args:
        context: of the command.
        names: of the options.
        why: what they are for, and what to do.

    Raises:
        UsageError: naming the first that was given.
    """
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if given and (idle := set(option.opts) & set(names)):
            raise UsageError(f"{idle.pop()} {why}")


def filtered(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say which results it is about, as one `selection`."""

    @wraps(command)
    def told(dataset: str | None, **others: Any) -> None:
        from robench.selection import Selection

        named = {name: others.pop(name) for name in ("attack", "threat", "source", "seed")}
        command(selection=Selection(dataset=(dataset,) if dataset else (), **named), **others)

    made: Callable[..., None] = told
    for option in (
        click.option("--seed", multiple=True, metavar="N", help="Only these seeds of attacks. May repeat."),
        click.option(
            "--source",
            multiple=True,
            metavar="CHECKPOINT",
            help="Only crafted on these, or on none: white-box. May repeat.",
        ),
        click.option("--threat", multiple=True, metavar="NORM[-EPS]", help="Only these norms or threats. May repeat."),
        click.option("--attack", multiple=True, metavar="NAME", help="Only these attacks. May repeat."),
        click.option("--dataset", help="Only results on this data set."),
    ):
        made = option(made)
    return made


def torch_device(name: str, threads: int | None = None) -> torch.device:
    """The device that was asked for, or the best there is; sets the number of CPU threads if one is given.

    Raises:
        UsageError: if it is not there.
    """
    import torch

    from robench.device import chosen

    if threads:
        torch.set_num_threads(threads)
    return chosen(name)
