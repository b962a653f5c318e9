"""Processes of tests: started in a group of their own, ended with all below them, held still while a test looks."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import robench

ROOT = Path(robench.__file__).parent.parent
LIMIT = 300  # seconds any command of a test may take, on a machine that does other things too


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "robench", *map(str, arguments)]


def ran(line: list[str], env: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end; nothing it started is left."""
    with started(line, env) as process:
        out, err = process.communicate(timeout=LIMIT)
    return subprocess.CompletedProcess(line, process.returncode, out, err)


@contextlib.contextmanager
def started(line: list[str], env: Mapping[str, str] | None = None) -> Iterator["subprocess.Popen[str]"]:
    """Inside, a command runs; afterwards neither it nor what it started does."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(line, cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    try:
        yield process
    finally:
        for each in [*children(process.pid), process.pid]:  # those first that have a group of their own
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(each, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()


def waited(true: Callable[[], object], seconds: float = LIMIT / 2) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.2)


def children(of: int) -> list[int]:
    """The processes below one, all the way down."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[1]) == of:
                found += [int(path.parent.name), *children(int(path.parent.name))]
        except OSError:
            continue
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def hold(pid: int) -> list[int]:
    """Make a process and all below it stand still; gives those below."""
    os.kill(pid, signal.SIGSTOP)
    held: set[int] = set()
    while new := set(filter(alive, children(pid))) - held:
        for each in new:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGSTOP)
        held |= new
    return sorted(held)


def kill(pids: list[int]) -> None:
    """End processes, and wait till they have."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    waited(lambda: not any(map(alive, pids)))
