"""One step of training: the gradient of a method's terms, over one batch or its parts, and the move along it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robench.average import Averaged
from robench.models import Nets
from robench.optimiser import optimiser_for
from robench.protocols import Batch, Method, Moment
from robench.recipe import Stage


class Stepper:
    """What moves the weights of a stage, and averages them where the stage says so.

    Args:
        stage: with optimiser, schedule and average.
        nets: in training.
        learning: the parameters that move.
    """

    def __init__(self, stage: Stage, nets: Nets, learning: list[nn.Parameter]) -> None:
        self._stage = stage
        self.optimiser = optimiser_for(stage.optimiser, learning)
        self._average = Averaged(nets, stage.average) if stage.average.name != "none" else None

    def rate(self, epoch: float) -> None:
        """Set the learning rate of a moment, in epochs."""
        rate = self._stage.schedule.rate(epoch, self._stage.epochs)
        for group in self.optimiser.param_groups:
            group["lr"] = self._stage.optimiser.lr * rate

    def step(
        self,
        method: Method,
        nets: Nets,
        parts: Sequence[Callable[[], Batch]],
        at: Moment,
        note: Callable[[Tensor], None] = lambda loss: None,
    ) -> dict[str, Tensor]:
        """Move the weights once.

        Args:
            method: whose terms to lower.
            nets: the networks.
            parts: makes each part of the batch, which may differ in size by one image at most; usually one.
            at: the moment.
            note: told the loss of each part before anything moves.

        Returns:
            The terms and what was measured, detached: the mean over images, on the device.
        """
        self.optimiser.zero_grad(set_to_none=True)
        found: dict[str, Tensor] = {}
        sizes: list[int] = []
        for make in parts:
            batch = make()
            sizes.append(len(batch.y))
            terms = method.terms(nets, batch, at)
            loss = torch.stack(list(terms.values())).sum()
            note(loss)
            (loss if len(parts) == 1 else loss * len(batch.y)).backward()
            for name, term in {**terms, **getattr(terms, "measured", {})}.items():
                weighed = term.detach() if len(parts) == 1 else term.detach() * len(batch.y)
                found[name] = found[name] + weighed if name in found else weighed
        if len(parts) > 1:
            gradients = [p.grad for group in self.optimiser.param_groups for p in group["params"] if p.grad is not None]
            torch._foreach_div_(gradients, float(sum(sizes)))
            found = {name: total / sum(sizes) for name, total in found.items()}
        self.optimiser.step()
        if self._average is not None:
            self._average.after_step(at.epoch)
        return found

    def after_epoch(self, epoch: int) -> None:
        """An epoch, counted from 0, has ended."""
        if self._average is not None:
            self._average.after_epoch(epoch)

    def exchange(self) -> None:
        """Put what is validated and kept, the average where there is one, into the networks; again, to train on."""
        if self._average is not None:
            self._average.exchange()

    def finish(self) -> None:
        """The stage has ended: what is judged is what the next stage begins with."""
        if self._average is not None:
            self._average.exchange()

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs."""
        found: dict[str, Any] = self.optimiser.state_dict()
        return found if self._average is None else {**found, "average": self._average.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.optimiser.load_state_dict({name: value for name, value in state.items() if name != "average"})
        if self._average is not None:
            self._average.load(state["average"])
