"""A linear model whose worst case inside ball and box is computable, the yardstick of every attack."""

from functools import cache

import numpy
import torch
from torch import Tensor, nn

from robench.threat import Norm, ThreatModel


def images(n: int, seed: int = 1) -> Tensor:
    """Random pixels, a third of them exactly black or white."""
    return (torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 1.5 - 0.25).clamp(0, 1)


def linear(classes: int) -> nn.Sequential:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, classes, bias=False))
    model[1].weight.data = torch.randn(classes, 64, generator=torch.Generator().manual_seed(0))
    return model.eval()


def highest_rise(w: numpy.ndarray, x: numpy.ndarray, threat: ThreatModel) -> float:
    """The maximum of w . delta over the ball and [0, 1], in float64."""
    room = numpy.where(w > 0, 1 - x, x)
    if threat.norm is Norm.LINF:  # each pixel goes eps along its sign, or as far as it can
        move = numpy.minimum(threat.eps, room)
    elif threat.norm is Norm.L1:  # the pixels that count most go first, until the budget is spent
        move, left = numpy.zeros_like(w), threat.eps
        for i in numpy.argsort(-abs(w)):
            move[i] = min(room[i], left)
            left -= move[i]
    else:  # along w, cut by the box, as far as the length allows
        low, high = 0.0, 1e6
        for _ in range(100):
            middle = (low + high) / 2
            inside = numpy.linalg.norm(numpy.minimum(middle * abs(w), room)) <= threat.eps
            low, high = (middle, high) if inside else (low, middle)
        move = numpy.minimum(low * abs(w), room)
    return float((abs(w) * move).sum())


@cache
def truth(classes: int, text: str, n: int) -> tuple[Tensor, Tensor]:
    """For each image: the margin with which the best perturbation fools `linear`, and the rise it takes (two classes)."""
    model, x, threat = linear(classes), images(n).double(), ThreatModel.parse(text)
    w = model[1].weight.detach().double()
    logits = x.flatten(1) @ w.T
    y = logits.argmax(1)
    margins, rises = [], []
    for i, image in enumerate(x.flatten(1).numpy()):
        others = [k for k in range(classes) if k != y[i]]
        found = [highest_rise((w[k] - w[y[i]]).numpy(), image, threat) for k in others]
        margins.append(
            max(rise + (logits[i, k] - logits[i, y[i]]).item() for rise, k in zip(found, others, strict=True))
        )
        rises.append(max(found))
    return torch.tensor(margins), torch.tensor(rises)
