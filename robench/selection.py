"""Which results a table is about, by attack, threat, source and seed. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from robench.errors import UsageError, nearest
from robench.results import Failure, Result, safe
from robench.threat import Norm, ThreatModel

WHITE_BOX = "white-box"  # in place of a source's name


@dataclass(frozen=True)
class Selection:
    """What is left in; an empty field leaves all in.

    Attributes:
        dataset: its name.
        attack: names as tables and `--attack` have them.
        threat: norms or whole threats, such as `linf` or `l2-0.5`.
        source: names of checkpoints that images were crafted on, or `white-box`.
        seed: seeds of attacks.
    """

    dataset: tuple[str, ...] = ()
    attack: tuple[str, ...] = ()
    threat: tuple[str, ...] = ()
    source: tuple[str, ...] = ()
    seed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse threats and seeds that cannot be."""
        for text in self.threat:
            if text not in set(Norm):
                ThreatModel.parse(text)
        for text in self.seed:
            if not text.isdecimal():
                raise UsageError(f"--seed {text} is not a whole number of at least 0, such as 0")


def selected(records: Iterable[Result | Failure], selection: Selection) -> list[Result | Failure]:
    """The records a selection leaves.

    Raises:
        UsageError: naming the filter that left nothing, what there was to choose from, and the nearest match.
    """
    left = list(records)
    before: list[str] = []
    for option, values, of in _filters(selection):
        if not values:
            continue
        kept = [record for record in left if of(record) & set(values)]
        asked = " ".join(f"--{option} {value}" for value in values)
        unknown = [value for value in values if not any(value in of(record) for record in left)]
        if unknown or not kept:
            missing = unknown or list(values)
            raise UsageError(_nothing(option, missing[0], {name for r in left for name in of(r)}, before))
        before.append(asked)
        left = kept
    return left


def _filters(
    selection: Selection,
) -> Iterator[tuple[str, tuple[str, ...], Callable[[Result | Failure], set[str]]]]:
    """Each option with its values, and all that a record is called under it."""
    yield "dataset", selection.dataset, lambda record: {record.subject.dataset}
    yield "attack", selection.attack, lambda record: {record.cell.attack}
    threats = tuple(text if text in set(Norm) else str(ThreatModel.parse(text)) for text in selection.threat)
    yield "threat", threats, lambda record: {str(record.cell.threat), record.cell.threat.norm.value}
    yield "source", selection.source, lambda record: {record.source.name if record.source else WHITE_BOX}
    yield "seed", selection.seed, lambda record: {str(record.cell.seed)}


def _nothing(option: str, value: str, known: set[str], before: list[str]) -> str:
    names = sorted(known)
    match = nearest(value, names)
    guess = f" Did you mean {match!r}?" if match else ""
    those = f"the results that {' '.join(before)} left" if before else "the results"
    said = "on" if option == "dataset" else f"of --{option}"
    return safe(f"--{option} {value} leaves none of {those}; there are some {said} {', '.join(names[:12])}.{guess}")
