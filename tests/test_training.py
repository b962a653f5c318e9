"""The trainer: what it makes depends on recipe and seed alone, and what cannot be trained is refused before it starts."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor

from robench import data, files, keeping, recipe, training
from robench import state as states
from robench.checkpoint import Checkpoint, open_checkpoint
from robench.data import Split
from robench.errors import CheckpointError, DataError, RobenchError, StoreError, TrainingError, UsageError
from robench.losses import distance
from robench.methods.rocl import RoCL
from robench.methods.standard import Standard
from robench.models import Nets
from robench.protocols import Batch, Moment, Progress
from robench.recipe import Recipe
from robench.run import Run, finished
from robench.spec import assignment, digest
from robench.training import FULL, duration, train

Terms = dict[str, Tensor]


def tiny(name: str = "standard-digits", **changes: Any) -> Recipe:
    """A recipe on 237 images with a network of few weights; two dashes stand for a dot: `stage__0__epochs=1`."""
    small = {"model": "cnn@width=2", "validation": 1200, "stage__0__epochs": 2, "stage__0__batch": 64}
    pairs = {**small, **changes}
    return recipe.load(name, [(key.replace("__", "."), value) for key, value in pairs.items()])


def two_stages() -> Recipe:
    return tiny("simclr-digits", stage__1__epochs=2)


class StoppedError(Exception):
    """Stands for the end of a process."""


def after(count: int) -> Callable[[Progress], None]:
    """A monitor that stops the run at a step."""
    left = iter(range(count))

    def monitor(progress: Progress) -> None:
        if next(left, None) is None:
            raise StoppedError

    return monitor


def remains(folder: Path) -> dict[str, object]:
    """Everything a run left, without when and where it was made."""
    found: dict[str, object] = {}
    for path in sorted(folder.iterdir()):
        content: Any = path.read_bytes()
        if path.suffix == ".json":
            content = {k: value for k, value in json.loads(content).items() if k not in ("provenance", "digest")}
            for stage in content.get("cost", ()):
                assert stage.pop("seconds") > 0  # no two runs take the same time; what they did is the same
                stage.pop("device_seconds", None)
        found[path.name] = content
    return found


def written(folder: Path) -> list[Path]:
    """Every file anywhere below a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


def numbers(folder: Path) -> bool:
    """Whether every weight of every checkpoint in a folder is finite."""
    return all(
        bool(tensor.isfinite().all()) for path in folder.glob("*.safetensors") for tensor in load_file(path).values()
    )


# methods from outside

SEEN: list[Tensor] = []


@dataclass(frozen=True)
class Recorder(Standard):
    """Standard training that remembers the images it was given."""

    views: ClassVar[tuple[str, ...]] = ("original",)

    def terms(self, nets: Nets, batch: Batch, at: Moment) -> Terms:
        SEEN.append(batch.views[0])
        return super().terms(nets, batch, at)


@dataclass(frozen=True)
class Diverges(Standard):
    """A loss that is no number from some epoch on."""

    since: int = 0

    def terms(self, nets: Nets, batch: Batch, at: Moment) -> Terms:
        terms = super().terms(nets, batch, at)
        return {"ce": terms["ce"] * float("nan")} if at.epoch >= self.since else terms


@dataclass(frozen=True)
class Explodes(Standard):
    """A finite loss whose gradient is no number: the square root of zero."""

    def terms(self, nets: Nets, batch: Batch, at: Moment) -> Terms:
        return {**super().terms(nets, batch, at), "root": (0 * nets.parts["head"].weight).sum().sqrt()}


@dataclass(frozen=True)
class Undecided(Standard):
    select: ClassVar[str] = "somehow"


# the same recipe and seed, the same weights


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        torch.manual_seed(ord(name))  # the global random state must not matter
        train(Run(two_stages(), tmp_path / name))
    assert remains(tmp_path / "a") == remains(tmp_path / "b")


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    one, two = (train(Run(tiny(), tmp_path / str(seed), seed=seed)) for seed in (0, 1))
    assert one.sha256 != two.sha256


def test_training_leaves_the_global_random_state(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    train(Run(tiny("pgd-at-digits", stage__0__epochs=1), tmp_path / "run"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(Run(two_stages(), folder))
    return remains(folder)


@pytest.mark.parametrize("every", [0.0, 1e9], ids=["saves each epoch", "saves each stage"])
@pytest.mark.parametrize("steps", [0, 2, 4, 6, 7])
def test_a_resumed_run_is_the_uninterrupted_one(
    steps: int, every: float, tmp_path: Path, uninterrupted: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    # three steps an epoch in the first stage, one in the second
    monkeypatch.setattr(keeping, "SAVE_EVERY", every)
    run = Run(two_stages(), tmp_path / "run")
    with pytest.raises(StoppedError):
        train(run, monitor=after(steps))
    assert not finished(run)
    train(run, resume=True)
    assert finished(run)
    assert remains(run.folder) == uninterrupted


def test_a_run_may_end_at_any_write(
    tmp_path: Path, uninterrupted: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "SAVE_EVERY", 0.0)
    write, count = files.write, 0
    for stop in range(100):
        run = Run(two_stages(), tmp_path / str(stop))
        left = iter(range(stop))

        def until(path: Path, content: bytes, left: Any = left) -> None:
            if next(left, None) is None:
                raise StoppedError
            write(path, content)

        monkeypatch.setattr(files, "write", until)
        try:
            train(run)
        except StoppedError:
            monkeypatch.setattr(files, "write", write)
            train(run, resume=True)
            assert remains(run.folder) == uninterrupted, f"stopped at write {stop}"
            count += 1
            continue
        break
    assert count > 10


def test_resuming_nothing_begins(tmp_path: Path, uninterrupted: dict[str, object]) -> None:
    train(Run(two_stages(), tmp_path / "run"), resume=True)
    assert remains(tmp_path / "run") == uninterrupted


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    run = Run(two_stages(), tmp_path / "run")
    with pytest.raises(StoppedError):
        train(run, monitor=after(7))
    path = run.folder / "state.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state\.pt is damaged"):
        train(run, resume=True)


# what it leaves


def test_the_best_epoch_by_validation_and_the_last_are_kept(tmp_path: Path) -> None:
    made = train(Run(tiny(stage__0__epochs=4), tmp_path / "run"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scores = [row["validation clean"] for row in rows]
    assert made.kind == "best"
    assert made.metrics["validation clean"] == max(scores)
    assert made.epoch == 1 + scores.index(max(scores))
    assert open_checkpoint("run@last", tmp_path).epoch == 4


def test_a_method_that_picks_by_robustness_is_judged_by_it(tmp_path: Path) -> None:
    made = train(Run(tiny("pgd-at-digits"), tmp_path / "run"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert made.metrics["validation robust"] == max(row["validation robust"] for row in rows)


def test_without_a_validation_split_the_last_epoch_counts(tmp_path: Path) -> None:
    made = train(Run(tiny(validation=0, stage__0__epochs=1), tmp_path / "run"))
    assert made.kind == "last"
    assert not (tmp_path / "run" / "best.json").exists()


def test_a_finished_run_leaves_no_state(tmp_path: Path, uninterrupted: dict[str, object]) -> None:
    names = {f"{kind}.{end}" for kind in ("best", "last") for end in ("json", "safetensors")}
    assert set(uninterrupted) == {*names, "metrics.jsonl", "run.json"}


def test_progress_ends_at_its_total(tmp_path: Path) -> None:
    told: list[Progress] = []
    train(Run(two_stages(), tmp_path / "run"), monitor=told.append)
    tasks = {progress.task: progress for progress in told}
    assert len(tasks) == 2
    assert all(last.done == last.total for last in tasks.values())
    assert [p.done for p in told] == [*range(1, 7), 1, 2]


def test_a_smoke_run_takes_few_steps_and_may_be_repeated(tmp_path: Path) -> None:
    told: list[Progress] = []
    run = Run(two_stages(), tmp_path / "run", steps=2)
    first = train(run, monitor=told.append)
    assert [progress.done for progress in told] == [1, 2, 1]
    assert all(progress.values[FULL] for progress in told)
    assert train(run).sha256 == first.sha256


@pytest.mark.parametrize(
    ("seconds", "expected"), [(40, "40 s"), (90, "2 min"), (720, "12 min"), (11160, "3.1 h"), (86400 * 45, "45 days")]
)
def test_durations_a_person_can_grasp(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


# what it may look at


def test_held_out_images_are_never_trained_on(tmp_path: Path) -> None:
    SEEN.clear()
    train(Run(tiny(stage__0__method="test_training:Recorder", stage__0__epochs=3), tmp_path / "run"))
    kept, held = data.hold_out(data.load("digits", Split.TRAIN, Path()), 1200)
    assert held is not None
    trained_on = {bytes(image.numpy()) for batch in SEEN for image in (batch * 255).round().to(torch.uint8)}
    assert trained_on <= {bytes(image.numpy()) for image in kept.pixels}
    assert not trained_on & {bytes(image.numpy()) for image in held.pixels}


def test_no_image_comes_twice_in_an_epoch(tmp_path: Path) -> None:
    SEEN.clear()
    train(Run(tiny(stage__0__method="test_training:Recorder", stage__0__epochs=1), tmp_path / "run"))
    assert [len(batch) for batch in SEEN] == [64, 64, 64]
    assert len({bytes(image.numpy()) for batch in SEEN for image in batch}) == 192


def test_training_cannot_read_the_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, asked = data.load, []

    def guarded(name: str, split: Split, root: Path) -> data.Images:
        asked.append(split)
        return load(name, split, root)

    monkeypatch.setattr(data, "load", guarded)
    train(Run(two_stages(), tmp_path / "run"))
    assert asked == [Split.TRAIN]


# losses that are no numbers


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    run = Run(tiny(stage__0__method="test_training:Diverges"), tmp_path / "run")
    with pytest.raises(TrainingError, match=r"no longer finite in epoch 1 .*stage\.0\.optimiser\.lr=0\.05"):
        train(run)
    assert not list(run.folder.glob("*.safetensors"))


def test_a_rate_that_is_too_large_leaves_no_broken_checkpoint(tmp_path: Path) -> None:
    run = Run(tiny(stage__0__optimiser__lr=1e30), tmp_path / "run")
    with pytest.raises(TrainingError, match="no longer finite"):
        train(run)
    assert numbers(run.folder)


def test_the_last_good_epoch_stays(tmp_path: Path) -> None:
    run = Run(tiny(stage__0__method="test_training:Diverges", stage__0__options={"since": 1}), tmp_path / "run")
    with pytest.raises(TrainingError, match="epoch 2"):
        train(run)
    best = open_checkpoint("run", tmp_path)
    assert best.epoch == 1
    best.load()


def test_weights_that_are_no_numbers_are_not_a_checkpoint(tmp_path: Path) -> None:
    # the loss is computed before the step, so the last step of an epoch can break the weights without its notice
    run = Run(
        tiny(stage__0__method="test_training:Explodes", stage__0__epochs=1, stage__0__batch=237), tmp_path / "run"
    )
    with pytest.raises(TrainingError):
        train(run)
    assert numbers(run.folder)


# folders


def test_a_run_stopped_between_two_stages_is_not_finished(
    tmp_path: Path, uninterrupted: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    # the last checkpoint of the first stage is there, the state that follows it is not
    def stop(*_: object) -> None:
        raise StoppedError

    monkeypatch.setattr(states, "save", stop)
    run = Run(two_stages(), tmp_path / "run")
    with pytest.raises(StoppedError):
        train(run)
    assert (run.folder / "last.json").exists()
    assert not finished(run)
    monkeypatch.undo()
    train(run, resume=True)
    assert remains(run.folder) == uninterrupted


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    run = Run(tiny(stage__0__epochs=1), tmp_path / "run")
    made, before = train(run), remains(run.folder)
    assert train(run, monitor=after(0)) == made
    with pytest.raises(UsageError, match="holds this run already, finished"):
        train(run, resume=False)
    assert remains(run.folder) == before


def test_an_unfinished_run_can_be_begun_again(tmp_path: Path, uninterrupted: dict[str, object]) -> None:
    run = Run(two_stages(), tmp_path / "run")
    with pytest.raises(StoppedError):
        train(run, monitor=after(7))
    told: list[Progress] = []
    train(run, resume=False, monitor=told.append)
    assert len(told) == 8
    assert remains(run.folder) == uninterrupted


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (
            lambda folder: Run(tiny(stage__0__optimiser__lr=0.2), folder),
            r"differs in stage\.0\.optimiser\.lr \(0\.1 there, 0\.2 here\)",
        ),
        (lambda folder: Run(tiny("trades-digits"), folder), "differs in .*name"),
        (lambda folder: Run(tiny(), folder, seed=1), r"seed \(0 there, 1 here\)"),
        (lambda folder: Run(tiny(), folder, steps=2), r"steps \(null there, 2 here\)"),
    ],
)
def test_a_folder_that_holds_another_run_is_refused(
    other: Callable[[Path], Run], expected: str, resume: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(Run(tiny(), folder), monitor=after(1))
    before = remains(folder)
    with pytest.raises(UsageError, match=f"holds another run; .*{expected}"):
        train(other(folder), resume=resume)
    assert remains(folder) == before


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"identity": 1, "recipe": 2}'])
def test_a_damaged_marker_is_not_trusted(text: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(text)
    with pytest.raises((StoreError, UsageError), match=r"[Cc]hoose another folder|into another folder"):
        train(Run(tiny(), tmp_path / "run"))


def test_a_checkpoint_from_elsewhere_is_not_overwritten(tmp_path: Path) -> None:
    # someone's weights and their JSON, without the marker a training run leaves
    train(Run(tiny(stage__0__epochs=1), tmp_path / "run"))
    (tmp_path / "run" / "run.json").unlink()
    before = remains(tmp_path / "run")
    with pytest.raises(RobenchError):
        train(Run(tiny(), tmp_path / "run"))
    assert remains(tmp_path / "run") == before


def test_a_folder_that_cannot_be_made_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot write in"):
        train(Run(tiny(), tmp_path / "file" / "run"), monitor=after(0))


# what cannot be trained


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"stage__0__method": "linear"}, r"stage 0 \(linear\) keeps the encoder as it is.*--encoder"),
        ({"stage__0__method": "pgd-at"}, r"threat: --set threat=linf-8/255"),
        ({"stage__0__method": "trades"}, r"threat: --set threat=linf-8/255"),
        ({"stage__0__method": "rocl"}, r"threat: --set threat=linf-8/255"),
        ({"stage__0__options": {"steps": 3}}, r"method standard\.steps: unknown key"),
        ({"stage__0__method": "test_training:Absent"}, "cannot import"),
        ({"stage__0__method": "test_training:Undecided"}, "`select` is 'somehow'"),
        ({"validation": 1437}, "cannot hold out 1437 of 1437"),
        ({"stage__0__optimiser__lr": -1.0}, "lr"),
        ({"stage__0__optimiser__lr": float("nan")}, "lr"),
        ({"stage__0__optimiser__momentum": -1.0}, "momentum"),
        ({"stage__0__optimiser__nesterov": True, "stage__0__optimiser__momentum": 0.0}, "nesterov|Nesterov"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_is_said_before_anything_is_written(
    changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    with pytest.raises((UsageError, DataError), match=expected):
        train(Run(tiny(**changes), tmp_path / "run"), monitor=after(0))
    # a marker left here would turn the corrected command into "holds another run"
    assert not written(tmp_path)


def test_absent_data_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> None:
        raise DataError("absent")

    monkeypatch.setattr(data, "load", absent)
    with pytest.raises(DataError):
        train(Run(tiny(), tmp_path / "run"))
    assert not written(tmp_path)


# encoders from elsewhere


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return train(Run(tiny(stage__0__epochs=1), tmp_path_factory.mktemp("encoder") / "run"))


def linear(**changes: Any) -> Recipe:
    return tiny(stage__0__method="linear", **changes)


def test_a_linear_head_leaves_the_given_encoder(encoder: Checkpoint, tmp_path: Path) -> None:
    made = train(Run(linear(), tmp_path / "run", encoder=encoder))
    before, after_ = encoder.load().encoder.state_dict(), made.load().encoder.state_dict()
    assert all(torch.equal(before[key], after_[key]) for key in before)
    assert made.sha256 != encoder.sha256


def test_a_linear_stage_leaves_the_encoder_of_the_stage_before(tmp_path: Path) -> None:
    run = Run(two_stages(), tmp_path / "run")
    with pytest.raises(StoppedError):
        train(run, monitor=after(6))
    before = load_file(run.folder / "last.safetensors")
    train(run, resume=True)
    now = load_file(run.folder / "last.safetensors")
    encoders = [key for key in before if key.startswith("encoder")]
    assert encoders
    assert all(torch.equal(before[key], now[key]) for key in encoders)


def test_runs_from_two_encoders_are_two_runs(encoder: Checkpoint, tmp_path: Path) -> None:
    other = train(Run(tiny(stage__0__epochs=1), tmp_path / "other", seed=1))
    with pytest.raises(StoppedError):
        train(Run(linear(), tmp_path / "run", encoder=encoder), monitor=after(1))
    with pytest.raises(UsageError, match="holds another run"):
        train(Run(linear(), tmp_path / "run", encoder=other), resume=True)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": "cnn@width=3"}, "is cnn@width=2 for 1x8x8 images; this recipe wants cnn@width=3"),
        # the same weights behind another entrance are another function
        ({"normalise": True}, "normalise"),
    ],
    ids=str,
)
def test_an_encoder_that_does_not_fit_is_refused(
    changes: dict[str, Any], expected: str, encoder: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=expected):
        train(Run(linear(**changes), tmp_path / "run", encoder=encoder), monitor=after(0))
    assert not written(tmp_path)


# what a method measures


def test_what_is_measured_is_logged_and_shown_beside_the_loss(tmp_path: Path) -> None:
    told: list[Progress] = []
    small = {"stage__0__options": {"hidden": 16, "dimensions": 8}, "stage__1__epochs": 1}
    train(Run(tiny("rocl-digits", **small), tmp_path / "run"), monitor=told.append)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    gains = [row["attack gain"] for row in rows if row["method"] == "rocl"]
    assert len(gains) == 2
    assert min(gains) > 0
    assert "attack gain" in told[0].values
    assert not any("attack gain" in row for row in rows if row["method"] == "linear")


@dataclass(frozen=True)
class Reversed(RoCL):
    """RoCL whose attack has the wrong sign: it makes images more recognisable."""

    def apart(self, adv: Tensor, target: Tensor) -> Tensor:
        return -super().apart(adv, target)


def reversed_rocl(**changes: Any) -> Recipe:
    options = {"hidden": 16, "dimensions": 8, "steps": 2}
    return tiny("rocl-digits", stage__0__method=f"{__name__}:Reversed", stage__0__options=options, **changes)


def test_an_attack_with_the_wrong_sign_warns_once_and_stops_after_an_epoch(tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(TrainingError, match=r"gains -\d.* over the whole of epoch 1, and must gain more than 0"):
        train(Run(reversed_rocl(), tmp_path / "run", tell=told.append))
    (warning,) = told
    assert "warning: the attack of stage 0" in warning
    assert "gains -" in warning
    assert "sign of the attack's loss" in warning
    assert not (tmp_path / "run" / "last.json").exists()


@pytest.mark.parametrize("loss", ["mse", "l1", "cosine"])
def test_a_distance_with_the_wrong_sign_stops_too(loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robench.methods.rocl.distance", lambda *given: -distance(*given))
    options = {"hidden": 16, "dimensions": 8, "steps": 2, "attack_loss": loss}
    with pytest.raises(TrainingError, match="must gain more than 0"):
        train(Run(tiny("rocl-digits", stage__0__options=options), tmp_path / "run"))


def test_a_ball_of_radius_0_leaves_nothing_to_gain_and_is_no_fault(tmp_path: Path) -> None:
    told: list[str] = []
    train(
        Run(reversed_rocl(threat="linf-0", stage__0__epochs=1, stage__1__epochs=1), tmp_path / "run", tell=told.append)
    )
    assert told == []


def test_the_command_line_passes_the_warning_on(
    tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RoCL, "apart", lambda self, adv, target: -RoCL.unrecognised(self, adv, target))
    line = ("train", "rocl-digits", "--set", "model=cnn@width=2", "--smoke", "--checkpoints", tmp_path)
    code, _, err = run_cli(*line)
    assert code == 2
    assert err.count("warning: the attack of stage 0 (rocl) gains -") == 1
    assert err.count("the attack of stage 0 (rocl) gains -") == 2  # and the error


@pytest.mark.parametrize(
    ("name", "changes", "fewest"),
    [
        ("simclr-digits", {}, 2),
        ("rocl-digits", {}, 2),
        ("rocl-digits", {"stage__0__options": {"groups": 2}}, 4),
    ],
    ids=str,
)
def test_a_batch_in_which_nothing_can_be_compared_is_refused(
    name: str, changes: dict[str, Any], fewest: int, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=rf"at least {fewest} a step, not 1: --set stage\.0\.batch={fewest}"):
        train(Run(tiny(name, **{**changes, "stage__0__batch": 1}), tmp_path / "run"), monitor=after(0))
    assert not written(tmp_path)


# protocols on an encoder

HEADS = {"hidden": 16, "dimensions": 8}


@pytest.fixture(scope="module")
def projected(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """An encoder that comes with a projector."""
    recipe_ = tiny("simclr-digits", stage__0__epochs=1, stage__0__options=HEADS, stage__1__epochs=1)
    return train(Run(recipe_, tmp_path_factory.mktemp("projected") / "run"))


def protocol(method: str, **changes: Any) -> Recipe:
    return tiny(threat="linf-0.1", stage__0__method=method, **changes)


@pytest.mark.parametrize("method", ["finetune-at", "finetune-trades", "finetune-at-ss"])
def test_fine_tuning_wants_a_trained_encoder(method: str, projected: Checkpoint, tmp_path: Path) -> None:
    options = HEADS if method == "finetune-at-ss" else {}
    asked = protocol(method, stage__0__options=options, stage__0__epochs=1)
    with pytest.raises(UsageError, match=rf"stage 0 \({method}\) fine-tunes an encoder, and nothing has trained one"):
        train(Run(asked, tmp_path / "without"))
    made = train(Run(asked, tmp_path / "run", encoder=projected))
    before, after_ = projected.load().encoder.state_dict(), made.load().encoder.state_dict()
    assert not any(torch.equal(before[key], after_[key]) for key in before if key.endswith("weight"))


@pytest.mark.parametrize("method", ["robust-linear", "finetune-at", "finetune-trades"])
def test_a_protocol_against_an_adversary_wants_a_threat(method: str, projected: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"stage 0 \({method}\) needs a threat: --set threat=linf-8/255"):
        train(Run(tiny(stage__0__method=method), tmp_path / "run", encoder=projected))
    assert not written(tmp_path)


@pytest.mark.parametrize("bn", ["train", "frozen"])
def test_frozen_norms_keep_the_statistics_the_encoder_came_with(bn: str, projected: Checkpoint, tmp_path: Path) -> None:
    asked = protocol("finetune-at", stage__0__options={"bn": bn}, stage__0__epochs=1)
    made = train(Run(asked, tmp_path / "run", encoder=projected))
    before, after_ = projected.load().encoder.state_dict(), made.load().encoder.state_dict()
    still = [torch.equal(before[key], after_[key]) for key in before if "running" in key]
    assert still == [bn == "frozen"] * len(still)


def test_the_projector_of_the_encoder_is_taken_along(projected: Checkpoint, tmp_path: Path) -> None:
    # at a rate of zero nothing moves, so it can be seen where the projector came from
    asked = protocol("finetune-at-ss", stage__0__options=HEADS, stage__0__epochs=1, stage__0__optimiser__lr=0.0)
    given, fresh = (
        train(Run(asked, tmp_path / name, encoder=encoder_)).load().parts["projector"].state_dict()
        for name, encoder_ in (("given", projected), ("fresh", plain_encoder(tmp_path)))
    )
    theirs = projected.load().parts["projector"].state_dict()
    assert all(torch.equal(given[key], theirs[key]) for key in theirs)
    assert not any(torch.equal(fresh[key], theirs[key]) for key in theirs)


def plain_encoder(folder: Path) -> Checkpoint:
    return train(Run(tiny(stage__0__epochs=1), folder / "plain"))


def test_the_projector_of_an_earlier_stage_is_taken_along(tmp_path: Path) -> None:
    changes = {
        "threat": "linf-0.1",
        "stage__0__epochs": 1,
        "stage__0__options": HEADS,
        "stage__1__method": "finetune-at-ss",
        "stage__1__options": HEADS,
        "stage__1__epochs": 1,
        "stage__1__optimiser__lr": 0.0,
    }
    run = Run(tiny("simclr-digits", **changes), tmp_path / "run")
    with pytest.raises(StoppedError):
        train(run, monitor=after(3))
    first = load_file(run.folder / "last.safetensors")
    train(run, resume=True)
    last = load_file(run.folder / "last.safetensors")
    projectors = [key for key in first if "projector" in key]
    assert projectors
    assert all(torch.equal(first[key], last[key]) for key in projectors)


def test_a_projector_of_another_shape_is_refused(projected: Checkpoint, tmp_path: Path) -> None:
    asked = protocol("finetune-at-ss", stage__0__options={"hidden": 32, "dimensions": 8})
    with pytest.raises(CheckpointError, match=r"the projector that the encoder comes with .*stage\.0\.options"):
        train(Run(asked, tmp_path / "run", encoder=projected), monitor=after(0))
    assert not written(tmp_path)


def exact(**changes: Any) -> Recipe:
    return tiny(stage__0__method="linear", stage__0__options={"solver": "exact"}, stage__0__epochs=1, **changes)


def test_an_exact_head_depends_on_neither_batch_nor_seed(encoder: Checkpoint, tmp_path: Path) -> None:
    heads = []
    for number, (batch, seed) in enumerate([(64, 0), (237, 1)]):
        asked = exact(stage__0__batch=batch, stage__0__augment={"name": "none"})
        made = train(Run(asked, tmp_path / str(number), encoder=encoder, seed=seed))
        heads.append(made.load().parts["head"].state_dict())
        assert made.metrics["gradient"] <= 1e-7
    assert torch.allclose(heads[0]["weight"], heads[1]["weight"], atol=1e-4)


def test_an_exact_head_is_at_least_as_good_on_its_images_as_a_stepped_one(encoder: Checkpoint, tmp_path: Path) -> None:
    small = {"stage__0__augment": {"name": "none"}}
    solved = train(Run(exact(**small), tmp_path / "exact", encoder=encoder))
    stepped = train(Run(linear(stage__0__epochs=5, **small), tmp_path / "sgd", encoder=encoder))
    assert solved.metrics["ce"] < stepped.metrics["ce"]


@pytest.mark.parametrize("changes", [{"stage__0__epochs": 2}, {"stage__0__augment": {"name": "crop-flip"}}], ids=str)
def test_an_exact_head_has_no_use_for_epochs_or_views(
    changes: dict[str, Any], encoder: Checkpoint, tmp_path: Path
) -> None:
    asked = {"stage__0__augment": {"name": "none"}, "stage__0__epochs": 1, "stage__0__method": "linear", **changes}
    with pytest.raises(UsageError, match=r"--set stage\.0\.epochs=1 --set stage\.0\.augment\.name=none"):
        train(Run(tiny(stage__0__options={"solver": "exact"}, **asked), tmp_path / "run", encoder=encoder))
    assert not written(tmp_path)


def test_a_smoke_run_needs_no_trained_encoder(tmp_path: Path) -> None:
    for method in ("linear", "robust-linear", "finetune-at"):
        told: list[Progress] = []
        train(Run(protocol(method), tmp_path / method, steps=2), monitor=told.append)
        assert told[-1].values[FULL]


# few labels, and looks at what has none


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_stages_that_read_labels_get_the_share_they_may_read(tmp_path: Path) -> None:
    SEEN.clear()
    few = tiny(stage__0__method="test_training:Recorder", stage__0__epochs=1, labels=0.2, stage__0__batch=8)
    train(Run(few, tmp_path / "run", seed=3))
    kept, _ = data.hold_out(data.load("digits", Split.TRAIN, Path()), 1200)
    allowed = {bytes(image.numpy()) for image in data.labelled(kept, 0.2, 3).pixels}
    seen = {bytes(image.numpy()) for batch in SEEN for image in (batch * 255).round().to(torch.uint8)}
    assert seen <= allowed
    assert len(allowed) < 60


@dataclass(frozen=True)
class LabelFree(Recorder):
    """A method that says it reads no labels."""

    supervised: ClassVar[bool] = False


def test_stages_that_read_no_labels_get_every_image(tmp_path: Path) -> None:
    SEEN.clear()
    few = tiny(stage__0__method="test_training:LabelFree", stage__0__epochs=1, stage__0__batch=79, labels=0.2)
    train(Run(few, tmp_path / "run"))
    assert sum(map(len, SEEN)) == 237


@pytest.mark.parametrize("labels", [0.0, -0.1, 1.5, float("nan")])
def test_a_share_of_labels_is_above_0_and_up_to_1(labels: float) -> None:
    with pytest.raises(UsageError, match="labels must be a share above 0 and up to 1"):
        tiny(labels=labels)


def test_a_share_of_labels_that_leaves_a_class_empty_leaves_no_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels=0\.01 leaves no image of class"):
        train(Run(tiny(labels=0.01), tmp_path / "run"), monitor=after(0))
    assert not written(tmp_path)


def test_stages_without_a_classifier_are_looked_at_now_and_then(tmp_path: Path) -> None:
    train(Run(tiny("simclr-digits", stage__0__epochs=5, stage__0__probe=2, stage__1__epochs=2), tmp_path / "run"))
    rows = rows_of(tmp_path / "run")
    looked = [(row["stage"], row["epoch"]) for row in rows if "validation knn" in row]
    assert looked == [(0, 2), (0, 4), (0, 5)]
    assert all({"validation knn", "validation ridge"} <= set(row) for row in rows if "validation knn" in row)
    assert all(0 < row["validation knn"] <= 1 for row in rows if "validation knn" in row)


def test_looking_changes_no_weight(tmp_path: Path) -> None:
    made = [
        train(Run(tiny("simclr-digits", stage__0__probe=every, stage__1__epochs=1), tmp_path / str(every)))
        for every in (0, 1)
    ]
    assert made[0].sha256 == made[1].sha256
    assert not any("validation knn" in row for row in rows_of(tmp_path / "0"))


def test_looks_read_no_more_labels_than_training_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def counted(nets: Nets, kept: data.Images, held: data.Images) -> dict[str, float]:
        counts.append(len(kept))
        return {}

    monkeypatch.setattr(training, "probe", counted)
    train(Run(tiny("simclr-digits", stage__0__probe=1, stage__1__epochs=1, labels=0.2), tmp_path / "run"))
    assert counts == [len(data.labelled(data.hold_out(data.load("digits", Split.TRAIN, Path()), 1200)[0], 0.2, 0))] * 2


# encoders for other data


def own_images(folder: Path, size: int, classes: int) -> str:
    generator = torch.Generator().manual_seed(0)
    for part in ("train", "test"):
        for label in range(classes):
            (folder / part / str(label)).mkdir(parents=True)
            for number in range(3):
                pixels = torch.randint(256, (size, size, 3), generator=generator).to(torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / part / str(label) / f"{number}.png")
    return f"imagefolder:{folder}"


def test_a_head_for_other_classes_and_another_size(tmp_path: Path) -> None:
    source = own_images(tmp_path / "source", 8, 2)
    target = own_images(tmp_path / "target", 12, 3)
    small = {"validation": 0, "stage__0__batch": 6, "stage__0__epochs": 1}
    encoder_ = train(Run(tiny(dataset=source, **small), tmp_path / "encoder"))
    with pytest.raises(
        CheckpointError, match=r"is cnn@width=2 for 3x8x8 images; .* for 3x12x12 images\. Use --resize 8$"
    ):
        train(Run(linear(dataset=target, **small), tmp_path / "run", encoder=encoder_))
    asked = linear(dataset=target, resize=8, **small)
    made = train(Run(asked, tmp_path / "run", encoder=encoder_))
    assert (made.shape, made.classes) == ((3, 8, 8), 3)
    assert made.recipe.dataset == f"{target}@resize=8"
    again = open_checkpoint("run", tmp_path)
    assert data.load(again.recipe.dataset, Split.TEST, Path()).shape == again.shape
    before, after_ = encoder_.load().encoder.state_dict(), again.load().encoder.state_dict()
    assert all(torch.equal(before[key], after_[key]) for key in before)


def test_a_size_cannot_mend_other_channels(encoder: Checkpoint, tmp_path: Path) -> None:
    target = own_images(tmp_path / "target", 8, 2)
    with pytest.raises(CheckpointError, match=r"Use --dataset digits$"):
        train(Run(linear(dataset=target, validation=0), tmp_path / "run", encoder=encoder))


def test_a_checkpoint_without_an_encoder_has_no_place_for_a_head(tmp_path: Path) -> None:
    made = train(Run(tiny(stage__0__epochs=1), tmp_path / "made"))
    tensors = {key: value for key, value in load_file(made.folder / "best.safetensors").items() if "encoder" not in key}
    content = save(tensors)
    (made.folder / "best.safetensors").write_bytes(content)
    described = json.loads((made.folder / "best.json").read_text())
    described["sha256"] = files.sha256(content)
    del described["digest"]
    (made.folder / "best.json").write_text(json.dumps({**described, "digest": digest(described)}))
    with pytest.raises(CheckpointError, match=r"best\.safetensors holds no encoder"):
        train(Run(linear(), tmp_path / "run", encoder=open_checkpoint("made", tmp_path)))
    assert not (tmp_path / "run").exists() or not written(tmp_path / "run")


def test_python_is_not_toml_when_it_comes_to_no() -> None:
    # in the released code any text, False too, is true
    for text in ("False", "no", "0", "off"):
        with pytest.raises(UsageError, match=r"nesterov: expected bool"):
            recipe.load("standard-digits", [assignment(f"stage.0.optimiser.nesterov={text}")])
    assert (
        not recipe.load("standard-digits", [assignment("stage.0.optimiser.nesterov=false")]).stage[0].optimiser.nesterov
    )
