"""The meter: what a device counts is told, and what it does not count is absent rather than guessed."""

import torch

from robench.meter import Meter

CPU = torch.device("cpu")


def test_a_processor_counts_neither_memory_nor_energy() -> None:
    cost = Meter(CPU).read()
    assert (cost.peak_memory, cost.joules) == (None, None)
    assert cost.seconds >= 0


def test_energy_is_the_difference_of_the_counter_in_joules() -> None:
    readings = iter([5_000, 12_500, 13_000])
    meter = Meter(CPU, counter=lambda: next(readings))
    assert meter.read().joules == 7.5
    assert meter.read().joules == 8.0  # since the start, not since the last reading
