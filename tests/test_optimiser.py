"""LARS against its formula in plain numbers, and the shape of every schedule."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robench.errors import UsageError
from robench.optimiser import LARS, optimiser_for
from robench.recipe import Optimiser, Schedule

FEW = settings(deadline=None, derandomize=True, max_examples=20)


def length(values: list[float]) -> float:
    return math.sqrt(sum(value * value for value in values))


def slow_step(w: list[float], g: list[float], m: list[float], lr: float, momentum: float, decay: float) -> None:
    """One LARS step of one tensor, in place, as its docstring says."""
    size, slope = length(w), length(g)
    rate = 0.001 * size / (slope + decay * size + 1e-8) if size > 0 and slope > 0 else 1.0
    for i in range(len(w)):
        m[i] = momentum * m[i] + rate * (g[i] + decay * w[i])
        w[i] -= lr * m[i]


@FEW
@given(
    seed=st.integers(0, 99),
    lr=st.sampled_from([0.1, 1.0, 4.8]),
    momentum=st.sampled_from([0.0, 0.9]),
    decay=st.sampled_from([0.0, 1e-6, 0.1]),
)
def test_lars_is_its_formula(seed: int, lr: float, momentum: float, decay: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    # a matrix, a bias, one that begins at zero, one whose gradient is zero
    tensors = [nn.Parameter(torch.randn(3, 2, generator=generator)), nn.Parameter(torch.randn(4, generator=generator))]
    tensors += [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))]
    weights = [tensor.double().flatten().tolist() for tensor in tensors]
    buffers = [[0.0] * len(w) for w in weights]
    optimiser = LARS(tensors, lr=lr, momentum=momentum, weight_decay=decay)
    for _ in range(5):
        for tensor in tensors:
            tensor.grad = torch.randn(tensor.shape, generator=generator)
        tensors[3].grad = torch.zeros(2)
        for tensor, w, m in zip(tensors, weights, buffers, strict=True):
            assert tensor.grad is not None
            slow_step(w, tensor.grad.double().flatten().tolist(), m, lr, momentum, decay)
        optimiser.step()
        for tensor, w in zip(tensors, weights, strict=True):
            assert tensor.flatten().tolist() == pytest.approx(w, rel=1e-5, abs=1e-6)


def test_lars_leaves_tensors_without_a_gradient() -> None:
    moving, still = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    moving.grad = torch.ones(2)
    LARS([moving, still], lr=1.0, weight_decay=0.5).step()
    assert torch.equal(still, torch.ones(2))
    assert (moving < 1).all()


def test_lars_does_not_change_gradients() -> None:
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    LARS([weight], lr=1.0, weight_decay=0.5).step()
    assert torch.equal(weight.grad, torch.ones(2))


def test_lars_goes_on_from_its_state() -> None:
    def run(breaks: bool) -> list[float]:
        weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        optimiser = LARS([weight], lr=0.5)
        for step in range(4):
            if breaks and step == 2:
                state = optimiser.state_dict()
                optimiser = LARS([weight], lr=0.5)
                optimiser.load_state_dict(state)
            weight.grad = torch.tensor([0.3, step + 1.0])
            optimiser.step()
        return weight.tolist()

    assert run(breaks=True) == run(breaks=False)


def test_optimisers_are_found_by_name() -> None:
    weights = [nn.Parameter(torch.ones(2))]
    sgd = optimiser_for(Optimiser(0.3, momentum=0.8, weight_decay=1e-3, nesterov=True), weights)
    lars = optimiser_for(Optimiser(0.3, name="lars", momentum=0.8, weight_decay=1e-3), weights)
    assert isinstance(sgd, torch.optim.SGD)
    assert isinstance(lars, LARS)
    for made in (sgd, lars):
        group = made.param_groups[0]
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.3, 0.8, 1e-3)
    assert sgd.param_groups[0]["nesterov"]


@pytest.mark.parametrize("name", ["constant", "cosine", "step", "one-cycle"])
def test_every_schedule_warms_up_in_a_line(name: str) -> None:
    schedule = Schedule(name=name, warmup=5, drops=(20,))  # type: ignore[arg-type]
    assert [schedule.rate(epoch, 30) for epoch in (0, 1, 2.5)] == [0, 0.2, 0.5]
    assert schedule.rate(5, 30) == 1


def test_cosine_falls_from_one_to_zero() -> None:
    schedule = Schedule(name="cosine", warmup=2)
    rates = [schedule.rate(epoch / 4, 12) for epoch in range(8, 49)]
    assert rates[0] == 1
    assert rates[20] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert rates == sorted(rates, reverse=True)


def test_step_drops_at_its_epochs() -> None:
    schedule = Schedule(name="step", drops=(10, 15), factor=0.1)
    rates = [schedule.rate(epoch, 20) for epoch in (0, 9.99, 10, 14.9, 15, 20)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_one_cycle_is_a_triangle() -> None:
    schedule = Schedule(name="one-cycle", warmup=12)
    rates = [schedule.rate(epoch, 30) for epoch in (0, 6, 12, 21, 30)]
    assert rates == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert schedule.rate(30.5, 30) == 0
    with pytest.raises(UsageError, match="needs a warmup"):
        Schedule(name="one-cycle")


def test_constant_stays() -> None:
    assert {Schedule().rate(epoch, 20) for epoch in range(21)} == {1.0}


@pytest.mark.parametrize("warmup", [5, 10])
def test_a_stage_no_longer_than_its_warmup_has_rates_in_range(warmup: int) -> None:
    schedule = Schedule(name="cosine", warmup=warmup)
    assert all(0 <= schedule.rate(step / 10, 5) <= 1 for step in range(51))


def rocl_2020(epoch: int, epochs: int) -> float:
    """The rate of the released code in an epoch (from 0): base 0.1, times 15 after ten epochs, then a cosine."""
    if epoch < 10:
        return 0.1 * (1 + 14 * (epoch + 1) / 10)
    return 0.75 * (1 + math.cos(math.pi * (epoch - 10) / epochs))


def test_the_schedule_of_rocls_code() -> None:
    schedule = Schedule(name="cosine", warmup=10, start=1 / 15, period="whole", every="epoch")
    for epochs in (50, 200, 1000):
        for epoch in range(epochs):
            for share in (0.01, 0.5, 1.0):  # the same at every step of an epoch
                assert 1.5 * schedule.rate(epoch + share, epochs) == pytest.approx(rocl_2020(epoch, epochs))
    # what its authors' scheduler was seen to do
    assert [round(1.5 * schedule.rate(epoch + 1, 1000), 2) for epoch in (0, 1, 9, 10)] == [0.24, 0.38, 1.5, 1.5]
    ends = [1.5 * schedule.rate(epochs, epochs) for epochs in (1000, 200, 50)]
    assert ends == pytest.approx([0.0005, 0.011, 0.17], rel=0.11)


def test_a_period_that_is_shortened_ends_at_zero_and_one_that_is_not_does_not() -> None:
    assert Schedule(name="cosine", warmup=10).rate(50, 50) == pytest.approx(0, abs=1e-12)
    assert Schedule(name="cosine", warmup=10, period="whole").rate(50, 50) > 0.09


@pytest.mark.parametrize("warmup", [0, 3, 2.5])
def test_a_rate_that_moves_once_an_epoch_is_constant_in_it(warmup: float) -> None:
    schedule = Schedule(name="step", warmup=warmup, drops=(5,), every="epoch")
    for epoch in range(8):
        assert len({schedule.rate(epoch + step / 7, 8) for step in range(1, 8)}) == 1
    assert [schedule.rate(epoch + 1, 8) for epoch in (4, 5)] == pytest.approx([1, 0.1])


@pytest.mark.parametrize("bad", [{"warmup": -1.0}, {"start": 2.0}, {"factor": float("nan")}, {"warmup": float("inf")}])
def test_schedules_that_mean_nothing_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="schedule: warmup"):
        Schedule(**bad)  # type: ignore[arg-type]
