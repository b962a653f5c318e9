"""Geometry: projections against a slow float64 reference, steps of unit length, starts inside the ball."""

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robench.geometry import norm_of, project, random_start, steepest
from robench.noise import ImageGenerator
from robench.threat import Norm, ThreatModel

FEW = settings(deadline=None, derandomize=True, max_examples=40)
NORMS = pytest.mark.parametrize("norm", Norm)
ORDER = {Norm.LINF: numpy.inf, Norm.L2: 2, Norm.L1: 1}
RADII = [1e-6, 1e-3, 8 / 255, 0.5, 1.0, 10.0]


def allowed(norm: Norm, eps: float) -> ThreatModel:
    return ThreatModel(norm, min(eps, 1.0) if norm is Norm.LINF else eps)


def images(seed: int, n: int = 6, d: int = 48, border: bool = True) -> Tensor:
    """Random pixels, a third of them exactly black or white."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, d // 12, 4, generator=generator)
    return (x * 1.5 - 0.25).clamp(0, 1) if border else x


def noise(like: Tensor, seed: int, scale: float) -> Tensor:
    return scale * torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


def nearest(point: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """The Euclidean projection on ball and box, one image at a time in float64, by bisection on the multiplier.

    l2 minimises |z - p|^2 + m |z - x|^2 over the box: z = clip((p + m x) / (1 + m)). l1 minimises |z - p|^2 / 2 +
    m |z - x|_1 over the box: z = clip(x + soft(p - x, m)). In both the distance to x falls as m grows.
    """
    found = []
    for p, c in zip(point.double().flatten(1).numpy(), x.double().flatten(1).numpy(), strict=True):

        def at(m: float, p: numpy.ndarray = p, c: numpy.ndarray = c) -> numpy.ndarray:
            if threat.norm is Norm.L2:
                return numpy.clip((p + m * c) / (1 + m), 0, 1)
            return numpy.clip(c + numpy.sign(p - c) * numpy.maximum(abs(p - c) - m, 0), 0, 1)

        def size(m: float, c: numpy.ndarray = c, at=at) -> float:
            return float(numpy.linalg.norm(at(m) - c, ORDER[threat.norm]))

        low, high = 0.0, 1.0
        if size(low) <= threat.eps:
            high = 0.0
        while size(high) > threat.eps:
            high *= 2
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if size(middle) > threat.eps else (low, middle)
        found.append(at(high))
    return torch.from_numpy(numpy.stack(found)).view(point.shape)


def check_inside(adv: Tensor, x: Tensor, threat: ThreatModel) -> None:
    # float32 pixels near 1 are 6e-8 apart, which is what may be added to each of them
    rounding = {Norm.LINF: 6e-8, Norm.L2: 6e-8 * x[0].numel() ** 0.5, Norm.L1: 6e-8 * x[0].numel()}[threat.norm]
    assert adv.isfinite().all()
    assert adv.min() >= 0
    assert adv.max() <= 1
    assert norm_of(adv.double() - x.double(), threat.norm).max() <= threat.eps * (1 + 1e-5) + rounding


@NORMS
@FEW
@given(seed=st.integers(0, 1000), eps=st.sampled_from(RADII), scale=st.sampled_from([1e-6, 1e-2, 0.3, 3.0, 1e3]))
def test_a_projection_lies_in_ball_and_box(norm: Norm, seed: int, eps: float, scale: float) -> None:
    x, threat = images(seed), allowed(norm, eps)
    check_inside(project(x + noise(x, seed, scale), x, threat), x, threat)


@NORMS
@FEW
@given(seed=st.integers(0, 1000), eps=st.sampled_from(RADII), scale=st.sampled_from([1e-2, 0.3, 3.0, 1e3]))
def test_a_second_projection_changes_nothing(norm: Norm, seed: int, eps: float, scale: float) -> None:
    x, threat = images(seed), allowed(norm, eps)
    once = project(x + noise(x, seed, scale), x, threat)
    assert (project(once, x, threat) - once).abs().max() <= 5e-7


@NORMS
@FEW
@given(seed=st.integers(0, 1000), eps=st.sampled_from(RADII[1:]))
def test_points_inside_stay(norm: Norm, seed: int, eps: float) -> None:
    x, threat = images(seed), allowed(norm, eps)
    delta = noise(x, seed, 1.0)
    inside = (x + 0.9 * eps * delta / norm_of(delta, norm).view(-1, 1, 1, 1)).clamp(0, 1)
    assert (project(inside, x, threat) - inside).abs().max() <= 1.2e-7


@pytest.mark.parametrize("norm", [Norm.L2, Norm.L1])
@FEW
@given(
    seed=st.integers(0, 1000),
    eps=st.sampled_from([1e-3, 0.05, 0.5, 2.0, 5.0, 10.0]),
    scale=st.sampled_from([0.01, 0.3, 1.0, 5.0, 50.0]),
)
def test_a_projection_is_the_nearest_point(norm: Norm, seed: int, eps: float, scale: float) -> None:
    x, threat = images(seed), ThreatModel(norm, eps)
    point = x + noise(x, seed, scale)
    # the distance to a far point is itself rounded to a share of 6e-8
    close = 1e-6 + 2e-7 * (point - x).abs().max()
    assert (project(point, x, threat) - nearest(point, x, threat)).abs().max() <= close


@FEW
@given(seed=st.integers(0, 1000), eps=st.sampled_from([0.5, 2.0, 4.0]), slow=st.floats(1.5, 8))
def test_an_l2_projection_is_the_nearest_point_when_pixels_reach_the_border_one_by_one(
    seed: int, eps: float, slow: float
) -> None:
    # moves of very different lengths (a factor of 8^6): every round of the solver finds more pixels at the border
    x = images(seed, border=False)
    sizes = slow ** torch.arange(x[0].numel()).div(8).view(x.shape[1:])
    point = x + noise(x, seed, 0.1).sign() * sizes / sizes.max() * slow**3
    threat = ThreatModel(Norm.L2, eps)
    assert (project(point, x, threat) - nearest(point, x, threat)).abs().max() <= 1e-6


@FEW
@given(seed=st.integers(0, 1000), eps=st.sampled_from([1e-6, 8 / 255, 0.5, 1.0]))
def test_an_linf_projection_clips_each_pixel(seed: int, eps: float) -> None:
    x = images(seed)
    point = x + noise(x, seed, 0.3)
    expected = point.double().clamp(x.double() - eps, x.double() + eps).clamp(0, 1)
    assert (project(point, x, ThreatModel(Norm.LINF, eps)) - expected).abs().max() <= 6e-8


@NORMS
def test_a_ball_of_radius_zero_is_its_centre(norm: Norm) -> None:
    x = images(0)
    assert torch.equal(project(x + noise(x, 0, 1.0), x, ThreatModel(norm, 0.0)), x)
    assert torch.equal(random_start(x, ThreatModel(norm, 0.0), torch.Generator().manual_seed(0)), x)


@NORMS
@pytest.mark.parametrize("eps", [*RADII, 1e3])
def test_a_random_start_lies_in_ball_and_box(norm: Norm, eps: float) -> None:
    x, threat = images(1, n=40), allowed(norm, eps)
    start = random_start(x, threat, ImageGenerator(0, range(40)))
    check_inside(start, x, threat)
    assert (start != x).flatten(1).any(1).all()


@NORMS
def test_a_random_start_is_uniform_in_the_ball(norm: Norm) -> None:
    # the centre of the box: nothing is clipped, so the size over eps is the d-th root of a uniform number
    x, threat = torch.full((4000, 1, 2, 2), 0.5), ThreatModel(norm, 0.4)
    delta = (random_start(x, threat, torch.Generator().manual_seed(0)) - x).double()
    share = (norm_of(delta, norm) / 0.4) ** 4
    assert abs(share.mean() - 0.5) < 5 * (1 / 12 / 4000) ** 0.5
    assert delta.mean((0, 1, 2, 3)).abs() < 5 * delta.std() / delta.numel() ** 0.5


@NORMS
def test_a_random_start_belongs_to_the_image(norm: Norm) -> None:
    x, threat = images(1, n=6), allowed(norm, 0.3)
    whole = random_start(x, threat, ImageGenerator(0, range(6)))
    part = random_start(x[[4, 1]], threat, ImageGenerator(0, [4, 1]))
    assert torch.equal(part, whole[[4, 1]])


@NORMS
@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e-8, 1.0, 1e4, 1e25])
def test_a_step_has_length_one_and_climbs(norm: Norm, scale: float) -> None:
    # a confident model has tiny gradients: shorter steps there would pass its confidence off as robustness
    x = images(0, border=False)
    gradient = noise(x, 0, scale)
    step = steepest(gradient, x, norm)
    assert torch.allclose(norm_of(step, norm), torch.ones(len(x)), atol=1e-5)
    assert ((step * gradient).double().flatten(1).sum(1) > 0).all()


@NORMS
def test_no_gradient_no_step(norm: Norm) -> None:
    x = images(0)
    assert torch.equal(steepest(torch.zeros_like(x), x, norm), torch.zeros_like(x))


def test_an_l1_step_leaves_out_pixels_that_cannot_move() -> None:
    x = images(0)
    gradient = noise(x, 0, 1.0)
    step = steepest(gradient, x, Norm.L1)
    assert not ((step > 0) & (x >= 1)).any()
    assert not ((step < 0) & (x <= 0)).any()
    assert torch.allclose(norm_of(step, Norm.L1), torch.ones(len(x)))


def test_an_l1_step_is_zero_when_nothing_can_move() -> None:
    x = torch.zeros(2, 1, 3, 3)
    assert torch.equal(steepest(-torch.ones_like(x), x, Norm.L1), torch.zeros_like(x))


def test_an_l1_step_with_one_free_pixel_is_that_pixel() -> None:
    x = torch.zeros(1, 1, 10, 10)
    x[0, 0, 3, 4] = 0.5
    step = steepest(-torch.ones_like(x), x, Norm.L1)
    assert step[0, 0, 3, 4] == -1
    assert norm_of(step, Norm.L1).item() == 1


@NORMS
@FEW
@given(st.integers(0, 1000))
def test_norms_are_those_of_numpy(norm: Norm, seed: int) -> None:
    delta = noise(images(seed), seed, 1.0)
    expected = numpy.linalg.norm(delta.double().flatten(1).numpy(), ORDER[norm], axis=1)
    assert numpy.allclose(norm_of(delta, norm).numpy(), expected, rtol=1e-6)


@NORMS
def test_arguments_are_left_as_they_were(norm: Norm) -> None:
    x = images(0)
    point, copies = x + noise(x, 0, 1.0), (x.clone(), x + noise(x, 0, 1.0))
    project(point, x, allowed(norm, 0.5))
    steepest(point, x, norm)
    random_start(x, allowed(norm, 0.5), torch.Generator().manual_seed(0))
    assert torch.equal(x, copies[0])
    assert torch.equal(point, copies[1])
