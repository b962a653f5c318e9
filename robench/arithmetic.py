"""What networks compute with while they train: precision, the twin that attacks ask, and compiled encoders."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from robench.device import exhausted
from robench.errors import UsageError, first_line
from robench.models import Nets
from robench.recipe import Recipe
from robench.twin import Twin

Compile = Callable[..., Any]


def check_precision(recipe: Recipe, device: torch.device) -> None:
    """Refuse a precision that the device does not have.

    Raises:
        UsageError: naming the device.
    """
    if recipe.precision == "float32" or device.type == "cpu":
        return
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"device {device.type}"
    raise UsageError(f"precision={recipe.precision}: {name} has no bfloat16 arithmetic; use --precision float32")


class Arithmetic:
    """How the networks of one stage compute while they train; outside `applied` they compute as everywhere, in float32.

    Args:
        nets: with every head of the stage.
        recipe: whose precision, and whether attacks ask a twin with folded normalisations.
        trial: the shape of a batch to try the compiled encoder on; None compiles nothing.
        compiler: what compiles.
        tile: do wide convolutions of the twin in tiles, where that pays (`robench.winograd`).

    Attributes:
        told: what a checkpoint's provenance should say: whether encoders are compiled, or why that failed.
    """

    def __init__(
        self,
        nets: Nets,
        recipe: Recipe,
        trial: tuple[int, ...] | None = None,
        compiler: Compile = torch.compile,
        *,
        tile: bool = True,
    ) -> None:
        self._nets = nets
        self._precision = getattr(torch, recipe.precision)
        self._compiler: Compile | None = None
        self.told: dict[str, str] = {}
        if trial is not None:
            failed = _trial(nets, self._precision, trial, compiler)
            self._compiler = None if failed else compiler
            self.told["compile"] = f"failed: {failed}" if failed else "yes"
        nets.precision = self._precision
        tile = tile and self._compiler is None  # a compiled encoder does as its compiler thinks best
        asked = recipe.fold or self._compiler
        self._twin = Twin(nets, fold=recipe.fold, adapt=self._adapted, tile=tile) if asked else None
        nets.precision = torch.float32
        self._call = self._compiler(nets.encoder._call_impl) if self._compiler else None

    def _adapted(self, encoder: nn.Module) -> nn.Module:
        if self._compiler is not None:
            encoder._compiled_call_impl = self._compiler(encoder._call_impl)
        return encoder

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the networks compute so."""
        nets = self._nets
        nets.precision, nets.twin = self._precision, self._twin
        nets.encoder._compiled_call_impl = self._call
        try:
            yield
        finally:
            nets.precision, nets.twin = torch.float32, None
            nets.encoder._compiled_call_impl = None


def _trial(nets: Nets, precision: torch.dtype, shape: tuple[int, ...], compiler: Compile) -> str:
    """Compile a copy of an encoder and take a gradient through it: why that fails, or nothing."""
    encoder = copy.deepcopy(nets.encoder).train().requires_grad_(True)
    device = next(encoder.parameters()).device
    x = nets.entrance(torch.zeros(shape, device=device))
    try:
        with torch.autocast(device.type, precision, enabled=precision is not torch.float32):
            compiler(encoder._call_impl)(x).sum().backward()
    except Exception as error:  # of the compiler, of the C++ compiler it calls, or for lack of one
        if exhausted(error):
            raise
        return f"{type(error).__name__}: {first_line(error)}"[:200]
    return ""
