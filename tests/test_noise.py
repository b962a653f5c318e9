"""Noise: an image's draws depend on (seed, image, position) and on nothing else."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robench.noise import ImageGenerator, normal, permutation, seed_of, uniform

FEW = settings(deadline=None, derandomize=True, max_examples=25)
DRAWS = pytest.mark.parametrize("draw", [uniform, normal])
Draw = Callable[..., Tensor]

seeds = st.integers(0, 2**63 - 1)
images = st.lists(st.integers(0, 2**40), min_size=1, max_size=6, unique=True)


def drawn(draw: Draw, seed: int, ids: list[int], shape: tuple[int, ...] = (3, 4)) -> Tensor:
    return draw(ImageGenerator(seed, ids), (len(ids), *shape), "cpu")


@FEW
@given(seeds, images)
def test_uniform_lies_in_the_half_open_interval(seed: int, ids: list[int]) -> None:
    found = drawn(uniform, seed, ids)
    assert found.dtype == torch.float32
    assert (found >= 0).all()
    assert (found < 1).all()


@DRAWS
@FEW
@given(seed=seeds, ids=images, data=st.data())
def test_draws_belong_to_the_image(draw: Draw, seed: int, ids: list[int], data: st.DataObject) -> None:
    # neither the order of a batch, nor who else is in it, nor its size changes what an image gets
    together = dict(zip(ids, drawn(draw, seed, ids), strict=True))
    some = data.draw(st.permutations(ids))[: data.draw(st.integers(1, len(ids)))]
    for image, row in zip(some, drawn(draw, seed, some), strict=True):
        assert torch.equal(row, together[image])


@DRAWS
def test_each_draw_is_a_new_one(draw: Draw) -> None:
    generator = ImageGenerator(1, [5, 6])
    first, second = draw(generator, (2, 50), "cpu"), draw(generator, (2, 50), "cpu")
    assert not torch.isclose(first, second, rtol=0, atol=1e-6).all(1).any()


def test_two_small_draws_continue_like_one_large() -> None:
    generator = ImageGenerator(1, [5])
    parts = [uniform(generator, (1, 3), "cpu"), uniform(generator, (1, 4), "cpu")]
    assert torch.equal(torch.cat(parts, 1), uniform(ImageGenerator(1, [5]), (1, 7), "cpu"))


@FEW
@given(seeds, seeds, st.integers(0, 2**40), st.integers(0, 2**40))
def test_other_images_and_other_seeds_get_other_draws(one: int, two: int, this: int, that: int) -> None:
    first, second = drawn(uniform, one, [this]), drawn(uniform, two, [that])
    assert torch.equal(first, second) == ((one, this) == (two, that))


def test_no_two_numbers_of_many_images_are_one() -> None:
    hashes = ImageGenerator(0, range(2000)).bits(50)
    assert len(hashes.unique()) == hashes.numel()


@pytest.mark.parametrize("seed", [0, 1, seed_of("attack", 3)])
def test_uniform_has_the_mean_and_variance_of_its_name(seed: int) -> None:
    found = uniform(ImageGenerator(seed, range(500)), (500, 400), "cpu").double()
    # 200,000 numbers: five standard errors of the mean, and of the variance (1/180 per number)
    assert abs(found.mean() - 1 / 2) < 5 * (1 / 12 / found.numel()) ** 0.5
    assert abs(found.var() - 1 / 12) < 5 * (1 / 180 / found.numel()) ** 0.5


@pytest.mark.parametrize("seed", [0, 1, seed_of("attack", 3)])
def test_normal_has_the_mean_and_variance_of_its_name(seed: int) -> None:
    found = normal(ImageGenerator(seed, range(500)), (500, 400), "cpu").double()
    assert found.isfinite().all()
    assert abs(found.mean()) < 5 * (1 / found.numel()) ** 0.5
    assert abs(found.var() - 1) < 5 * (2 / found.numel()) ** 0.5
    assert abs((found.abs() < 1).double().mean() - 0.6827) < 0.006


def test_neighbouring_images_and_positions_are_uncorrelated() -> None:
    found = uniform(ImageGenerator(0, range(400)), (400, 400), "cpu") - 0.5
    for first, second in ((found[1:], found[:-1]), (found[:, 1:], found[:, :-1])):
        assert abs((first * second).mean() * 12) < 5 * first.numel() ** -0.5


def test_uniform_fills_every_corner() -> None:
    counts = torch.histc(uniform(ImageGenerator(0, range(100)), (100, 1000), "cpu"), 20, 0, 1)
    assert (counts - 5000).abs().max() < 5 * (5000 * 0.95) ** 0.5


def test_it_is_a_plain_generator_too() -> None:
    plain = torch.rand(5, generator=torch.Generator().manual_seed(9))
    assert torch.equal(torch.rand(5, generator=ImageGenerator(9, [1, 2])), plain)
    assert ImageGenerator(9, [1]).initial_seed() == 9


def test_a_plain_generator_serves_as_well() -> None:
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(uniform(generator, (2, 3), "cpu"), torch.rand(2, 3, generator=torch.Generator().manual_seed(3)))
    assert normal(generator, (2, 3), "cpu").isfinite().all()


@DRAWS
def test_the_global_generator_is_not_touched(draw: Draw) -> None:
    before = torch.get_rng_state()
    drawn(draw, 0, [1, 2])
    permutation(0, 10)
    assert torch.equal(torch.get_rng_state(), before)


def test_ids_may_be_a_tensor() -> None:
    same = [uniform(ImageGenerator(0, ids), (3, 2), "cpu") for ids in ([4, 2, 9], torch.tensor([4, 2, 9]))]
    assert torch.equal(*same)


def test_draws_never_change() -> None:
    # SplitMix64, in Python's own integers: results already stored depend on these numbers
    golden, mask = 0x9E3779B97F4A7C15, 2**64 - 1

    def mix(value: int) -> int:
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
        return value ^ (value >> 31)

    seed, image = seed_of(0, "pgd-20"), 12
    key = mix((image * golden + seed) & mask)
    expected = [(mix((key + position * golden) & mask) >> 40) * 2.0**-24 for position in range(1, 6)]
    assert uniform(ImageGenerator(seed, [image]), (1, 5), "cpu")[0].tolist() == expected


def test_seeds_tell_their_parts_apart() -> None:
    seeds = [seed_of(0, "a", 1), seed_of(0, "a", 2), seed_of(0, "b", 1), seed_of(0, "a1"), seed_of("0", "a", 1)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_permutation_is_one() -> None:
    order = permutation(5, 100)
    assert torch.equal(order.sort().values, torch.arange(100))
    assert torch.equal(order, permutation(5, 100))
    assert not torch.equal(order, permutation(6, 100))
