"""How each kind of panel is drawn on axes of matplotlib, which is imported when something is."""

from __future__ import annotations

import base64
import io
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from robench.errors import StoreError
from robench.panels import Classes, Cloud, Cost, Curves, Examples, Matrix, Panel, Training, Union, Worth
from robench.rendering import scatter
from robench.rendering.look import COLOURS, INK, LIGHT, MARKERS, look_of, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LARGEST = 1024  # pixels of a side of a stored picture


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
            scatter.attacks(ax, what, names)
        case Worth():
            scatter.checkpoints(ax, what, names)


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
    rows = [-(k + 1) * unit for k in range(n)]
    every = [(x, row) for x in range(len(panel.bars)) for row in rows]
    ax.plot(*zip(*every, strict=True), "o", color=INK, alpha=0.18, markersize=3.5, markeredgewidth=0)
    for x, (who, count) in enumerate(panel.bars):
        ax.text(x, count + unit / 5, str(count), ha="center", va="bottom", fontsize=6.5)
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
        for face, points in (("none", [point for point in held if point != worst]), (look["color"], [worst])):
            ax.plot(
                [label + aside for label, _ in points],
                [share for _, share in points],
                MARKERS[i % len(MARKERS)],
                color=look["color"],
                markerfacecolor=face,
                markeredgewidth=0.9,
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


def _wider(low: float, high: float) -> tuple[float, float]:
    edge = 0.04 * (high - low) or 1.0
    return low - edge, high + edge
