"""Thresholds an evaluation must meet, for pipelines: `--fail-under autoattack=45`. No torch here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from robench.errors import UsageError, nearest
from robench.results import Failure, Result, asked, named
from robench.statistic import interval

CLEAN = "clean"


@dataclass(frozen=True)
class Gate:
    """The least accuracy under an attack.

    Attributes:
        attack: as `--attack` has it, or `clean`.
        least: in per cent.
    """

    attack: str
    least: float


@dataclass(frozen=True)
class Judgement:
    """What a gate says of a record.

    Attributes:
        gate: the threshold.
        subject: what was attacked.
        what: attack and threat.
        accuracy: in per cent; None where the cell failed.
        low: end of the 95 % Wilson interval; likewise high.
        passed: whether the threshold is met.
    """

    gate: Gate
    subject: str
    what: str
    accuracy: float | None
    low: float
    high: float
    passed: bool

    @property
    def text(self) -> str:
        """One line: `FAIL pgd-at autoattack linf-8/255 43.1 [42.1, 44.1] < 45`."""
        word = "pass" if self.passed else "FAIL"
        if self.accuracy is None:
            return f"{word} {self.subject} {self.what}: no result, so it is not at least {self.gate.least:g}"
        sign = ">=" if self.passed else "<"
        return (
            f"{word} {self.subject} {self.what} {self.accuracy:.1f} [{self.low:.1f}, {self.high:.1f}] {sign} "
            f"{self.gate.least:g}"
        )


def parse(text: str, attacks: Sequence[str]) -> Gate:
    """Read `ATTACK=PERCENT` or `clean=PERCENT`.

    Args:
        text: such as `autoattack=45`.
        attacks: those that are run.

    Raises:
        UsageError: if it is not of that form, or no such attack is run.
    """
    name, _, number = text.rpartition("=")
    if not name or not number:
        raise UsageError(f"--fail-under {text}: expected ATTACK=PERCENT, such as autoattack=45")
    try:
        least = float(number)
    except ValueError:
        least = math.nan
    if not 0 <= least <= 100:
        raise UsageError(
            f"--fail-under {text}: {number} is no percentage from 0 to 100; expected ATTACK=PERCENT, such as {name}=45"
        )
    known = [*dict.fromkeys(attacks), CLEAN]
    if name not in known:
        match = nearest(name, known)
        guess = f" Did you mean {match!r}?" if match else ""
        raise UsageError(f"--fail-under {text}: {name!r} is not run here; use {', '.join(known)}.{guess}")
    return Gate(name, least)


def judged(gates: Iterable[Gate], records: Sequence[Result | Failure]) -> list[Judgement]:
    """Every gate against every record it speaks of; a cell without a result never passes."""
    found = []
    for gate in gates:
        mine = [record for record in records if gate.attack in (CLEAN, record.cell.attack)]
        found += list(dict.fromkeys(_judge(gate, record) for record in mine))
    return found


def _judge(gate: Gate, record: Result | Failure) -> Judgement:
    clean = gate.attack == CLEAN
    who = named(record.subject, record.cell.inference)
    source = f" from {record.source.name}" if record.source and not clean else ""
    what = CLEAN if clean else asked(record.cell) + source
    if isinstance(record, Failure):
        return Judgement(gate, who, what, None, 0.0, 100.0, passed=False)
    bits = record.clean if clean else record.robust
    share, (low, high) = sum(bits) / len(bits), interval(sum(bits), len(bits))
    return Judgement(gate, who, what, 100 * share, 100 * low, 100 * high, passed=100 * share >= gate.least - 1e-9)
