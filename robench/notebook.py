"""Progress below the cell of a notebook: one bar a task, redrawn in place. Without a notebook there is nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from html import escape
from typing import Any

from robench.protocols import Monitor, Progress, unwatched

EVERY = 0.25  # seconds between two drawings of a task


def watching(clock: Callable[[], float] = time.monotonic) -> Monitor:
    """A monitor that draws where this runs in a notebook, and shows nothing elsewhere.

    IPython is there already when a notebook runs, so nothing is imported that was not.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return _drawn(sys.modules["IPython.display"].display, clock) if hasattr(shell, "kernel") else unwatched


def _drawn(display: Callable[..., Any], clock: Callable[[], float]) -> Monitor:
    """Bars in the order their tasks began; the last state of each is always drawn."""
    known: dict[str, Progress] = {}
    told: dict[str, float] = {}
    shown: list[Any] = []

    def monitor(progress: Progress) -> None:
        known[progress.task] = progress
        now = clock()
        if progress.done < progress.total and now - told.get(progress.task, -EVERY) < EVERY:
            return
        told[progress.task] = now
        data = {"text/html": _html(known), "text/plain": _text(known)}
        if shown:
            shown[0].update(data, raw=True)
        else:
            shown.append(display(data, raw=True, display_id=True))

    return monitor


def _html(known: dict[str, Progress]) -> str:
    rows = [
        f"<tr><td>{escape(each.task)}</td>"
        f'<td><progress value="{_share(each):.4f}" max="1"></progress> {100 * _share(each):.0f} %</td>'
        f"<td>{escape(_values(each))}</td></tr>"
        for each in known.values()
    ]
    return f"<table>{''.join(rows)}</table>"


def _text(known: dict[str, Progress]) -> str:
    return "\n".join(f"{each.task}: {100 * _share(each):.0f} %  {_values(each)}".rstrip() for each in known.values())


def _share(progress: Progress) -> float:
    return min(1.0, progress.done / max(progress.total, 1e-9))


def _values(progress: Progress) -> str:
    return "  ".join(f"{key} {value}".strip() for key, value in progress.values.items())
