"""Random noise as an attack: its distributions, and the manners of an attack."""

import math
from typing import TypeAlias

import pytest
import torch
from oracle import images, linear, truth
from torch import Tensor

from robench.attacks.noise import GaussianNoise, RandomNoise
from robench.errors import UsageError
from robench.geometry import norm_of
from robench.noise import ImageGenerator
from robench.threat import Norm, ThreatModel

Noise: TypeAlias = type[RandomNoise] | type[GaussianNoise]
NORMS = ("linf-0.03", "l2-0.3", "l1-1")
BOTH = pytest.mark.parametrize("cls", [RandomNoise, GaussianNoise])
ROUNDING = {Norm.LINF: 1e-7, Norm.L2: 1e-6, Norm.L1: 1e-5}


def stubborn(x: Tensor) -> Tensor:
    """A model that never errs on label 0."""
    return torch.tensor([1.0, 0.0], dtype=x.dtype).expand(len(x), 2)


def noise_of(cls: Noise, text: str, n: int, channels: int = 1, side: int = 8, tries: int = 1) -> Tensor:
    """What an attack adds to grey images, which leave it all the room there is."""
    x = torch.full((n, channels, side, side), 0.5)
    y = torch.zeros(n, dtype=torch.int64)
    adv = cls(ThreatModel.parse(text), tries=tries)(stubborn, x, y, generator=ImageGenerator(0, range(n)))
    return (adv - x).flatten(1)


@BOTH
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("text", NORMS)
def test_noise_does_no_more_than_can_be_done(cls: Noise, text: str, classes: int) -> None:
    margin, _ = truth(classes, text, 300)
    model, x = linear(classes), images(300)
    y = model(x).argmax(1)
    adv = cls(ThreatModel.parse(text))(model, x, y, generator=ImageGenerator(0, range(300)))
    broken = model(adv).argmax(1) != y
    assert not (broken & (margin < -1e-5)).any()
    assert broken.sum() >= 5  # those that nearly any change breaks: measured 13 to 76


def test_corners_are_fair_coins() -> None:
    found = noise_of(RandomNoise, "linf-0.1", 500)
    assert torch.allclose(found.abs(), torch.tensor(0.1), atol=1e-6)
    assert (found > 0).double().mean().item() == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(found.numel()))


@pytest.mark.parametrize("text", ["l2-0.3", "l1-1"])
def test_points_are_uniform_on_the_sphere(text: str) -> None:
    threat = ThreatModel.parse(text)
    found = noise_of(RandomNoise, text, 2000)
    assert torch.allclose(norm_of(found, threat.norm), torch.tensor(threat.eps), rtol=1e-4)
    # coordinates average 0 and are not correlated; their mean squares are those of the uniform law on the sphere
    d = 64
    square = {Norm.L2: 1 / d, Norm.L1: 2 / (d * (d + 1))}[threat.norm]
    scaled = found.double() / threat.eps
    assert scaled.square().mean().item() == pytest.approx(square, rel=0.05)
    assert scaled.mean(0).abs().max() < 5 * math.sqrt(square / 2000)
    assert (scaled.T @ scaled / 2000 - square * torch.eye(d)).abs().max() < 8 * square / math.sqrt(2000) * 3


@pytest.mark.parametrize(("text", "size"), [("l2-0.3", 0.3), ("l1-1", 1.0)])
def test_gaussian_noise_has_about_the_radius(text: str, size: float) -> None:
    # the projection cuts what is above: of noise spread by s about eps the mean loses 0.4 s, here 0.09 eps
    found = norm_of(noise_of(GaussianNoise, text, 500), ThreatModel.parse(text).norm)
    assert 0.95 * size < found.mean() < size


def test_gaussian_noise_in_linf_is_cut_at_two_deviations() -> None:
    found = noise_of(GaussianNoise, "linf-0.1", 500).double() / 0.1
    cut = (found.abs() > 1 - 1e-6).double().mean().item()
    assert cut == pytest.approx(math.erfc(2 / math.sqrt(2)), abs=0.005)
    inside = found[found.abs() < 0.999]
    assert (inside.abs() < 0.5).double().mean().item() * (1 - cut) == pytest.approx(
        math.erf(1 / math.sqrt(2)), abs=0.01
    )


@BOTH
@pytest.mark.parametrize("text", [*NORMS, "linf-0", "l2-0", "l1-0", "linf-1e-6", "l2-1e-6", "linf-1", "l2-10", "l1-10"])
@pytest.mark.parametrize(("channels", "classes", "dtype"), [(1, 2, torch.float32), (3, 3, torch.float64)])
def test_noise_has_manners(cls: Noise, text: str, channels: int, classes: int, dtype: torch.dtype) -> None:
    threat = ThreatModel.parse(text)
    x = images(12).repeat(1, channels, 1, 1).to(dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(classes, x[0].numel(), generator=torch.Generator().manual_seed(0)).to(dtype)
    asked = []

    def model(z: Tensor) -> Tensor:
        asked.append(len(z))
        return z.flatten(1) @ weight.T

    y = model(x).argmax(1)
    y[:2] = (y[:2] + 1) % classes
    before, attack = x.clone(), cls(threat, tries=5)
    asked.clear()
    adv = attack(model, x, y, generator=ImageGenerator(0, range(12)))
    assert sum(asked) <= 12 * attack.cost(classes)[0]
    assert len(asked) <= attack.cost(classes)[0]
    assert (adv.shape, adv.dtype, adv.requires_grad) == (x.shape, dtype, False)
    assert adv.min() >= 0
    assert adv.max() <= 1
    assert norm_of(adv.double() - x.double(), threat.norm).max() <= threat.eps * (1 + 1e-5) + ROUNDING[threat.norm]
    assert torch.equal(x, before)
    assert torch.equal(adv[:2], x[:2])  # wrong from the start


@BOTH
@pytest.mark.parametrize("text", NORMS)
def test_an_image_gets_the_same_noise_in_any_batch_and_order(cls: Noise, text: str) -> None:
    model, x, attack = linear(4), images(20), cls(ThreatModel.parse(text), tries=5)
    y = model(x).argmax(1)
    whole = attack(model, x, y, generator=ImageGenerator(3, range(20)))
    for ids in torch.randperm(20, generator=torch.Generator().manual_seed(0)).split(7):
        part = attack(model, x[ids], y[ids], generator=ImageGenerator(3, ids))
        assert torch.equal(part, whole[ids])


@BOTH
def test_more_tries_never_unbreak_an_image(cls: Noise) -> None:
    model, x = linear(4), images(200)
    y = model(x).argmax(1)
    once, more = (
        model(cls(ThreatModel.parse("l2-0.3"), tries=tries)(model, x, y, generator=ImageGenerator(0, range(200))))
        .argmax(1)
        .ne(y)
        for tries in (1, 20)
    )
    assert not (once & ~more).any()
    assert more.sum() > once.sum()


@BOTH
def test_no_tries_are_refused(cls: Noise) -> None:
    with pytest.raises(UsageError, match=r"tries \(0\) must be at least 1"):
        cls(ThreatModel.parse("l2-0.3"), tries=0)
