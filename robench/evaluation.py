"""The evaluation engine: plans cells, runs attacks behind the door, and decides itself what counts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from robench import data
from robench.attacks import attack_for, options_of
from robench.checkpoint import Checkpoint, nets_after
from robench.data import Images, Split
from robench.door import Door, frozen
from robench.errors import AttackError, CheckpointError, UsageError
from robench.geometry import norm_of
from robench.models import Nets
from robench.noise import ImageGenerator, seed_of
from robench.protocols import Attack, Monitor, Progress, unwatched
from robench.provenance import provenance
from robench.registry import ATTACKS, DATASETS
from robench.results import Cell, Failure, Result, Store, Subject, column
from robench.spec import plain
from robench.threat import Norm, ThreatModel

# what float32 arithmetic may add to a norm: a relative part, and an absolute one per norm
RELATIVE = 1e-5
ROUNDING = {Norm.LINF: 1e-7, Norm.L2: 1e-6, Norm.L1: 1e-5}


@dataclass(frozen=True)
class Job:
    """A cell and what is needed to run it."""

    cell: Cell
    checkpoint: Checkpoint
    source: Checkpoint | None
    attack: Attack
    dataset: str

    @property
    def passes(self) -> float:
        """About how many image passes it takes per image, for progress."""
        return float(getattr(self.attack, "passes", 100))


@dataclass
class Engine:
    """Runs jobs on one device, keeping data and networks between them.

    Attributes:
        device: where it computes.
        data_root: where data sets are kept.
        batch: the most images an attack gets at once.
        monitor: told about every pass.
    """

    device: torch.device
    data_root: Path = Path("data")
    batch: int = 500
    monitor: Monitor = unwatched
    _images: dict[tuple[str, int | None], Images] = field(default_factory=dict)
    _nets: dict[str, Nets] = field(default_factory=dict)
    _crafted: tuple[tuple[object, ...], Tensor, tuple[int, int]] | None = None

    def images(self, dataset: str, count: int | None) -> Images:
        """The first `count` test images of a data set (all when None), on the device.

        Raises:
            UsageError: if there are not that many.
        """
        if (dataset, count) not in self._images:
            images = data.load(dataset, Split.TEST, self.data_root)
            if count is not None and not 1 <= count <= len(images):
                raise UsageError(f"--count {count}: {dataset} has {len(images):,} test images; use 1 to {len(images)}")
            self._images[dataset, count] = images.take(slice(count)).to(self.device)
        return self._images[dataset, count]

    def plan(
        self,
        checkpoints: Sequence[Checkpoint],
        *,
        attacks: Sequence[str],
        threats: Sequence[ThreatModel] = (),
        sources: Sequence[Checkpoint] = (),
        count: int | None = None,
        seed: int = 0,
        dataset: str | None = None,
    ) -> list[Job]:
        """Every cell of checkpoints x attacks x threats (x sources), checked before anything runs.

        Args:
            checkpoints: what to attack.
            attacks: names with options, as `attack_for` reads them.
            threats: the balls; when empty, what each checkpoint was trained against, or its data set's usual one.
            sources: craft on these and score on the checkpoints (transfer); white-box when empty.
            count: how many test images; all when None.
            seed: of the attacks.
            dataset: evaluate on this one instead of the one each checkpoint was trained on.

        Raises:
            UsageError: for unknown names, or a count beyond the test set.
            CheckpointError: for a damaged checkpoint, one without a head, or of other images or classes than the data set.
        """
        jobs = []
        for checkpoint in checkpoints:
            name = dataset or checkpoint.recipe.dataset
            images = self.images(name, count)
            for each in (checkpoint, *sources):
                _check_fits(each, images)
                self._loaded(each)
            wanted = list(threats) or [_usual_threat(checkpoint)]
            others: list[Checkpoint | None] = (
                [s for s in sources if s.sha256 != checkpoint.sha256] if sources else [None]
            )
            for source in others:
                for text in attacks:
                    for threat in wanted:
                        entry = ATTACKS.entry(text)
                        attack = attack_for(text, threat)
                        cell = Cell(
                            checkpoint=checkpoint.sha256,
                            source=source.sha256 if source else "",
                            attack=text,
                            version=entry.version,
                            options=dict(plain(options_of(attack))),  # type: ignore[arg-type]
                            threat=threat,
                            data=images.digest,
                            count=len(images),
                            seed=seed,
                        )
                        jobs.append(Job(cell, checkpoint, source, attack, name))
        jobs.sort(key=lambda job: (job.cell.source, job.cell.attack, str(job.cell.threat)) if job.source else ("",))
        return list({job.cell.key: job for job in jobs}.values())

    def run(self, jobs: Sequence[Job], store: Store) -> Iterator[tuple[Job, Result | Failure, bool]]:
        """Run what the store does not hold yet.

        Yields:
            The job, its record, and whether the record was there already.
        """
        todo = [job for job in jobs if not isinstance(store.get(job.cell), Result)]
        total = sum(job.passes for job in todo)
        done = 0.0
        for job in jobs:
            there = store.get(job.cell)
            if isinstance(there, Result):
                yield job, there, True
                continue
            record = self.evaluate(job, done, total)
            store.put(record)
            done += job.passes
            self.monitor(Progress("evaluate", done, total, {"cell": _label(job)}))
            yield job, record, False

    def evaluate(self, job: Job, done: float = 0.0, total: float = 0.0) -> Result | Failure:
        """Run one cell, whatever happens inside the attack."""
        threads = torch.get_num_threads()
        about = provenance(_device_name(self.device), threads)
        subjects = subject(job.checkpoint, job.dataset), subject(job.source, job.dataset) if job.source else None
        try:
            return self._evaluate(job, done, total, subjects, about)
        except CheckpointError:
            raise
        except Exception as error:
            kind = "" if isinstance(error, AttackError) else f"{type(error).__name__}: "
            return Failure(job.cell, *subjects, reason=f"{kind}{error}", provenance=about)

    def _evaluate(
        self, job: Job, done: float, total: float, subjects: tuple[Subject, Subject | None], about: dict[str, object]
    ) -> Result:
        images = self.images(job.dataset, job.cell.count)
        began = time.perf_counter()

        def watch(door: Door) -> None:
            share = min(door.forwards / len(images) / job.passes, 1.0) * job.passes
            values = {"cell": _label(job), "": door.said or f"{door.forwards / len(images):.0f} passes an image"}
            self.monitor(Progress("evaluate", done + share, total, values))

        nets = self._loaded(job.checkpoint)
        door = Door(nets, images.classes, self.batch, watch)
        with frozen(nets), _exact():
            x, y = images.x(), images.y
            with torch.no_grad():
                clean = door(x).argmax(1) == y
            forwards = backwards = 0
            if job.source is None:
                adv = x.clone()
                adv[clean] = self._attack(job, door, x, y, clean.nonzero().squeeze(1))
            else:
                adv, (forwards, backwards) = self._craft(job, x, y, watch)
            _verify(adv, x, job.cell.threat)
            with torch.no_grad():
                robust = clean & (door(adv).argmax(1) == y)
        return Result(
            cell=job.cell,
            subject=subjects[0],
            source=subjects[1],
            clean=tuple(clean.tolist()),
            robust=tuple(robust.tolist()),
            largest=_largest(adv[clean], x[clean], job.cell.threat) if clean.any() else 0.0,
            seconds=round(time.perf_counter() - began, 3),
            forwards=door.forwards + forwards,
            backwards=door.backwards + backwards,
            notes=tuple(getattr(job.attack, "notes", lambda classes: ())(images.classes)),
            provenance=about,
        )

    def _attack(self, job: Job, door: Door, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        """The attack's images for some of the test images; the model must be afterwards what it was before."""
        if not len(ids) or job.cell.threat.eps == 0:
            return x[ids]
        attacked = job.source or job.checkpoint
        nets = self._loaded(attacked)
        before = _versions(nets)
        parts = [ids] if getattr(job.attack, "whole", False) else list(ids.split(self.batch))
        found = []
        try:
            for part in parts:
                generator = ImageGenerator(seed_of(job.cell.seed, job.cell.attack), part, x.device)
                generator.manual_seed(job.cell.seed)
                adv = job.attack(door, x[part], y[part], generator=generator)
                if not isinstance(adv, Tensor) or adv.shape != x[part].shape:
                    raise AttackError(
                        f"the attack returned {getattr(adv, 'shape', type(adv))}, not {tuple(x[part].shape)}"
                    )
                found.append(adv.detach().to(x))
        finally:
            nets.eval()
            changed = _versions(nets) != before
            if changed:
                del self._nets[attacked.sha256]
        if changed:
            raise AttackError("the attack changed the weights or statistics of the model")
        return torch.cat(found)

    def _craft(self, job: Job, x: Tensor, y: Tensor, watch: object) -> tuple[Tensor, tuple[int, int]]:
        """Images crafted on the source, all of them, kept for the next target."""
        assert job.source is not None
        what = (job.cell.source, job.cell.attack, str(job.cell.threat), job.cell.data, job.cell.seed)
        if self._crafted is None or self._crafted[0] != what:
            nets = self._loaded(job.source)
            door = Door(nets, int(job.source.classes), self.batch, watch)  # type: ignore[arg-type]
            with frozen(nets):
                adv = self._attack(job, door, x, y, torch.arange(len(x), device=x.device))
            self._crafted = what, adv, (door.forwards, door.backwards)
        return self._crafted[1], self._crafted[2]

    def _loaded(self, checkpoint: Checkpoint) -> Nets:
        if checkpoint.sha256 not in self._nets:
            self._nets[checkpoint.sha256] = checkpoint.load(self.device)
        return self._nets[checkpoint.sha256]


def subject(checkpoint: Checkpoint, dataset: str) -> Subject:
    """What tables need to know of a checkpoint."""
    recipe = checkpoint.recipe
    return Subject(
        name=checkpoint.name,
        recipe=recipe.name,
        group=recipe.group,
        threat=recipe.threat,
        seed=checkpoint.seed,
        dataset=dataset,
        sha256=checkpoint.sha256,
    )


def _verify(adv: Tensor, x: Tensor, threat: ThreatModel) -> None:
    """Refuse images outside the contract.

    Raises:
        AttackError: naming the first offence.
    """
    if not bool(adv.isfinite().all()):
        raise AttackError(
            f"the attack returned NaN or infinite pixels in {int((~adv.isfinite()).flatten(1).any(1).sum())} images"
        )
    low, high = adv.aminmax()
    if low < 0 or high > 1:
        raise AttackError(f"the attack left [0, 1]: pixels from {low.item():.6g} to {high.item():.6g}")
    size = _largest(adv, x, threat)
    if size > threat.eps * (1 + RELATIVE) + ROUNDING[threat.norm]:
        raise AttackError(f"the attack left the ball: {threat.norm.value} norm {size:.8g}, allowed {threat.eps:.8g}")


def _exact() -> AbstractContextManager[None]:
    """Convolutions in full float32 by algorithms that repeat, where a GPU would otherwise round or choose."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def _versions(nets: Nets) -> list[int]:
    """How often each tensor was written to."""
    return [tensor._version for tensor in nets.state_dict().values()]


def _largest(adv: Tensor, x: Tensor, threat: ThreatModel) -> float:
    """The largest perturbation of a batch, in float64 (which some accelerators lack)."""
    return norm_of(adv.cpu().double() - x.cpu().double(), threat.norm).amax().item()


def _check_fits(checkpoint: Checkpoint, images: Images) -> None:
    """Say before anything runs that a checkpoint cannot be evaluated on these images."""
    name, recipe = checkpoint.name, checkpoint.recipe
    if reason := unready(checkpoint):
        raise CheckpointError(reason)
    if (checkpoint.classes, checkpoint.shape) != (images.classes, images.shape):
        theirs = f"{checkpoint.classes} classes of {'x'.join(map(str, checkpoint.shape))} images"
        ours = f"{images.classes} classes of {'x'.join(map(str, images.shape))} images"
        raise CheckpointError(
            f"{name} was trained for {theirs}; {images.name} has {ours}. "
            f"Evaluate it on {recipe.dataset}, or name other checkpoints"
        )


def unready(checkpoint: Checkpoint) -> str:
    """Why a checkpoint is no classifier yet, and what to do; nothing when it is one."""
    name, recipe = checkpoint.name, checkpoint.recipe
    if checkpoint.stages < len(recipe.stage):
        done = f"{checkpoint.stages} of {len(recipe.stage)} stages"
        return f"{name} is not finished ({done}): robench train {recipe.name} --resume --out {checkpoint.folder}"
    marker, end, state = (checkpoint.folder / name for name in ("run.json", "last.json", "state.pt"))
    if marker.exists() and (state.exists() or not end.exists()):
        return f"{name} is not finished: robench train {recipe.name} --resume --out {checkpoint.folder}"
    if "head" not in nets_after(recipe, checkpoint.stages, checkpoint.classes, checkpoint.shape).parts:
        return f"{name} is an encoder without a head: robench train linear --encoder {checkpoint.folder}"
    return ""


def _usual_threat(checkpoint: Checkpoint) -> ThreatModel:
    """What the checkpoint was trained against, or else its data set's usual threat."""
    if checkpoint.recipe.threat is not None:
        return checkpoint.recipe.threat
    usual = DATASETS.entry(checkpoint.recipe.dataset).facts.get("threat")
    if usual is None:
        raise UsageError(f"{checkpoint.name} was trained against no threat: name one, such as --threat linf-8/255")
    return ThreatModel.parse(usual)


def _label(job: Job) -> str:
    via = f" from {job.source.name}" if job.source else ""
    return f"{job.checkpoint.name}{via}: {column(job.cell.attack, job.cell.threat)}"


def _device_name(device: torch.device) -> str:
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
