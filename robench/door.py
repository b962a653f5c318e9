"""The one door between an attack or a training step and a model: eval mode, frozen parameters, checked and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robench.device import exhausted
from robench.errors import AttackError
from robench.protocols import Classifier

SMALLEST = 16  # images in a pass


@contextmanager
def moded(models: Iterable[nn.Module]) -> Iterator[None]:
    """After, every submodule has the mode it had before."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def frozen(model: nn.Module, *, training: bool = False) -> Iterator[None]:
    """Inside, the model is in eval mode and no parameter asks for a gradient; after, everything is as it was.

    Args:
        model: every submodule gets its own mode back, also after an exception.
        training: keep train mode instead (batch statistics), for attacks that are defined that way. Running
            statistics then move, as they do in the code those methods come from.
    """
    asks = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with moded([model]):
        model.train(training)
        for parameter, _ in asks:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter, ask in asks:
                parameter.requires_grad_(ask)


class Door(nn.Module):
    """Stands before a classifier: counts image passes, splits batches, refuses what is not an image or not a logit.

    Passes of fewer than 16 images are filled up to 16, since libraries compute small batches by other algorithms, whose
    rounding would let an image's logits depend on how many others are still in play.

    Args:
        model: maps (n, channels, height, width) in [0, 1] to logits (n, classes). One that looks at an image several times
            for an answer says so by an attribute `passes`.
        classes: how many logits there must be.
        micro_batch: the most images that pass at once; halved when the memory is full.
        watch: called after each pass, for progress.
        exits: only whether an image fools the model counts, and no image's logits depend on others: an attack may leave an
            image alone once it does.

    Attributes:
        forwards: images passed forward so far.
        backwards: images whose gradient was computed so far.
        said: the last message of an attack about its own progress.
        noted: what a reader of the result should know, as attacks found it out.
        left: how many images each member of an ensemble left unbroken.
    """

    def __init__(
        self,
        model: nn.Module,
        classes: int,
        micro_batch: int = 500,
        watch: Callable[[Door], None] | None = None,
        *,
        exits: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.exits = exits
        self.classes = classes
        self.micro_batch = micro_batch
        self.watch = watch
        self.passes = int(getattr(model, "passes", 1))
        self.forwards = 0
        self.backwards = 0
        self.said = ""
        self.noted: list[str] = []
        self.left: dict[str, int] = {}

    def say(self, message: str) -> None:
        """Let an attack tell where it is."""
        self.said = message
        if self.watch is not None:
            self.watch(self)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of a batch.

        Raises:
            AttackError: if x is not a finite float batch of four axes within a hair of [0, 1], or the logits are not
                finite or not (n, classes).
        """
        logits = self._pass(x, self.model)
        if logits.shape != (len(x), self.classes):
            raise AttackError(f"the model returned {tuple(logits.shape)}; expected logits {(len(x), self.classes)}")
        bad = int((~logits.detach().isfinite()).any(1).sum())
        if bad:
            raise AttackError(f"the model returned NaN or infinite logits for {bad} of {len(x)} images")
        return logits

    def confirmed(self, adv: Tensor, y: Tensor, found: Tensor) -> Tensor:
        """Of images that fool what is searched on, those that fool the model that judges, (n,)."""
        judged = getattr(self.model, "judged", None)
        if judged is None or not bool(found.any()):
            return found
        with torch.no_grad():
            sure = self._pass(adv.detach()[found], judged).argmax(1) != y[found]
        return found.clone().masked_scatter_(found, sure)

    def features(self, x: Tensor) -> Tensor:
        """The features of a batch, (n, ...), for attacks on an encoder.

        Raises:
            AttackError: as `forward`, or if the model has none.
        """
        ask = getattr(self.model, "features", None)
        if not callable(ask):
            raise AttackError("the model has no features to attack: it needs a method `features(x)`")
        return self._pass(x, ask)

    def each(self, run: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
        """Run an attack on parts of at most `micro_batch` images, halving it when the memory is full.

        Args:
            run: maps image numbers (m,) to images; called again with fewer when it runs out of memory.
            ids: all image numbers, (n,).

        Returns:
            What `run` returned, together.

        Raises:
            torch.OutOfMemoryError: if not even one image fits; or what else the device raises then.
        """
        found: list[Tensor] = []
        done = 0
        while done < len(ids):
            part = ids[done : done + self.micro_batch]
            try:
                found.append(run(part))
                done += len(part)
            except (RuntimeError, MemoryError) as error:
                if len(part) == 1 or not exhausted(error):
                    raise
                self._halve(len(part))
        return torch.cat(found)

    def _halve(self, count: int) -> None:
        self.micro_batch = max(1, count // 2)
        self.noted.append(f"out of memory: went on with {self.micro_batch} images at once")

    def _pass(self, x: Tensor, ask: Callable[[Tensor], Tensor]) -> Tensor:
        if x.ndim != 4 or not x.is_floating_point():
            raise AttackError(
                f"the model was asked about a tensor {tuple(x.shape)} {x.dtype}; expected float NCHW images"
            )
        low, high = torch.aminmax(x.detach())
        if not (low.item() >= -1e-4 and high.item() <= 1 + 1e-4):
            raise AttackError(
                f"the model was asked about pixels from {low.item():.4g} to {high.item():.4g}; images are in [0, 1]"
            )
        x = _Plain.apply(x)
        parts: list[Tensor] = []
        done = 0
        while done < len(x) or not parts:
            part = x[done : done + self.micro_batch]
            try:
                parts.append(self._count(part, ask))
                done += len(part)
            except (RuntimeError, MemoryError) as error:
                # a graph grows with the whole batch: see `each`
                if len(part) <= 1 or part.requires_grad or not exhausted(error):
                    raise
                self._halve(len(part))
        found = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.watch is not None:
            self.watch(self)
        return found

    def _count(self, x: Tensor, ask: Callable[[Tensor], Tensor]) -> Tensor:
        count = len(x)
        missing = min(SMALLEST, self.micro_batch) - count
        found = ask(x) if missing <= 0 else ask(torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]))[:count]
        self.forwards += count * self.passes
        if found.requires_grad and x.requires_grad:
            found.register_hook(lambda _gradient: self._backward(count))
        return found

    def _backward(self, count: int) -> None:
        self.backwards += count * self.passes


def fooled(model: Classifier, adv: Tensor, logits: Tensor, y: Tensor) -> Tensor:
    """Which images fool the model: what an attack may stop on, (n,).

    Args:
        model: that was asked.
        adv: the images it was asked about, (n, ...).
        logits: what it said, (n, classes).
        y: labels, (n,).
    """
    return confirmed(model, adv, y, logits.detach().argmax(1) != y)


def confirmed(model: Classifier, adv: Tensor, y: Tensor, found: Tensor) -> Tensor:
    """Of the images that seem to fool the model, those that do, (n,).

    Behind a door that shows a stand-in (`robench.search`) the model itself is asked about them, in float32.
    """
    return model.confirmed(adv, y, found) if isinstance(model, Door) else found


class Ensemble(nn.Module):
    """Several classifiers as one, by the mean of their logits: what a transfer from several sources attacks.

    Source: Dong et al. 2018, section 3.4 (ensemble in logits).
    """

    def __init__(self, members: Iterable[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """Mean logits, (n, classes)."""
        return torch.stack([member(x) for member in self.members]).mean(0)

    def features(self, x: Tensor) -> Tensor:
        """The features of all members side by side, (n, all features)."""
        return torch.cat([member.features(x).flatten(1) for member in self.members], 1)  # type: ignore[operator]


class _Plain(torch.autograd.Function):
    """The identity, whose gradient is laid out plainly: some attacks from elsewhere cannot read any other layout."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous()
