"""The evaluation engine: plans cells, runs attacks behind the door, and decides itself what counts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from robench import data, exhibits, sharing, verdict
from robench.attacks import attack_for, options_of
from robench.checkpoint import Checkpoint
from robench.data import Images, Split
from robench.device import named
from robench.door import Door, Ensemble, frozen
from robench.errors import AttackError, CheckpointError, UsageError
from robench.inference import Inference
from robench.job import Job, Source, in_order
from robench.meter import Meter
from robench.part import Part, Span, gaps, together
from robench.protocols import Attack, Monitor, Target, unheard, unwatched
from robench.provenance import provenance
from robench.recipe import Recipe
from robench.registry import ATTACKS, DATASETS
from robench.results import Cell, Failure, Result, Store
from robench.search import check_search
from robench.smoothed import Glimpse, Smoothed
from robench.spec import digest, plain
from robench.suite import Suite
from robench.threat import ThreatModel

RESTLESS = "answers differently each time, so a transfer from it is one of many"
QUERIES = ("score-based", "decision-based")  # attacks that need no gradients

Watch: TypeAlias = Callable[[float, str], None]


@dataclass
class Engine:
    """Runs jobs on one device, keeping data and networks between them.

    Attributes:
        device: where it computes.
        data_root: where data sets are kept.
        batch: the most images an attack gets at once; also how many make a part.
        monitor: told about every pass.
        tell: told what a person should know as it happens, such as a damaged part, or whom it waits for.
    """

    device: torch.device
    data_root: Path = Path("data")
    batch: int = 500
    monitor: Monitor = unwatched
    tell: Callable[[str], None] = unheard
    _images: dict[tuple[str, int | None], Images] = field(default_factory=dict)
    _nets: dict[str, nn.Module] = field(default_factory=dict)
    _probes: dict[tuple[str, str], verdict.Probe] = field(default_factory=dict)
    _fits: tuple[str, int] = ("", 0)
    _crafting: tuple[object, ...] = ()
    _crafted: dict[Span, verdict.Crafted] = field(default_factory=dict)

    def give(self, images: Images) -> None:
        """Take these as the test images of the data set they are named after."""
        self._images[images.name, None] = images.to(self.device)

    def images(self, dataset: str, count: int | None) -> Images:
        """The first `count` test images of a data set (all when None), on the device.

        Raises:
            UsageError: if there are not that many.
        """
        if (dataset, count) not in self._images:
            images = self._images.get((dataset, None))
            if images is None:
                images = data.load(dataset, Split.TEST, self.data_root)
            if count is not None and not 1 <= count <= len(images):
                raise UsageError(f"--count {count}: {dataset} has {len(images):,} test images; use 1 to {len(images)}")
            self._images[dataset, count] = images.take(slice(count)).to(self.device)
        return self._images[dataset, count]

    def plan(
        self,
        checkpoints: Sequence[Target],
        *,
        attacks: Sequence[str],
        threats: Sequence[ThreatModel] = (),
        sources: Sequence[Target | Sequence[Target]] = (),
        count: int | None = None,
        seed: int = 0,
        dataset: str | None = None,
        inference: Inference | None = None,
        precision: str = "float32",
    ) -> list[Job]:
        """Every cell of checkpoints x attacks x threats (x sources), checked before anything runs.

        Args:
            checkpoints: what to attack.
            attacks: names with options, as `attack_for` reads them.
            threats: the balls; when empty, what each checkpoint was trained against, or its data set's usual one.
            sources: craft on these and score on the checkpoints (transfer), a list of them being one ensemble; white-box
                when empty.
            count: how many test images; all when None.
            seed: of the attacks.
            dataset: evaluate on this one instead of the one each checkpoint was trained on.
            inference: how the checkpoints answer, where that is more than one look. Sources look once.
            precision: of white-box searches; verdicts are float32 whatever it is.

        Raises:
            UsageError: for unknown names, a count beyond the test set, or an attack, model or device without that precision.
            CheckpointError: for a damaged checkpoint, one without a head, or of other images or classes than the data set.
        """
        jobs = []
        every = [Source(tuple(source) if isinstance(source, Sequence) else (source,)) for source in sources]
        for checkpoint in checkpoints:
            name = dataset or checkpoint.dataset
            images = self.images(name, count)
            for each in (checkpoint, *(member for source in every for member in source.members)):
                check_fits(each, images)
                self.loaded(each)
            others: list[Source | None] = [s for s in every if checkpoint.sha256 not in s.sha256] if every else [None]
            for left in every:
                if len(left.members) > 1 and left not in others:
                    self.tell(f"{checkpoint.name} is a member of {left.name}, so it is no target of it")
            for source in others:
                for text in attacks:
                    check_gradients(text, source.members if source else (checkpoint,))
                    for threat in list(threats) or [usual_threat(checkpoint, checkpoint.name)]:
                        attack = _aimed(text, threat, crosses=source is not None or inference is not None)
                        check_search(attack, text, precision, self.device, source is not None or inference is not None)
                        cell = Cell(
                            checkpoint=checkpoint.sha256,
                            source=source.sha256 if source else "",
                            attack=text,
                            version=ATTACKS.entry(text).version,
                            options=dict(plain(options_of(attack))),  # type: ignore[arg-type]
                            threat=threat,
                            data=images.digest,
                            count=len(images),
                            seed=seed,
                            inference=_settled(inference, checkpoint, attack, transfer=source is not None),
                            precision=precision,
                        )
                        jobs.append(Job(cell, checkpoint, source, attack, name))
        return in_order(jobs)

    def run(
        self, jobs: Sequence[Job], store: Store, within: Mapping[str, Sequence[Span]] | None = None
    ) -> Iterator[tuple[Job, Result | Failure, bool]]:
        """Run what the store does not hold yet, part by part; other processes may do the same. See `robench.sharing`.

        The classes of the images and what training cost are stored beside the cells. With `within`, only those ranges of
        images are run.

        Yields:
            The job, its record, and whether the record was there already.
        """
        for dataset, count in sorted({(job.dataset, job.cell.count) for job in jobs}):
            exhibits.put(labels_of(self.images(dataset, count)), store.folder)
        for checkpoint in {job.checkpoint.sha256: job.checkpoint for job in jobs}.values():
            if cost := getattr(checkpoint, "spent", ()):
                device = str(checkpoint.provenance.get("device", ""))  # type: ignore[attr-defined]
                exhibits.put(exhibits.Training(checkpoint.sha256, device, cost), store.folder)
        return sharing.run(self, jobs, store, within)

    def evaluate(self, job: Job) -> Result | Failure:
        """Run one cell and keep nothing, whatever happens inside the attack."""
        spans = gaps((), job.cell.count, job.size(self.batch))
        try:
            return together([self.run_part(job, *span) for span in spans], job.finds)
        except CheckpointError:
            raise
        except Exception as error:
            return self.failure(job, error)

    def failure(self, job: Job, error: Exception) -> Failure:
        """What is kept of a cell that gave no result."""
        kind = "" if isinstance(error, AttackError) else f"{type(error).__name__}: "
        return Failure(job.cell, *job.subjects, reason=f"{kind}{error}", provenance=self._about())

    def run_part(self, job: Job, start: int, stop: int, watch: Watch = lambda share, said: None) -> Part:
        """Attack a range of a cell's images, and judge.

        Args:
            job: the cell.
            start: the first image.
            stop: the one behind the last.
            watch: told of the share that is done, and what the attack says.

        Raises:
            UsageError: if there is no such range, or the attack needs all images in one call.
            AttackError: if the model or the attack breaks its contract; and whatever else happens inside the attack.
        """
        _check_span(job, start, stop)
        images, span, meter = self.images(job.dataset, job.cell.count), slice(start, stop), Meter(self.device)

        def told(door: Door) -> None:
            each = door.forwards / (stop - start)
            watch(min(each / job.passes, 1), door.said or f"{each:.0f} pass{'es' * (each > 1)} an image")

        nets, inference, seed = self.loaded(job.checkpoint), job.cell.inference, job.cell.seed
        judged: nn.Module = Smoothed(nets, inference, seed) if inference else nets
        door = Door(judged, images.classes, self._fitting(job), told)
        x, y = images.x(span), images.y[span]
        with frozen(nets), verdict.guarded(seed, start), verdict.exact():
            probe = self._probe(job.checkpoint, images)
            verdict.refuse_randomised(job.attack, probe)
            clean = verdict.right(door, x, y, probe.randomised)
        crafted = self._craft(job, images, (start, stop), clean, told)
        with frozen(nets), verdict.guarded(seed, start), verdict.exact():
            found = verdict.judge(door, job.attack, x, y, clean, crafted.adv, probe)
        self._fits = job.cell.key, min(door.micro_batch, self._fitting(job))
        cost = meter.read()
        notes = getattr(job.attack, "notes", lambda classes: ())(images.classes)
        if inference and not (inference.adaptive or job.source):
            notes = (*notes, "not adaptive: the attack does not climb through the augmentations")
        subject, source = job.subjects
        return Part(
            cell=job.cell,
            subject=subject,
            source=source,
            start=start,
            stop=stop,
            clean=tuple(found.clean.tolist()),
            robust=tuple(found.robust.tolist()),
            largest=found.largest,
            norms=None if found.norms is None else tuple(map(_number, found.norms.tolist())),
            answers=found.answers,
            seconds=round(cost.seconds, 3),
            peak_memory=cost.peak_memory,
            joules=cost.joules,
            forwards=door.forwards + crafted.forwards,
            backwards=door.backwards + crafted.backwards,
            left=crafted.left,
            notes=(*notes, *probe.notes),
            told=(*job.told(crafted.notes), *door.noted),
            provenance=self._about(),
        )

    def _about(self) -> dict[str, object]:
        return provenance(named(self.device), torch.get_num_threads())

    def _probe(self, checkpoint: Target, images: Images) -> verdict.Probe:
        """What a look at a model shows, once for all cells."""
        key = checkpoint.sha256, images.digest
        if key not in self._probes:
            self._probes[key] = verdict.probe(self.loaded(checkpoint), images.x(), images.y, images.classes, self.batch)
        return self._probes[key]

    def _craft(
        self, job: Job, images: Images, span: Span, clean: Tensor, watch: Callable[[Door], None]
    ) -> verdict.Crafted:
        """White-box: images for those the model gets right. Transfer: for all, on the source, kept for the next target."""
        what = (job.cell.source, job.cell.attack, str(job.cell.threat), job.cell.data, job.cell.seed)
        if what != self._crafting:
            self._crafting, self._crafted = what, {}
        if job.source and span in self._crafted:
            return self._crafted[span]
        door = self.door(job, watch)
        crafted = verdict.craft(
            door,
            job.attack,
            images.x(slice(*span)),
            images.y[slice(*span)],
            torch.ones_like(clean) if job.source else clean,
            ids=torch.arange(*span, device=self.device),
            seed=job.cell.seed,
        )
        self._fits = job.cell.key, door.micro_batch
        if job.source:
            restless = [f"{each.name} {RESTLESS}" for each in job.source.members if self._restless(each, images)]
            crafted = self._crafted[span] = replace(crafted, notes=(*crafted.notes, *restless))
        return crafted

    def _restless(self, source: Target, images: Images) -> bool:
        """Whether what images are crafted on answers differently each time."""
        with frozen(self.loaded(source)), verdict.guarded(0), verdict.exact():
            return self._probe(source, images).randomised

    def _fitting(self, job: Job) -> int:
        """The most images at once: as many as fitted into memory in the last part of the same cell, which noted it."""
        return min(self.batch, self._fits[1]) if self._fits[0] == job.cell.key else self.batch

    def door(self, job: Job, watch: Callable[[Door], None] | None = None) -> Door:
        """The door to what a job's attack searches on: the source of a transfer, else the checkpoint or a faster twin of it."""
        images = self.images(job.dataset, job.cell.count)
        if job.source:
            members = [self.loaded(member) for member in job.source.members]
            return Door(
                members[0] if len(members) == 1 else Ensemble(members), images.classes, self._fitting(job), watch
            )
        nets, probe = self._attacked(job), self._probe(job.checkpoint, images)
        if job.cell.inference:  # what is attacked answers in another way than what was looked at
            return Door(nets, images.classes, self._fitting(job), watch)
        return verdict.white_box(
            nets, job.attack, images.x(slice(32)), probe, images.classes, self._fitting(job), watch, job.cell.precision
        )

    def _attacked(self, job: Job) -> nn.Module:
        """What a white-box attack gets: the networks, or of a smoothed classifier what it can make use of."""
        nets, inference = self.loaded(job.checkpoint), job.cell.inference
        if inference and inference.adaptive:
            return Glimpse(nets, inference, job.cell.seed)
        row = ATTACKS.rows.get(job.cell.attack.partition("@")[0])
        if inference and row is not None and row.facts["knowledge"] in QUERIES:
            return Smoothed(nets, inference, job.cell.seed, "queries")
        return nets

    def loaded(self, checkpoint: Target) -> nn.Module:
        """The network of a checkpoint on the engine's device, loaded once."""
        if checkpoint.sha256 not in self._nets:
            if isinstance(checkpoint, Checkpoint) and (doubt := checkpoint.doubt):
                self.tell(f"note: {doubt}")
            self._nets[checkpoint.sha256] = checkpoint.load(self.device)
        return self._nets[checkpoint.sha256]


def plan_suite(
    engine: Engine,
    suite: Suite,
    checkpoints: Sequence[Target],
    *,
    candidates: Sequence[Checkpoint] = (),
    count: int | None = None,
    seed: int = 0,
    dataset: str | None = None,
    inference: Inference | None = None,
) -> list[Job]:
    """Every cell of a suite for some checkpoints.

    Args:
        engine: what will run them.
        suite: the columns.
        checkpoints: what to attack.
        candidates: among these it looks for what to craft on, where a column is a transfer.
        count: how many test images; all when None.
        seed: of the attacks.
        dataset: evaluate on this one instead of the one each checkpoint was trained on.
        inference: how the checkpoints answer; then each white-box column is attacked adaptively too.

    Raises:
        UsageError: if a transfer has no source, or several that could be meant; and as `Engine.plan`.
    """
    jobs: list[Job] = []
    for checkpoint in checkpoints:
        name = dataset or checkpoint.dataset
        sources = {role: source_for(suite, role, name, candidates) for role in suite.roles}
        for each in suite.columns:
            smoothed = replace(inference or Inference(), draws=each.draws) if each.draws else inference
            jobs += engine.plan(
                [checkpoint],
                attacks=[each.attack, each.adaptive] if smoothed and not each.source else [each.attack],
                threats=[each.threat],
                sources=[sources[each.source]] if each.source else [],
                count=count,
                seed=seed,
                dataset=dataset,
                inference=smoothed,
            )
    return in_order(jobs)


def source_for(suite: Suite, role: str, dataset: str, candidates: Sequence[Checkpoint]) -> Checkpoint:
    """The checkpoint a suite crafts on: one that a method alone trained on a data set, ResNet-18 and the first seed first.

    Raises:
        UsageError: if there is none, or several recipes are left.
    """
    fit = [
        each
        for each in candidates
        if [stage.method for stage in each.recipe.stage] == [role] and each.recipe.dataset == dataset
    ]
    fit = [each for each in fit if each.recipe.model == "resnet18"] or fit
    fit = [each for each in fit if each.recipe.name == role] or fit
    if not fit:
        raise UsageError(
            f"suite {suite.name} crafts on a {role} checkpoint for {dataset} and there is none: train one, or name it by "
            "--source CHECKPOINT"
        )
    if len({digest(plain(each.recipe)) for each in fit}) > 1:
        names = ", ".join(sorted(each.name for each in fit))
        raise UsageError(f"suite {suite.name} could craft on any of {names}: name one by --source CHECKPOINT")
    return min(fit, key=lambda each: (each.seed, each.name))


def labels_of(images: Images) -> exhibits.Labels:
    """The classes of images, for reports."""
    return exhibits.Labels(images.digest, images.name, images.classes, " ".join(map(str, images.y.tolist())))


def _settled(inference: Inference | None, checkpoint: Target, attack: Attack, *, transfer: bool) -> Inference | None:
    """How a checkpoint answers; an attack made for randomised models climbs through the augmentations."""
    if inference is None:
        return None
    return inference.of(checkpoint.recipe, adaptive=not transfer and bool(getattr(attack, "randomised", False)))


def _aimed(text: str, threat: ThreatModel, *, crosses: bool) -> Attack:
    """The attack; one that crosses to another model climbs to the end: what barely fools one seldom fools another."""
    attack = attack_for(text, threat)
    stops = "early_stop" in {each.name for each in fields(attack)}  # type: ignore[arg-type]
    if crosses and stops and "early_stop" not in ATTACKS.entry(text).options:
        return attack_for(text, threat, early_stop=False)
    return attack


def _check_span(job: Job, start: int, stop: int) -> None:
    """Refuse a range that cannot be run by itself."""
    count = job.cell.count
    if not 0 <= start < stop <= count:
        raise UsageError(
            f"{job.label} has images 0 to {count - 1}; a part from {start} up to {stop} is none of its ranges"
        )
    if not job.divisible and (start, stop) != (0, count):
        raise UsageError(
            f"{job.label}: the attack needs all {count} images in one call, so no part can be run by itself"
        )


def _number(value: float) -> float | None:
    """A norm to seven digits; None for infinity, which JSON has no word for."""
    return float(f"{value:.7g}") if value < float("inf") else None


def check_fits(checkpoint: Target, images: Images) -> None:
    """Say before anything runs that a checkpoint cannot be evaluated on these images.

    Raises:
        CheckpointError: if it is no classifier yet, or was trained for others.
    """
    if reason := checkpoint.unready:
        raise CheckpointError(reason)
    check_shape(checkpoint, images)


def check_shape(checkpoint: Target, images: Images) -> None:
    """Refuse images of another shape or number of classes than those a checkpoint was trained for.

    Raises:
        CheckpointError: naming both.
    """
    name = checkpoint.name
    if (checkpoint.classes, checkpoint.shape) != (images.classes, images.shape):
        theirs = f"{checkpoint.classes} classes of {'x'.join(map(str, checkpoint.shape))} images"
        ours = f"{images.classes} classes of {'x'.join(map(str, images.shape))} images"
        size = checkpoint.shape[1]
        sized = (checkpoint.classes, (images.shape[0], size, size)) == (images.classes, checkpoint.shape)
        plain = re.sub(r"[@,]resize=\d+", "", images.name)
        other = (
            f"make the images its size with --dataset {plain}{',' if '@' in plain else '@'}resize={size}, "
            if sized
            else ""
        )
        raise CheckpointError(
            f"{name} was trained for {theirs}; {images.name} has {ours}. "
            f"Evaluate it on {checkpoint.dataset}, {other}or name other checkpoints"
        )


def check_gradients(attack: str, models: Sequence[Target]) -> None:
    """Refuse to climb on a black box.

    Args:
        attack: as one writes it after `--attack`.
        models: what it crafts on.

    Raises:
        UsageError: naming what is possible.
    """
    boxes = [model.name for model in models if model.black_box]
    row = ATTACKS.rows.get(ATTACKS.entry(attack).name)
    if boxes and (row is None or row.facts["knowledge"] not in QUERIES):
        black = [name for name, each in ATTACKS.rows.items() if each.facts["knowledge"] in QUERIES]
        raise UsageError(
            f"{boxes[0]} is a black box and {attack} climbs its gradients: attack it by queries ({', '.join(black)}) or by "
            "transfer (--source CHECKPOINT)"
        )


def usual_threat(recipe: Recipe | Target, name: str) -> ThreatModel:
    """What was trained against, or else its data set's usual threat.

    Args:
        recipe: of a checkpoint, or the checkpoint itself.
        name: how messages call what it trained.

    Raises:
        UsageError: if there is neither.
    """
    if recipe.threat is not None:
        return recipe.threat
    try:
        usual = DATASETS.entry(recipe.dataset).facts.get("threat")
    except UsageError:  # images that were handed over have a name of their own
        usual = None
    if usual is None:
        raise UsageError(f"{name} was trained against no threat: name one, such as --threat linf-8/255")
    return ThreatModel.parse(usual)
