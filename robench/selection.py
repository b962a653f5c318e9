"""Which results a table is about, by attack, threat, source and seed. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from robench.errors import UsageError, nearest
from robench.exhibits import Embedding
from robench.results import Failure, Result, safe
from robench.threat import Norm, ThreatModel

T = TypeVar("T")
Names = Mapping[str, set[str]]

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
    return _left(list(records), selection, _called, "results")


def embedded(embeddings: Iterable[Embedding], selection: Selection) -> list[Embedding]:
    """The features a selection leaves; they are always white-box.

    Raises:
        UsageError: as `selected`.
    """
    return _left(list(embeddings), selection, _embedded, "features")


def _left(things: list[T], selection: Selection, called: Callable[[T], Names], what: str) -> list[T]:
    left, before = things, list[str]()
    for option, values in _filters(selection):
        if not values:
            continue
        named = [called(each)[option] for each in left]
        kept = [each for each, names in zip(left, named, strict=True) if names & set(values)]
        unknown = [value for value in values if not any(value in names for names in named)]
        if unknown or not kept:
            missing = unknown or list(values)
            raise UsageError(_nothing(option, missing[0], set().union(*named), before, what))
        before.append(" ".join(f"--{option} {value}" for value in values))
        left = kept
    return left


def _filters(selection: Selection) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each option with its values."""
    yield "dataset", selection.dataset
    yield "attack", selection.attack
    yield "threat", tuple(text if text in set(Norm) else str(ThreatModel.parse(text)) for text in selection.threat)
    yield "source", selection.source
    yield "seed", selection.seed


def _called(record: Result | Failure) -> Names:
    """All that a record is called under each option."""
    return {
        "dataset": {record.subject.dataset},
        "attack": {record.cell.attack},
        "threat": {str(record.cell.threat), record.cell.threat.norm.value},
        "source": {record.source.name if record.source else WHITE_BOX},
        "seed": {str(record.cell.seed)},
    }


def _embedded(found: Embedding) -> Names:
    return {
        "dataset": {found.subject.dataset},
        "attack": {found.attack},
        "threat": {str(found.threat), found.threat.norm.value},
        "source": {WHITE_BOX},
        "seed": {str(found.seed)},
    }


def _nothing(option: str, value: str, known: set[str], before: list[str], what: str) -> str:
    names = sorted(known)
    match = nearest(value, names)
    guess = f" Did you mean {match!r}?" if match else ""
    those = f"the {what} that {' '.join(before)} left" if before else f"the {what}"
    said = "on" if option == "dataset" else f"of --{option}"
    return safe(f"--{option} {value} leaves none of {those}; there are some {said} {', '.join(names[:12])}.{guess}")
