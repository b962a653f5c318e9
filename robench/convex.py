"""Softmax regression solved to convergence: the linear classifier that a set of features determines."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from robench.errors import TrainingError, UsageError


@dataclass(frozen=True)
class Fit:
    """A solution.

    Attributes:
        weight: (classes, d), float64.
        bias: (classes,), float64.
        loss: mean cross-entropy, without the penalty.
        gradient: the largest absolute entry of the objective's gradient there; zero at the exact minimum.
        rounds: how often the objective was computed.
    """

    weight: Tensor
    bias: Tensor
    loss: float
    gradient: float
    rounds: int


def softmax_regression(
    x: Tensor, y: Tensor, classes: int, *, weight_decay: float, tolerance: float = 1e-7, most: int = 10_000
) -> Fit:
    """The minimum of  mean cross-entropy(x W' + b, y) + weight_decay / 2 * |W|^2, by L-BFGS in float64.

    The problem is strictly convex in W, so the answer depends on no starting point, step size or order of images. The bias
    is not penalised; of its minima, which differ by a constant, that with mean zero is returned.

    Args:
        x: features, (n, d).
        y: labels, (n,).
        classes: how many there are.
        weight_decay: the penalty, above 0.
        tolerance: the largest entry of the gradient to accept.
        most: evaluations of the objective to try.

    Raises:
        UsageError: if weight_decay is not above 0, without which separable classes have no minimum.
        TrainingError: if the tolerance is not reached.
    """
    if not weight_decay > 0:
        raise UsageError(f"weight_decay must be above 0 for an exact linear head, not {weight_decay}; 1e-4 is small")
    centre = x.double().mean(0)
    x = x.double() - centre  # else the bias and the mean of the features trade places, slowly
    # one number that makes weights and bias equally steep, whatever the size of features and penalty
    scale = (x.square().mean() + weight_decay * classes).sqrt()
    weight = torch.zeros(classes, x.shape[1], dtype=x.dtype, device=x.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=x.dtype, device=x.device, requires_grad=True)
    rounds, reached = 0, float("inf")

    def slope() -> Tensor:
        nonlocal rounds, reached
        rounds += 1
        with torch.enable_grad():
            real = weight / scale
            value = F.cross_entropy(x @ real.T + bias, y) + weight_decay / 2 * real.square().sum()
            weight.grad, bias.grad = torch.autograd.grad(value, (weight, bias))
        reached = max((weight.grad * scale).abs().max().item(), bias.grad.abs().max().item())
        return value

    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=most,
        max_eval=most,
        history_size=20,
        tolerance_grad=tolerance / max(1.0, scale.item()),
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )
    solver.step(slope)
    value = slope().item()
    if not reached <= tolerance:
        raise TrainingError(
            f"the linear head did not converge in {rounds:,} evaluations (gradient {reached:.1e}, wanted {tolerance:.0e}): "
            "raise the option weight_decay"
        )
    found = weight.detach() / scale
    shift = bias.detach() - found @ centre
    return Fit(found, shift - shift.mean(), value - weight_decay / 2 * found.square().sum().item(), reached, rounds)
