"""How costs are drawn against accuracy, on axes of matplotlib, which is imported when something is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from robench.panels import Cost, Worth
from robench.rendering.look import INK, MARKERS, look_of, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def attacks(ax: Axes, panel: Cost, names: Sequence[str]) -> None:
    """What each attack cost and left.

    Args:
        ax: empty axes.
        panel: the attacks.
        names: the checkpoints of the figure's legend, in its order.
    """
    from matplotlib.lines import Line2D

    attacks = sorted({point.attack for point in panel.points})
    for name in dict.fromkeys(point.name for point in panel.points):
        look = look_of(names.index(name))
        own = [point for point in panel.points if point.name == name]
        front = [(point.cost, 100 * point.accuracy) for point in own if point.front]
        ax.step(*zip(*front, strict=True), where="post", **look, linewidth=0.9)
        for point in own:
            marker = MARKERS[attacks.index(point.attack) % len(MARKERS)]
            face = look["color"] if point.front else "none"
            ax.plot(
                [point.cost],
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
    _costs(ax, [point.cost for point in panel.points])
    ax.set_ylim(bottom=-3)
    ax.set_xlabel(f"{panel.unit} of the attack")
    ax.set_ylabel("accuracy left, per cent")


def checkpoints(ax: Axes, panel: Worth, names: Sequence[str]) -> None:
    """What each checkpoint cost and is worth.

    Args:
        ax: empty axes.
        panel: the checkpoints.
        names: those of the figure's legend, in its order.
    """
    front = sorted((each.cost, 100 * each.robust) for each in panel.values if each.front and each.robust is not None)
    if len(front) > 1:
        ax.step(*zip(*front, strict=True), where="post", color=INK, linewidth=0.9, alpha=0.6)
    for each in panel.values:
        i = names.index(each.name)
        look = {"color": look_of(i)["color"], "marker": MARKERS[i % len(MARKERS)], "linestyle": "", "clip_on": False}
        ax.plot([each.cost], [100 * each.clean], **look, markerfacecolor="none")
        if each.robust is not None:
            ax.plot([each.cost], [100 * each.robust], **look)
    _costs(ax, [each.cost for each in panel.values])
    ax.set_ylim(-3, 103)
    ax.set_xlabel(panel.cost)
    ax.set_ylabel("accuracy, per cent")


def _costs(ax: Axes, costs: Sequence[float]) -> None:
    """A logarithmic axis of costs on which there are numbers."""
    from matplotlib.ticker import NullFormatter

    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(lambda cost, _: _short(cost))  # the usual one would be read as a formula
    ax.xaxis.set_minor_formatter(NullFormatter())
    if max(costs) < 20 * min(costs):  # there may be no power of ten, whose ticks alone have numbers
        ax.set_xticks(_round_numbers(min(costs), max(costs)))


def _short(cost: float) -> str:
    """A number with k, M, G or T for thousands."""
    size, letter = next(
        ((s, f" {c}") for s, c in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")) if cost >= s), (1.0, "")
    )
    return f"{cost / size:g}{letter}"


def _round_numbers(low: float, high: float) -> list[float]:
    """Numbers of one digit, 1, 2 or 5, that are about a range above zero."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    every = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    return [number for number in every if low / 1.6 <= number <= high * 1.6]
