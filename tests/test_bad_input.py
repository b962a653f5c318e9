"""What goes wrong in practice, row by row: each gives the right value or an error that names the cause, never a silent number."""

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from robench.attacks import attack_for
from robench.device import exhausted
from robench.door import SMALLEST
from robench.errors import AttackError, DataError, UsageError
from robench.protocols import Attack
from robench.testing.case import laid_out
from robench.threat import ThreatModel
from robench.verdict import Verdict, evaluate

EPS = "linf-0.1"
ATTACKS = ("pgd-20", "apgd-ce@steps=20", "square@queries=100", "autoattack@steps=10,queries=50")
GRADIENT = ATTACKS[:2]
every_attack = pytest.mark.parametrize("attack", ATTACKS)


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Forty scanned digits, by turns of every class."""
    data = load_digits()
    return torch.tensor(data.images[:, None] / 16, dtype=torch.float32)[:40], torch.tensor(data.target[:40])


@cache
def trained() -> nn.Module:
    """A small convolutional network with batch norm and dropout; never changed."""
    data = load_digits()
    x, y = torch.tensor(data.images[:, None] / 16, dtype=torch.float32), torch.tensor(data.target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network(10)
        optimiser = torch.optim.Adam(model.parameters(), 1e-2)
        for ids in torch.randperm(60 * 256).remainder(len(x)).split(256):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[ids]), y[ids]).backward()
            optimiser.step()
    return model.eval()


def network(classes: int) -> nn.Sequential:
    first = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(
        first, nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(72, classes)
    )


class Around(nn.Module):
    """The trained network with something between it and the world."""

    def __init__(self, answer: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.answer, self.calls = deepcopy(trained()), answer, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.answer(self.inner, x)


def run(model: Any, attack: str | Attack, x: Tensor | None = None, y: Tensor | None = None, **options: Any) -> Verdict:
    own_x, own_y = digits()
    made = attack_for(attack, ThreatModel.parse(EPS)) if isinstance(attack, str) else attack
    x, y = own_x if x is None else x, own_y if y is None else y
    return evaluate(model, made, x, y, **{"classes": 10, **options})[0]


@cache
def plain(attack: str) -> Verdict:
    """What comes out where nothing is wrong."""
    return run(trained(), attack)


def state(model: nn.Module) -> list[Any]:
    return [{k: v.clone() for k, v in model.state_dict().items()}, [m.training for m in model.modules()]]


def unchanged(model: nn.Module, before: list[Any]) -> bool:
    now = state(model)
    return now[1] == before[1] and all(torch.equal(now[0][key], value) for key, value in before[0].items())


def count(mask: Tensor) -> int:
    return int(mask.sum())


@every_attack
def test_the_baseline_is_neither_all_nor_nothing(attack: str) -> None:
    found = plain(attack)
    assert count(found.clean) >= 38
    assert 3 < count(found.robust) < 37
    assert found.notes == ()


# the radius


@every_attack
def test_eps_0_is_clean_accuracy(attack: str) -> None:
    found = run(trained(), attack_for(attack, ThreatModel.parse("linf-0")))
    assert torch.equal(found.robust, found.clean)
    assert torch.equal(found.adv, digits()[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("linf--0.1", "linf--0.1: eps must be a finite number of at least 0"),
        ("linf-nan", "eps must be a finite number of at least 0"),
        ("linf-inf", "eps must be a finite number of at least 0"),
        ("linf-8", r"eps above 1 has no meaning; did you mean linf-8/255\?"),
    ],
)
def test_a_radius_that_cannot_be_meant_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ThreatModel.parse(text)


# images and labels


def spoilt(values: Tensor, value: float) -> Tensor:
    values = values.clone()
    values[3] = value
    return values


X, Y = digits()
INPUTS: list[tuple[str, Tensor, Tensor, str]] = [
    ("pixels 0 to 255", X * 255, Y, r"pixels go from 0 to 255, not in \[0, 1\]: divide by 255"),
    ("normalised", (X - 0.5) / 0.5, Y, "they look normalised: put the normalisation into the model"),
    ("one NaN image", spoilt(X, torch.nan), Y, r"image 3 has NaN or infinite pixels \(1 of 40 images have\)"),
    ("an infinite image", spoilt(X, torch.inf), Y, "image 3 has NaN or infinite pixels"),
    ("no images", X[:0], Y[:0], "there are 0 images"),
    ("label 10 of 10", X, spoilt(Y, 10), "label 10 of image 3 is not in 0 to 9"),
    ("label -1", X, spoilt(Y, -1), "label -1 of image 3 is not in 0 to 9"),
    ("label -100", X, spoilt(Y, -100), "label -100 of image 3 is not in 0 to 9"),
    ("float labels", X, Y.float(), r"labels are \(40,\) torch.float32; expected \(40,\) int64"),
    ("one-hot labels", X, nn.functional.one_hot(Y, 10), r"labels are \(40, 10\) torch.int64"),
    ("a label too few", X, Y[1:], r"labels are \(39,\) torch.int64; expected \(40,\)"),
    ("int32 labels", X, Y.int(), r"labels are \(40,\) torch.int32"),
    (
        "uint8 images",
        (X * 255).to(torch.uint8),
        Y,
        r"torch.uint8; expected NCHW float32 or float64 in \[0, 1\] \(divide by 255\)",
    ),
    ("half images", X.half(), Y, "torch.float16; expected NCHW float32 or float64"),
    ("three axes", X[:, 0], Y, r"images are \(40, 8, 8\) torch.float32; expected NCHW"),
    ("flat images", X.flatten(1), Y, r"images are \(40, 64\)"),
]


@every_attack
@pytest.mark.parametrize(("x", "y", "message"), [row[1:] for row in INPUTS], ids=[row[0] for row in INPUTS])
def test_bad_images_and_labels_are_refused_before_any_pass(x: Tensor, y: Tensor, message: str, attack: str) -> None:
    model = Around(lambda inner, x: inner(x))
    with pytest.raises(DataError, match=message):
        run(model, attack, x, y)
    assert model.calls == 0


@every_attack
def test_float64_is_attacked_in_float64(attack: str) -> None:
    model = network(10).double().eval()
    model.load_state_dict(
        {key: value.double() if value.is_floating_point() else value for key, value in trained().state_dict().items()}
    )
    found = run(model, attack, X.double())
    assert found.adv.dtype == torch.float64
    assert abs(count(found.robust) - count(plain(attack).robust)) <= 1


@every_attack
def test_float64_images_for_a_float32_model_are_an_error(attack: str) -> None:
    with pytest.raises(
        AttackError, match=r"stopped on clean images \(40, 1, 8, 8\) torch.float64: RuntimeError: .*double"
    ):
        run(trained(), attack, X.double())


@every_attack
@pytest.mark.parametrize("layout", ["channels-last", "transposed", "sliced"])
def test_how_images_lie_in_memory_does_not_matter(attack: str, layout: str) -> None:
    assert torch.equal(run(trained(), attack, laid_out(X, layout)).robust, plain(attack).robust)


# what the model returns


@every_attack
def test_logits_that_are_all_nan_are_an_error(attack: str) -> None:
    with pytest.raises(AttackError, match="NaN or infinite logits for 40 of 40 images"):
        run(Around(lambda inner, x: inner(x) * torch.nan), attack)


@every_attack
def test_logits_that_are_nan_for_some_images_are_an_error(attack: str) -> None:
    def answer(inner: nn.Module, x: Tensor) -> Tensor:
        return inner(x).masked_fill((x.flatten(1).mean(1) > 0.35)[:, None], torch.nan)

    with pytest.raises(AttackError, match=r"NaN or infinite logits for \d+ of 40 images"):
        run(Around(answer), attack)


@every_attack
def test_logits_that_are_nan_for_attacked_images_only_are_an_error(attack: str) -> None:
    # clean digits have pixels in sixteenths, of which the darkest are 0
    def answer(inner: nn.Module, x: Tensor) -> Tensor:
        return inner(x).masked_fill((x[:, :, :, 0].flatten(1).amax(1) > 0.09)[:, None], torch.nan)

    usable = X[:, :, :, 0].flatten(1).amax(1) == 0
    with pytest.raises(AttackError, match="NaN or infinite logits"):
        run(Around(answer), attack, X[usable], Y[usable])


@every_attack
def test_logits_that_overflow_are_an_error(attack: str) -> None:
    with pytest.raises(AttackError, match="NaN or infinite logits"):
        run(Around(lambda inner, x: inner(x) * 1e38), attack)


@every_attack
def test_large_logits_hide_nothing_and_are_flagged(attack: str) -> None:
    found = run(Around(lambda inner, x: inner(x) * 1e4), attack)
    # the log-odds that stand for cross-entropy are the margin where logits are that far apart
    same = "pgd@steps=20,loss=cw-margin" if attack == "pgd-20" else attack
    assert abs(count(found.robust) - count(plain(same).robust)) <= 1
    assert any("logits so large that the gradient of cross-entropy rounds to zero" in note for note in found.notes)


@every_attack
@pytest.mark.parametrize("scale", [1, 100])
def test_probabilities_are_flagged(attack: str, scale: int) -> None:
    found = run(Around(lambda inner, x: (scale * inner(x)).softmax(1)), attack)
    assert torch.equal(found.clean, plain(attack).clean)
    assert any("flag: the model returns probabilities" in note for note in found.notes)
    if scale == 100:
        assert any("flag: zero gradients" in note for note in found.notes)
        assert count(found.robust) >= count(plain(attack).robust)  # less is found, which is why it is flagged


@every_attack
@pytest.mark.parametrize("levels", [4, 16])
def test_quantised_inputs_are_flagged(attack: str, levels: int) -> None:
    found = run(Around(lambda inner, x: inner((x * levels).round() / levels)), attack)
    assert any(
        f"flag: zero gradients for {count(found.clean)} of {count(found.clean)} images" in note for note in found.notes
    )


def decide(inner: nn.Module, x: Tensor) -> Tensor:
    return nn.functional.one_hot(inner(x).argmax(1), 10).float()


@pytest.mark.parametrize("attack", [*GRADIENT, ATTACKS[3]])
def test_decisions_give_gradient_attacks_nothing_and_that_is_an_error(attack: str) -> None:
    with pytest.raises(AttackError, match=r"has no gradient.*black-box"):
        run(Around(decide), attack)


@pytest.mark.parametrize("attack", ["square@queries=100", "hopskipjump@steps=3", "random-noise"])
def test_decisions_are_enough_for_black_box_attacks(attack: str) -> None:
    found = run(Around(decide), attack)
    assert "flag: the model has no gradient; only black-box attacks and transfer say anything about it" in found.notes
    assert torch.equal(found.clean, plain("pgd-20").clean)
    assert count(found.robust) < count(found.clean)


class Noisy(nn.Module):
    """Adds noise to the logits, from dice of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.dice = deepcopy(trained()), torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        return logits + 2 * torch.randn(logits.shape, generator=self.dice)


@every_attack
def test_a_randomised_model_is_refused(attack: str) -> None:
    with pytest.raises(AttackError, match=r"answers differently each time.*use eot-pgd or autoattack-rand"):
        run(Noisy(), attack)


@pytest.mark.parametrize("attack", ["eot-pgd", "autoattack-rand@steps=10"])
def test_a_randomised_model_is_judged_over_many_passes(attack: str) -> None:
    found = run(Noisy(), attack)
    assert any("mean over 20 passes: clean" in note for note in found.notes)
    # majorities over passes are about what the model without its noise says
    assert abs(count(found.robust) - count(plain("pgd-20").robust)) <= 6
    assert not (found.robust & ~found.clean).any()


# modes, memory, classes


@every_attack
def test_inference_mode_around_an_evaluation_changes_nothing(attack: str) -> None:
    usual, model = plain(attack), trained()
    with torch.inference_mode():
        found = run(model, attack)
    assert torch.equal(found.robust, usual.robust)
    assert found.notes == usual.notes


def test_inference_mode_keeps_the_precision_that_was_asked_for() -> None:
    attack, x, y = attack_for("deepfool", ThreatModel.parse("l2-0.1")), *digits()
    model = trained()
    for mode in (False, True):
        with torch.inference_mode(mode), pytest.raises(UsageError, match="float16"):
            evaluate(model, attack, x, y, classes=10, precision="float16")


def test_weights_from_inside_inference_mode_are_named() -> None:
    with torch.inference_mode():
        model = network(10)
    with pytest.raises(AttackError, match=r"weights were made inside torch\.inference_mode.*load it outside"):
        run(model, "pgd-20")


@every_attack
def test_a_model_in_train_mode_is_attacked_in_eval_mode(attack: str) -> None:
    model = network(10)
    model.load_state_dict(trained().state_dict())
    model.train()
    model[0].eval()
    before = state(model)
    found = run(model, attack)
    assert torch.equal(found.robust, plain(attack).robust)
    assert unchanged(model, before)


def hungry(most: int) -> Around:
    def answer(inner: nn.Module, x: Tensor) -> Tensor:
        if len(x) > most:
            raise torch.OutOfMemoryError(f"{len(x)} images do not fit")
        logits: Tensor = inner(x)
        return logits

    return Around(answer)


@every_attack
@pytest.mark.parametrize("most", [16, 3])
def test_images_that_do_not_fit_go_in_smaller_batches(attack: str, most: int) -> None:
    made = attack_for(attack, ThreatModel.parse(EPS))
    found, crafted = evaluate(hungry(most), made, X, Y, classes=10)
    # fewer than 16 images are summed in another order, which may turn a verdict at the edge
    assert count(found.robust != plain(attack).robust) <= (0 if most >= SMALLEST else 1)
    assert any(note.startswith("out of memory: went on with") for note in crafted.notes)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), MemoryError()],
    ids=lambda error: type(error).__name__,
)
@every_attack
def test_what_does_not_fit_on_a_cpu_goes_in_smaller_batches_too(attack: str, error: Exception) -> None:
    def answer(inner: nn.Module, x: Tensor) -> Tensor:
        if len(x) > 16:
            raise error
        logits: Tensor = inner(x)
        return logits

    assert torch.equal(run(Around(answer), attack).robust, plain(attack).robust)


def test_what_this_torch_says_when_memory_is_short_is_known() -> None:
    with pytest.raises(RuntimeError, match="allocate") as caught:
        torch.zeros(2**45)
    assert exhausted(caught.value)
    assert not exhausted(RuntimeError("shapes differ"))
    assert not exhausted(ValueError("DefaultCPUAllocator: can't allocate memory"))


@every_attack
def test_graphs_that_do_not_fit_go_in_smaller_batches(attack: str) -> None:
    def answer(inner: nn.Module, x: Tensor) -> Tensor:
        if x.requires_grad and len(x) > 16:
            raise torch.OutOfMemoryError(f"{len(x)} graphs do not fit")
        logits: Tensor = inner(x)
        return logits

    found = run(Around(answer), attack)
    assert count(found.robust != plain(attack).robust) <= 1
    assert found.notes == ()  # which a model without gradients would have


@every_attack
def test_not_even_one_image_fits(attack: str) -> None:
    model = hungry(0)
    model.train()
    before = state(model)
    with pytest.raises(torch.OutOfMemoryError, match="1 images do not fit"):
        run(model, attack)
    assert unchanged(model, before)


@every_attack
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_few_classes(attack: str, classes: int) -> None:
    few = classes > Y
    model = Around(lambda inner, x: inner(x)[:, :classes])
    found = run(model, attack, X[few], Y[few], classes=classes)
    assert found.clean.all()
    widest = attack_for(attack, ThreatModel.parse("linf-0.6"))
    assert count(run(model, widest, X[few], Y[few], classes=classes).robust) <= 1


@every_attack
def test_more_outputs_than_labels(attack: str) -> None:
    model = Around(lambda inner, x: torch.cat([inner(x), torch.full((len(x), 2), -50.0)], 1))
    found = run(model, attack, classes=12)
    assert abs(count(found.robust) - count(plain(attack).robust)) <= 1
    with pytest.raises(AttackError, match=r"returned \(40, 12\); expected logits \(40, 10\)"):
        run(model, attack)


@every_attack
def test_a_model_without_parameters(attack: str) -> None:
    class Brightness(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            level = 10 * (x.flatten(1).mean(1) - 0.3)
            return torch.stack([-level, level], 1)

    x = ((torch.arange(20) + 0.5) / 20)[:, None, None, None].expand(-1, 1, 8, 8)
    found = run(Brightness(), attack, x, (x[:, 0, 0, 0] > 0.3).long(), classes=2)
    assert found.clean.all()
    # exactly those further than eps from the threshold stay, so that one knows the right value
    robust = (x[:, 0, 0, 0] - 0.3).abs() > 0.1
    assert torch.equal(found.robust, robust) if "square" not in attack else not (~found.robust & robust).any()


@every_attack
def test_a_plain_function(attack: str) -> None:
    assert torch.equal(run(lambda x: trained()(x), attack).robust, plain(attack).robust)
