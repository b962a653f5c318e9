"""Evaluations handed to other processes: the same tables, whoever is killed, and errors before anything starts."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cluster
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import LIMIT, alive, children, command, hold, kill, ran, started, waited

import robench
from robench import handing, launch, launching, slurm
from robench.errors import RobenchError, StoreError, UsageError
from robench.launch import Launch, Piece, Wanted
from robench.part import gaps

pytest.importorskip("submitit")


def evaluation(trained: Path, results: Path, *more: object, attack: str = "pgd-20") -> list[str]:
    """Four small cells, in parts of ten images, on one thread."""
    names = ("standard-digits", "pgd-at-digits")
    where = ("--checkpoints", trained, "--results", results, "--threads", 1, "--device", "cpu")
    return command(
        "evaluate", *names, "--attack", attack, "--attack", "fgsm", "--count", 30, "--batch", 10, *where, *more
    )


ENDLESS = "pgd-20@steps=40000000"  # longer than any test


def table(results: Path) -> str:
    made = ran(command("report", "--results", results, "--format", "markdown"))
    assert made.returncode == 0, made.stderr
    return made.stdout.replace(str(results), "RESULTS")


@pytest.fixture(scope="module")
def plain(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The table of a run without a launcher."""
    results = tmp_path_factory.mktemp("plain")
    made = ran(evaluation(trained, results))
    assert made.returncode == 0, made.stderr
    return table(results)


def cell(number: int, count: int, passes: float, size: int) -> Wanted:
    return Wanted(f"key{number}", "a cell", "a checkpoint", count, passes, size)


cells = st.lists(
    st.tuples(st.integers(1, 400), st.floats(1, 5000), st.integers(1, 60)).map(list), min_size=1, max_size=8
).map(lambda rows: [cell(number, *row) for number, row in enumerate(rows)])  # type: ignore[arg-type]


@settings(max_examples=80, deadline=None)
@given(cells, st.floats(0.1, 1e5), st.floats(0.1, 1e3), st.data())
def test_tasks_hold_every_missing_image_once_and_last_long_enough(
    wanted: list[Wanted], pace: float, least: float, data: st.DataObject
) -> None:
    done = {}
    for each in wanted:
        parts = list(gaps((), each.count, each.size))
        done[each.key] = data.draw(st.lists(st.sampled_from(parts), unique=True))
    tasks = launch.cut(wanted, done, pace, least)
    pieces = [piece for task in tasks for piece in task]
    for each in wanted:
        own = [i for piece in pieces if piece.key == each.key for i in range(piece.start, piece.stop)]
        held = [i for start, stop in done[each.key] for i in range(start, stop)]
        assert sorted(own + held) == list(range(each.count))
    by_key = {each.key: each for each in wanted}
    assert all(piece.start % by_key[piece.key].size == 0 for piece in pieces)
    seconds = [sum((p.stop - p.start) * by_key[p.key].passes / pace for p in task) for task in tasks]
    assert len(tasks) <= 1 or min(seconds) >= least * (1 - 1e-9)


def test_workers_share_all_pieces_and_begin_apart() -> None:
    pieces = [Piece(str(number), 0, 5) for number in range(4)]
    tasks = launch.rotated(pieces, 2)
    assert [task[0].key for task in tasks] == ["0", "2"]
    assert all(sorted(task, key=lambda piece: piece.key) == pieces for task in tasks)


def test_a_launch_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = Launch(
        "20260101T000000Z-1", robench.__version__, "slurm", (cell(0, 5, 2.0, 5),), ((Piece("key0", 0, 5),),), ("7",)
    )
    path = launch.put(made, tmp_path)
    assert launch.every(tmp_path) == [made]
    assert launch.task(f"{path}:0") == (made, made.tasks[0])
    with pytest.raises(UsageError, match="has the tasks 0 to 0"):
        launch.task(f"{path}:1")
    path.write_text("{")
    with pytest.raises(StoreError, match="is damaged"):
        launch.every(tmp_path)
    path.unlink()
    with pytest.raises(StoreError, match="all machines share"):
        launch.task(f"{path}:0")
    assert launch.every(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "minutes"), [("4h", 240), ("30m", 30), ("2d", 2880), ("90", 90), ("1-12:00:00", 2160), ("0:00:01", 1)]
)
def test_times(text: str, minutes: int) -> None:
    assert slurm.parse([f"time={text}"]) == {"time": minutes}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("partitoin=gpu", "Did you mean 'partition'"),
        ("partition", "write KEY=VALUE"),
        ("time=soon", "is no time"),
        ("time=0", "at least a minute"),
        ("gpus_per_node=one", "whole number"),
    ],
)
def test_settings_of_slurm_that_are_none(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        slurm.parse([text])


def fake(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Commands of Slurm that say what they are told to."""
    for name in ("sbatch", "srun", "squeue", "sinfo", "scontrol"):
        path = folder / name
        path.write_text(f"#!/bin/sh\n{scripts.get(name, 'exit 1')}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_what_a_cluster_would_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(
        tmp_path,
        monkeypatch,
        sinfo="echo cpu; echo gpu",
        scontrol="echo 'MaxArraySize = 11'",
        srun="echo unseen",
        sbatch="exit 0",
    )
    slurm.check({"partition": "gpu"}, 10)
    with pytest.raises(UsageError, match=r"no 'cuda'; this cluster has cpu, gpu"):
        slurm.check({"partition": "cuda"}, 1)
    with pytest.raises(UsageError, match=r"array of 11 jobs, and the cluster takes 10: .*--minutes"):
        slurm.check({}, 11)
    with pytest.raises(UsageError, match="on a disk that all nodes share"):
        slurm.check_shared(tmp_path / "probe", {})
    fake(tmp_path, monkeypatch, sinfo="echo 'no controller' >&2; exit 1")
    with pytest.raises(UsageError, match="Slurm does not answer: sinfo says 'no controller'"):
        slurm.check({}, 1)


WILLING = {"sinfo": "echo cpu", "scontrol": "echo 'MaxArraySize = 11'", "sbatch": "exit 0", "srun": "echo unseen"}


def test_a_plan_says_what_would_be_submitted(
    trained: Path, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    fake(tmp_path / "bin", monkeypatch, **WILLING)
    monkeypatch.setattr(launching, "pace", lambda *_: 100.0)  # image passes a second
    results = tmp_path / "results"
    line = ("evaluate", "--attack", "pgd-20", "--count", 30, "--batch", 10, "--plan", "--device", "cpu")
    where = ("--checkpoints", trained, "--results", results)
    # two cells of 30 images with 21 passes each take 6.3 s; jobs of two seconds are parts of ten images, 2.1 s
    code, out, told = run_cli(*line, *where, "--launcher", "slurm", "--minutes", 2 / 60, "--slurm", "time=1h")
    assert code == 0, told
    rows = [row.split() for row in out.partition("--launcher slurm would hand out")[2].splitlines()]
    assert [row for row in rows if row and row[0].isdecimal()] == [
        [str(n), "1", "10", "210", "0.000583"] for n in range(6)
    ]
    assert ["all", "2", "60", "1,260", "0.0035"] in rows
    assert "one array of 6 jobs (time=60; time in minutes)" in out
    code, out, told = run_cli(*line, *where, "--launcher", "local", "--jobs", 3)
    assert (code, "3 processes here that share all of it" in out) == (0, True), told
    short = ("--launcher", "slurm", "--minutes", 0.01, "--attack", "fgsm", "--count", 200)
    code, _, told = run_cli(*line, *where, *short)
    assert (code, "and the cluster takes 10: make jobs longer with --minutes" in told) == (2, True), told
    assert not results.exists()


def test_a_folder_that_nodes_do_not_see_is_refused_and_left_as_it_was(
    trained: Path, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    fake(tmp_path / "bin", monkeypatch, **WILLING)
    line = ("evaluate", "--attack", "fgsm", "--count", 10, "--checkpoints", trained, "--results", tmp_path / "results")
    code, _, told = run_cli(*line, "--launcher", "slurm")
    assert (code, "a node of the cluster does not see" in told, "--results" in told) == (2, True, True), told
    assert not launch.folder(tmp_path / "results").exists()
    unwilling = {**WILLING, "sbatch": "echo 'allocation failure: Invalid feature specification' >&2; exit 1"}
    fake(tmp_path / "bin", monkeypatch, **unwilling)
    code, _, told = run_cli(*line, "--launcher", "slurm", "--slurm", "constraint=fast")
    assert code == 2
    assert "Slurm would take no such job (--slurm constraint=fast): Invalid feature specification" in told


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (("--launcher", "slurm"), "sbatch is not on this machine's PATH; use --launcher local"),
        (("--launcher", "slurm", "--slurm", "gpus=1"), "unknown key 'gpus'"),
        (("--launcher", "locl"), "Did you mean 'local'"),
        (("--jobs", "2"), "--jobs goes with --launcher"),
        (("--launcher", "local", "--slurm", "time=1h"), "--slurm goes with --launcher slurm"),
    ],
)
def test_refused_before_anything_starts(
    extra: tuple[str, ...],
    said: str,
    trained: Path,
    tmp_path: Path,
    run_cli: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    line = ("evaluate", "--attack", "fgsm", "--checkpoints", trained, "--results", tmp_path / "results", *extra)
    code, _, told = run_cli(*line)
    assert (code, said in told) == (2, True), told
    assert not (tmp_path / "results").exists()


def test_a_folder_of_another_version(
    trained: Path, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ("evaluate", "standard-digits", "--checkpoints", trained, "--results", tmp_path, "--count", 20)
    assert run_cli(*line, "--attack", "fgsm")[0] == 0
    monkeypatch.setattr(launching, "__version__", "99.0")
    code, _, told = run_cli(*line, "--attack", "pgd-20", "--launcher", "local")
    assert code == 2
    assert f"holds results of robench {robench.__version__}, and this is 99.0" in told
    assert not launch.folder(tmp_path).exists()


@pytest.mark.timeout(900)
def test_two_processes_here_make_the_same_table(trained: Path, tmp_path: Path, plain: str) -> None:
    made = ran(evaluation(trained, tmp_path, "--launcher", "local", "--jobs", 2))
    assert made.returncode == 0, made.stderr
    assert "4 cells: 4 done" in made.stderr
    assert table(tmp_path) == plain
    told = ran(command("status", "--results", tmp_path, "--checkpoints", tmp_path))
    assert told.returncode == 0
    assert told.stdout.count("done") == 4
    again = ran(evaluation(trained, tmp_path, "--launcher", "local", "--jobs", 2))
    assert "4 cells: 0 new, 4 already in" in again.stderr


@pytest.mark.timeout(900)
def test_workers_outlive_the_starter_and_end_with_its_sigterm(trained: Path, tmp_path: Path) -> None:
    line = evaluation(trained, tmp_path, "--launcher", "local", "--jobs", 1, attack=ENDLESS)
    status = command("status", "--results", tmp_path, "--checkpoints", tmp_path)
    with started(line) as starter:
        waited(lambda: list(tmp_path.glob("parts/*/*.claim")))
        workers = hold(starter.pid)
        os.kill(starter.pid, signal.SIGKILL)
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        starter.wait(LIMIT)
        waited(lambda: "1 running" in ran(status).stderr)  # after the death of who started it
        assert ran(status).returncode == 1
        kill(workers)
        assert "0 running" in ran(status).stderr  # and takes the dead one's claim away
    with started(line) as starter:
        waited(lambda: list(tmp_path.glob("parts/*/*.claim")))
        workers = children(starter.pid)
        starter.terminate()
        assert starter.wait(LIMIT) == 143
        waited(lambda: not any(map(alive, workers)))
        assert "0 running" in ran(status).stderr


@pytest.mark.timeout(900)
def test_what_a_killed_worker_left_is_handed_out_again(trained: Path, tmp_path: Path, plain: str) -> None:
    with started(evaluation(trained, tmp_path, "--launcher", "local", "--jobs", 1)) as starter:
        waited(lambda: list(tmp_path.glob("parts/*/*.claim")) or len(list(tmp_path.glob("cells/*.json"))) == 4)
        kill(hold(starter.pid))
        done = len(list(tmp_path.glob("cells/*.json")))
        os.kill(starter.pid, signal.SIGCONT)
        _, told = starter.communicate(timeout=LIMIT)
    assert starter.returncode == 0, told
    assert ("once more, only these" in told) == (done < 4)
    assert table(tmp_path) == plain


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A cluster of this machine alone."""
    if why := cluster.absent():
        pytest.skip(why)
    with cluster.started(tmp_path_factory.mktemp("slurm")) as here:
        yield here


def handed(trained: Path, results: Path, *more: object, attack: str = "pgd-20") -> list[str]:
    fast = ("--poll", 1, "--minutes", 0.01, "--slurm", "time=10m", "--slurm", "partition=cpu")
    return evaluation(trained, results, "--launcher", "slurm", *fast, *more, attack=attack)


@pytest.mark.timeout(900)
def test_a_cluster_makes_the_same_table(trained: Path, tmp_path: Path, plain: str, node: dict[str, str]) -> None:
    made = ran(handed(trained, tmp_path, "--jobs", 2, "--slurm", "gpus_per_node=1"), node)
    assert made.returncode == 0, made.stderr
    assert table(tmp_path) == plain
    refused = ran(handed(trained, tmp_path / "other", "--slurm", "partition=gpu"), node)
    assert refused.returncode == 2
    assert "this cluster has cpu, urgent" in refused.stderr


@pytest.mark.parametrize("how", ["scancel", "preempted"])
@pytest.mark.timeout(900)
def test_jobs_that_are_taken_away_end_in_the_same_table(
    how: str, trained: Path, tmp_path: Path, node: dict[str, str]
) -> None:
    attack = "pgd-20@steps=1500"
    here = tmp_path / "here"
    with started(handed(trained, here, attack=attack), node) as starter:
        waited(lambda: list(here.glob("parts/*/*.claim")) or len(list(here.glob("cells/*.json"))) == 4)
        done = 4
        if how == "scancel":
            os.kill(starter.pid, signal.SIGSTOP)
            subprocess.run(["scancel", "-n", "robench"], env=node, timeout=60, check=True)
            waited(lambda: not queue(node))
            done = len(list(here.glob("cells/*.json")))
            os.kill(starter.pid, signal.SIGCONT)
        else:
            urgent = ["srun", "-p", "urgent", "--exclusive", "--time=1", "sleep", "1"]
            subprocess.run(urgent, env=node, timeout=LIMIT, check=True, capture_output=True)
        _, told = starter.communicate(timeout=LIMIT)
    assert starter.returncode == 0, told
    assert ("once more, only these" in told) == (done < 4)
    assert ran(evaluation(trained, tmp_path / "plain", attack=attack)).returncode == 0
    assert table(here) == table(tmp_path / "plain")


def queue(node: dict[str, str]) -> str:
    made = subprocess.run(["squeue", "-h"], env=node, timeout=60, check=True, capture_output=True, text=True)
    return made.stdout


def test_without_submitit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(RobenchError, match=r"pip install 'robench\[cluster\]'"):
        handing.imported()
