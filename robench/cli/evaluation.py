"""`robench evaluate`, `robench diagnose` and `robench demo`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import click

from robench import __version__
from robench.cli import naming
from robench.cli.asked import Asked
from robench.cli.launching import Launcher, launched, order
from robench.cli.option import (
    Choice,
    Threat,
    Where,
    checkpoints_option,
    compute_on_runs,
    device_option,
    results_option,
    torch_device,
    track_option,
)
from robench.cli.outside import Outside, outside
from robench.cli.report import print_report
from robench.cli.telling import finish, show_tables, tell, tell_gates
from robench.errors import CheckpointError, UsageError
from robench.threat import ThreatModel

if TYPE_CHECKING:
    from robench.checkpoint import Checkpoint
    from robench.evaluation import Engine
    from robench.gates import Judgement
    from robench.handing import Order
    from robench.inference import Inference
    from robench.job import Job
    from robench.launch import Launch, Piece
    from robench.protocols import Target
    from robench.results import Failure, Result, Store
    from robench.suite import Suite


@click.command(short_help="Attack checkpoints: checkpoints/ -> results/")
@click.argument("checkpoint", nargs=-1, shell_complete=naming.checkpoints)
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    help="An attack: robench list attacks. May repeat.",
    shell_complete=naming.attacks,
)
@click.option(
    "--suite",
    "suites",
    multiple=True,
    help="The columns of a paper's table: robench list suites. May repeat.",
    shell_complete=naming.suites,
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
@click.option("--dataset", help="Evaluate on another data set than the one trained on.", shell_complete=naming.datasets)
@click.option(
    "--inference",
    help="tsi: predict from many random augmentations (tsi@area=0.5,hue=0 for others than the recipe's). Attack it by "
    "eot-pgd or autoattack-rand, which climb through them.",
)
@click.option("--draws", type=int, help="For --inference tsi: augmentations an answer is made of; 30 by default.")
@click.option(
    "--average",
    type=Choice(["probabilities", "votes"]),
    help="For --inference tsi: probabilities (the default) or votes.",
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Of the attacks.")
@click.option("--batch", type=click.IntRange(min=1), default=500, show_default=True, help="Images at once.")
@click.option(
    "--fail-under",
    "thresholds",
    multiple=True,
    metavar="ATTACK=PERCENT",
    help="Exit code 1 when an accuracy is lower: autoattack=45, clean=80. May repeat.",
)
@click.option(
    "--strict", is_flag=True, help="Exit code 6 when something makes a number suspect: what a flag or a look says."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout; all else is on stderr.")
@track_option
@click.option("--quiet", is_flag=True, help="No progress and no line for each cell; failures and thresholds are said.")
@outside
@click.option(
    "--precision",
    type=Choice(["float32", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of white-box searches. What they find counts only if it fools the model in float32; another precision is another "
    "cell.",
)
@click.option("--plan", is_flag=True, help="Show the cells, with passes and hours at most, and attack nothing.")
@launched
@compute_on_runs
@results_option
@click.pass_context
def evaluate(
    context: click.Context,
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
    thresholds: Sequence[str],
    strict: bool,
    as_json: bool,
    trackers: Sequence[str],
    quiet: bool,
    outside: Outside,
    precision: str,
    plan: bool,
    launcher: Launcher,
    where: Where,
    results: Path,
) -> None:
    """Attack CHECKPOINTs (all under checkpoints/ by default) and store a result per cell.

    With --model it attacks a classifier from elsewhere, and checkpoints beside it only if they are named. Cells that are
    there already are skipped. Exit code 1 when a cell failed (the others still ran) or an accuracy is below --fail-under. A
    suite attacks the last epoch, as its paper does, unless a name ends in @best.

    --launcher hands the work to several processes and watches them; robench status says how far they are.
    """
    from robench import gates, launch
    from robench.files import check_writable
    from robench.names import seek
    from robench.registry import ATTACKS

    unheard = {"--json": as_json, "--fail-under": thresholds, "--strict": strict, "--track": trackers}
    if plan and (idle := [name for name, there in unheard.items() if there]):
        raise UsageError(f"--plan attacks nothing, so {idle[0]} has nothing to say: leave one of them away")
    for attack in attacks:
        seek(ATTACKS, attack)
    attacks = [attack.strip() for attack in attacks]  # the same name is the same column
    if not attacks and not suites:
        raise UsageError(_nothing(checkpoint, where.checkpoints))
    wanted = _suites(suites, attacks, threats, sources, draws)
    if wanted and precision != "float32":
        raise UsageError(f"--precision {precision} goes with --attack; suite {wanted[0].name} is a table in float32")
    answers = _inference(inference, draws, average)
    handed = order(launcher, context, lambda needed: checkpoint if "all" in sources else list(filter(None, needed)))
    mine = launch.task(launcher.task) if launcher.task else None
    tried = [*attacks, *(column.attack for suite in wanted for column in suite.columns)]
    limits = [gates.parse(text, tried) for text in thresholds]
    outside.check()
    if not plan:
        check_writable(results)

    from robench.evaluation import Engine, plan_suite
    from robench.results import Store, safe
    from robench.signals import terminating
    from robench.terminal import say, watched
    from robench.trackers import result_row, trackers_for, tracking

    for each in limits if not quiet else []:
        if 0 < each.least < 1:
            say(f"note: --fail-under {each.attack}={each.least:g} is {each.least:g} per cent, not {100 * each.least:g}")
    kept = trackers_for(trackers)
    # what a model from elsewhere prints is no result
    with watched(quiet) as monitor, terminating(), redirect_stdout(sys.stderr):
        engine = Engine(where.device, where.data_root, batch, monitor, lambda text: say(safe(text)))
        foreign = outside.opened(engine, dataset, quiet)
        others: list[Target] = [foreign] if foreign else []
        jobs: list[Job] = []
        if attacks:
            targets = [*others, *(_targets(checkpoint, where.checkpoints) if checkpoint or not foreign else [])]
            jobs += engine.plan(
                targets,
                attacks=attacks,
                threats=threats,
                sources=[source for text in sources for source in _sources(text, targets, where.checkpoints)],
                count=count,
                seed=seed,
                dataset=dataset,
                inference=answers,
                precision=precision,
            )
        if wanted:
            named_ones = _targets(checkpoint, where.checkpoints, last=True) if checkpoint or not foreign else []
            targets = [*others, *named_ones]
            roles = any(suite.roles for suite in wanted)
            named = [text for text in sources if text != "all"]
            candidates = _targets(named, where.checkpoints, last=True, quiet=True) if roles else []
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
        wanted_jobs = list({job.cell.key: job for job in jobs}.values())
        if plan:
            from robench.planning import table

            made = [table(engine, wanted_jobs, Store(results))]
            if handed is not None:
                from robench import launching

                made.append(launching.plan(engine, wanted_jobs, Store(results), handed))
        else:
            told = tell(_ran(engine, wanted_jobs, Store(results), handed, mine), quiet)
    if plan:
        show_tables(made, "terminal")
        return
    judged = gates.judged(limits, [record for record, _ in told])
    config = {"attacks": " ".join(tried), "seed": seed}
    with tracking(kept, results.resolve().name, results, config, say) as rows:
        for record, _ in told:
            rows(result_row(record))
    if as_json:
        click.echo(_document(told, judged), nl=False)
    missed = tell_gates(judged, quiet)
    finish(told, results, quiet=quiet, missed=missed, strict=strict, doubts=foreign.doubts if foreign else ())


def _document(told: Sequence[tuple[Result | Failure, bool]], judged: Sequence[Judgement]) -> str:
    """What `--json` prints: tables, cells and failures as `robench report --format json` has them, and the thresholds."""
    import json

    from robench import reporting
    from robench.rendering.json import json as rendered
    from robench.spec import plain

    records = [record for record, _ in told]
    found = json.loads(rendered(reporting.tables(records, intervals=True), records))
    found["new"] = [record.cell.key for record, there in told if not there]
    found["thresholds"] = [plain(each) for each in judged]
    return json.dumps(found, indent=1, allow_nan=False) + "\n"


def _ran(
    engine: Engine,
    jobs: Sequence[Job],
    store: Store,
    handed: Order | None,
    mine: tuple[Launch, Sequence[Piece]] | None,
) -> Iterator[tuple[Job, Result | Failure, bool]]:
    """Run jobs here, have other processes run them, or run what this process was handed."""
    from robench import launching

    if handed is not None:
        return launching.run(engine, jobs, store, handed)
    return launching.work(engine, jobs, store, *mine) if mine else engine.run(jobs, store)


@click.command(short_help="Look for signs of masked gradients: indicators G1 to G16.")
@click.argument("checkpoint", required=False, shell_complete=naming.checkpoints)
@click.option("--threat", type=Threat(), help="By default what the checkpoint was trained against.")
@click.option("--source", "sources", multiple=True, metavar="CHECKPOINT", help="A surrogate for transfer. May repeat.")
@click.option("--count", type=click.IntRange(min=1), help="The first COUNT test images; 256 by default, if there are.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@click.option("--corners", type=click.IntRange(min=1), default=200, show_default=True, help="Random corners G16 tries.")
@click.option("--format", "form", type=Choice(["terminal", "markdown"]), default="terminal", show_default=True)
@click.option("--dataset", help="For --model: whose test images; cifar10 unless named.")
@outside
@compute_on_runs
@results_option
def diagnose(
    checkpoint: str | None,
    threat: ThreatModel | None,
    sources: Sequence[str],
    count: int | None,
    seed: int,
    corners: int,
    form: str,
    dataset: str | None,
    outside: Outside,
    where: Where,
    results: Path,
) -> None:
    """Look for signs that the attacks on a CHECKPOINT (or a --model) fail for a reason other than robustness.

    Passing every indicator does not prove robustness. Exit code 1 when one fails.
    """
    from robench import diagnosis
    from robench.checkpoint import open_checkpoint
    from robench.files import check_writable

    if (checkpoint is None) == (outside.model is None):
        raise UsageError("name one CHECKPOINT, or a classifier from elsewhere by --model")
    if dataset and outside.model is None:
        raise UsageError("--dataset goes with --model; a checkpoint is looked at on the data set it was trained on")
    outside.check()
    check_writable(results)

    from robench.evaluation import Engine
    from robench.indicators import diagnosed

    engine = Engine(where.device, where.data_root)
    others = [open_checkpoint(text, where.checkpoints) for text in sources]
    target: Target | None = outside.opened(engine, dataset)
    if target is None:
        target = open_checkpoint(checkpoint or "", where.checkpoints)
    if any(other.sha256 == target.sha256 for other in others):
        raise UsageError(
            f"--source {target.name}: a model is no surrogate of itself; name another, or leave --source away"
        )
    made = diagnosed(engine, target, threat=threat, sources=others, count=count, seed=seed, corners=corners)
    from robench.reporting import diagnosis_table

    path = diagnosis.put(made, results)
    show_tables([diagnosis_table(made)], form)
    click.echo(f"stored: {path}", err=True)
    if made.failed:
        raise SystemExit(1)


@click.command(short_help="The main job on real digits, in minutes.")
@checkpoints_option
@results_option
@device_option
@launched
@click.pass_context
def demo(context: click.Context, checkpoints: Path, results: Path, device: str, launcher: Launcher) -> None:
    """Train five methods on real digits, attack them all, print the tables: the main job in a few minutes.

    A smoke-sized experiment on 8x8 images, not CIFAR-10. Run it again and everything is there already. With --launcher models
    are trained by other processes and then attacked by others; the tables are the same.
    """
    from robench import demo as plan
    from robench import launch
    from robench.files import check_writable
    from robench.signals import terminating
    from robench.terminal import say, watched

    handed = order(launcher, context)
    mine = launch.task(launcher.task) if launcher.task else None
    check_writable(checkpoints)
    check_writable(results)
    if mine:
        with watched() as monitor:
            tell(plan.work(checkpoints, results, torch_device(device), monitor, *mine))
        return
    say(f"robench {__version__}: {plan.SUMMARY}")
    with watched() as monitor, terminating() if handed else nullcontext():
        told = tell(plan.run(checkpoints, results, torch_device(device), monitor, handed, say), quiet=True)
    print_report([record for record, _ in told], Asked("terminal"), None, results)
    say(f"checkpoints: {checkpoints}   results: {results}")
    say("next: robench report --format markdown, robench train rocl, robench evaluate --attack autoattack")
    finish(told, results)


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
    if threats and not attacks:
        raise UsageError(f"--threat goes with --attack; suite {found[0].name} has threats of its own")
    if sources and not attacks and not any(each.roles for each in found):
        raise UsageError(f"--source goes with --attack or a suite of transfers; suite {found[0].name} is white-box")
    if draws is not None and (own := [each.name for each in found if each.smooths]):
        raise UsageError(f"suite {own[0]} says itself over how many draws; leave --draws out")
    return found


def _nothing(names: Sequence[str], root: Path) -> str:
    """What an evaluation lacks that has no attack: that, and the checkpoints that are not there either."""
    text = "nothing to do: name an --attack (robench list attacks) or a --suite (robench list suites)"
    if not names:
        return text
    from robench.checkpoint import open_checkpoint

    for name in names:
        try:
            open_checkpoint(name, root)
        except CheckpointError as error:
            return f"{text}; and {error}"
    return f"{text}, such as robench evaluate {' '.join(names)} --attack pgd-20"


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
    from robench.terminal import say

    def opened(name: str) -> Checkpoint:
        found = open_checkpoint(name, root)
        named = "@" in name and found.folder.resolve().name != Path(name).name
        return open_checkpoint(f"{name}@last", root) if last and not named and _has_last(found) else found

    if names:
        return [opened(name) for name in names]
    every = [opened(str(folder)) for folder in runs(root)]
    reasons = list(filter(None, (each.unready for each in every)))
    for reason in reasons if not quiet else []:
        say(f"left out: {reason}")
    targets = [each for each in every if not each.unready]
    if not targets and not quiet:
        if any((root / f"{kind}.json").is_file() for kind in ("best", "last")):
            raise UsageError(f"--checkpoints {root} is one run, and not the folder of runs: robench evaluate {root}")
        raise UsageError(f"there are no checkpoints to evaluate in {root}: robench train rocl, or robench demo")
    return targets


def _has_last(checkpoint: Checkpoint) -> bool:
    return (checkpoint.folder / "last.json").is_file()


def _sources(text: str, targets: Sequence[Target], root: Path) -> list[list[Target]]:
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
    members = [open_checkpoint(part, root) for part in parts]
    if len({member.sha256 for member in members}) < len(members):
        raise UsageError(f"--source {text}: an ensemble holds each checkpoint once; one stands twice here")
    return [[*members]]
