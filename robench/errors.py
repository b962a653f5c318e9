"""What a person can mend: errors whose text is one line that names the next step."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class RobenchError(Exception):
    """The root of every error robench raises on purpose; its text is one line for a person.

    Attributes:
        code: what the command line exits with.
    """

    code: ClassVar[int] = 2


class UsageError(RobenchError):
    """What was asked for does not exist or cannot be: a name, a threat, an option, a recipe key."""


class DataError(RobenchError):
    """Images or labels that are absent or not what an evaluation may use."""


class CheckpointError(RobenchError):
    """A checkpoint that is missing, damaged, or of another architecture than asked for."""


class StoreError(RobenchError):
    """A folder or record that cannot be read or written."""


class DiskFullError(StoreError):
    """There is no room, by the disk, a quota or a limit on files; what was there before is whole."""

    code: ClassVar[int] = 74


class TrainingError(RobenchError):
    """Training that cannot start or must stop, such as a loss that is no longer finite."""


class StoppedError(RobenchError):
    """A signal asked to stop, and everything needed to go on is saved.

    Args:
        message: where it stopped.
        signal: the number of the signal.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class AttackError(RobenchError):
    """An attack that cannot run on this model or threat, or whose output breaks the contract."""


def first_line(error: BaseException) -> str:
    """The first line of what an error of other code says; its name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# what people call things whose names are spelled in another way altogether
NICKNAMES = {"aa": "autoattack", "aa-rand": "autoattack-rand", "carlini": "cw", "cw-l2": "cw", "hsj": "hopskipjump"}


def nearest(given: str, known: Iterable[str]) -> str | None:
    """The known name closest to what was typed, or None when nothing is close."""
    names = list(known)
    folded = {name.lower().replace("_", "-"): name for name in names}
    if (usual := NICKNAMES.get(given.lower())) in names:
        return usual
    close = difflib.get_close_matches(given.lower().replace("_", "-"), folded, n=1, cutoff=0.55)
    return folded[close[0]] if close else None


def unknown(kind: str, given: str, known: Iterable[str], next_step: str) -> UsageError:
    """The error for a name nobody knows: what was given, the nearest match, and where to look."""
    names = sorted(known)
    match = nearest(given, names)
    guess = f" Did you mean {match!r}?" if match else ""
    return UsageError(f"unknown {kind} {given!r}.{guess} ({len(names)} known: {next_step})")


def missing(what: str, package: str, extra: str, error: ImportError | None = None) -> UsageError:
    """The error for something that needs a package which cannot be imported: the line that installs it, or what it lacks.

    Args:
        what: needs it.
        package: as it is imported.
        extra: of robench, which brings it.
        error: of the import; one that names another module means that the package is there, and that is not.
    """
    if error is not None and package not in (error.name or "").split("."):
        return UsageError(
            f"{what!r} comes with {package}, which is installed and cannot be imported ({first_line(error)}): pip install "
            f"--upgrade 'robench[{extra}]'"
        )
    return UsageError(f"{what!r} comes with {package}, which is not installed: pip install 'robench[{extra}]'")
