"""The one trainer: it owns data, modes, optimiser, schedule, logging and checkpoints; methods bring only their loss.

Data order, augmentation and attack noise are pure functions of (seed, stage, epoch, image), so a resumed run repeats the
uninterrupted one.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from robench import checkpoint, data, files, unlabelled
from robench.admission import check_extra, check_stages, pseudo_share
from robench.arithmetic import Arithmetic, check_precision
from robench.attacks.pgd import PGD
from robench.augment import as_float, augment
from robench.checkpoint import Checkpoint
from robench.data import Images, Split
from robench.door import frozen
from robench.errors import CheckpointError, TrainingError, UsageError
from robench.meter import Meter, spend
from robench.methods import method_for
from robench.models import Nets
from robench.noise import ImageGenerator, seed_of
from robench.probe import probe
from robench.protocols import Batch, Method, Moment, Monitor, Progress, unwatched
from robench.provenance import provenance
from robench.recipe import Recipe, Stage
from robench.run import Run, check_folder, holds, mark
from robench.stepping import Stepper
from robench.threat import ThreatModel

SAVE_EVERY = 30.0  # seconds between saved states
FULL = "full stage here"  # the progress value that tells how long a smoke run's stage would take in full


@dataclass
class _State:
    """Where a run is, as it is saved: stage, epochs finished in it, best score, pseudo-labels, the cost of stages."""

    stage: int = 0
    epoch: int = 0
    best: float = -1.0
    log: list[dict[str, Any]] = field(default_factory=list)
    pseudo: Tensor | None = None
    cost: list[dict[str, float]] = field(default_factory=list)


def train(run: Run, *, resume: bool = False, monitor: Monitor = unwatched) -> Checkpoint:
    """Train a recipe, stage by stage.

    Args:
        run: what and where.
        resume: go on from the state an earlier, interrupted run left.
        monitor: told about every step.

    Returns:
        The checkpoint to evaluate: the best epoch of the last stage by the validation split, where its method picks by it,
        else the last epoch.

    Raises:
        UsageError: for a recipe that cannot be run, or a folder that holds another run.
        DataError: if the data is absent.
        TrainingError: if the loss stops being finite; the last good state stays.
    """
    files.check_writable(run.folder.parent)
    check_folder(run, resume)
    check_precision(run.recipe, run.device)
    methods = [method_for(stage.method, stage.options) for stage in run.recipe.stage]
    check_extra(run, methods)
    images = data.load(run.recipe.dataset, Split.TRAIN, run.data_root)
    kept, held = data.hold_out(images, run.recipe.validation)
    kept, held = kept.to(run.device), held.to(run.device) if held else None
    if run.steps and held:
        held = held.take(slice(64))
    few = data.labelled(kept, run.recipe.labels, run.seed)
    check_stages(run, methods, images)
    spare = _spare(run, kept, few) if any(map(pseudo_share, methods)) else kept.pixels[:0]
    nets = _initial_nets(run, images)
    _with_heads(run, nets, methods[0], _State(), images)  # which may be refused, so before anything is written
    files.check_writable(run.folder)
    if not holds(run):
        mark(run)
    state, optimiser_state = _restored(run, nets, images) if resume else (_State(), None)
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
        _run_stage(run, nets, stage, method, sets, state, optimiser_state, monitor)
        optimiser_state = None
        state.stage, state.epoch, state.best, state.pseudo = state.stage + 1, 0, -1.0, None
    (run.folder / "state.pt").unlink(missing_ok=True)
    return checkpoint.open_checkpoint(str(run.folder), run.folder.parent)


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


def _with_heads(run: Run, nets: Nets, method: Method, state: _State, images: Images) -> Nets:
    """Add the heads of a stage that is about to begin; a stage that goes on has them already.

    A head that the method keeps, such as a projector, is that of an earlier stage or of the given encoder's checkpoint,
    where there is one.
    """
    if state.epoch == 0:
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
    state: _State,
    optimiser_state: dict[str, Any] | None,
    monitor: Monitor,
) -> None:
    """Train one stage from `state.epoch` to its end, saving as it goes.

    `sets` are the images to train on, those of them whose labels may be read, and those held out.
    """
    kept, few, held = sets
    learning = [p for name in method.trains for p in nets.named(name).parameters()]
    optimiser = Stepper(stage, nets, learning)
    if optimiser_state is not None:
        optimiser.load_state_dict(optimiser_state)
    for parameter in nets.parameters():
        parameter.requires_grad_(False)
    for parameter in learning:
        parameter.requires_grad_(True)
    trial = (min(stage.batch, len(kept)), *kept.shape) if run.compile else None
    arithmetic = Arithmetic(nets, run.recipe, trial)
    epochs = 1 if run.steps else stage.epochs
    if state.epoch == 0:
        (run.folder / "best.json").unlink(missing_ok=True)
    saved = time.monotonic()
    while state.epoch < epochs:
        meter = Meter(run.device)
        if getattr(method, "exact", False):
            means = _solve(run, nets, stage, method, kept, state, monitor)
        else:
            with arithmetic.applied():
                means = _run_epoch(run, nets, stage, method, kept, state, epochs, optimiser, monitor)
        optimiser.after_epoch(state.epoch)
        state.epoch += 1
        row: dict[str, Any] = {"stage": state.stage, "method": stage.method, "epoch": state.epoch, **means}
        last = state.epoch == epochs
        optimiser.exchange()
        if held is not None and "head" in nets.parts:
            row |= validate(nets, held, run.recipe.threat if method.select == "robust" else None, seed=run.seed)
        if held is not None and "head" not in method.trains and _due(stage, state.epoch, last):
            row |= probe(nets, few.take(slice(8 * len(held))) if run.steps else few, held)
        taken = _images_an_epoch(run, stage, method, kept)
        spend(state.cost, state.stage, meter.read(), taken, first=state.epoch == 1)
        state.log.append(row)
        reached = Checkpoint(
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
            provenance=provenance(str(run.device), torch.get_num_threads()) | arithmetic.told,
            cost=(*_before(run), *state.cost),
        )
        score = row.get(f"validation {method.select}", None)
        if score is not None and score > state.best:
            state.best = score
            checkpoint.save(replace(reached, kind="best"), nets)
        if last:
            checkpoint.save(reached, nets)
        optimiser.exchange()
        if last or time.monotonic() - saved > SAVE_EVERY:
            lines = "".join(json.dumps(entry) + "\n" for entry in state.log)
            files.write(run.folder / "metrics.jsonl", lines.encode())
            _save_state(run, nets, optimiser, state)
            saved = time.monotonic()
    optimiser.finish()


def _before(run: Run) -> tuple[Mapping[str, float], ...]:
    """What the encoder that a run starts from has cost; a stage whose cost nobody knows makes the sum unknown too."""
    if run.encoder is None:
        return ()
    return run.encoder.cost or ({},)


def _images_an_epoch(run: Run, stage: Stage, method: Method, kept: Images) -> int:
    """How many images an epoch takes gradient steps on, or solves for."""
    if getattr(method, "exact", False):
        return min(len(kept), run.steps * stage.batch) if run.steps else len(kept)
    batch = min(stage.batch, len(kept))
    return batch * min(len(kept) // batch, run.steps or len(kept))


def _due(stage: Stage, epoch: int, last: bool) -> bool:
    """Whether to look at the features after this epoch."""
    return stage.probe > 0 and (last or epoch % stage.probe == 0)


def _run_epoch(
    run: Run,
    nets: Nets,
    stage: Stage,
    method: Method,
    kept: Images,
    state: _State,
    epochs: int,
    optimiser: Stepper,
    monitor: Monitor,
) -> dict[str, float]:
    """One pass over the training images; returns the mean of each term of the loss and of what else was measured."""
    batch_size = min(stage.batch, len(kept))
    order = unlabelled.order(kept, batch_size, run.seed, "order", state.stage, state.epoch).to(run.device)
    steps = len(order)
    at = Moment(state.epoch, epochs, run.recipe.threat)
    nets.eval()
    for name in method.trains:
        nets.named(name).train()
    totals: dict[str, Tensor] = {}
    done = 0
    taken = min(steps, run.steps or steps)
    began = time.perf_counter()
    for step in range(taken):
        parts = [partial(_batch, run, stage, method, kept, state, ids) for ids in order[step].chunk(stage.accumulate)]
        optimiser.rate(state.epoch + (step + 1) / steps)
        for name, term in optimiser.step(method, nets, parts, at).items():
            totals[name] = totals[name] + term if name in totals else term
        done += 1
        if done == 1 < taken:
            began = time.perf_counter()  # the first step also warms up
        pace = (time.perf_counter() - began) / max(done - 1, 1)
        shown = _shown(totals, done, state)
        if done > 1 or taken == 1:
            shown["steps/s"] = f"{1 / max(pace, 1e-9):.2f}"
        if run.steps:
            shown[FULL] = duration(pace / batch_size * unlabelled.whole(kept) * stage.epochs)
        monitor(Progress(_title(state, stage), state.epoch * taken + done, epochs * taken, shown))
    means = {name: (total / done).item() for name, total in totals.items()}
    whole = all(bool(t.isfinite().all()) for t in nets.state_dict().values() if t.is_floating_point())
    if not whole or not all(torch.isfinite(torch.tensor(value)) for value in means.values()):
        raise TrainingError(
            f"the loss is no longer finite in epoch {state.epoch + 1} of stage {state.stage} ({stage.method}): {means}. "
            f"The last good state is kept; try --set stage.{state.stage}.optimiser.lr={stage.optimiser.lr / 2:g}"
        )
    return means


def _solve(
    run: Run, nets: Nets, stage: Stage, method: Any, kept: Images, state: _State, monitor: Monitor
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


def _title(state: _State, stage: Stage) -> str:
    later = f"  then {stage.method}" + (f" ({state.stage + 1})" if state.stage > 1 else "")
    return later if state.stage else stage.method


def _shown(totals: Mapping[str, Tensor], done: int, state: _State) -> dict[str, str]:
    """What the progress line says: the running means, read from the device only now and then, and the last validation."""
    shown = {}
    if done % 10 == 1 or not next(iter(totals.values())).is_cuda:
        shown = {name: f"{(total / done).item():.3f}" for name, total in totals.items()}
    if state.log and state.log[-1]["stage"] == state.stage:
        shown |= {k: f"{100 * v:.1f} %" for k, v in state.log[-1].items() if k.startswith("validation")}
    return {name.replace("validation", "val"): value for name, value in shown.items()}


def _batch(run: Run, stage: Stage, method: Method, kept: Images, state: _State, ids: Tensor) -> Batch:
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
    """Accuracy on the validation split, clean and (given a threat) under PGD-10; as fractions."""
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


def _save_state(run: Run, nets: Nets, optimiser: Stepper, state: _State) -> None:
    """Write everything a resumed run needs, in one step."""
    stream = io.BytesIO()
    torch.save(
        {
            "identity": run.identity,
            "stage": state.stage,
            "epoch": state.epoch,
            "best": state.best,
            "log": json.dumps(state.log),
            "cost": json.dumps(state.cost),
            "nets": nets.state_dict(),
            "optimiser": optimiser.state_dict(),
            "pseudo": state.pseudo,
        },
        stream,
    )
    content = stream.getvalue()
    files.write(run.folder / "state.pt", hashlib.sha256(content).digest() + content)


def _restored(run: Run, nets: Nets, images: Images) -> tuple[_State, dict[str, Any] | None]:
    """The state an earlier run saved, put into the networks; the beginning when it saved none."""
    path = run.folder / "state.pt"
    if not path.is_file():
        return _State(), None
    content = path.read_bytes()
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        raise CheckpointError(f"{path} is damaged; delete it to train from the beginning")
    saved = torch.load(io.BytesIO(content[32:]), map_location=run.device, weights_only=True)
    state = _State(
        stage=saved["stage"],
        epoch=saved["epoch"],
        best=saved["best"],
        log=json.loads(saved["log"]),
        pseudo=saved.get("pseudo"),
        cost=json.loads(saved.get("cost", "[]")),
    )
    grown = checkpoint.nets_after(run.recipe, state.stage + 1, images.classes, images.shape)
    for name, part in grown.parts.items():
        nets.parts[name] = part.to(run.device)
    nets.load_state_dict(saved["nets"])
    return state, saved["optimiser"]


def smoke(recipe: Recipe, batch: int) -> Recipe:
    """The same recipe with small batches, for a few steps on a machine that could not run it in full."""
    return replace(recipe, stage=tuple(replace(stage, batch=min(stage.batch, batch)) for stage in recipe.stage))
