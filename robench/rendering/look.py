"""How figures tell things apart: ink, colours, dashes and marks, and names that fit. No torch here."""

from __future__ import annotations

from typing import Any

INK, PAPER = "#1b1f24", "#ffffff"  # the ink of nothing else, so that an SVG can exchange it
DARK_INK, DARK_PAPER = "#e6e8eb", "#14171c"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Source: Okabe & Ito 2008
LIGHT = ("#cc79a7", "#e69f00", "#56b4e9")  # of those, on which black is read
MARKERS = "osD^vPX*"
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
LONGEST = 30  # characters of a name; more would leave no room for the figure


def short(name: str, most: int = LONGEST) -> str:
    """A name with its middle left out where it is long; ends are what tells names apart."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"


def look_of(i: int) -> dict[str, Any]:
    """Colour and dash of the i-th checkpoint: no two of thirty are alike."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)]}
