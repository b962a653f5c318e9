"""Figures drawn by matplotlib: the same figure gives the same bytes. The library is imported when something is drawn."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from robench.errors import UsageError
from robench.figures import Cost, Curves, Figure, Matrix, Panel, Training, Union

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("svg", "png", "pdf")
INK, PAPER = "#1b1f24", "#ffffff"  # the ink of nothing else, so that an SVG can exchange it
DARK_INK, DARK_PAPER = "#e6e8eb", "#14171c"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Source: Okabe & Ito 2008
MARKERS = "osD^vPX*"
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
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
LONGEST = 30  # characters of a name; more would leave no room for the figure
WIDE, NARROW = 7.0, 3.4  # inches: a page of two columns, and one of them


def draw(figures: Sequence[Figure], form: str, *, titled: bool = True) -> bytes:
    """Figures one below the other, as the bytes of one file.

    Args:
        figures: what to draw, at least one.
        form: `svg` (light or dark, as the reader prefers), `png` or `pdf` (on white).
        titled: write each figure's title above it.

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
        sizes = [_size(figure) for figure in figures]
        width = max(wide for wide, _ in sizes)
        drawing = Drawing(figsize=(width, sum(high for _, high in sizes)), layout="constrained")
        FigureCanvasAgg(drawing)
        parts: Any = drawing.subfigures(len(figures), 1, squeeze=False, height_ratios=[high for _, high in sizes])
        for part, figure in zip(parts[:, 0], figures, strict=True):
            _draw(part, figure, titled)
        drawing.patch.set_visible(form != "svg")
        stream = io.BytesIO()
        drawing.savefig(stream, format=form, metadata=none)
    return _adaptive(stream.getvalue().decode()).encode() if form == "svg" else stream.getvalue()


def inline(figure: Figure, prefix: str) -> str:
    """A figure as an SVG element for a page whose CSS sets the colour; its ids begin with the prefix, as a page holds several."""
    text = draw([figure], "svg", titled=False).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style>/\* page \*/.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'(?<=\bid=")|(?<=url\(#)|(?<=href="#)', prefix, text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(figure.title)}" ', 1).strip()


def _adaptive(text: str) -> str:
    """An SVG whose ink and paper follow the reader's colour scheme together, since the page around may not; no metadata."""
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = text.replace(INK, "currentColor")
    style = (
        f"<style>/* page */svg{{color:{INK};background:{PAPER}}}"
        f"@media (prefers-color-scheme:dark){{svg{{color:{DARK_INK};background:{DARK_PAPER}}}}}</style>"
    )
    return re.sub(r"(<svg[^>]*>)", lambda found: found[1] + style, text, count=1)


def _columns(figure: Figure) -> int:
    most = {"curves": 3, "transfer": 2, "union": 2, "pareto": 2, "training": 3}[figure.kind]
    return min(most, len(figure.panels))


def _size(figure: Figure) -> tuple[float, float]:
    """Inches; a single panel fits one column of two."""
    columns = _columns(figure)
    rows = -(-len(figure.panels) // columns)
    high = {"curves": 2.2, "transfer": 2.6, "union": 2.8, "pareto": 2.4, "training": 2.0}[figure.kind]
    return NARROW if columns == 1 else WIDE, rows * high + 0.3 + 0.16 * -(-len(_legend(figure)) // (3 * columns))


def _legend(figure: Figure) -> list[str]:
    """The names that a figure tells apart by colour."""
    names: list[str] = []
    for panel in figure.panels:
        names += [line.name for line in panel.lines] if isinstance(panel, Curves) else []
        names += [name for name, _ in panel.lines] if isinstance(panel, Training) else []
        names += [point.name for point in panel.points] if isinstance(panel, Cost) else []
    return list(dict.fromkeys(names))


def _draw(part: Any, figure: Figure, titled: bool) -> None:
    from matplotlib.lines import Line2D

    columns = _columns(figure)
    axes = list(part.subplots(-(-len(figure.panels) // columns), columns, squeeze=False).flat)
    names = _legend(figure)
    for panel, ax in zip(figure.panels, axes, strict=False):
        _panel(ax, panel, names)
    for ax in axes[len(figure.panels) :]:
        ax.set_axis_off()
    if titled:
        words = figure.title.replace(", ", "\n", 1) if columns == 1 else figure.title
        part.suptitle(
            "\n".join(_short(line, 50 * columns) for line in words.splitlines()),
            fontsize=8.5,
            fontweight="bold",
            color=INK,
        )
    part.patch.set_visible(False)
    if names:
        mark = figure.kind == "curves"
        lines = [
            Line2D([], [], **_look(i), marker=MARKERS[i % len(MARKERS)] if mark else "") for i in range(len(names))
        ]
        part.legend(
            lines, list(map(_short, names)), loc="outside lower center", ncols=3 if columns > 1 else 2, handlelength=3
        )


def _short(name: str, most: int = LONGEST) -> str:
    """A name with its middle left out where it is long; ends are what tells names apart."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"


def _look(i: int) -> dict[str, Any]:
    """Colour and dash of the i-th checkpoint: no two of thirty are alike."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)]}


def _panel(ax: Axes, panel: Panel, names: Sequence[str]) -> None:
    ax.set_title(_short(panel.title, 46), color=INK)
    ax.patch.set_visible(False)
    if isinstance(panel, Curves):
        _curves(ax, panel, names)
    elif isinstance(panel, Matrix):
        _matrix(ax, panel)
    elif isinstance(panel, Union):
        _union(ax, panel)
    elif isinstance(panel, Training):
        _training(ax, panel, names)
    else:
        _cost(ax, panel, names)


def _curves(ax: Axes, panel: Curves, names: Sequence[str]) -> None:
    for line in panel.lines:
        i = names.index(line.name)
        ax.plot(
            *zip(*[(eps, 100 * share) for eps, share in line.points], strict=True),
            **_look(i),
            marker=MARKERS[i % len(MARKERS)],
            clip_on=False,
        )
        for eps, share in line.worst:
            ax.plot([eps], [100 * share], marker="_", markersize=8, markeredgewidth=1.6, color=_look(i)["color"])
    ax.set_ylim(-3, 103)
    ax.set_xlim(left=0)
    ax.set_xlabel(f"eps in {panel.norm}")
    ax.set_ylabel("accuracy, per cent")


def _training(ax: Axes, panel: Training, names: Sequence[str]) -> None:
    scale = 100 if panel.share else 1
    for name, points in panel.lines:
        look = _look(names.index(name))
        ax.plot(*zip(*[(epoch, scale * value) for epoch, value in points], strict=True), **look, linewidth=1)
        if len(points) == 1:  # a line of one point cannot be seen
            ax.plot([points[0][0]], [scale * points[0][1]], ".", color=look["color"])
    ax.set_xlabel("epoch")
    if panel.share:
        ax.set_ylim(-3, 103)
        ax.set_ylabel("accuracy, per cent")


def _matrix(ax: Axes, panel: Matrix) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    for row, target in enumerate(panel.accuracy):
        for column, share in enumerate(target):
            if share is None:
                ax.text(column, row, "-", ha="center", va="center")
                continue
            red, green, blue, _ = colour = colormaps["cividis"](share)
            own = panel.targets[row] == panel.sources[column]
            ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, edgecolor="none"))
            if own:
                ax.add_patch(Rectangle((column - 0.45, row - 0.45), 0.9, 0.9, fill=False, edgecolor="white", lw=1.2))
            dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
            ax.text(column, row, f"{100 * share:.1f}", ha="center", va="center", color="white" if dark else "black")
    ax.set_xlim(-0.5, len(panel.sources) - 0.5)
    ax.set_ylim(len(panel.targets) - 0.5, -0.5)
    ax.set_xticks(
        range(len(panel.sources)), list(map(_short, panel.sources)), rotation=35, ha="right", rotation_mode="anchor"
    )
    ax.set_yticks(range(len(panel.targets)), list(map(_short, panel.targets)))
    ax.set_xlabel("crafted on")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _union(ax: Axes, panel: Union) -> None:
    """Bars above, and below each a column of dots that says which attacks; as in an UpSet plot."""
    n, height = len(panel.attacks), max(count for _, count in panel.bars)
    unit = height / 9  # of one row of dots, in the units of the bars
    ax.bar(range(len(panel.bars)), [count for _, count in panel.bars], color=COLOURS[0], width=0.6)
    for x, (who, count) in enumerate(panel.bars):
        ax.text(x, count + unit / 5, str(count), ha="center", va="bottom", fontsize=6.5)
        rows = [-(k + 1) * unit for k in range(n)]
        ax.plot([x] * n, rows, "o", color=INK, alpha=0.18, markersize=3.5, markeredgewidth=0)
        chosen = [rows[k] for k in sorted(who)]
        ax.plot([x] * len(chosen), chosen, "-o", color=INK, markersize=3.5, linewidth=1)
    rest, more = panel.rest
    told = f"{panel.left} of {panel.right} unbroken" + (f"; {rest} more images in {more} smaller bars" if more else "")
    ax.text(1, 1, told, transform=ax.transAxes, ha="right", va="top", fontsize=6.5)
    ax.set_ylim(-(n + 0.7) * unit, height * 1.3)
    ax.set_xlim(-0.7, max(len(panel.bars), 4) - 0.3)
    labels = [f"{_short(name)}  {count}" for name, count in zip(panel.attacks, panel.broken, strict=True)]
    ax.set_yticks([-(k + 1) * unit for k in range(n)], labels)
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.axhline(0, color=INK, linewidth=0.6)


def _cost(ax: Axes, panel: Cost, names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import NullFormatter

    attacks = sorted({point.attack for point in panel.points})
    for name in dict.fromkeys(point.name for point in panel.points):
        look = _look(names.index(name))
        own = [point for point in panel.points if point.name == name]
        front = [(point.seconds, 100 * point.accuracy) for point in own if point.front]
        ax.step(*zip(*front, strict=True), where="post", **look, linewidth=0.9)
        for point in own:
            marker = MARKERS[attacks.index(point.attack) % len(MARKERS)]
            face = look["color"] if point.front else "none"
            ax.plot(
                [point.seconds],
                [100 * point.accuracy],
                marker,
                color=look["color"],
                markerfacecolor=face,
                clip_on=False,
            )
    shapes = [
        Line2D([], [], linestyle="", marker=MARKERS[k % len(MARKERS)], color=INK, markerfacecolor="none")
        for k in range(len(attacks))
    ]
    ax.legend(shapes, list(map(_short, attacks)), loc="best", fontsize=6.5)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")  # the usual one would be read as a formula
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_ylim(bottom=-3)
    ax.set_xlabel("seconds of the attack")
    ax.set_ylabel("accuracy left, per cent")
