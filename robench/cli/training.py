"""`robench train` and `robench sweep`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from robench.cli import naming
from robench.cli.option import Choice, Threat, Where, compute, results_option, track_option
from robench.cli.telling import finish, show_tables, tell
from robench.spec import assignment
from robench.threat import ThreatModel

if TYPE_CHECKING:
    import torch

    from robench.recipe import Recipe
    from robench.run import Run

SMOKE_STEPS = 2
SMOKE_BATCH = 16


@click.command(short_help="Train a recipe: recipe -> checkpoints/")
@click.argument("recipe", shell_complete=naming.recipes)
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a recipe value: stage.0.epochs=2")
@click.option("--dataset", help="Train on another data set: robench list datasets", shell_complete=naming.datasets)
@click.option(
    "--resize", type=click.IntRange(1, 4096), metavar="N", help="Make the images NxN, as an encoder wants them."
)
@click.option("--model", help="Train another encoder: robench list models", shell_complete=naming.encoders)
@click.option("--encoder", metavar="CHECKPOINT", help="Start from the encoder of a trained checkpoint.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
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
def train(
    recipe: str,
    changes: Sequence[str],
    dataset: str | None,
    resize: int | None,
    model: str | None,
    encoder: str | None,
    seed: int,
    where: Where,
    precision: str | None,
    compiled: bool,
    out: Path | None,
    resume: bool,
    trackers: Sequence[str],
    smoke: bool,
) -> None:
    """Train a RECIPE: a name from `robench list recipes`, or the path of a TOML file.

    The same command goes on where an earlier one was cut off, to the same bits. SIGTERM and Ctrl-C stop after the step under
    way and keep it (a second Ctrl-C stops at once); SIGUSR1 saves and goes on. On several GPUs:
    torchrun --nproc-per-node N -m robench train RECIPE.
    """
    from robench import recipe as recipes
    from robench.files import check_writable

    pairs = [assignment(text) for text in changes]
    pairs += [("dataset", dataset)] if dataset else []
    pairs += [("resize", resize)] if resize else []
    pairs += [("model", model)] if model else []
    pairs += [("precision", precision)] if precision else []
    wanted = recipes.load(recipe, pairs)
    words = re.sub(r"[^\w.-]+", "-", dataset or "")
    suffix = ("-smoke" if smoke else "") + (f"-seed{seed}" if seed else "")
    folder = out or where.checkpoints / (wanted.name + (f"-{words}" if words else "") + suffix)
    check_writable(folder.parent)

    from robench import distributed

    with distributed.joined(lambda: where.device) as device:
        _train(wanted, folder, seed, device, where, encoder, resume, smoke, compiled, trackers)


def _train(
    wanted: Recipe,
    folder: Path,
    seed: int,
    device: torch.device,
    where: Where,
    encoder: str | None,
    resume: bool,
    smoke: bool,
    compiled: bool,
    trackers: Sequence[str],
) -> None:
    """Train, in one process or as one of several, of which only the first talks."""
    from robench import distributed, training
    from robench.checkpoint import open_checkpoint
    from robench.protocols import Progress, unheard, unwatched
    from robench.run import Run
    from robench.signals import listening
    from robench.spec import plain
    from robench.terminal import say as said
    from robench.terminal import watched
    from robench.trackers import flat, trackers_for, tracking

    say = said if distributed.leads() else unheard
    kept = trackers_for(trackers) if distributed.leads() else []
    run = Run(
        recipe=training.smoke(wanted, SMOKE_BATCH) if smoke else wanted,
        folder=folder,
        seed=seed,
        device=device,
        data_root=where.data_root,
        steps=SMOKE_STEPS if smoke else None,
        encoder=open_checkpoint(encoder, where.checkpoints) if encoder else None,
        compile=compiled,
    )
    stages = " then ".join(stage.method for stage in wanted.stage)
    say(
        f"{wanted.name}: {stages}, {wanted.model} on {wanted.dataset}, seed {seed}, {run.device}{_processes()} -> {folder}"
    )
    if distributed.leads():
        _tell_start(run, resume)
    latest: dict[str, Progress] = {}
    told = tracking(kept, folder.name, folder, flat(plain(run.recipe)), say)
    with (
        watched() if distributed.leads() else nullcontext(unwatched) as monitor,
        listening() as asked,
        told as rows,
    ):

        def both(progress: Progress) -> None:
            latest[progress.task] = progress
            monitor(progress)

        made = training.train(replace(run, track=rows), resume=resume, monitor=both, asked=asked)
    if "failed" in (outcome := str(made.provenance.get("compile", ""))):
        say(f"--compile {outcome}; trained without")
    if smoke:
        times = [progress.values[training.FULL] for progress in latest.values()]
        say(f"a full run would take here about {' + '.join(times)}; this one was {SMOKE_STEPS} small steps a stage")
    shown = ", ".join(f"{k} {100 * v:.1f} %" for k, v in made.metrics.items() if k.startswith("validation"))
    say(f"done: {made.folder} ({made.kind} epoch {made.epoch}{', ' + shown if shown else ''})")
    say(f"next: robench evaluate {made.folder} --attack pgd-20")


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
@compute
@results_option
def sweep(
    recipe: str,
    settings: Sequence[str],
    attacks: Sequence[str],
    threats: Sequence[ThreatModel],
    count: int | None,
    encoder: str | None,
    batch: int,
    only_plan: bool,
    form: str,
    where: Where,
    results: Path,
) -> None:
    """Train every combination of settings of a RECIPE, attack it, and print one table.

    \b
    robench sweep rocl --set stage.0.options.regularise=1/16,1/256 --set seed=0,1,2

    What is trained or evaluated already is taken as it is, so an interrupted sweep goes on where it stopped. Exit code 1
    when a cell failed; the others still ran.
    """  # noqa: D301 (to click the escape means: keep these lines)
    from robench import sweep as sweeps
    from robench.checkpoint import open_checkpoint
    from robench.files import check_writable
    from robench.recipe import load
    from robench.terminal import rows, say, watched

    points = sweeps.grid(recipe, sweeps.axes(settings))
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
    )
    states = sweeps.check(points, plan)
    if only_plan:
        lines = [
            [each.name, ", ".join(f"{key} = {value}" for key, value in each.setting), str(each.seed), states[each.name]]
            for each in points
        ]
        rows(["run", "setting", "seed", "state"], lines)
        return
    check_writable(where.checkpoints)
    check_writable(results)
    missing = sum(state != "trained" for state in states.values())
    say(f"sweep of {recipe}: {len(points)} runs, {missing} to train -> {where.checkpoints}")
    ran, told = [], []
    with watched() as monitor:
        for point, cells in sweeps.run(points, plan, monitor):
            told += tell(cells)
            ran.append((point, [record for _, record, _ in cells]))
    show_tables(sweeps.table(recipe, ran, load(recipe).published), form)
    finish(told, results)
