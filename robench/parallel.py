"""A method whose batch is spread over processes: DDP averages its gradients, normalisations see the whole batch.

The attack inside a method is run on the networks themselves while no weight asks for a gradient, so DDP's hooks do not fire.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MethodType
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from robench import distributed
from robench.errors import UsageError
from robench.models import Nets
from robench.protocols import Batch, Method, Moment, Terms


class Shared:
    """A method over a batch of which each process has a part; in all else it is the method itself.

    Args:
        method: whose terms are means over images, or compare images through `losses`.
        nets: what it trains, with gradients asked for where weights are to move.
    """

    def __init__(self, method: Method, nets: Nets) -> None:
        self._method = method
        synchronise(nets)
        self._step = DistributedDataParallel(_Loss(method, nets), broadcast_buffers=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    def terms(self, nets: Nets, batch: Batch, at: Moment) -> Terms:
        """The terms of the whole batch, with this process's gradients."""
        terms: Mapping[str, Tensor] = self._step(batch, at)
        measured: Mapping[str, Tensor] = getattr(terms, "measured", {})
        values = distributed.meant([*terms.values(), *measured.values()])
        return Terms(
            dict(zip(terms, values[: len(terms)], strict=True)),
            dict(zip(measured, values[len(terms) :], strict=True)),
        )


def shared(method: Method, nets: Nets) -> Method:
    """The method for this process: itself where there is one alone."""
    return cast(Method, Shared(method, nets)) if distributed.world() > 1 else method


def check(number: int, name: str, method: Method, batch: int, parts: int = 1) -> None:
    """Refuse a stage that cannot be spread.

    Args:
        number: of the stage.
        name: of its method.
        method: the same.
        batch: images a step.
        parts: into how many parts they are cut for lack of memory.

    Raises:
        UsageError: if the processes do not divide the batch, or a part of it.
    """
    world = distributed.world()
    if world == 1 or getattr(method, "exact", False):
        return
    sizes = sorted({len(part) for part in torch.arange(batch).chunk(parts)})
    if any(size % world for size in sizes):
        common = math.gcd(*sizes)
        fitting = ", ".join(str(count) for count in range(1, min(common, 64) + 1) if common % count == 0)
        what = f"a batch of {batch}" + (f" in {parts} parts (of {' and '.join(map(str, sizes))})" if parts > 1 else "")
        whole = max(batch // (world * parts), 1) * world * parts
        raise UsageError(
            f"stage {number} ({name}): {world} processes do not divide {what}: use {fitting} processes, or "
            f"--set stage.{number}.batch={whole}, which is another run"
        )


def check_compiled(compiled: bool) -> None:
    """Refuse to compile where several processes train.

    Raises:
        UsageError: if both are asked for.
    """
    if compiled and distributed.world() > 1:
        raise UsageError(
            "--compile is for one process: normalisations that ask other processes are not compiled. Leave it away, or leave "
            "torchrun out"
        )


def synchronise(nets: nn.Module) -> None:
    """Make every batch normalisation in train mode normalise by the images of all processes; state and class stay."""
    for module in nets.modules():
        if isinstance(module, _BatchNorm):
            module.forward = MethodType(_normalised, module)  # type: ignore[method-assign]


def _normalised(norm: _BatchNorm, x: Tensor) -> Tensor:
    """What a batch normalisation makes of x, by the mean and variance over all processes in train mode.

    Differs: torch's SyncBatchNorm does this on GPUs only, and in float32; this is also right on CPUs and in float64.
    """
    if not norm.training:
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
    over = [0, *range(2, x.dim())]
    shape = (1, -1, *(1 for _ in range(x.dim() - 2)))
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    count = x.numel() // x.shape[1] * distributed.world()
    mean = distributed.summed(wide.sum(over)) / count
    apart = wide - mean.view(shape)
    variance = distributed.summed(apart.square().sum(over)) / count
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        with torch.no_grad():
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked += 1
            share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean.detach().to(norm.running_mean.dtype), share)
            unbiased = variance.detach() * (count / max(count - 1, 1))
            norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), share)
    found = apart * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        found = found * norm.weight.view(shape) + norm.bias.view(shape)
    return found.to(x.dtype)


class _Loss(nn.Module):
    """A method with its networks as one module, so that DDP sees every pass of a step."""

    def __init__(self, method: Method, nets: Nets) -> None:
        super().__init__()
        self.nets = nets
        self._method = method

    def forward(self, batch: Batch, at: Moment) -> Mapping[str, Tensor]:
        """The terms over this process's images."""
        return self._method.terms(self.nets, batch, at)
