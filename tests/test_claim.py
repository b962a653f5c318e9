"""Claims: one process at a time runs a range, and none waits for the dead."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from robench import claim, files
from robench.claim import STALE, Claims, Holder

FAR = Holder("another-host:", 4, 5, "a token")


@pytest.fixture
def living() -> Iterator[Holder]:
    """A process that runs, as a holder on this host."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield Holder(claim._host(), process.pid, claim._born(process.pid), "of the living")
    process.communicate(b"\n")


@pytest.fixture
def dead() -> Holder:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return Holder(claim._host(), process.pid, 7, "of the dead")


@pytest.fixture
def unasked() -> Iterator[Holder]:
    """A process that has ended, while whoever started it has not asked how."""
    process = subprocess.Popen([sys.executable, "-c", "print()"], stdout=subprocess.PIPE)
    born = claim._born(process.pid)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    yield Holder(claim._host(), process.pid, born, "of the unasked")
    process.communicate()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def lay(folder: Path, name: str, holder: Holder) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.claim"
    path.write_text(json.dumps(asdict(holder)))
    return path


def test_a_claim_is_there_while_the_block_runs(tmp_path: Path) -> None:
    folder = tmp_path / "parts" / "key"
    with Claims(folder).held(0, 5) as beat:
        assert beat is not None
        (path,) = folder.iterdir()
        assert path.name == "0-5.claim"
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_claim_ends_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Claims(tmp_path / "a" / "b").held(0, 5):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["0-5", "4-5", "0-1", "2-9", "0-99"])
def test_what_a_living_process_runs_is_not_run(tmp_path: Path, living: Holder, name: str) -> None:
    path = lay(tmp_path, name, living)
    claims = Claims(tmp_path)
    with claims.held(0, 5) as beat:
        assert beat is None
        assert list(tmp_path.iterdir()) == [path]
    assert path.exists()
    assert claims.others() == {tuple(map(int, name.split("-"))): living}


def test_what_is_beside_it_can_be_run(tmp_path: Path, living: Holder) -> None:
    path = lay(tmp_path, "5-9", living)
    with Claims(tmp_path).held(0, 5) as beat:
        assert beat is not None
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["0-5", "2-9"])
def test_the_claim_of_a_dead_process_is_taken_over(tmp_path: Path, dead: Holder, name: str) -> None:
    lay(tmp_path, name, dead)
    with Claims(tmp_path).held(0, 5) as beat:
        assert beat is not None
        assert [path.name for path in tmp_path.iterdir()] == ["0-5.claim"]


def test_a_process_that_has_ended_is_dead_though_nobody_asked(tmp_path: Path, unasked: Holder) -> None:
    lay(tmp_path, "0-5", unasked)
    with Claims(tmp_path).held(0, 5) as beat:
        assert beat is not None


def test_another_process_of_the_same_number_is_not_the_holder(tmp_path: Path, living: Holder) -> None:
    lay(tmp_path, "0-5", replace(living, born=living.born - 1))
    with Claims(tmp_path).held(0, 5) as beat:
        assert beat is not None


def test_a_claim_that_this_process_left_behind_is_no_claim(tmp_path: Path, living: Holder) -> None:
    lay(tmp_path, "0-5", replace(living, pid=os.getpid(), born=claim._born(os.getpid())))
    assert Claims(tmp_path).others() == {}


def test_a_holder_elsewhere_ends_when_it_stops_touching(tmp_path: Path) -> None:
    path, clock = lay(tmp_path, "0-5", FAR), Clock()
    claims = Claims(tmp_path, clock)
    for later, touched in ((0, 0), (STALE - 1, 10), (STALE - 1, 0), (0, 0)):
        clock.now += later
        if touched:
            os.utime(path, (touched, touched))  # by a clock that went wrong, which does not matter
        assert claims.others() == {(0, 5): FAR}
    clock.now += 2
    with claims.held(0, 5) as beat:
        assert beat is not None


def test_a_holder_touches_its_claim_now_and_then(tmp_path: Path) -> None:
    clock = Clock()
    with Claims(tmp_path, clock).held(0, 5) as beat:
        assert beat is not None
        path = tmp_path / "0-5.claim"
        os.utime(path, (1, 1))
        beat()
        assert path.stat().st_mtime == 1
        clock.now += claim.BEAT + 1
        beat()
        assert path.stat().st_mtime > 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 3}', "null"])
def test_a_claim_that_cannot_be_read_ends_by_its_age(tmp_path: Path, content: str) -> None:
    (tmp_path / "0-5.claim").write_text(content)
    clock = Clock()
    claims = Claims(tmp_path, clock)
    assert list(claims.others()) == [(0, 5)]
    clock.now += STALE + 1
    assert claims.others() == {}


def test_a_claim_in_the_place_of_an_ended_one_is_put_back(tmp_path: Path, living: Holder, dead: Holder) -> None:
    # between looking and removing, another process may have taken over
    path = lay(tmp_path, "0-5", living)
    there, seen = path.read_bytes(), json.dumps(asdict(dead)).encode()
    looks = iter([seen])
    with pytest.MonkeyPatch.context() as patched:
        read = Path.read_bytes
        patched.setattr(Path, "read_bytes", lambda path: next(looks, None) or read(path))
        files.remove_same(path, seen)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == there


def test_a_claim_that_was_taken_over_is_not_removed_by_its_first_holder(tmp_path: Path, living: Holder) -> None:
    with Claims(tmp_path).held(0, 5):
        path = lay(tmp_path, "0-5", living)
    assert json.loads(path.read_text()) == asdict(living)


def test_files_of_others_are_left_alone(tmp_path: Path, living: Holder) -> None:
    path = lay(tmp_path, "notes", living)
    assert Claims(tmp_path).others() == {}
    assert path.exists()
