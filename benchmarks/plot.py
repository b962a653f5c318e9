"""The kept tables as a plot: how many times faster, on a logarithmic axis, with the floor that each ratio should reach.

python benchmarks/plot.py docs/benchmark-ratios.svg
"""

from __future__ import annotations

import sys
from pathlib import Path

import measure

FOLDER = Path(__file__).parent
PANELS = {
    "evaluation, ResNet-18 of width 16": ("evaluation-pgd", "evaluation-autoattack", "evaluation-bracket"),
    "training, width 16": ("training-width16",),
    "training, width 64": ("training-width64",),
}
FLOORS = {
    "PGD-20 linf": 2.6,
    "PGD-50 linf": 3.5,
    "PGD-20 linf, bfloat16": 4.0,
    "PGD-50 linf, bfloat16": 4.0,
    "AutoAttack linf": 1.55,
    "AutoAttack l2": 1.55,
    "bracket linf, not AutoAttack": 6.0,
    "PGD-AT-10 step, float32": 3.3,
    "PGD-AT-10 step against the released loop, float32": 3.3,
    "TRADES-10 step, float32": 3.3,
    "RoCL step, float32": 2.5,
    "augmentation simclr": 7.0,
    "augmentation crop-flip": 7.0,
}


def shown(files: tuple[str, ...]) -> list[measure.Row]:
    """The rows of some kept tables that have a floor."""
    rows = [row for name in files for row in measure.read(FOLDER / f"{name}.json")]
    return [row for row in rows if row.name in FLOORS]


def main() -> None:
    """Draw."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "robench"
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    panels = {title: shown(files) for title, files in PANELS.items()}
    heights = [len(rows) for rows in panels.values()]
    figure, axes = pyplot.subplots(
        len(panels),
        1,
        figsize=(9, 1.2 + 0.34 * sum(heights)),
        layout="constrained",
        sharex=True,
        height_ratios=heights,
    )
    for ax, (title, rows) in zip(axes, panels.items(), strict=True):
        places = range(len(rows))
        ax.barh(places, [row.ratio for row in rows], color="tab:blue", height=0.6)
        ax.errorbar(
            [row.ratio for row in rows], places, xerr=[row.ratio * row.spread for row in rows], fmt="none", ecolor="0.3"
        )
        ax.plot([FLOORS[row.name] for row in rows], places, "|", color="tab:red", markersize=14, label="floor")
        ax.set_yticks(places, [f"{row.name} / {row.against}" for row in rows])
        ax.invert_yaxis()
        ax.set_title(title, loc="left")
        ax.set_xscale("log", base=2)
        ax.set_xticks([1, 2, 4, 8], ["1x", "2x", "4x", "8x"])
        ax.set_xlim(0.8, 10)
        ax.axvline(1, color="0.6", linewidth=0.8)
    axes[0].legend(frameon=False, loc="lower right")
    figure.savefig(sys.argv[1], metadata={"Date": None})


if __name__ == "__main__":
    main()
