"""Sweeps: a grid of recipes, trained and attacked where that is missing, as one table.

Each run of a grid has a folder of its own, named after what was changed, so a sweep that was interrupted goes on where it
stopped, a larger sweep takes over what a smaller one trained, and a run without changes is the one `robench train` makes.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from robench import comparison, launching, publication, reporting, seeds, training, trainings
from robench import recipe as recipes
from robench.attacks import attack_for
from robench.caption import widest
from robench.checkpoint import Checkpoint, open_checkpoint
from robench.errors import UsageError
from robench.evaluation import Engine, usual_threat
from robench.handing import Order
from robench.job import Job
from robench.launch import Launch, Piece
from robench.methods import method_for
from robench.protocols import Monitor, Progress, unheard, unwatched
from robench.recipe import Published, Recipe
from robench.reporting import ABSENT, Table
from robench.results import Failure, Result, Store, safe
from robench.run import Run, finished, holds
from robench.sharing import Ran
from robench.signals import listening, terminating
from robench.spec import assignment, digest
from robench.suite import Column
from robench.threat import ThreatModel

LONGEST = 120  # characters of a folder's name


@dataclass(frozen=True)
class Axis:
    """One thing that varies.

    Attributes:
        key: the path in the recipe, or `seed`.
        texts: the values as they were typed.
    """

    key: str
    texts: tuple[str, ...]

    @property
    def label(self) -> str:
        """The key as names have it: without what goes without saying."""
        return re.sub(r"^stage\.0\.|options\.", "", self.key)


@dataclass(frozen=True)
class Point:
    """One run of a grid.

    Attributes:
        name: of its folder.
        setting: label and text of everything set, the seed left out.
        recipe: what to train.
        seed: of the training.
    """

    name: str
    setting: tuple[tuple[str, str], ...]
    recipe: Recipe
    seed: int


@dataclass(frozen=True)
class Plan:
    """What a sweep needs besides its grid.

    Attributes:
        checkpoints: where runs go.
        results: where results go.
        attacks: names with options.
        threats: the balls; when empty, each recipe's own or its data set's usual one.
        count: how many test images; all when None.
        device: where it computes.
        data_root: where data sets are kept.
        batch: the most images an attack gets at once.
        encoder: a checkpoint whose encoder every run starts from.
        tell: told in words what a person should know while it trains.
    """

    checkpoints: Path
    results: Path
    attacks: tuple[str, ...] = ("pgd-20",)
    threats: tuple[ThreatModel, ...] = ()
    count: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    data_root: Path = Path("data")
    batch: int = 500
    encoder: Checkpoint | None = None
    tell: Callable[[str], None] = unheard

    def run(self, point: Point) -> Run:
        """A point as a training run."""
        return Run(
            point.recipe,
            self.checkpoints / point.name,
            seed=point.seed,
            device=self.device,
            data_root=self.data_root,
            encoder=self.encoder,
            tell=self.tell,
        )


def axes(settings: Sequence[str]) -> list[Axis]:
    """Read `KEY=VALUE,VALUE` texts.

    Raises:
        UsageError: if there is none, one is empty, or a key or value stands twice.
    """
    if not settings:
        raise UsageError("a sweep needs something to set: --set KEY=VALUE,VALUE, such as --set seed=0,1,2")
    found: list[Axis] = []
    for text in settings:
        key, _ = assignment(text)
        values = tuple(split(text.partition("=")[2]))
        if "" in values:
            raise UsageError(f"--set {text}: an empty value; write {key}=VALUE,VALUE")
        if twice := [value for value in values if values.count(value) > 1]:
            raise UsageError(f"--set {text}: {twice[0]} stands twice")
        if key in {each.key for each in found}:
            raise UsageError(f"--set {key} is given twice: put all values in one, {key}=VALUE,VALUE")
        found.append(Axis(key, values))
    return found


def split(text: str) -> list[str]:
    """Parts between commas that stand outside brackets, braces and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in "[{(") - (character in "]})")
        if character == "," and not quote and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def grid(name: str, varied: Sequence[Axis]) -> list[Point]:
    """Every combination of values as a recipe, the last axis running fastest.

    Args:
        name: of a recipe, or the path of a TOML file.
        varied: the axes; one named `seed` is the seed of training.

    Raises:
        UsageError: for keys or values a recipe or its methods do not take, or runs that are the same.
    """
    varied = [replace(axis, key=recipes.spelled(name, axis.key)) for axis in varied]
    if twice := [axis.key for axis in varied if sum(axis.key == each.key for each in varied) > 1]:
        raise UsageError(f"--set {twice[0]} is given under two names: put all values in one, {twice[0]}=VALUE,VALUE")
    points = []
    for texts in itertools.product(*(each.texts for each in varied)):
        pairs = list(zip(varied, texts, strict=True))
        changes = [assignment(f"{axis.key}={text}") for axis, text in pairs if axis.key != "seed"]
        seed = next((_seed(text) for axis, text in pairs if axis.key == "seed"), 0)
        setting = tuple((axis.label, text) for axis, text in pairs if axis.key != "seed")
        made = recipes.load(name, changes)
        for number, stage in enumerate(made.stage):
            try:
                method_for(stage.method, stage.options)
            except UsageError as error:
                raise UsageError(f"stage.{number}: {error}") from None
        if setting:
            made = replace(made, name=f"{made.name}-{_words(setting)}")
        points.append(Point(_shortened(made.name, seed), setting, made, seed))
    if same := [each.name for each in points if sum(other.name == each.name for other in points) > 1]:
        raise UsageError(f"the grid has the run {same[0]} twice: two values of it mean the same")
    return points


def check(points: Sequence[Point], plan: Plan) -> dict[str, str]:
    """Say before anything trains what cannot be trained or attacked.

    Returns:
        The state of each run by its name: `trained`, `unfinished` or `to train`.

    Raises:
        UsageError: for unknown attacks or options, threats they do not work in, or folders that hold other runs.
    """
    states = {}
    for point in points:
        for threat in plan.threats or (usual_threat(point.recipe, point.name),):
            for attack in plan.attacks:
                attack_for(attack, threat)
        run = plan.run(point)
        states[point.name] = "trained" if finished(run) else "unfinished" if holds(run) else "to train"
    return states


def run(
    points: Sequence[Point],
    plan: Plan,
    monitor: Monitor = unwatched,
    order: Order | None = None,
    tell: Callable[[str], None] = unheard,
) -> Iterator[tuple[Point, list[Ran]]]:
    """Train what is not trained and attack what is not attacked; yields each run with its cells.

    Args:
        points: of the grid.
        plan: the rest.
        monitor: told about every step.
        order: how to hand all training and then all evaluation to other processes; None to do it here, run after run.
        tell: told how far those are.
    """
    check(points, plan)
    if order is not None:
        yield from _handed_out(points, plan, monitor, order, tell)
        return
    for number, point in enumerate(points, 1):
        told = _numbered(monitor, f"{number}/{len(points)} ")
        wanted = plan.run(point)
        if not finished(wanted):
            with listening() as asked:
                training.train(wanted, monitor=told, asked=asked)
        engine = Engine(plan.device, plan.data_root, plan.batch, told)
        yield point, list(engine.run(_jobs(engine, plan, point), Store(plan.results)))


def work(points: Sequence[Point], plan: Plan, monitor: Monitor, made: Launch, pieces: Sequence[Piece]) -> Iterator[Ran]:
    """Train or evaluate what this process was handed."""
    if made.runs:
        with listening() as asked:
            trainings.work([plan.run(point) for point in points], made, pieces, plan.checkpoints, monitor, asked)
        return
    engine = Engine(plan.device, plan.data_root, plan.batch, monitor)
    jobs = [job for point in points for job in _jobs(engine, plan, point)]
    with terminating():
        yield from launching.work(engine, jobs, Store(plan.results), made, pieces)


def _handed_out(
    points: Sequence[Point], plan: Plan, monitor: Monitor, order: Order, tell: Callable[[str], None]
) -> Iterator[tuple[Point, list[Ran]]]:
    with terminating():
        runs = [plan.run(point) for point in points]
        trainings.refuse_failed(trainings.hand_out(runs, plan.checkpoints, order, tell))
        engine = Engine(plan.device, plan.data_root, plan.batch, monitor, tell)
        own = {point.name: _jobs(engine, plan, point) for point in points}
        jobs = list({job.cell.key: job for every in own.values() for job in every}.values())
        ran = {each[0].cell.key: each for each in launching.run(engine, jobs, Store(plan.results), order)}
    for point in points:
        yield point, [ran[job.cell.key] for job in own[point.name]]


def _jobs(engine: Engine, plan: Plan, point: Point) -> list[Job]:
    """The cells of a run that is trained."""
    trained = open_checkpoint(str(plan.run(point).folder), plan.checkpoints)
    return engine.plan([trained], attacks=plan.attacks, threats=plan.threats, count=plan.count)


def table(
    name: str, ran: Sequence[tuple[Point, Sequence[Result | Failure]]], figures: Sequence[Published] = ()
) -> list[Table]:
    """One table of a sweep: a row for each setting, clean and robust accuracy over its seeds.

    Args:
        name: of the recipe.
        ran: every run with its records.
        figures: the recipe's published ones; those of an ablation stand beside the settings they name.
    """
    records = [record for _, own in ran for record in own]
    columns = list(dict.fromkeys((record.cell.threat, record.cell.attack) for record in records))
    columns.sort(key=lambda each: [record.cell.threat for record in records].index(each[0]))
    fixed = [pair for pair in ran[0][0].setting if all(pair in point.setting for point, _ in ran)]
    rows: dict[tuple[tuple[str, str], ...], list[tuple[Point, Sequence[Result | Failure]]]] = {}
    for point, own in ran:
        rows.setdefault(tuple(pair for pair in point.setting if pair not in fixed), []).append((point, own))
    lines, used = [], []
    for setting, several in rows.items():
        found = [_figure(several[0][0], figures, column) for column in (None, *columns)]
        every = [[_clean(own) for _, own in several]]
        every += [[_robust(own, *column) for _, own in several] for column in columns]
        label = ", ".join(f"{key} = {value}" for key, value in setting) or "as it is"
        cells = [_over_seeds(bits, figure) for bits, figure in zip(every, found, strict=True)]
        lines.append(("", safe(label), f"{len(several)} seed" + "s" * (len(several) > 1), *cells))
        used += [figure for figure in found if figure is not None]
    head = (
        ("", "", "", *(str(threat) for threat, _ in columns)),
        ("setting", "seeds", "clean", *(safe(attack) for _, attack in columns)),
    )
    notes = [
        "Accuracy in per cent; mean +- standard deviation (n - 1) over seeds of training, where there are several.",
        "A robust accuracy is an upper bound, as strong as the attack is.",
    ]
    shown = [bits for record in records if isinstance(record, Result) for bits in (record.clean, record.robust)]
    if shown:
        wide = f"{100 * widest(shown):.1f} points to either side"
        notes.append(f"95 % Wilson intervals of single runs, over the test images, reach up to {wide}.")
    if any(cell.startswith(ABSENT) or " of " in cell for line in lines for cell in line[3:]):
        notes.append(f"{ABSENT}: not evaluated; (a of b): only a of b seeds have a result.")
    if used:
        notes.append("(a, b): a as published for these settings, b ours minus that, in points.")
        notes.append(f"paper: {'; '.join(sorted({safe(figure.table) for figure in used}))}.")
        notes += sorted({f"paper, {safe(figure.table)}: {safe(figure.note)}." for figure in used if figure.note})
    told = [", ".join(f"{key} = {value}" for key, value in fixed)] if fixed else []
    sizes = sorted({(record.subject.dataset, record.cell.count) for record in records})
    told += [f"{dataset}, {count:,} test images" for dataset, count in sizes]
    made = [Table(safe(f"Sweep of {name}: {'; '.join(told)}"), head, tuple(lines), tuple(notes))]
    lost = [record for record in records if isinstance(record, Failure)]
    return made + ([reporting.failed(lost)] if lost else [])


def _clean(own: Sequence[Result | Failure]) -> Sequence[bool] | None:
    return next((record.clean for record in own if isinstance(record, Result)), None)


def _robust(own: Sequence[Result | Failure], threat: ThreatModel, attack: str) -> Sequence[bool] | None:
    found = [r for r in own if isinstance(r, Result) and (r.cell.threat, r.cell.attack) == (threat, attack)]
    return found[0].robust if found else None


def _figure(point: Point, figures: Sequence[Published], column: tuple[ThreatModel, str] | None) -> Published | None:
    """What was published for the settings of a point."""
    if not figures:
        return None
    first = point.recipe.stage[0]
    method: Any = method_for(first.method, first.options)
    known = {each.name: getattr(method, each.name) for each in fields(method)} | publication.settings(point.recipe)
    asked = Column(column[1], column[1], column[0]) if column else None
    return publication.for_settings(figures, asked, known, [label for label, _ in point.setting])


def _over_seeds(bits: Sequence[Sequence[bool] | None], figure: Published | None = None) -> str:
    """The mean over seeds with its standard deviation, and what was published beside it."""
    found = seeds.over(bits)
    text, mean = found if found else (ABSENT, None)
    if figure is None:
        return text
    decimals = 2 if min((len(each) for each in bits if each is not None), default=0) >= 1000 else 1
    return comparison.beside(text, figure, mean, decimals)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise UsageError(f"--set seed: {text} is not a whole number of at least 0")
    return int(text)


def _shortened(name: str, seed: int) -> str:
    """A folder's name for a run, with a digest in place of what is too long."""
    if len(name) > LONGEST:
        name = f"{name[:LONGEST]}-{digest(name)[:8]}"
    return name + (f"-seed{seed}" if seed else "")


def _words(setting: Sequence[tuple[str, str]]) -> str:
    """A setting as part of a folder's name: `regularise=1_16-steps=7`."""
    return "-".join(f"{key}={re.sub(r'[^A-Za-z0-9.+-]+', '_', value).strip('_')}" for key, value in setting)


def _numbered(monitor: Monitor, prefix: str) -> Callable[[Progress], None]:
    """A monitor for one run of several, whose bars are its own."""
    return lambda progress: monitor(replace(progress, task=prefix + progress.task))
