"""Ends of processes and of machines, for tests: a process killed at a point, and every disk a power cut may leave."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from robench import files


def killed(action: Callable[[], object], at: int | None = None, after: float | None = None) -> bool:
    """Run something in a process of its own that is killed on the way; returns whether it was, or came to its end.

    Args:
        action: what to run.
        at: kill it at that call of `files.hook`, counted from 0.
        after: kill it after so many seconds.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions of Python warn of forks beside threads
        child = os.fork()
    if child == 0:
        code = 70
        try:
            left = iter(range(at if at is not None else sys.maxsize))

            def die(_point: str, _path: Path) -> None:
                if next(left, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)

            files.hook = die
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if after is not None:
        signal.sigtimedwait([], after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Callable[[str], None]]:
    """A file system of its own at a folder, which is a real limit also for a process that may do everything.

    Args:
        folder: where.
        options: `ro`, or `size=64k`.

    Yields:
        What changes the options.
    """
    folder.mkdir(exist_ok=True)
    ran = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if ran.returncode:
        pytest.skip(f"no file system can be mounted here: {ran.stderr.strip()}")
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True) and None
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@dataclass
class Disk:
    """What was done to the files below a folder, in order: names of directories point to numbered files.

    Attributes:
        root: the folder.
        blind: do not notice fsync, as if nobody had called it.
        before: what was there at first, by name.
        steps: what was done.
    """

    root: Path
    blind: bool = False
    before: dict[str, bytes] = field(default_factory=dict)
    steps: list[tuple[Any, ...]] = field(default_factory=list)

    @contextmanager
    def recording(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
        """Inside, everything that `os` is asked to do below the folder is written down."""
        self.before = {str(path.relative_to(self.root)): path.read_bytes() for path in _files(self.root)}
        handles: dict[int, Any] = {}
        numbers = itertools.count(len(self.before))
        names = ("open", "write", "fsync", "replace", "rename", "link", "unlink", "mkdir", "close")
        real = {name: getattr(os, name) for name in names}

        def inside(path: Any) -> str | None:
            place = Path(os.fsdecode(path)).absolute()
            return str(place.relative_to(self.root)) if place.is_relative_to(self.root) else None

        def note(*step: Any) -> None:
            self.steps.append(step)

        def opened(path: Any, flags: int, *rest: Any, **named: Any) -> int:
            handle: int = real["open"](path, flags, *rest, **named)
            name = inside(path)
            if name is not None and flags & os.O_CREAT:
                handles[handle] = next(numbers)
                note("enter", name, handles[handle])
            elif name is not None:
                handles[handle] = name
            return handle

        def written(handle: int, content: Any) -> int:
            count: int = real["write"](handle, content)
            if isinstance(handles.get(handle), int):
                note("write", handles[handle], bytes(content[:count]))
            return count

        def synced(handle: int) -> None:
            real["fsync"](handle)
            if handle in handles and not self.blind:
                note("sync", handles[handle])

        def replaced(source: Any, target: Any, **named: Any) -> None:
            real["replace"](source, target, **named)
            if (name := inside(source)) is not None:
                note("rename", name, inside(target))

        def renamed(source: Any, target: Any, **named: Any) -> None:
            real["rename"](source, target, **named)
            if (name := inside(source)) is not None:
                note("rename", name, inside(target))

        def linked(source: Any, target: Any, **named: Any) -> None:
            real["link"](source, target, **named)
            if (name := inside(source)) is not None:
                note("link", name, inside(target))

        def removed(path: Any, **named: Any) -> None:
            real["unlink"](path, **named)
            if (name := inside(path)) is not None:
                note("remove", name)

        def made(path: Any, *rest: Any, **named: Any) -> None:
            real["mkdir"](path, *rest, **named)
            if (name := inside(path)) is not None:
                note("folder", name)

        def closed(handle: int) -> None:
            handles.pop(handle, None)
            real["close"](handle)

        with monkeypatch.context() as patched:
            fakes = (opened, written, synced, replaced, renamed, linked, removed, made, closed)
            for name, fake in zip(real, fakes, strict=True):
                patched.setattr(os, name, fake)
            yield self

    def after(self, count: int) -> Iterator[dict[str, bytes]]:
        """Every disk that a power cut after `count` steps may leave, by the names of its files.

        Changes of a folder that it was not synced after may each be there or not; of what was written into a file since it
        was last synced, nothing, half or all.
        """
        names: dict[str, int] = {name: number for number, name in enumerate(self.before)}
        durable = dict(enumerate(self.before.values()))
        written = dict(durable)
        folders: dict[str, list[dict[str, int | None]]] = {}
        dirs: dict[str, list[str]] = {}
        lasting = dict(names)
        known = {str(Path(name).parent) for name in names} | {"."}
        for what, where, *rest in self.steps[:count]:
            folder = str(Path(where).parent) if isinstance(where, str) else ""
            if what == "write":
                written[where] = written.get(where, b"") + rest[0]
            elif what == "sync" and isinstance(where, int):
                durable[where] = written.get(where, b"")
            elif what == "sync":
                for change in folders.pop(where, []):
                    _apply(lasting, change)
                known |= set(dirs.pop(where, []))
            elif what == "folder":
                dirs.setdefault(folder, []).append(where)
            else:
                change = _change(what, where, names, rest)
                _apply(names, change)
                folders.setdefault(folder, []).append(change)
        pending = [change for changes in folders.values() for change in changes]
        unsure = [name for each in dirs.values() for name in each]
        for there in itertools.product((False, True), repeat=len(pending)):
            found = dict(lasting)
            for change, kept in zip(pending, there, strict=True):
                if kept:
                    _apply(found, change)
            for share in (0.0, 0.5, 1.0):
                contents = {
                    name: _torn(durable.get(number, b""), written.get(number, b""), share)
                    for name, number in found.items()
                }
                yield {name: text for name, text in contents.items() if str(Path(name).parent) in {*known, *unsure}}

    def crashes(self) -> Iterator[tuple[int, dict[str, bytes]]]:
        """Every different disk that any power cut may leave, with the first number of steps that may leave it."""
        seen = set()
        for count in range(len(self.steps) + 1):
            for disk in self.after(count):
                mark = hash(tuple(sorted(disk.items())))
                if mark not in seen:
                    seen.add(mark)
                    yield count, disk


def lay(disk: Mapping[str, bytes], folder: Path) -> Path:
    """Put the files of a disk into a folder."""
    for name, content in disk.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _change(what: str, where: str, names: Mapping[str, int], rest: list[Any]) -> dict[str, int | None]:
    if what == "enter":
        return {where: rest[0]}
    if what == "remove":
        return {where: None}
    if what == "link":
        return {rest[0]: names[where]}
    return {rest[0]: names[where], where: None}


def _apply(names: dict[str, int], change: Mapping[str, int | None]) -> None:
    for name, number in change.items():
        if number is None:
            names.pop(name, None)
        else:
            names[name] = number


def _torn(durable: bytes, written: bytes, share: float) -> bytes:
    if written == durable:
        return written
    return written[: len(durable) + round(share * (len(written) - len(durable)))]


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())
