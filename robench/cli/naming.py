"""What a shell can complete: names from the registries, recipes, and runs in checkpoints/."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

import click

Completer: TypeAlias = "Callable[[click.Context, click.Parameter, str], list[str]]"


def _begins(names: Callable[[], Iterable[str]]) -> Completer:
    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        return [name for name in names() if name.startswith(incomplete)]

    return complete


def _registered(kind: str) -> Callable[[], list[str]]:
    def names() -> list[str]:
        from robench import registry
        from robench.names import Registry

        table: Registry = getattr(registry, kind)
        return table.names()

    return names


def _recipes() -> list[str]:
    from robench.recipe import names

    return names()


def _suites() -> list[str]:
    from robench.suite import SUITES

    return list(SUITES)


def checkpoints(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Runs under `--checkpoints`."""
    root = Path(context.params.get("checkpoints") or "checkpoints")
    found = sorted(path.parent for path in root.glob("*/last.json")) if root.is_dir() else []
    return [path.name for path in found if path.name.startswith(incomplete)]


attacks, datasets = _begins(_registered("ATTACKS")), _begins(_registered("DATASETS"))
encoders, classifiers = _begins(_registered("MODELS")), _begins(_registered("CLASSIFIERS"))
recipes, suites = _begins(_recipes), _begins(_suites)
