"""What a classifier's outputs and a pass give away: answers that change, probabilities, values at a ceiling, inner gradients.

Thresholds are our own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor


@dataclass(frozen=True)
class Unrest:
    """How the answers of several passes over the same images differ.

    Attributes:
        moved: the largest change of a logit, each image's scaled to length 1.
        verdicts: for how many images the answer is not always the same.
        bits: whether any bit of a logit differs.
    """

    moved: float
    verdicts: int
    bits: bool

    @property
    def randomised(self) -> bool:
        """Whether that is more than rounding: a verdict, or more than 1e-4, the threshold of AutoAttack's check."""
        return self.verdicts > 0 or self.moved > 1e-4


STILL = Unrest(0.0, 0, False)


def unrest(passes: Sequence[Tensor]) -> Unrest:
    """How several passes differ from the first.

    Args:
        passes: logits of the same images, (n, classes) each; at least one.
    """
    first = passes[0]
    scaled = [each / each.norm(dim=1, keepdim=True).clamp_min(1e-12) for each in passes]
    moved = max((each - scaled[0]).abs().max().item() for each in scaled)
    changed = torch.stack([each.argmax(1) != first.argmax(1) for each in passes]).any(0)
    return Unrest(moved, int(changed.sum()), any(not torch.equal(each, first) for each in passes))


def inner_gradients(model: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """How often autograd is entered during a forward pass: a model that optimises inside hides what it answers from."""
    calls = 0

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            return real(*args, **options)

        return counted

    with (
        mock.patch.object(torch.autograd, "grad", counting(torch.autograd.grad)),
        mock.patch.object(torch.autograd, "backward", counting(torch.autograd.backward)),
        torch.no_grad(),
    ):
        model(x)
    return calls


def suspicious(logits: Tensor) -> str:
    """What outputs look like that are no logits, in words; nothing if they may be some.

    Probabilities are known by their sums, exact or nearly (half precision, clamped, scaled); outputs of saturated sigmoids by
    where they are; others by a ceiling and a floor that most images reach. Log-probabilities have a ceiling alone and are logits.

    Args:
        logits: of clean images, (n, classes).
    """
    reach = logits.abs().amax()
    if not bool(reach > 0):
        return ""
    if _probabilities(logits, reach):
        return "the model returns probabilities where logits are expected, which can hide gradients"
    ends = torch.minimum(logits.abs(), (logits - 1).abs()) < 1e-3
    if logits.min() >= -1e-3 and logits.max() <= 1 + 1e-3 and ends.float().mean() > 0.5:
        return "most outputs are 0 or 1, as of a saturated sigmoid, which hides gradients"
    edge = 1e-3 * (logits.amax() - logits.amin())
    high, low = logits.amax(1) > logits.amax() - edge, logits.amin(1) < logits.amin() + edge
    if len(logits) >= 16 and min(high.float().mean(), low.float().mean()) > 0.5:
        return "the largest and smallest logits of most images are at one ceiling and one floor, which hides gradients"
    return ""


def _probabilities(logits: Tensor, reach: Tensor) -> bool:
    """Whether rows are probabilities times any constant: not negative, of equal sums; or nearly so, and sure of a class."""
    if bool(logits.min() < -1e-3 * reach):
        return False
    sums = logits.sum(1)
    level = sums.median() if len(sums) > 1 else torch.ones_like(sums[0])
    apart = ((sums - level).abs() / level.clamp_min(1e-12)).amax()
    sure = (logits.amax(1) / sums.clamp_min(1e-12)).median()
    return bool(apart <= 2e-3) or bool((apart <= 0.1) & (sure > 0.2) & (level <= 2.5))
