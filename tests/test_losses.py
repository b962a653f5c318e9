"""Losses against slow transcriptions of their formulas, and the identities that hold for any input."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robench.errors import UsageError
from robench.losses import (
    Positives,
    contrastive,
    cross_entropy,
    distance,
    dlr,
    kl,
    margin,
    supervised_contrastive,
)

FEW = settings(deadline=None, derandomize=True, max_examples=20)
seeds = st.integers(0, 1000)


def embeddings(count: int, n: int = 5, d: int = 7, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, d, generator=generator) for _ in range(count)]


def logits_of(seed: int, n: int = 6, classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, classes, generator=generator) * 3, torch.randint(classes, (n,), generator=generator)


def slow(views: Sequence[Tensor], t: float, positives: Positives, anchors: Sequence[int]) -> list[float]:
    """The formulas of the docstring, number by number."""
    vectors = {(v, i): (z / z.norm()).tolist() for v, view in enumerate(views) for i, z in enumerate(view.double())}

    def e(u: tuple[int, int], k: tuple[int, int]) -> float:
        return math.exp(sum(a * b for a, b in zip(vectors[u], vectors[k], strict=True)) / t)

    found = []
    for v in anchors:
        for i in range(len(views[0])):
            u = (v, i)
            friends = [e(u, (w, i)) for w in range(len(views)) if w != v]
            every = sum(e(u, k) for k in vectors if k != u)
            if positives == "per-pair":
                found.append(sum(-math.log(friend / every) for friend in friends))
            else:
                found.append(-math.log(sum(friends) / every))
    return found


@pytest.mark.parametrize("anchors", [None, (0,), (1,), (1, 0)])
@pytest.mark.parametrize("positives", ["per-pair", "in-log"])
@pytest.mark.parametrize("count", [2, 3, 4])
@FEW
@given(seed=seeds, t=st.sampled_from([0.1, 0.5, 2.0]))
def test_contrastive_is_its_formula(
    count: int, positives: Positives, anchors: Sequence[int] | None, seed: int, t: float
) -> None:
    views = embeddings(count, seed=seed)
    found = contrastive(views, temperature=t, positives=positives, anchors=anchors)
    assert found.tolist() == pytest.approx(slow(views, t, positives, anchors or range(count)), rel=2e-5, abs=2e-5)


def nt_xent(a: Tensor, b: Tensor, t: float) -> Tensor:
    """The usual code of NT-Xent: cross-entropy over the similarities of 2n vectors."""
    z = torch.nn.functional.normalize(torch.cat([a, b]), dim=1)
    similarity = (z @ z.T / t).fill_diagonal_(-torch.inf)
    n = len(a)
    return cross_entropy(similarity, torch.cat([torch.arange(n, 2 * n), torch.arange(n)]))


@pytest.mark.parametrize("positives", ["per-pair", "in-log"])
@FEW
@given(seed=seeds)
def test_two_views_are_nt_xent(positives: Positives, seed: int) -> None:
    a, b = embeddings(2, seed=seed)
    assert torch.allclose(contrastive((a, b), temperature=0.5, positives=positives), nt_xent(a, b, 0.5), atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3])
@FEW
@given(seed=seeds, t=st.sampled_from([0.1, 0.5]))
def test_supervised_contrastive_is_its_formula(count: int, seed: int, t: float) -> None:
    views = embeddings(count, n=6, seed=seed)
    y = [0, 1, 0, 2, 1, 2]
    found = supervised_contrastive(views, torch.tensor(y), temperature=t)
    z = [(row / row.norm()).tolist() for view in views for row in view.double()]
    labels = y * count
    for u, row in enumerate(z):
        s = [sum(a * b for a, b in zip(row, other, strict=True)) / t for other in z]
        every = sum(math.exp(s[k]) for k in range(len(z)) if k != u)
        friends = [p for p in range(len(z)) if p != u and labels[p] == labels[u]]
        expected = sum(-math.log(math.exp(s[p]) / every) for p in friends) / len(friends)
        assert found[u].item() == pytest.approx(expected, rel=2e-5, abs=2e-5)


def test_supervised_contrastive_with_every_image_its_own_class_is_nt_xent() -> None:
    views = embeddings(2)
    found = supervised_contrastive(views, torch.arange(5), temperature=0.5)
    assert torch.allclose(found, contrastive(views, temperature=0.5), atol=1e-5)


def test_supervised_contrastive_refuses_one_image() -> None:
    with pytest.raises(UsageError, match="at least two images"):
        supervised_contrastive(embeddings(2, n=1), torch.zeros(1, dtype=torch.int64), temperature=0.5)


@pytest.mark.parametrize("n", [2, 7])
def test_identical_embeddings_have_a_known_loss(n: int) -> None:
    same = torch.ones(n, 4)
    assert torch.allclose(
        contrastive((same, same, same), temperature=0.5), torch.full((3 * n,), 2 * math.log(3 * n - 1)), atol=1e-5
    )
    in_log = contrastive((same, same, same), temperature=0.5, positives="in-log")
    assert torch.allclose(in_log, torch.full((3 * n,), math.log((3 * n - 1) / 2)), atol=1e-5)


@pytest.mark.parametrize("positives", ["per-pair", "in-log"])
def test_detached_keys_change_no_value(positives: Positives) -> None:
    views = embeddings(3)
    plain, detached = (
        contrastive(views, temperature=0.5, positives=positives, detach_keys=detach) for detach in (False, True)
    )
    assert torch.equal(plain, detached)


def test_detached_keys_pass_gradients_to_anchors_only() -> None:
    views = [view.requires_grad_() for view in embeddings(3)]
    contrastive(views, temperature=0.5, anchors=(0,), detach_keys=True).sum().backward()
    assert views[0].grad is not None
    assert views[0].grad.abs().sum() > 0
    assert [view.grad for view in views[1:]] == [None, None]


def test_gradients_reach_keys_that_are_not_detached() -> None:
    views = [view.requires_grad_() for view in embeddings(3)]
    contrastive(views, temperature=0.5, anchors=(0,)).sum().backward()
    assert all(view.grad is not None and view.grad.abs().sum() > 0 for view in views)


def test_a_detached_gradient_is_that_with_constant_keys() -> None:
    # with every view an anchor, a detached key is a constant: moving it would not change the anchor's gradient
    a, b = (view.requires_grad_() for view in embeddings(2))
    contrastive((a, b), temperature=0.5, detach_keys=True).sum().backward()
    alone = a.detach().clone().requires_grad_()
    n = len(a)
    z = torch.nn.functional.normalize(alone, dim=1)
    keys = torch.nn.functional.normalize(torch.cat([a, b]).detach(), dim=1)
    similarity = z @ keys.T / 0.5
    similarity = similarity.masked_fill(torch.eye(n, 2 * n, dtype=torch.bool), -torch.inf)
    cross_entropy(similarity, torch.arange(n, 2 * n)).sum().backward()
    assert a.grad is not None
    assert alone.grad is not None
    assert torch.allclose(a.grad, alone.grad, atol=1e-6)


def test_the_length_of_an_embedding_does_not_matter() -> None:
    views = embeddings(3)
    long = [view * 100 for view in views]
    assert torch.allclose(contrastive(views, temperature=0.5), contrastive(long, temperature=0.5), atol=1e-5)


def test_one_image_has_nothing_to_differ_from() -> None:
    with pytest.raises(UsageError, match="at least two images"):
        contrastive(embeddings(2, n=1), temperature=0.5)


def test_half_precision_embeddings_are_compared_in_float32() -> None:
    views = [view.half() for view in embeddings(2)]
    assert contrastive(views, temperature=0.05).dtype == torch.float32


def test_double_precision_embeddings_are_compared_in_it() -> None:
    views = [view.double() for view in embeddings(2)]
    assert contrastive(views, temperature=0.05).dtype == torch.float64


@FEW
@given(seeds)
def test_distances_are_their_formulas(seed: int) -> None:
    a, b = embeddings(2, seed=seed)
    for i, (u, v) in enumerate(zip(a.double().tolist(), b.double().tolist(), strict=True)):
        mse = sum((s - t) ** 2 for s, t in zip(u, v, strict=True)) / len(u)
        l1 = sum(abs(s - t) for s, t in zip(u, v, strict=True)) / len(u)
        cosine = 1 - sum(s * t for s, t in zip(u, v, strict=True)) / math.hypot(*u) / math.hypot(*v)
        found = [distance(a, b, kind)[i].item() for kind in ("mse", "l1", "cosine")]
        assert found == pytest.approx([mse, l1, cosine], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_groups_are_batches_of_their_own(groups: int) -> None:
    views = embeddings(2, n=7)
    found = contrastive(views, temperature=0.5, groups=groups)
    sizes = [7 // groups + (i < 7 % groups) for i in range(groups)]
    expected = [contrastive(part, temperature=0.5) for part in zip(*(view.split(sizes) for view in views), strict=True)]
    assert torch.allclose(found, torch.cat(expected))
    assert len(found) == 14


@FEW
@given(seeds)
def test_cross_entropy_is_minus_the_log_probability(seed: int) -> None:
    logits, y = logits_of(seed)
    expected = [-math.log(p[label]) for p, label in zip(logits.double().softmax(1).tolist(), y.tolist(), strict=True)]
    assert cross_entropy(logits, y).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@FEW
@given(seeds)
def test_a_margin_is_positive_where_the_model_errs(seed: int) -> None:
    logits, y = logits_of(seed)
    expected = [max(v for k, v in enumerate(row) if k != c) - row[c] for row, c in zip(logits.tolist(), y, strict=True)]
    assert margin(logits, y).tolist() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(margin(logits, y) > 0, logits.argmax(1) != y)


@FEW
@given(seeds)
def test_dlr_is_its_formula(seed: int) -> None:
    logits, y = logits_of(seed)
    expected = []
    for row, c in zip(logits.tolist(), y.tolist(), strict=True):
        ranked = sorted(row, reverse=True)
        wrong = ranked[1] if row[c] == ranked[0] else ranked[0]
        expected.append(-(row[c] - wrong) / (ranked[0] - ranked[2]))
    assert dlr(logits, y).tolist() == pytest.approx(expected, rel=1e-4)


@FEW
@given(seed=seeds, shift=st.floats(-50, 50), scale=st.floats(0.01, 100))
def test_dlr_ignores_shift_and_scale(seed: int, shift: float, scale: float) -> None:
    logits, y = logits_of(seed)
    moved = logits.double() * scale + shift
    assert torch.allclose(dlr(moved, y), dlr(logits.double(), y), atol=1e-6)


@FEW
@given(seeds)
def test_kl_is_its_formula_and_never_negative(seed: int) -> None:
    (teacher, _), (student, _) = logits_of(seed), logits_of(seed + 1)
    p, q = teacher.double().softmax(1), student.double().softmax(1)
    assert torch.allclose(kl(teacher, student).double(), (p * (p / q).log()).sum(1), atol=1e-5)
    assert (kl(teacher, student) >= 0).all()


def test_kl_is_zero_at_equality_and_flat_there() -> None:
    teacher = logits_of(0)[0]
    student = teacher.clone().requires_grad_()
    value = kl(teacher, student)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert torch.equal(value, torch.zeros(6))
    assert gradient.abs().max() < 1e-6


def test_kl_has_gradients_for_both() -> None:
    teacher, student = (logits_of(seed)[0].requires_grad_() for seed in (0, 1))
    gradients = torch.autograd.grad(kl(teacher, student).sum(), (teacher, student))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
