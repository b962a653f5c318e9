"""How a suite of laws is held against a method, a data set or a model: one by one, each with a line of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from robench.errors import UsageError, first_line
from robench.testing.laws import LawError

T = TypeVar("T")
OBEYED = "obeyed"


def held(
    kind: str,
    name: str,
    laws: Mapping[str, Callable[[T], None]],
    subject: T,
    *,
    chosen: Iterable[str] | None = None,
    exempt: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, str, LawError | None]]:
    """Hold something to laws, all of them whatever comes out.

    Args:
        kind: of what is held, for messages.
        name: of it.
        laws: by name; the docstring of each says what it demands.
        subject: what each law is called with.
        chosen: names of laws; all when None.
        exempt: laws it need not obey, each with the reason.

    Yields:
        The law, `obeyed` or `exempt: REASON` or `broken: WHY`, and the error where it is broken.

    Raises:
        UsageError: for a law that is not there.
    """
    names = list(laws) if chosen is None else list(chosen)
    if unknown := [law for law in names if law not in laws]:
        raise UsageError(f"there is no law {unknown[0]!r}; laws are {', '.join(laws)}")
    for law in names:
        if exempt and law in exempt:
            yield law, f"exempt: {exempt[law]}", None
            continue
        error = _broken(law, laws[law], subject, f"{law} broken by {kind} {name}")
        yield law, f"broken: {error}" if error else OBEYED, error


def _broken(law: str, demand: Callable[[T], None], subject: T, where: str) -> LawError | None:
    try:
        demand(subject)
    except LawError as error:
        return LawError(f"{where}: {error} (the law: {demand.__doc__})")
    except Exception as error:  # whatever code from elsewhere does
        found = LawError(
            f"{where}: it stopped with {type(error).__name__}: {first_line(error)} (the law: {demand.__doc__})"
        )
        found.__cause__ = error
        return found
    return None


def first_broken(outcomes: Iterable[tuple[str, str, LawError | None]]) -> dict[str, str]:
    """The outcome of each law.

    Raises:
        LawError: for the first that is broken.
    """
    found = {}
    for law, outcome, error in outcomes:
        if error is not None:
            raise error
        found[law] = outcome
    return found


def demand(holds: object, message: str) -> None:
    """Raise a `LawError` unless it holds."""
    if not holds:
        raise LawError(message)
