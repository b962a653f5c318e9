"""Signals as wishes that a long computation looks at when it can: stop and keep everything, or keep it and go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Asked:
    """What was asked for and not done yet.

    Attributes:
        stop: the signal that asked to stop, or 0.
        save: whether to save now.
    """

    stop: int = 0
    save: bool = False


@contextmanager
def listening() -> Iterator[Asked]:
    """Inside, SIGTERM and a first SIGINT ask to stop, SIGUSR1 asks to save; after, everything is as it was.

    Handlers do no more than note it down, so they cannot interrupt a write. A SIGINT when a stop was asked for already raises
    KeyboardInterrupt at once. Outside the main thread, where Python handles no signals, nothing is ever asked.
    """
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def stop(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and asked.stop:
            raise KeyboardInterrupt
        asked.stop = asked.stop or number

    def save(_number: int, _frame: FrameType | None) -> None:
        asked.save = True

    wanted = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGUSR1: save}
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def terminating() -> Iterator[None]:
    """Inside, SIGTERM ends the process as Ctrl-C does, by an exception, so that what it holds is released.

    For work of which what is under way is lost anyway: files are whole or not there, so any moment will do. SIGUSR1, by which
    Slurm warns of the end, asks for nothing that is not done already.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, action)
        for number, action in ((signal.SIGTERM, stop), (signal.SIGUSR1, lambda number, frame: None))
    }
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)
