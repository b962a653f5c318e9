"""Signs that an evaluation, not the model, is what holds: the indicators G1 to G16 of masked gradients.

Source: Carlini et al. 2019 (checklist), Pintor et al. 2022 (indicators of attack failure), Croce & Hein 2020 (flags).
Thresholds are our own where a docstring names no other source.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from robench import verdict
from robench.attacks.apgd import APGD, APGDT
from robench.attacks.ascent import ascend, default_step
from robench.attacks.pgd import FGSM, PGD
from robench.attacks.square import Square
from robench.diagnosis import RULES, Diagnosis, Row, Word, row
from robench.door import Door, frozen
from robench.errors import DataError
from robench.evaluation import Engine, check_fits, usual_threat
from robench.geometry import exact_norm, inside, per_image, random_start
from robench.losses import cross_entropy, log_odds, margin
from robench.noise import ImageGenerator, seed_of, uniform
from robench.outputs import inner_gradients
from robench.protocols import Attack, Classifier, Target
from robench.threat import Norm, ThreatModel

CORNERS = 200  # of G16; thousands find more, and cost a pass each


@dataclass
class Case:
    """A model on images it gets right.

    Attributes:
        model: frozen, in eval mode.
        x: images, (n, ...).
        y: labels, (n,).
        classes: how many logits there are.
        threat: the ball.
        seed: of all randomness.
        sources: surrogates to craft on.
        batch: the most images at once.
        blind: whether it has no gradient, so that there are no white-box attacks.
        probabilities: whether it returns those, so that white-box attacks climb their logarithms, too.
        corners: how many G16 tries.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    classes: int
    threat: ThreatModel
    seed: int = 0
    sources: Sequence[nn.Module] = ()
    batch: int = 500
    blind: bool = False
    probabilities: bool = False
    corners: int = CORNERS

    def broken(self, attack: Attack, source: nn.Module | None = None) -> Tensor:
        """Which images an attack breaks, (n,)."""
        door = Door(self.model if source is None else source, self.classes, self.batch)
        every = torch.ones_like(self.y, dtype=torch.bool)
        ids = torch.arange(len(self.y), device=self.y.device)
        adv = verdict.craft(door, attack, self.x, self.y, every, ids=ids, seed=self.seed).adv
        judged = Door(self.model, self.classes, self.batch)
        return verdict.judge(judged, attack, self.x, self.y, every, adv, verdict.Probe(False, ())).robust.logical_not()

    @cached_property
    def pgd(self) -> Tensor:
        """What PGD-20 breaks."""
        return self.broken(PGD(self.threat))

    @cached_property
    def white(self) -> Tensor:
        """What the white-box ensemble breaks: PGD-20, APGD-CE-50, APGD-T-30."""
        if self.blind:
            return torch.zeros_like(self.y, dtype=torch.bool)
        if self.probabilities:
            logarithms = _Logarithms(self.model)
            more = self.broken(PGD(self.threat), logarithms) | self.broken(APGDT(self.threat, steps=30), logarithms)
            return self._white | more
        return self._white

    @cached_property
    def _white(self) -> Tensor:
        return self.pgd | self.broken(APGD(self.threat, steps=50)) | self.broken(APGDT(self.threat, steps=30))

    def draws(self, purpose: str, number: int) -> Tensor:
        """Uniform numbers of the images' shape."""
        generator = ImageGenerator(seed_of(self.seed, purpose, number), range(len(self.x)), self.x.device)
        return uniform(generator, self.x.shape, self.x.device).to(self.x.dtype)

    @torch.no_grad()
    def margins(self, x: Tensor) -> Tensor:
        """Margins of images, (n,): above zero where fooled."""
        return margin(Door(self.model, self.classes, self.batch)(x), self.y)


def diagnose(case: Case) -> tuple[Row, ...]:
    """All sixteen indicators.

    Args:
        case: a model on images it gets right; at least one.
    """
    with frozen(case.model), verdict.guarded(case.seed), verdict.exact():
        found = verdict.probe(case.model, case.x, case.y, case.classes, case.batch)
        rows = {name: _from_probe(name, found) for name in ("G1", "G2", "G13", "G15")}
        rows["G14"] = g14(case)
        case = replace(
            case,
            blind=rows["G2"].verdict == "fail",
            probabilities=any("probabilities" in text for _, text in found.findings),
        )
        why, left = "", tuple(INDICATORS)
        for name, reason, still in _BLOCKS:
            if rows[name].verdict == "fail":
                why, left = reason, still
        for name, run in INDICATORS.items():
            rows[name] = run(case) if name in left else row(name, None, "not run", why)
    return tuple(rows[name] for name in RULES)


def diagnosed(
    engine: Engine,
    checkpoint: Target,
    *,
    threat: ThreatModel | None = None,
    sources: Sequence[Target] = (),
    count: int | None = None,
    seed: int = 0,
    corners: int = CORNERS,
) -> Diagnosis:
    """All indicators of masked gradients of a checkpoint, on test images it gets right.

    Raises:
        DataError: if it gets none right.
    """
    dataset = checkpoint.dataset
    images = engine.images(dataset, min(256, len(engine.images(dataset, None))) if count is None else count)
    for each in (checkpoint, *sources):
        check_fits(each, images)
    ball = threat or usual_threat(checkpoint, checkpoint.name)
    nets = engine.loaded(checkpoint)
    with frozen(nets), verdict.guarded(seed), verdict.exact():
        keep = verdict.right(Door(nets, images.classes, engine.batch), images.x(), images.y)
    if not keep.any():
        raise DataError(f"{checkpoint.name} gets none of {len(images)} images right, so there is nothing to diagnose")
    surrogates = tuple(engine.loaded(source) for source in sources)
    case = Case(
        nets, images.x()[keep], images.y[keep], images.classes, ball, seed, surrogates, engine.batch, corners=corners
    )
    return Diagnosis(
        checkpoint=checkpoint.sha256,
        name=checkpoint.name,
        threat=ball,
        data=images.digest,
        count=len(images),
        correct=int(keep.sum()),
        seed=seed,
        sources=tuple(source.sha256 for source in sources),
        rows=diagnose(case),
    )


# an indicator, why others mean nothing once it fires, and those that still do
_BLOCKS = (
    ("G13", "the model answers differently each time", ("G3", "G4")),
    ("G2", "the model has no gradient", ("G4", "G8", "G10", "G16")),
)


def _from_probe(name: str, found: verdict.Probe) -> Row:
    """G1, G2, G13 and G15 as every evaluation computes them (`verdict.probe`)."""
    if found.randomised and name != "G13":
        return row(name, None, "not run", "the model answers differently each time")
    texts = [text for which, text in found.findings if which == name]
    if name == "G13":
        changed = f"{found.unrest.verdicts} answers change" if found.unrest.verdicts else ""
        rounding = "the last bits of logits change" if found.unrest.bits and not texts else ""
        reason = "; ".join(filter(None, [*texts, changed, rounding])) or "nothing found"
        return row(name, found.unrest.moved, "fail" if texts else "pass", reason)
    if name in ("G1", "G15") and any(which == "G2" for which, _ in found.findings) and not texts:
        return row(name, None, "not run", "the model has no gradient")
    return row(name, float(len(texts)), "fail" if texts else "pass", "; ".join(texts) or "nothing found")


def _beyond(name: str, case: Case, extra: int, share: float, least: int, bad: Word = "fail") -> Row:
    """A row about images that something broke and should not have."""
    count = len(case.y)
    word: Word = bad if extra >= least and extra > share * count else "pass"
    return row(name, float(extra), word, f"{extra} of {count} images")


def g3(case: Case) -> Row:
    """Gradient against central differences of the margin, h = 1e-3 along a random unit vector; rule ours."""
    h = 1e-3
    x = case.x.clamp(h, 1 - h).requires_grad_()
    v = case.draws("g3", 0) - 0.5
    v = v / v.flatten(1).norm(dim=1).reshape(-1, *[1] * (v.ndim - 1))
    with torch.enable_grad():
        slope = torch.autograd.grad(margin(Door(case.model, case.classes, case.batch)(x), case.y).sum(), x)[0]
    a = (slope * v).flatten(1).sum(1)
    b = (case.margins(x.detach() + h * v) - case.margins(x.detach() - h * v)) / (2 * h)
    share = ((a - b).abs() > 0.1 * (a.abs() + b.abs()) + 1e-2).float().mean().item()
    return row("G3", share, "fail" if share > 0.1 else "pass", f"{100 * share:.1f} % of images disagree")


def g4(case: Case) -> Row:
    """Median relative change of the margin over 100 draws in a small box; Pintor et al. use the loss and its mean."""
    width = min(8 / 255, case.threat.eps) if case.threat.norm is Norm.LINF else 8 / 255
    here = case.margins(case.x)
    moved = [
        (case.margins((case.x + width * (2 * case.draws("g4", k) - 1)).clamp(0, 1)) - here).abs() for k in range(100)
    ]
    value = (torch.stack(moved) / here.abs().clamp_min(1e-12)).median().item()
    return row("G4", value, "fail" if value > 0.1 else "pass", f"median relative change {value:.3f}")


def g6(case: Case) -> Row:
    """Twice the effort of the ensemble; rule ours. More effort helping is weak attacks, not proof of masking: suspect."""
    more = case.broken(PGD(case.threat, steps=40, restarts=2)) | case.broken(APGD(case.threat, steps=100, restarts=2))
    return _beyond("G6", case, int((more & ~case.white).sum()), 0.005, 2, "suspect")


def g8(case: Case) -> Row:
    """Square, 1,000 queries, beyond the white-box ensemble; 0.2 % is the number of AutoAttack."""
    return _beyond("G8", case, int((case.broken(Square(case.threat, queries=1000)) & ~case.white).sum()), 0.002, 2)


def g9(case: Case) -> Row:
    """FGSM against PGD-20; Athalye et al. 2018, section 3.1, with a threshold of ours."""
    return _beyond("G9", case, int(case.broken(FGSM(case.threat)).sum()) - int(case.pgd.sum()), 0.005, 2)


def g10(case: Case) -> Row:
    """Transfer from surrogates beyond the white-box ensemble; Carlini et al. 2019."""
    if not case.sources:
        return row("G10", None, "not run", "no surrogate: robench diagnose CHECKPOINT --source OTHER")
    found = torch.zeros_like(case.white)
    for source in case.sources:
        found |= case.broken(PGD(case.threat), source) | case.broken(APGD(case.threat, early_stop=False), source)
    return _beyond("G10", case, int((found & ~case.white).sum()), 0.005, 2)


def g11(case: Case) -> Row:
    """PGD-20 and APGD-CE-50 in a ball as large as the box; Pintor et al. mind a single survivor.

    In linf also PGD-20 on cross-entropy itself, as most evaluations run it. Ours climb its log-odds, which do not vanish on
    large logits, so the number they give may be right where the usual one is not; that the usual attack is blind is a sign
    of its own.
    """
    size = {Norm.LINF: 1.0, Norm.L2: math.sqrt(case.x[0].numel()), Norm.L1: float(case.x[0].numel())}
    wide = replace(case.threat, eps=size[case.threat.norm])
    left = int((~(case.broken(PGD(wide)) | case.broken(APGD(wide, steps=50)))).sum())
    usual = int((~case.broken(_Textbook(wide))).sum()) if wide.norm is Norm.LINF else left
    found = _beyond("G11", case, max(left, usual), 0.01, 1)
    return (
        replace(found, reason=f"{found.reason}; {left} survive ours, {usual} the usual PGD") if usual != left else found
    )


def g12(case: Case) -> Row:
    """PGD-20 at half, once and twice eps: robust accuracy may not rise with eps; Carlini et al. 2019."""
    half, double = (case.broken(PGD(replace(case.threat, eps=case.threat.eps * k))) for k in (0.5, 2))
    counts = [int(half.sum()), int(case.pgd.sum()), int(double.sum())]
    return _beyond("G12", case, max(0, counts[0] - counts[1], counts[1] - counts[2]), 0.005, 2)


def g14(case: Case) -> Row:
    """Whether autograd is entered during a forward pass; after the flag of AutoAttack."""
    calls = inner_gradients(case.model, case.x[:16])
    return row("G14", float(calls), "fail" if calls else "pass", f"{calls} gradients computed in a forward pass")


def g16(case: Case) -> Row:
    """Random corners of the ball beyond the white-box ensemble; rule ours."""
    size = case.x[0].numel()
    scale = {Norm.LINF: 1.0, Norm.L2: size**-0.5, Norm.L1: 1 / size}[case.threat.norm] * case.threat.eps
    found = torch.zeros_like(case.white)
    for k in range(case.corners):
        adv = (case.x + scale * (case.draws("g16", k) - 0.5).sign()).clamp(0, 1)
        found |= (case.margins(adv) > 0) & inside(exact_norm(adv, case.x, case.threat.norm), case.threat)
    return _beyond("G16", case, int((found & ~case.white).sum()), 0.0, 1)


class _Logarithms(nn.Module):
    """The logarithms of a model's probabilities, which are logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Logits whose softmax is what the model returns."""
        found: Tensor = self.model(x)
        return found.clamp_min(torch.finfo(found.dtype).tiny).log()


@dataclass(frozen=True)
class _Textbook:
    """PGD on cross-entropy as it is, whose gradient rounds to zero on confident models."""

    threat: ThreatModel
    steps: int = 20

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """The last image of each climb that fooled the model, or its end."""
        kept = x.clone()
        broken = torch.zeros_like(y, dtype=torch.bool)

        def objective(adv: Tensor) -> Tensor:
            logits = model(adv)
            fooled = logits.detach().argmax(1) != y
            kept[fooled] = adv.detach()[fooled]
            broken.logical_or_(fooled)
            return cross_entropy(logits, y)

        start = random_start(x, self.threat, generator)
        last = ascend(objective, x, start, self.threat, steps=self.steps, step=default_step(self.steps))
        with torch.no_grad():
            objective(last)
        return torch.where(per_image(broken, x), kept, last)


class _Path(nn.Module):
    """Stands before a model and notes, for each clean image, the losses along the path and whether any fooled it.

    Only points inside the ball count: PGD in l1 begins in a larger one. The first loss is that of the clean image.
    """

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        with torch.no_grad():
            self.losses: list[Tensor] = [log_odds(case.model(case.x), case.y)]
        self.fooled = torch.zeros_like(case.y, dtype=torch.bool)

    def forward(self, x: Tensor) -> Tensor:
        """The model's logits."""
        logits: Tensor = self.case.model(x)
        case, count = self.case, len(self.case.y)
        seen = logits.detach()[:count]
        counts = inside(exact_norm(x.detach()[:count], case.x, case.threat.norm), case.threat)
        self.losses.append(torch.where(counts, log_odds(seen, case.y), -torch.inf))
        self.fooled |= counts & (margin(seen, case.y) > 1e-4 * seen.abs().amax(1))
        return logits


def _watched(case: Case, steps: int) -> tuple[_Path, Tensor]:
    """PGD, watched in one batch so that places are images, and what it broke, (n,)."""
    watched, count = _Path(case), len(case.y)
    every, ids = torch.ones_like(case.y, dtype=torch.bool), torch.arange(count, device=case.y.device)
    door = Door(watched, case.classes, count)
    crafted = verdict.craft(door, PGD(case.threat, steps=steps), case.x, case.y, every, ids=ids, seed=case.seed)
    return watched, case.margins(crafted.adv) > 0


def g5(case: Case) -> Row:
    """PGD-100's running best loss, rescaled to [0, 1]: changes over 0.05 in the last 10 steps; Pintor et al. 2022.

    Not PGD-20, of which ten steps are half the climb. It says that an attack is weak, not that a model is: suspect.
    """
    watched, broken = _watched(case, 100)
    best = torch.stack(watched.losses).cummax(0).values
    rise = (best[-1] - best[-11]) / (best[-1] - best[0]).clamp_min(1e-12)
    left = ~broken
    share = (rise > 0.05)[left].float().mean().item() if left.any() else 0.0
    return row("G5", share, "suspect" if share > 0.05 else "pass", f"{100 * share:.1f} % of unbroken images")


def g7(case: Case) -> Row:
    """Whether PGD-20 passed a fooling image and returned one that does not fool; Pintor et al. 2022."""
    watched, broken = _watched(case, 20)
    return _beyond("G7", case, int((watched.fooled & ~broken).sum()), 0.0, 1)


INDICATORS: dict[str, Callable[[Case], Row]] = {
    "G3": g3, "G4": g4, "G5": g5, "G6": g6, "G7": g7, "G8": g8, "G9": g9, "G10": g10, "G11": g11, "G12": g12, "G16": g16,
}  # fmt: skip
