"""Augmentation: torchvision's arithmetic with torchvision's parameters, and draws that belong to the image."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from robench import augment
from robench.noise import ImageGenerator
from robench.recipe import Augment

FEW = settings(deadline=None, derandomize=True, max_examples=15)
SPECS = [
    Augment("none"),
    Augment("crop-flip"),
    Augment("crop-flip", flip=False, pad=1),
    Augment("simclr"),
    Augment("simclr", flip=False, area=0.5, jitter=0.8, hue=0.5, grey=1.0),
]


def images(n: int, channels: int = 3, height: int = 8, width: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(seed))


def one_by_one(operation: Callable[..., Tensor], x: Tensor, values: Tensor) -> Tensor:
    """What torchvision makes of each image with its own parameter."""
    return torch.stack([operation(image, value.item()) for image, value in zip(x, values, strict=True)])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@FEW
@given(st.lists(st.floats(0, 2, width=32), min_size=1, max_size=5), st.integers(0, 99))
def test_colours_change_as_in_torchvision(name: str, channels: int, factors: list[float], seed: int) -> None:
    x, factor = images(len(factors), channels, seed=seed), torch.tensor(factors)
    expected = one_by_one(getattr(reference, f"adjust_{name}"), x, factor)
    which = ("brightness", "contrast", "saturation").index(name)
    factors_of_all = torch.ones(len(x), 3)
    factors_of_all[:, which] = factor
    order = torch.tensor([3, 2, 1, 0]).expand(len(x), 4)
    colours = augment.Colours.ordered(factors_of_all, torch.zeros(len(x)), order, channels)
    assert (colours.of(x) - (x if channels == 1 and which == 2 else expected)).abs().max() <= 2e-6


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_colours_come_in_the_order_of_the_image(order: tuple[int, ...], channels: int) -> None:
    x, generator = images(6, channels), torch.Generator().manual_seed(sum(o * 4**i for i, o in enumerate(order)))
    factor = 0.6 + 0.8 * torch.rand(6, 3, generator=generator)
    turn = torch.rand(6, generator=generator) - 0.5
    colours = augment.Colours.ordered(factor, turn, torch.tensor(order).expand(6, 4), channels)
    expected = x
    names = ("brightness", "contrast", "saturation", "hue")
    for which in order if channels == 3 else [o for o in order if o < 2]:
        values = turn if which == 3 else factor[:, which]
        expected = one_by_one(getattr(reference, f"adjust_{names[which]}"), expected, values)
    assert (colours.of(x) - expected).abs().max() <= 1e-5
    if channels == 3:  # only its own blends, where the place of the hue is known
        assert torch.equal(colours.of(x, order.index(3)), colours.of(x))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_views_of_many_images_are_those_of_few(spec: Augment) -> None:
    # many are sorted by what they want, on a CPU
    x = images(5 * augment.CACHED)
    many = augment.augment(x, spec, ImageGenerator(0, range(len(x))))
    few = [augment.augment(x[i : i + 10], spec, ImageGenerator(0, range(i, i + 10))) for i in range(0, len(x), 10)]
    assert torch.equal(many, torch.cat(few))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_bytes_give_the_views_of_their_floats(spec: Augment) -> None:
    pixels = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    views = [
        augment.augment(x, spec, ImageGenerator(0, range(40))) for x in (pixels, pixels.to(torch.float32).div(255))
    ]
    assert torch.equal(*views)


def test_views_ask_the_device_nothing() -> None:
    # a tensor without data, as a device that has not computed yet: whoever asks it for a number fails
    class Far(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = function.overloadpacket.__name__
            assert name not in ("_local_scalar_dense", "item", "nonzero", "masked_select", "unique2"), name
            return function(*args, **(kwargs or {}))

    x = images(8)
    x.requires_grad_()  # on a CPU, where asking costs nothing, images in a graph go the way of other devices
    with Far():
        for spec in SPECS:
            augment.augment(x, spec, ImageGenerator(0, range(8)))


def test_grey_is_torchvisions() -> None:
    x = images(4)
    assert (augment.grey(x) - reference.rgb_to_grayscale(x)).abs().max() <= 1e-6


@FEW
@given(st.lists(st.floats(-0.5, 0.5, width=32), min_size=1, max_size=5), st.integers(0, 99))
def test_hue_turns_as_in_torchvision(turns: list[float], seed: int) -> None:
    x, turn = images(len(turns), seed=seed), torch.tensor(turns)
    assert (augment.rotate_hue(x, turn) - one_by_one(reference.adjust_hue, x, turn)).abs().max() <= 1e-5


def test_a_gradient_goes_through_the_hue() -> None:
    x = images(2)[:, :, :3, :3].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment.rotate_hue(x, torch.tensor([0.2, -0.3]).double()), x)


@pytest.mark.parametrize("turn", [0.0, 0.1, -0.3, 0.5])
def test_hue_of_pure_and_grey_colours(turn: float) -> None:
    # ties between channels are where formulas for hue go wrong
    colours = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, 1.0])] * 3)
    x = colours.T.reshape(1, 3, 3, 9)
    expected = reference.adjust_hue(x, turn)
    assert (augment.rotate_hue(x, torch.tensor([turn])) - expected).abs().max() <= 1e-5


def boxes(height: int, width: int) -> Any:
    def within(size: int) -> Any:
        return st.integers(1, size).flatmap(lambda length: st.tuples(st.integers(0, size - length), st.just(length)))

    return st.lists(st.tuples(within(height), within(width)), min_size=1, max_size=5)


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (6, 11)])
@FEW
@given(st.data(), st.integers(0, 99))
def test_a_resized_crop_is_torchvisions(size: tuple[int, int], data: st.DataObject, seed: int) -> None:
    cut = data.draw(boxes(*size))
    x = images(len(cut), 3, *size, seed=seed)
    top, high = (torch.tensor([float(box[0][k]) for box in cut]) for k in (0, 1))
    left, wide = (torch.tensor([float(box[1][k]) for box in cut]) for k in (0, 1))
    expected = torch.stack(
        [
            reference.resized_crop(
                image, *(box[0][0], box[1][0], box[0][1], box[1][1]), list(size), InterpolationMode.BILINEAR, False
            )
            for image, box in zip(x, cut, strict=True)
        ]
    )
    assert (augment.crop_resize(x, top, left, high, wide) - expected).abs().max() <= 1e-5


def test_the_whole_image_is_a_crop_that_changes_nothing() -> None:
    x = images(2, 3, 8, 6)
    full = augment.crop_resize(x, torch.zeros(2), torch.zeros(2), torch.full((2,), 8.0), torch.full((2,), 6.0))
    assert torch.equal(full, x)


@pytest.mark.parametrize("pad", [0, 1, 4])
def test_a_shift_is_a_slice_of_the_padded_image(pad: int) -> None:
    x = images(200, 2, 5, 7)
    moved = augment.shift(x, pad, ImageGenerator(0, range(200)))
    padded = F.pad(x, (pad,) * 4)
    slices = {
        (row, column): padded[:, :, row : row + 5, column : column + 7]
        for row in range(2 * pad + 1)
        for column in range(2 * pad + 1)
    }
    same = torch.stack([(moved == part).flatten(1).all(1) for part in slices.values()])
    assert same.any(0).all()
    # every place is used, the corners too
    assert same.any(1).sum() >= 0.8 * len(slices)


def test_about_half_the_images_flip() -> None:
    x = images(1000, 1, 4, 4)
    flipped = augment.flip(x, ImageGenerator(0, range(1000)))
    turned = (flipped == x.flip(3)).flatten(1).all(1)
    assert ((flipped == x).flatten(1).all(1) ^ turned).all()
    assert 420 < turned.sum() < 580


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_views_have_the_shape_and_range_of_images(spec: Augment, channels: int) -> None:
    x = images(64, channels)
    copy = x.clone()
    view = augment.augment(x, spec, ImageGenerator(0, range(64)))
    assert view.shape == x.shape
    assert view.dtype == x.dtype
    assert view.min() >= 0
    assert view.max() <= 1
    assert torch.equal(x, copy)
    assert torch.equal(view, x) == (spec.name == "none")


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_black_and_white_stay_in_range(spec: Augment) -> None:
    x = images(64).round()
    view = augment.augment(x, spec, ImageGenerator(1, range(64)))
    assert view.min() >= 0
    assert view.max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_view_does_not_depend_on_the_batch(spec: Augment, channels: int) -> None:
    x = images(9, channels)
    whole = augment.augment(x, spec, ImageGenerator(0, range(9)))
    some = torch.tensor([7, 0, 4])
    assert (augment.augment(x[some], spec, ImageGenerator(0, some)) - whole[some]).abs().max() <= 1e-6
    alone = torch.cat([augment.augment(x[i : i + 1], spec, ImageGenerator(0, [i])) for i in range(9)])
    assert (alone - whole).abs().max() <= 1e-6


def test_two_views_of_an_image_differ() -> None:
    x = images(16)
    one, other = (augment.augment(x, Augment("simclr"), ImageGenerator(seed, range(16))) for seed in (0, 1))
    assert (one != other).flatten(1).any(1).all()


def test_grey_views_come_as_often_as_asked() -> None:
    x = images(1000)
    view = augment.augment(x, Augment("simclr", grey=0.2), ImageGenerator(0, range(1000)))
    grey = (view.amax(1) - view.amin(1)).flatten(1).amax(1) < 1e-6
    assert 140 < grey.sum() < 260


def test_crops_have_the_areas_and_shapes_asked_for() -> None:
    # the slope of a ramp tells how large the box was, and its value in the middle where
    n, area = 500, 0.3
    across = torch.linspace(0, 1, 32).expand(n, 1, 32, 32)
    x = torch.cat([across, across.mT], 1)
    view = augment.crop_resize(x, *augment.box(x, area, ImageGenerator(0, range(n))))
    wide = (view[:, 0, 16, 20] - view[:, 0, 16, 12]) * 31 * 4
    high = (view[:, 1, 20, 16] - view[:, 1, 12, 16]) * 31 * 4
    share, ratio = wide * high / 32**2, wide / high
    # a box has whole pixels, so its area may differ a little from what was drawn
    assert share.min() > area * 0.9
    assert share.max() <= 1 + 1e-3
    assert ratio.min() > 0.75 * 0.9
    assert ratio.max() < 4 / 3 / 0.9
    assert share.min() < area + 0.1
    assert share.max() > 0.9
    # and lies anywhere: some small boxes touch each edge, where the ramp begins or ends
    small = share < 0.6
    for edge in (view[:, 0, 16, 0], view[:, 0, 16, -1], view[:, 1, 0, 16], view[:, 1, -1, 16]):
        assert 0 < ((edge < 1e-6) | (edge > 1 - 1e-6))[small].sum() < small.sum()
