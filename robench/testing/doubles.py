"""Networks that watch, fail, rename or roll dice, and worlds with a random state or a trace hook of their own."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy
import torch
from torch import Tensor, nn

from robench.geometry import exact_norm, inside
from robench.testing.trial import logits_of
from robench.threat import ThreatModel


def random_states() -> list[object]:
    """The global random states."""
    return [torch.get_rng_state().tolist(), random.getstate(), repr(numpy.random.get_state())]


@contextmanager
def global_seed(seed: int) -> Iterator[list[object]]:
    """Other global random states for a while; yields them."""
    before = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        numpy.random.seed(seed)
        try:
            yield random_states()
        finally:
            random.setstate(before[0])
            numpy.random.set_state(before[1])


@contextmanager
def traced() -> Iterator[Callable[[], bool]]:
    """A trace hook of our own for a while; yields a question: is it still there?"""
    before = sys.gettrace()

    def hook(frame: object, event: str, argument: object) -> None:
        """See nothing."""

    sys.settrace(hook)
    try:
        yield lambda: sys.gettrace() is hook
    finally:
        sys.settrace(before)


class Around(nn.Module):
    """A network around another, with its features."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def features(self, x: Tensor) -> Tensor:
        """The network's own features."""
        found: Tensor = self.inner.features(x)  # type: ignore[operator]
        return found

    def forward(self, x: Tensor) -> Tensor:
        """The network's own logits."""
        logits: Tensor = self.inner(x)
        return logits


class Witness(Around):
    """Remembers whether it was shown an image inside a ball around the clean one that fooled it."""

    def __init__(self, inner: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> None:
        super().__init__(inner)
        self.x, self.y, self.threat, self.seen = x, y, threat, False

    def forward(self, x: Tensor) -> Tensor:
        """The same, and a look at whether they are wrong."""
        logits = super().forward(x)
        self.seen |= bool(self._fools(x.detach(), logits.detach()).any())
        return logits

    def fooled_by(self, adv: Tensor) -> bool:
        """Whether an image fools it inside the ball."""
        return bool(self._fools(adv, logits_of(self.inner, adv)).all())

    def _fools(self, adv: Tensor, logits: Tensor) -> Tensor:
        size = exact_norm(adv, self.x.expand(len(adv), *self.x.shape[1:]), self.threat.norm)
        return (logits.argmax(1) != self.y) & inside(size, self.threat)


class Bomb(Around):
    """Counts passes and stops with an error in one of them."""

    def __init__(self, inner: nn.Module, fatal: int) -> None:
        super().__init__(inner)
        self.fatal, self.calls, self.went_off = fatal, 0, False

    def features(self, x: Tensor) -> Tensor:
        """The same, until it goes off."""
        self._count()
        return super().features(x)

    def forward(self, x: Tensor) -> Tensor:
        """The same, until it goes off."""
        self._count()
        return super().forward(x)

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self.fatal:
            self.went_off = True
            raise RuntimeError("a planted error in the model")


class Renamed(Around):
    """Gives the logits in another order, and higher."""

    def __init__(self, inner: nn.Module, names: list[int], shift: float) -> None:
        super().__init__(inner)
        self.names, self.shift = names, shift

    def forward(self, x: Tensor) -> Tensor:
        """The logits in another order, shifted."""
        return super().forward(x)[:, self.names] + self.shift


class Noisy(Around):
    """Answers differently each time."""

    def __init__(self, inner: nn.Module, seed: int) -> None:
        super().__init__(inner)
        self.dice = torch.Generator().manual_seed(seed)

    def forward(self, x: Tensor) -> Tensor:
        """The logits with noise."""
        logits = super().forward(x)
        return logits + 0.1 * torch.randn(logits.shape, generator=self.dice, dtype=logits.dtype)
