"""Tables as LaTeX: booktabs, for any article; a table that is wider than the column is made smaller."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from robench.reporting import Table

HEAD = "% needs \\usepackage{booktabs,graphicx}\n"
FITTED = "\\leavevmode\\ifdim\\wd0>\\linewidth\\resizebox{\\linewidth}{!}{\\box0}\\else\\box0\\fi"
SPECIAL = {
    "\\": "\\textbackslash{}",
    "{": "\\{",
    "}": "\\}",
    "$": "\\$",
    "&": "\\&",
    "#": "\\#",
    "%": "\\%",
    "_": "\\_",
    "^": "\\textasciicircum{}",
    "~": "\\textasciitilde{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "|": "\\textbar{}",
    '"': "\\char34{}",  # babel makes the bare character a command in some languages
    "`": "\\`{}",
    "[": "{[}",  # after a line break a bracket begins a length, and a star is read too
    "]": "{]}",
    "*": "{*}",
}
ACCENTED = re.compile("[\u00c0-\u00cf\u00d1-\u00d6\u00d8-\u00dd\u00df-\u00ef\u00f1-\u00f6\u00f8-\u00fd\u00ff]")


def latex(made: Sequence[Table]) -> str:
    """Tables as LaTeX floats: the title is the caption, spanning heads have rules, notes stand below in small print."""
    return HEAD + "\n".join(_table(table) for table in made)


def escape(text: str) -> str:
    """Text that LaTeX prints as it is: nothing in it is a command, and what plain LaTeX has no glyph for is spelled out."""
    # +- is how tables write a standard deviation; two hyphens or quotes would melt into one sign
    parts = re.split(r"(\+-)", text)
    return "".join("$\\pm$" if part == "+-" else _escape(part) for part in parts)


def _escape(text: str) -> str:
    plain = "".join(_character(character) for character in unicodedata.normalize("NFC", text))
    return re.sub(r"(?<=[-',?!])(?=[-',`])", "{}", plain)


def _character(character: str) -> str:
    if character in SPECIAL:
        return SPECIAL[character]
    if " " <= character <= "~" or ACCENTED.match(character):
        return character
    return f"{{[}}U+{ord(character):04X}{{]}}"


def _table(table: Table) -> str:
    columns = len(table.header[0])
    lines = [
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{escape(table.title)}}}",
        "\\footnotesize",
        "\\setlength{\\tabcolsep}{4pt}",
        f"\\setbox0\\hbox{{\\begin{{tabular}}{{@{{}}l{'r' * (columns - 1)}@{{}}}}",
        "\\toprule",
        *_head(table.header),
        "\\midrule",
    ]
    last = None
    for i, (group, *cells) in enumerate(table.rows):
        if group and group != last:
            lines.append(f"\\multicolumn{{{columns}}}{{@{{}}l}}{{\\emph{{{escape(group)}}}}} \\\\")
            last = group
        texts = [escape(cell) for cell in cells]
        lines.append(_row([f"\\textbf{{{t}}}" if (i, k) in table.bold else t for k, t in enumerate(texts, 1)]))
    lines += ["\\bottomrule", "\\end{tabular}}", FITTED]
    if table.notes:
        notes = " \\\\\n".join(escape(note) for note in table.notes)
        lines += [
            "\\par\\smallskip",
            "\\begin{minipage}{\\linewidth}",
            "\\scriptsize\\raggedright",
            notes,
            "\\end{minipage}",
        ]
    return "\n".join([*lines, "\\end{table}"]) + "\n"


def _head(header: Sequence[Sequence[str]]) -> list[str]:
    """Rows of heads; equal neighbours under one outer head span, with a rule below."""
    lines = []
    for depth, row in enumerate(header):
        if not any(row):
            continue
        if depth == len(header) - 1:
            lines.append(_row([escape(text) for text in row]))
            continue
        cells, rules = [], []
        for start, width in spans(header, depth):
            text = escape(row[start])
            wide = width > 1 and text
            cells += [f"\\multicolumn{{{width}}}{{c}}{{{text}}}"] if wide else [text, *[""] * (width - 1)]
            rules += [f"\\cmidrule(lr){{{start + 1}-{start + width}}}"] if text else []
        lines += [_row(cells), "".join(rules)]
    return lines


def spans(header: Sequence[Sequence[str]], depth: int) -> list[tuple[int, int]]:
    """Where the heads of a row begin and how many columns each takes; none reaches across an outer head's edge."""
    found: list[tuple[int, int]] = []
    paths = list(zip(*header[: depth + 1], strict=True))
    for i, path in enumerate(paths):
        if found and path == paths[i - 1] and depth < len(header) - 1:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((i, 1))
    return found


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + " \\\\"
