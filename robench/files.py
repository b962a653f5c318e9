"""The only code that writes: whole files appear at once, or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from robench.errors import StoreError


def write(path: Path, content: bytes) -> None:
    """Replace a file in one step: temporary file in the same folder, fsync, rename, fsync of the folder.

    Raises:
        StoreError: if the folder cannot be written or the disk is full; an earlier file stays as it was.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise StoreError(
            f"cannot write {path} ({len(content):,} bytes): {error.strerror}. Choose another folder, or make room"
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON with sorted keys, so that equal content gives equal bytes."""
    write(path, (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def create(path: Path, content: bytes) -> bool:
    """Make a small file where there is none, whole or not at all; returns whether there was none.

    It is not brought to disk: what it says, such as who works on what, ends with the machine anyway.

    Raises:
        StoreError: if the folder cannot be written.
    """
    try:
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".writing-") as stream:
                    stream.write(content)
                    stream.flush()
                    _link(Path(stream.name), path)
                return True
            except FileExistsError:
                return False
            except FileNotFoundError:  # the folder was removed meanwhile
                continue
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror}. Choose another folder, or make this one writable"
        ) from error


def check_writable(folder: Path) -> None:
    """Fail now rather than after hours of work.

    Raises:
        StoreError: if files cannot be created in the folder (which is made if absent).
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writing-"):
            pass
    except OSError as error:
        raise StoreError(
            f"cannot write in {folder}: {error.strerror}. Choose another folder, or make this one writable"
        ) from error


def _link(temporary: Path, path: Path) -> None:
    """Give a file another name, if nothing has that name."""
    try:
        path.hardlink_to(temporary)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        with path.open(
            "xb"
        ) as stream:  # a file system without hard links: here a reader may find it empty for a moment
            stream.write(temporary.read_bytes())


def sha256(content: bytes) -> str:
    """The SHA-256 of some bytes, in hex."""
    return hashlib.sha256(content).hexdigest()
