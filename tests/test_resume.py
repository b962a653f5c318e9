"""Whatever ends a training run, the same call again leaves the bytes that an uninterrupted run leaves, and nothing else."""

import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from crash import Disk, killed, lay, mounted
from test_training import StoppedError as Stopped
from test_training import after, numbers, remains, rows_of, tiny, two_stages
from torch import Tensor, nn

from robench import checkpoint, files, keeping, recipe, training
from robench import state as states
from robench.checkpoint import nets_after, open_checkpoint
from robench.cli import main
from robench.errors import DataError, DiskFullError, StoppedError, StoreError, TrainingError, UsageError
from robench.methods.standard import Standard
from robench.models import Nets
from robench.optimiser import optimiser_for
from robench.protocols import Batch, Moment, Progress
from robench.recipe import Optimiser, Recipe
from robench.run import Run, finished
from robench.signals import Asked, listening
from robench.state import State
from robench.threat import ThreatModel
from robench.training import train

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def saves_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The most moments to be cut off at."""
    monkeypatch.setattr(keeping, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(keeping, "SHARE", float("inf"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What an uninterrupted run of two stages leaves."""
    run = Run(two_stages(), tmp_path_factory.mktemp("whole") / "run")
    train(run)
    return remains(run.folder)


@dataclass(frozen=True)
class Forgetful(Standard):
    """Cross-entropy behind a dropout that draws from the global generator, as code from elsewhere does."""

    def terms(self, nets: Nets, batch: Batch, at: Moment) -> dict[str, Tensor]:
        x = nn.functional.dropout(batch.views[0], 0.2)
        return {"ce": nn.functional.cross_entropy(nets(x), batch.y)}


# inside an epoch


@pytest.mark.parametrize("steps", range(8))
def test_a_run_goes_on_from_the_very_step(steps: int, tmp_path: Path, whole: dict[str, object]) -> None:
    run = Run(two_stages(), tmp_path / "run")
    with pytest.raises(Stopped):
        train(run, monitor=after(steps))
    told: list[Progress] = []
    train(run, monitor=told.append)
    assert remains(run.folder) == whole
    assert len(told) == 8 - steps  # the step that was cut off is taken again, and no other


def test_what_draws_from_the_global_generator_repeats_too(tmp_path: Path) -> None:
    asked = tiny(stage__0__method="test_resume:Forgetful")
    train(Run(asked, tmp_path / "whole"))
    torch.manual_seed(17)
    with pytest.raises(Stopped):
        train(Run(asked, tmp_path / "run"), monitor=after(4))
    torch.manual_seed(18)
    train(Run(asked, tmp_path / "run"))
    assert remains(tmp_path / "run") == remains(tmp_path / "whole")
    other = train(Run(tiny(), tmp_path / "other"))
    assert other.sha256 != open_checkpoint("run", tmp_path).sha256  # it did draw


@pytest.mark.parametrize("name", ["rocl-digits", "rst-digits", "trades-digits"])
def test_methods_with_more_state_go_on_too(name: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"stage__0__epochs": 1, "stage__0__batch": 64}
    if name == "rocl-digits":
        changes |= {"stage__0__options": {"hidden": 16, "dimensions": 8}}
    if name != "trades-digits":
        changes |= {"stage__1__epochs": 1, "stage__1__batch": 64}
    asked, count = tiny(name, **changes), len(list(_steps(tiny(name, **changes), tmp_path / "whole")))
    for steps in range(1, count, max(count // 3, 1)):
        run = Run(asked, tmp_path / str(steps))
        with pytest.raises(Stopped):
            train(run, monitor=after(steps))
        train(run)
        assert remains(run.folder) == remains(tmp_path / "whole")


def _steps(asked: Recipe, folder: Path) -> Iterator[Progress]:
    told: list[Progress] = []
    train(Run(asked, folder), monitor=told.append)
    yield from told


# kill -9


def _points(tmp_path: Path) -> list[tuple[str, str]]:
    """Every named point that a run passes, in order."""
    reached = []
    files.hook = lambda point, path: reached.append((point, path.name))
    try:
        train(Run(two_stages(), tmp_path / "counted"))
    finally:
        files.hook = None
    return reached


def test_killed_at_named_points_and_run_again(tmp_path: Path, whole: dict[str, object]) -> None:
    reached = _points(tmp_path)
    assert {point for point, _ in reached} == set(files.POINTS)
    chosen = random.Random(0).sample(range(len(reached)), 20)
    chosen += [len(reached) - 1, 0]  # after the very last write, and before the first
    _kill_each(chosen, tmp_path, whole)


@pytest.mark.nightly
def test_killed_at_every_named_point_and_run_again(tmp_path: Path, whole: dict[str, object]) -> None:
    _kill_each(range(len(_points(tmp_path))), tmp_path, whole)


def _kill_each(points: Any, tmp_path: Path, whole: dict[str, object]) -> None:
    for number in points:
        run = Run(two_stages(), tmp_path / str(number))
        assert killed(lambda run=run: train(run), at=number)
        train(run)
        assert remains(run.folder) == whole, f"killed at point {number}"


def _kill_at_random(count: int, tmp_path: Path, whole: dict[str, object]) -> int:
    """Kill runs at random moments, again and again until they end; returns how often one was killed."""
    chance, kills, number = random.Random(count), 0, 0
    began = time.monotonic()
    train(Run(two_stages(), tmp_path / "timed"))
    took = time.monotonic() - began
    while kills < count:
        run = Run(two_stages(), tmp_path / str(number))
        number += 1
        while killed(lambda run=run: train(run), after=chance.uniform(0, took)):
            kills += not finished(run)
        assert remains(run.folder) == whole, f"run {number}"
    return kills


def test_killed_at_random_moments_and_run_again(tmp_path: Path, whole: dict[str, object]) -> None:
    assert _kill_at_random(4, tmp_path, whole) >= 4


@pytest.mark.nightly
def test_killed_at_random_moments_very_often(tmp_path: Path, whole: dict[str, object]) -> None:
    assert _kill_at_random(100, tmp_path, whole) >= 100


def test_a_killed_command_goes_on_by_the_same_command(
    tmp_path: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the command saves as it always does
    changes = {"model": "cnn@width=2", "validation": 1200, "stage.0.epochs": 4, "stage.0.batch": 16}
    train(Run(recipe.load("standard-digits", changes.items()), tmp_path / "whole"))
    folder = tmp_path / "cut"
    command = ["train", "standard-digits", "--threads", "1", "--out", str(folder)]
    command += [part for pair in changes.items() for part in ("--set", "=".join(map(str, pair)))]
    assert killed(lambda: main(command), at=40)
    assert (folder / "best.json").exists()
    assert not (folder / "last.json").exists()
    code, _, err = run_cli(*command)
    assert code == 0
    assert "going on with the run that was interrupted" in err
    assert remains(folder) == remains(tmp_path / "whole")


# power cuts


def test_after_any_power_cut_everything_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, object]
) -> None:
    count = _cut_the_power(tmp_path, monkeypatch, whole, again=60)
    assert count > 100


@pytest.mark.nightly
def test_after_any_power_cut_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, object]
) -> None:
    _cut_the_power(tmp_path, monkeypatch, whole, again=1)


def _cut_the_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, object], again: int) -> int:
    """Read everything on every disk a power cut may leave, and go on from every so many of them."""
    root = lay({}, tmp_path / "disk")
    with Disk(root).recording(monkeypatch) as disk:
        train(Run(two_stages(), root / "run"))
    number = 0
    for number, (_, state) in enumerate(disk.crashes()):
        folder = lay(state, tmp_path / "cut" / str(number)) / "run"
        run = Run(two_stages(), folder)
        for kind in ("best", "last"):
            if (folder / f"{kind}.json").exists():
                open_checkpoint(f"{folder}@{kind}", tmp_path).load()
        if states.path_of(run).exists():
            states.restore(run, nets_after(run.recipe, 0, 10, (1, 8, 8)), _images())
        if number % again == 0:
            train(run)
            assert remains(folder) == whole
    return number


def _images() -> Any:
    return training.data.load("digits", training.Split.TRAIN, Path())


# signals


def at_step(number: int, action: Callable[[], object]) -> Callable[[Progress], None]:
    """A monitor that does something once, at a step."""
    left = iter(range(number))
    done: list[int] = []

    def monitor(_: Progress) -> None:
        if next(left, None) is None and not done:
            done.append(1)
            action()

    return monitor


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("step", [0, 3, 7])
def test_a_signal_stops_after_the_step_under_way(
    name: str, step: int, tmp_path: Path, whole: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "SAVE_EVERY", 1e9)  # only the signal saves
    run, number = Run(two_stages(), tmp_path / "run"), getattr(signal, name)
    monitor = at_step(step, lambda: os.kill(os.getpid(), number))
    with (
        pytest.raises(StoppedError, match=rf"stopped by {name} at stage {step // 6}, epoch") as caught,
        listening() as asked,
    ):
        train(run, monitor=monitor, asked=asked)
    assert caught.value.signal == number
    assert not finished(run)
    told: list[Progress] = []
    train(run, monitor=told.append)
    assert len(told) == 8 - step - 1  # no step was lost
    assert remains(run.folder) == whole


def test_a_warning_saves_and_goes_on(tmp_path: Path, whole: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "SAVE_EVERY", 1e9)
    run, saved = Run(two_stages(), tmp_path / "run"), []
    save = states.save
    monkeypatch.setattr(states, "save", lambda *given: (saved.append(given[3].step), save(*given)))
    with listening() as asked:
        train(run, monitor=at_step(1, lambda: os.kill(os.getpid(), signal.SIGUSR1)), asked=asked)
    assert saved == [2, 0]  # when asked, and at the end of the first stage
    assert remains(run.folder) == whole


def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), listening() as asked:
        train(Run(two_stages(), tmp_path / "run"), monitor=at_step(1, twice), asked=asked)


def test_handlers_are_given_back() -> None:
    wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in wanted]
    with listening():
        assert [signal.getsignal(number) for number in wanted] != before
    assert [signal.getsignal(number) for number in wanted] == before


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_the_command_exits_as_shells_expect(
    name: str, code: int, tmp_path: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = training.train

    def with_signal(run: Run, *, monitor: Any, **given: Any) -> checkpoint.Checkpoint:
        def both(progress: Progress) -> None:
            monitor(progress)
            once(progress)

        return real(run, monitor=both, **given)

    once = at_step(1, lambda: os.kill(os.getpid(), getattr(signal, name)))
    command = ("train", "standard-digits", "--set", "model=cnn@width=2", "--set", "stage.0.epochs=1")
    with monkeypatch.context() as patched:
        patched.setattr(training, "train", with_signal)
        found, _, err = run_cli(*command, "--out", tmp_path / "run")
    assert found == code
    assert f"stopped by {name} at stage 0, epoch 1, step 2" in err
    assert "error" not in err
    assert run_cli(*command, "--out", tmp_path / "run")[0] == 0


# what saving costs


@pytest.mark.parametrize(("takes", "pause"), [(0.1, 60.0), (0.3, 60.0), (3.0, 600.0)])
def test_saving_takes_a_small_share_of_the_time(
    takes: float, pause: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    run = Run(tiny(), tmp_path / "run")
    nets = nets_after(run.recipe, 1, 10, (1, 8, 8))
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(states, "save", lambda *_: now.__setitem__(0, now[0] + takes))
    keeper = keeping.Keeper(
        run, nets, optimiser_for(Optimiser(0.1), list(nets.parameters())), State(), _images(), Asked()
    )
    keeper.save()
    assert keeper.pause == pytest.approx(pause)
    assert takes / keeper.pause <= 0.005 + 1e-9
    for later, due in ((0.999, False), (1.001, True)):
        now[0] = keeper.saved + later * pause
        assert keeper.due == due


# what is not the same run


def test_other_images_than_the_run_began_with_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(two_stages(), tmp_path / "run")
    with pytest.raises(Stopped):
        train(run, monitor=after(3))
    load = training.data.load
    monkeypatch.setattr(training.data, "load", lambda *given: load(*given).take(slice(1, None)))
    with pytest.raises(DataError, match=r"other images than when this run began .*--restart"):
        train(run)


def test_a_run_that_another_process_trains_is_left_alone(tmp_path: Path) -> None:
    run = Run(two_stages(), tmp_path / "run")
    with pytest.raises(Stopped):
        train(run, monitor=after(3))
    before = remains(run.folder)
    with files.lock(run.folder), pytest.raises(UsageError, match="another process is training into"):
        train(run)
    assert remains(run.folder) == before


# bad luck


def test_a_full_disk_keeps_the_state_before(
    tmp_path: Path, whole: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    for room in range(0, 200_000, 20_000):
        run, left = Run(two_stages(), tmp_path / str(room)), [room]

        def until_full(handle: int, content: Any, left: list[int] = left) -> int:
            if len(content) > left[0]:
                raise OSError(28, "No space left on device")
            left[0] -= len(content)
            return write(handle, content)

        with monkeypatch.context() as patched:
            patched.setattr(os, "write", until_full)
            with pytest.raises(DiskFullError, match=r"cannot write .*bytes\): No space left on device"):
                train(run)
        for kind in ("best", "last"):
            if (run.folder / f"{kind}.json").exists():
                open_checkpoint(f"{run.folder}@{kind}", tmp_path).load()
        train(run)
        assert remains(run.folder) == whole


def test_a_full_disk_has_an_exit_code_of_its_own(tmp_path: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise DiskFullError(f"cannot write {path}")

    monkeypatch.setattr(files, "write", full)
    assert run_cli("train", "standard-digits", "--out", tmp_path / "run")[0] == 74


@pytest.mark.parametrize("room", [20, 44])
def test_a_disk_that_is_really_full_keeps_what_was_there_and_the_same_command_goes_on(
    room: int, tmp_path: Path, run_cli: Cli
) -> None:
    sizes = {"model": "cnn@width=2", "validation": 1200, "stage.0.epochs": 2, "stage.0.batch": 64}
    train(Run(recipe.load("standard-digits", sizes.items()), tmp_path / "whole"))
    folder = tmp_path / "disk" / "run"
    command = ["train", "standard-digits", "--threads", 1, "--out", folder]
    command += [part for pair in sizes.items() for part in ("--set", "=".join(map(str, pair)))]
    with mounted(tmp_path / "disk", f"size={room}k") as remount:
        code, _, err = run_cli(*command)
        assert code == 74
        assert re.search(rf"error: cannot write {folder}/\S+ \([0-9,]+ bytes\): No space left on device", err)
        for kind in ("best", "last"):
            if (folder / f"{kind}.json").exists():
                open_checkpoint(f"{folder}@{kind}", tmp_path).load()
        assert (folder / "state.pt").exists() == (room == 44)
        remount("size=16m")
        assert run_cli(*command)[0] == 0
        assert remains(folder) == remains(tmp_path / "whole")


def test_a_folder_that_cannot_be_written_is_said_before_the_first_step(
    tmp_path: Path, whole: dict[str, object]
) -> None:
    run = Run(two_stages(), tmp_path / "disk" / "run")
    with mounted(tmp_path / "disk", "ro") as remount:
        with pytest.raises(StoreError, match="Read-only file system"):
            train(run, monitor=after(0))
        remount("rw")
        with pytest.raises(Stopped):
            train(run, monitor=after(3))
        before = remains(run.folder)
        remount("ro")
        with pytest.raises(StoreError, match="Read-only file system"):
            train(run, monitor=after(0))
        assert remains(run.folder) == before
        remount("rw")
        train(run)
        assert remains(run.folder) == whole


@dataclass(frozen=True)
class DivergesAt(Standard):
    """A loss that is no number at one step."""

    epoch: int = 1
    step: int = 1
    seen: ClassVar[dict[int, int]] = {}

    def terms(self, nets: Nets, batch: Batch, at: Moment) -> dict[str, Tensor]:
        step = self.seen[at.epoch] = self.seen.get(at.epoch, -1) + 1
        terms = super().terms(nets, batch, at)
        return {"ce": terms["ce"] * (float("nan") if (at.epoch, step) == (self.epoch, self.step) else 1.0)}


def test_a_loss_that_is_no_number_stops_at_its_step_and_keeps_what_was_good(tmp_path: Path) -> None:
    DivergesAt.seen.clear()
    told: list[Progress] = []
    run = Run(tiny(stage__0__method="test_resume:DivergesAt"), tmp_path / "run")
    with pytest.raises(
        TrainingError, match=r"no longer finite in epoch 2 at step 2 of stage 0 .*seed 0.*--set stage\.0"
    ):
        train(run, monitor=told.append)
    assert len(told) == 4  # three steps of the first epoch, and one
    assert open_checkpoint("run", tmp_path).epoch == 1
    assert numbers(run.folder)
    state, _ = states.restore(run, nets_after(run.recipe, 0, 10, (1, 8, 8)), _images())
    assert (state.epoch, state.step) == (1, 1)


@dataclass(frozen=True)
class Large(Standard):
    """A step that needs more memory than there is."""

    def terms(self, nets: Nets, batch: Batch, at: Moment) -> dict[str, Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("name", "changes", "ways"),
    [
        ("standard-digits", {}, r"64 images a step\. --set stage\.0\.accumulate=2 takes the same images in 2 parts, or "
         r"--set stage\.0\.batch=32 takes fewer: another run, so with another --out"),
        ("standard-digits", {"stage__0__accumulate": 8}, r"64 images a step in 8 parts\. --set stage\.0\.accumulate=16 takes"),
        ("standard-digits", {"stage__0__batch": 1}, r"1 images a step, and it cannot be fewer: take a smaller --model"),
    ],
)  # fmt: skip
def test_a_step_that_needs_too_much_memory_says_what_would_fit(
    name: str, changes: dict[str, int], ways: str, tmp_path: Path
) -> None:
    asked = tiny(name, stage__0__method="test_resume:Large", **changes)
    with pytest.raises(TrainingError, match=rf"stage 0 .* does not fit into the memory of cpu with {ways}"):
        train(Run(asked, tmp_path / "run"))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["run.json"]


def test_a_method_that_compares_the_images_of_a_batch_is_not_told_to_cut_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_run_stage", lambda *_: torch.zeros(2**45))  # which no machine has room for
    with pytest.raises(
        TrainingError, match=r"with 64 images a step\. --set stage\.0\.batch=32 takes fewer: another run"
    ):
        train(Run(two_stages(), tmp_path / "run"))


def test_validation_halves_what_does_not_fit_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    images = training.data.load("digits", training.Split.TEST, Path()).take(slice(100))
    torch.manual_seed(0)
    nets = nets_after(tiny(), 1, 10, (1, 8, 8)).eval()
    threat = ThreatModel.parse("linf-0.01")
    usual = training.validate(nets, images, threat, seed=3)
    forward = Nets.forward

    def narrow(self: Nets, x: Tensor) -> Tensor:
        return torch.zeros(2**45) if len(x) > 30 else forward(self, x)

    monkeypatch.setattr(Nets, "forward", narrow)
    assert training.validate(nets, images, threat, seed=3) == {**usual, "images validated at once": 25.0}
    assert usual["validation clean"] > 0
    monkeypatch.setattr(Nets, "forward", lambda self, x: torch.zeros(2**45))
    with pytest.raises(RuntimeError, match="allocate"):
        training.validate(nets, images, threat, seed=3)


def test_a_clock_that_steps_back_changes_nothing(
    tmp_path: Path, whole: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(ticks)))
    run = Run(two_stages(), tmp_path / "run")
    with pytest.raises(Stopped):
        train(run, monitor=after(4))
    train(run)
    assert remains(run.folder) == whole
    assert len(rows_of(run.folder)) == 4


@pytest.mark.parametrize("name", ["a" * 255, "größe 数字 \U0001f600", "a b", "-run", "@last"])
def test_runs_with_unusual_names(name: str, tmp_path: Path, whole: dict[str, object]) -> None:
    made = train(Run(two_stages(), tmp_path / name))
    assert made.folder.name == name
    assert remains(tmp_path / name) == whole


def test_asking_is_free_of_state() -> None:
    assert Asked() == Asked(0, False)
