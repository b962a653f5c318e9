"""The indicators of masked gradients that stored results answer by themselves, with no new attack. No torch here.

What an attack on the same images found that a stronger one did not is in their bits; what a look at the model showed is in
their notes. The rules are those of `robench diagnose`, which runs the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from robench.diagnosis import RULES, Diagnosis, Row, Word, row
from robench.registry import ATTACKS
from robench.results import Result
from robench.sameness import images_of, row_of
from robench.threat import Norm, ThreatModel
from robench.worst import broken

FEWEST = 64  # images a model gets right, below which two of them are a matter of luck
LOOKS = {  # how a finding of `verdict.probe` begins or what it holds, by its indicator
    "G1": ("zero gradients", "some gradients are NaN", "logits so large"),
    "G2": ("the model has no gradient",),
    "G13": ("the model answers differently each time",),
    "G14": ("the forward pass computes",),
    "G15": (
        "the model returns probabilities",
        "most outputs are 0 or 1",
        "the largest and smallest logits",
        "logits so large",
    ),
}
MASKED = "Square broke"  # how the flag of AutoAttack's own comparison begins
BLIND = {"torchattacks:Square", "torchattacks:SPSA"}  # of torchattacks, those that see no gradient
SETTLE = {"autoattack", "autoattack-plus", "autoattack-rand", "apgd-t", "fab-t"}  # strong enough to suspect the model
CLIMB = 10  # steps, from which on an attack should beat a single one
DIAGNOSE = "robench diagnose CHECKPOINT runs it"

Images = frozenset[int]


def signs(results: Iterable[Result]) -> list[Diagnosis]:
    """What results say of each checkpoint at each threat, as a diagnosis whose other rows are not run.

    A smoothed classifier has the doubts of what it smooths, so only results of single looks count.

    Args:
        results: of any checkpoints.
    """
    every = sorted((r for r in results if r.cell.inference is None), key=lambda r: r.cell.key)
    places = {(r.cell.checkpoint, images_of(r), r.cell.threat) for r in every}
    made = []
    for checkpoint, images, threat in sorted(places, key=str):
        own = [r for r in every if (r.cell.checkpoint, images_of(r)) == (checkpoint, images)]
        made.append(_signs(own, threat))
    return made


def _signs(own: Sequence[Result], threat: ThreatModel) -> Diagnosis:
    """Of one checkpoint on one set of images, at one threat."""
    first = own[0]
    at = [r for r in own if r.cell.threat == threat]
    count = sum(first.clean)
    looked = _looked(at)
    rows = []
    for name in RULES:
        if name in LOOKS:
            rows.append(looked[name])
        elif name not in FOUND:
            rows.append(row(name, None, "not run", DIAGNOSE))
        elif count < FEWEST:
            rows.append(row(name, None, "not run", f"it needs {FEWEST} images that the model gets right, not {count}"))
        else:
            rows.append(FOUND[name](at, own, threat))
    return Diagnosis(
        checkpoint=first.cell.checkpoint,
        name=first.subject.name,
        threat=threat,
        data=first.cell.data,
        count=first.cell.count,
        correct=count,
        seed=first.cell.seed,
        sources=tuple(sorted({r.cell.source for r in at if r.cell.source})),
        rows=tuple(rows),
    )


def _looked(at: Sequence[Result]) -> dict[str, Row]:
    """What the look showed that every evaluation takes at its model; a randomised one is judged by many passes."""
    found = {}
    for name, texts in LOOKS.items():
        said = sorted(
            {note.removeprefix("flag: ") for r in at for note in r.notes if any(text in note for text in texts)}
        )
        word: Word = "pass" if not said else "suspect" if name == "G13" else "fail"
        found[name] = row(name, float(len(said)), word, "; ".join(said) or "nothing found")
    if found["G13"].verdict != "pass":
        blind = "the model answers differently each time"
        found |= {name: row(name, None, "not run", blind) for name in LOOKS if name != "G13"}
    return found


def _beyond(name: str, what: str, extra: int, count: int, share: float, least: int, bad: Word = "fail") -> Row:
    """A row about images that something broke and should not have, by the rule of `indicators`."""
    word: Word = bad if extra >= least and extra > share * count else "pass"
    return row(name, float(extra), word, f"{extra} of {count} images{what}")


def _union(results: Iterable[Result]) -> Images:
    return frozenset().union(*(broken(r) for r in results))


def _words(results: Iterable[Result]) -> str:
    return ", ".join(sorted({r.cell.attack + (f" from {r.source.name}" if r.source else "") for r in results}))


def sees_gradients(result: Result) -> bool:
    """Whether a result is of a white-box attack; one that no registry row describes is taken for one.

    Of a smoothed classifier's gradients an attack sees something only if it climbs through the augmentations.
    """
    if result.cell.inference is not None and not result.cell.inference.adaptive:
        return False
    name = row_of(result.cell.attack)
    if name in BLIND:
        return False
    known = ATTACKS.rows.get(name)
    return not result.cell.source and (known is None or known.facts["knowledge"] in ("white-box", "varies"))


def settles(result: Result) -> bool:
    """Whether an attack is strong enough, at its full budget, to suspect the model rather than the attack."""
    options = result.cell.options
    full = all(options.get(name, least) >= least for name, least in (("steps", 100), ("queries", 5000)))
    return full and row_of(result.cell.attack) in SETTLE


def _climbs(result: Result) -> bool:
    """Whether a white-box attack takes many steps; a search for the smallest perturbation has no radius to grow."""
    steps = result.cell.options.get("steps", 0)
    return sees_gradients(result) and result.norms is None and isinstance(steps, int) and steps >= CLIMB


def _against_white(
    name: str, at: Sequence[Result], found: Sequence[Result], share: float, least: int, lacks: str
) -> Row:
    """What results broke that no white-box attack did: the model is to blame if one of those is strong, else perhaps they are."""
    white = [r for r in at if sees_gradients(r)]
    if not found or not white:
        return row(name, None, "not run", lacks if not found else "no white-box attack at this threat to compare with")
    bad: Word = "fail" if any(map(settles, white)) else "suspect"
    extra = len(_union(found) - _union(white))
    weak = "; the white-box attacks are weak: --attack autoattack" if bad == "suspect" and extra else ""
    said = f" by {_words(found)} alone{weak}"
    return _beyond(name, said, extra, sum(at[0].clean), share, least, bad)


def _g6(at: Sequence[Result], own: Sequence[Result], threat: ThreatModel) -> Row:
    """The same attack with twice the steps or restarts, beyond all other white-box attacks: suspect, as in a diagnosis."""
    white = [r for r in at if sees_gradients(r)]
    for more in sorted(white, key=_effort, reverse=True):
        less = [r for r in white if _same_but_effort(r, more) and 2 * _effort(r) <= _effort(more)]
        if less:
            others = _union(r for r in white if r is not more)
            said = f" by {more.cell.attack} beyond {_words(less)} and all others"
            return _beyond("G6", said, len(broken(more) - others), sum(more.clean), 0.005, 2, "suspect")
    return row("G6", None, "not run", "one attack at two efforts: --attack pgd-20 --attack pgd-100")


def _effort(result: Result) -> int:
    options = result.cell.options
    found = [options.get(name, 1) for name in ("steps", "restarts")]
    return int(found[0]) * int(found[1]) if all(isinstance(each, int) for each in found) else 0


def _same_but_effort(one: Result, other: Result) -> bool:
    def rest(r: Result) -> dict[str, object]:
        return {name: value for name, value in r.cell.options.items() if name not in ("steps", "restarts")}

    def kind(r: Result) -> object:
        return re.split("[-@ ]", r.cell.attack, maxsplit=1)[0], r.cell.version, r.cell.precision, rest(r)

    return kind(one) == kind(other)


def _g8(at: Sequence[Result], own: Sequence[Result], threat: ThreatModel) -> Row:
    """Attacks by queries beyond the white-box ones, and what AutoAttack says of its own Square."""
    if said := sorted({note for r in at for note in r.notes if MASKED in note}):
        return row("G8", float(len(said)), "fail", "; ".join(note.removeprefix("flag: ") for note in said))
    asked = [r for r in at if not r.source and not sees_gradients(r) and not r.cell.inference and not _noise(r)]
    inside = [r for r in at if not r.source and ("square" in r.left or 0 in r.left.values())]
    if inside and not asked:
        return row("G8", 0.0, "pass", f"Square inside {_words(inside)} breaks next to nothing of what it is left")
    return _against_white("G8", at, asked, 0.002, 2, "--attack square at this threat")


def _noise(result: Result) -> bool:
    return row_of(result.cell.attack).endswith("-noise")


def _g9(at: Sequence[Result], own: Sequence[Result], threat: ThreatModel) -> Row:
    """FGSM against the strongest PGD of many steps."""
    one = [r for r in at if row_of(r.cell.attack) == "fgsm" and not r.source]
    many = [r for r in at if re.match(r"pgd(-|@|$)", r.cell.attack) and _climbs(r)]
    if not one or not many:
        return row("G9", None, "not run", "--attack fgsm and --attack pgd-20 at this threat")
    best = max(len(broken(r)) for r in many)
    extra = max(0, max(len(broken(r)) for r in one) - best)
    return _beyond("G9", f" more by fgsm than by {_words(many)}", extra, sum(at[0].clean), 0.005, 2)


def _g10(at: Sequence[Result], own: Sequence[Result], threat: ThreatModel) -> Row:
    """Transfer beyond the white-box attacks."""
    return _against_white("G10", at, [r for r in at if r.source], 0.005, 2, "--source OTHER at this threat")


def _g11(at: Sequence[Result], own: Sequence[Result], threat: ThreatModel) -> Row:
    """What survives a climb in a ball as large as the box: in linf a threat of 1; elsewhere the size of the images counts."""
    wide = [r for r in own if r.cell.threat.norm is Norm.LINF and r.cell.threat.eps >= 1 and _climbs(r)]
    if threat.norm is not Norm.LINF or not wide:
        return row("G11", None, "not run", "--attack pgd-20 --threat linf-1, or robench diagnose CHECKPOINT")
    left = sum(wide[0].clean) - len(_union(wide))
    return _beyond("G11", f" survive {_words(wide)} at linf-1", left, sum(wide[0].clean), 0.01, 1)


def _g12(at: Sequence[Result], own: Sequence[Result], threat: ThreatModel) -> Row:
    """The same attack at smaller radii: none may break more. In l1, where one climb says little, that is only suspect."""
    found: list[tuple[int, str]] = []
    for here in (r for r in at if _climbs(r)):
        for less in own:
            same = _climbs(less) and less.cell.threat.norm is threat.norm and less.cell.threat.eps < threat.eps
            if same and replace(less.cell, threat=threat) == here.cell:
                more = len(broken(less)) - len(broken(here))
                found.append((max(0, more), f" more by {here.cell.attack} at {less.cell.threat}"))
    if not found:
        return row("G12", None, "not run", "the same attack at a smaller --threat, or robench diagnose CHECKPOINT")
    extra, said = max(found)
    bad: Word = "suspect" if threat.norm is Norm.L1 else "fail"
    return _beyond("G12", said if extra else " more at a smaller eps", extra, sum(at[0].clean), 0.005, 2, bad)


def _g16(at: Sequence[Result], own: Sequence[Result], threat: ThreatModel) -> Row:
    """Random points of the ball's border beyond the white-box attacks."""
    found = [r for r in at if row_of(r.cell.attack) == "random-noise" and not r.source]
    return _against_white("G16", at, found, 0.0, 1, "--attack random-noise at this threat")


Found = Callable[[Sequence[Result], Sequence[Result], ThreatModel], Row]
FOUND: dict[str, Found] = {
    "G6": _g6, "G8": _g8, "G9": _g9, "G10": _g10, "G11": _g11, "G12": _g12, "G16": _g16,
}  # fmt: skip
