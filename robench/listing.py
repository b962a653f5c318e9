"""What `robench list` shows: the registries, the recipes and the results as rows of text. No torch here."""

from __future__ import annotations

from pathlib import Path

from robench import recipe, registry
from robench.part import held, unfinished
from robench.results import Failure, Store, named, safe, searching
from robench.suite import SUITES

_KINDS = (
    registry.METHODS,
    registry.ATTACKS,
    registry.DATASETS,
    registry.MODELS,
    registry.CLASSIFIERS,
    registry.TRACKERS,
)


def listing(what: str, results: Path) -> tuple[list[str], list[list[str]]]:
    """The head and rows of a list.

    Args:
        what: `methods`, `attacks`, `datasets`, `models`, `classifiers`, `trackers`, `recipes`, `suites` or `results`.
        results: where results are.

    Raises:
        StoreError: for `results` when there are none.
    """
    if what == "recipes":
        rows = []
        for name in recipe.names():
            found = recipe.load(name)
            stages = " + ".join(stage.method for stage in found.stage)
            rows.append([name, found.dataset, found.model, str(found.threat or "-"), stages, found.summary])
        return ["recipe", "dataset", "model", "threat", "stages", ""], rows
    if what == "suites":
        rows = [[each.name, str(len(each.columns)), each.dataset, each.summary] for each in SUITES.values()]
        return ["suite", "columns", "dataset", ""], rows
    if what == "results":
        rows = []
        begun = unfinished(results)[0]
        for record in Store(results).records() if any((results / "cells").glob("*.json")) or not begun else ():
            source = record.source.name if record.source else "white-box"
            bits = () if isinstance(record, Failure) else record.robust
            robust = f"{100 * sum(bits) / len(bits):.2f}" if bits else "failed"
            cell = record.cell
            answers = cell.inference
            name = named(record.subject, answers)
            robust += " (not adaptive)" if answers and not answers.adaptive and not cell.source else ""
            rows.append([cell.key[:12], name, source, searching(cell), str(cell.threat), str(cell.count), robust])
        for parts in begun:
            first, cell = parts[0], parts[0].cell
            source = first.source.name if first.source else "white-box"
            done = f"unfinished: {held(parts)} images"
            name = named(first.subject, cell.inference)
            rows.append([cell.key[:12], name, source, searching(cell), str(cell.threat), str(cell.count), done])
        return ["cell", "checkpoint", "source", "attack", "threat", "n", "robust %"], [
            list(map(safe, row)) for row in rows
        ]
    table = {kind.kind + "s": kind for kind in _KINDS}[what]
    facts = list(dict.fromkeys(fact for entry in table.rows.values() for fact in entry.facts))
    rows = [
        [
            name + (entry.family.upper() if entry.family else ""),
            *[entry.facts.get(fact, "") for fact in facts],
            entry.summary,
        ]
        for name, entry in table.rows.items()
    ]
    rows += [[name, *[""] * len(facts), f"plug-in {point.value}"] for name, point in table.plugins().items()]
    return [table.kind, *facts, ""], rows
