"""Convolutions in tiles: the same function and the same gradient, up to rounding, and only where that can be."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robench import winograd
from robench.models import build_nets
from robench.twin import Twin
from robench.winograd import Tiled, Workspace, fits, pays


def answers(convolve: object, x: Tensor) -> tuple[Tensor, Tensor]:
    """What a convolution says, and the gradient of a sum that weighs each answer by its own number."""
    x = x.detach().requires_grad_()
    found = convolve(x)  # type: ignore[operator]
    weights = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).view(found.shape)
    (gradient,) = torch.autograd.grad((found * weights).sum(), x)
    return found.detach(), gradient


def far(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b).norm() / b.norm()).item()


def slow(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x.double(), weight.double(), bias.double(), padding=1)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 5),
    inputs=st.integers(1, 7),
    outputs=st.integers(1, 7),
    down=st.integers(1, 3),
    across=st.integers(1, 3),
    together=st.sampled_from([1, 300, 1 << 19]),
    seed=st.integers(0, 99),
)
def test_tiles_are_the_convolution(
    n: int, inputs: int, outputs: int, down: int, across: int, together: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, inputs, 4 * down, 4 * across, generator=draw)
    weight = torch.randn(outputs, inputs, 3, 3, generator=draw)
    bias = torch.randn(outputs, generator=draw)
    tiled = Tiled(Workspace())
    tiled.refresh(weight)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "TOGETHER", together)  # one image at once, a few, all
        found = answers(lambda x: tiled(x, bias), x)
    expected = answers(lambda x: slow(x, weight, bias), x.double())
    assert far(found[0], expected[0]) < 1e-5
    assert far(found[1], expected[1]) < 1e-5


@pytest.mark.parametrize("numbers", [(0, 1, 0), (1, 0, 1)])
def test_another_weight_and_another_batch_leave_nothing_behind(numbers: tuple[int, ...]) -> None:
    workspace = Workspace()
    one, other = Tiled(workspace), Tiled(workspace)
    for number in numbers:
        draw = torch.Generator().manual_seed(number)
        first, second = torch.randn(2, 3, 3, 3, generator=draw), torch.randn(5, 2, 3, 3, generator=draw)
        one.refresh(first)
        other.refresh(second)
        x = torch.randn(number + 1, 3, 4 + 4 * number, 8, generator=draw).to(memory_format=torch.channels_last)
        biases = torch.randn(2, generator=draw), torch.randn(5, generator=draw)
        assert (
            far(other(one(x, biases[0]).relu_(), biases[1]), slow(slow(x, first, biases[0]).relu(), second, biases[1]))
            < 1e-5
        )


def test_only_what_is_cut_into_tiles_is_done_so() -> None:
    wide = winograd.FEWEST
    assert pays(nn.Conv2d(wide, wide, 3, padding=1))
    others = [
        nn.Conv2d(wide, wide, 3, padding=1, stride=2),
        nn.Conv2d(wide, wide, 3, padding=1, groups=2),
        nn.Conv2d(wide, wide, 3, padding=2, dilation=2),
        nn.Conv2d(wide, wide, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(wide, wide, 3),
        nn.Conv2d(wide, wide, 1),
        nn.Conv2d(wide // 2, wide, 3, padding=1),
        nn.Conv2d(wide, wide, 3, padding=1, dtype=torch.bfloat16),
    ]
    assert not any(map(pays, others))
    assert fits(torch.zeros(1, 1, 8, 12))
    assert not fits(torch.zeros(1, 1, 8, 10))
    assert not fits(torch.zeros(1, 1, 8, 8, dtype=torch.float64))


@pytest.mark.parametrize("size", [32, 24])  # whose last layers are 4x4, and 3x3: no whole tile
def test_a_twin_in_tiles_answers_as_the_network_before_and_after_a_step(size: int) -> None:
    torch.manual_seed(0)
    nets = build_nets("resnet18@width=16", (3, size, size), "cifar10", normalise=True)
    nets.parts["head"] = nn.Linear(nets.encoder.features, 10)
    for _ in range(3):
        nets(torch.rand(16, 3, size, size))
    twin = Twin(nets, tile=True)
    assert twin.tiles == 3  # of width 128, stride 1
    x = torch.rand(5, 3, size, size)
    for _ in range(2):
        found, expected = answers(twin.current(), x), answers(nets.eval(), x)
        assert far(found[0], expected[0].double()) < 5e-5
        assert far(found[1], expected[1].double()) < 5e-4
        with torch.no_grad():
            for parameter in nets.parameters():
                parameter.mul_(1.1)


def test_a_search_and_another_precision_have_no_tiles() -> None:
    nets = build_nets("resnet18@width=16", (3, 32, 32), "cifar10", normalise=False)
    assert Twin(nets).tiles == 0
    nets.precision = torch.bfloat16
    assert Twin(nets, tile=True).tiles == 0
