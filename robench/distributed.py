"""Several processes that train one model, as torchrun starts them: who this one is, and what they tell each other.

Everything here is also right for one process alone, where nothing is sent. Reductions keep gradients: with the loss of each
process a mean over its own images, and gradients of weights averaged over processes as DDP does it, loss and gradient are those
of one process that holds the whole batch.
"""

from __future__ import annotations

import datetime
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from robench.errors import RobenchError, UsageError

TIMEOUT = datetime.timedelta(minutes=30)  # which the first process may take to validate and write


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this one."""
    return dist.get_rank() if world() > 1 else 0


def leads() -> bool:
    """Whether this is the process that writes and talks."""
    return rank() == 0


@contextmanager
def joined(device: Callable[[], torch.device]) -> Iterator[torch.device]:
    """Inside, this process is one of those that torchrun started; alone, nothing happens.

    Args:
        device: finds the device, which is this process's own GPU where it is a GPU.

    Raises:
        UsageError: if there are more processes on this machine than GPUs.
    """
    size, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    found = device()
    if size < 2:
        yield found
        return
    if found.type == "cuda":
        if local >= torch.cuda.device_count():
            raise UsageError(
                f"process {local} of this machine finds {torch.cuda.device_count()} GPUs: --nproc-per-node "
                f"{torch.cuda.device_count()}, or --device cpu"
            )
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if found.type == "cuda" else "gloo", timeout=TIMEOUT)
    yield found
    barrier()
    gc.collect()  # DDP must be gone before the group it talks through
    dist.destroy_process_group()


def barrier() -> None:
    """Wait for all."""
    if world() > 1:
        dist.barrier()


@contextmanager
def first() -> Iterator[bool]:
    """The first process runs the block while the others skip it; they wait for it, and end if it was refused.

    Yields:
        Whether this is the first, which is to do the work.

    Raises:
        RobenchError: in the others, if the first raised anything.
    """
    if world() == 1:
        yield True
        return
    failed = True
    try:
        yield leads()
        failed = False
    finally:
        flag = agreed(torch.tensor([float(failed)]))
        if not failed and flag[0]:
            raise RobenchError("another process of this training was refused; it says why")


def agreed(flags: Tensor) -> list[float]:
    """The largest of what each process says, for each of some numbers."""
    if world() > 1:
        flags = flags.to(_device())
        dist.all_reduce(flags, dist.ReduceOp.MAX)
    return [float(value) for value in flags.tolist()]


def own(ids: Tensor) -> Tensor:
    """This process's part of the images of a step, in their order."""
    part = len(ids) // world()
    return ids[rank() * part : (rank() + 1) * part]


def gathered(x: Tensor) -> Tensor:
    """The rows of all processes, in their order; gradients find their way back."""
    return _Gather.apply(x) if world() > 1 else x


def summed(x: Tensor) -> Tensor:
    """The sum over processes; gradients find their way back."""
    return _Sum.apply(x) if world() > 1 else x


def meant(values: Sequence[Tensor]) -> list[Tensor]:
    """Scalars whose values are the mean over processes, and whose gradients are this one's own."""
    if world() == 1:
        return list(values)
    total = torch.stack([value.detach() for value in values])
    dist.all_reduce(total)
    return [value + (mean - value.detach()) for value, mean in zip(values, total / world(), strict=True)]


class _Gather(torch.autograd.Function):
    """Concatenates; the gradient of a row is the sum of what all processes make of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """All rows."""
        ctx.count = len(x)
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """The part of the sum that is about this process's rows."""
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total[rank() * ctx.count : (rank() + 1) * ctx.count]


class _Sum(torch.autograd.Function):
    """Adds; what each process put in counts for all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The sum."""
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """The sum of the gradients."""
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
