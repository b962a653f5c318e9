"""Writing: old or new at every moment, whatever ends the process, the machine or the room on the disk."""

import errno
import fcntl
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from crash import Disk, killed, lay

from robench import files
from robench.errors import DiskFullError, StoreError, UsageError

OLD, NEW = b"the old content" * 9, b"the new content, which is longer" * 9


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# one file


@pytest.mark.parametrize("before", [None, OLD], ids=["absent", "old"])
def test_after_any_power_cut_a_file_is_old_or_new(
    before: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "disk"
    lay({} if before is None else {"file": before}, root)
    with Disk(root).recording(monkeypatch) as disk:
        files.write(root / "file", NEW)
    found = list(disk.crashes())
    assert {state.get("file") for _, state in found} == {before, NEW}
    assert len(found) > 5
    assert {state["file"] for state in disk.after(len(disk.steps))} == {NEW}  # what `write` returned from has happened


def test_the_enumeration_finds_a_write_that_was_never_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = lay({"file": OLD}, tmp_path / "disk")
    with Disk(root, blind=True).recording(monkeypatch) as disk:
        files.write(root / "file", NEW)
    assert not {state.get("file") for _, state in disk.crashes()} <= {OLD, NEW}


def test_a_new_folder_is_as_lasting_as_the_file_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = lay({}, tmp_path / "disk")
    with Disk(root).recording(monkeypatch) as disk:
        files.write(root / "a" / "b" / "file", NEW)
    assert {state.get("a/b/file") for state in disk.after(len(disk.steps))} == {NEW}


@pytest.mark.parametrize("number", range(len(files.POINTS) - 1))
def test_killed_at_a_point_a_file_is_old_or_new_and_the_next_start_tidies_up(number: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    assert killed(lambda: files.write(path, NEW), at=number)
    after = files.POINTS[number] in ("replaced", "kept")
    assert path.read_bytes() == (NEW if after else OLD)
    assert len(names(tmp_path)) == (1 if after else 2)
    files.check_writable(tmp_path)
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("before", [None, OLD], ids=["absent", "old"])
def test_after_any_power_cut_a_file_that_is_new_or_nothing_is_whole(
    before: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = lay({} if before is None else {"file": before}, tmp_path / "disk")
    with Disk(root).recording(monkeypatch) as disk:
        assert files.write_new(root / "file", NEW) == (before is None)
    after = before or NEW
    assert {state.get("file") for _, state in disk.crashes()} == {before, after}
    assert {state["file"] for state in disk.after(len(disk.steps))} == {after}
    assert names(root) == ["file"]


@pytest.mark.parametrize("number", range(len(files.POINTS) - 1))
def test_killed_at_a_point_a_new_file_is_absent_or_whole_and_the_next_start_tidies_up(
    number: int, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    assert killed(lambda: files.write_new(path, NEW), at=number)
    assert path.exists() == (files.POINTS[number] in ("replaced", "kept"))
    files.check_writable(tmp_path)
    assert names(tmp_path) == (["file"] if path.exists() else [])
    assert not path.exists() or path.read_bytes() == NEW


def test_where_there_are_no_hard_links_a_new_file_is_whole_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", none)
    assert files.write_new(tmp_path / "file", NEW)
    assert (tmp_path / "file").read_bytes() == NEW
    assert names(tmp_path) == ["file"]


def test_there_is_a_point_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached = []
    monkeypatch.setattr(files, "hook", lambda point, path: reached.append((point, path.name)))
    files.write(tmp_path / "file", NEW)
    files.remove(tmp_path / "file")
    assert [point for point, _ in reached] == list(files.POINTS)
    assert {name for _, name in reached} == {"file"}


def test_what_somebody_is_writing_is_not_swept_away(tmp_path: Path) -> None:
    alive, dead = tmp_path / ".writing-alive", tmp_path / "cells" / ".writing-dead"
    dead.parent.mkdir()
    dead.touch()
    with alive.open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert files.sweep(tmp_path) == [dead]
    assert files.sweep(tmp_path) == [alive]


# a file and what vouches for it


def pair(folder: Path, content: bytes) -> None:
    table = {"sha256": files.sha256(content)}
    files.write_vouched(folder / "weights", content, folder / "weights.json", table)


def vouched(folder: Path) -> bytes | None:
    """What a reader gets; None when there is no manifest."""
    if not (folder / "weights.json").exists():
        return None
    found = files.read_vouched(folder / "weights", json.loads((folder / "weights.json").read_bytes())["sha256"])
    assert found is not None, "unreadable"
    return found


@pytest.mark.parametrize("before", [None, OLD], ids=["absent", "old"])
def test_after_any_power_cut_a_pair_is_old_or_new(
    before: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "disk"
    lay({}, root)
    if before is not None:
        pair(root, before)
    with Disk(root).recording(monkeypatch) as disk:
        pair(root, NEW)
    found = set()
    for number, (_, state) in enumerate(disk.crashes()):
        folder = lay(state, tmp_path / str(number))
        content = vouched(folder)
        found.add(content)
        sealed = json.loads((folder / "weights.json").read_bytes())["sha256"] if content else None
        files.check_writable(folder)
        files.settle(folder / "weights", sealed)
        assert vouched(folder) == content
        assert set(names(folder)) <= {"weights", "weights.json"}
        assert content is None or (folder / "weights").read_bytes() == content
    assert found == {before, NEW}
    assert number > 10


def test_a_plain_pair_of_writes_would_be_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # what `write_vouched` is for: the same two files, written one after the other
    root = lay({}, tmp_path / "disk")
    pair(root, OLD)
    with Disk(root).recording(monkeypatch) as disk:
        files.write(root / "weights", NEW)
        files.write_json(root / "weights.json", {"sha256": files.sha256(NEW)})
    states = [lay(state, tmp_path / str(number)) for number, (_, state) in enumerate(disk.crashes())]
    with pytest.raises(AssertionError, match="unreadable"):
        list(map(vouched, states))


# taking away, and holding


def test_after_any_power_cut_a_removed_file_is_there_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = lay({"file": OLD}, tmp_path / "disk")
    with Disk(root).recording(monkeypatch) as disk:
        files.remove(root / "file")
        files.remove(root / "absent")
    assert {state.get("file") for _, state in disk.crashes()} == {OLD, None}
    assert all("file" not in state for state in disk.after(len(disk.steps)))


def test_a_folder_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        files.lock(tmp_path),
        pytest.raises(UsageError, match=r"another process is training into .*--out"),
        files.lock(tmp_path),
    ):
        pass
    assert killed(lambda: _hold_and_write(tmp_path), at=0)  # the lock ends with its process
    with files.lock(tmp_path):
        pass


def _hold_and_write(folder: Path) -> None:
    with files.lock(folder):
        files.write(folder / "file", NEW)


# no room


@pytest.mark.parametrize("number", ["ENOSPC", "EDQUOT", "EFBIG"])
def test_no_room_names_path_and_bytes_and_keeps_the_old_file(
    number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, path = getattr(errno, number), tmp_path / "file"
    path.write_bytes(OLD)

    def full(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(
        DiskFullError, match=rf"cannot write {path} \({len(NEW)} bytes\): {os.strerror(code)}.*make room"
    ):
        files.write(path, NEW)
    monkeypatch.undo()
    assert path.read_bytes() == OLD
    assert names(tmp_path) == ["file"]


def test_a_limit_on_file_sizes_is_met_without_a_loss(tmp_path: Path) -> None:
    # a real one, in a process of its own
    (tmp_path / "file").write_bytes(OLD)
    code = (
        "import sys; from pathlib import Path; from robench import files; from robench.errors import DiskFullError\n"
        "try: files.write(Path(sys.argv[1]), b'x' * 100_000)\n"
        "except DiskFullError as error: print(error); sys.exit(error.code)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "file")],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )
    assert ran.returncode == 74, ran.stderr
    assert "(100,000 bytes): File too large" in ran.stdout
    assert (tmp_path / "file").read_bytes() == OLD
    assert names(tmp_path) == ["file"]


def test_another_fault_is_no_want_of_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "write", broken)
    with pytest.raises(StoreError, match="Input/output error") as caught:
        files.write(tmp_path / "file", NEW)
    assert not isinstance(caught.value, DiskFullError)


def test_a_folder_on_a_read_only_disk_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object, **__: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(StoreError, match=r"cannot write in .*Read-only file system.*Choose another folder"):
        files.check_writable(tmp_path)


@pytest.mark.parametrize("write", [files.write, files.write_new])
def test_what_is_no_file_is_left_as_it_is(write: Callable[[Path, bytes], object], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", Path("/dev/robench")):  # never a real device: a fault here would take it away
        with pytest.raises(StoreError, match=r"it is a device and no file\. Name a file, or print and redirect"):
            write(place, NEW)
    assert (tmp_path / "pipe").is_fifo()
    assert names(tmp_path) == ["pipe"]


# names


@pytest.mark.parametrize("name", ["a" * 255, "größe 数字 \U0001f600", " ", "a\nb", "-rf", ".hidden"])
def test_names_a_file_system_takes(name: str, tmp_path: Path) -> None:
    files.write(tmp_path / name, NEW)
    assert names(tmp_path) == [name]


def test_a_name_a_file_system_does_not_take_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="File name too long"):
        files.write(tmp_path / ("a" * 256), NEW)
    assert not names(tmp_path)
