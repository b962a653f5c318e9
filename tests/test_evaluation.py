"""The engine: it alone decides what counts, whatever an attack does, and says before it starts what cannot be run."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from PIL import Image
from torch import Tensor

from robench import data, recipe, reporting
from robench.checkpoint import Checkpoint, open_checkpoint
from robench.data import Split
from robench.errors import CheckpointError, UsageError
from robench.evaluation import Engine
from robench.geometry import norm_of
from robench.job import Job
from robench.noise import uniform
from robench.protocols import Classifier, Progress
from robench.results import Failure, Result, Store
from robench.threat import ThreatModel
from robench.training import Run, train

CPU = torch.device("cpu")
LINF = ThreatModel.parse("linf-0.2")
COUNT = 40

CALLS: list[int] = []


# attacks from outside; `test_evaluation:NAME` names them


@dataclass(frozen=True)
class Corner:
    """Honest: tries random corners of the linf ball and keeps, for each image, the first that fools the model."""

    threat: ThreatModel
    tries: int = 5

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        CALLS.append(len(x))
        best = x.clone()
        for _ in range(self.tries):
            corner = (uniform(generator, x.shape, x.device) < 0.5).to(x) * 2 - 1
            adv = (x + self.threat.eps * corner).clamp(0, 1)
            with torch.no_grad():
                fooled = model(adv).argmax(1) != y
                new = fooled & (model(best).argmax(1) == y)
            best[new] = adv[new]
        return best


@dataclass(frozen=True)
class Idle:
    """Returns the images as they are."""

    threat: ThreatModel

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        CALLS.append(len(x))
        return x


class LeavesBall(Idle):
    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        return (x + 1.01 * self.threat.eps * torch.where(x > 0.5, -1, 1)).clamp(0, 1)


class LeavesBallOnce(Idle):
    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        adv = x.clone()
        adv[-1] = 1 - adv[-1]
        return adv


class LeavesBox(Idle):
    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        return x - 0.1


class Nan(Idle):
    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        adv = x.clone()
        adv[0, 0, 0, 0] = float("nan")
        return adv


class Infinite(Idle):
    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        return x / 0


class Fewer(Idle):
    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        return x[:-1]


class Flat(Idle):
    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        return x.flatten(1)


class Lists(Idle):
    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        return list(x)  # type: ignore[return-value]


class Nothing(Idle):
    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        return None  # type: ignore[return-value]


class Raises(Idle):
    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        raise ZeroDivisionError("something inside")


class AsksOutside(Idle):
    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        model(x + 3)
        return x


class Overwrites(Idle):
    """Works in place on what it was given: a nuisance, but no reason to believe it."""

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        x.fill_(0.5)
        y.fill_(0)
        return x


class Trains(Idle):
    """Leaves the model in train mode."""

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        model.train()  # type: ignore[attr-defined]
        return x


class Vandal(Idle):
    """Destroys the weights."""

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            for parameter in model.parameters():  # type: ignore[attr-defined]
                parameter.zero_()
        return x


class Reseeds(Idle):
    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        torch.manual_seed(0)
        return x


class Gradients(Idle):
    """Asks for the gradient by `backward`, as many attacks do, and returns an image with a history."""

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        x = x.clone().requires_grad_()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        assert x.grad is not None
        return (x + self.threat.eps * x.grad.sign()).clamp(0, 1)


class Doubles(Idle):
    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        return x.double()


@dataclass(frozen=True)
class Notes(Idle):
    """Says what a reader should know."""

    whole: ClassVar[bool] = True

    def notes(self, classes: int) -> tuple[str, ...]:
        return (f"knows {classes} classes",)


class NotAnAttack:
    pass


def name(attack: type) -> str:
    return f"test_evaluation:{attack.__name__}"


# helpers


@pytest.fixture
def engine() -> Engine:
    return Engine(CPU)


@pytest.fixture(scope="module")
def standard(trained: Path) -> Checkpoint:
    return open_checkpoint("standard-digits", trained)


@pytest.fixture(scope="module")
def robust(trained: Path) -> Checkpoint:
    return open_checkpoint("pgd-at-digits", trained)


def cell(engine: Engine, checkpoint: Checkpoint, attack: str, threat: ThreatModel = LINF, count: int = COUNT) -> Job:
    (job,) = engine.plan([checkpoint], attacks=[attack], threats=[threat], count=count)
    return job


def evaluated(
    engine: Engine, checkpoint: Checkpoint, attack: str, threat: ThreatModel = LINF, count: int = COUNT
) -> Result:
    record = engine.evaluate(cell(engine, checkpoint, attack, threat, count))
    assert isinstance(record, Result), record
    return record


def correct(checkpoint: Checkpoint, count: int = COUNT) -> tuple[bool, ...]:
    """Whether a plain forward pass is right about each of the first images."""
    images = data.load("digits", Split.TEST, Path()).take(slice(count))
    with torch.no_grad():
        return tuple((checkpoint.load()(images.x()).argmax(1) == images.y).tolist())


# what a result says


def test_clean_bits_are_those_of_a_plain_forward_pass(engine: Engine, standard: Checkpoint) -> None:
    assert evaluated(engine, standard, "fgsm", count=360).clean == correct(standard, 360)


@pytest.mark.parametrize("threat", ["linf-0.2", "l2-0.5", "l1-2"])
@pytest.mark.parametrize("attack", ["fgsm", "pgd-5", "pgd-3x2"])
def test_robust_means_clean_and_the_ball_is_kept(
    engine: Engine, standard: Checkpoint, attack: str, threat: str
) -> None:
    found = evaluated(engine, standard, attack, ThreatModel.parse(threat))
    assert all(clean for clean, robust in zip(found.clean, found.robust, strict=True) if robust)
    assert 0.5 * found.cell.threat.eps < found.largest <= found.cell.threat.eps * (1 + 1e-5)


def test_passes_are_counted(engine: Engine, standard: Checkpoint) -> None:
    found = evaluated(engine, standard, "pgd-5", ThreatModel.parse("linf-0.0001"))
    right = sum(found.clean)
    assert found.robust == found.clean  # so that none leaves early
    # the clean pass, five steps of each image worth attacking, and the verdict, which is the last look
    assert found.forwards == COUNT + 5 * right + COUNT
    assert found.backwards == 5 * right


def test_broken_images_are_left_alone(engine: Engine, standard: Checkpoint) -> None:
    found = evaluated(engine, standard, "pgd-20")
    assert sum(found.robust) < sum(found.clean)
    assert found.backwards < 20 * sum(found.clean)


def test_training_helps_against_what_it_saw(engine: Engine, standard: Checkpoint, robust: Checkpoint) -> None:
    # against a smaller ball than it trained with, since it was trained for three epochs
    small = ThreatModel.parse("linf-0.1")
    one, other = (evaluated(engine, each, "pgd-20", small, 360) for each in (standard, robust))
    assert sum(other.robust) / sum(other.clean) > sum(one.robust) / sum(one.clean)


@pytest.mark.parametrize("threat", ["linf-0", "l2-0", "l1-0"])
def test_no_radius_changes_nothing(engine: Engine, standard: Checkpoint, threat: str) -> None:
    found = evaluated(engine, standard, "pgd-20", ThreatModel.parse(threat))
    assert found.robust == found.clean
    assert found.largest == 0


@pytest.mark.parametrize("threat", ["linf-0.05", "l2-0.5", "l1-2"])
def test_verdicts_do_not_depend_on_the_batch(standard: Checkpoint, threat: str) -> None:
    found = [evaluated(Engine(CPU, batch=batch), standard, "pgd-20", ThreatModel.parse(threat)) for batch in (7, 500)]
    assert found[0].robust == found[1].robust
    assert 0 < sum(found[0].robust) < sum(found[0].clean)


def test_verdicts_do_not_depend_on_how_many_images_there_are(engine: Engine, standard: Checkpoint) -> None:
    threat = ThreatModel.parse("linf-0.05")
    few, many = (evaluated(engine, standard, "pgd-20", threat, count) for count in (COUNT, 2 * COUNT))
    assert many.robust[:COUNT] == few.robust


def test_verdicts_do_not_depend_on_the_global_random_state(standard: Checkpoint) -> None:
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(evaluated(Engine(CPU), standard, "pgd-20", ThreatModel.parse("linf-0.05")))
    assert found[0].robust == found[1].robust
    assert found[0].largest == found[1].largest


def test_another_seed_starts_elsewhere(engine: Engine, standard: Checkpoint) -> None:
    jobs = [
        engine.plan([standard], attacks=["pgd-1"], threats=[ThreatModel.parse("l2-0.5")], count=COUNT, seed=seed)[0]
        for seed in (0, 1)
    ]
    assert jobs[0].cell.key != jobs[1].cell.key
    one, two = map(engine.evaluate, jobs)
    assert isinstance(one, Result)
    assert isinstance(two, Result)
    assert one.largest != two.largest


# transfer


def test_a_transfer_cell_names_its_source(engine: Engine, standard: Checkpoint, robust: Checkpoint) -> None:
    jobs = engine.plan([standard, robust], attacks=["pgd-5"], threats=[LINF], sources=[standard, robust], count=COUNT)
    assert sorted((job.checkpoint.name, job.source.name if job.source else "") for job in jobs) == [
        ("pgd-at-digits", "standard-digits"),
        ("standard-digits", "pgd-at-digits"),
    ]
    for job in jobs:
        found = engine.evaluate(job)
        assert isinstance(found, Result)
        assert job.source is not None
        assert found.source is not None
        assert (found.source.name, found.cell.source) == (job.source.name, job.source.sha256)
        assert all(clean for clean, robust in zip(found.clean, found.robust, strict=True) if robust)


def test_transfer_is_scored_on_the_target(engine: Engine, standard: Checkpoint, robust: Checkpoint) -> None:
    (job,) = engine.plan([robust], attacks=["pgd-5"], threats=[LINF], sources=[standard], count=COUNT)
    found = engine.evaluate(job)
    assert isinstance(found, Result)
    assert found.clean == correct(robust)
    assert sum(found.robust) > sum(evaluated(engine, standard, "pgd-5").robust)


def test_images_are_crafted_once_for_all_targets(
    engine: Engine, standard: Checkpoint, robust: Checkpoint, tmp_path: Path
) -> None:
    CALLS.clear()
    targets = [robust, train(Run(tiny_recipe(), tmp_path / "third"))]
    jobs = engine.plan(targets, attacks=[name(Corner)], threats=[LINF], sources=[standard], count=COUNT)
    assert all(isinstance(engine.evaluate(job), Result) for job in jobs)
    assert CALLS == [COUNT]


# what is there already


def test_what_is_there_is_not_run_again(engine: Engine, standard: Checkpoint, tmp_path: Path) -> None:
    store = Store(tmp_path)
    jobs = engine.plan([standard], attacks=[name(Corner), name(Idle)], threats=[LINF], count=COUNT)
    first = list(engine.run(jobs, store))
    CALLS.clear()
    again = list(Engine(CPU).run(jobs, store))
    assert [there for _, _, there in first] == [False, False]
    assert [there for _, _, there in again] == [True, True]
    assert [record for _, record, _ in again] == [record for _, record, _ in first]
    assert CALLS == []


def test_a_failure_is_tried_again(engine: Engine, standard: Checkpoint, tmp_path: Path) -> None:
    store = Store(tmp_path)
    job = cell(engine, standard, name(Idle))
    about = engine.evaluate(job)
    store.put(Failure(job.cell, about.subject, None, "the machine was full"))
    ((_, record, there),) = engine.run([job], store)
    assert isinstance(record, Result)
    assert not there
    assert store.get(job.cell) == record


def test_one_cell_is_planned_once(engine: Engine, standard: Checkpoint) -> None:
    jobs = engine.plan([standard, standard], attacks=["fgsm", "fgsm"], threats=[LINF, LINF], count=COUNT)
    assert len(jobs) == 1


def test_progress_grows_to_its_total(standard: Checkpoint, tmp_path: Path) -> None:
    told: list[Progress] = []
    engine = Engine(CPU, monitor=told.append)
    jobs = engine.plan([standard], attacks=["fgsm", "pgd-5", name(Raises)], threats=[LINF], count=COUNT)
    list(engine.run(jobs, Store(tmp_path)))
    done = [progress.done for progress in told]
    assert done == sorted(done)
    assert told[-1].done == told[-1].total


# attacks from outside


def test_an_honest_attack_from_outside_appears_in_the_report(engine: Engine, standard: Checkpoint) -> None:
    found = evaluated(engine, standard, name(Corner) + "@tries=9")
    assert 0 < sum(found.robust) < sum(found.clean)
    assert found.cell.options == {"tries": 9}
    (table,) = reporting.tables([found])
    assert "test_evaluation:Corner@tries=9" in table.header[-1]


def test_an_attack_may_ask_for_gradients_its_own_way(engine: Engine, standard: Checkpoint) -> None:
    # one sign step is what FGSM does
    assert evaluated(engine, standard, name(Gradients)).robust == evaluated(engine, standard, "fgsm").robust


def test_notes_of_an_attack_are_kept(engine: Engine, standard: Checkpoint) -> None:
    assert evaluated(engine, standard, name(Notes)).notes == ("knows 10 classes",)


@pytest.mark.parametrize("attack", [Idle, Reseeds, Doubles, Notes])
def test_an_attack_that_does_nothing_finds_nothing(engine: Engine, standard: Checkpoint, attack: type) -> None:
    found = evaluated(engine, standard, name(attack))
    assert found.robust == found.clean
    assert found.largest == 0


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        (LeavesBall, r"left the ball: linf norm 0\.202.*, allowed 0\.2"),
        (LeavesBallOnce, "left the ball: linf norm 1"),
        (LeavesBox, r"left \[0, 1\]: pixels from -0\.1 to"),
        (Nan, "NaN or infinite pixels in 1 images"),
        (Infinite, "NaN or infinite pixels"),
        (Fewer, r"returned torch\.Size\(\[\d+, 1, 8, 8\]\), not \(\d+, 1, 8, 8\)"),
        (Flat, r"returned torch\.Size\(\[\d+, 64\]\), not"),
        (Lists, "returned .*list"),
        (Nothing, "returned .*None"),
        (Raises, "ZeroDivisionError: something inside"),
        (AsksOutside, r"asked about pixels from 3 to 4; images are in \[0, 1\]"),
        (Overwrites, "left the ball"),
    ],
)
def test_an_attack_that_breaks_the_contract_is_a_failure(
    engine: Engine, standard: Checkpoint, tmp_path: Path, attack: type, expected: str
) -> None:
    jobs = [cell(engine, standard, name(attack)), cell(engine, standard, "fgsm")]
    broken, after = [record for _, record, _ in engine.run(jobs, Store(tmp_path))]
    assert isinstance(broken, Failure)
    assert re.search(expected, broken.reason), broken.reason
    # nothing of it sticks: the next cell is what it is without it
    assert isinstance(after, Result)
    assert after.robust == evaluated(Engine(CPU), standard, "fgsm").robust


@pytest.mark.parametrize("attack", [LeavesBall, Nan, Lists, Raises])
def test_a_failure_while_crafting_is_a_failure_of_the_transfer(
    engine: Engine, standard: Checkpoint, robust: Checkpoint, attack: type
) -> None:
    (job,) = engine.plan([robust], attacks=[name(attack)], threats=[LINF], sources=[standard], count=COUNT)
    found = engine.evaluate(job)
    assert isinstance(found, Failure)
    assert found.source is not None
    assert found.source.name == "standard-digits"


def test_a_wrong_length_is_noticed_even_in_transfer_batches(standard: Checkpoint, robust: Checkpoint) -> None:
    engine = Engine(CPU, batch=7)
    (job,) = engine.plan([robust], attacks=[name(Fewer)], threats=[LINF], sources=[standard], count=COUNT)
    assert isinstance(engine.evaluate(job), Failure)


def test_the_verdict_is_given_in_eval_mode(engine: Engine, standard: Checkpoint) -> None:
    # in train mode the batch would decide, and running statistics would move
    found = evaluated(engine, standard, name(Trains))
    assert found.robust == found.clean
    assert evaluated(engine, standard, "fgsm").clean == correct(standard)


def test_broken_weights_are_never_scored(engine: Engine, standard: Checkpoint) -> None:
    found = engine.evaluate(cell(engine, standard, name(Vandal)))
    assert isinstance(found, Failure) or found.robust == found.clean
    assert evaluated(engine, standard, "fgsm").clean == correct(standard)


@pytest.mark.parametrize("attack", [Gradients, Raises, Trains])
def test_networks_are_given_back_as_they_were(engine: Engine, standard: Checkpoint, attack: type) -> None:
    engine.evaluate(cell(engine, standard, name(attack)))
    nets = engine.loaded(standard)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in nets.parameters())
    assert not any(module.training for module in nets.modules())


def test_an_attack_must_be_a_dataclass_with_a_threat(engine: Engine, standard: Checkpoint) -> None:
    with pytest.raises(UsageError, match="must be a dataclass with a field 'threat'"):
        cell(engine, standard, name(NotAnAttack))


def test_the_largest_perturbation_is_measured_in_the_norm_of_the_threat(engine: Engine, standard: Checkpoint) -> None:
    threat = ThreatModel.parse("l1-2")
    found = evaluated(engine, standard, "fgsm", threat)
    assert found.largest == pytest.approx(2, rel=1e-4)
    images = engine.images("digits", COUNT)
    assert norm_of(images.x(), threat.norm).min() > 2  # so a step of l1 norm 2 was possible everywhere


# said before anything runs


@pytest.mark.parametrize("count", [0, -1, 361, 10**9])
def test_a_count_beyond_the_test_set_is_refused(engine: Engine, standard: Checkpoint, count: int) -> None:
    with pytest.raises(UsageError, match=f"--count {count}: digits has 360 test images; use 1 to 360"):
        cell(engine, standard, "fgsm", count=count)


def test_all_images_by_default(engine: Engine, standard: Checkpoint) -> None:
    (job,) = engine.plan([standard], attacks=["fgsm"], threats=[LINF])
    assert job.cell.count == 360


def test_the_usual_threat_is_that_of_training_or_of_the_data_set(
    engine: Engine, standard: Checkpoint, robust: Checkpoint
) -> None:
    jobs = engine.plan([standard, robust], attacks=["fgsm"], count=COUNT)
    assert [str(job.cell.threat) for job in jobs] == ["linf-0.2", "linf-0.2"]


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        ("fgms", "Did you mean 'fgsm'"),
        ("pgd@step=0.01", "cannot cross the ball"),
        ("pgd@steps=0", "must be at least 1"),
        ("pgd@stps=3", "attack pgd.stps: unknown key; did you mean 'steps'"),
        ("pgd-20@loss=kl", "'kl' is not one of"),
        ("test_evaluation:Absent", "cannot import"),
        ("no.such.module:Attack", "cannot import"),
    ],
)
def test_an_attack_that_cannot_be_made_is_refused(
    engine: Engine, standard: Checkpoint, attack: str, expected: str
) -> None:
    with pytest.raises(UsageError, match=expected):
        cell(engine, standard, attack)


def pictures(folder: Path, classes: int, mode: str = "L") -> str:
    for part in ("train", "test"):
        for label in range(classes):
            (folder / part / str(label)).mkdir(parents=True)
            Image.new(mode, (8, 8)).save(folder / part / str(label) / "0.png")
    return f"imagefolder:{folder}"


@pytest.mark.parametrize("classes", [3, 10])
def test_a_data_set_of_another_shape_or_classes_is_refused(
    engine: Engine, standard: Checkpoint, tmp_path: Path, classes: int
) -> None:
    with pytest.raises(CheckpointError, match=f"10 classes of 1x8x8 images; .* has {classes} classes of 3x8x8 images"):
        engine.plan([standard], attacks=["fgsm"], dataset=pictures(tmp_path, classes), count=1)


def test_a_data_set_of_another_size_is_refused_with_the_option_that_makes_it_fit(
    engine: Engine, standard: Checkpoint
) -> None:
    said = r"Evaluate it on digits, make the images its size with --dataset digits@resize=8, or name other checkpoints"
    with pytest.raises(CheckpointError, match=said):
        engine.plan([standard], attacks=["fgsm"], dataset="digits@resize=10", count=1)
    assert engine.plan([standard], attacks=["fgsm"], dataset="digits@resize=8", count=1, threats=[LINF])


def test_a_source_of_another_shape_is_refused(engine: Engine, standard: Checkpoint, tmp_path: Path) -> None:
    other = recipe.load(
        "standard-digits", [("dataset", pictures(tmp_path, 10)), ("validation", 0), ("model", "cnn@width=2")]
    )
    source = train(Run(other, tmp_path / "other", steps=1))
    with pytest.raises(CheckpointError, match="other was trained for 10 classes of 3x8x8"):
        engine.plan([standard], attacks=["fgsm"], sources=[source], threats=[LINF], count=COUNT)


# what is no classifier yet


class StoppedError(Exception):
    """Stands for the end of a process."""


def stopping(count: int) -> Callable[[Progress], None]:
    left = iter(range(count))

    def monitor(progress: Progress) -> None:
        if next(left, None) is None:
            raise StoppedError

    return monitor


def tiny_recipe(name: str = "standard-digits", **changes: object) -> recipe.Recipe:
    small = {"model": "cnn@width=2", "validation": 1200, "stage__0__epochs": 2, "stage__0__batch": 64, **changes}
    return recipe.load(name, [(key.replace("__", "."), value) for key, value in small.items()])


def test_an_encoder_without_a_head_is_refused(engine: Engine, tmp_path: Path) -> None:
    encoder = tiny_recipe(stage__0__method="simclr", stage__0__epochs=1)
    made = train(Run(encoder, tmp_path / "encoder"))
    with pytest.raises(CheckpointError, match="encoder is an encoder without a head: robench train linear --encoder"):
        engine.plan([made], attacks=["fgsm"], threats=[LINF])


def test_a_run_between_its_stages_is_refused(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        train(Run(tiny_recipe("simclr-digits"), tmp_path / "run"), monitor=stopping(6))
    with pytest.raises(
        CheckpointError, match=r"run is not finished \(1 of 2 stages\): the same robench train command goes on"
    ):
        engine.plan([open_checkpoint("run", tmp_path)], attacks=["fgsm"], threats=[LINF])


@pytest.mark.parametrize(("name", "steps"), [("standard-digits", 4), ("simclr-digits", 8)])
def test_a_run_within_its_last_stage_is_refused(engine: Engine, tmp_path: Path, name: str, steps: int) -> None:
    # its best epoch so far is on disk, but a better one may come, and tables would call it by the run's name
    with pytest.raises(StoppedError):
        train(Run(tiny_recipe(name), tmp_path / "run"), monitor=stopping(steps))
    found = open_checkpoint("run", tmp_path)
    assert "not finished" in found.unready
    with pytest.raises(CheckpointError, match="not finished"):
        engine.plan([found], attacks=["fgsm"], threats=[LINF])


def test_a_finished_run_is_ready(standard: Checkpoint) -> None:
    assert standard.unready == ""


def test_an_ensemble_says_whom_it_does_not_attack(standard: Checkpoint, robust: Checkpoint) -> None:
    said: list[str] = []
    engine = Engine(CPU, tell=said.append)
    both = [[standard, robust]]
    assert not engine.plan([standard], attacks=["pgd-5"], threats=[LINF], sources=both, count=COUNT)
    assert said == [f"{standard.name} is a member of pgd-at-digits+standard-digits, so it is no target of it"]


def test_a_source_that_answers_differently_is_told(
    standard: Checkpoint, robust: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(CPU)
    (job,) = engine.plan([robust], attacks=["pgd-5"], threats=[LINF], sources=[standard], count=COUNT)
    plain = engine.evaluate(job)
    loaded, dice = engine.loaded, torch.Generator().manual_seed(0)

    def noisy(checkpoint: Checkpoint) -> torch.nn.Module:
        nets = loaded(checkpoint)
        if checkpoint.sha256 != standard.sha256:
            return nets
        restless = torch.nn.Sequential(nets)
        restless.register_forward_hook(lambda _m, _x, out: out + torch.randn(out.shape, generator=dice))
        return restless

    engine = Engine(CPU)
    monkeypatch.setattr(engine, "loaded", noisy)
    found = engine.evaluate(job)
    assert isinstance(plain, Result)
    assert isinstance(found, Result)
    told = f"on {standard.name}: {standard.name} answers differently each time, so a transfer from it is one of many"
    assert told in found.notes
    assert told not in plain.notes
