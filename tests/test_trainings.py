"""Training runs handed to other processes: each once, taken up where it was left, failures told, the same weights."""

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import cluster
import lanes
import pytest
import torch
from processes import LIMIT, command, hold, kill, ran, started, waited

import robench
from robench import demo, launch, recipe, reporting, slurm, trainings, watch
from robench.claim import Claims
from robench.errors import RobenchError, StoppedError, TrainingError, UsageError
from robench.evaluation import Engine
from robench.handing import Order
from robench.launch import Launch, Piece
from robench.protocols import Monitor, unwatched
from robench.rendering.markdown import markdown
from robench.results import Store
from robench.run import Run, finished
from robench.signals import Asked

Cli = Callable[..., tuple[int, str, str]]

CPU = torch.device("cpu")
SMALL = (
    *("--set", "model=cnn@width=2", "--set", "validation=1100", "--set", "stage.0.epochs=1"),
    *("--device", "cpu", "--threads", 1),
)


def runs(root: Path, count: int = 3) -> list[Run]:
    changes = [("model", "cnn@width=2"), ("validation", 1100), ("stage.0.epochs", 1)]
    made = recipe.load("standard-digits", changes)
    return [Run(made, root / f"run{seed}", seed=seed) for seed in range(count)]


def launched(every: list[Run], root: Path, name: str = "20260101T000000.000000Z-1") -> Launch:
    wanted = tuple(trainings.wanted(every))
    pieces = tuple(Piece(each.key, 0, 1) for each in wanted)
    made = Launch(name, robench.__version__, "local", (), (pieces,), runs=wanted)
    launch.put(made, root)
    return made


# what one process does


def test_a_process_trains_what_it_was_handed_and_nothing_twice(tmp_path: Path) -> None:
    every = runs(tmp_path)
    made = launched(every, tmp_path)
    trainings.work(every, made, made.tasks[0][:2], tmp_path, unwatched, Asked())
    assert [finished(run) for run in every] == [True, True, False]
    assert [each.state for each in watch.Watch(made, tmp_path).look()] == ["done", "done", "missing"]
    before = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("run[01]/*"))]
    trainings.work(every, made, made.tasks[0], tmp_path, unwatched, Asked())
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("run[01]/*"))] == before
    assert finished(every[2])
    assert not list(tmp_path.glob("*/*.claim"))


def test_a_run_that_fails_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    every = runs(tmp_path, 2)
    made = launched(every, tmp_path)
    tried = []

    def train(run: Run, monitor: Monitor, asked: Asked) -> None:
        tried.append(run.seed)
        if run.seed == 0:
            raise TrainingError("the loss is no longer finite")
        trainings.trained_here(run, monitor, asked)

    for _ in range(2):
        trainings.work(every, made, made.tasks[0], tmp_path, unwatched, Asked(), train)
    assert tried == [0, 1]
    failed, done = watch.Watch(made, tmp_path).look()
    assert (failed.state, failed.reason, done.state) == ("failed", "the loss is no longer finite", "done")
    with pytest.raises(RobenchError, match="1 of 2 runs failed, first run0: the loss is no longer finite"):
        trainings.refuse_failed([failed, done])


def test_a_run_that_another_process_trains_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = runs(tmp_path, 1)
    made = launched([run], tmp_path)
    tries: list[int] = []
    held = Claims.held

    def busy_twice(self: Claims, start: int, stop: int) -> object:
        tries.append(start)
        return nothing() if len(tries) < 3 else held(self, start, stop)

    monkeypatch.setattr(Claims, "held", busy_twice)
    monkeypatch.setattr(trainings, "PAUSE", 0)
    trainings.work([run], made, made.tasks[0], tmp_path, unwatched, Asked())
    assert len(tries) == 3
    assert finished(run)


class nothing:  # noqa: N801 (a context manager that gives None)
    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


def test_a_process_that_is_asked_to_stop_keeps_its_state(tmp_path: Path) -> None:
    every = runs(tmp_path, 2)
    made = launched(every, tmp_path)
    asked = Asked()

    def stopping(progress: object) -> None:
        asked.stop = signal.SIGTERM

    with pytest.raises(StoppedError):
        trainings.work(every, made, made.tasks[0], tmp_path, stopping, asked)
    assert (tmp_path / "run0" / "state.pt").is_file()
    assert [each.state for each in watch.Watch(made, tmp_path).look()] == ["missing", "missing"]
    with pytest.raises(StoppedError, match="between two runs"):
        trainings.work(every, made, made.tasks[0], tmp_path, unwatched, asked)


def test_a_launch_of_other_runs_or_of_another_version_is_refused(tmp_path: Path) -> None:
    every = runs(tmp_path, 2)
    made = launched(every, tmp_path)
    with pytest.raises(UsageError, match="is none of this command"):
        trainings.work(every[:1], made, made.tasks[0], tmp_path, unwatched, Asked())
    with pytest.raises(UsageError, match=r"by robench 99, and here is"):
        trainings.work(every, replace(made, robench="99"), made.tasks[0], tmp_path, unwatched, Asked())


def test_launches_are_tidied_when_they_are_complete_or_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = runs(tmp_path, 2)
    first = launched(every[:1], tmp_path, "20260101T000000.000000Z-1")
    second = launched(every[1:], tmp_path, "20260102T000000.000000Z-1")
    launch.put(replace(launched(every[1:], tmp_path, "20260103T000000.000000Z-1"), scheduled=("7",)), tmp_path)
    trainings.work(every, first, first.tasks[0], tmp_path, unwatched, Asked())
    launch.logs(tmp_path, first.id).mkdir()
    (launch.logs(tmp_path, first.id) / "1.out").write_text("said")
    assert watch.tidy(tmp_path) == [first]
    assert not launch.logs(tmp_path, first.id).exists()
    monkeypatch.setattr(slurm, "queued", lambda jobs: bool(jobs))  # job 7 waits
    assert watch.tidy(tmp_path, dead=True) == []  # it may be about to begin
    late = (launch.folder(tmp_path) / f"{second.id}.json").stat().st_mtime + 3600
    with Claims(every[1].folder).held(0, 1) as beat:
        assert beat is not None
        monkeypatch.setattr(watch.Claims, "others", lambda self: {(0, 1): Claims} if beat else {})
        monkeypatch.setattr(watch.Watch, "_holders", lambda self, key: ("process 1 on here",))
        assert watch.tidy(tmp_path, dead=True, now=lambda: late) == []  # somebody works
    monkeypatch.undo()
    monkeypatch.setattr(slurm, "queued", lambda jobs: bool(jobs))
    assert watch.tidy(tmp_path, dead=True, now=lambda: late) == [second]
    assert [each.scheduled for each in launch.every(tmp_path)] == [("7",)]


# the command line


def test_several_seeds_in_one_process(tmp_path: Path, run_cli: Cli) -> None:
    line = ("train", "standard-digits", *SMALL, "--checkpoints", tmp_path, "--seeds", "0,2")
    assert run_cli(*line, "--plan")[1].count("to train") == 2
    code, _, told = run_cli(*line)
    assert code == 0, told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["standard-digits", "standard-digits-seed2"]
    assert json.loads((tmp_path / "standard-digits-seed2" / "last.json").read_text())["seed"] == 2
    assert run_cli(*line, "--plan")[1].count("trained") == 2


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (("--seeds", "0,x"), "'x' is no whole number of at least 0; write --seeds 0,1,2"),
        (("--seeds", "0,"), "'' is no whole number"),
        (("--seeds", "1,1"), "1 stands twice"),
        (("--seeds", "0,1", "--seed", "3"), "leave one of them away"),
        (("--seeds", "0,1", "--out", "there"), "--out is one folder"),
        (("--smoke", "--launcher", "local"), "nothing is handed out"),
        (("--jobs", "2"), "--jobs goes with --launcher"),
        (("--launcher", "slurm"), "sbatch is not on this machine's PATH"),
        (("--launcher", "slurm", "--slurm", "gpu=1"), "unknown key 'gpu'"),
        (("--launcher", "local", "--dataset", "cifar10", "--data", "nowhere"), "nowhere"),
        (("--launcher", "local", "--set", "stage.0.batch=1", "--set", "stage.0.method=simclr"), "needs at least 2"),
    ],
)
def test_mistakes_are_said_before_anything_is_handed_out(
    extra: tuple[str, ...], said: str, tmp_path: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    code, _, told = run_cli("train", "standard-digits", *extra)
    assert (code, said in told) == (2, True), told
    assert not list(tmp_path.rglob("*.json"))


def test_torchrun_and_a_launcher_do_not_go_together(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, told = run_cli("train", "standard-digits", "--launcher", "local")
    assert (code, "torchrun several of this one" in told) == (2, True), told
    code, _, told = run_cli("sweep", "standard-digits", "--set", "seed=0,1")
    assert (code, "a sweep trains each run in one process" in told) == (2, True), told


def sweep(root: Path, *more: object) -> tuple[object, ...]:
    grid = ("--set", "stage.0.optimiser.lr=0.05,0.1", "--count", 20, "--attack", "fgsm", "--format", "markdown")
    where = ("--checkpoints", root / "c", "--results", root / "r")
    return ("sweep", "standard-digits", *SMALL, *grid, *where, *more)


@pytest.mark.timeout(900)
def test_a_sweep_by_processes_here_has_the_same_table(tmp_path: Path, run_cli: Cli) -> None:
    code, plain, told = run_cli(*sweep(tmp_path / "plain"))
    assert code == 0, told
    here = tmp_path / "here"
    code, out, told = run_cli(*sweep(here, "--launcher", "local", "--jobs", 2))
    assert code == 0, told
    assert out == plain
    status = ("status", "--results", here / "r", "--checkpoints", here / "c")
    code, out, told = run_cli(*status)
    assert (code, out.count("done"), "2 cells: 2 done" in told) == (0, 2, True), told
    before = {path: path.stat().st_mtime_ns for path in here.glob("[cr]/*/*.json")}
    code, out, told = run_cli(*sweep(here, "--launcher", "local", "--jobs", 2))
    assert (code, out, "0 to train" in told) == (0, plain, True), told
    assert {path: path.stat().st_mtime_ns for path in here.glob("[cr]/*/*.json")} == before
    assert run_cli(*status, "--clean")[0] == 0
    assert not list(here.glob("?/launches"))


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_a_killed_training_is_taken_up_again(tmp_path: Path) -> None:
    line = command("train", "standard-digits", *SMALL, "--seeds", "0,1", "--checkpoints", tmp_path / "c")
    with started([*line, "--launcher", "local", "--jobs", "1"]) as starter:
        waited(lambda: list(tmp_path.glob("c/*/*.claim")) or len(list(tmp_path.glob("c/*/last.json"))) == 2)
        kill(hold(starter.pid))
        done = len(list(tmp_path.glob("c/*/last.json")))
        starter.send_signal(signal.SIGCONT)
        _, told = starter.communicate(timeout=LIMIT)
    assert starter.returncode == 0, told
    assert ("once more, only these" in told) == (done < 2)
    other = [*command("train", "standard-digits", *SMALL, "--seeds", "0,1"), "--checkpoints", str(tmp_path / "plain")]
    assert ran(other).returncode == 0
    for name in ("standard-digits", "standard-digits-seed1"):
        weights = [(tmp_path / root / name / "last.safetensors").read_bytes() for root in ("c", "plain")]
        assert weights[0] == weights[1]


# the demo


def table(folder: Path) -> str:
    return markdown(reporting.tables(list(Store(folder / "r").records())))


@pytest.fixture(scope="module")
def lane(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The table of the small demo in this process."""
    folder = tmp_path_factory.mktemp("lane")
    with pytest.MonkeyPatch.context() as patch:
        small(folder, patch)
        made = [run for run in demo._runs(folder / "c", CPU) if not finished(run)]
        for run in made:
            trainings.trained_here(run, unwatched, Asked())
        engine = Engine(CPU)
        assert len(list(engine.run(demo._jobs(engine, demo._models(folder / "c")), Store(folder / "r")))) == 6
    return table(folder)


def small(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Make the demo of this process small till the end of the test."""
    for owner, name in ((recipe, "folder"), (demo, "RECIPES"), (demo, "COUNT"), (demo, "white_box")):
        patch.setattr(owner, name, getattr(owner, name))  # what is put back
    lanes.small(folder / "recipes")


def handed(folder: Path, order: Order, patch: pytest.MonkeyPatch) -> str:
    small(folder, patch)
    assert len(list(demo.run(folder / "c", folder / "r", CPU, unwatched, order))) == 6
    return table(folder)


@pytest.mark.timeout(900)
def test_the_demo_by_processes_here_has_the_same_table(
    tmp_path: Path, lane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    order = Order("local", lambda path, number, _: lanes.Lane(f"{path}:{number}", str(tmp_path)), jobs=2)
    assert handed(tmp_path, order, monkeypatch) == lane


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A cluster of this machine alone."""
    if why := cluster.absent():
        pytest.skip(why)
    with cluster.started(tmp_path_factory.mktemp("slurm")) as here:
        yield here


@pytest.mark.timeout(900)
def test_the_demo_by_a_cluster_has_the_same_table(
    tmp_path: Path, lane: str, monkeypatch: pytest.MonkeyPatch, node: dict[str, str]
) -> None:
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, node[name])
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))

    def task(path: Path, number: int, _: object) -> lanes.Lane:
        return lanes.Lane(f"{path}:{number}", str(tmp_path))

    order = Order("slurm", task, settings={"partition": "cpu", "time": 10}, pause=1)
    assert handed(tmp_path, order, monkeypatch) == lane


@pytest.mark.nightly
@pytest.mark.parametrize("how", ["preempted", "warned"])
@pytest.mark.timeout(900)
def test_a_training_that_is_taken_away_ends_in_the_same_weights(how: str, tmp_path: Path, node: dict[str, str]) -> None:
    line = command("train", "standard-digits", *SMALL, "--set", "stage.0.epochs=12", "--checkpoints")
    fast = ("--launcher", "slurm", "--slurm", "partition=cpu", "--slurm", "time=10m", "--poll", "1")
    with started([*line, str(tmp_path / "c"), *fast], node) as starter:
        waited(lambda: list(tmp_path.glob("c/*/run.json")))
        taken = {
            "preempted": ["srun", "-p", "urgent", "--exclusive", "--time=1", "sleep", "1"],
            "warned": ["scancel", "--signal=USR2", "-n", "robench"],
        }
        subprocess.run(taken[how], env=node, timeout=LIMIT, check=True, capture_output=True)
        _, told = starter.communicate(timeout=LIMIT)
    assert starter.returncode == 0, told
    assert "1 runs: 1 new" in told
    assert "once more" not in told
    assert ran([*line, str(tmp_path / "plain")]).returncode == 0
    weights = [(tmp_path / root / "standard-digits" / "last.safetensors").read_bytes() for root in ("c", "plain")]
    assert weights[0] == weights[1]


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("launcher", ["local", "slurm"])
def test_the_whole_demo_has_the_same_tables(launcher: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    more = ("--launcher", launcher, "--jobs", 2)
    env = None
    if launcher == "slurm":
        env = request.getfixturevalue("node")
        more = (*more, "--poll", 1, "--slurm", "partition=cpu", "--slurm", "time=2h")
    found = []
    for name, extra in (("plain", ()), (launcher, more)):
        where = ("--checkpoints", tmp_path / name / "c", "--results", tmp_path / name / "r", "--device", "cpu")
        with started(command("demo", *where, *extra), env) as process:
            out, err = process.communicate(timeout=1800)
        assert process.returncode == 0, err
        found.append(out)
    assert found[0] == found[1]
