"""Experiment trackers: where the figures of epochs and results go besides the files, each imported when it is named.

A tracker is any object with `start`, `log` and `finish`; a package offers one under the entry point `robench.trackers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from robench.errors import UsageError, first_line, missing
from robench.registry import TRACKERS
from robench.results import Failure, Result, asked, named


class Tracker(Protocol):
    """Somewhere that keeps figures of runs."""

    def start(self, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        """Begin a run.

        Args:
            name: of it.
            folder: where its own files are.
            config: what it depends on, as plain values.
        """
        ...

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Keep some figures of a step: an epoch, or a result."""
        ...

    def finish(self) -> None:
        """End the run."""
        ...


class TensorBoard:
    """Event files in the run's folder, below `tensorboard`."""

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise missing("tensorboard", "tensorboard", "tensorboard", error) from None
        self._make = SummaryWriter

    def start(self, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        """Open the event file."""
        self._writer = self._make(log_dir=str(folder / "tensorboard"))
        self._writer.add_text("config", "\n".join(f"    {key} = {value}" for key, value in config.items()))

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """One scalar for each figure."""
        for key, value in figures.items():
            self._writer.add_scalar(key, value, step)

    def finish(self) -> None:
        """Close the file."""
        self._writer.close()


class WandB:
    """A run of Weights & Biases; whether it is online is its own affair (WANDB_MODE)."""

    def __init__(self, project: str = "robench") -> None:
        try:
            import wandb
        except ImportError as error:
            raise missing("wandb", "wandb", "wandb", error) from None
        self._library, self.project = wandb, project

    def start(self, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        """Begin the run."""
        self._run = self._library.init(project=self.project, name=name, config=dict(config), dir=str(folder))

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """All figures of a step at once."""
        self._run.log(dict(figures), step=step)

    def finish(self) -> None:
        """End the run."""
        self._run.finish()


class MLflow:
    """A run of MLflow, in its own store (MLFLOW_TRACKING_URI)."""

    def __init__(self, experiment: str = "robench") -> None:
        try:
            import mlflow
        except ImportError as error:
            raise missing("mlflow", "mlflow", "mlflow", error) from None
        self._library, self.experiment = mlflow, experiment

    def start(self, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        """Begin the run."""
        self._library.set_experiment(self.experiment)
        self._library.start_run(run_name=name)
        self._library.log_params({key: str(value)[:500] for key, value in config.items()})  # which is its limit

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """All figures of a step at once."""
        self._library.log_metrics({_plain(key): value for key, value in figures.items()}, step=step)

    def finish(self) -> None:
        """End the run."""
        self._library.end_run()


def _plain(key: str) -> str:
    """A name as MLflow takes it: of few signs, and a path that stays where it is."""
    signs = "".join(c if c.isalnum() or c in "_-./ " else "_" for c in key)
    return "/".join("_" if part == ".." else part for part in signs.split("/") if part not in ("", ".")) or "_"


def trackers_for(texts: Iterable[str]) -> list[Tracker]:
    """The trackers that `--track` names.

    Raises:
        UsageError: for a name nobody knows, an option it does not have, or a package that is not installed.
    """
    found: list[Tracker] = []
    for text in texts:
        entry = TRACKERS.entry(text)
        make = TRACKERS.load(entry)
        try:
            found.append(make(**entry.options))
        except TypeError as error:
            raise UsageError(f"tracker {entry.name!r} cannot be made: {error}") from None
    return found


@contextmanager
def tracking(
    trackers: Sequence[Tracker],
    name: str,
    folder: Path,
    config: Mapping[str, Any],
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Rows]:
    """Inside, figures go to every tracker; runs begin with the first, and each is ended, whatever happens.

    A tracker that fails is told of by `say` and left out from then on: hours of work are worth more than a copy of its figures.
    """
    rows = Rows(trackers, name, folder, config, say)
    try:
        yield rows
    finally:
        for each in [*rows.started]:
            rows.tried(each, each.finish)


class Rows:
    """Starts trackers when there is something to keep, and counts, since stages and cells have no common step."""

    def __init__(
        self,
        trackers: Sequence[Tracker],
        name: str,
        folder: Path,
        config: Mapping[str, Any],
        say: Callable[[str], None],
    ) -> None:
        self.trackers = trackers
        self.about = name, folder, config
        self.say = say
        self.started: list[Tracker] = []
        self.step = 0

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Log the numbers of a row."""
        numbers = {k: float(v) for k, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        if not numbers:
            return
        self.step += 1
        if self.step == 1:
            for each in self.trackers:
                self.started.append(each)
                self.tried(each, partial(each.start, *self.about))
        for each in [*self.started]:
            self.tried(each, partial(each.log, numbers, self.step))

    def tried(self, tracker: Tracker, act: Callable[[], None]) -> None:
        """Do something with a tracker, and leave it out if it fails."""
        try:
            act()
        except Exception as error:  # of whatever the service, its library or the network is
            self.started.remove(tracker)
            self.say(
                f"tracker {type(tracker).__name__} gets nothing more ({type(error).__name__}: {first_line(error)}); the figures "
                f"are in {self.about[1]} all the same"
            )


def result_row(record: Result | Failure) -> dict[str, float]:
    """The figures of a result, under its model and attack; a failure has none."""
    if isinstance(record, Failure):
        return {}
    via = f" from {record.source.name}" if record.source else ""
    what = f"{named(record.subject, record.cell.inference)}/{asked(record.cell)}{via}"
    count = len(record.clean)
    return {
        f"{what}/clean": sum(record.clean) / count,
        f"{what}/robust": sum(record.robust) / count,
        f"{what}/seconds": record.seconds,
    }


def flat(table: Any, where: str = "") -> dict[str, Any]:
    """Nested tables as one, with paths as `--set` has them."""
    if isinstance(table, Mapping):
        parts = [flat(value, f"{where}.{key}" if where else str(key)) for key, value in table.items()]
    elif isinstance(table, list):
        parts = [flat(value, f"{where}.{index}") for index, value in enumerate(table)]
    else:
        return {where: table}
    return {key: value for part in parts for key, value in part.items()}
