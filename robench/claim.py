"""Claims: who runs which range of a cell's images, so that several processes share a folder of results. No torch here.

A claim is a file that is made whole or not at all, and only where there is none. It names the host, the process and when that
process was born. On the same host a claim ends with its process, also when that is killed. From another host this cannot be
seen: the holder touches its claim as it works, and one that was not touched for ten minutes by the clock of who looks (not by
comparing two machines' clocks) has ended.

Claims save work and decide nothing: where two processes run a range all the same (a file system that shows a new file late),
both find the same bits.
"""

from __future__ import annotations

import json
import os
import platform
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from robench import files

STALE = 600.0  # seconds without a touch after which a claim from another host has ended
BEAT = 15.0  # seconds between two touches

_OWN: set[str] = set()  # tokens of the claims that this process holds


@dataclass(frozen=True)
class Holder:
    """Who holds a claim.

    Attributes:
        host: name of the machine, and of its process numbers where containers have their own.
        pid: the process.
        born: when it was started, in ticks, where that can be seen; numbers of processes are used again.
        token: of this claim alone.
    """

    host: str
    pid: int
    born: int
    token: str

    @property
    def name(self) -> str:
        """What to call it in a message."""
        return f"process {self.pid} on {self.host.partition(':')[0]}"


class Claims:
    """The claims on the images of one cell.

    Args:
        folder: where they lie, with the parts of the cell.
        clock: seconds that only go forward.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self._clock = clock
        self._seen: dict[Path, tuple[int, float]] = {}

    def others(self) -> dict[tuple[int, int], Holder]:
        """The ranges that other processes run now; claims that have ended are removed."""
        found = {}
        for path in sorted(self.folder.glob("*.claim")):
            text = _read(path)
            if text is None or (holder := _parse(text)).token in _OWN:
                continue
            if self._ended(path, holder):
                files.remove_same(path, text)
                continue
            with suppress(ValueError):  # somebody else's file
                start, stop = map(int, path.stem.split("-"))
                found[start, stop] = holder
        return found

    @contextmanager
    def held(self, start: int, stop: int) -> Iterator[Callable[[], None] | None]:
        """Claim a range of images for as long as the block runs.

        Yields:
            What is to be called as the work goes on; None if another process holds some of the images.
        """
        path, holder = self.folder / f"{start}-{stop}.claim", _holder()
        text = json.dumps(asdict(holder)).encode()
        _OWN.add(holder.token)
        try:
            mine = files.create(path, text)
            if not mine and not self._overlap(start, stop):  # one that had ended was in the way
                mine = files.create(path, text)
            if mine and self._overlap(
                start, stop
            ):  # of another size, made at the same time: whoever sees another, yields
                mine = self._release(path, text)
            yield self._beat(path) if mine else None
        finally:
            self._release(path, text)
            _OWN.discard(holder.token)

    def _overlap(self, start: int, stop: int) -> bool:
        return any(first < stop and start < last for first, last in self.others())

    def _ended(self, path: Path, holder: Holder) -> bool:
        if holder.host == _host():
            return holder.pid == os.getpid() or not _lives(holder.pid, holder.born)
        with suppress(OSError):
            touched, now = path.stat().st_mtime_ns, self._clock()
            before = self._seen.setdefault(path, (touched, now))
            if before[0] == touched:
                return now - before[1] > STALE
            self._seen[path] = touched, now
        return False

    def _beat(self, path: Path) -> Callable[[], None]:
        last = self._clock()

        def beat() -> None:
            nonlocal last
            if self._clock() - last > BEAT:
                last = self._clock()
                with suppress(OSError):
                    os.utime(path)

        return beat

    def _release(self, path: Path, text: bytes) -> bool:
        files.remove_same(path, text)
        files.remove_empty(self.folder)
        return False


def _read(path: Path) -> bytes | None:
    """A claim; None if it is gone."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError:
        return b""


def _parse(text: bytes) -> Holder:
    """Who holds a claim; one that cannot be read ends by not being touched."""
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError):
        return Holder("an unreadable claim", 0, 0, "")


def _holder() -> Holder:
    return Holder(_host(), os.getpid(), _born(os.getpid()), uuid.uuid4().hex)


def _host() -> str:
    space = ""
    with suppress(OSError):
        space = str(Path("/proc/self/ns/pid").readlink())
    return f"{platform.node()}:{space}"


def _born(pid: int) -> int:
    """When a process was started, in ticks since the machine was; 0 where that cannot be seen."""
    return _seen(pid)[1]


def _seen(pid: int) -> tuple[str, int]:
    """The state of a process and when it was started; nothing and 0 where that cannot be seen."""
    with suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[19])
    return "", 0


def _lives(pid: int, born: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is another user's
    state, began = _seen(pid)
    if state in ("Z", "X"):  # dead, and nobody has asked how it ended: in a container often nobody ever does
        return False
    return not born or began in (0, born)
