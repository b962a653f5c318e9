"""How a checkpoint answers, where that is more than one look at the image. No torch here.

`tsi`, transformation-smoothed inference, predicts from many random augmentations of the image: see `robench.smoothed`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from robench.errors import UsageError, unknown
from robench.names import pairs
from robench.recipe import Augment, Recipe
from robench.spec import build

LOOK = ("area", "flip", "grey", "hue", "jitter")  # what decides a simclr view


@dataclass(frozen=True)
class Inference:
    """A classifier smoothed over random augmentations, and how it is attacked.

    Attributes:
        draws: augmented views an answer is made of.
        average: `probabilities` of the views are averaged, or their `votes` are counted.
        augment: `area`, `flip`, `grey`, `hue` and `jitter` of the simclr views (see `robench.recipe.Augment`); empty
            means as the checkpoint's own recipe makes them, see `of`.
        adaptive: whether the attack climbs through the augmentations; any other white-box attack is crafted on the
            classifier without them.
        name: of this kind of inference.

    Raises:
        UsageError: if there are no draws, or a view cannot be made so.

    Source: Kim, Tack & Hwang 2020 (v1, "tInf"): argmax_c of the expectation over t of [l(f(t(x))) = c], 30 draws.
    Differs: that formula counts votes; the mean of probabilities is the default here since it resolves more per draw.
    """

    draws: int = 30
    average: Literal["probabilities", "votes"] = "probabilities"
    augment: Mapping[str, Any] = field(default_factory=dict)
    adaptive: bool = False
    name: Literal["tsi"] = "tsi"

    def __post_init__(self) -> None:
        """Refuse what smooths nothing."""
        if self.draws < 1:
            raise UsageError(f"--inference tsi: {self.draws} draws answer nothing; use --draws 1 or more, such as 30")
        self.view()

    @property
    def label(self) -> str:
        """How tables call it: `tsi-30`, `tsi-30-votes`."""
        return f"{self.name}-{self.draws}" + ("-votes" if self.average == "votes" else "")

    def view(self) -> Augment:
        """How one augmented view is made."""
        try:
            return build(Augment, {"name": "simclr", **self.augment}, "--inference tsi")
        except UsageError as error:
            raise UsageError(re.sub(r"^augment\.", "--inference tsi: ", str(error))) from None

    def of(self, recipe: Recipe | None, *, adaptive: bool) -> Inference:
        """The same with everything settled for a checkpoint of a recipe.

        Without an augmentation of its own it takes that of the recipe's first stage with `simclr` views, which the encoder
        has learnt to look through; else simclr as RoCL has it, which mirrors only if the recipe does, or there is none.
        """
        stages = recipe.stage if recipe else ()
        learnt = [stage.augment for stage in stages if stage.augment.name == "simclr"]
        usual = learnt[0] if learnt else Augment(name="simclr", flip=stages[-1].augment.flip if stages else True)
        look = {name: getattr(usual, name) for name in LOOK} | dict(self.augment)
        return replace(self, augment=look, adaptive=adaptive)


def parse(text: str, draws: int | None = None, average: str | None = None) -> Inference:
    """Read `tsi` or `tsi@KEY=VALUE,...`, where a key is `draws`, `average` or a field of the simclr augmentation.

    Args:
        text: such as `tsi` or `tsi@draws=10,area=0.5,hue=0`.
        draws: on top of the text's, if given; likewise average.
        average: `probabilities` or `votes`.

    Raises:
        UsageError: for another name, an unknown key, or no draws.
    """
    name, at, tail = text.partition("@")
    if name != "tsi":
        raise unknown("inference", name, ["tsi"], "tsi, transformation-smoothed inference")
    given = pairs(tail, f"--inference {text}") if at else {}
    given |= {key: value for key, value in (("draws", draws), ("average", average)) if value is not None}
    look = {key: value for key, value in given.items() if key in LOOK}
    rest = {key: value for key, value in given.items() if key not in LOOK}
    known = ("draws", "average", *LOOK)
    if odd := [key for key in rest if key not in known]:
        raise UsageError(f"--inference tsi: unknown key {odd[0]!r} (keys: {', '.join(known)})")
    return build(Inference, {**rest, "augment": look}, "--inference tsi")
