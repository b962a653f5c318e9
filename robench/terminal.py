"""What a person sees in a terminal: tables and progress, by rich. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import math
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import click
import rich.progress as bars
from rich import box
from rich.console import Console
from rich.table import Column
from rich.table import Table as RichTable
from rich.text import Text

from robench.protocols import Monitor, Progress, unwatched
from robench.reporting import Table
from robench.results import safe

LINE_EVERY = 30.0  # seconds between progress lines when there is no terminal
LEAST = 18  # characters that the last column of a list needs to stand beside the others


_STDERR = Console(stderr=True, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """One line on stderr, above any bars; what names hold cannot act on the terminal."""
    _STDERR.print(Text(safe(message)))


def rows(head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """A plain list on stdout, columns aligned; in a terminal that is narrower, lines go on below, indented."""
    every = [[safe(text) for text in line] for line in [head, *lines]]
    widths = [max(len(line[i]) for line in every) for i in range(len(head))]
    room = Console(highlight=False).width if sys.stdout.isatty() else None
    for line in every:
        click.echo(folded(line, widths, room))


def folded(line: Sequence[str], widths: Sequence[int], room: int | None) -> str:
    """One line of a list, below itself where it is longer than the room for it.

    Args:
        line: a text for each column.
        widths: of the columns.
        room: characters in a line of the terminal; None for no end.
    """
    whole = "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
    if room is None or len(whole) <= room:
        return whole
    before = sum(width + 2 for width in widths[:-1])
    if room - before < LEAST:  # the last column has too little room beside the others
        indented = textwrap.wrap(whole, room, subsequent_indent="    ", break_on_hyphens=False)
        return "\n".join(indented)
    parts = textwrap.wrap(line[-1], room - before, break_on_hyphens=False)
    return whole[:before] + f"\n{' ' * before}".join(parts)


def text(made: Sequence[Table], file: bool = False) -> str:
    """Tables as terminal text; one that is wider than the terminal is cut into column groups."""
    console = Console(highlight=False)
    if file or not console.is_terminal:
        console = Console(highlight=False, width=120, color_system=None)
    with console.capture() as captured:
        for table in made if console.color_system else map(_starred, made):
            console.print(Text(table.title, style="bold"))
            for part in _parts(table, console.width):
                console.print(_rich(table, part))
            for note in table.notes:
                console.print(Text(note, style="dim"))
            console.print()
    return captured.get()


def _starred(table: Table) -> Table:
    """A table whose bold cells stand between asterisks, where there is no bold type."""
    rows = [
        tuple(f"**{text}**" if (i, place) in table.bold and text else text for place, text in enumerate(row))
        for i, row in enumerate(table.rows)
    ]
    return replace(table, rows=tuple(rows), bold=frozenset())


def _rich(table: Table, columns: Sequence[int]) -> RichTable:
    drawn = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    for i in columns:
        drawn.add_column(
            Text("\n".join(row[i] for row in _levels(table))), justify="left" if i == 0 else "right", no_wrap=bool(i)
        )
    last = None
    for i, (group, *cells) in enumerate(table.rows):
        if group and group != last:
            drawn.add_row(Text(group, style="italic"))
            last = group
        drawn.add_row(*[Text(cells[k], style="bold" if (i, k + 1) in table.bold else "") for k in columns])
    return drawn


def _levels(table: Table) -> list[tuple[str, ...]]:
    return [row for row in table.header if any(row)]


def _parts(table: Table, width: int) -> list[list[int]]:
    """Column numbers for each part; the first column begins every part, and a threat is not cut."""
    sizes = [
        2 + max(len(text) for text in [*[row[i] for row in _levels(table)], *[row[i + 1] for row in table.rows]])
        for i in range(len(table.header[0]))
    ]
    if table.title.startswith("Cells"):
        return [list(range(len(sizes)))]
    parts, here = [], [0]
    blocks: list[list[int]] = []
    outer = table.header[-2] if len(table.header) > 1 else None
    for i in range(1, len(sizes)):
        if blocks and outer is not None and outer[i] and outer[i] == outer[i - 1]:
            blocks[-1].append(i)
        else:
            blocks.append([i])
    for block in blocks:
        if len(here) > 1 and sum(sizes[i] for i in [*here, *block]) > width:
            parts.append(here)
            here = [0]
        here = [*here, *block]
    return [*parts, here]


@contextmanager
def watched(quiet: bool = False) -> Iterator[Monitor]:
    """A monitor that draws bars on a terminal, and elsewhere writes a line now and then; a quiet one shows nothing."""
    if quiet:
        yield unwatched
        return
    if not sys.stderr.isatty():
        yield _lines()
        return
    columns = (
        bars.TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", max_width=24)),
        bars.BarColumn(bar_width=12),
        bars.TaskProgressColumn(),
        bars.TimeRemainingColumn(elapsed_when_finished=True, compact=True),
        bars.TextColumn("{task.fields[values]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
    )
    with bars.Progress(*columns, console=_STDERR, expand=True, refresh_per_second=4) as drawn:
        known: dict[str, bars.TaskID] = {}

        def monitor(progress: Progress) -> None:
            values = _values(progress)
            if progress.task not in known:
                known[progress.task] = drawn.add_task(progress.task, total=progress.total, values=values)
            shown = {"values": values} if progress.values else {}
            drawn.update(known[progress.task], completed=progress.done, total=progress.total, **shown)  # type: ignore[arg-type]

        yield monitor


def _lines() -> Monitor:
    began: dict[str, float] = {}
    told: dict[str, float] = {}

    def monitor(progress: Progress) -> None:
        now = time.monotonic()
        if told.get(progress.task) == math.inf:
            return
        start = began.setdefault(progress.task, now)
        finished = progress.done >= progress.total
        if finished or now - told.setdefault(progress.task, now) >= LINE_EVERY:
            told[progress.task] = math.inf if finished else now
            share = progress.done / max(progress.total, 1e-9)
            left = (now - start) * (1 - share) / max(share, 1e-9)
            rest = f"{now - start:.0f} s" if finished else f"{left:.0f} s left"
            say(f"{progress.task}: {100 * share:.0f} %, {rest}  {_values(progress)}".rstrip())

    return monitor


def _values(progress: Progress) -> str:
    return "  ".join(f"{key} {value}".strip() if key != "cell" else value for key, value in progress.values.items())
