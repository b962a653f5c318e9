"""Tables as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from robench.reporting import Table


def markdown(made: Sequence[Table]) -> str:
    """Tables as Markdown, columns aligned."""
    return "\n".join(_markdown(table) for table in made)


def _markdown(table: Table) -> str:
    heads = table.heads
    lines = [[_cell(head) for head in heads]]
    last = None
    for i, (group, *cells) in enumerate(table.rows):
        if group and group != last:
            lines.append([f"*{_cell(group)}*", *[""] * (len(heads) - 1)])
            last = group
        lines.append([_bold(_cell(cell), (i, place) in table.bold) for place, cell in enumerate(cells, 1)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    text = [
        _row(lines[0], widths),
        "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|",
    ]
    text += [_row(line, widths) for line in lines[1:]]
    notes = "".join(re.sub(r"^(\d+)(?=[.)])|^(?=[#+=~*>-])", r"\1\\", _cell(note)) + "\n" for note in table.notes)
    return f"**{_cell(table.title)}**\n\n" + "\n".join(text) + "\n" + (f"\n{notes}" if notes else "")


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "| " + " | ".join(padded) + " |"


def _bold(text: str, bold: bool) -> str:
    return f"**{text}**" if bold and text else text


def _cell(text: str) -> str:
    """Text that cannot act in Markdown or HTML."""
    for character, escape in (
        ("&", "&amp;"),
        ("<", "&lt;"),
        (">", "&gt;"),
        ("\\", "\\\\"),
        ("|", "\\|"),
        ("`", "\\`"),
        ("[", "\\["),
    ):
        text = text.replace(character, escape)
    return text
