"""The attacks of the package torchattacks, through one adapter."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robench.errors import AttackError, UsageError, missing, nearest
from robench.protocols import Classifier
from robench.threat import Norm, ThreatModel

_NOT_ATTACKS = {"AutoAttack", "LGV", "MultiAttack", "VANILA"}


@dataclass(frozen=True)
class Torchattacks:
    """One attack of torchattacks, aimed at the threat's eps.

    Where it looks outside [0, 1] (a look-ahead, say), the model is shown the nearest image and the gradient passes.

    Attributes:
        name: the class there, such as `MIFGSM`.
        batch_size: images per call; its noise depends on it.
        options: its own options, by its own names, such as `{"steps": 50}`. Where it has a step size `alpha` and none is
            given, it is the larger of 2.5 eps / steps and its default's share of its default eps.

    Raises:
        UsageError: if the class is not there, has no eps (its result would not be a robust accuracy at a
            radius), or lives in another norm.
    """

    whole: ClassVar[bool] = True

    threat: ThreatModel
    name: str
    batch_size: int = 250
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what would report a meaningless number, before any model runs."""
        cls = _class(self.name)
        parameters = inspect.signature(cls).parameters
        if not _radius(parameters):
            raise UsageError(
                f"attack torchattacks:{self.name} has no eps, so it measures no robust accuracy at a radius"
            )
        ours = ("model", "eps", "max_epsilon")
        unknown = [key for key in self.options if key not in parameters or key in ours]
        if unknown:
            known = ", ".join(key for key in parameters if key not in ours)
            raise UsageError(f"attack torchattacks:{self.name}: unknown option {unknown[0]!r} (options: {known})")
        if "norm" in self.options:
            raise UsageError(f"attack torchattacks:{self.name}: the norm is the threat's; leave the option away")
        alpha, steps = self.options.get("alpha"), self.options.get("steps", _default(parameters, "steps", 1))
        if isinstance(alpha, int | float) and alpha * steps < self.threat.eps * (1 - 1e-6):
            raise UsageError(
                f"attack torchattacks:{self.name}: {steps} steps of alpha = {alpha:g} cannot cross the ball of {self.threat}, "
                f"so the result would look robust for no reason; set alpha to at least {self.threat.eps / steps:.4g}"
            )
        if self.threat.norm not in (norms := _norms(self.name, parameters)):
            raise UsageError(
                f"attack torchattacks:{self.name} works in {' and '.join(norms)}, not in {self.threat.norm.value}"
            )

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Perturb a batch; the global random state, which torchattacks draws from, is seeded and given back."""
        if self.threat.eps == 0:  # by which some of them divide
            return x.clone()
        cls = _class(self.name)
        parameters = inspect.signature(cls).parameters
        options = dict(self.options)
        if "norm" in parameters:
            options["norm"] = {"linf": "Linf", "l2": "L2"}[self.threat.norm]
        if "alpha" in parameters and "alpha" not in options:
            steps = options.get("steps", _default(parameters, "steps", 1))
            share = parameters["alpha"].default / parameters["eps"].default
            options["alpha"] = self.threat.eps * max(share, 2.5 / steps)
        with torch.random.fork_rng([x.device] if x.is_cuda else []):
            torch.manual_seed(generator.initial_seed())
            attack = cls(_Module(model), **{_radius(parameters): self.threat.eps}, **options)
            try:
                parts = zip(x.contiguous().split(self.batch_size), y.split(self.batch_size), strict=True)
                adv: Tensor = torch.cat([attack(*part) for part in parts])
            except (AssertionError, IndexError, TypeError, RuntimeError) as error:
                raise AttackError(f"torchattacks' {self.name} stopped: {type(error).__name__}: {error}") from error
        return adv.detach()


class _Module(nn.Module):
    """Torchattacks asks a model for its device and mode; this answers for any callable."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.inner = model
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + (x.clamp(0, 1) - x).detach())


def _class(name: str) -> Any:
    """The class of that name.

    Raises:
        UsageError: if torchattacks is not installed, has no such attack, or has one that is not what its name says.
    """
    try:
        import torchattacks
    except ImportError as error:
        raise missing(f"torchattacks:{name}", "torchattacks", "torchattacks", error) from None
    if name == "AutoAttack":
        raise UsageError("torchattacks' AutoAttack runs 10 steps where the standard has 100; use --attack autoattack")
    known = [
        key
        for key, value in vars(torchattacks).items()
        if inspect.isclass(value)
        and issubclass(value, torchattacks.attack.Attack)
        and key not in {*_NOT_ATTACKS, "Attack"}
    ]
    if name not in known:
        match = nearest(
            name, [key for key in known if _radius(inspect.signature(getattr(torchattacks, key)).parameters)]
        )
        guess = f"; did you mean torchattacks:{match}?" if match else ""
        raise UsageError(f"torchattacks has no attack {name!r}{guess} (it has {', '.join(sorted(known))})")
    return getattr(torchattacks, name)


def _default(parameters: Mapping[str, inspect.Parameter], name: str, otherwise: Any) -> Any:
    return parameters[name].default if name in parameters else otherwise


def _radius(parameters: Mapping[str, inspect.Parameter]) -> str:
    """What a class calls its eps; nothing when it has none."""
    return next((name for name in ("eps", "max_epsilon") if name in parameters), "")


def _norms(name: str, parameters: Mapping[str, inspect.Parameter]) -> tuple[Norm, ...]:
    """The norms a class works in. Those that take a norm offer L1 too, but stop with an error there."""
    if "norm" in parameters:
        return Norm.LINF, Norm.L2
    return (Norm.L2,) if name.endswith("L2") else (Norm.LINF,)
