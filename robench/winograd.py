"""Convolutions of 3x3 in tiles: a quarter of the multiplications, for the frozen twins that attacks inside training ask.

A tile of 4x4 outputs reads 6x6 inputs. Both sides become polynomials, known by their values at six points: there a
convolution is a product, so that 36 products do for each pair of channels what takes 144 otherwise. With all channels and
tiles at once those are 36 matrix products, with two small ones before and after. The answer is that of the convolution up to
rounding: about 1e-5 of the largest output in float32, ten times that of the convolution itself and a thousandth of bfloat16's.

Source: Lavin & Gray 2016, "Fast algorithms for convolutional neural networks", section 4.3: F(4x4, 3x3), points 0, 1, -1, 2, -2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

TILE, READ = 4, 6
TOGETHER = 1 << 19  # numbers of an image batch worked on at once, so that what is made of them stays in a cache
FEWEST = 128  # channels from which it pays; below, moving tiles takes what the products save

_INPUT = torch.tensor(
    [
        [4.0, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_WEIGHT = torch.tensor(
    [[6.0, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64
) / torch.tensor([[24.0], [24], [24], [24], [24], [24]], dtype=torch.float64)
_OUTPUT = torch.tensor([[1.0, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])


class Workspace:
    """Memory that is written again and again, so that no operation has to ask the system for some."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}
        self._padded: dict[tuple[int, ...], Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Room of a shape, with anything in it, until the same name is taken again."""
        size = torch.Size(shape).numel()
        if name not in self._held or self._held[name].numel() < size:
            self._held[name] = torch.empty(size)
        return self._held[name][:size].view(shape)

    def padded(self, *shape: int) -> Tensor:
        """Room of a shape (n, height, width, channels) whose border of one pixel is zero and stays so."""
        if shape not in self._padded:
            self._padded[shape] = torch.zeros(shape)
        return self._padded[shape]


class Tiled:
    """The values at all points of a convolution's kernel, for its answers and for the gradient of its inputs.

    Args:
        workspace: shared by convolutions that follow each other.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._ahead, self._back = torch.empty(0), torch.empty(0)
        self._into = torch.kron(_INPUT, _INPUT)
        self._out = torch.kron(_OUTPUT, _OUTPUT)
        self._kernel = torch.kron(_WEIGHT, _WEIGHT).float()

    @torch.no_grad()
    def refresh(self, weight: Tensor) -> None:
        """Take over a kernel, (outputs, inputs, 3, 3)."""
        outputs, inputs = weight.shape[:2]
        if self._ahead.numel() != READ * READ * outputs * inputs:
            self._ahead = weight.new_empty(READ * READ, inputs, outputs)
            self._back = weight.new_empty(READ * READ, outputs, inputs)
        ahead = weight.permute(2, 3, 1, 0).reshape(9, -1)
        back = weight.flip(2, 3).permute(2, 3, 0, 1).reshape(9, -1)
        torch.mm(self._kernel, ahead, out=self._ahead.view(READ * READ, -1))
        torch.mm(self._kernel, back, out=self._back.view(READ * READ, -1))

    def __call__(self, x: Tensor, bias: Tensor) -> Tensor:
        """The convolution of images, (n, inputs, height, width), both sides multiples of 4, with one pixel of padding."""
        found: Tensor = _Convolution.apply(x, bias, self)
        return found

    def convolve(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The answers, or without a bias the gradient of the inputs by that of the answers; laid out channels-last."""
        values = self._back if bias is None else self._ahead
        n, inputs, height, width = x.shape
        outputs = values.shape[2]
        found = torch.empty(n, outputs, height, width, memory_format=torch.channels_last)
        pixels, places = x.permute(0, 2, 3, 1), found.permute(0, 2, 3, 1)
        count = max(1, TOGETHER // (height * width * max(inputs, outputs)))
        for part, place in zip(pixels.split(count), places.split(count), strict=True):
            self._part(part, values, bias, place)
        return found

    def _part(self, x: Tensor, values: Tensor, bias: Tensor | None, found: Tensor) -> None:
        n, height, width, inputs = x.shape
        outputs = values.shape[2]
        down, across = height // TILE, width // TILE
        take, tiles = self._workspace.take, n * down * across
        padded = self._workspace.padded(n, height + 2, width + 2, inputs)
        padded[:, 1:-1, 1:-1].copy_(x)
        image, row, column, channel = padded.stride()
        read = take("read", READ, READ, n, down, across, inputs)
        read.copy_(padded.as_strided(read.shape, (row, column, image, TILE * row, TILE * column, channel)))
        points = take("points", READ * READ, tiles * inputs)
        torch.mm(self._into, read.view(READ * READ, -1), out=points)
        products = take("products", READ * READ, tiles, outputs)
        torch.bmm(points.view(READ * READ, tiles, inputs), values, out=products)
        answers = take("read", TILE, TILE, n, down, across, outputs)
        torch.mm(self._out, products.view(READ * READ, -1), out=answers.view(TILE * TILE, -1))
        answers = answers.permute(2, 3, 0, 4, 1, 5)
        place = found.view(n, down, TILE, across, TILE, outputs)
        if bias is None:
            place.copy_(answers)
        else:
            torch.add(answers, bias, out=place)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, tiled: Tiled) -> Tensor:
        ctx.tiled = tiled
        return tiled.convolve(x, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.tiled.convolve(gradient, None), None, None


def pays(convolution: nn.Conv2d) -> bool:
    """Whether a convolution can be done in tiles, and is faster so."""
    shape = convolution.kernel_size, convolution.stride, convolution.dilation, convolution.padding, convolution.groups
    weight = convolution.weight
    fits = shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1) and convolution.padding_mode == "zeros"
    return fits and min(weight.shape[:2]) >= FEWEST and weight.device.type == "cpu" and weight.dtype is torch.float32


def fits(x: Tensor) -> bool:
    """Whether images are cut into whole tiles."""
    return x.shape[2] % TILE == 0 and x.shape[3] % TILE == 0 and x.dtype is torch.float32
