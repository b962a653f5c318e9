"""Attacks: one ascent loop, the attacks built on it, and adapters to the field's reference libraries."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from robench.errors import UsageError
from robench.protocols import Attack
from robench.registry import ATTACKS
from robench.spec import build
from robench.threat import ThreatModel

__all__ = ["attack_for", "options_of"]


def attack_for(text: str, threat: ThreatModel, **overrides: Any) -> Attack:
    """The attack that a text names, aimed at a threat.

    Args:
        text: such as `pgd-20`, `pgd@steps=50,restarts=3`, `torchattacks:MIFGSM` or `my_attacks:Mine`.
        threat: the ball it may move in.
        overrides: options on top of the text's.

    Raises:
        UsageError: for an unknown name or option.
    """
    entry = ATTACKS.entry(text)
    cls: Any = ATTACKS.load(entry)
    if "threat" not in getattr(cls, "__dataclass_fields__", {}):
        raise UsageError(f"attack {entry.name!r}: {entry.target} must be a dataclass with a field 'threat'")
    norms = entry.facts.get("norms", threat.norm).split()
    if threat.norm not in norms:
        others = [name for name, row in ATTACKS.rows.items() if threat.norm in row.facts["norms"].split()]
        raise UsageError(
            f"attack {entry.name} works in {' and '.join(norms)}, not in {threat.norm.value}; "
            f"these do: {', '.join(name for name in others if not name.endswith(':'))}"
        )
    attack: Attack = build(cls, {"threat": threat, **entry.options, **overrides}, where=f"attack {entry.name}")
    return attack


def options_of(attack: Attack) -> Mapping[str, Any]:
    """The fields of an attack besides its threat: what makes it the attack it is."""
    fields = dataclasses.fields(attack)  # type: ignore[arg-type]
    return {field.name: getattr(attack, field.name) for field in fields if field.name != "threat"}
