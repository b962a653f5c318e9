"""Tables as HTML for a notebook: no script, no style of its own but alignment, and names that cannot act."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from robench.reporting import Table


def notebook(made: Sequence[Table]) -> str:
    """Tables and their notes, one below the other."""
    return "\n".join(map(_table, made))


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.heads)
    rows, last = [], ""
    for i, (group, *cells) in enumerate(table.rows):
        if group and group != last:
            rows.append(f'<tr><th colspan="{len(cells)}" style="text-align:left"><em>{escape(group)}</em></th></tr>')
            last = group
        shown = [_cell(text, place, (i, place) in table.bold) for place, text in enumerate(cells, 1)]
        rows.append(f"<tr>{''.join(shown)}</tr>")
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return (
        f"<table><caption>{escape(table.title)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>" + (f"<ul>{notes}</ul>" if notes else "")
    )


def _cell(text: str, place: int, bold: bool) -> str:
    inner = f"<strong>{escape(text)}</strong>" if bold and text else escape(text)
    return f'<td style="text-align:{"left" if place == 1 else "right"}">{inner}</td>'
