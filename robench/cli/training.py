"""`robench train` and `robench sweep`."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robench.cli import naming
from robench.cli.launching import Launcher, launched, order
from robench.cli.option import Choice, Threat, Where, compute, results_option, track_option
from robench.cli.telling import finish, show_tables, tell
from robench.errors import UsageError
from robench.spec import assignment
from robench.threat import ThreatModel

if TYPE_CHECKING:
    import torch

    from robench.handing import Order
    from robench.launch import Launch, Piece
    from robench.protocols import Monitor
    from robench.recipe import Recipe
    from robench.run import Run
    from robench.signals import Asked

SMOKE_STEPS = 2
SMOKE_BATCH = 16


@click.command(short_help="Train a recipe: recipe -> checkpoints/")
@click.argument("recipe", shell_complete=naming.recipes)
@click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a recipe value: stage.0.epochs=2. May repeat."
)
@click.option("--dataset", help="Train on another data set: robench list datasets", shell_complete=naming.datasets)
@click.option(
    "--resize", type=click.IntRange(1, 4096), metavar="N", help="Make the images NxN, as an encoder wants them."
)
@click.option("--model", help="Train another encoder: robench list models", shell_complete=naming.encoders)
@click.option("--encoder", metavar="CHECKPOINT", help="Start from the encoder of a trained checkpoint.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@click.option("--seeds", "several", metavar="N,N", help="Train once for each of several seeds: 0,1,2")
@compute
@click.option(
    "--precision",
    type=Choice(["float32", "bfloat16"]),
    help="Of the encoder's arithmetic in training; by default the recipe's, float32.",
)
@click.option(
    "--compile/--no-compile", "compiled", default=False, help="Compile the encoder; pays in long runs on a GPU."
)
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder; by default checkpoints/RECIPE.")
@click.option(
    "--resume/--restart",
    default=True,
    show_default=True,
    help="Go on with what an interrupted run has left, or begin again without it.",
)
@track_option
@click.option(
    "--smoke", is_flag=True, help=f"{SMOKE_STEPS} steps of {SMOKE_BATCH} images a stage, and what a full run takes."
)
@click.option("--plan", "only_plan", is_flag=True, help="Print the runs and stop.")
@launched
@click.pass_context
def train(
    context: click.Context,
    recipe: str,
    changes: Sequence[str],
    dataset: str | None,
    resize: int | None,
    model: str | None,
    encoder: str | None,
    seed: int,
    several: str | None,
    where: Where,
    precision: str | None,
    compiled: bool,
    out: Path | None,
    resume: bool,
    trackers: Sequence[str],
    smoke: bool,
    only_plan: bool,
    launcher: Launcher,
) -> None:
    """Train a RECIPE: a name from `robench list recipes`, or the path of a TOML file.

    The same command goes on where an earlier one was cut off, to the same bits. SIGTERM and Ctrl-C stop after the step under
    way and keep it (a second Ctrl-C stops at once); SIGUSR1 saves and goes on. On several GPUs:
    torchrun --nproc-per-node N -m robench train RECIPE. With --launcher every run, one for each of --seeds, is a job.
    """
    from robench import launch
    from robench import recipe as recipes
    from robench.files import check_writable

    seeds = _seeds(several, seed, out)
    if smoke and launcher.name:
        raise UsageError("--smoke looks at this machine, so nothing is handed out: leave --launcher or --smoke away")
    handed = order(launcher, context, lambda needed: (recipe,), ("trackers",))
    mine = launch.task(launcher.task) if launcher.task else None

    pairs = [assignment(text) for text in changes]
    named = [("dataset", dataset), ("resize", resize), ("model", model), ("precision", precision)]
    options = [(key, value) for key, value in named if value]
    _check_once(pairs, options)
    wanted = recipes.load(recipe, [*pairs, *options])
    words = re.sub(r"[^\w.-]+", "-", dataset or "")
    name = wanted.name + (f"-{words}" if words else "") + ("-smoke" if smoke else "")
    folders = [out or where.checkpoints / (name + (f"-seed{each}" if each else "")) for each in seeds]
    if files := [folder for folder in folders if folder.is_file()]:
        raise UsageError(f"cannot write in {files[0]}: it is a file. Choose another folder with --out")

    from robench import distributed

    with nullcontext(where.device) if handed else distributed.joined(lambda: where.device) as device:
        runs = [
            _run(wanted, folder, each, device, where, encoder, smoke, compiled)
            for folder, each in zip(folders, seeds, strict=True)
        ]
        if only_plan:
            _show_plan(runs, handed)
            return
        check_writable(folders[0].parent)
        if handed:
            _hand_out(runs, where.checkpoints, handed, resume)
        elif mine:
            _work(runs, where.checkpoints, *mine, trackers)
        else:
            for run in runs:
                _train(run, resume, trackers)


def _check_once(changes: Sequence[tuple[str, Any]], options: Sequence[tuple[str, Any]]) -> None:
    """Refuse a key of `--set` that an option sets too, of which one would not be heard, and the seed, which is no key.

    Raises:
        UsageError: naming it.
    """
    keys = {key for key, _ in changes}
    if "seed" in keys:
        raise UsageError("--set seed: the seed belongs to the run and not to the recipe: --seed N, or --seeds N,N")
    if twice := [key for key, _ in options if key in keys]:
        raise UsageError(f"--{twice[0]} and --set {twice[0]} say the same thing twice: leave one away")


def _seeds(several: str | None, seed: int, out: Path | None) -> list[int]:
    """The seeds of `--seeds`, or the one of `--seed`.

    Raises:
        UsageError: for what is no list of seeds, or would be trained into one folder.
    """
    if several is None:
        return [seed]
    texts = [text.strip() for text in several.split(",")]
    if bad := [text for text in texts if not text.isdecimal() or int(text) >= 2**63]:
        raise UsageError(f"--seeds {several}: {bad[0]!r} is no whole number of at least 0; write --seeds 0,1,2")
    found = list(map(int, texts))
    if twice := [each for each in found if found.count(each) > 1]:
        raise UsageError(f"--seeds {several}: {twice[0]} stands twice")
    if seed:
        raise UsageError("--seed and --seeds say the same: leave one of them away")
    if out and len(found) > 1:
        raise UsageError("--out is one folder, and --seeds makes several runs: leave --out away, or say --checkpoints")
    return found


def _run(
    wanted: Recipe,
    folder: Path,
    seed: int,
    device: torch.device,
    where: Where,
    encoder: str | None,
    smoke: bool,
    compiled: bool,
) -> Run:
    from robench import training
    from robench.checkpoint import open_checkpoint
    from robench.run import Run

    return Run(
        recipe=training.smoke(wanted, SMOKE_BATCH) if smoke else wanted,
        folder=folder,
        seed=seed,
        device=device,
        data_root=where.data_root,
        steps=SMOKE_STEPS if smoke else None,
        encoder=open_checkpoint(encoder, where.checkpoints) if encoder else None,
        compile=compiled,
    )


def _show_plan(runs: Sequence[Run], handed: Order | None) -> None:
    """The runs, and what a launcher would do with them."""
    from robench import trainings
    from robench.run import finished, holds
    from robench.terminal import rows

    states = ["trained" if finished(run) else "unfinished" if holds(run) else "to train" for run in runs]
    rows(
        ["run", "seed", "state"],
        [[str(run.folder), str(run.seed), state] for run, state in zip(runs, states, strict=True)],
    )
    if handed:
        click.echo(trainings.told(runs, handed))


def _hand_out(runs: Sequence[Run], root: Path, handed: Order, resume: bool) -> None:
    """Have other processes train, and say how it ended; exit code 1 when a run failed."""
    from robench import trainings
    from robench.signals import terminating
    from robench.terminal import say

    if not resume:
        trainings.begin_again(runs)
    with terminating():
        standings = trainings.hand_out(runs, root, handed, say)
    failed = [each for each in standings if each.state == "failed"]
    for each in failed:
        say(f"FAILED  {each.wanted.label}: {each.reason}")
    there = len(runs) - len(standings)
    say(f"{len(runs)} runs: {len(standings) - len(failed)} new, {there} already in {root}, {len(failed)} failed")
    if failed:
        raise SystemExit(1)
    say(f"next: robench evaluate {shlex.join(str(run.folder) for run in runs)} --attack pgd-20")


def _work(runs: Sequence[Run], root: Path, made: Launch, pieces: Sequence[Piece], trackers: Sequence[str]) -> None:
    """Train what this process of a launch was handed."""
    from robench import trainings
    from robench.signals import listening
    from robench.terminal import say, watched

    def tracked(run: Run, monitor: Monitor, asked: Asked) -> None:
        with _tracked(run, trackers) as told:
            trainings.trained_here(replace(told, tell=say), monitor, asked)

    with watched() as monitor, listening() as asked:
        trainings.work(runs, made, pieces, root, monitor, asked, tracked)


@contextmanager
def _tracked(run: Run, trackers: Sequence[str]) -> Iterator[Run]:
    """The run that also tells trackers."""
    from robench.spec import plain
    from robench.terminal import say
    from robench.trackers import flat, trackers_for, tracking

    config = flat(plain(run.recipe))
    with tracking(trackers_for(trackers), run.folder.name, run.folder, config, say) as rows:
        yield replace(run, track=rows)


def _train(run: Run, resume: bool, trackers: Sequence[str]) -> None:
    """Train, in one process or as one of several, of which only the first talks."""
    from robench import distributed, training
    from robench.protocols import Progress, unheard, unwatched
    from robench.signals import listening
    from robench.terminal import say as said
    from robench.terminal import watched

    say = said if distributed.leads() else unheard
    wanted, folder = run.recipe, run.folder
    stages = " then ".join(stage.method for stage in wanted.stage)
    say(
        f"{wanted.name}: {stages}, {wanted.model} on {wanted.dataset}, seed {run.seed}, {run.device}{_processes()} -> {folder}"
    )
    if distributed.leads():
        _tell_start(run, resume)
    latest: dict[str, Progress] = {}
    with (
        watched() if distributed.leads() else nullcontext(unwatched) as monitor,
        listening() as asked,
        _tracked(run, trackers if distributed.leads() else ()) as told,
    ):

        def both(progress: Progress) -> None:
            latest[progress.task] = progress
            monitor(progress)

        made = training.train(replace(told, tell=say), resume=resume, monitor=both, asked=asked)
    if "failed" in (outcome := str(made.provenance.get("compile", ""))):
        say(f"--compile {outcome}; trained without")
    if run.steps:
        times = [progress.values[training.FULL] for progress in latest.values()]
        say(f"a full run would take here about {' + '.join(times)}; this one was {SMOKE_STEPS} small steps a stage")
    shown = ", ".join(f"{k} {100 * v:.1f} %" for k, v in made.metrics.items() if k.startswith("validation"))
    say(f"done: {made.folder} ({made.kind} epoch {made.epoch}{', ' + shown if shown else ''})")
    say(f"next: robench evaluate {shlex.quote(str(made.folder))} --attack pgd-20")


def _processes() -> str:
    from robench import distributed

    return f", {distributed.world()} processes" if distributed.world() > 1 else ""


def _tell_start(run: Run, resume: bool) -> None:
    """Say what the folder holds of a run before it is trained."""
    from robench.run import finished, holds, moved
    from robench.terminal import say

    if run.steps or not resume or not holds(run):
        return
    if finished(run):
        say(f"{run.folder} holds this run already, finished: nothing is left to do")
        return
    say(f"going on with the run that was interrupted in {run.folder}; --restart begins it again")
    if changes := moved(run):
        say(f"note: {', '.join(changes)}: the last bits may differ from those of an uninterrupted run")


@click.command(short_help="Train and attack a grid of recipes: one table of settings")
@click.argument("recipe", shell_complete=naming.recipes)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE,VALUE",
    help="Values of a recipe key, or of seed, to go through: stage.0.options.regularise=1/16,1/256. May repeat.",
)
@click.option(
    "--attack", "attacks", multiple=True, default=("pgd-20",), show_default=True, help="An attack. May repeat."
)
@click.option("--threat", "threats", multiple=True, type=Threat(), help="By default what each run trains against.")
@click.option("--count", type=click.IntRange(min=1), help="The first COUNT test images; all by default.")
@click.option("--encoder", metavar="CHECKPOINT", help="Start every run from the encoder of a trained checkpoint.")
@click.option("--batch", type=click.IntRange(min=1), default=500, show_default=True, help="Images at once, in attacks.")
@click.option("--plan", "only_plan", is_flag=True, help="Print the runs and stop.")
@click.option("--format", "form", type=Choice(["terminal", "markdown"]), default="terminal", show_default=True)
@launched
@compute
@results_option
@click.pass_context
def sweep(
    context: click.Context,
    recipe: str,
    settings: Sequence[str],
    attacks: Sequence[str],
    threats: Sequence[ThreatModel],
    count: int | None,
    encoder: str | None,
    batch: int,
    only_plan: bool,
    form: str,
    launcher: Launcher,
    where: Where,
    results: Path,
) -> None:
    """Train every combination of settings of a RECIPE, attack it, and print one table.

    \b
    robench sweep rocl --set stage.0.options.regularise=1/16,1/256 --set seed=0,1,2

    What is trained or evaluated already is taken as it is, so an interrupted sweep goes on where it stopped. Exit code 1
    when a cell failed; the others still ran. With --launcher other processes train all
    runs, and then others attack them.
    """  # noqa: D301 (to click the escape means: keep these lines)
    from robench import launch
    from robench import sweep as sweeps
    from robench.checkpoint import open_checkpoint
    from robench.files import check_writable
    from robench.recipe import load
    from robench.terminal import rows, say, watched

    load(recipe)  # a wrong name is said before what is to be set in it
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "a sweep trains each run in one process: leave torchrun out, and use --launcher local or slurm"
        )
    points = sweeps.grid(recipe, sweeps.axes(settings))
    handed = order(launcher, context, lambda needed: (recipe,))
    mine = launch.task(launcher.task) if launcher.task else None
    plan = sweeps.Plan(
        checkpoints=where.checkpoints,
        results=results,
        attacks=tuple(attacks),
        threats=tuple(threats),
        count=count,
        device=where.device,
        data_root=where.data_root,
        batch=batch,
        encoder=open_checkpoint(encoder, where.checkpoints) if encoder else None,
        tell=say,
    )
    states = sweeps.check(points, plan)
    if only_plan:
        lines = [
            [each.name, ", ".join(f"{key} = {value}" for key, value in each.setting), str(each.seed), states[each.name]]
            for each in points
        ]
        rows(["run", "setting", "seed", "state"], lines)
        if handed:
            from robench import trainings

            click.echo(f"{trainings.told([plan.run(each) for each in points], handed)}, and then the evaluation of all")
        return
    check_writable(where.checkpoints)
    check_writable(results)
    if mine:
        with watched() as monitor:
            tell(sweeps.work(points, plan, monitor, *mine))
        return
    missing = sum(state != "trained" for state in states.values())
    say(f"sweep of {recipe}: {len(points)} runs, {missing} to train -> {where.checkpoints}")
    ran, told = [], []
    with watched() as monitor:
        for point, cells in sweeps.run(points, plan, monitor, handed, say):
            told += tell(cells)
            ran.append((point, [record for _, record, _ in cells]))
    show_tables(sweeps.table(recipe, ran, load(recipe).published), form)
    finish(told, results)
