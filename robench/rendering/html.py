"""The report as one HTML file: no network, tables that sort, figures inline, for light and dark, screen and paper."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape

from robench import __version__
from robench.panels import Figure
from robench.rendering.drawing import inline, narrow
from robench.rendering.latex import spans
from robench.rendering.look import DARK_INK, DARK_PAPER, INK, PAPER
from robench.reporting import Table
from robench.results import FLAG

STYLE = f"""
:root {{ color-scheme: light dark; --paper: {PAPER}; --ink: {INK};
  --soft: #59626d; --line: #c9d0d7; --band: #f2f4f6; --link: #0a58a6 }}
@media (prefers-color-scheme: dark) {{
  :root {{ --paper: {DARK_PAPER}; --ink: {DARK_INK}; --soft: #a3acb6; --line: #3a424b; --band: #1e232a; --link: #7db8f0 }}
}}
* {{ box-sizing: border-box }}
body {{ margin: 0 auto; padding: 1.2rem; max-width: 84rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif }}
h1 {{ font-size: 1.5rem; margin: 0 0 .3rem }}
h2 {{ font-size: 1.12rem; margin: 0 0 .5rem; overflow-wrap: anywhere }}
nav ul {{ padding-left: 1.2rem; columns: 30rem; font-size: .86rem }}
nav li {{ break-inside: avoid }}
a {{ color: var(--link); overflow-wrap: anywhere }}
section {{ margin: 2.2rem 0 }}
/* a shadow at an edge behind which there is more: the paper that covers it scrolls along */
.scroll {{ overflow-x: auto; max-width: 100%; background:
  linear-gradient(to right, var(--paper) 40%, transparent) left / 2.4rem 100% no-repeat local,
  linear-gradient(to left, var(--paper) 40%, transparent) right / 2.4rem 100% no-repeat local,
  linear-gradient(to right, var(--line), transparent) left / .9rem 100% no-repeat scroll,
  linear-gradient(to left, var(--line), transparent) right / .9rem 100% no-repeat scroll }}
:focus-visible {{ outline: 2px solid var(--link); outline-offset: 1px }}
table {{ border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums;
  border-top: 2px solid var(--ink); border-bottom: 2px solid var(--ink) }}
th, td {{ padding: .28rem .6rem; text-align: right; white-space: nowrap }}
th.span {{ text-align: center; font-weight: 500; border-bottom: 1px solid var(--line) }}
thead tr:last-child th {{ border-bottom: 1px solid var(--ink); padding: 0 }}
thead button {{ all: unset; display: block; width: 100%; box-sizing: border-box; padding: .28rem .6rem; cursor: pointer;
  font-weight: 600; text-align: inherit }}
thead button:focus-visible {{ outline: 2px solid var(--link); outline-offset: -2px }}
thead button::after {{ content: "\\2195"; opacity: .35; margin-left: .3em }}
[aria-sort=ascending] button::after {{ content: "\\2191"; opacity: 1 }}
[aria-sort=descending] button::after {{ content: "\\2193"; opacity: 1 }}
thead button:hover, tbody tr:hover > * {{ background: var(--band) }}
th:first-child, td:first-child {{ text-align: left }}
tbody th {{ font-weight: 400; position: sticky; left: 0; background: var(--paper); max-width: 40vw; overflow: hidden;
  text-overflow: ellipsis }}
tbody .group th {{ font-style: italic; color: var(--soft); padding-top: .6rem; max-width: none; background: none }}
td.wide {{ white-space: normal; text-align: left; min-width: 16rem; overflow-wrap: anywhere }}
.bold {{ font-weight: 700 }}
.notes {{ font-size: .86rem; color: var(--soft); margin: .6rem 0; padding-left: 1.1rem; overflow-wrap: anywhere }}
.notes .flag {{ color: var(--ink); font-weight: 600 }}
figure {{ margin: 0 }}
figure svg {{ max-width: 100%; height: auto; color: var(--ink); display: block; margin: auto }}
figure.whole .broad svg {{ width: 100% }}
.slim {{ display: none }}
.slim svg {{ width: 34rem }}
@media screen and (max-width: 46rem) {{
  .broad {{ display: none }} .slim {{ display: block }}
  th.span {{ text-align: left }} /* or they are out of sight */
}}
figure.half svg {{ width: 34rem }}
figcaption {{ font-size: .86rem; color: var(--soft); overflow-wrap: anywhere }}
footer {{ font-size: .8rem; color: var(--soft) }}
@media print {{
  :root {{ --paper: #fff; --ink: #000; --soft: #333; --line: #999; --band: #fff; --link: #000; color-scheme: light }}
  body {{ font-size: 9pt; max-width: none; padding: 0 }}
  nav, thead button::after {{ display: none }}
  .scroll {{ overflow: visible; background: none }}
  table {{ font-size: 7pt }} th, td, thead button {{ padding: .1rem .25rem; white-space: normal }}
  section {{ break-inside: avoid }}
}}
"""
SCRIPT = """
"use strict";
// A column of numbers sorts as numbers, any other by its words; a dash is last in both directions; rows stay in their group.
const value = (row, i) => row.children[i].textContent.trim();
const number = text => { const found = /^[+-]?\\d+(\\.\\d+)?/.exec(text); return found ? Number(found[0]) : NaN; };
function sort(head) {
  const table = head.closest("table"), i = Number(head.dataset.column);
  const down = head.getAttribute("aria-sort") === "ascending";
  table.querySelectorAll("[aria-sort]").forEach(other => other.setAttribute("aria-sort", "none"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const every = [...table.querySelectorAll("tbody tr:not(.group)")].map(row => value(row, i)).filter(text => text !== "-");
  const numeric = every.every(text => !Number.isNaN(number(text)));
  for (const body of table.tBodies) {
    const rows = [...body.querySelectorAll("tr:not(.group)")];
    rows.sort((one, other) => {
      const a = value(one, i), b = value(other, i);
      if (a === "-" || b === "-") return (a === "-") - (b === "-");
      const order = numeric ? number(a) - number(b) : a.localeCompare(b, "en", { numeric: true });
      return down ? -order : order;
    });
    rows.forEach(row => body.append(row));
  }
}
document.querySelectorAll("th[data-column]").forEach(head => head.firstElementChild.addEventListener("click", () => sort(head)));
"""
LOUD = (FLAG, "suspect", "unreliable")  # what a note has that must not be overlooked
LONG = 60  # characters from which a cell is prose


def html(made: Sequence[Table], drawn: Sequence[Figure] = (), title: str = "robench report") -> str:
    """One page with all tables, their notes and flags, and the figures.

    Its policy forbids every request, and runs no script but its own, which it knows by its digest.

    Args:
        made: tables.
        drawn: figures.
        title: of the page.

    Raises:
        UsageError: if there are figures and matplotlib is not installed.
    """
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (  # data: is for the empty icon, so that none is asked for
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    contents = [(f"table-{i}", table.title, _table(table)) for i, table in enumerate(made, 1)]
    contents += [(f"figure-{i}", f"Figure: {figure.title}", _figure(figure, i)) for i, figure in enumerate(drawn, 1)]
    links = "".join(f'<li><a href="#{key}">{escape(name)}</a></li>' for key, name, _ in contents)
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{escape(name)}</h2>\n{part}</section>\n'
        for key, name, part in contents
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<header><h1>{escape(title)}</h1></header>\n"
        f'<nav aria-label="Contents"><details open><summary>Contents</summary><ul>{links}</ul></details></nav>\n'
        f"<main>\n{body}</main>\n"
        f"<footer>robench {escape(__version__)}. Click a head to sort by it.</footer>\n"
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _table(table: Table) -> str:
    rows = list(_bodies(table))
    notes = "".join(
        f"<li{' class=flag' if any(word in note for word in LOUD) else ''}>{escape(note)}</li>" for note in table.notes
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}"><table>\n'
        f"<thead>\n{_head(table)}</thead>\n{''.join(rows)}</table></div>\n"
        + (f'<ul class="notes">{notes}</ul>\n' if notes else "")
    )


def _head(table: Table) -> str:
    """The rows of heads; those of the last one are buttons."""
    text = ""
    for depth, row in enumerate(table.header[:-1]):
        if not any(row):
            continue
        cells = [
            f'<th class="span" scope="colgroup" colspan="{width}">{escape(row[start])}</th>'
            if row[start]
            else f'<td colspan="{width}"></td>'
            for start, width in spans(table.header, depth)
        ]
        text += f"<tr>{''.join(cells)}</tr>\n"
    heads = [
        f'<th scope="col" data-column="{i}" aria-sort="none"><button type="button">{escape(name)}</button></th>'
        for i, name in enumerate(table.header[-1])
    ]
    return f"{text}<tr>{''.join(heads)}</tr>\n"


def _bodies(table: Table) -> list[str]:
    """A body for each group, so that sorting keeps the rows in theirs."""
    bodies: list[str] = []
    last = None
    for i, (group, *cells) in enumerate(table.rows):
        if group != last or last is None:
            label = f'<tr class="group"><th scope="rowgroup" colspan="{len(cells)}">{escape(group)}</th></tr>\n'
            bodies.append(label if group else "")
            last = group
        shown = [_cell(text, place, (i, place) in table.bold) for place, text in enumerate(cells, 1)]
        bodies[-1] += f"<tr>{''.join(shown)}</tr>\n"
    return [f"<tbody>\n{body}</tbody>\n" for body in bodies]


def _cell(text: str, place: int, bold: bool) -> str:
    kinds = " ".join(filter(None, ["bold" if bold else "", "wide" if place > 1 and len(text) > LONG else ""]))
    mark = f' class="{kinds}"' if kinds else ""
    if place == 1:
        return f'<th scope="row"{mark} title="{escape(text)}">{escape(text)}</th>'
    return f"<td{mark}>{escape(text)}</td>"


def _figure(figure: Figure, number: int) -> str:
    width = "half" if narrow(figure) else "whole"
    drawn = inline(figure, f"f{number}-")
    if width == "whole":
        slim = inline(figure, f"s{number}-", slim=True)
        drawn = f'<div class="broad">{drawn}</div><div class="slim">{slim}</div>'
    return (
        f'<figure class="{width}"><div class="scroll" tabindex="0" role="region" aria-label="{escape(figure.title)}">'
        f"{drawn}</div>\n<figcaption>{escape(figure.caption)}</figcaption></figure>\n"
    )
