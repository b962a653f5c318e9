"""The command line. Heavy imports happen inside commands, so that help, lists and reports answer at once."""

from __future__ import annotations

import re
import traceback as tracebacks
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from robench import __version__
from robench.errors import RobenchError, UsageError, nearest
from robench.spec import assignment
from robench.suite import SUITES
from robench.threat import ThreatModel

if TYPE_CHECKING:
    import torch

    from robench.checkpoint import Checkpoint
    from robench.evaluation import Job
    from robench.inference import Inference
    from robench.reporting import Table
    from robench.results import Failure, Result
    from robench.suite import Suite

F = TypeVar("F", bound=Callable[..., Any])

SMOKE_STEPS = 2
SMOKE_BATCH = 16


class Threat(click.ParamType[ThreatModel]):
    """A threat model on the command line."""

    name = "NORM-EPS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> ThreatModel:
        """Read it."""
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


def _folder(name: str, default: str, what: str) -> Callable[[F], F]:
    return click.option(name, type=click.Path(path_type=Path), default=default, show_default=True, help=what)


_checkpoints = _folder("--checkpoints", "checkpoints", "Where training runs are.")
_results = _folder("--results", "results", "Where results are.")
_data = click.option(
    "--data",
    "data_root",
    type=click.Path(path_type=Path),
    default="data",
    envvar="ROBENCH_DATA",
    show_default=True,
    show_envvar=True,
    help="Where data sets are kept, or downloaded to.",
)
_device = click.option("--device", type=Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True)
_threads = click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="CPU threads; one is often faster for small models or on a busy machine. By default torch decides.",
)


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
    """  # noqa: D301 (to click the escape means: keep these lines)


@cli.command(short_help="Train a recipe: recipe -> checkpoints/")
@click.argument("recipe")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a recipe value: stage.0.epochs=2")
@click.option("--dataset", help="Train on another data set: robench list datasets")
@click.option(
    "--resize", type=click.IntRange(min=1), metavar="N", help="Make the images NxN, as an encoder wants them."
)
@click.option("--model", help="Train another encoder: robench list models")
@click.option("--encoder", metavar="CHECKPOINT", help="Start from the encoder of a trained checkpoint.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@_device
@_threads
@_data
@_checkpoints
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder; by default checkpoints/RECIPE.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
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
    device: str,
    threads: int | None,
    data_root: Path,
    checkpoints: Path,
    out: Path | None,
    resume: bool,
    smoke: bool,
) -> None:
    """Train a RECIPE: a name from `robench list recipes`, or the path of a TOML file."""
    from robench import recipe as recipes
    from robench.files import check_writable
    from robench.terminal import say, watched

    pairs = [assignment(text) for text in changes]
    pairs += [("dataset", dataset)] if dataset else []
    pairs += [("resize", resize)] if resize else []
    pairs += [("model", model)] if model else []
    wanted = recipes.load(recipe, pairs)
    words = re.sub(r"[^\w.-]+", "-", dataset or "")
    suffix = ("-smoke" if smoke else "") + (f"-seed{seed}" if seed else "")
    folder = out or checkpoints / (wanted.name + (f"-{words}" if words else "") + suffix)
    check_writable(folder.parent)

    from robench import training
    from robench.checkpoint import open_checkpoint
    from robench.protocols import Progress
    from robench.run import Run

    run = Run(
        recipe=training.smoke(wanted, SMOKE_BATCH) if smoke else wanted,
        folder=folder,
        seed=seed,
        device=_torch_device(device, threads),
        data_root=data_root,
        steps=SMOKE_STEPS if smoke else None,
        encoder=open_checkpoint(encoder, checkpoints) if encoder else None,
    )
    stages = " then ".join(stage.method for stage in wanted.stage)
    say(f"{wanted.name}: {stages}, {wanted.model} on {wanted.dataset}, seed {seed}, {run.device} -> {folder}")
    latest: dict[str, Progress] = {}
    with watched() as monitor:

        def both(progress: Progress) -> None:
            latest[progress.task] = progress
            monitor(progress)

        made = training.train(run, resume=resume, monitor=both)
    if smoke:
        times = [progress.values[training.FULL] for progress in latest.values()]
        say(f"a full run would take here about {' + '.join(times)}; this one was {SMOKE_STEPS} small steps a stage")
    shown = ", ".join(f"{k} {100 * v:.1f} %" for k, v in made.metrics.items() if k.startswith("validation"))
    say(f"done: {made.folder} ({made.kind} epoch {made.epoch}{', ' + shown if shown else ''})")
    say(f"next: robench evaluate {made.folder} --attack pgd-20")


@cli.command(short_help="Attack checkpoints: checkpoints/ -> results/")
@click.argument("checkpoint", nargs=-1)
@click.option("--attack", "attacks", multiple=True, help="An attack: robench list attacks. May repeat.")
@click.option(
    "--suite", "suites", multiple=True, help="The columns of a paper's table: robench list suites. May repeat."
)
@click.option("--threat", "threats", multiple=True, type=Threat(), help="linf-8/255, l2-0.5, l1-12. May repeat.")
@click.option(
    "--source",
    "sources",
    multiple=True,
    metavar="CHECKPOINT",
    help="Craft on this one (transfer), on several as one ensemble: A+B, or on each that is evaluated: all. May repeat.",
)
@click.option("--count", type=int, help="The first COUNT test images; all by default.")
@click.option("--dataset", help="Evaluate on another data set than the one trained on.")
@click.option(
    "--inference",
    help="tsi: predict from many random augmentations (tsi@area=0.5,hue=0 for others than the recipe's). Attack it by "
    "eot-pgd or autoattack-rand, which climb through them.",
)
@click.option("--draws", type=int, help="For --inference tsi: augmentations an answer is made of; 30 by default.")
@click.option("--average", help="For --inference tsi: probabilities (the default) or votes.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Of the attacks.")
@click.option("--batch", type=click.IntRange(min=1), default=500, show_default=True, help="Images at once.")
@_device
@_threads
@_data
@_checkpoints
@_results
def evaluate(
    checkpoint: Sequence[str],
    attacks: Sequence[str],
    suites: Sequence[str],
    threats: Sequence[ThreatModel],
    sources: Sequence[str],
    count: int | None,
    dataset: str | None,
    inference: str | None,
    draws: int | None,
    average: str | None,
    seed: int,
    batch: int,
    device: str,
    threads: int | None,
    data_root: Path,
    checkpoints: Path,
    results: Path,
) -> None:
    """Attack CHECKPOINTs (all under checkpoints/ by default) and store a result per cell.

    Cells that are there already are skipped. Exit code 1 when a cell failed; the others still ran. A suite attacks the
    last epoch, as its paper does, unless a name ends in @best.
    """
    from robench.files import check_writable
    from robench.registry import ATTACKS

    for attack in attacks:
        ATTACKS.entry(attack)
    wanted = _suites(suites, attacks, threats, sources, draws)
    answers = _inference(inference, draws, average)
    check_writable(results)

    from robench.evaluation import Engine, plan_suite
    from robench.results import Store
    from robench.terminal import watched

    with watched() as monitor:
        engine = Engine(_torch_device(device, threads), data_root, batch, monitor)
        jobs: list[Job] = []
        if attacks:
            targets = _targets(checkpoint, checkpoints)
            jobs += engine.plan(
                targets,
                attacks=attacks,
                threats=threats,
                sources=[source for text in sources for source in _sources(text, targets, checkpoints)],
                count=count,
                seed=seed,
                dataset=dataset,
                inference=answers,
            )
        if wanted:
            targets = _targets(checkpoint, checkpoints, last=True)
            roles = any(suite.roles for suite in wanted)
            named = [text for text in sources if text != "all"]
            candidates = _targets(named, checkpoints, last=True, quiet=True) if roles else []
            for suite in wanted:
                jobs += plan_suite(
                    engine,
                    suite,
                    targets,
                    candidates=candidates,
                    count=count,
                    seed=seed,
                    dataset=dataset,
                    inference=answers,
                )
        if not jobs:
            raise UsageError(
                f"--source {' --source '.join(sources)} leaves nothing to do: no checkpoint is its own target; "
                "name another to attack, or leave --source away for a white-box attack"
            )
        told = _tell(engine.run(list({job.cell.key: job for job in jobs}.values()), Store(results)))
    _finish(told, results)


@cli.command(short_help="Train and attack a grid of recipes: one table of settings")
@click.argument("recipe")
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
@click.option("--count", type=int, help="The first COUNT test images; all by default.")
@click.option("--encoder", metavar="CHECKPOINT", help="Start every run from the encoder of a trained checkpoint.")
@click.option("--batch", type=click.IntRange(min=1), default=500, show_default=True, help="Images at once, in attacks.")
@click.option("--plan", "only_plan", is_flag=True, help="Print the runs and stop.")
@click.option("--format", "form", type=Choice(["terminal", "markdown"]), default="terminal", show_default=True)
@_device
@_threads
@_data
@_checkpoints
@_results
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
    device: str,
    threads: int | None,
    data_root: Path,
    checkpoints: Path,
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
        checkpoints=checkpoints,
        results=results,
        attacks=tuple(attacks),
        threats=tuple(threats),
        count=count,
        device=_torch_device(device, threads),
        data_root=data_root,
        batch=batch,
        encoder=open_checkpoint(encoder, checkpoints) if encoder else None,
    )
    states = sweeps.check(points, plan)
    if only_plan:
        lines = [
            [each.name, ", ".join(f"{key} = {value}" for key, value in each.setting), str(each.seed), states[each.name]]
            for each in points
        ]
        rows(["run", "setting", "seed", "state"], lines)
        return
    check_writable(checkpoints)
    check_writable(results)
    missing = sum(state != "trained" for state in states.values())
    say(f"sweep of {recipe}: {len(points)} runs, {missing} to train -> {checkpoints}")
    ran, told = [], []
    with watched() as monitor:
        for point, cells in sweeps.run(points, plan, monitor):
            told += _tell(cells)
            ran.append((point, [record for _, record, _ in cells]))
    _show(sweeps.table(recipe, ran, load(recipe).published), form)
    _finish(told, results)


@cli.command(short_help="Print the tables of results/.")
@click.option(
    "--format",
    "form",
    type=Choice(["terminal", "markdown", "csv", "latex", "json", "html"]),
    default="terminal",
    show_default=True,
    help="html is one file with figures; it needs pip install 'robench[plot]'.",
)
@click.option(
    "--table",
    type=Choice(["all", "white-box", "transfer", "cells", "cost", *SUITES]),
    default="all",
    show_default=True,
    help="A suite's table has ours beside the published. CSV holds one table: `cells` (a row per result) unless named.",
)
@click.option("--dataset", help="Only results on this data set.")
@_results
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write to a file instead of stdout.")
@click.option(
    "--checkpoints",
    type=click.Path(path_type=Path),
    help="For --format html: add the training curves of the runs there. For --table cost: where those are.",
)
def report(
    form: str, table: str, dataset: str | None, results: Path, out: Path | None, checkpoints: Path | None
) -> None:
    """Print the tables of everything in results/: a pure function of the files there.

    The table `cost` also reads what training cost, from the checkpoints.
    """
    if checkpoints and form != "html" and table != "cost":
        raise UsageError(f"--checkpoints is for --format html or --table cost; --format {form} has no figures")
    _print(_records(results, dataset), form, table, out, results, checkpoints)
    if out is not None and table != "cost" and not checkpoints:  # which depend on more than the results
        from robench.verification import remember

        remember(results, out, {"form": form, "table": table, "dataset": dataset})


@cli.command(short_help="Draw results/: curves, transfer, union, cost.")
@click.option(
    "--kind",
    type=Choice(["curves", "transfer", "union", "pareto", "training"]),
    default="curves",
    show_default=True,
    help="Accuracy against eps; transfer matrices; which attacks broke which images; seconds against accuracy left; what "
    "each run in --checkpoints logged.",
)
@click.option("--dataset", help="Only results on this data set.")
@_results
@_checkpoints
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE.(svg|png|pdf)",
    help="The file; its ending says the format.",
)
def plot(kind: str, dataset: str | None, results: Path, checkpoints: Path, out: Path) -> None:
    """Draw what is in results/ into a file: the same records give the same bytes. Needs pip install 'robench[plot]'.

    Results on other images, or by another seed, are other figures, one below the other.
    """
    from robench.figures import figures, training
    from robench.files import write
    from robench.rendering.drawing import FORMATS, draw

    form = out.suffix[1:].lower()
    if form not in FORMATS:
        raise UsageError(f"--out {out}: the name must end in {', '.join(f'.{each}' for each in FORMATS)}")
    if kind != "training":
        drawn = figures(_records(results, dataset), kind)
    elif dataset:
        raise UsageError("--dataset is for what is drawn from results; --kind training draws the runs in --checkpoints")
    elif not (drawn := training(checkpoints)):
        raise UsageError(f"no run in {checkpoints} has logged an epoch: robench train rocl, or robench demo")
    write(out, draw(drawn, form))


@cli.command(short_help="Check results, and that tables follow from them.")
@click.argument("results", type=click.Path(path_type=Path), default="results")
@click.option("--check", is_flag=True, help="Make the tables of RESULTS/tables.json again and compare every byte.")
@click.option("--checkpoints", type=click.Path(path_type=Path), help="Compare weights there with what records name.")
def verify(results: Path, check: bool, checkpoints: Path | None) -> None:
    """Check every record in RESULTS: digest, key, bits, norms; list failures, flags and cells that are missing.

    Tables that `robench report --out RESULTS/NAME` wrote are listed in RESULTS/tables.json. Exit code 1 when anything is
    wrong; a missing cell is not.
    """
    from robench import verification
    from robench.rendering.markdown import markdown

    def render(records: Sequence[Result | Failure], options: Mapping[str, str | None]) -> str:
        kept = [r for r in records if options["dataset"] in (None, r.subject.dataset)]
        form, table = options["form"] or "markdown", options["table"] or "all"
        return _text(kept, form, table, file=True, results=results)

    checks, records = verification.verify(results, checkpoints)
    if check:
        checks.append(verification.rederive(results, records, render))
    click.echo(markdown(verification.tables(checks)), nl=False)
    if any(each.wrong for each in checks):
        raise SystemExit(1)


@cli.command(short_help="Explain one result.")
@click.argument("cell")
@click.option("--images", type=click.IntRange(min=1), metavar="N", help="Draw the first N broken images; needs --out.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The PNG to write.")
@_device
@_threads
@_data
@_checkpoints
@_results
def show(
    cell: str,
    images: int | None,
    out: Path | None,
    device: str,
    threads: int | None,
    data_root: Path,
    checkpoints: Path,
    results: Path,
) -> None:
    """Explain one CELL in words: a key, its beginning, or the path of a record.

    With --images the attack is run again on the first broken images and a PNG shows each clean, adversarial, and the
    difference amplified. Exit code 1 when an image is not broken again.
    """
    from robench import showing
    from robench.results import Failure

    if (images is None) != (out is None):
        raise UsageError("--images N and --out FILE.png go together")
    record = showing.find(results, cell)
    click.echo(showing.words(record), nl=False)
    if images is None or out is None:
        return
    if isinstance(record, Failure) or not showing.broken(record):
        raise UsageError("this cell has no broken images to draw")
    _draw(record, images, out, _torch_device(device, threads), data_root, checkpoints)


def _draw(record: Result, count: int, out: Path, device: torch.device, data_root: Path, root: Path) -> None:
    """Write the pictures of a record, and say whether they are what it says."""
    from robench import pictures
    from robench.checkpoint import at_hand
    from robench.evaluation import Engine
    from robench.files import write
    from robench.terminal import say

    parts = record.cell.source.split("+") if record.cell.source else []
    checkpoint, *sources = [at_hand(sha256, root) for sha256 in (record.cell.checkpoint, *parts)]
    loaded = Engine(device, data_root).images(record.subject.dataset, record.cell.count)
    clean, adv, numbers, left = pictures.again(record, checkpoint, sources, loaded, count)
    write(out, pictures.grid(clean, adv))
    say(f"{out}: images {', '.join(map(str, numbers))}, from top; clean, adversarial, difference amplified")
    if left:
        say(f"NOT broken again: {', '.join(map(str, left))}; another device or version can do that, or a wrong record")
        raise SystemExit(1)
    say("all of them are broken again, as the record says")


@cli.command(short_help="Look for signs of masked gradients: indicators G1 to G16.")
@click.argument("checkpoint")
@click.option("--threat", type=Threat(), help="By default what the checkpoint was trained against.")
@click.option("--source", "sources", multiple=True, metavar="CHECKPOINT", help="A surrogate for transfer. May repeat.")
@click.option("--count", type=click.IntRange(min=1), help="The first COUNT test images; 256 by default, if there are.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@click.option("--format", "form", type=Choice(["terminal", "markdown"]), default="terminal", show_default=True)
@_device
@_threads
@_data
@_checkpoints
@_results
def diagnose(
    checkpoint: str,
    threat: ThreatModel | None,
    sources: Sequence[str],
    count: int | None,
    seed: int,
    form: str,
    device: str,
    threads: int | None,
    data_root: Path,
    checkpoints: Path,
    results: Path,
) -> None:
    """Look for signs that the attacks on a CHECKPOINT fail for a reason other than robustness.

    Passing every indicator does not prove robustness. Exit code 1 when one fails.
    """
    from robench import diagnosis
    from robench.checkpoint import open_checkpoint
    from robench.files import check_writable

    check_writable(results)

    from robench.evaluation import Engine, diagnosed

    engine = Engine(_torch_device(device, threads), data_root)
    others = [open_checkpoint(text, checkpoints) for text in sources]
    made = diagnosed(
        engine, open_checkpoint(checkpoint, checkpoints), threat=threat, sources=others, count=count, seed=seed
    )
    from robench.reporting import diagnosis_table

    path = diagnosis.put(made, results)
    _show([diagnosis_table(made)], form)
    click.echo(f"stored: {path}", err=True)
    if made.failed:
        raise SystemExit(1)


@cli.command("list")
@click.argument("what", type=Choice(["methods", "attacks", "datasets", "models", "recipes", "results", "suites"]))
@click.option("--format", "form", type=Choice(["terminal", "markdown"]), default="terminal", show_default=True)
@_results
def list_(what: str, form: str, results: Path) -> None:
    """List what there is, instantly."""
    from robench.listing import listing
    from robench.rendering.markdown import markdown
    from robench.reporting import Table
    from robench.terminal import rows

    head, lines = listing(what, results)
    if form == "terminal":
        rows(head, lines)
    else:
        table = Table(f"robench list {what}", (tuple(head),), tuple(("", *line) for line in lines))
        click.echo(markdown([table]), nl=False)


@cli.command(short_help="The main job on real digits, in minutes.")
@_checkpoints
@_results
@_device
def demo(checkpoints: Path, results: Path, device: str) -> None:
    """Train five methods on real digits, attack them all, print the tables: the main job in a few minutes.

    A smoke-sized experiment on 8x8 images, not CIFAR-10. Run it again and everything is there already.
    """
    from robench import demo as plan
    from robench.files import check_writable
    from robench.terminal import say, watched

    check_writable(checkpoints)
    check_writable(results)
    say(f"robench {__version__}: {plan.SUMMARY}")
    with watched() as monitor:
        told = _tell(plan.run(checkpoints, results, _torch_device(device), monitor), quiet=True)
    _print([record for record, _ in told], "terminal", "all", None, results)
    say(f"checkpoints: {checkpoints}   results: {results}")
    say("next: robench report --format markdown, robench train rocl, robench evaluate --attack autoattack")
    _finish(told, results)


def _suites(
    names: Sequence[str],
    attacks: Sequence[str],
    threats: Sequence[ThreatModel],
    sources: Sequence[str],
    draws: int | None,
) -> list[Suite]:
    """The suites that were named; refuses what leaves nothing to do, or would not be heard.

    Raises:
        UsageError: naming what is missing or too much.
    """
    from robench.suite import suite

    found = [suite(name) for name in names]
    if not attacks and not found:
        raise UsageError("nothing to do: name an --attack (robench list attacks) or a --suite (robench list suites)")
    if threats and not attacks:
        raise UsageError(f"--threat goes with --attack; suite {found[0].name} has threats of its own")
    if sources and not attacks and not any(each.roles for each in found):
        raise UsageError(f"--source goes with --attack or a suite of transfers; suite {found[0].name} is white-box")
    if draws is not None and (own := [each.name for each in found if each.smooths]):
        raise UsageError(f"suite {own[0]} says itself over how many draws; leave --draws out")
    return found


def _inference(text: str | None, draws: int | None, average: str | None) -> Inference | None:
    """What `--inference`, `--draws` and `--average` say together.

    Raises:
        UsageError: for `--draws` or `--average` without `--inference`, or values it does not take.
    """
    from robench.inference import parse

    if text is None:
        if draws is not None or average is not None:
            raise UsageError("--draws and --average are for --inference tsi")
        return None
    return parse(text, draws, average)


def _targets(names: Sequence[str], root: Path, *, last: bool = False, quiet: bool = False) -> list[Checkpoint]:
    """The checkpoints of some names, or every one under a folder that is ready.

    Args:
        names: runs; all under `root` when empty.
        root: where runs are.
        last: open the last epoch where a name does not say which.
        quiet: do not say what was left out, nor mind if nothing is left.

    Raises:
        UsageError: if there is nothing.
    """
    from robench.checkpoint import open_checkpoint, runs
    from robench.evaluation import unready
    from robench.terminal import say

    def opened(name: str) -> Checkpoint:
        found = open_checkpoint(name, root)
        named = "@" in name and found.folder.resolve().name != Path(name).name
        return open_checkpoint(f"{name}@last", root) if last and not named and _has_last(found) else found

    if names:
        return [opened(name) for name in names]
    every = [opened(str(folder)) for folder in runs(root)]
    reasons = list(filter(None, map(unready, every)))
    for reason in reasons if not quiet else []:
        say(f"left out: {reason}")
    targets = [each for each in every if not unready(each)]
    if not targets and not quiet:
        raise UsageError(f"there are no checkpoints to evaluate in {root}: robench train rocl, or robench demo")
    return targets


def _has_last(checkpoint: Checkpoint) -> bool:
    return (checkpoint.folder / "last.json").is_file()


def _sources(text: str, targets: Sequence[Checkpoint], root: Path) -> list[list[Checkpoint]]:
    """What `--source` names: one checkpoint, several joined by plus signs as one ensemble, or each target (`all`)."""
    from robench.checkpoint import open_checkpoint

    if text == "all":
        return [[target] for target in targets]
    name = text.rpartition("@")[0] if text.endswith(("@best", "@last")) else text
    whole = any((place / name).is_dir() for place in (Path(), root))  # a name may have a plus sign
    parts = [text] if whole else text.split("+")
    if not all(parts):
        raise UsageError(
            f"--source {text}: an ensemble is CHECKPOINT+CHECKPOINT, with a name on each side of the plus sign"
        )
    return [[open_checkpoint(part, root) for part in parts]]


def _torch_device(name: str, threads: int | None = None) -> torch.device:
    """The device that was asked for, or the best there is; sets the number of CPU threads if one is given.

    Raises:
        UsageError: if it is not there.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, is_there in there.items() if is_there)
    if not there[name]:
        raise UsageError(f"--device {name}: this machine has none that torch can use; try --device auto")
    return torch.device(name)


def _tell(
    ran: Iterable[tuple[Job, Result | Failure, bool]], quiet: bool = False
) -> list[tuple[Result | Failure, bool]]:
    """Say what each cell gave, as it comes."""
    from robench.results import Failure, column, named, safe
    from robench.terminal import say

    told = []
    for _, record, there in ran:
        told.append((record, there))
        via = f" from {record.source.name}" if record.source else ""
        name = named(record.subject, record.cell.inference)
        what = f"{name}{via}: {column(record.cell.attack, record.cell.threat)}"
        if isinstance(record, Failure):
            say(f"FAILED  {what}: {safe(record.reason)}")
        elif not quiet:
            n = record.cell.count
            note = "  (was there already)" if there else f"  {record.seconds:.1f} s"
            norm = "" if record.median_norm is None or record.source else f", median norm {record.median_norm:.3g}"
            accuracy = f"clean {100 * sum(record.clean) / n:.1f} %, robust {100 * sum(record.robust) / n:.1f} %"
            answers = record.cell.inference
            alone = ", not adaptive" if answers and not answers.adaptive and not record.source else ""
            say(f"{what}  {accuracy}{norm}, n {n}{alone}{note}")
    return told


def _finish(told: Sequence[tuple[Result | Failure, bool]], results: Path) -> None:
    """The summary of an evaluation, what its numbers suggest, and its exit code."""
    from robench.reporting import apart, suspicions
    from robench.results import FLAG, Failure, Result, safe
    from robench.terminal import say

    records = apart(record for record, _ in told if isinstance(record, Result))
    flags = {f"{r.subject.name}: {FLAG}{flag}" for r in records for flag in r.flags}
    for text in [*sorted(flags), *suspicions(records)]:
        say(safe(text))

    skipped = sum(there for _, there in told)
    failed = sum(isinstance(record, Failure) for record, _ in told)
    say(f"{len(told)} cells: {len(told) - skipped - failed} new, {skipped} already in {results}, {failed} failed")
    if failed:
        raise SystemExit(1)


def _records(results: Path, dataset: str | None) -> list[Result | Failure]:
    """What is stored, on one data set if one is named.

    Raises:
        UsageError: if the data set leaves nothing.
    """
    from robench.results import Store

    records = list(Store(results).records())
    if not dataset:
        return records
    known = sorted({record.subject.dataset for record in records})
    chosen = [record for record in records if record.subject.dataset == dataset]
    if not chosen:
        raise UsageError(f"--dataset {dataset} leaves none of the results; there are some on {', '.join(known)}")
    return chosen


def _print(
    records: Sequence[Result | Failure],
    form: str,
    table: str,
    out: Path | None,
    results: Path,
    checkpoints: Path | None = None,
) -> None:
    """Render records to stdout or a file."""
    from robench.files import write

    text = _text(records, form, table, file=out is not None, results=results, checkpoints=checkpoints)
    if out is not None:
        write(out, text.encode())
    else:
        click.echo(text, nl=False)


def _render(made: Sequence[Table], records: Sequence[Result | Failure], form: str, checkpoints: Path | None) -> str:
    """Tables in a format for files; HTML has the figures of the records too, and the training curves of runs."""
    from robench.figures import figures, training
    from robench.rendering.html import html
    from robench.rendering.json import json
    from robench.rendering.latex import latex
    from robench.rendering.markdown import markdown

    if form == "latex":
        return latex(made)
    if form == "json":
        return json(made, records)
    if form == "html":
        return html(made, figures(records) + (training(checkpoints) if checkpoints else []))
    return markdown(made)


def _text(
    records: Sequence[Result | Failure],
    form: str,
    table: str,
    *,
    file: bool,
    results: Path,
    checkpoints: Path | None = None,
) -> str:
    """What a report says, as text."""
    from robench import comparison, cost, diagnosis, reporting, terminal
    from robench.rendering.csv import csv

    diagnoses = diagnosis.records(results)
    spent = cost.trained(checkpoints or Path("checkpoints")) if table == "cost" else {}
    if form == "csv" and table in SUITES:
        return comparison.csv(records, SUITES[table])
    if form == "csv" and table == "cost":
        return cost.csv(records, spent, diagnoses)
    if form == "csv":
        return csv(records, "cells" if table == "all" else table, diagnoses)
    if table == "cells":
        raise UsageError("--table cells is for --format csv")
    if table == "cost":
        made = cost.tables(records, spent, diagnoses)
    elif table in SUITES:
        made = comparison.tables(records, SUITES[table], diagnoses=diagnoses)
    else:
        made = reporting.tables(records, table, diagnoses)
    return terminal.text(made, file=file) if form == "terminal" else _render(made, records, form, checkpoints)


def _show(made: Sequence[Table], form: str) -> None:
    """Print tables to stdout."""
    from robench import terminal
    from robench.rendering.markdown import markdown

    click.echo(markdown(made) if form == "markdown" else terminal.text(made), nl=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors a person can mend are one line and exit code 2."""
    import sys

    given = list(sys.argv[1:] if arguments is None else arguments)
    wants_traceback = "--traceback" in given
    given = [argument for argument in given if argument != "--traceback"]
    code = 0
    try:
        code = cli(given, prog_name="robench", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        code = 2
    except click.exceptions.Abort:
        click.echo("stopped; what was finished is kept: run the same command again (train: with --resume)", err=True)
        code = 130
    except (RobenchError, click.ClickException) as error:
        if wants_traceback:
            tracebacks.print_exc()
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        context = getattr(error, "ctx", None)
        hint = f" (robench {context.info_name} --help)" if context and context.parent else ""
        click.echo(f"error: {text}{hint}", err=True)
        code = 2
    except BrokenPipeError:
        code = 1
    except Exception as error:
        if wants_traceback:
            tracebacks.print_exc()
        click.echo(
            f"error: {type(error).__name__}: {error}. This is a fault of robench; the same command with --traceback "
            "shows where",
            err=True,
        )
        code = 70
    sys.exit(code)
