"""Threat models: a norm and a radius, written `linf-8/255`, `l2-0.5`, `l1-12`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Self

from robench.errors import UsageError, nearest


class Norm(StrEnum):
    """The norms a threat model may use."""

    LINF = "linf"
    L2 = "l2"
    L1 = "l1"


@dataclass(frozen=True)
class ThreatModel:
    """All images within `eps` of the clean one, in `norm`, that stay inside [0, 1].

    Attributes:
        norm: the norm that measures the perturbation.
        eps: the radius, in units of pixels scaled to [0, 1]; 0 allows no change.

    Raises:
        UsageError: if eps is negative, not finite, or above 1 for linf.
    """

    norm: Norm
    eps: float

    def __post_init__(self) -> None:
        """Refuse radii that cannot be meant."""
        if not math.isfinite(self.eps) or self.eps < 0:
            raise UsageError(
                f"threat {self.norm.value}-{self.eps}: eps must be a finite number of at least 0, such as 8/255"
            )
        if self.norm is Norm.LINF and self.eps > 1:
            raise UsageError(
                f"threat linf-{_text(self.eps)}: pixels are in [0, 1], so eps above 1 has no meaning; "
                f"did you mean linf-{_text(self.eps)}/255?"
            )

    def __str__(self) -> str:
        """The canonical text, which `parse` reads back to the same value."""
        return f"{self.norm.value}-{_text(self.eps)}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `NORM-EPS`, where EPS is a number or a fraction.

        Args:
            text: for example `linf-8/255`, `l2-0.5` or `l1-12`.

        Returns:
            The threat model.

        Raises:
            UsageError: if the text is malformed; the message names the nearest valid form.
        """
        head, dash, tail = text.strip().partition("-")
        if not dash:
            raise UsageError(f"threat {text!r} has no radius: write NORM-EPS, such as linf-8/255, l2-0.5 or l1-12")
        if head not in set(Norm):
            match = nearest(head, set(Norm))
            guess = f"; did you mean {match}-{tail}?" if match and head != "l0" else ""
            raise UsageError(f"threat {text!r}: unknown norm {head!r}{guess} (norms: {', '.join(Norm)})")
        return cls(Norm(head), number(tail, f"threat {text!r}: eps"))


def number(text: str, what: str) -> float:
    """Read a number that may be written as a fraction, such as `8/255`.

    Raises:
        UsageError: if it is neither; `what` opens the message.
    """
    try:
        top, slash, bottom = text.partition("/")
        return float(Fraction(top.strip()) / _plain(bottom)) if slash else float(text)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise UsageError(f"{what} must be a number or a fraction such as 8/255, not {text!r}") from None


def _plain(text: str) -> Fraction:
    """What may stand below a fraction's bar: a number without a bar of its own."""
    return Fraction(text.strip()) if "/" not in text else Fraction("")


def _text(eps: float) -> str:
    """The shortest text that reads back to exactly this number: `8/255`, `0.2`, `12`."""
    if eps == int(eps):
        return str(int(eps))
    levels = round(eps * 255)
    return min([repr(eps), f"{levels}/255"] if levels / 255 == eps else [repr(eps)], key=len)
