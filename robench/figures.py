"""What the figures show, worked out from records: curves, transfer, union and cost. Nothing is drawn here, and no torch."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from robench import worst
from robench.diagnosis import Diagnosis
from robench.doubt import beyond_flags
from robench.errors import StoreError
from robench.panels import Cost, Curves, Figure, Line, Matrix, Panel, Point, Training, Union
from robench.reporting import NORMS, Doubts, apart, images_of, order, ordered, place, reasons, unproven
from robench.results import FLAG, Failure, Result, Subject, safe

Group = tuple[str, str, int, int]
COSTS = {  # what an attack can cost, on an axis and in a caption
    "seconds": ("seconds", "Seconds of wall time of the attack"),
    "passes": ("image passes", "Images passed forward and images whose gradient was computed by the attack"),
    "joules": ("J", "Energy of the attack, of the whole board,"),
}
BARS = 10  # of a union; the rest are counted together


def figures(
    records: Iterable[Result | Failure],
    kind: str = "all",
    diagnoses: Iterable[Diagnosis] = (),
    unit: str = "seconds",
) -> list[Figure]:
    """The figures of some records, one of each kind for each data set, images and seed; never mixed.

    Args:
        records: results; failures are passed over.
        kind: a key of `KINDS`, or `all`.
        diagnoses: of some checkpoints; those that failed are flagged.
        unit: of what attacks cost, a key of `UNITS`.

    Raises:
        StoreError: if the results give no figure of that kind.
    """
    results = apart(sorted((r for r in records if isinstance(r, Result)), key=lambda r: r.cell.key))
    alone = {r.cell.key for r in unproven(results)}
    results = [r for r in results if r.cell.key not in alone]
    groups = sorted({images_of(r) for r in results}, key=str)
    doubted = beyond_flags(results, diagnoses)
    made = []
    for each, (what, caption, panels, _) in KINDS.items():
        if each == "pareto":
            panels, caption = partial(_cost, unit=unit), caption.format(COSTS[unit][1])
        for group in groups if kind in ("all", each) else []:
            part = [r for r in results if images_of(r) == group]
            if found := panels(part, names_of(part, doubted)):
                title = f"{what}, {place(group, groups)}"
                made.append(Figure(each, title, " ".join([caption, *flags_of(part, doubted)]), tuple(found)))
    if not made and kind != "all":
        raise StoreError(f"no {kind} in {len(results)} results: {KINDS[kind][3]}")
    return made


def training(folder: Path) -> list[Figure]:
    """The training curves of every run in a folder of checkpoints, from what each logged; empty where none logged.

    Raises:
        StoreError: if a log is damaged.
    """
    runs = {safe(path.parent.name): _logged(path) for path in sorted(folder.glob("*/metrics.jsonl"))}
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for name, lines in runs.items():
        for epoch, line in enumerate(lines, 1):
            for key, value in line.items():
                if isinstance(value, float) and math.isfinite(value):
                    found.setdefault(safe(key), {}).setdefault(name, []).append((epoch, value))
    keys = sorted(found, key=lambda key: (not key.startswith("validation"), key))
    panels = [
        Training(key, tuple((name, tuple(points)) for name, points in found[key].items()), key.startswith("validation"))
        for key in keys
    ]
    caption = (
        "What each run logged after every epoch of training; epochs count on over its stages. No test image is in it."
    )
    return [Figure("training", "Training curves", caption, tuple(panels))] if panels else []


def _logged(path: Path) -> list[dict[str, object]]:
    lines = []
    for number, text in enumerate(path.read_text().splitlines(), 1):
        try:
            line = json.loads(text)
            lines.append({key: line[key] for key in sorted(line)})
        except (ValueError, TypeError):
            raise StoreError(
                f"{path} line {number} is damaged. Move the file away: only this figure needs it"
            ) from None
    return lines


def names_of(results: Sequence[Result], doubted: Doubts) -> dict[str, str]:
    """A name for each checkpoint and source, by its digest; two of one name are told apart, and flags stay on."""
    who: dict[str, Subject] = {r.source.sha256: r.source for r in results if r.source}
    who |= {r.subject.sha256: r.subject for r in results}
    count = Counter(subject.name for subject in who.values())
    flagged = {r.subject.sha256 for r in results if r.flags or reasons(r.subject, doubted)}
    return {
        key: safe(subject.name)
        + (f" {key[:6]}" if count[subject.name] > 1 else "")
        + (" (flagged)" if key in flagged else "")
        for key, subject in who.items()
    }


def flags_of(results: Sequence[Result], doubted: Doubts) -> list[str]:
    """The flags of a figure's checkpoints, which no figure may lose."""
    found = {f"{r.subject.name}: {FLAG}{flag}" for r in results for flag in r.flags}
    found |= {f"{r.subject.name}: unreliable {why}" for r in results for why in reasons(r.subject, doubted)}
    return [safe(f"{text}.") for text in sorted(found)]


def _subjects(results: Iterable[Result]) -> list[Subject]:
    return ordered({r.subject.sha256: r.subject for r in results}.values())


def _attack(result: Result) -> str:
    return safe(result.cell.attack)


def share(*columns: Sequence[bool]) -> float:
    """The share of images that are right in every column."""
    return sum(worst.left(columns)) / len(columns[0])


def _curves(results: Sequence[Result], names: Mapping[str, str]) -> list[Panel]:
    """A panel for each norm: under the attack that was run at the most radii there, of several the strongest."""
    made: list[Panel] = []
    white = [r for r in results if r.source is None]
    for norm in NORMS:
        part = [r for r in white if r.cell.threat.norm == norm]
        attacks = sorted({_attack(r) for r in part})
        if not attacks:
            continue
        under = {name: [r for r in part if _attack(r) == name] for name in attacks}

        def reach(name: str, under: Mapping[str, list[Result]] = under) -> tuple[int, int, float, str]:
            own = under[name]
            return -len({r.cell.threat.eps for r in own}), -len(own), sum(share(r.robust) for r in own), name

        chosen = min(attacks, key=reach)
        lines = []
        for who in _subjects(under[chosen]):
            own = [r for r in results if r.subject.sha256 == who.sha256 and r.cell.threat.norm == norm]
            lines.append(_line(names[who.sha256], own, chosen))
        title = f"{norm.value}, {chosen}"
        made.append(Curves(title, norm.value, tuple(lines)))
    return made


def _line(name: str, own: Sequence[Result], attack: str) -> Line:
    at = {r.cell.threat.eps: r for r in own if r.source is None and _attack(r) == attack}
    points = [(0.0, share(own[0].clean)), *((eps, share(at[eps].robust)) for eps in sorted(at))]
    worst = []
    for eps, single in points[1:]:
        union = share(*(r.robust for r in own if r.cell.threat.eps == eps))
        worst += [(eps, union)] if union < single else []
    return Line(name, tuple(points), tuple(worst))


def _transfer(results: Sequence[Result], names: Mapping[str, str]) -> list[Panel]:
    """A matrix for each attack and threat with a source; a model's own images, white-box, are on the diagonal."""
    made: list[Panel] = []
    kinds = {(_attack(r), r.cell.threat) for r in results if r.source}
    for attack, threat in sorted(kinds, key=lambda kind: (*order(kind[1]), kind[0])):
        part = [r for r in results if (_attack(r), r.cell.threat) == (attack, threat)]
        targets = _subjects(part)
        sources = ordered({r.source.sha256: r.source for r in part if r.source}.values())
        found = {(r.subject.sha256, r.source.sha256 if r.source else r.subject.sha256): share(r.robust) for r in part}
        rows = tuple(tuple(found.get((t.sha256, s.sha256)) for s in sources) for t in targets)
        called = [tuple(names[each.sha256] for each in several) for several in (targets, sources)]
        made.append(Matrix(f"{attack} at {threat}", called[0], called[1], rows))
    return made


def _union(results: Sequence[Result], names: Mapping[str, str]) -> list[Panel]:
    """A panel for each checkpoint and threat that met several attacks or sources, and lost an image."""
    made: list[Panel] = []
    for threat in sorted({r.cell.threat for r in results}, key=order):
        part = [r for r in results if r.cell.threat == threat]
        for who in _subjects(part):
            own = {}
            for r in (r for r in part if r.subject.sha256 == who.sha256):
                via = f" from {names[r.source.sha256]}" if r.source else ""
                own[_attack(r) + via] = r
            panel = _sets(f"{names[who.sha256]} at {threat}", own) if len(own) > 1 else None
            made += [panel] if panel else []
    return made


def _sets(title: str, own: Mapping[str, Result]) -> Union | None:
    """The images of one checkpoint by exactly which attacks broke them; None where nothing was broken."""
    clean = next(iter(own.values())).clean
    broken = {name: worst.broken(r) for name, r in own.items()}
    attacks = sorted(broken, key=lambda name: (-len(broken[name]), name))
    by = Counter(
        frozenset(k for k, name in enumerate(attacks) if i in broken[name]) for i, right in enumerate(clean) if right
    )
    left = by.pop(frozenset(), 0)
    bars = sorted(by.items(), key=lambda bar: (-bar[1], sorted(bar[0])))
    if not bars:
        return None
    rest = bars[BARS:]
    counts = tuple(len(broken[name]) for name in attacks)
    hidden = (sum(count for _, count in rest), len(rest))
    return Union(title, tuple(attacks), counts, tuple(bars[:BARS]), hidden, left, sum(clean))


def _cost(results: Sequence[Result], names: Mapping[str, str], unit: str = "seconds") -> list[Panel]:
    """A panel for each threat and device where several attacks were run.

    Seconds and joules of two devices are never compared; images that passed are the same on all.
    """
    made: list[Panel] = []
    white = [r for r in results if r.source is None and _spent(r, unit)]
    for threat in sorted({r.cell.threat for r in white}, key=order):
        at = [r for r in white if r.cell.threat == threat]
        devices = [""] if unit == "passes" else sorted({_device(r) for r in at})
        for device in devices:
            part = [r for r in at if unit == "passes" or _device(r) == device]
            if len({_attack(r) for r in part}) < 2:
                continue
            points: list[Point] = []
            for who in _subjects(part):
                own = [r for r in part if r.subject.sha256 == who.sha256]
                points += _points(names[who.sha256], sorted(own, key=lambda r: (_spent(r, unit), r.cell.key)), unit)
            made.append(Cost(f"{threat}" + (f", {device}" if device else ""), tuple(points), COSTS[unit][0]))
    return made


def _points(name: str, own: Sequence[Result], unit: str) -> list[Point]:
    """The cells of one checkpoint, cheapest first, with those on the front marked."""
    best, points = 2.0, []
    for r in own:
        left = share(r.robust)
        points.append(Point(name, _attack(r), _spent(r, unit), left, left < best))
        best = min(best, left)
    return points


def _spent(result: Result, unit: str) -> float:
    """What an attack cost; 0 where it was not measured."""
    if unit == "passes":
        return float(result.forwards + result.backwards)
    return float((result.seconds if unit == "seconds" else result.joules) or 0)


def _device(result: Result) -> str:
    return safe(str(result.provenance.get("device", "")))


Panels = Callable[[Sequence[Result], Mapping[str, str]], list[Panel]]
KINDS: dict[str, tuple[str, str, Panels, str]] = {
    "curves": (
        "Robustness curves",
        "Accuracy against eps, clean at 0. A line is one attack, named above; a dash below a point is what all attacks stored "
        "at that eps leave together, transfer included. Each is an upper bound.",
        _curves,
        "robench evaluate --attack pgd-20 --threat linf-4/255 --threat linf-8/255",
    ),
    "transfer": (
        "Black-box transfer",
        "Accuracy in per cent of the row's model on images crafted on the column's; framed: white-box, the same attack.",
        _transfer,
        "robench evaluate --attack pgd-20 --source all",
    ),
    "union": (
        "Which attacks broke which images",
        "A bar counts the images that exactly the attacks marked below it broke, of those right when clean.",
        _union,
        "they need two attacks or sources at one threat: robench evaluate --attack pgd-20 --attack fab-t",
    ),
    "pareto": (
        "What an attack costs and what it leaves",
        "{} against the accuracy it leaves; further down is stronger. A line joins the attacks on a checkpoint that no "
        "cheaper one beats. Seconds and joules are of the machine named.",
        _cost,
        "they need two attacks at one threat: robench evaluate --attack pgd-20 --attack autoattack",
    ),
}
