"""Figures drawn by matplotlib: the same figure gives the same bytes. The library is imported when something is drawn."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from typing import Any

from robench.errors import UsageError
from robench.panels import Classes, Cost, Curves, Examples, Figure, Panel, Training, Worth
from robench.rendering.axes import panel
from robench.rendering.look import DARK_INK, DARK_PAPER, INK, MARKERS, PAPER, look_of, short

FORMATS = ("svg", "png", "pdf")
STYLE = {
    "font.family": ["DejaVu Sans"],  # ships with matplotlib, so that every machine lays out the same
    "font.size": 7.5,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "svg.fonttype": "none",
    "svg.hashsalt": "robench",
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
}
ROW = 4  # pictures side by side in one column
WIDE, NARROW = 7.0, 3.4  # inches: a page of two columns, and one of them


def draw(figures: Sequence[Figure], form: str, *, titled: bool = True, slim: bool = False) -> bytes:
    """Figures one below the other, as the bytes of one file.

    Args:
        figures: what to draw, at least one.
        form: `svg` (light or dark, as the reader prefers), `png` or `pdf` (on white).
        titled: write each figure's title above it.
        slim: panels one below the other, as wide as one column of two.

    Raises:
        UsageError: if matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Drawing
    except ImportError:
        raise UsageError("figures are drawn by matplotlib, which is missing: pip install 'robench[plot]'") from None
    none = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}, "pdf": {"CreationDate": None}}[form]
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a box stands for it
        figures = [_slim(figure) for figure in figures] if slim else figures
        sizes = [_size(figure, slim) for figure in figures]
        width = max(wide for wide, _ in sizes)
        drawing = Drawing(figsize=(width, sum(high for _, high in sizes)), layout="constrained")
        FigureCanvasAgg(drawing)
        parts: Any = drawing.subfigures(len(figures), 1, squeeze=False, height_ratios=[high for _, high in sizes])
        for part, figure in zip(parts[:, 0], figures, strict=True):
            _draw(part, figure, titled, slim)
        drawing.patch.set_visible(form != "svg")
        stream = io.BytesIO()
        drawing.savefig(stream, format=form, metadata=none)
    return _adaptive(stream.getvalue().decode()).encode() if form == "svg" else stream.getvalue()


def inline(figure: Figure, prefix: str, *, slim: bool = False) -> str:
    """A figure as an SVG element for a page whose CSS sets the colour; its ids begin with the prefix, as a page holds several."""
    text = draw([figure], "svg", titled=False, slim=slim).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style>/\* page \*/.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'(?<=\bid=")|(?<=url\(#)|(?<=href="#)', prefix, text)
    text = _classed(re.sub(r"(?<=\n) +(?=<)", "", _rounded(text)), prefix)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(figure.title)}" ', 1).strip()


def _rounded(text: str) -> str:
    """An SVG with coordinates to a hundredth of a point, which nobody sees and a page of many figures is smaller for."""

    def shorter(found: re.Match[str]) -> str:
        return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", found[0])

    text = re.sub(r' transform="rotate\(-?0 [^"<]*"', "", text)
    return re.sub(r' (?:d|x|y|transform)="[^"<]*"', shorter, text)


def _classed(text: str, prefix: str) -> str:
    """An SVG whose styles stand in it once, each under a name; most of them are those of hundreds of marks."""
    names: dict[str, str] = {}

    def named(found: re.Match[str]) -> str:
        return f' class="{names.setdefault(found[1], f"{prefix}{len(names)}")}"'

    text = re.sub(r' style="([^"<]*)"', named, text)
    rules = "".join(f".{name}{{{rule}}}" for rule, name in names.items())
    return re.sub(r"(<svg[^>]*>)", lambda found: f"{found[1]}<style>{rules}</style>", text, count=1)


def _adaptive(text: str) -> str:
    """An SVG whose ink and paper follow the reader's colour scheme together, since the page around may not; no metadata."""
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = text.replace(INK, "currentColor")
    style = (
        f"<style>/* page */svg{{color:{INK};background:{PAPER}}}"
        f"@media (prefers-color-scheme:dark){{svg{{color:{DARK_INK};background:{DARK_PAPER}}}}}</style>"
    )
    return re.sub(r"(<svg[^>]*>)", lambda found: found[1] + style, text, count=1)


# of each kind of figure: the most panels in a row, and the height of one in inches
SHAPES = {
    "curves": (3, 2.2),
    "transfer": (2, 2.6),
    "union": (2, 2.8),
    "pareto": (2, 2.4),
    "worth": (2, 2.4),
    "training": (3, 2.0),
    "classes": (2, 2.0),
    "examples": (1, 2.7),
    "features": (2, 3.0),
}


def narrow(figure: Figure) -> bool:
    """Whether a figure fits one column of two."""
    return _size(figure)[0] == NARROW


def _slim(figure: Figure) -> Figure:
    """A figure whose panels are narrow enough for one column of two."""
    panels: list[Panel] = []
    for each in figure.panels:
        if isinstance(each, Examples):
            parts = [each.examples[first : first + ROW] for first in range(0, len(each.examples), ROW)]
            panels += [replace(each, title=each.title if not i else "", examples=part) for i, part in enumerate(parts)]
        else:
            panels.append(each)
    return replace(figure, panels=tuple(panels))


def _columns(figure: Figure, slim: bool) -> int:
    return 1 if slim else min(SHAPES[figure.kind][0], len(figure.panels))


def _size(figure: Figure, slim: bool = False) -> tuple[float, float]:
    """Inches; a single panel fits one column of two, but for many pictures in a row."""
    columns = _columns(figure, slim)
    rows = -(-len(figure.panels) // columns)
    high = SHAPES[figure.kind][1]
    wide = NARROW if columns == 1 else WIDE
    most = max((len(each.examples) for each in figure.panels if isinstance(each, Examples)), default=0)
    if most:
        wide = NARROW if most <= ROW else WIDE
        high = 3.25 * (wide - 0.6) / max(most, ROW) + 0.3
    return wide, rows * high + 0.3 + 0.16 * -(-len(_legend(figure)) // (3 * columns))


def _legend(figure: Figure) -> list[str]:
    """The names that a figure tells apart by colour."""
    names: list[str] = []
    for each in figure.panels:
        names += [line.name for line in each.lines] if isinstance(each, Curves) else []
        names += [name for name, _ in each.lines] if isinstance(each, Training | Classes) else []
        names += [point.name for point in each.points] if isinstance(each, Cost) else []
        names += [value.name for value in each.values] if isinstance(each, Worth) else []
    return list(dict.fromkeys(names))


def _draw(part: Any, figure: Figure, titled: bool, slim: bool) -> None:
    from matplotlib.lines import Line2D

    columns = _columns(figure, slim)
    axes = list(part.subplots(-(-len(figure.panels) // columns), columns, squeeze=False).flat)
    names = _legend(figure)
    for each, ax in zip(figure.panels, axes, strict=False):
        panel(ax, each, names)
    for ax in axes[len(figure.panels) :]:
        ax.set_axis_off()
    if titled:
        room = 50 if narrow(figure) else 100
        words = figure.title.replace(", ", "\n", 1) if room == 50 else figure.title
        part.suptitle(
            "\n".join(short(line, room) for line in words.splitlines()),
            fontsize=8.5,
            fontweight="bold",
            color=INK,
        )
    part.patch.set_visible(False)
    if names:
        mark = figure.kind in ("curves", "classes", "worth")
        lines = [
            Line2D([], [], **look_of(i), marker=MARKERS[i % len(MARKERS)] if mark else "") for i in range(len(names))
        ]
        if any(isinstance(each, Worth) or (isinstance(each, Classes) and not each.many) for each in figure.panels):
            for line in lines:
                line.set_linestyle("")
        part.legend(
            lines, list(map(short, names)), loc="outside lower center", ncols=3 if columns > 1 else 2, handlelength=3
        )
