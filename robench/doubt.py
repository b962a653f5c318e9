"""What makes numbers doubtful: flags, failed diagnoses, attacks that find what others miss. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from robench.diagnosis import Diagnosis, Row
from robench.results import Result, Subject, safe
from robench.sameness import unproven
from robench.signs import LOOKS, MASKED, sees_gradients, settles, signs

Doubts = Mapping[str, tuple[str, ...]]  # by the digest of a checkpoint, why its numbers are unreliable
DOUBTED = "!"


def doubts(results: Iterable[Result], diagnoses: Iterable[Diagnosis] = ()) -> Doubts:
    """Why the numbers of some checkpoints are unreliable, by digest; no ranking and no bold type may hold those.

    Args:
        results: whose flags, from the look every evaluation takes at its model, count, and what their bits say (`signs`).
        diagnoses: whose failed indicators count.
    """
    every = list(results)
    found: dict[str, set[str]] = {}
    for result in every:
        if result.flags:
            found.setdefault(result.cell.checkpoint, set()).update(result.flags)
    made = {digest: tuple(sorted(flags)) for digest, flags in found.items()}
    for digest, why in beyond_flags(every, diagnoses).items():
        made[digest] = tuple(dict.fromkeys([*made.get(digest, ()), *why]))
    return made


def beyond_flags(results: Iterable[Result], diagnoses: Iterable[Diagnosis] = ()) -> Doubts:
    """The same without the flags themselves: failed indicators, of results and of diagnoses."""
    made: dict[str, list[str]] = {}
    for each in signs(results):
        failed = [f"{row.id} {row.name} ({row.reason})" for row in each.rows if row.verdict == "fail" and _new(row)]
        if failed:
            made.setdefault(each.checkpoint, []).append(f"at {each.threat} {', '.join(failed)}")
    for diagnosis in diagnoses:
        failed = [f"{row.id} {row.name} ({row.reason})" for row in diagnosis.rows if row.verdict == "fail"]
        if failed:
            made.setdefault(diagnosis.checkpoint, []).append(f"at {diagnosis.threat} {', '.join(failed)}")
    return {digest: tuple(dict.fromkeys(why)) for digest, why in made.items()}


def _new(row: Row) -> bool:
    """Whether a sign is no flag already."""
    return row.id not in LOOKS and MASKED not in row.reason


def reasons(subject: Subject, doubted: Doubts) -> tuple[str, ...]:
    """Why the numbers of a table's row are unreliable; a smoothed classifier has the doubts of what it smooths."""
    base = subject.sha256.partition("+")[0]
    return tuple(dict.fromkeys([*doubted.get(subject.sha256, ()), *doubted.get(base, ())]))


def marked(subject: Subject, doubted: Doubts) -> str:
    """A checkpoint's name cell, with a mark where its numbers are unreliable."""
    return f"{safe(subject.name)} {DOUBTED}" if reasons(subject, doubted) else safe(subject.name)


def unreliable(subjects: Iterable[Subject], doubted: Doubts) -> list[str]:
    """What stands below a table about its marked rows."""
    return [
        safe(f"{subject.name} {DOUBTED} unreliable, and in no ranking: {'; '.join(why)}.")
        for subject in subjects
        if (why := reasons(subject, doubted))
    ]


def suspicions(results: Sequence[Result]) -> list[str]:
    """What union and transfer find that white-box attacks miss: a sign of masked gradients, or of weak attacks.

    Said from two images and 0.2 per cent on, for each checkpoint, set of images and threat with white-box results.

    Source: the check of AutoAttack on Square (Croce & Hein 2020), widened to transfer and compared image by image.
    """
    texts = []
    cases = {(r.cell.checkpoint, r.cell.data, r.cell.threat) for r in results}
    for checkpoint, images, threat in sorted(cases, key=str):
        part = [r for r in results if (r.cell.checkpoint, r.cell.data, r.cell.threat) == (checkpoint, images, threat)]
        white = [r for r in part if sees_gradients(r)]
        if not white:
            continue
        left = [all(bits) for bits in zip(*(r.robust for r in white), strict=True)]
        found: dict[str, int] = {}
        beyond = set()
        for r in part:
            images_beyond = {
                i for i, (mine, theirs) in enumerate(zip(left, r.robust, strict=True)) if mine and not theirs
            }
            if r not in white and images_beyond:
                via = f" from {r.source.name}" if r.source else ""
                found[r.cell.attack + via] = len(images_beyond)
                beyond |= images_beyond
        if len(beyond) < max(2, 0.002 * len(left)):
            continue
        strongest = "autoattack-rand" if part[0].cell.inference else "autoattack"
        strong = any(settles(r) for r in white)
        advice = "suspect masked gradients" if strong else f"weak attacks or masked gradients: add --attack {strongest}"
        which = ", ".join(f"{name} {count}" for name, count in sorted(found.items()))
        texts.append(
            f"{part[0].subject.name} at {threat}: {len(beyond)} of {len(left)} images are broken by black-box attacks alone "
            f"({which}); {advice}."
        )
    for each in signs(results):
        for row in each.rows:
            if row.verdict == "suspect" and row.id not in ("G8", "G10", *LOOKS):
                texts.append(f"{each.name} at {each.threat}: suspect, {row.id} {row.name}: {row.reason}.")
    return texts


def smoothing(results: Iterable[Result]) -> list[str]:
    """How smoothed classifiers answer, and which of their numbers are left out, in words."""
    every = [r for r in results if r.cell.inference]
    texts = set()
    for r in every:
        assert r.cell.inference is not None
        look = ", ".join(f"{key} {value}" for key, value in sorted(r.cell.inference.augment.items()))
        what = "votes" if r.cell.inference.average == "votes" else "mean probabilities"
        texts.add(f"{r.subject.name}: {what} over {r.cell.inference.draws} random augmentations ({look}).")
    left: dict[tuple[str, str], set[str]] = {}
    for r in unproven(every):
        left.setdefault((r.subject.name, str(r.cell.threat)), set()).add(r.cell.attack)
    for (name, threat), attacks in left.items():
        texts.add(
            f"{name} at {threat}: {', '.join(sorted(attacks))} did not climb through the augmentations, so the number is "
            "shown only beside an adaptive one: --attack eot-pgd or autoattack-rand."
        )
    return sorted(texts)
