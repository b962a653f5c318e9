"""What a white-box attack searches on in place of a network: its folded twin, in a precision of choice, and when it may stop.

The twin only proposes. Where an image fools it, the network itself is asked in float32 before the image is left alone, and
what counts in the end is decided by the network too (`robench.verdict`). So rounding in the twin, or a folded normalisation, can
lead a search elsewhere, but can neither stop it early nor make a verdict.

Source: Jacob et al. 2018, section 3.2 (folding).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from robench.door import frozen
from robench.errors import UsageError, first_line
from robench.models import Nets
from robench.protocols import Attack
from robench.twin import Twin

Precision = Literal["float32", "float16", "bfloat16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
CLOSE = 1e-3  # how far apart, as a share of the largest logit, a float32 twin and its network may be
SCALE = 64.0  # by which gradients are larger inside a float16 network, whose smallest number is 6e-8


class Searched(nn.Module):
    """A network and the frozen twin that stands in for it.

    Args:
        nets: the network, in eval mode; its weights must not change as long as this is used.
        precision: of the twin's encoder. Images, the first convolution where it is a `Stem`, heads and losses stay float32.

    Attributes:
        judged: the network itself, which confirms.
    """

    def __init__(self, nets: Nets, precision: str = "float32") -> None:
        super().__init__()
        self.judged = nets
        self.precision = precision
        with frozen(nets):
            nets.precision = getattr(torch, precision)
            try:
                twin = Twin(nets)
            finally:
                nets.precision = torch.float32
        self.folds = twin.folds
        self.twin = twin.nets

    def forward(self, x: Tensor) -> Tensor:
        """The twin's logits, (n, classes), float32."""
        return self._ask(self.twin, x)

    def features(self, x: Tensor) -> Tensor:
        """The twin's features."""
        return self._ask(self.twin.features, x)

    def _ask(self, ask: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.precision != "float16":
            return ask(x)
        return _scaled(ask(_scaled(x, 1 / SCALE)), SCALE)


def _scaled(x: Tensor, factor: float) -> Tensor:
    """The same numbers, whose gradient is multiplied."""
    found: Tensor = _Scaled.apply(x, factor)
    return found


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


def searched(model: nn.Module, x: Tensor, precision: str = "float32", *, plain: bool = False) -> nn.Module:
    """What an attack searches on: a twin where that is exact up to rounding, else the model itself.

    Args:
        model: under attack.
        x: some of its images, (n, ...), on which a float32 twin is held to it.
        precision: of the search.
        plain: refuse the twin, since the model answers differently each time or an image's logits depend on its batch.

    Raises:
        UsageError: if the model has no twin in another precision, or the device lacks it.
    """
    if not isinstance(model, Nets) or plain:
        if precision != "float32":
            what = "a model that answers differently each time or whose logits depend on the batch"
            what = what if plain else f"a {type(model).__name__}"
            raise UsageError(f"--precision {precision}: {what} is searched on in float32 only; leave the option out")
        return model
    check_device(precision, x.device)
    made = Searched(model, precision)
    if precision == "float32" and not (made.folds and _close(made, x)):
        return model
    return made


@torch.no_grad()
def _close(made: Searched, x: Tensor) -> bool:
    """Whether a twin answers as its network does, on a batch and on a smaller one, which a traced branch could tell apart."""
    with frozen(made):
        for batch in (x[:32], x[:1]):
            theirs, ours = made.judged(batch), made(batch)
            reach = theirs.abs().amax().clamp_min(torch.finfo(theirs.dtype).tiny)
            if theirs.shape != ours.shape or not bool(((ours - theirs).abs() <= CLOSE * reach).all()):
                return False
    return True


def check_attack(attack: Attack, name: str, precision: str) -> None:
    """Refuse a precision for an attack that would stop on what only the twin believes.

    Raises:
        UsageError: naming the attack.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"--precision {precision}: use {', '.join(PRECISIONS)}")
    if precision != "float32" and not getattr(attack, "confirms", False):
        raise UsageError(
            f"--precision {precision}: attack {name} does not confirm in float32 what it finds, so it would stop on images "
            "that fool only the rounded network; leave the option out, or use fgsm, pgd, apgd, fab, square or autoattack"
        )


def check_search(attack: Attack, name: str, precision: str, device: torch.device, elsewhere: bool) -> None:
    """Refuse a precision before anything runs.

    Args:
        attack: what searches.
        name: what to call it.
        precision: of the search.
        device: where.
        elsewhere: whether it searches on something else than the networks it is judged by: another model, or a smoothed one.

    Raises:
        UsageError: if the attack, what it searches on, or the device cannot.
    """
    check_attack(attack, name, precision)
    if precision != "float32" and elsewhere:
        raise UsageError(
            f"--precision {precision}: a transfer, or an attack through --inference, searches in float32; leave it out"
        )
    check_device(precision, device)


def check_device(precision: str, device: torch.device) -> None:
    """Refuse a precision in which a device cannot take the gradient of a convolution.

    Raises:
        UsageError: naming the device and what it said.
    """
    if precision == "float32":
        return
    kind: torch.dtype = getattr(torch, precision)
    x = torch.ones(1, 1, 4, 4, device=device, dtype=kind, requires_grad=True)
    try:
        if device.type == "cuda" and kind is torch.bfloat16 and not torch.cuda.is_bf16_supported(False):
            raise RuntimeError("it would only be emulated")
        torch.nn.functional.conv2d(x, torch.ones(1, 1, 3, 3, device=device, dtype=kind)).sum().backward()
    except (RuntimeError, TypeError) as error:
        raise UsageError(
            f"--precision {precision}: device {device.type} has no arithmetic for it ({first_line(error)}); use float32"
        ) from None
