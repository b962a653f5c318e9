"""Optimisers by name: SGD from torch, and LARS."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from robench.recipe import Optimiser


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose step for each tensor is scaled by the ratio of its norm to its gradient's.

        rate = trust * |w| / (|g| + weight_decay * |w| + 1e-8), or 1 where |w| or |g| is 0
        m <- momentum * m + rate * (g + weight_decay * w);  w <- w - lr * m

    Args:
        parameters: tensors to move; every tensor is scaled, biases and norms too.
        lr: learning rate.
        momentum: of the running step.
        weight_decay: pull towards zero, added to the gradient before scaling.
        trust: the coefficient of the ratio.

    Source: You et al. 2017; details as in torchlars 0.1.2, which RoCL's code uses.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every tensor that has a gradient; nothing is read back from the device."""
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            gradients = [p.grad for p in weights]
            sizes, slopes = torch._foreach_norm(weights), torch._foreach_norm(gradients)
            decay, trust = group["weight_decay"], group["trust"]
            rates = [
                torch.where((w > 0) & (g > 0), trust * w / (g + decay * w + 1e-8), 1.0)
                for w, g in zip(sizes, slopes, strict=True)
            ]
            moves = torch._foreach_add(gradients, weights, alpha=decay)
            torch._foreach_mul_(moves, rates)
            for weight in weights:
                if "momentum_buffer" not in self.state[weight]:
                    self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
            buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, moves)
            torch._foreach_add_(weights, buffers, alpha=-group["lr"])


def optimiser_for(spec: Optimiser, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser a stage asks for; on a GPU torch's fused SGD, one kernel for all tensors."""
    common: dict[str, Any] = {"lr": spec.lr, "momentum": spec.momentum, "weight_decay": spec.weight_decay}
    if spec.name == "lars":
        return LARS(parameters, **common)
    fused = bool(parameters) and all(parameter.is_cuda for parameter in parameters)
    return torch.optim.SGD(parameters, nesterov=spec.nesterov, fused=fused or None, **common)
