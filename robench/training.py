"""The one trainer: it owns data, modes, optimiser, schedule, logging and checkpoints; methods bring only their loss.

Data order, augmentation and attack noise are pure functions of (seed, stage, epoch, image), and what code from elsewhere draws
from the global generator is one of (seed, stage, epoch, step), so a resumed run repeats the uninterrupted one, bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from robench import checkpoint, data, distributed, files, parallel, unlabelled
from robench import state as states
from robench.admission import check_extra, check_stages, pseudo_share
from robench.arithmetic import Arithmetic, check_precision
from robench.attacks.pgd import PGD
from robench.augment import as_float, augment
from robench.checkpoint import Checkpoint
from robench.data import Images, Split
from robench.device import exhausted, halving, named
from robench.door import frozen
from robench.errors import CheckpointError, TrainingError, UsageError
from robench.gain import Gain
from robench.keeping import LOOK_EVERY, Health, Keeper, log
from robench.methods import method_for
from robench.models import Nets
from robench.noise import ImageGenerator, seed_of
from robench.probe import probe
from robench.protocols import Batch, Method, Moment, Monitor, Progress, unwatched
from robench.provenance import provenance
from robench.recipe import Recipe, Stage
from robench.run import Run, check_folder, clear, finished, holds, mark
from robench.signals import Asked
from robench.state import State
from robench.stepping import Stepper
from robench.threat import ThreatModel

FULL = "full stage here"  # the progress value that tells how long a smoke run's stage would take in full


def train(run: Run, *, resume: bool = True, monitor: Monitor = unwatched, asked: Asked | None = None) -> Checkpoint:
    """Train a recipe, stage by stage; what an interrupted run of it has left in the folder is gone on with.

    Args:
        run: what and where.
        resume: False to begin again, whatever an interrupted run has left.
        monitor: told about every step.
        asked: looked at after every step, see `signals.listening`.

    Returns:
        The checkpoint to evaluate: the best epoch of the last stage by the validation split, where its method picks by it,
        else the last epoch. At once if the folder holds it already.

    Raises:
        UsageError: for a recipe that cannot be run, or a folder that holds another run, or that another process trains into.
        DataError: if the data is absent.
        TrainingError: if the loss stops being finite, or an attack inside a method gains nothing over an epoch; the last good
            state stays.
        StoppedError: if it was asked to stop; the same call goes on where it stopped.
        StoreError: if a file cannot be written; what was written before is whole.
    """
    files.check_writable(run.folder.parent)
    if run.steps and run.recipe.labels < 1:
        run = _with_labels(run)
    with ExitStack() as held:
        with distributed.first() as leads:
            if leads and run.folder.is_dir():
                held.enter_context(files.lock(run.folder))
                checkpoint.settle(run.folder)
            if leads:
                check_folder(run, resume)
        if not run.steps and finished(run):
            return checkpoint.open_checkpoint(str(run.folder), run.folder.parent)
        devices = [run.device] if run.device.type == "cuda" else []
        held.enter_context(torch.random.fork_rng(devices=devices))
        return _train(run, resume, monitor, asked or Asked(), held)


def _train(run: Run, resume: bool, monitor: Monitor, asked: Asked, lock: ExitStack) -> Checkpoint:
    check_precision(run.recipe, run.device)
    parallel.check_compiled(run.compile)
    methods = [method_for(stage.method, stage.options) for stage in run.recipe.stage]
    check_extra(run, methods)
    images = data.load(run.recipe.dataset, Split.TRAIN, run.data_root)
    kept, held = data.hold_out(images, run.recipe.validation)
    kept, held = kept.to(run.device), held.to(run.device) if held else None
    if run.steps and held:
        held = held.take(slice(64))
    few = data.labelled(kept, run.recipe.labels, run.seed)
    check_stages(run, methods, images)
    for number, (stage, method) in enumerate(zip(run.recipe.stage, methods, strict=True)):
        batch = min(stage.batch, len(few if method.supervised else kept))
        parallel.check(number, stage.method, method, batch, stage.accumulate)
    spare = _spare(run, kept, few) if any(map(pseudo_share, methods)) else kept.pixels[:0]
    nets = _initial_nets(run, images)
    _with_heads(run, nets, methods[0], State(), images)  # which may be refused, so before anything is written
    with distributed.first() as leads:
        if leads:
            _open_folder(run, resume, lock)
    state, optimiser_state = states.restore(run, nets, images)
    while state.stage < len(methods):
        stage, method = run.recipe.stage[state.stage], methods[state.stage]
        chosen = few if method.supervised else kept
        if share := pseudo_share(method):
            if state.pseudo is None:
                state.pseudo = unlabelled.pseudo_labels(nets, spare)
                nets.encoder.load_state_dict(_initial_nets(run, images, state.stage).encoder.state_dict())
            chosen = unlabelled.mixed(few, spare, state.pseudo, share=share, whole=len(kept))
        nets = _with_heads(run, nets, method, state, images)
        sets = chosen, few, held
        learning = [p for name in method.trains for p in nets.named(name).parameters()]
        optimiser = Stepper(stage, nets, learning)
        if optimiser_state is not None:
            optimiser.load_state_dict(optimiser_state)
            optimiser_state = None
        keeper = Keeper(run, nets, optimiser, state, images, asked, _on_an_encoder(run, methods, state.stage))
        try:
            _run_stage(run, nets, stage, method, sets, keeper, learning, monitor)
        except (RuntimeError, MemoryError) as error:
            if not exhausted(error):
                raise
            raise TrainingError(_too_large(run, stage, state.stage, method)) from error
        state.next_stage()
    with distributed.first() as leads:
        if leads:
            files.remove(states.path_of(run))
    return checkpoint.open_checkpoint(str(run.folder), run.folder.parent)


def _with_labels(run: Run) -> Run:
    """A smoke run whose share of labels leaves every class an image, which on a few images takes more than on many."""
    kept, _ = data.hold_out(data.load(run.recipe.dataset, Split.TRAIN, run.data_root), run.recipe.validation)
    smallest = data.smallest_class(kept)
    if not smallest or round(run.recipe.labels * smallest):
        return run
    run.tell(
        f"labels={run.recipe.labels:g} leaves a class of {kept.name} without an image; this smoke run uses "
        f"{1 / smallest:.4g}: one image of the smallest class"
    )
    return replace(run, recipe=replace(run.recipe, labels=1 / smallest))


def _open_folder(run: Run, resume: bool, lock: ExitStack) -> None:
    """Make a run's folder its own."""
    new = not run.folder.is_dir()
    files.check_writable(run.folder)
    if new:
        lock.enter_context(files.lock(run.folder))
    if not resume:
        clear(run)
    if not holds(run):
        mark(run)


def _too_large(run: Run, stage: Stage, number: int, method: Method) -> str:
    """What to say when a step does not fit into memory.

    Nothing is halved behind one's back: batch statistics, and of some methods the loss, are of the images that pass at once.
    """
    parts, fewest = stage.accumulate, getattr(method, "fewest", 1)
    said = (
        f"stage {number} ({stage.method}) does not fit into the memory of {run.device} with {stage.batch} images a step"
        + (f" in {parts} parts" if parts > 1 else "")
    )
    ways = []
    if fewest == 1 and not getattr(method, "exact", False) and stage.batch >= 2 * parts:
        ways.append(f"--set stage.{number}.accumulate={2 * parts} takes the same images in {2 * parts} parts")
    if stage.batch // 2 >= max(fewest, parts):
        ways.append(f"--set stage.{number}.batch={stage.batch // 2} takes fewer")
    if not ways:
        return f"{said}, and it cannot be fewer: take a smaller --model, or a device with more memory"
    return f"{said}. {', or '.join(ways)}: another run, so with another --out"


def _spare(run: Run, kept: Images, few: Images) -> Tensor:
    """The pixels of the images without labels: those that the share of labels leaves out, then the extra ones.

    A smoke run needs none: where there are none, the labelled ones stand for them.

    Raises:
        UsageError: if the share of labels is so large that none is left.
    """
    parts = [data.unlabelled(kept, run.recipe.labels, run.seed)]
    if run.recipe.extra:
        parts.append(unlabelled.pixels_like(run.recipe.extra, kept, run.data_root).to(run.device))
    pixels = torch.cat(parts)
    if not len(pixels) and not run.steps:
        raise UsageError(f"labels={run.recipe.labels:g} leaves no image without a label: --set labels=0.1")
    return pixels if len(pixels) else few.pixels


def _initial_nets(run: Run, images: Images, stage: int = 0) -> Nets:
    """Networks before the first stage: random by the seed, or with the given encoder; random before a later one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(run.seed, "encoder", stage) if stage else seed_of(run.seed, "encoder"))
        nets = checkpoint.nets_after(run.recipe, 0, images.classes, images.shape)
    if run.encoder and not stage:
        nets.encoder.load_state_dict(run.encoder.load().encoder.state_dict())
    return nets.to(run.device)


def _with_heads(run: Run, nets: Nets, method: Method, state: State, images: Images) -> Nets:
    """Add the heads of a stage that is about to begin; a stage that goes on has them already.

    A head that the method keeps, such as a projector, is that of an earlier stage or of the given encoder's checkpoint,
    where there is one.
    """
    if state.fresh:
        keeps = getattr(method, "keeps", ())
        given = run.encoder.load().parts if run.encoder and keeps else nn.ModuleDict()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(run.seed, "heads", state.stage))
            for name, head in method.heads(nets.encoder.features, images.classes).items():
                for parts in (given, nets.parts) if name in keeps else ():
                    if name in parts:
                        head.load_state_dict(_fitting(parts[name], head, name, state.stage))
                nets.parts[name] = head.to(run.device)
    return nets


def _fitting(old: nn.Module, new: nn.Module, name: str, stage: int) -> dict[str, Tensor]:
    """The weights of a head that is taken along.

    Raises:
        CheckpointError: if it has another shape than the stage's own.
    """
    theirs, ours = ({key: tuple(t.shape) for key, t in part.state_dict().items()} for part in (old, new))
    if theirs != ours:
        raise CheckpointError(
            f"the {name} that the encoder comes with has the shapes {sorted(theirs.values())}, and stage {stage} wants "
            f"{sorted(ours.values())}: set stage.{stage}.options as in the recipe that trained it"
        )
    return old.state_dict()


def _run_stage(
    run: Run,
    nets: Nets,
    stage: Stage,
    method: Method,
    sets: tuple[Images, Images, Images | None],
    keeper: Keeper,
    learning: list[nn.Parameter],
    monitor: Monitor,
) -> None:
    """Train one stage from where the state is to its end, saving as it goes.

    `sets` are the images to train on, those of them whose labels may be read, and those held out; `learning` what moves.
    """
    kept, few, held = sets
    state, optimiser = keeper.state, keeper.optimiser
    for parameter in nets.parameters():
        parameter.requires_grad_(False)
    for parameter in learning:
        parameter.requires_grad_(True)
    trial = (min(stage.batch, len(kept)), *kept.shape) if run.compile else None
    arithmetic = Arithmetic(nets, run.recipe, trial)
    if not getattr(method, "exact", False):
        method = parallel.shared(method, nets)
    epochs = 1 if run.steps else stage.epochs
    if state.fresh and distributed.leads():
        files.remove(run.folder / "best.json")
    while state.epoch < epochs:
        if getattr(method, "exact", False):
            means = _solve(run, nets, stage, method, kept, state, monitor)
            taken = min(len(kept), run.steps * stage.batch) if run.steps else len(kept)
        else:
            with arithmetic.applied():
                means = _run_epoch(run, nets, stage, method, kept, keeper, epochs, monitor)
            taken = (state.step - keeper.counted) * min(stage.batch, len(kept))
        optimiser.after_epoch(state.epoch)
        state.epoch, state.step, state.totals, keeper.counted = state.epoch + 1, 0, {}, 0
        row: dict[str, Any] = {"stage": state.stage, "method": stage.method, "epoch": state.epoch, **means}
        last = state.epoch == epochs
        _seed(run, state)
        optimiser.exchange()
        if held is not None and "head" in nets.parts:
            row |= validate(nets, held, run.recipe.threat if method.select == "robust" else None, seed=run.seed)
        if held is not None and "head" not in method.trains and _due(stage, state.epoch, last):
            row |= probe(nets, few.take(slice(8 * len(held))) if run.steps else few, held)
        keeper.account(taken)
        state.log.append(row)
        run.track(row)
        reached = _reached(run, kept, state, row, arithmetic)
        score = row.get(f"validation {method.select}", None)
        if score is not None and score > state.best:
            state.best = score
            if distributed.leads():
                checkpoint.save(replace(reached, kind="best"), nets)
        if last and distributed.leads():
            log(run, state)
            checkpoint.save(reached, nets)
        optimiser.exchange()
        if (last and state.stage + 1 < len(run.recipe.stage)) or (not last and keeper.due):
            keeper.save()
    optimiser.finish()


def _reached(run: Run, kept: Images, state: State, row: Mapping[str, Any], arithmetic: Arithmetic) -> Checkpoint:
    """The checkpoint of an epoch that has just ended, before its weights are written."""
    return Checkpoint(
        folder=run.folder,
        kind="last",
        recipe=run.recipe,
        seed=run.seed,
        stages=state.stage + 1,
        epoch=state.epoch,
        classes=kept.classes,
        shape=kept.shape,
        sha256="",
        metrics={key: value for key, value in row.items() if isinstance(value, float)},
        provenance=provenance(named(run.device), torch.get_num_threads())
        | arithmetic.told
        | ({"processes": distributed.world()} if distributed.world() > 1 else {}),
        cost=(*_before(run), *state.cost),
    )


def _before(run: Run) -> tuple[Mapping[str, float], ...]:
    """What the encoder that a run starts from has cost; a stage whose cost nobody knows makes the sum unknown too."""
    if run.encoder is None:
        return ()
    return run.encoder.spent or ({},)


def _on_an_encoder(run: Run, methods: Sequence[Method], stage: int) -> bool:
    """Whether a stage puts a head on an encoder that was given, or that an earlier stage trained without one."""
    before = run.encoder is not None or any("head" not in method.trains for method in methods[:stage])
    return "head" in methods[stage].trains and before


def _due(stage: Stage, epoch: int, last: bool) -> bool:
    """Whether to look at the features after this epoch."""
    return stage.probe > 0 and (last or epoch % stage.probe == 0)


def _run_epoch(
    run: Run,
    nets: Nets,
    stage: Stage,
    method: Method,
    kept: Images,
    keeper: Keeper,
    epochs: int,
    monitor: Monitor,
) -> dict[str, float]:
    """The rest of one pass over the training images; returns the mean of each term of the loss and of what was measured."""
    state, optimiser = keeper.state, keeper.optimiser
    batch_size = min(stage.batch, len(kept))
    order = unlabelled.order(kept, batch_size, run.seed, "order", state.stage, state.epoch).to(run.device)
    steps = len(order)
    at = Moment(state.epoch, epochs, run.recipe.threat)
    nets.eval()
    for name in method.trains:
        nets.named(name).train()
    taken = min(steps, run.steps or steps)
    began, start = time.perf_counter(), state.step
    health, gain = Health(run, stage, state), Gain(run, stage, state)
    for step in range(start, taken):
        _seed(run, state)
        parts = [
            partial(_batch, run, stage, method, kept, state, ids)
            for ids in map(distributed.own, order[step].chunk(stage.accumulate))
        ]
        optimiser.rate(state.epoch + (step + 1) / steps)
        for name, term in optimiser.step(method, nets, parts, at, health.note).items():
            state.totals[name] = state.totals[name] + term if name in state.totals else term
        state.step = step + 1
        gain.note()
        done = state.step - start
        if done == 1 < taken - start:
            began = time.perf_counter()  # the first step also warms up
        pace = (time.perf_counter() - began) / max(done - 1, 1)
        shown = _shown(state)
        if done > 1 or taken - start == 1:
            shown["steps/s"] = f"{1 / max(pace, 1e-9):.2f}"
        if run.steps:
            shown[FULL] = duration(pace / batch_size * unlabelled.whole(kept) * stage.epochs)
        monitor(Progress(_title(state, stage), state.epoch * taken + state.step, epochs * taken, shown))
        if keeper.due:
            health.check(nets)
            keeper.account((state.step - keeper.counted) * batch_size)
            keeper.counted = state.step
            keeper.save()
    health.check(nets)
    means = {name: (total / taken).item() for name, total in state.totals.items()}
    gain.check(means)
    return means


def _seed(run: Run, state: State) -> None:
    """Set the global generator, from which layers such as dropout draw, to where it always is at this step."""
    torch.manual_seed(seed_of(run.seed, "global", state.stage, state.epoch, state.step))


def _solve(
    run: Run, nets: Nets, stage: Stage, method: Any, kept: Images, state: State, monitor: Monitor
) -> dict[str, float]:
    """A stage whose method finds its weights at once; returns what it measured."""
    count = min(len(kept), run.steps * stage.batch) if run.steps else len(kept)
    began = time.perf_counter()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(0, count, stage.batch):
            part = slice(first, min(first + stage.batch, count))
            yield kept.x(part), kept.y[part]
            monitor(Progress(_title(state, stage), part.stop, count + 1))

    nets.eval()
    found: dict[str, float] = method.solve(nets, batches())
    shown = {name: f"{value:.3g}" for name, value in found.items()}
    if run.steps:
        shown[FULL] = duration((time.perf_counter() - began) / count * len(kept))
    monitor(Progress(_title(state, stage), count + 1, count + 1, shown))
    return found


def duration(seconds: float) -> str:
    """A time a person can grasp: `40 s`, `12 min`, `3.1 h` or `45 days`."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{1 if name == 'h' else 0}f} {name}"
    return f"{seconds / 86400:.0f} days"


def _title(state: State, stage: Stage) -> str:
    later = f"  then {stage.method}" + (f" ({state.stage + 1})" if state.stage > 1 else "")
    return later if state.stage else stage.method


def _shown(state: State) -> dict[str, str]:
    """What the progress line says: the running means, read from the device only now and then, and the last validation."""
    shown = {}
    if state.step % LOOK_EVERY == 1 or not next(iter(state.totals.values())).is_cuda:
        shown = {name: f"{(total / state.step).item():.3f}" for name, total in state.totals.items()}
    if state.log and state.log[-1]["stage"] == state.stage:
        shown |= {k: f"{100 * v:.1f} %" for k, v in state.log[-1].items() if k.startswith("validation")}
    return {name.replace("validation", "val"): value for name, value in shown.items()}


def _batch(run: Run, stage: Stage, method: Method, kept: Images, state: State, ids: Tensor) -> Batch:
    """The views, labels and noise of some images at this epoch, whose numbers are those of `unlabelled.order`."""
    index = ids % len(kept)
    x = kept.pixels[index]
    place = (run.seed, state.stage, state.epoch)
    views = tuple(
        augment(x, stage.augment, ImageGenerator(seed_of(*place, "view", number), ids, run.device))
        if view == "augmented"
        else as_float(x)
        for number, view in enumerate(method.views)
    )
    return Batch(views, kept.y[index], ImageGenerator(seed_of(*place, "attack"), ids, run.device))


def validate(nets: Nets, held: Images, threat: ThreatModel | None, *, seed: int, batch: int = 500) -> dict[str, float]:
    """Accuracy on the validation split, clean and (given a threat) under PGD-10; as fractions.

    Where `batch` images do not fit into memory, fewer pass at once, the same images with the same noise; then `images
    validated at once` says how many.
    """
    most = min(batch, len(held))
    found, at_once = halving(lambda batch: _validated(nets, held, threat, seed, batch), most)
    return found if at_once == most else {**found, "images validated at once": float(at_once)}


def _validated(nets: Nets, held: Images, threat: ThreatModel | None, seed: int, batch: int) -> dict[str, float]:
    clean = robust = 0
    with frozen(nets):
        for first in range(0, len(held), batch):
            part = slice(first, first + batch)
            x, y = held.x(part), held.y[part]
            with torch.no_grad():
                right = nets(x).argmax(1) == y
            clean += int(right.sum())
            if threat is not None and right.any():
                ids = torch.arange(first, first + len(y), device=x.device)[right]
                noise = ImageGenerator(seed_of(seed, "validation"), ids, x.device)
                adv = PGD(threat, steps=10)(nets, x[right], y[right], generator=noise)
                with torch.no_grad():
                    robust += int((nets(adv).argmax(1) == y[right]).sum())
    found = {"validation clean": clean / len(held)}
    return found if threat is None else {**found, "validation robust": robust / len(held)}


def smoke(recipe: Recipe, batch: int) -> Recipe:
    """The same recipe with small batches, for a few steps on a machine that could not run it in full."""
    return replace(recipe, stage=tuple(replace(stage, batch=min(stage.batch, batch)) for stage in recipe.stage))
