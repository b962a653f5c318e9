"""Quick looks at features: against slow and foreign code, and without a trace on what they look at."""

import math
from collections import Counter
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from torch import Tensor

from robench import data
from robench.data import Split
from robench.models import build_nets
from robench.probe import neighbours, probe, ridge

FEW = settings(deadline=None, derandomize=True, max_examples=15)


def clouds(seed: int, n: int = 60, d: int = 5, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Three clouds that overlap."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=generator)
    return torch.randn(n, d, generator=generator) + 1.5 * torch.eye(classes, d)[y], y


@pytest.mark.parametrize("k", [1, 5, 20, 100])
@FEW
@given(seed=st.integers(0, 100))
def test_neighbours_vote_by_cosine(k: int, seed: int) -> None:
    (x, y), (queries, _) = clouds(seed), clouds(seed + 1, n=9)
    found = neighbours(x, y, queries, 3, k=k)
    for query, guess in zip(queries.tolist(), found.tolist(), strict=True):
        cosine = [
            sum(a * b for a, b in zip(row, query, strict=True)) / math.hypot(*row) / math.hypot(*query)
            for row in x.tolist()
        ]
        near = sorted(range(len(cosine)), key=lambda i: -cosine[i])[:k]
        votes = Counter(int(y[i]) for i in near)
        first = [label for label, count in votes.items() if count == max(votes.values())]
        nearness = {label: sum(cosine[i] for i in near if y[i] == label) for label in first}
        assert guess == max(first, key=lambda label: nearness[label])


def test_the_length_of_a_feature_does_not_matter_to_its_neighbours() -> None:
    (x, y), (queries, _) = clouds(0), clouds(1)
    assert torch.equal(neighbours(x, y, queries, 3), neighbours(5 * x, y, 0.1 * queries, 3))


@FEW
@given(seed=st.integers(0, 100), penalty=st.sampled_from([1e-3, 0.1, 10.0]))
def test_ridge_is_scikit_learns(seed: int, penalty: float) -> None:
    (x, y), (queries, _) = clouds(seed), clouds(seed + 1)
    alpha = penalty * len(x) * x.double().var(0, correction=0).mean().item()
    other = Ridge(alpha=alpha, solver="cholesky").fit(x.double().numpy(), numpy.eye(3)[y.numpy()])
    expected = other.predict(queries.double().numpy()).argmax(1)
    assert ridge(x, y, queries, 3, penalty=penalty).tolist() == expected.tolist()


def test_ridge_bears_features_that_are_dead_or_twins() -> None:
    (x, y), (queries, answers) = clouds(0), clouds(1)
    wide = [torch.cat([part, part, torch.zeros(len(part), 3)], 1) for part in (x, queries)]
    assert (ridge(wide[0], y, wide[1], 3) == answers).float().mean() > 0.6


def test_a_look_leaves_no_trace_and_reads_no_test_image() -> None:
    images = data.load("digits", Split.TRAIN, Path())
    kept, held = data.hold_out(images.take(slice(300)), 100)
    assert held is not None
    nets = build_nets("cnn@width=4", (1, 8, 8), "digits", normalise=False).train()
    state = {key: value.clone() for key, value in nets.state_dict().items()}
    found = probe(nets, kept, held)
    assert set(found) == {"validation knn", "validation ridge"}
    assert all(value > 0.5 for value in found.values())  # even random features tell digits apart
    assert all(torch.equal(value, state[key]) for key, value in nets.state_dict().items())
    assert all(module.training for module in nets.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in nets.parameters())
