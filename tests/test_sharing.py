"""Several processes on one folder of results, and processes that are killed: nothing lost, nothing run twice, the same bits."""

import contextlib
import os
import random
import re
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from crash import Disk, killed, lay, mounted
from test_evaluation import Corner, name
from test_part import bare, files_of, planned
from test_results import CELL, failure, result

from robench import files, sharing
from robench.checkpoint import Checkpoint, open_checkpoint
from robench.cli import main
from robench.errors import StoreError
from robench.evaluation import Engine
from robench.job import Job
from robench.part import Parts, Span, gaps
from robench.results import Failure, Result, Store
from robench.signals import terminating

CPU = torch.device("cpu")
COUNT = 24


@pytest.fixture(scope="module")
def standard(trained: Path) -> Checkpoint:
    return open_checkpoint("standard-digits", trained)


@pytest.fixture(scope="module")
def robust(trained: Path) -> Checkpoint:
    return open_checkpoint("pgd-at-digits", trained)


def at_once(actions: Sequence[Callable[[], object]]) -> None:
    """Run each in a process of its own, all at the same time."""
    children = []
    for action in actions:
        child = os.fork()
        if child == 0:
            code = 70
            try:
                action()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * len(codes)


def evaluate(
    jobs: Sequence[Job], folder: Path, batch: int = 6, log: Path | None = None, pause: float = 0
) -> list[object]:
    """Run jobs into a folder; each range that is run is written down in `log` with the key of its cell."""
    engine = Engine(CPU, batch=batch)
    run_part = engine.run_part

    def noted(job: Job, start: int, stop: int, *rest: object) -> object:
        if log is not None:
            with log.open("a") as stream:
                stream.write(f"{job.cell.key} {start} {stop}\n")
        time.sleep(pause)
        return run_part(job, start, stop, *rest)  # type: ignore[arg-type]

    engine.run_part = noted  # type: ignore[method-assign, assignment]
    found = {job.cell.key: record for job, record, _ in engine.run(jobs, Store(folder))}
    return [found[job.cell.key] for job in jobs]  # those that had to wait came last


def spans(log: Path, job: Job) -> list[Span]:
    """Which ranges of a job were run, as `evaluate` wrote them down."""
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [(int(start), int(stop)) for key, start, stop in lines if key == job.cell.key]


@pytest.fixture(scope="module")
def jobs(standard: Checkpoint, robust: Checkpoint) -> list[Job]:
    """A white-box cell of many parts, one that makes its own batches, one of a transfer, and one in a single piece."""
    engine = Engine(CPU)
    return [
        planned(engine, robust, "pgd-2"),
        planned(engine, robust, "autoattack@steps=2,queries=5", "linf-0.05"),
        planned(engine, robust, name(Corner), sources=[standard]),
        planned(engine, standard, "pgd-2", count=5),
    ]


@pytest.fixture(scope="module")
def wanted(jobs: list[Job]) -> list[object]:
    return [bare(Engine(CPU).evaluate(job)) for job in jobs]


def finished(folder: Path, jobs: Sequence[Job]) -> bool:
    """Whether the results of the jobs are there, and nothing else."""
    return files_of(folder) == sorted(["cells", *(f"cells/{job.cell.key}.json" for job in jobs)])


# several at once


@pytest.mark.parametrize(
    "batches", [(6, 6), (3, 5), (2, 3, 4, 24), pytest.param((1, 2, 3, 4) * 4, marks=pytest.mark.nightly)], ids=len
)
def test_processes_share_the_work(
    tmp_path: Path, jobs: list[Job], wanted: list[object], batches: tuple[int, ...]
) -> None:
    folder, log = tmp_path / "results", tmp_path / "log"

    def work(batch: int) -> Callable[[], None]:
        def act() -> None:
            assert [bare(record) for record in evaluate(jobs, folder, batch, log, pause=0.02)] == wanted

        return act

    at_once([work(batch) for batch in batches])
    for job in jobs:
        held = sorted(image for span in spans(log, job) for image in range(*span))
        assert held == list(range(job.cell.count))  # each image once, in whichever process
    assert finished(folder, jobs)


def test_one_that_waits_says_for_whom_and_takes_over_what_is_left_undone(
    tmp_path: Path, jobs: list[Job], wanted: list[object]
) -> None:
    child = os.fork()
    if child == 0:
        try:
            evaluate(jobs[:1], tmp_path, 8, pause=60)
        finally:
            os._exit(0)
    while not list(tmp_path.glob("parts/*/0-8.claim")):
        time.sleep(0.01)
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

    ((_, record, _),) = Engine(CPU, batch=8, tell=tell).run(jobs[:1], Store(tmp_path))
    assert bare(record) == wanted[0]
    assert len(told) == 1
    assert f"waiting for images 0 to 7, run by process {child} on " in told[0]
    assert finished(tmp_path, jobs[:1])


def test_a_cell_that_others_finish_is_not_run(tmp_path: Path, jobs: list[Job], wanted: list[object]) -> None:
    # between looking for parts and claiming a range, another process may put the cell together and clear its parts away
    folder, log = tmp_path / "results", tmp_path / "log"
    engine = Engine(CPU, batch=6)
    desk = sharing.Desk(engine, jobs[0], Store(folder), sharing.Bar(engine.monitor, []))
    free, first = desk.claims.others, [True]

    def meanwhile() -> object:
        if first.pop() if first else False:
            evaluate(jobs[:1], folder)
        return free()

    desk.claims.others = meanwhile  # type: ignore[assignment, method-assign]
    engine.run_part = None  # type: ignore[assignment, method-assign]
    came = desk.run()
    assert came is not None
    assert bare(came[0]) == wanted[0]
    assert came[1]
    assert not log.exists()


def write_many(folder: Path, number: int, count: int) -> None:
    store = Store(folder)
    for seed in range(count):
        store.put(result(replace(CELL, seed=number * count + seed)))
        store.put(result(replace(CELL, attack="shared", seed=seed)))  # everybody's


def many_writers(folder: Path, writers: int, count: int) -> None:
    at_once([lambda number=number: write_many(folder, number, count) for number in range(writers)])  # type: ignore[misc]
    found = list(Store(folder).records())
    assert all(record == result(record.cell) for record in found)
    assert sorted(record.cell.seed for record in found if record.cell.attack == "pgd-20") == list(
        range(writers * count)
    )
    assert sorted(record.cell.seed for record in found if record.cell.attack == "shared") == list(range(count))
    assert not list(folder.rglob(".*"))


def test_four_writers_lose_nothing(tmp_path: Path) -> None:
    many_writers(tmp_path, 4, 50)


@pytest.mark.nightly
def test_sixteen_writers_of_a_thousand_records_lose_nothing(tmp_path: Path) -> None:
    many_writers(tmp_path, 16, 1000)


@pytest.mark.parametrize("before", [False, True], ids=["nothing there", "a failure there"])
def test_of_different_results_written_in_one_instant_one_is_kept_and_the_others_are_an_error(
    before: bool, tmp_path: Path
) -> None:
    store, verdicts = Store(tmp_path), tmp_path / "verdicts"
    verdicts.mkdir()
    if before:
        store.put(failure())

    def put(robust: int) -> None:
        try:
            store.put(result(robust=robust))
            (verdicts / f"kept {robust}").touch()
        except StoreError as error:
            (verdicts / f"refused {robust}").write_text(str(error))

    at_once([lambda robust=robust: put(robust) for robust in range(4)])  # type: ignore[misc]
    kept, *refused = sorted(verdicts.iterdir())
    assert [path.name.split()[0] for path in (kept, *refused)] == ["kept", "refused", "refused", "refused"]
    assert store.get(CELL) == result(robust=int(kept.name.split()[1]))
    assert all("holds another result for the same cell" in path.read_text() for path in refused)
    assert files_of(tmp_path / "cells") == [f"{CELL.key}.json"]


@pytest.mark.parametrize("other", [result(robust=6), failure()], ids=["result", "failure"])
def test_one_that_comes_between_a_look_and_a_write_is_seen(
    other: Result | Failure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, first = Store(tmp_path), [True]

    def meanwhile(point: str, path: Path) -> None:
        if point == "synced" and first and first.pop():
            store.put(other)

    monkeypatch.setattr(files, "hook", meanwhile)
    if isinstance(other, Result):
        with pytest.raises(StoreError, match="holds another result for the same cell: 6 robust images there, 5 now"):
            store.put(result(robust=5))
        assert store.get(CELL) == other
    else:
        store.put(result(robust=5))
        assert store.get(CELL) == result(robust=5)


def test_two_results_for_one_cell_are_an_error_whoever_comes_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(failure())
    store.put(result(robust=5))
    with pytest.raises(StoreError, match="holds another result for the same cell: 5 robust images there, 6 now"):
        store.put(result(robust=6))


# disks


def test_a_read_only_folder_of_results_is_said_before_the_first_pass_and_nothing_is_lost(
    standard: Checkpoint, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, engine = tmp_path / "disk", Engine(CPU)
    job = planned(engine, standard)
    command = ["evaluate", standard.folder, "--attack", "pgd-5", "--threat", "linf-0.1", "--count", COUNT]
    with mounted(folder, "size=8m") as remount:
        Parts(folder, job.cell).put(engine.run_part(job, 0, 6))
        before = files_of(folder)
        remount("ro")
        with monkeypatch.context() as patched:
            patched.setattr(Engine, "run_part", None)
            code, _, err = run_cli(*command, "--results", folder)
        assert code == 2
        assert f"error: cannot write in {folder}: Read-only file system. Choose another folder" in err
        for reading in (["verify", folder], ["list", "results", "--results", folder]):
            code, out, err = run_cli(*reading)
            assert code == 0, err
            assert "6 of 24 images" in out or "unfinished: 6 images" in out
        assert files_of(folder) == before
        remount("rw")
        assert run_cli(*command, "--results", folder)[0] == 0
        assert bare(Store(folder).get(job.cell)) == bare(engine.evaluate(job))
        remount("ro")
        assert run_cli("report", "--results", folder)[0] == 0
        assert run_cli("verify", folder)[0] == 0


@pytest.mark.parametrize("room", [16, 32])
def test_a_full_disk_keeps_what_was_done_and_the_same_command_goes_on(
    room: int, standard: Checkpoint, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    folder, engine = tmp_path / "disk", Engine(CPU)
    job = planned(engine, standard)
    command = ["evaluate", standard.folder, "--attack", "pgd-5", "--threat", "linf-0.1", "--count", COUNT]
    command += ["--batch", 3, "--results", folder]
    with mounted(folder, f"size={room}k") as remount:
        code, _, err = run_cli(*command)
        assert code == 74
        assert re.search(rf"error: cannot write {folder}/\S+ \([0-9,]+ bytes\): No space left on device", err)
        there = [part.span for part in Parts(folder, job.cell).every()]
        assert 0 < len(there) < COUNT // 3
        assert not list(folder.rglob("*.claim"))
        remount("size=8m")
        ran = tmp_path / "log"
        assert bare(evaluate([job], folder, 3, ran)[0]) == bare(engine.evaluate(job))
        assert spans(ran, job) == list(gaps(there, COUNT, 3))
        assert finished(folder, [job])


# kill -9


def points(jobs: Sequence[Job], folder: Path) -> list[str]:
    """Every named point that an evaluation passes, in order."""
    reached: list[str] = []
    files.hook = lambda point, path: reached.append(f"{point} {path.suffix}")
    try:
        evaluate(jobs, folder)
    finally:
        files.hook = None
    return reached


def kill_each(numbers: Sequence[int], folder: Path, jobs: Sequence[Job], wanted: Sequence[object]) -> None:
    """Kill an evaluation at some named points, go on, and compare; parts that were whole are not run again."""
    for number in numbers:
        here, log = folder / str(number), folder / f"{number}.log"
        assert killed(lambda here=here: evaluate(jobs, here), at=number)
        there = {job.cell.key: [part.span for part in Parts(here, job.cell).every()] for job in jobs}
        whole = {job.cell.key for job in jobs if Store(here).get(job.cell)}
        assert [bare(record) for record in evaluate(jobs, here, log=log)] == wanted
        for job in jobs:
            left = gaps(there[job.cell.key], job.cell.count, job.size(6)) if job.cell.key not in whole else ()
            assert spans(log, job) == list(left)
        assert finished(here, jobs), number


def test_killed_at_named_points_and_run_again(tmp_path: Path, jobs: list[Job], wanted: list[object]) -> None:
    jobs, wanted = [jobs[0], jobs[3]], [wanted[0], wanted[3]]
    reached = points(jobs, tmp_path / "counted")
    assert {"half .json", "kept .json", "kept .claim", "removed .claim", "removed .json"} <= set(reached)
    chosen = random.Random(0).sample(range(1, len(reached) - 1), 22)
    kill_each([0, *chosen, len(reached) - 1], tmp_path, jobs, wanted)


@pytest.mark.nightly
def test_killed_at_every_named_point_and_run_again(tmp_path: Path, jobs: list[Job], wanted: list[object]) -> None:
    kill_each(range(len(points(jobs, tmp_path / "counted"))), tmp_path, jobs, wanted)


def kill_at_times(count: int, folder: Path, jobs: Sequence[Job], wanted: Sequence[object], seed: int) -> None:
    dice = random.Random(seed)
    began = time.monotonic()
    evaluate(jobs, folder / "timed")
    whole = time.monotonic() - began
    for number in range(count):
        here = folder / str(number)
        for _ in range(dice.choice([1, 1, 2, 3])):  # also killed as it goes on
            killed(lambda here=here: evaluate(jobs, here), after=dice.uniform(0, whole))
        assert [bare(record) for record in evaluate(jobs, here)] == wanted
        assert finished(here, jobs), number


def test_killed_at_any_time_and_run_again(tmp_path: Path, jobs: list[Job], wanted: list[object]) -> None:
    kill_at_times(4, tmp_path, jobs, wanted, seed=0)


@pytest.mark.nightly
def test_killed_at_any_of_a_hundred_times_and_run_again(tmp_path: Path, jobs: list[Job], wanted: list[object]) -> None:
    kill_at_times(100, tmp_path, jobs, wanted, seed=1)


def test_one_of_several_is_killed(tmp_path: Path, jobs: list[Job], wanted: list[object]) -> None:
    folder = tmp_path / "results"

    def victim(number: int) -> Callable[[], None]:
        return lambda: print(killed(lambda: evaluate(jobs, folder, pause=0.02), at=number))

    def survivor() -> None:
        assert [bare(record) for record in evaluate(jobs, folder, pause=0.02)] == wanted

    at_once([victim(9), victim(33), survivor])
    # A victim may have claimed images of a cell just as the survivor completed it; the next start clears that away.
    log = tmp_path / "log"
    assert [bare(record) for record in evaluate(jobs, folder, log=log)] == wanted
    assert finished(folder, jobs)
    assert not log.exists()  # all was there


def test_after_a_power_cut_parts_are_whole_or_absent(
    tmp_path: Path, jobs: list[Job], wanted: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, root = jobs[0], tmp_path / "recorded"
    root.mkdir()
    with Disk(root).recording(monkeypatch) as disk:
        evaluate([job], root, 12)
    told: list[str] = []
    seen = set()
    for number, (_, content) in enumerate(disk.crashes()):
        here = lay(content, tmp_path / str(number))
        there = Parts(here, job.cell, told.append).every()
        whole = Store(here).get(job.cell)
        assert [part.span for part in there] in ([], [(0, 12)], [(12, 24)], [(0, 12), (12, 24)])
        mark = tuple(part.span for part in there), whole is not None
        if mark not in seen:
            assert [bare(record) for record in evaluate([job], here)] == wanted[:1]
            assert finished(here, [job])
        seen.add(mark)
    assert told == []
    assert {((), False), (((0, 12),), False), (((0, 12), (12, 24)), False), ((), True)} <= seen


# signals and the command line


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_says_that_it_goes_on_and_does(
    standard: Checkpoint, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]], number: int, code: int
) -> None:
    folder, said, sent = tmp_path / "results", tmp_path / "said", tmp_path / "sent"
    job = planned(Engine(CPU), standard, "pgd@steps=50", "linf-0.001")  # breaks little, so that it takes a while
    command = ["evaluate", standard.folder, "--attack", "pgd@steps=50", "--threat", "linf-0.001", "--count", COUNT]
    command += ["--batch", 1, "--device", "cpu", "--results", folder]

    def hold(point: str, path: Path) -> None:
        """At the end of the third part, wait for the signal: a fast child must not come to its end before."""
        while point == "kept" and path.name == "2-3.json" and not sent.exists():
            time.sleep(0.01)

    child = os.fork()
    if child == 0:
        files.hook = hold
        signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a shell; whoever runs tests may ignore it
        left = iter(range(2))

        def wait(point: str, path: Path) -> None:  # once three parts are there, for the signal
            if (point, path.parent.parent.name, path.suffix) == ("kept", "parts", ".json") and next(left, None) is None:
                time.sleep(60)

        files.hook = wait
        with said.open("w", buffering=1) as stream, contextlib.redirect_stderr(stream):
            try:
                main([str(word) for word in command])
            except SystemExit as end:
                os._exit(int(end.code or 0))
            os._exit(70)
    while len(list(folder.glob("parts/*/*.json"))) < 3:
        time.sleep(0.001)
    os.kill(child, number)
    sent.touch()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
    assert "the same command goes on" in said.read_text()
    assert not list(folder.glob("parts/*/*.claim"))
    assert len(list(folder.glob("parts/*/*.json"))) == 3
    assert run_cli(*command)[0] == 0
    assert bare(Store(folder).get(job.cell)) == bare(Engine(CPU).evaluate(job))
    assert finished(folder, [job])


def test_a_warning_of_the_end_asks_for_nothing_that_is_not_done() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with terminating():
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.01)
    assert signal.getsignal(signal.SIGUSR1) is before
