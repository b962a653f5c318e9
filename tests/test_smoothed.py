"""Transformation-smoothed inference: an average that can be written down, draws that belong to the image, honest attacks."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robench import data, inference, recipe, verdict
from robench.attacks import attack_for
from robench.augment import augment
from robench.checkpoint import Checkpoint, open_checkpoint
from robench.data import Split
from robench.door import Door
from robench.errors import UsageError
from robench.evaluation import Engine
from robench.inference import LOOK, Inference
from robench.noise import ImageGenerator, content, seed_of
from robench.recipe import Augment
from robench.results import Result
from robench.smoothed import Glimpse, Smoothed
from robench.threat import ThreatModel

CPU = torch.device("cpu")
MIRROR = Inference(augment={"area": 1.0, "jitter": 0.0, "hue": 0.0, "grey": 0.0})  # a view is the image or its mirror
LINF = ThreatModel.parse("linf-0.1")


def images(n: int, channels: int = 3, size: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def linear(channels: int = 3, size: int = 8, classes: int = 4, seed: int = 1) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, classes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    return model


class Seen(nn.Module):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.views: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.views.append(x.detach())
        return x.flatten(1)[:, :4]


# numbers that belong to an image


def test_content_depends_on_the_pixels_alone() -> None:
    x = images(6)
    numbers = content(x)
    assert len(set(numbers.tolist())) == 6
    assert content(x[2:3]).equal(numbers[2:3])
    assert content(x.flip(0)).equal(numbers.flip(0))
    assert content(x.to(memory_format=torch.channels_last)).equal(numbers)


def test_the_smallest_change_is_another_image() -> None:
    x = images(1)
    for position in range(x[0].numel()):
        other = x.clone()
        other.view(-1)[position] = torch.nextafter(other.view(-1)[position], torch.tensor(2.0))
        assert content(other) != content(x)
    assert content(x.flip(3)) != content(x)  # the same pixels elsewhere


def test_zero_has_one_sign() -> None:
    assert content(torch.zeros(1, 1, 2, 2)).equal(content(-torch.zeros(1, 1, 2, 2)))


# the average


@pytest.mark.parametrize("average", ["probabilities", "votes"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_answer_is_the_average_over_views_one_image_at_a_time(average: str, channels: int) -> None:
    x, model = images(5, channels), linear(channels)
    spec = Inference(draws=7, average=average)  # type: ignore[arg-type]
    found = Smoothed(model, spec, seed=3)(x)
    for i in range(len(x)):
        views = []
        for draw in range(7):
            generator = ImageGenerator(seed_of(3, "tsi", "verdict", draw), content(x[i : i + 1]))
            views.append(model(augment(x[i : i + 1], spec.view(), generator))[0].double())
        mean = torch.stack([view.softmax(0) for view in views]).mean(0)
        if average == "votes":
            votes = torch.stack([nn.functional.one_hot(view.argmax(), 4) for view in views]).sum(0)
            mean = (votes + mean / 2) / 7.5
        assert (found[i].double() - mean.log()).abs().max() < 1e-5


def test_many_draws_tend_to_the_expectation() -> None:
    # with mirrors alone the expectation is half of each; the bound is four standard deviations of a fair coin
    x, model = images(20), linear()
    expected = (model(x).softmax(1) + model(x.flip(3)).softmax(1)) / 2
    reach = (model(x).softmax(1) - model(x.flip(3)).softmax(1)).abs() / 2
    found = Smoothed(model, replace(MIRROR, draws=400), seed=0)(x).exp()
    assert ((found - expected).abs() <= 4 * reach / 20 + 1e-5).all()
    assert reach.max() > 0.2


def test_votes_count_before_probabilities() -> None:
    # one view is sure of class 0, the other two lean to class 1
    logits = iter([[9.0, 0.0], [0.0, 0.2], [0.0, 0.2]])

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([next(logits)])

    spec = Inference(draws=3, average="votes")
    assert Smoothed(Model(), spec, 0)(images(1)).argmax() == 1
    logits = iter([[9.0, 0.0], [0.0, 0.2], [0.0, 0.2]])
    assert Smoothed(Model(), replace(spec, average="probabilities"), 0)(images(1)).argmax() == 0


def test_equal_votes_are_parted_by_probabilities() -> None:
    logits = iter([[0.1, 0.0], [0.0, 5.0]])

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([next(logits)])

    assert Smoothed(Model(), Inference(draws=2, average="votes"), 0)(images(1)).argmax() == 1


@pytest.mark.parametrize("average", ["probabilities", "votes"])
def test_answers_are_finite_however_sure_the_views_are(average: str) -> None:
    model = linear()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e4)
    spec = Inference(draws=3, average=average)  # type: ignore[arg-type]
    assert Smoothed(model, spec, 0)(images(4)).isfinite().all()


# draws


@pytest.mark.parametrize("size", [1, 3, 6])
def test_a_smoothed_classifier_is_deterministic_in_any_batches(size: int) -> None:
    x, model = images(6), linear()
    whole = Smoothed(model, Inference(draws=4), seed=5)(x)
    parts = torch.cat([Smoothed(model, Inference(draws=4), seed=5)(part) for part in x.split(size)])
    assert (whole - parts).abs().max() < 1e-5
    assert (whole - Smoothed(model, Inference(draws=4), seed=6)(x)).abs().max() > 1e-3


def test_attack_and_verdict_draw_independently() -> None:
    x = images(40)
    kept = []
    for make in (
        lambda model: Smoothed(model, replace(MIRROR, draws=30), 0),
        lambda model: Smoothed(model, replace(MIRROR, draws=30), 0, "queries"),
        lambda model: Glimpse(model, MIRROR, 0),
    ):
        seen = Seen()
        classifier = make(seen)
        for _ in range(1 if isinstance(classifier, Smoothed) else 30):
            classifier(x)
        kept.append(
            torch.stack([(view - x).abs().amax((1, 2, 3)) < 1e-5 for view in seen.views]).double()
        )  # not mirrored
    for mirrored in kept:
        assert abs(mirrored.mean() - 0.5) < 0.06  # 1,200 fair coins
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert abs((kept[i] == kept[j]).double().mean() - 0.5) < 0.06


def test_every_look_of_an_attack_is_new_and_its_images_own() -> None:
    x = images(5)

    def looks(parts: list[Tensor]) -> list[Tensor]:
        seen = Seen()
        model = Glimpse(seen, Inference(), seed=2)
        for part in parts:
            model(part)
        return seen.views

    together = looks([x, x, x])
    assert min((a - b).flatten(1).abs().amax(1).min() for a, b in itertools.pairwise(together)) > 1e-3
    alone = looks([x[3:4], x[3:4], x[3:4]])
    for a, b in zip(together, alone, strict=True):
        assert (a[3] - b[0]).abs().max() < 1e-6
    filled = looks([torch.cat([x, x[3:4]]), x, x])  # as the door fills up small batches
    for a, b in zip(together, filled, strict=True):
        assert (a - b[:5]).abs().max() < 1e-6


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_augmentations_are_differentiable_in_the_pixels(channels: int, seed: int) -> None:
    # the views of an image are smooth almost everywhere, so a short step changes them as the gradient says
    x = 0.2 + 0.6 * images(6, channels, seed=seed)
    spec = Augment("simclr")
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 50))
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 99))

    def value(at: Tensor) -> Tensor:
        return (augment(at, spec, ImageGenerator(seed, range(6))).double() * weights).flatten(1).sum(1)

    x.requires_grad_()
    (gradient,) = torch.autograd.grad(value(x).sum(), x)
    slope = (gradient.double() * direction).flatten(1).sum(1)
    with torch.no_grad():
        step = 1e-4
        measured = (value(x + step * direction) - value(x - step * direction)) / (2 * step)
    size = gradient.flatten(1).norm(dim=1)
    assert (size > 0).all()
    assert ((slope - measured).abs() <= 0.02 * size.double() * direction.flatten(1).norm(dim=1)).all()


def test_grey_pixels_have_finite_gradients() -> None:
    x = torch.full((8, 3, 8, 8), 0.5, requires_grad=True)
    (gradient,) = torch.autograd.grad(augment(x, Augment("simclr"), ImageGenerator(0, range(8))).sum(), x)
    assert gradient.isfinite().all()


# what was asked for


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tsi", Inference()),
        ("tsi@draws=10", Inference(draws=10)),
        ("tsi@average=votes,area=0.5", Inference(average="votes", augment={"area": 0.5})),
        ("tsi@flip=false,hue=0", Inference(augment={"flip": False, "hue": 0})),
    ],
)
def test_texts_are_read(text: str, expected: Inference) -> None:
    assert inference.parse(text) == expected
    assert inference.parse(text, draws=3) == replace(expected, draws=3)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("tsi", 0), "0 draws answer nothing; use --draws 1 or more"),
        (("tsi", -3), "-3 draws"),
        (("tsi@draws=0",), "0 draws"),
        (("tsi@draws=many",), "draws: expected int"),
        (("tsi", None, "median"), "'median' is not one of 'probabilities', 'votes'"),
        (("tis",), "Did you mean 'tsi'"),
        (("tsi@blur=1",), "unknown key 'blur' (keys: draws, average, area"),
        (("tsi@adaptive=true",), "unknown key 'adaptive'"),
        (("tsi@area=2",), "--inference tsi: area must be between"),
        (("tsi@flip=maybe",), "flip: expected bool"),
    ],
)
def test_what_smooths_nothing_is_refused(arguments: tuple[str, ...], hint: str) -> None:
    with pytest.raises(UsageError) as raised:
        inference.parse(*arguments)  # type: ignore[arg-type]
    assert hint in str(raised.value)


def test_views_are_those_the_encoder_learnt_from() -> None:
    settled = Inference().of(recipe.load("rocl-digits"), adaptive=True)
    assert settled.adaptive
    learnt = recipe.load("rocl-digits").stage[0].augment
    assert settled.view() == learnt
    assert set(settled.augment) == set(LOOK)
    assert Inference(augment={"area": 0.9}).of(recipe.load("rocl-digits"), adaptive=False).view() == replace(
        learnt, area=0.9
    )


def test_without_such_views_they_are_rocls_and_mirror_only_if_the_recipe_does() -> None:
    assert Inference().of(recipe.load("standard-digits"), adaptive=False).view() == Augment("simclr", flip=False)
    assert Inference().of(recipe.load("trades"), adaptive=False).view() == Augment("simclr")


# the engine


@pytest.fixture(scope="module")
def standard(trained: Path) -> Checkpoint:
    return open_checkpoint("standard-digits", trained)


@pytest.fixture(scope="module")
def robust(trained: Path) -> Checkpoint:
    return open_checkpoint("pgd-at-digits", trained)


def run(checkpoint: Checkpoint, attack: str, spec: Inference, count: int = 40, **changes: object) -> Result:
    engine = Engine(CPU, batch=int(changes.pop("batch", 500)))  # type: ignore[call-overload]
    options = {"attacks": [attack], "threats": [LINF], "count": count, "inference": spec, **changes}
    (job,) = engine.plan([checkpoint], **options)  # type: ignore[arg-type]
    found = engine.evaluate(job)
    assert isinstance(found, Result), found
    return found


SPEC = Inference(draws=8, augment={"area": 0.6, "flip": False})


def test_the_verdict_is_that_of_the_smoothed_classifier(standard: Checkpoint) -> None:
    found = run(standard, "fgsm", SPEC, seed=4)
    test = data.load("digits", Split.TEST, Path()).take(slice(40))
    with torch.no_grad():
        answers = Smoothed(standard.load(), SPEC.of(standard.recipe, adaptive=False), 4)(test.x())
    assert found.clean == tuple((answers.argmax(1) == test.y).tolist())
    assert found.cell.inference == SPEC.of(standard.recipe, adaptive=False)
    assert (
        found.clean != run(standard, "fgsm", SPEC, seed=5).clean
        or found.clean != run(standard, "fgsm", SPEC, seed=6).clean
    )


@pytest.mark.parametrize("attack", ["pgd@steps=5", "eot-pgd@steps=4,draws=3"])
def test_smoothed_verdicts_do_not_depend_on_the_batch(standard: Checkpoint, attack: str) -> None:
    assert run(standard, attack, SPEC, batch=16).robust == run(standard, attack, SPEC, batch=500).robust


@pytest.mark.parametrize(
    ("attack", "adaptive"), [("pgd@steps=5", False), ("apgd-ce@steps=5", False), ("eot-pgd@steps=4,draws=3", True)]
)
def test_only_attacks_through_the_augmentations_are_adaptive(attack: str, adaptive: bool, standard: Checkpoint) -> None:
    found = run(standard, attack, SPEC, count=16)
    assert found.cell.inference is not None
    assert found.cell.inference.adaptive is adaptive
    assert any(note.startswith("not adaptive") for note in found.notes) is not adaptive


def test_what_attacks_are_given(standard: Checkpoint) -> None:
    engine = Engine(CPU)
    texts = {"pgd@steps=5": type(standard.load()), "eot-pgd": Glimpse, "autoattack-rand": Glimpse, "square": Smoothed}

    def attacked(text: str) -> nn.Module:
        (job,) = engine.plan([standard], attacks=[text], threats=[LINF], count=10, inference=SPEC)
        return engine._attacked(job)

    assert {text: type(attacked(text)) for text in texts} == texts
    queried = attacked("square")
    assert isinstance(queried, Smoothed)
    assert queried.purpose != "verdict"


def test_a_transfer_is_crafted_on_the_plain_source(standard: Checkpoint, robust: Checkpoint) -> None:
    smoothed, plain = (run(standard, "pgd@steps=5", SPEC, sources=[robust], inference=spec) for spec in (SPEC, None))
    assert smoothed.cell.source == plain.cell.source == robust.sha256
    assert smoothed.cell.key != plain.cell.key
    assert smoothed.largest > 0


def test_looks_are_counted(standard: Checkpoint) -> None:
    # per image: 8 for the clean verdict and 8 for the adversarial one; the attack of what is right at most 3 x 3 + 3
    found = run(standard, "eot-pgd@steps=3,draws=3", SPEC, count=32)
    right = sum(found.clean)
    assert found.forwards == 2 * 8 * 32 + 4 * 3 * right
    assert found.backwards == 3 * 3 * right


def test_an_attack_without_the_augmentations_is_blind_where_climbing_through_them_finds_the_optimum() -> None:
    # A linear model's weights are a symmetric image plus a larger antisymmetric one. Averaged over mirrors, probabilities
    # favour what the symmetric part does (s(a + b) + s(a - b) > 1 just if a > 0), whose margin falls by eps times its l1
    # norm at most; the plain model's own optimum follows the signs of the other part, which leave that margin as it is.
    generator = torch.Generator().manual_seed(0)
    size = torch.rand(2, 8, 4, generator=generator) / 10
    half = size[0] * torch.where(torch.rand(8, 4, generator=generator) < 0.5, -1, 1)
    even = torch.cat([half, half.flip(1)], 1)
    odd = torch.cat([0.15 + size[1], -(0.15 + size[1]).flip(1)], 1)
    x, eps = 0.3 + 0.4 * images(80, 1, seed=3), 0.03
    bias = -(x[:, 0] * even).sum((1, 2)).mean()
    margin = (x[:, 0] * even).sum((1, 2)) + bias
    y = (margin > 0).long()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([torch.zeros(64), (even + odd).flatten()]))
        model[1].bias.copy_(torch.stack([torch.zeros(()), bias]))

    def crafted(text: str, classifier: nn.Module) -> tuple[Tensor, Tensor]:
        attack, door = attack_for(text, ThreatModel.parse(f"linf-{eps}")), Door(classifier, 2)
        which = torch.ones(80, dtype=torch.bool)
        adv = verdict.craft(door, attack, x, y, which, ids=torch.arange(80), seed=0).adv
        return adv, margin.abs() + ((adv - x)[:, 0] * even).sum((1, 2)) * torch.where(y == 1, 1, -1)

    _, blind = crafted("pgd@steps=20,step=0.2", model)
    adv, seeing = crafted("eot-pgd@steps=40,draws=40", Glimpse(model, MIRROR, 0))
    assert (blind - margin.abs()).abs().max() < 1e-4
    assert (seeing - (margin.abs() - eps * even.abs().sum())).abs().max() < 0.02  # of 0.09
    with torch.no_grad():
        robust = Smoothed(model, replace(MIRROR, draws=1000), 0)(adv).argmax(1) == y
    sure = seeing.abs() > 0.03  # what is nearer to the boundary needs more draws than these
    assert robust[sure].equal(seeing[sure] > 0)
    assert 20 < (~robust).sum() < 70
