"""Training methods: each file one method, which returns named terms whose sum is the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robench.protocols import Method
from robench.registry import METHODS
from robench.spec import build

__all__ = ["method_for"]


def method_for(name: str, options: Mapping[str, Any]) -> Method:
    """The method of that name with its options set.

    Raises:
        UsageError: for an unknown name or option, or an option given under two of its names.
    """
    entry = METHODS.entry(name)
    table = {**entry.spelled(entry.options), **entry.spelled(options)}
    method: Method = build(METHODS.load(entry), table, where=f"method {entry.name}")
    return method
