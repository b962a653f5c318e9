"""Weight averaging: a running mean of everything that learns, which is what is judged and kept."""

from __future__ import annotations

import torch
from torch import Tensor

from robench.models import Nets
from robench.recipe import Average


class Averaged:
    """The average of the weights and running statistics of networks, beside them.

        ema, after each step:  mean <- d mean + (1 - d) weights, with d = min(decay, (1 + n) / (10 + n)) after n averaged steps
        swa, after each epoch: mean <- mean + (weights - mean) / (n + 1)

    Running statistics of normalisations are averaged like weights; counters are those of the networks.

    Args:
        nets: in training.
        spec: how to average, and from which epoch on.

    Source: Izmailov et al. 2018, "Averaging weights leads to wider optima"; for adversarial training Gowal et al. 2020,
        section 4.3. The rising decay is the usual one, so that early weights are forgotten.
    Differs: Izmailov et al. compute the statistics of the averaged network anew in a pass over the training images.
    """

    def __init__(self, nets: Nets, spec: Average) -> None:
        self._nets, self._spec = nets, spec
        self._mean = {name: tensor.detach().clone() for name, tensor in nets.state_dict().items()}
        self._count = 0
        self._exchanged = False

    @torch.no_grad()
    def _take(self, share: float) -> None:
        """Move the mean by a share of the way to the weights of this moment."""
        now = self._nets.state_dict()
        floats = [name for name, tensor in now.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self._mean[name] for name in floats], [now[name] for name in floats], share)
        self._count += 1

    def after_step(self, epoch: int) -> None:
        """Take in the weights after a step in an epoch, counted from 0."""
        if self._spec.name == "ema" and epoch >= self._spec.start:
            decay = min(self._spec.decay, (1 + self._count) / (10 + self._count)) if self._count else 0.0
            self._take(1 - decay)

    def after_epoch(self, epoch: int) -> None:
        """Take in the weights at the end of an epoch, counted from 0."""
        if self._spec.name == "swa" and epoch >= self._spec.start:
            self._take(1 / (self._count + 1))

    @torch.no_grad()
    def exchange(self) -> None:
        """Let networks and average change places; before anything is averaged, nothing does."""
        if self._count:
            self._exchanged = not self._exchanged
            for name, tensor in self._nets.state_dict().items():
                if tensor.is_floating_point():
                    kept = tensor.clone()
                    tensor.copy_(self._mean[name])
                    self._mean[name].copy_(kept)

    def state(self) -> dict[str, Tensor | int]:
        """Everything a resumed run needs, together with the networks as they are."""
        return {**self._mean, "averaged": self._count, "exchanged": int(self._exchanged)}

    def load(self, state: dict[str, Tensor | int]) -> None:
        """Go on from a saved state, with the networks as they were when it was saved."""
        self._count = int(state["averaged"])
        for name, tensor in self._mean.items():
            saved = state[name]
            assert isinstance(saved, Tensor)
            tensor.copy_(saved)
        self._exchanged = bool(state["exchanged"])
        if self._exchanged:
            self.exchange()
