"""The exact linear head: the same as another library's, and the same however the problem is written down."""

import numpy
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from robench.convex import Fit, softmax_regression
from robench.errors import TrainingError, UsageError


def digits() -> tuple[Tensor, Tensor]:
    found = load_digits()
    return torch.tensor(found.data / 16)[:600], torch.tensor(found.target)[:600]


def gradient(x: Tensor, y: Tensor, fit: Fit, decay: float) -> tuple[Tensor, Tensor]:
    """Of the objective, written out."""
    rest = (x @ fit.weight.T + fit.bias).softmax(1) - torch.nn.functional.one_hot(y, len(fit.bias)).double()
    return rest.T @ x / len(x) + decay * fit.weight, rest.mean(0)


@pytest.mark.parametrize("decay", [1e-1, 1e-3, 1e-5])
def test_it_is_scikit_learns(decay: float) -> None:
    x, y = digits()
    fit = softmax_regression(x, y, 10, weight_decay=decay)
    other = LogisticRegression(C=1 / (decay * len(y)), tol=1e-7, max_iter=5000).fit(x.numpy(), y.numpy())
    ours, theirs = (
        x.numpy() @ weight.T + bias
        for weight, bias in ((fit.weight.numpy(), fit.bias.numpy()), (other.coef_, other.intercept_))
    )
    centred = [logits - logits.mean(1, keepdims=True) for logits in (ours, theirs)]
    # what a gradient leaves undecided where the penalty is all the curvature there is
    assert numpy.abs(centred[0] - centred[1]).max() < 1e-4 + 1e-6 / decay
    theirs_as_fit = Fit(torch.tensor(other.coef_), torch.tensor(other.intercept_), 0.0, 0.0, 0)
    norms = [max(part.abs().max().item() for part in gradient(x, y, f, decay)) for f in (fit, theirs_as_fit)]
    assert norms[0] <= max(norms[1], 1e-7)
    assert fit.gradient == pytest.approx(norms[0], abs=1e-7)


def test_neither_order_nor_shift_of_the_features_matters() -> None:
    x, y = digits()
    fit = softmax_regression(x, y, 10, weight_decay=1e-2)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    moved = softmax_regression(x[order] + 7, y[order], 10, weight_decay=1e-2)
    assert torch.allclose(fit.weight, moved.weight, atol=1e-5)
    assert torch.allclose(fit.bias, moved.bias + 7 * moved.weight.sum(1), atol=1e-4)


def test_a_heavy_penalty_leaves_the_frequencies_of_the_classes() -> None:
    x, y = digits()
    fit = softmax_regression(x, y, 10, weight_decay=1e6)
    assert fit.weight.abs().max() < 1e-5
    frequency = torch.bincount(y).double() / len(y)
    assert torch.allclose(fit.bias.softmax(0), frequency, atol=1e-4)


def test_a_class_without_images_is_never_predicted() -> None:
    x, y = digits()
    fit = softmax_regression(x[y < 3], y[y < 3], 4, weight_decay=1e-2, tolerance=1e-4)
    assert (x @ fit.weight.T + fit.bias).argmax(1).max() < 3


def test_half_precision_features_are_solved_in_double() -> None:
    x, y = digits()
    fit = softmax_regression(x.float(), y, 10, weight_decay=1e-2)
    assert fit.weight.dtype == torch.float64


@pytest.mark.parametrize("decay", [0.0, -1.0, float("nan")])
def test_without_a_penalty_there_is_no_minimum(decay: float) -> None:
    x, y = digits()
    with pytest.raises(UsageError, match="weight_decay must be above 0"):
        softmax_regression(x, y, 10, weight_decay=decay)


def test_what_does_not_converge_says_so() -> None:
    x, y = digits()
    with pytest.raises(TrainingError, match=r"did not converge in .*raise the option weight_decay"):
        softmax_regression(x, y, 10, weight_decay=1e-6, most=5)
