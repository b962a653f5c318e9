"""Figures of what is stored beside the cells: accuracy by class, adversarial images, features. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from robench import perclass
from robench.diagnosis import Diagnosis
from robench.doubt import beyond_flags
from robench.errors import StoreError
from robench.exhibits import Embedding, Exhibits
from robench.figures import flags_of, names_of
from robench.panels import Cloud, Examples, Figure
from robench.reporting import Doubts, apart, doubts, images_of, place, reasons, unproven
from robench.results import Failure, Result, asked, safe
from robench.selection import Selection, embedded

KINDS = {  # what is missing where there is none
    "classes": perclass.REMEDY,
    "examples": "no pictures are stored for these results: robench show CELL --images 8 --keep",
    "features": "no features are stored for these results: robench features CHECKPOINT",
}


def figures(
    records: Iterable[Result | Failure],
    exhibits: Exhibits,
    kind: str = "all",
    diagnoses: Iterable[Diagnosis] = (),
    selection: Selection | None = None,
) -> list[Figure]:
    """The figures of some records and what is stored beside them.

    Args:
        records: results; failures are passed over.
        exhibits: what is stored.
        kind: a key of `KINDS`, or `all`.
        diagnoses: of some checkpoints; those that failed are flagged.
        selection: only the features it leaves, all when None. Other figures are of the records alone.

    Raises:
        StoreError: if there is no figure of that kind.
        UsageError: if there are features, and the selection leaves none of them.
    """
    results = sorted((r for r in records if isinstance(r, Result)), key=lambda r: r.cell.key)
    diagnosed = list(diagnoses)
    doubted = beyond_flags(results, diagnosed)
    made: list[Figure] = []
    if kind in ("all", "classes"):
        made += _classes(results, exhibits, doubted)
    if kind in ("all", "examples"):
        made += _examples(results, exhibits, doubted)
    if kind in ("all", "features"):
        kept = list(exhibits.embeddings) if selection is None else embedded(exhibits.embeddings, selection)
        doubted = doubts(results, diagnosed)  # here no record is at hand whose flags would be told
        made += [
            _features(each, doubted) for each in sorted(kept, key=lambda e: (e.subject.name, e.attack, str(e.threat)))
        ]
    if not made and kind != "all":
        raise StoreError(f"no {kind} to draw: {KINDS[kind]}")
    return made


def _classes(results: Sequence[Result], exhibits: Exhibits, doubted: Doubts) -> list[Figure]:
    told = apart(results)
    alone = {r.cell.key for r in unproven(told)}
    told = [r for r in told if r.cell.key not in alone]
    groups = sorted({images_of(r) for r in told}, key=str)
    made = []
    for group, part, labels in perclass.known(told, exhibits.labels):
        panels = tuple(perclass.panels(part, labels, names_of(part, doubted)))
        caption = (
            "Accuracy of each class under every attack stored at a threat, transfer included; an upper bound. A checkpoint that "
            "has not met all attacks is left out."
        )
        if any(panel.many for panel in panels):
            caption += " Classes are in the order of their accuracy, each checkpoint's own."
        else:
            caption += " Filled: its worst class."
        title = f"Accuracy by class, {place(group, groups)}"
        made.append(Figure("classes", title, " ".join([caption, *flags_of(part, doubted)]), panels))
    return made


def _examples(results: Sequence[Result], exhibits: Exhibits, doubted: Doubts) -> list[Figure]:
    """One figure for each data set; panels in the order of checkpoint and attack."""
    cells = {r.cell.key: r for r in results}
    names = names_of(results, doubted)
    found: dict[str, list[tuple[Result, Examples]]] = {}
    for each in exhibits.pictures:
        if each.cell in cells and each.examples:
            r = cells[each.cell]
            via = f" from {names[r.source.sha256]}" if r.source else ""
            title = f"{names[r.subject.sha256]}{via}, {safe(asked(r.cell))}"
            found.setdefault(r.subject.dataset, []).append((r, Examples(title, each.examples)))
    made = []
    for dataset, several in sorted(found.items()):
        several.sort(key=lambda pair: (pair[1].title, pair[0].cell.key))
        caption = (
            "Images that the model got right and then not: from above clean, adversarial, and their difference about grey, "
            "amplified to full range. Above each its number, its class and what the model says of the adversarial image."
        )
        text = " ".join([caption, *flags_of([r for r, _ in several], doubted)])
        panels = tuple(panel for _, panel in several)
        made.append(Figure("examples", f"Adversarial images, {safe(dataset)}", text, panels))
    return made


def _features(found: Embedding, doubted: Doubts) -> Figure:
    who = found.subject
    why = reasons(who, doubted)
    name = safe(who.name) + (" (flagged)" if why else "")
    attack = f"under {safe(found.attack)} at {found.threat}"
    clean = "clean" if found.clean_accuracy is None else f"clean, accuracy {100 * found.clean_accuracy:.1f}"
    robust = attack if found.robust_accuracy is None else f"{attack}, accuracy {100 * found.robust_accuracy:.1f}"
    xs, ys = zip(*found.clean, *found.adversarial, strict=True)
    reach = (min(xs), max(xs)), (min(ys), max(ys))
    panels = tuple(
        Cloud(title, points, found.labels, reach)
        for title, points in ((clean, found.clean), (robust, found.adversarial))
    )
    caption = (
        f"t-SNE of the encoder's features of {found.count:,} test images, clean and adversarial in one embedding, so that "
        f"both panels share their axes; a number stands at the median of its class. Perplexity {found.perplexity:g}, seed "
        f"{found.seed}. Distances between clusters mean little."
    )
    flags = [safe(f"{who.name}: unreliable {text}.") for text in why]
    return Figure("features", f"Features of {name}, {safe(who.dataset)}", " ".join([caption, *flags]), panels)
