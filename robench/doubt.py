"""What makes numbers doubtful: flags, failed diagnoses, attacks that find what others miss. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from robench.diagnosis import Diagnosis
from robench.registry import ATTACKS
from robench.results import Result, Subject, safe
from robench.sameness import row_of, unproven

Doubts = Mapping[str, tuple[str, ...]]  # by the digest of a checkpoint, why its numbers are unreliable
BLIND = {"torchattacks:Square", "torchattacks:SPSA"}  # of torchattacks, those that see no gradient
ATTACKS_THAT_SETTLE = {
    "autoattack",
    "autoattack-plus",
    "autoattack-rand",
    "apgd-t",
    "fab-t",
}  # strong enough to suspect the model
DOUBTED = "!"


def doubts(results: Iterable[Result], diagnoses: Iterable[Diagnosis] = ()) -> Doubts:
    """Why the numbers of some checkpoints are unreliable, by digest; no ranking and no bold type may hold those.

    Args:
        results: whose flags, from the look every evaluation takes at its model, count.
        diagnoses: whose failed indicators count.
    """
    found: dict[str, set[str]] = {}
    for result in results:
        if result.flags:
            found.setdefault(result.cell.checkpoint, set()).update(result.flags)
    made = {digest: sorted(flags) for digest, flags in found.items()}
    for diagnosis in diagnoses:
        failed = [f"{row.id} {row.name} ({row.reason})" for row in diagnosis.rows if row.verdict == "fail"]
        if failed:
            said = f"at {diagnosis.threat} {', '.join(failed)}"
            made.setdefault(diagnosis.checkpoint, []).append(said)
    return {digest: tuple(dict.fromkeys(reasons)) for digest, reasons in made.items()}


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
        white = [r for r in part if _sees_gradients(r)]
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
        settles = "autoattack-rand" if part[0].cell.inference else "autoattack"
        strong = any(map(_settles, white))
        advice = "suspect masked gradients" if strong else f"weak attacks or masked gradients: add --attack {settles}"
        which = ", ".join(f"{name} {count}" for name, count in sorted(found.items()))
        texts.append(
            f"{part[0].subject.name} at {threat}: {len(beyond)} of {len(left)} images are broken by black-box attacks alone "
            f"({which}); {advice}."
        )
    return texts


def _settles(result: Result) -> bool:
    """Whether an attack is strong enough, at its full budget, to suspect the model rather than the attack."""
    options = result.cell.options
    full = all(options.get(name, least) >= least for name, least in (("steps", 100), ("queries", 5000)))
    return full and row_of(result.cell.attack) in ATTACKS_THAT_SETTLE


def _sees_gradients(result: Result) -> bool:
    """Whether a result is of a white-box attack; one that no registry row describes is taken for one.

    Of a smoothed classifier's gradients an attack sees something only if it climbs through the augmentations.
    """
    if result.cell.inference is not None and not result.cell.inference.adaptive:
        return False
    name = row_of(result.cell.attack)
    if name in BLIND:
        return False
    row = ATTACKS.rows.get(name)
    return not result.cell.source and (row is None or row.facts["knowledge"] in ("white-box", "varies"))


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
