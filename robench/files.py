"""The only code that writes: whole files appear at once, or not at all, also when the process or the machine dies.

A file is written beside its place, brought to disk, renamed, and the folder brought to disk. Of a file and the JSON that
vouches for it, old or new can be read at every moment between. `hook` is called at each of `POINTS`; tests end the process
there, at each in turn.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from robench.errors import DiskFullError, StoreError, UsageError

POINTS = ("begun", "half", "written", "synced", "replaced", "kept", "removed")
hook: Callable[[str, Path], None] | None = None

_WRITING, _NEXT = ".writing-", ".next-"
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write(path: Path, content: bytes | memoryview) -> None:
    """Replace a file in one step: temporary file in the same folder, fsync, rename, fsync of the folder.

    Raises:
        DiskFullError: if there is no room; an earlier file stays as it was.
        StoreError: if the folder cannot be written.
    """
    _write(path, content, _replace)


def write_new(path: Path, content: bytes | memoryview) -> bool:
    """The same where there is no file of that name; returns whether there was none. Of several writers one is the first.

    Raises:
        DiskFullError: as `write`.
        StoreError: as `write`.
    """
    return _write(path, content, _enter)


def _write(path: Path, content: bytes | memoryview, settle: Callable[[Path, Path], bool]) -> bool:
    temporary: Path | None = None
    handle = -1
    try:
        _check_place(path)
        _make(path.parent)
        handle, temporary = _begin(path.parent)
        _reach("begun", path)
        half = len(content) // 2
        _put(handle, memoryview(content)[:half])
        _reach("half", path)
        _put(handle, memoryview(content)[half:])
        os.fchmod(handle, 0o644)
        _reach("written", path)
        os.fsync(handle)
        _reach("synced", path)
        mine = settle(temporary, path)
        temporary = None
        _sync(path.parent)
        _reach("kept", path)
        return mine
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise _refused(error, path, len(content)) from error
    finally:
        if handle >= 0:
            os.close(handle)  # and with it the lock that says somebody is writing


def _check_place(path: Path) -> None:
    """Refuse what is no file, such as /dev/null: a rename would put a file in its place, for everybody."""
    odd = path.exists() and not path.is_file() and not path.is_dir()
    if odd or (path.absolute().is_relative_to("/dev") and not path.absolute().is_relative_to("/dev/shm")):  # noqa: S108
        raise StoreError(f"cannot write {path}: it is a device and no file. Name a file, or print and redirect")


def _replace(temporary: Path, path: Path) -> bool:
    temporary.replace(path)
    _reach("replaced", path)
    return True


def _enter(temporary: Path, path: Path) -> bool:
    """Give a file its name if nothing has that name; where a file system cannot tell, the last one has it."""
    try:
        path.hardlink_to(temporary)
    except OSError as error:
        if error.errno in _NO_LINKS:
            return _replace(temporary, path)
        if error.errno != errno.EEXIST:
            raise
        temporary.unlink()
        return False
    _reach("replaced", path)
    temporary.unlink(missing_ok=True)
    return True


def write_json(path: Path, content: Any) -> None:
    """Write JSON with sorted keys, so that equal content gives equal bytes."""
    write(path, json_bytes(content))


def json_bytes(content: Any) -> bytes:
    """What `write_json` writes."""
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def web_page(path: Path, wanted: str, sha256: str = "") -> str:
    """The sentence for a file that is a web page, as a refused download leaves one; nothing if it is none.

    Args:
        path: of the file.
        wanted: what it was taken for, such as `weights`.
        sha256: what its digest must be, if that is known.
    """
    try:
        with path.open("rb") as stream:
            begins = stream.read(512).lstrip(b"\xef\xbb\xbf \t\r\n")
    except OSError:
        return ""
    seen = re.match(rb"<!?\w*", begins)
    return (
        f"{path.name} is a web page, not {wanted} (starts with '{seen[0].decode()}'): the download was refused or limited. "
        "Delete it and fetch it again" + (f"; expected SHA-256 {sha256}" if sha256 else "")
        if seen
        else ""
    )


def create(path: Path, content: bytes) -> bool:
    """Make a small file where there is none, whole or not at all; returns whether there was none.

    Its content is brought to disk and its name is not: what it says, such as who works on what, ends with the machine anyway,
    but after a power cut it must not be there empty.

    Raises:
        StoreError: if the folder cannot be written.
    """
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = _begin(path.parent)
            try:
                _put(handle, memoryview(content))
                os.fsync(handle)
                _reach("written", path)
                _link(temporary, path)
                _reach("kept", path)
            finally:
                temporary.unlink(missing_ok=True)
                os.close(handle)
            return True
        except FileExistsError:
            return False
        except FileNotFoundError:  # the folder was removed meanwhile
            continue
        except OSError as error:
            raise _refused(error, path, len(content)) from error


def write_vouched(path: Path, content: bytes, manifest: Path, table: Mapping[str, Any]) -> None:
    """Replace a file and the JSON that names its SHA-256.

    The new file waits beside the old one until the manifest is written, which comes last of all that can fail; then it takes
    its place. `read_vouched` looks in both places, so it finds the old pair or the new one, whenever this was cut off.

    Args:
        path: of the file.
        content: of the file.
        manifest: the JSON.
        table: its content, with the SHA-256.

    Raises:
        StoreError: as `write`.
    """
    waiting = _waiting(path)
    write(waiting, content)
    write_json(manifest, table)
    _settle(waiting, path)


def read_vouched(path: Path, digest: str) -> bytes | None:
    """The file with a SHA-256, wherever a writer that was cut off has left it; None if neither place holds it."""
    for place in (path, _waiting(path)):
        if place.is_file() and sha256(content := place.read_bytes()) == digest:
            return content
    return None


def settle(path: Path, digest: str | None) -> None:
    """Finish, or take back, what a writer of `write_vouched` left undone.

    Args:
        path: of the file.
        digest: what its manifest says; None if there is no manifest that can be read.
    """
    waiting = _waiting(path)
    if not waiting.exists():
        return
    if digest is not None and sha256(waiting.read_bytes()) == digest:
        _settle(waiting, path)
    else:
        remove(waiting)


def remove(path: Path, *, lasting: bool = True) -> None:
    """Take a file away, if it is there.

    Args:
        path: of the file.
        lasting: for good, also if the power fails now.

    Raises:
        StoreError: if it cannot be.
    """
    try:
        path.unlink()
        _reach("removed", path)
        if lasting:
            _sync(path.parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"cannot remove {path}: {error.strerror}. Make its folder writable") from error


def remove_same(path: Path, content: bytes) -> None:
    """Take a file away if it holds this; what another process has put in its place meanwhile stays or is put back."""
    aside = path.with_name(f"{_WRITING}{uuid.uuid4().hex}")
    with suppress(OSError):
        if path.read_bytes() != content:
            return
        path.rename(aside)
        if aside.read_bytes() != content:
            with suppress(FileExistsError):
                _link(aside, path)
        aside.unlink()
        _reach("removed", path)


def remove_folder(folder: Path) -> None:
    """Take away a folder of files, and the one above if nothing else is in it; what another process puts there stays."""
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            remove(path, lasting=False)
        remove_empty(folder)


def remove_empty(folder: Path) -> None:
    """Take away a folder and the one above, if nothing is in them."""
    with suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()


def check_writable(folder: Path) -> None:
    """Fail now rather than after hours of work, and clear away what killed processes left half-written there.

    Raises:
        StoreError: if files cannot be created in the folder (which is made if absent).
    """
    try:
        _make(folder)
        handle, temporary = _begin(folder)
        temporary.unlink()
        os.close(handle)
    except OSError as error:
        why = "it is a file" if isinstance(error, FileExistsError) else error.strerror
        raise StoreError(
            f"cannot write in {folder}: {why}. Choose another folder, or make this one writable"
        ) from error
    sweep(folder)


def sweep(folder: Path) -> list[Path]:
    """Remove temporary files nobody is writing any more, in a folder and those in it; returns which."""
    found = []
    for path in sorted([*folder.glob(f"{_WRITING}*"), *folder.glob(f"*/{_WRITING}*")]):
        with suppress(OSError):  # it is gone by now, or somebody holds it
            handle = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                found.append(path)
            finally:
                os.close(handle)
    return found


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the lock ends with the process, however it ends.

    Raises:
        UsageError: if another process holds it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another process is training into {folder}: wait for it, or choose another folder with --out"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process is in such a block with this folder; the wait ends with that process, however it ends.

    On a file system without locks it holds nobody off.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def sha256(content: bytes) -> str:
    """The SHA-256 of some bytes, in hex."""
    return hashlib.sha256(content).hexdigest()


def _reach(point: str, path: Path) -> None:
    if hook is not None:
        hook(point, path)


def _make(folder: Path) -> None:
    """Make a folder and those above it, each entered durably in the one above."""
    if folder.is_dir():
        return
    if not folder.parent.is_dir():
        _make(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync(folder.parent)


def _begin(folder: Path) -> tuple[int, Path]:
    """A temporary file that is locked, so that nobody sweeps it away."""
    while True:
        handle, name = tempfile.mkstemp(dir=folder, prefix=_WRITING)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)  # swept away before it was locked


def _put(handle: int, left: memoryview) -> None:
    while left:
        left = left[os.write(handle, left) :]


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _link(temporary: Path, path: Path) -> None:
    """Give a file another name, if nothing has that name."""
    try:
        path.hardlink_to(temporary)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with path.open(
            "xb"
        ) as stream:  # a file system without hard links: here a reader may find it empty for a moment
            stream.write(temporary.read_bytes())


def _waiting(path: Path) -> Path:
    return path.with_name(f"{_NEXT}{path.name}")


def _settle(waiting: Path, path: Path) -> None:
    try:
        waiting.replace(path)
        _reach("replaced", path)
        _sync(path.parent)
        _reach("kept", path)
    except OSError as error:
        raise _refused(error, path, 0) from error


def _refused(error: OSError, path: Path, count: int) -> StoreError:
    kind = DiskFullError if error.errno in _FULL else StoreError
    return kind(f"cannot write {path} ({count:,} bytes): {error.strerror}. Choose another folder, or make room")


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for trials, gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
