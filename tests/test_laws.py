"""Every attack of the registry obeys the laws of `robench.testing`, and every law catches an attack that breaks it."""

import random
import sys
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, ClassVar
from zlib import crc32

import numpy
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from robench import verdict
from robench.attacks import options_of
from robench.attacks.pgd import PGD
from robench.errors import AttackError, UsageError
from robench.geometry import random_start
from robench.names import Entry
from robench.registry import ATTACKS
from robench.testing import (
    BUDGETS,
    CLASSES,
    KINDS,
    LAWS,
    LAYOUTS,
    RADII,
    Case,
    LawError,
    cases_for,
    check_attack,
    check_law,
    norms_of,
    proposed,
    quick,
)
from robench.threat import Norm, ThreatModel

FAMILIES = {"torchattacks:": ("torchattacks:MIFGSM", "torchattacks:PGDL2")}
ROWS = [name for row in ATTACKS.rows for name in FAMILIES.get(row, (row,))]
SLOW = {"autoattack": 1, "autoattack-plus": 1, "autoattack-rand": 1}  # examples each, where most have two


def cases(attack: str, law: str) -> st.SearchStrategy[Case]:
    """Cases of an attack; the first one tried differs between attacks and laws."""
    turn = crc32(f"{attack} {law}".encode())

    def turned(values: Any, place: int) -> st.SearchStrategy[Any]:
        by = (turn >> place) % len(values)
        return st.sampled_from([*values[by:], *values[:by]])

    threats = [ThreatModel(n, eps) for n in norms_of(attack) for eps in RADII if not (n is Norm.LINF and eps > 1)]
    return st.builds(
        Case,
        threat=turned(threats, 0),
        kind=turned(KINDS, 4),
        classes=turned(CLASSES, 8),
        channels=turned((1, 3), 12),
        side=turned((4, 5, 6, 8), 16),
        count=turned((6, 12, 1, 17), 20),
        layout=turned(LAYOUTS, 24),
        double=turned((False, False, False, True), 28),
        seed=st.integers(0, 10_000),
    )


def skip_what_is_not_there(attack: str) -> None:
    """An extra that is not installed, or a row whose module is still to come."""
    if attack.startswith("torchattacks:"):
        pytest.importorskip("torchattacks")
    if find_spec(ATTACKS.entry(attack).target.partition(":")[0]) is None:
        pytest.skip("its module is not there")


def hold(attack: str, law: str, examples: int, phases: tuple[Phase, ...] = (Phase.generate,)) -> None:
    skip_what_is_not_there(attack)
    if law in (exempt := ATTACKS.entry(attack).exempt):
        pytest.skip(f"exempt: {exempt[law]}")

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases(attack, law))
    def every_case(case: Case) -> None:
        check_law(law, attack, case)

    every_case()


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("attack", ROWS)
def test_every_attack_obeys(attack: str, law: str) -> None:
    hold(attack, law, SLOW.get(attack, 2))


@pytest.mark.nightly
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("attack", ROWS)
def test_every_attack_obeys_at_night(attack: str, law: str) -> None:
    hold(attack, law, 20 * SLOW.get(attack, 4), (Phase.generate, Phase.shrink))


# laws are tests that can fail: an honest attack, and others with one fault each


@dataclass(frozen=True)
class Honest:
    """PGD, from outside of the registry."""

    threat: ThreatModel
    steps: int = 10
    restarts: int = 1

    def __post_init__(self) -> None:
        PGD(self.threat, self.steps, restarts=self.restarts)

    def cost(self, classes: int) -> tuple[int, int]:
        return PGD(self.threat, self.steps, restarts=self.restarts).cost(classes)

    def __call__(self, model: Any, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        return PGD(self.threat, self.steps, restarts=self.restarts)(model, x, y, generator=generator)


class Outside(Honest):
    def __call__(self, model: Any, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        return x + (1.2 * (super().__call__(model, x, y, generator=generator) - x)).clamp(-x, 1 - x)


class Writes(Honest):
    def __call__(self, model: Any, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        adv = super().__call__(model, x, y, generator=generator)
        x[0] = adv[0]
        return adv


class Widens(Honest):
    def __call__(self, model: Any, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        return super().__call__(model, x, y, generator=generator).double()


class LeavesTheBox(Honest):
    def __call__(self, model: Any, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        adv = super().__call__(model, x, y, generator=generator)
        return torch.where(adv == 1, 1.001, adv)


class NotANumber(Honest):
    def __call__(self, model: Any, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        return super().__call__(model, x, y, generator=generator) / (x != 0)


class Forgets(Honest):
    """Sees what fools the model, and returns something else."""

    def __call__(self, model: Any, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        super().__call__(model, x, y, generator=generator)
        return x.clone()


class Repairs(Honest):
    def __call__(self, model: Any, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        adv = super().__call__(model, x, y, generator=generator)
        wrong = model(x).argmax(1) != y
        adv[wrong] = 1 - x[wrong]  # of two classes that is the right one
        return adv


class Restless(Honest):
    def __call__(self, model: Any, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        adv = super().__call__(model, x, y, generator=generator)
        return (adv - 1e-8).clamp_min(0) if self.threat.eps == 0 else adv


class Shy(Honest):
    """Does nothing in larger balls."""

    def __call__(self, model: Any, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        return x.clone() if self.threat.eps > 0.2 else super().__call__(model, x, y, generator=generator)


class Short(Honest):
    """Steps that do not grow with eps."""

    def __call__(self, model: Any, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        small = replace(self.threat, eps=min(0.01, self.threat.eps))
        return PGD(small, self.steps)(model, x, y, generator=generator)


class Gambles(Honest):
    """The last restart counts, where the first may have been better."""

    def __call__(self, model: Any, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        return x.clone() if self.restarts > 1 else super().__call__(model, x, y, generator=generator)


class Revives(Honest):
    """An ensemble that says more are left after its second member than after its first."""

    def members(self) -> dict[str, Honest]:
        return {"first": Honest(self.threat), "second": Honest(self.threat)}

    def __call__(self, model: Any, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        model.left.update(first=1, second=2)
        return super().__call__(model, x, y, generator=generator)


class DrawsElsewhere(Honest):
    def __call__(self, model: Any, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        adv = super().__call__(model, x, y, generator=generator)
        return adv + (x - adv) * torch.rand(x.shape).to(x)


class Reseeds(Honest):
    def __call__(self, model: Any, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        numpy.random.seed(0)
        return super().__call__(model, x, y, generator=generator)


class Untraces(Honest):
    def __call__(self, model: Any, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        sys.settrace(None)
        return super().__call__(model, x, y, generator=generator)


class LooksAround(Honest):
    """Attacks one image of a batch only."""

    def __call__(self, model: Any, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        adv = super().__call__(model, x, y, generator=generator)
        adv[1:] = x[1:]
        return adv


class SwitchesMode(Honest):
    def __call__(self, model: Any, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        adv = super().__call__(model, x, y, generator=generator)
        model.train()
        return adv


class LeavesGradients(Honest):
    def __call__(self, model: Any, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        weights = next(model.parameters())
        weights.grad = torch.zeros_like(weights)
        return super().__call__(model, x, y, generator=generator)


class Swallows(Honest):
    def __call__(self, model: Any, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        try:
            return super().__call__(model, x, y, generator=generator)
        except RuntimeError:
            return x.clone()


class PrefersAClass(Honest):
    def __call__(self, model: Any, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        adv = super().__call__(model, x, y, generator=generator)
        adv[y != 0] = x[y != 0]
        return adv


class ReadsLevels(Honest):
    """Takes logits for probabilities."""

    def __call__(self, model: Any, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        adv = super().__call__(model, x, y, generator=generator)
        high = model(x).amax(1) > 5
        adv[high] = x[high]
        return adv


class Overspends(Honest):
    def cost(self, classes: int) -> tuple[int, int]:
        return self.steps, self.steps


class WantsOneLayout(Honest):
    def __call__(self, model: Any, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        return super().__call__(model, x, y, generator=generator) if x.is_contiguous() else x.clone()


class NeedsView(Honest):
    def __call__(self, model: Any, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        return super().__call__(model, x.view(len(x), -1).view(x.shape), y, generator=generator)


class Boasts(Honest):
    """Says it is made for randomised models."""

    randomised: ClassVar[bool] = True

    def __call__(self, model: Any, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        if not torch.equal(model(x), model(x)):
            raise AttackError("the model is no function")
        return super().__call__(model, x, y, generator=generator)


@dataclass(frozen=True)
class Lenient:
    """Takes an empty budget for one."""

    threat: ThreatModel
    tries: int = 10

    def __call__(self, model: Any, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        found = x.clone()
        for _ in range(self.tries):
            found = random_start(x, self.threat, generator)
        return found


class Crashes(Honest):
    def __call__(self, model: Any, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        raise ZeroDivisionError("a planted error")


CASE = Case(ThreatModel.parse("linf-0.15"), count=12)
TWO = replace(CASE, classes=2)
UNBOUNDED = replace(TWO, threat=ThreatModel.parse("linf-1"))
OFFENDERS: list[tuple[str, type, Case, str]] = [
    ("I1", Outside, CASE, "outside the ball: up to"),
    ("I2", Writes, CASE, "wrote into the images"),
    ("I2", Widens, CASE, "float64"),
    ("I2", LeavesTheBox, CASE, r"pixels outside \[0, 1\]"),
    ("I2", NotANumber, CASE, "NaN or infinite"),
    ("I3", Forgets, CASE, "fooled the model on the way, inside the ball, and was lost"),
    ("I4", Repairs, UNBOUNDED, "wrong when clean and made right"),
    ("I5", Restless, CASE, "changed by the attack"),
    ("I6", Shy, CASE, "are broken at eps 0.15 and not at 0.225"),
    ("I7", Short, CASE, "robust at linf-1, where every image is inside the ball"),
    ("I8", Gambles, CASE, "broken with restarts = 1 and not with restarts = 3"),
    ("I8", Revives, CASE, "left after each member"),
    ("I9", DrawsElsewhere, CASE, "a global random state moved"),
    ("I9", Reseeds, CASE, "a global random state moved"),
    ("I9", Untraces, CASE, "trace hook"),
    ("I10", LooksAround, CASE, "judged otherwise"),
    ("I11", SwitchesMode, CASE, "inside the attack the model changed"),
    ("I11", LeavesGradients, CASE, "inside the attack the model changed"),
    ("I11", Swallows, CASE, "an error in the model was swallowed"),
    ("I12", PrefersAClass, CASE, "the classes have other names"),
    ("I12", ReadsLevels, CASE, "all logits are 8 higher"),
    ("I13", Overspends, CASE, r"took \(11, 10\) passes; at most \(10, 10\) were announced"),
    ("I14", WantsOneLayout, CASE, "judged otherwise laid out transposed"),
    ("I14", NeedsView, replace(CASE, channels=3), "it stopped with RuntimeError: view size"),
    ("I15", Boasts, CASE, "says it is made for randomised models, and refused one"),
    ("I16", Lenient, CASE, "tries = 0: not refused"),
]


@pytest.mark.parametrize(
    ("law", "attack", "case", "message"), OFFENDERS, ids=[f"{o[0]}-{o[1].__name__}" for o in OFFENDERS]
)
def test_a_law_catches_who_breaks_it(law: str, attack: type, case: Case, message: str) -> None:
    name = f"{__name__}:{attack.__name__}"
    with pytest.raises(LawError, match=message) as caught:
        check_attack(name, [case], [law])
    assert str(caught.value).startswith(f"{law} broken by {name} in Case(threat=ThreatModel(")
    if attack is not Lenient:  # and an attack without the fault obeys there
        check_attack(f"{__name__}:Honest", [case], [law])


def test_every_law_has_an_offender() -> None:
    assert {law for law, *_ in OFFENDERS} == set(LAWS)


def test_the_laws_watch_the_verdict_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # faults no attack can have: they would be ours
    judge = verdict.judge

    def generous(*arguments: Any) -> verdict.Verdict:
        found = judge(*arguments)
        return replace(found, robust=torch.ones_like(found.robust))

    monkeypatch.setattr(verdict, "judge", generous)
    for law in ("I3", "I4", "I5"):
        with pytest.raises(LawError, match="judged"):
            check_law(law, f"{__name__}:Honest", CASE)
    monkeypatch.setattr(verdict, "judge", judge)
    monkeypatch.setattr(verdict, "check_images", lambda *_: None)
    with pytest.raises(LawError, match="a label beyond the classes"):
        check_law("I16", f"{__name__}:Honest", CASE)


# the suite as others use it


def test_an_attack_from_outside_obeys() -> None:
    found = check_attack(
        f"{__name__}:Honest", [CASE, replace(CASE, threat=ThreatModel.parse("l1-1"), kind="mlp", channels=3)]
    )
    assert found == dict.fromkeys(LAWS, "obeyed")


def test_the_built_in_cases_cover_what_there_is() -> None:
    made = cases_for("pgd-20")
    assert {(case.threat.norm, case.threat.eps) for case in made} == {
        (norm, eps) for norm in Norm for eps in RADII if norm is not Norm.LINF or eps <= 1
    }
    for name, values in {
        "kind": KINDS,
        "classes": CLASSES,
        "channels": (1, 3),
        "layout": LAYOUTS,
        "double": (False, True),
    }.items():
        assert {getattr(case, name) for case in made} == set(values)
    assert {case.threat.norm for case in cases_for("ddn")} == {Norm.L2}


def test_what_an_attack_is_exempt_from_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Entry("gambler", f"{__name__}:Gambles", "an offender with a row", exempt={"I8": "it is a gambler"})
    monkeypatch.setitem(ATTACKS.rows, "gambler", row)
    found = check_attack("gambler", [CASE], ["I1", "I8"])
    assert found == {"I1": "obeyed", "I8": "exempt: it is a gambler"}


def test_an_unknown_law_or_attack_is_refused() -> None:
    with pytest.raises(UsageError, match="no law 'I99'; laws are I1, I2"):
        check_attack("fgsm", laws=["I99"])
    with pytest.raises(UsageError, match="Did you mean 'fgsm'"):
        check_attack("fgsmm")


def test_an_attack_that_crashes_breaks_the_law() -> None:
    with pytest.raises(LawError, match="it stopped with ZeroDivisionError: a planted error"):
        check_attack(f"{__name__}:Crashes", [CASE], ["I1"])
    with pytest.raises(UsageError, match="must be a dataclass"):
        check_attack(f"{__name__}:hold", [CASE], ["I1"])


def test_budgets_are_cut_as_far_as_an_attack_allows() -> None:
    threat = ThreatModel.parse("linf-0.1")
    assert options_of(quick("pgd-100x5", threat))["steps"] == BUDGETS["steps"]
    assert options_of(quick("pgd-100x5", threat))["restarts"] == BUDGETS["restarts"]
    assert options_of(quick("pgd@steps=50,step=0.02", threat))["steps"] == 50  # fewer could not cross the ball
    assert options_of(quick("pgd-5", threat))["steps"] == 5
    assert options_of(quick("pgd-100", threat, steps=70))["steps"] == 70
    assert options_of(quick("pgd-100", threat, factor=3))["steps"] == 3 * BUDGETS["steps"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", CLASSES)
def test_a_case_is_what_it_says(kind: Any, classes: int) -> None:
    case = Case(ThreatModel.parse("l2-1"), kind=kind, classes=classes, channels=3, count=20, double=True)
    dice = torch.get_rng_state(), random.getstate()
    model, (x, y) = case.model(), case.images()
    assert torch.equal(dice[0], torch.get_rng_state())
    assert dice[1] == random.getstate()
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((20, 3, 5, 5), torch.float64, (20,), torch.int64)
    with torch.no_grad():
        assert ((model(x).argmax(1) != y) == (torch.arange(20) % 5 == 4)).all()
        assert torch.allclose(model(1 - x), -model(x))
        assert (model(1 - x).argmax(1) != model(x).argmax(1)).all()
    assert torch.equal(x, case.images()[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_changes_no_pixel(layout: Any) -> None:
    x = Case(CASE.threat, channels=3).images()[0]
    other = Case(CASE.threat, channels=3, layout=layout).images()[0]
    assert torch.equal(x, other)
    assert (layout == "plain") == (x.stride() == other.stride())


@pytest.mark.parametrize("attack", [name for name in ROWS if not name.startswith("torchattacks:")])
def test_an_attack_finds_its_gradients_where_none_are_recorded(attack: str) -> None:
    skip_what_is_not_there(attack)
    made = quick(attack, ThreatModel(norms_of(attack)[0], 0.1))
    with torch.no_grad():
        found = proposed(made, CASE)
    assert torch.equal(found, proposed(made, CASE))
