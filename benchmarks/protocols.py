"""What RoCL's protocols reach on digits, over three training seeds, and whether the paper's orderings hold there.

    python benchmarks/protocols.py                               # from the records in results/reference/rocl-digits
    python benchmarks/protocols.py results                       # from your own, made as docs/reproducing-rocl.md says

Everything is worked out from the records: a row's mean over seeds with its standard deviation and Student's t interval, and of
each ordering the difference seed by seed, on the same images, with Newcombe's paired interval.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from robench.results import Result, Store
from robench.statistic import interval, mean_interval, paired_difference, spread

REFERENCE = Path(__file__).parent.parent / "results" / "reference" / "rocl-digits"
SEEDS = (0, 1, 2)
ROWS = {
    "simclr-digits": "SimCLR + LE",
    "rocl-digits": "RoCL + LE",
    "linear-exact-digits": "RoCL + exact LE",
    "robust-linear-digits": "RoCL + r-LE",
    "finetune-at-digits": "RoCL + AT",
    "finetune-trades-digits": "RoCL + TRADES (AFF)",
    "finetune-at-ss-digits": "RoCL + AT+SS",
}
COLUMNS = {"clean": "clean", "pgd-20": "PGD-20", "pgd-100": "PGD-100", "autoattack": "AutoAttack"}
NONE, LITTLE = 0.05, 0.02  # an accuracy that is about none; a difference that is little

Bits = tuple[bool, ...]
Side = tuple[str, str]  # a row and a column


@dataclass(frozen=True)
class Claim:
    """One thing the paper or common sense says.

    Attributes:
        text: in words.
        one: a row and a column.
        other: another, whose accuracy is subtracted; None to look at the one's accuracy itself.
        low: the least the figure may be.
        high: the most it may be.
        each: whether it is a fact of every network, so that seeds are looked at one by one and no interval is asked.
    """

    text: str
    one: Side
    other: Side | None = None
    low: float = 0.0
    high: float = math.inf
    each: bool = False


def claims() -> tuple[Claim, ...]:
    """The orderings that are looked at."""
    simclr, rocl, robust = "simclr-digits", "rocl-digits", "robust-linear-digits"
    listed = [
        Claim("SimCLR + LE: about none, PGD-20", (simclr, "pgd-20"), high=NONE),
        Claim("SimCLR + LE: about none, AutoAttack", (simclr, "autoattack"), high=NONE),
        Claim("RoCL + LE is robust: over SimCLR + LE, AutoAttack", (rocl, "autoattack"), (simclr, "autoattack")),
        Claim("r-LE raises it: over LE, AutoAttack", (robust, "autoattack"), (rocl, "autoattack")),
        Claim("r-LE costs clean accuracy: LE over r-LE, clean", (rocl, "clean"), (robust, "clean")),
        Claim(
            "r-LE costs clean accuracy: exact LE over r-LE, clean", ("linear-exact-digits", "clean"), (robust, "clean")
        ),
    ]
    for name in ("finetune-trades-digits", "finetune-at-digits", "finetune-at-ss-digits"):
        text = f"{ROWS[name].removeprefix('RoCL + ')} raises it further: over r-LE, AutoAttack"
        listed.append(Claim(text, (name, "autoattack"), (robust, "autoattack")))
    for name, label in ROWS.items():
        listed.append(
            Claim(f"{label}: 100 steps change little from 20", (name, "pgd-20"), (name, "pgd-100"), -LITTLE, LITTLE)
        )
    for name, label in ROWS.items():
        listed.append(Claim(f"{label}: AutoAttack at most PGD-100", (name, "pgd-100"), (name, "autoattack"), each=True))
    return tuple(listed)


def gathered(folder: Path) -> dict[tuple[str, str, int], Bits]:
    """The bits of every row, column and training seed.

    Raises:
        ValueError: if one is missing.
    """
    found: dict[tuple[str, str, int], Bits] = {}
    for record in Store(folder).records():
        name = re.sub(r"-seed\d+$", "", record.subject.name)
        if isinstance(record, Result) and name in ROWS and str(record.cell.threat) == "linf-0.2":
            found[name, record.cell.attack, record.subject.seed] = record.robust
            found[name, "clean", record.subject.seed] = record.clean
    for row in ROWS:
        for column in COLUMNS:
            for seed in SEEDS:
                if (row, column, seed) not in found:
                    raise ValueError(f"{folder} has no result of {row}, seed {seed}, {column}")
    return found


def share(bits: Bits) -> float:
    """The share that is right."""
    return sum(bits) / len(bits)


def accuracies(found: dict[tuple[str, str, int], Bits]) -> Iterator[str]:
    """The table of accuracies: mean +- standard deviation (t interval), per cent."""
    yield f"| | {' | '.join(COLUMNS.values())} |"
    yield f"|---|{'---|' * len(COLUMNS)}"
    for row, label in ROWS.items():
        cells = [_over_seeds([share(found[row, column, seed]) for seed in SEEDS]) for column in COLUMNS]
        yield f"| {label} | {' | '.join(cells)} |"


def _over_seeds(values: Sequence[float]) -> str:
    mean, deviation = spread(values)
    low, high = mean_interval(values) or (mean, mean)
    return f"{100 * mean:.1f} +- {100 * (deviation or 0):.1f} ({100 * max(low, 0):.1f} to {100 * min(high, 1):.1f})"


def figures(claim: Claim, found: dict[tuple[str, str, int], Bits]) -> list[tuple[float, float, float]]:
    """What a claim looks at, seed by seed, with its interval over the test images."""
    listed = []
    for seed in SEEDS:
        one = found[(*claim.one, seed)]
        if claim.other is None:
            listed.append((share(one), *interval(sum(one), len(one))))
        else:
            other = found[(*claim.other, seed)]
            listed.append((share(one) - share(other), *paired_difference(one, other)))
    return listed


def verdict(claim: Claim, found: dict[tuple[str, str, int], Bits]) -> str:
    """`holds`, where the interval over seeds lies within the claim's bounds; else whether each seed does."""
    values = [value for value, _, _ in figures(claim, found)]
    inside = all(claim.low <= value <= claim.high for value in values)
    low, high = mean_interval(values) or (values[0], values[0])
    if claim.other is None:
        low = max(low, 0.0)
    if inside and (claim.each or (claim.low <= low and high <= claim.high)):
        return "holds"
    return "in each seed; the interval reaches further" if inside else "does not hold"


def orderings(found: dict[tuple[str, str, int], Bits]) -> Iterator[str]:
    """The table of claims, in points of per cent."""
    yield f"| | {' | '.join(f'seed {seed}' for seed in SEEDS)} | mean over seeds | |"
    yield f"|---|{'---|' * len(SEEDS)}---|---|"
    for claim in claims():
        each = figures(claim, found)
        cells = [f"{100 * value:.1f} ({100 * low:.1f} to {100 * high:.1f})" for value, low, high in each]
        mean = sum(value for value, _, _ in each) / len(each)
        low, high = mean_interval([value for value, _, _ in each]) or (mean, mean)
        over = f"{100 * mean:.1f} ({100 * low:.1f} to {100 * high:.1f})"
        yield f"| {claim.text} | {' | '.join(cells)} | {over} | {verdict(claim, found)} |"


def page(folder: Path) -> str:
    """Both tables."""
    found = gathered(folder)
    return "\n".join([*accuracies(found), "", *orderings(found)]) + "\n"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=REFERENCE, help="a folder of results")
    print(page(parser.parse_args().results), end="")


if __name__ == "__main__":
    main()
