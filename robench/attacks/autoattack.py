"""AutoAttack: the parameter-free ensemble, each member on the images its predecessors left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robench.attacks.apgd import APGD, APGDT
from robench.attacks.fab import FAB
from robench.attacks.reference import NEEDS, run_reference
from robench.attacks.square import Square
from robench.door import Door, fooled
from robench.errors import UsageError
from robench.geometry import exact_norm, inside
from robench.noise import branch
from robench.protocols import Attack, Classifier
from robench.threat import Norm, ThreatModel

STEPS, QUERIES, DRAWS = 100, 5000, 20
MASKED = 0.002  # the share of images Square may break beyond the rest before that is said (Croce & Hein)


@dataclass(frozen=True)
class AutoAttack:
    """APGD-CE, APGD-T, FAB-T and Square in turn (`standard`), with fixed budgets and nothing to tune.

    Attributes:
        version: `standard`; `plus` adds APGD-DLR, untargeted FAB and five restarts; `rand` is APGD-CE and APGD-DLR over 20
            averaged passes, for models that answer differently each time.
        backend: `engine` is the attacks of this package: the same members, budgets and schedules, noise that belongs to the
            image, images dropped as soon as they are broken. `reference` is the original code (package pyautoattack).
        steps: of each gradient attack; the standard is 100.
        queries: of Square; the standard is 5,000.
        batch_size: images per batch inside the reference, on which its noise depends; the engine does not read it.

    Raises:
        UsageError: if a budget is below 1.

    Source: Croce & Hein 2020 (linf, l2) and 2021 (l1).
    Differs: with fewer classes than it aims at, it aims at those there are (the original stops with an error). Where a loss
        needs more classes than there are, the engine climbs what there is of it and the reference leaves the member out.
        `plus` in l1 starts in larger balls, as `standard` does.
    """

    whole: ClassVar[bool] = True  # each member fills its batches with what its predecessors left

    threat: ThreatModel
    version: Literal["standard", "plus", "rand"] = "standard"
    backend: Literal["engine", "reference"] = "engine"
    steps: int = STEPS
    queries: int = QUERIES
    batch_size: int = 250

    def __post_init__(self) -> None:
        """Refuse empty budgets."""
        if min(self.steps, self.queries, self.batch_size) < 1:
            raise UsageError(
                f"attack autoattack: steps ({self.steps}), queries ({self.queries}) and batch_size ({self.batch_size}) "
                "must be at least 1"
            )

    @property
    def randomised(self) -> bool:
        """Whether it is fit for models that answer differently each time."""
        return self.version == "rand"

    @property
    def confirms(self) -> bool:
        """Whether what its members stop on is confirmed in float32."""
        return self.backend == "engine" and not self.randomised

    @property
    def separable(self) -> bool:
        """Whether ranges of images may be run apart; the reference draws for batches."""
        return self.backend == "engine"

    def members(self) -> dict[str, Attack]:
        """The attacks in their order."""
        threat, steps = self.threat, self.steps
        l1 = threat.norm is Norm.L1
        square, fab_t = Square(threat, queries=self.queries), FAB(threat, steps=steps, search=0, early_stop=True)
        if self.version == "rand":
            return {f"apgd-{loss}": APGD(threat, steps, loss=loss, draws=DRAWS) for loss in ("ce", "dlr")}
        if self.version == "plus":
            return {
                "apgd-ce": APGD(threat, steps, restarts=5),
                "apgd-dlr": APGD(threat, steps, restarts=5, loss="dlr"),
                "fab": FAB(threat, targeted=False, steps=steps, restarts=5, search=0, early_stop=True),
                "square": square,
                "apgd-t": APGDT(threat, steps),
                "fab-t": fab_t,
            }
        return {
            "apgd-ce": APGD(threat, steps, restarts=5 if l1 else 1),
            "apgd-t": APGDT(threat, steps, targets=5 if l1 else 9),
            "fab-t": fab_t,
            "square": square,
        }

    def cost(self, classes: int) -> tuple[int, int]:
        """The most forward and backward passes for an image, with the look at it after each member."""
        looks = DRAWS if self.randomised else 1
        each = [member.cost(classes) for member in self.members().values()]  # type: ignore[attr-defined]
        more = 100 * (self.backend == "reference")  # its checks, and gradients of last points that nobody uses
        return sum(forwards + looks for forwards, _ in each) + more, sum(backwards for _, backwards in each) + more

    def notes(self, classes: int) -> tuple[str, ...]:
        """What departs from the standard, by wish or for few classes."""
        notes = []
        if (self.steps, self.queries) != (STEPS, QUERIES):
            notes.append(f"{self.steps} steps and {self.queries} queries where AutoAttack has {STEPS} and {QUERIES}")
        if self.version != "rand" and classes < 10:
            notes.append(f"aims at {classes - 1} classes at most, all there are")
        few = [name for name in self.members() if classes < NEEDS.get(name, 2)]
        verb = "leaves out" if self.backend == "reference" else "climbs the margin in"
        return tuple(notes + [f"{verb} {name}, which needs {NEEDS[name]} classes" for name in few])

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Perturb all images."""
        if self.backend == "reference":
            return run_reference(
                model,
                x,
                y,
                threat=self.threat,
                version=self.version,
                steps=self.steps,
                queries=self.queries,
                seed=generator.initial_seed(),
                batch_size=self.batch_size,
            )
        found = x.clone()
        every = torch.arange(len(x), device=x.device)
        in_turn(self.members(), model, x, y, found, every, generator, draws=DRAWS if self.randomised else 1)
        return found

    def finds(self, left: Mapping[str, int], attacked: int) -> list[str]:
        """What a look at all images shows: gradients that hide what Square finds.

        Args:
            left: how many images each member left unbroken.
            attacked: how many there were.
        """
        before = attacked
        for name in self.members():
            broken = before - left.get(name, before)
            if name == "square" and broken > MASKED * attacked:
                return [f"flag: Square broke {broken} images that no gradient attack before it broke"]
            before -= broken
        return []


def in_turn(
    members: Mapping[str, Attack],
    model: Classifier,
    x: Tensor,
    y: Tensor,
    found: Tensor,
    left: Tensor,
    generator: torch.Generator,
    draws: int = 1,
) -> Tensor:
    """Run attacks in their order, each on the images its predecessors left.

    Args:
        members: the attacks by name, all at one threat.
        model: maps images to logits.
        x: clean images, (n, ...).
        y: labels, (n,).
        found: what is returned for each image, (n, ...); the broken ones are put in.
        left: the numbers of the images to attack.
        generator: the source of randomness, of which each member gets a branch of its own.
        draws: passes averaged when a member's images are looked at.

    Returns:
        The numbers of the images that none broke.
    """
    door = model if isinstance(model, Door) else None
    for name, member in members.items():

        def run(part: Tensor, name: str = name, member: Attack = member) -> Tensor:
            return member(model, x[part], y[part], generator=branch(generator, name, index=part))

        if not len(left):
            break
        adv, threat = door.each(run, left) if door else run(left), member.threat
        with torch.no_grad():
            logits = torch.stack([model(adv) for _ in range(draws)]).mean(0)
        broken = inside(exact_norm(adv, x[left], threat.norm), threat) & fooled(model, adv, logits, y[left])
        found[left[broken]] = adv[broken]
        left = left[~broken]
        if door:
            door.left[name] = len(left)
            door.say(f"left after {', '.join(f'{name} {count}' for name, count in door.left.items())}")
    return left
