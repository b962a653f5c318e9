"""Plain transcriptions of the official training loops, written from their formulas: what our steps are measured against.

Each does what the method's official loop does at every step, and keeps its costs: attacks that collect weight gradients
(PGD-AT), clean logits computed at every attack step and again for the loss (TRADES), the constant target encoded at every
attack step (RoCL), float32, NCHW, eager, losses read after each step. TRADES and RoCL attack in eval mode, as released.
PGD-AT has two: as released, which attacks in train mode and looks twice more (`pgd_at_released`), and the bare formula with
our recipe's attack in eval mode (`pgd_at`). Reading and augmenting images is in none.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

EPS, STEP = 8 / 255, 2 / 255


def pgd_at(nets: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: int = 10) -> float:
    """min over weights of the mean cross-entropy at x + delta, delta by signed gradient ascent in the ball.

    Source: Madry et al. 2018, eq. 2.1; as Wong et al.'s and Rice et al.'s loops do, `loss.backward()` in the attack.
    """
    nets.eval()
    delta = torch.empty_like(x).uniform_(-EPS, EPS)
    delta = (x + delta).clamp(0, 1) - x
    for _ in range(steps):
        delta.requires_grad_()
        F.cross_entropy(nets(x + delta), y).backward()
        assert delta.grad is not None
        delta = (delta.detach() + STEP * delta.grad.sign()).clamp(-EPS, EPS)
        delta = (x + delta).clamp(0, 1) - x
    nets.train()
    loss = F.cross_entropy(nets(x + delta), y)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.item()


def pgd_at_released(
    nets: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: int = 10
) -> tuple[float, float, int]:
    """The same with what Rice et al.'s loop does besides: train mode throughout, the loss of each image at the end of the
    attack (of one restart, so that all are kept), and after the step a look at the clean images, which is logged.

    Source: Rice et al. 2020, released training loop.
    """
    nets.train()
    delta = torch.empty_like(x).uniform_(-EPS, EPS)
    delta = torch.max(torch.min(delta, 1 - x), -x).requires_grad_()
    for _ in range(steps):
        F.cross_entropy(nets(x + delta), y).backward()
        assert delta.grad is not None
        moved = (delta.detach() + STEP * delta.grad.sign()).clamp(-EPS, EPS)
        delta.data = torch.max(torch.min(moved, 1 - x), -x)
        delta.grad.zero_()
    worst = F.cross_entropy(nets(x + delta), y, reduction="none")
    kept = torch.where((worst >= 0)[:, None, None, None], delta.detach(), torch.zeros_like(x))
    logits = nets((x + kept).clamp(0, 1))
    loss = F.cross_entropy(logits, y)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    clean = F.cross_entropy(nets(x), y)
    return loss.item(), clean.item(), int((logits.argmax(1) == y).sum())


def trades(nets: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: int = 10) -> float:
    """Cross-entropy(f(x), y) + 6 KL(f(x) || f(adv)); clean logits anew wherever they are needed.

    Source: Zhang et al. 2019, eq. 5 and algorithm 1.
    """
    kl = nn.KLDivLoss(reduction="sum")
    nets.eval()
    adv = x + 0.001 * torch.randn_like(x)
    for _ in range(steps):
        adv.requires_grad_()
        value = kl(F.log_softmax(nets(adv), 1), F.softmax(nets(x), 1))
        (gradient,) = torch.autograd.grad(value, [adv])
        adv = adv.detach() + STEP * gradient.sign()
        adv = torch.min(torch.max(adv, x - EPS), x + EPS).clamp(0, 1)
    nets.train()
    optimiser.zero_grad()
    natural = F.cross_entropy(nets(x), y)
    robust = kl(F.log_softmax(nets(adv), 1), F.softmax(nets(x), 1)) / len(x)
    loss = natural + 6 * robust
    loss.backward()
    optimiser.step()
    return loss.item()


def similarity(z: Tensor, n: int, temperature: float = 0.5) -> Tensor:
    """NT-Xent over views of n images, (views * n, d): the sum over an anchor's partners of -log of its softmax share."""
    z = F.normalize(z, dim=1)
    s = torch.exp(z @ z.detach().T / temperature)
    s = s * (1 - torch.eye(len(z), device=z.device))
    total = torch.zeros((), device=z.device)
    for shift in range(1, len(z) // n):
        positive = torch.diag(s.roll(-shift * n, 1))
        total = total - torch.log(positive / s.sum(1)).sum()
    return total / len(z)


def rocl(
    project: Callable[[Tensor], Tensor],
    nets: nn.Module,
    optimiser: torch.optim.Optimizer,
    x: Tensor,
    target: Tensor,
    steps: int = 7,
) -> float:
    """Three-view contrastive loss with an instance-wise attack on x, and 1/256 of that between adversary and target.

    The second term asks for the adversary's gradient too, which nobody uses, as the released code does.

    Source: Kim et al. 2020, eq. 4 to 6 and algorithm 1.
    """
    n = len(x)
    nets.eval()
    adv = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1)
    for _ in range(steps):
        adv.requires_grad_()
        value = similarity(project(torch.cat([adv, target])), n)
        (gradient,) = torch.autograd.grad(value, [adv])
        adv = adv.detach() + STEP * gradient.sign()
        adv = torch.min(torch.max(adv, x - EPS), x + EPS).clamp(0, 1)
    nets.train()
    optimiser.zero_grad()
    regulariser = similarity(project(torch.cat([adv.requires_grad_(), target])), n)
    loss = similarity(project(torch.cat([x, target, adv.detach()])), n) + regulariser / 256
    loss.backward()
    optimiser.step()
    return loss.item()


class LARS(torch.optim.SGD):
    """SGD whose gradient is scaled tensor by tensor by the ratio of norms, read on the host; You et al. 2017."""

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Scale, then step."""
        for group in self.param_groups:
            for weight in (p for p in group["params"] if p.grad is not None):
                size, slope = weight.norm().item(), weight.grad.norm().item()
                if size and slope:
                    weight.grad.mul_(0.001 * size / (slope + group["weight_decay"] * size + 1e-8))
        super().step()
