"""The one door between an attack or a training step and a model: eval mode, frozen parameters, checked and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robench.errors import AttackError


@contextmanager
def frozen(model: nn.Module, *, training: bool = False) -> Iterator[None]:
    """Inside, the model is in eval mode and no parameter asks for a gradient; after, everything is as it was.

    Args:
        model: every submodule gets its own mode back, also after an exception.
        training: keep train mode instead (batch statistics), for attacks that are defined that way. Running
            statistics then move, as they do in the code those methods come from.
    """
    modes = [(module, module.training) for module in model.modules()]
    asks = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.train(training)
    for parameter, _ in asks:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, ask in asks:
            parameter.requires_grad_(ask)


class Door(nn.Module):
    """Stands before a classifier: counts image passes, splits batches, refuses what is not an image or not a logit.

    Args:
        model: maps (n, channels, height, width) in [0, 1] to logits (n, classes).
        classes: how many logits there must be.
        micro_batch: the most images that pass at once.
        watch: called after each pass, for progress.

    Attributes:
        forwards: images passed forward so far.
        backwards: images whose gradient was computed so far.
        said: the last message of an attack about its own progress.
    """

    def __init__(
        self, model: nn.Module, classes: int, micro_batch: int = 500, watch: Callable[[Door], None] | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.classes = classes
        self.micro_batch = micro_batch
        self.watch = watch
        self.forwards = 0
        self.backwards = 0
        self.said = ""

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
        parts = [self._count(part) for part in x.split(self.micro_batch)]
        logits = parts[0] if len(parts) == 1 else torch.cat(parts)
        if logits.shape != (len(x), self.classes):
            raise AttackError(f"the model returned {tuple(logits.shape)}; expected logits {(len(x), self.classes)}")
        bad = int((~logits.detach().isfinite()).any(1).sum())
        if bad:
            raise AttackError(f"the model returned NaN or infinite logits for {bad} of {len(x)} images")
        if self.watch is not None:
            self.watch(self)
        return logits

    def _count(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        logits: Tensor = self.model(x)
        if logits.requires_grad and x.requires_grad:
            count = len(x)
            logits.register_hook(lambda _gradient: self._backward(count))
        return logits

    def _backward(self, count: int) -> None:
        self.backwards += count


class _Plain(torch.autograd.Function):
    """The identity, whose gradient is laid out plainly: some attacks from elsewhere cannot read any other layout."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous()
