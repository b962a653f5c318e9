"""How each kind of panel is drawn on axes of matplotlib, which is imported when something is."""

from __future__ import annotations

import base64
import io
import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from robench.errors import StoreError
from robench.panels import Classes, Cloud, Cost, Curves, Examples, Matrix, Panel, Training, Union

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, PAPER = "#1b1f24", "#ffffff"  # the ink of nothing else, so that an SVG can exchange it
DARK_INK, DARK_PAPER = "#e6e8eb", "#14171c"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Source: Okabe & Ito 2008
LIGHT = ("#cc79a7", "#e69f00", "#56b4e9")  # of those, on which black is read
MARKERS = "osD^vPX*"
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
LARGEST = 1024  # pixels of a side of a stored picture
LONGEST = 30  # characters of a name; more would leave no room for the figure


def short(name: str, most: int = LONGEST) -> str:
    """A name with its middle left out where it is long; ends are what tells names apart."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"


def look_of(i: int) -> dict[str, Any]:
    """Colour and dash of the i-th checkpoint: no two of thirty are alike."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)]}


def panel(ax: Axes, what: Panel, names: Sequence[str]) -> None:
    """Draw one panel.

    Args:
        ax: empty axes.
        what: the panel.
        names: everything the figure's legend tells apart, in its order.
    """
    wide = isinstance(what, Examples) and len(what.examples) > 4
    ax.set_title(short(what.title, 92 if wide else 46), color=INK)
    ax.patch.set_visible(False)
    match what:
        case Curves():
            _curves(ax, what, names)
        case Matrix():
            _matrix(ax, what)
        case Union():
            _union(ax, what)
        case Training():
            _training(ax, what, names)
        case Classes():
            _classes(ax, what, names)
        case Examples():
            _examples(ax, what)
        case Cloud():
            _cloud(ax, what)
        case Cost():
            _cost(ax, what, names)


def _curves(ax: Axes, panel: Curves, names: Sequence[str]) -> None:
    for line in panel.lines:
        i = names.index(line.name)
        ax.plot(
            *zip(*[(eps, 100 * share) for eps, share in line.points], strict=True),
            **look_of(i),
            marker=MARKERS[i % len(MARKERS)],
            clip_on=False,
        )
        for eps, share in line.worst:
            ax.plot([eps], [100 * share], marker="_", markersize=8, markeredgewidth=1.6, color=look_of(i)["color"])
    ax.set_ylim(-3, 103)
    ax.set_xlim(left=0)
    ax.set_xlabel(f"eps in {panel.norm}")
    ax.set_ylabel("accuracy, per cent")


def _training(ax: Axes, panel: Training, names: Sequence[str]) -> None:
    scale = 100 if panel.share else 1
    for name, points in panel.lines:
        look = look_of(names.index(name))
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
        range(len(panel.sources)), list(map(short, panel.sources)), rotation=35, ha="right", rotation_mode="anchor"
    )
    ax.set_yticks(range(len(panel.targets)), list(map(short, panel.targets)))
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
    labels = [f"{short(name)}  {count}" for name, count in zip(panel.attacks, panel.broken, strict=True)]
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
        look = look_of(names.index(name))
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
    ax.legend(shapes, list(map(short, attacks)), loc="best", fontsize=6.5)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")  # the usual one would be read as a formula
    ax.xaxis.set_minor_formatter(NullFormatter())
    seconds = [point.seconds for point in panel.points]
    if max(seconds) < 20 * min(seconds):  # there may be no power of ten, whose ticks alone have numbers
        ax.set_xticks(_round_numbers(min(seconds), max(seconds)))
    ax.set_ylim(bottom=-3)
    ax.set_xlabel("seconds of the attack")
    ax.set_ylabel("accuracy left, per cent")


def _classes(ax: Axes, panel: Classes, names: Sequence[str]) -> None:
    """Few classes each have a place, with the checkpoints side by side; many are sorted."""
    many = max(len(line) for _, line in panel.lines)
    for name, line in panel.lines:
        i = names.index(name)
        look = look_of(i)
        held = [(label, 100 * share) for label, share in enumerate(line) if share is not None]
        if panel.many:
            ax.plot(range(1, len(held) + 1), sorted(share for _, share in held), **look)
            continue
        aside = (i - (len(names) - 1) / 2) * 0.7 / max(len(names), 1)
        worst = min(held, key=lambda point: (point[1], point[0]))
        for point in held:
            face = look["color"] if point == worst else "none"
            marker = MARKERS[i % len(MARKERS)]
            ax.plot(
                [point[0] + aside], [point[1]], marker, color=look["color"], markerfacecolor=face, markeredgewidth=0.9
            )
    if not panel.many:
        ax.set_xticks(range(many))
        for label in range(0, many, 2):
            ax.axvspan(label - 0.5, label + 0.5, color=INK, alpha=0.06, linewidth=0)
        ax.set_xlim(-0.5, many - 0.5)
    ax.set_ylim(-3, 103)
    ax.set_xlabel("classes, the worst first" if panel.many else "class")
    ax.set_ylabel("accuracy, per cent")


def _examples(ax: Axes, panel: Examples) -> None:
    for column, example in enumerate(panel.examples):
        for row, text in enumerate((example.clean, example.adversarial, example.difference)):
            picture = _picture(text)
            left, top = column + 0.03, row + 0.03
            ax.imshow(
                picture,
                cmap="gray",
                vmin=0,
                vmax=255,
                extent=(left, left + 0.94, top + 0.94, top),
                interpolation="none",
            )
        said = f"{example.number}: {example.label} → {example.answer}"
        ax.text(column + 0.5, -0.06, said, ha="center", va="bottom", fontsize=6.5)
    ax.set_xlim(0, max(len(panel.examples), 4))
    ax.set_ylim(3, -0.25)
    ax.set_aspect("equal")
    ax.set_yticks([0.5, 1.5, 2.5], ["clean", "adversarial", "difference"])
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _picture(text: str) -> Any:
    """The pixels of a stored PNG.

    Raises:
        StoreError: if it is none.
    """
    import numpy
    from PIL import Image

    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as picture:
            if max(picture.size) > LARGEST:
                raise ValueError(f"it has {picture.size[0]} x {picture.size[1]} pixels")
            return numpy.asarray(picture.convert("L" if picture.mode in ("1", "L", "I", "I;16") else "RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise StoreError(
            f"a stored picture is no PNG of an image ({error}): delete it and run robench show CELL --images 8 --keep"
        ) from None


def _cloud(ax: Axes, panel: Cloud) -> None:
    """Each class has a colour and a marker, and its number at its median."""
    for label in sorted(set(panel.labels)):
        own = [point for point, each in zip(panel.points, panel.labels, strict=True) if each == label]
        colour = COLOURS[label % len(COLOURS)]
        ax.plot(
            *zip(*own, strict=True),
            MARKERS[label % len(MARKERS)],
            color=colour,
            markersize=2.2,
            markeredgewidth=0,
            alpha=0.75,
        )
    for label in sorted(set(panel.labels)):
        own = [point for point, each in zip(panel.points, panel.labels, strict=True) if each == label]
        colour = COLOURS[label % len(COLOURS)]
        x, y = (statistics.median(axis) for axis in zip(*own, strict=True))
        ink = "black" if colour in LIGHT else "white"
        box = {"boxstyle": "circle,pad=0.2", "facecolor": colour, "edgecolor": ink, "linewidth": 0.5}
        ax.text(x, y, str(label), ha="center", va="center", fontsize=6.5, color=ink, bbox=box)
    (left, right), (bottom, top) = (_wider(*axis) for axis in panel.reach)
    ax.set_xlim(left, right)
    ax.set_ylim(bottom, top)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(True)
    ax.spines[:].set_alpha(0.3)


def _round_numbers(low: float, high: float) -> list[float]:
    """Numbers of one digit, 1, 2 or 5, that are about a range above zero."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    every = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    return [number for number in every if low / 1.6 <= number <= high * 1.6]


def _wider(low: float, high: float) -> tuple[float, float]:
    edge = 0.04 * (high - low) or 1.0
    return low - edge, high + edge
