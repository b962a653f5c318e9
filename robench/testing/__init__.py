"""Laws that every attack obeys, and `check_attack`, which holds any attack to them: also one from elsewhere.

`check_method`, `check_dataset` and `check_model` do the same for what else enters by name.

A law is a small function of an attack and a case: it runs the attack, with its budget cut, on a small random network and
raises `LawError` where the outcome cannot be right. No reference result is needed.
"""

from __future__ import annotations

from collections.abc import Iterable

from robench.errors import UsageError
from robench.registry import ATTACKS
from robench.testing.case import CLASSES, KINDS, LAYOUTS, RADII, Case
from robench.testing.dataset import check_dataset
from robench.testing.laws import LAWS, LawError
from robench.testing.method import check_method
from robench.testing.model import check_model
from robench.testing.trial import BUDGETS, cases_for, norms_of, proposed, quick

__all__ = [
    "BUDGETS",
    "CLASSES",
    "KINDS",
    "LAWS",
    "LAYOUTS",
    "RADII",
    "Case",
    "LawError",
    "cases_for",
    "check_attack",
    "check_dataset",
    "check_law",
    "check_method",
    "check_model",
    "norms_of",
    "proposed",
    "quick",
]


def check_attack(attack: str, cases: Iterable[Case] | None = None, laws: Iterable[str] | None = None) -> dict[str, str]:
    """Hold an attack to the laws.

    For the author of an attack, in a test:

        from robench.testing import check_attack

        def test_my_attack_obeys_the_laws():
            check_attack("my_attacks:Mine")

    Args:
        attack: as one writes it after `--attack`: a name, `NAME@key=value`, `module:object` or `path/to/file.py:object`.
        cases: networks, images and threats; a built-in list of all kinds, sizes and radii when None.
        laws: names of `LAWS`; all when None.

    Returns:
        For each law `obeyed`, or `exempt: ` and the reason, from the attack's row in the registry or its class
        attribute `exempt`.

    Raises:
        LawError: for the first law that is broken, naming the law, the attack and the case.
        UsageError: for an unknown attack or law.
    """
    norms_of(attack)  # which refuses what is no attack
    entry = ATTACKS.entry(attack)
    exempt = {**entry.exempt, **getattr(ATTACKS.load(entry), "exempt", {})}
    chosen = list(LAWS) if laws is None else list(laws)
    if unknown := [law for law in chosen if law not in LAWS]:
        raise UsageError(f"there is no law {unknown[0]!r}; laws are {', '.join(LAWS)}")
    tried = cases_for(attack) if cases is None else list(cases)
    found = {}
    for law in chosen:
        if law in exempt:
            found[law] = f"exempt: {exempt[law]}"
            continue
        for case in tried:
            check_law(law, attack, case)
        found[law] = "obeyed"
    return found


def check_law(law: str, attack: str, case: Case) -> None:
    """Hold an attack to one law in one case.

    Raises:
        LawError: if it is broken, or the attack stops with an error.
    """
    where = f"{law} broken by {attack} in {case}"
    try:
        LAWS[law](attack, case)
    except LawError as error:
        raise LawError(f"{where}: {error} (the law: {LAWS[law].__doc__})") from None
    except Exception as error:
        raise LawError(f"{where}: it stopped with {type(error).__name__}: {error}") from error
