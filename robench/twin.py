"""The frozen twin of networks in training, which attacks inside training ask in their place.

It shares the storage of every weight and running statistic, asks for no weight gradient, is in eval mode whatever the
networks are in, and its batch normalisations are folded into the convolutions before them. In eval mode a normalisation is an
affine map with constants, so folding changes logits and gradients by rounding alone. With the statistics of the batch it is
none: there the networks themselves are asked. On a CPU wide convolutions of 3x3 may be done in tiles (`robench.winograd`).
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from robench.door import frozen
from robench.models import Encoder, Nets, Stem
from robench.winograd import Tiled, Workspace, fits, pays

Adapt = Callable[[nn.Module], nn.Module]


@contextmanager
def attacked(nets: Nets, *, training: bool = False) -> Iterator[Nets]:
    """The networks as an attack inside training should see them: in eval mode, frozen, and their twin where they have one.

    Args:
        nets: in training.
        training: attack with the statistics of the batch, which no twin can, and which then move.
    """
    if nets.twin is None or training:
        with frozen(nets, training=training):
            yield nets
    else:
        yield nets.twin.current()


class Twin:
    """A frozen stand-in for networks, good as long as they keep their tensors: not after a move or a new head.

    Args:
        nets: whose weights it follows.
        fold: whether to fold normalisations, where the encoder can be traced.
        adapt: makes of its encoder what is asked, such as a compiled one.
        tile: do folded convolutions in tiles where that pays. How logits are rounded then depends on the batch, which
            training may and a search, whose answers must not, may not.

    Attributes:
        nets: the twin itself.
        folds: how many normalisations are folded.
        tiles: how many of the convolutions are done in tiles.
    """

    def __init__(
        self, nets: Nets, *, fold: bool = True, adapt: Adapt = lambda encoder: encoder, tile: bool = False
    ) -> None:
        shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in nets.parameters()}
        shared |= {id(buffer): buffer for buffer in nets.buffers()}
        shared[id(nets.counter)] = nets.counter
        assert nets.twin is None
        self.nets: Nets = copy.deepcopy(nets, shared).eval()
        encoder = folded(self.nets.encoder, nets.precision, tile=tile) if fold else self.nets.encoder
        self._convolutions = [module for module in encoder.modules() if isinstance(module, Folded)]
        self.folds = len(self._convolutions)
        self.tiles = sum(convolution.tiled is not None for convolution in self._convolutions)
        self.nets.encoder = cast(Encoder, adapt(encoder))

    @torch.no_grad()
    def current(self) -> Nets:
        """The twin with the weights and statistics of this moment."""
        for convolution in self._convolutions:
            convolution.refresh()
        return self.nets


class Folded(nn.Module):
    """A convolution and the eval-mode normalisation behind it as one convolution with a bias.

    Args:
        convolution: whose weights to follow.
        norm: what follows it.
        precision: of its own weights; those of a stem stay float32.
        workspace: to do it in tiles, where that pays.

    Attributes:
        tiled: what does it in tiles.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self, convolution: nn.Conv2d, norm: nn.BatchNorm2d, precision: torch.dtype, workspace: Workspace | None = None
    ) -> None:
        super().__init__()
        self._sources = convolution, norm  # in a tuple, so that they are no parts of this module
        self.stem = isinstance(convolution, Stem)
        like = convolution.weight
        kind = like.dtype if self.stem or precision is torch.float32 else precision
        self.register_buffer("weight", torch.empty_like(like, dtype=kind))
        self.register_buffer("bias", torch.empty(len(like), dtype=kind, device=like.device))
        plain = workspace is not None and kind is torch.float32 and not self.stem and pays(convolution)
        self.tiled = Tiled(workspace) if workspace is not None and plain else None
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the weights and statistics of this moment."""
        convolution, norm = self._sources
        assert norm.running_var is not None
        assert norm.running_mean is not None
        scale = (norm.running_var + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight
        before = -norm.running_mean if convolution.bias is None else convolution.bias - norm.running_mean
        self.weight.copy_(convolution.weight * scale[:, None, None, None])
        self.bias.copy_(before * scale if norm.bias is None else before * scale + norm.bias)
        if self.tiled is not None:
            self.tiled.refresh(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, as a stem in float32."""
        if not (self.stem and torch.is_autocast_enabled(x.device.type)):
            return self._convolve(x)
        with torch.autocast(x.device.type, enabled=False):
            return self._convolve(x)

    def _convolve(self, x: Tensor) -> Tensor:
        if self.tiled is not None and fits(x):
            return self.tiled(x, self.bias)
        like = self._sources[0]
        return F.conv2d(x, self.weight, self.bias, like.stride, like.padding, like.dilation, like.groups)


def folded(encoder: nn.Module, precision: torch.dtype = torch.float32, *, tile: bool = False) -> nn.Module:
    """An encoder in eval mode with its normalisations folded; itself where it cannot be traced or has nothing to fold.

    Only a normalisation whose sole input is a convolution that nobody else reads is folded, and only where each is called
    once; all others stay as they are.

    Args:
        encoder: in eval mode, parameters frozen.
        precision: of the folded weights.
        tile: do wide convolutions in tiles.
    """
    try:
        graph = _Tracer().trace(encoder)
    except Exception:  # whatever a stranger's code does when it meets symbols instead of images
        return encoder
    modules = dict(encoder.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    parts: dict[str, Any] = {}
    workspace = Workspace() if tile else None
    for node in list(graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        convolution, norm = modules[str(before.target)], modules[str(node.target)]
        if _foldable(convolution, norm) and calls[before.target] == calls[node.target] == 1:
            parts[str(before.target)] = Folded(convolution, norm, precision, workspace)
            node.replace_all_uses_with(before)
            graph.erase_node(node)
    if not parts:
        return encoder
    root = fx.GraphModule(encoder, graph)
    for name, part in parts.items():
        root.set_submodule(name, part)
    root.features = encoder.features
    return root.eval()


class _Tracer(fx.Tracer):
    """Looks into everything but single layers, stems among them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module stays a call."""
        return isinstance(m, nn.Conv2d) or super().is_leaf_module(m, module_qualified_name)


def _foldable(convolution: nn.Module, norm: nn.Module) -> bool:
    """Whether these are exactly a convolution and a normalisation with running statistics, with nothing hung on them."""
    plain = type(convolution) in (nn.Conv2d, Stem) and type(norm) is nn.BatchNorm2d and norm.track_running_stats
    hooks = any(
        getattr(module, name)
        for module in (convolution, norm)
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    )
    return plain and not hooks and convolution.padding_mode == "zeros"
