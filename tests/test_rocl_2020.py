"""RoCL as its released code computes it, transcribed slowly from the formulas, against twenty steps of the trainer.

Nothing here calls the library's networks, losses, attack, optimiser or schedule; shared are only what is drawn: the initial
weights, the augmented views, the order of the images, and the random numbers the attack starts from. Both compute in
float64, so that a rounding never turns the sign of a gradient.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from robench import data, recipe
from robench.augment import augment
from robench.data import Images, Split
from robench.methods import method_for
from robench.noise import ImageGenerator, permutation, seed_of, uniform
from robench.recipe import Augment, Recipe
from robench.run import Run
from robench.state import State
from robench.training import _initial_nets, _with_heads, train

N = 16  # images a step, two groups of 8
STEPS = 20
EPS, STEP, LAMBDA, TEMPERATURE, DECAY = 0.0314, 0.007, 256, 0.5, 1e-6
WARMUP, EPOCHS = 10, STEPS
Weights = dict[str, Tensor]


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything in float64."""
    monkeypatch.setattr(Images, "x", lambda self, index=slice(None): self.pixels[index].double() / 255)
    monkeypatch.setattr("robench.augment.as_float", lambda x: x if x.is_floating_point() else x.double() / 255)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def preset() -> Recipe:
    """The preset on 16 digits, so that an epoch is a step and the log has the loss of every step."""
    small = {
        "dataset": "digits",
        "model": "cnn@width=2",
        "validation": 1437 - N,
        "stage.0.epochs": EPOCHS,
        "stage.0.batch": N,
        "stage.0.options.hidden": 16,
        "stage.0.options.dimensions": 8,
        "stage.0.augment": {"name": "crop-flip", "pad": 1},
    }
    found = recipe.load("rocl-2020", small.items())
    return replace(found, stage=found.stage[:1])


def norm(x: Tensor, w: Weights, layer: str, training: bool) -> Tensor:
    """Batch normalisation; in training it uses the batch and moves the running statistics by a tenth."""
    mean, variance = w[f"{layer}.running_mean"], w[f"{layer}.running_var"]
    if training:
        count = x.numel() // x.shape[1]
        mean = x.mean((0, 2, 3))
        variance = ((x - mean.view(1, -1, 1, 1)) ** 2).mean((0, 2, 3))
        with torch.no_grad():
            w[f"{layer}.running_mean"] = 0.9 * w[f"{layer}.running_mean"] + 0.1 * mean
            w[f"{layer}.running_var"] = 0.9 * w[f"{layer}.running_var"] + 0.1 * variance * count / (count - 1)
    scaled = (x - mean.view(1, -1, 1, 1)) / (variance + 1e-5).sqrt().view(1, -1, 1, 1)
    return scaled * w[f"{layer}.weight"].view(1, -1, 1, 1) + w[f"{layer}.bias"].view(1, -1, 1, 1)


def embed(x: Tensor, w: Weights, training: bool) -> Tensor:
    """Encoder and projector."""
    for number, stride in ((0, 1), (3, 2), (6, 2)):
        x = F.conv2d(x, w[f"encoder.body.{number}.weight"], stride=stride, padding=1)
        x = norm(x, w, f"encoder.body.{number + 1}", training).clamp_min(0)
    flat = x.flatten(1)  # 8x8 images: the last map has the 2x2 places that the pooling keeps
    hidden = (flat @ w["parts.projector.0.weight"].T + w["parts.projector.0.bias"]).clamp_min(0)
    return hidden @ w["parts.projector.2.weight"].T + w["parts.projector.2.bias"]


def similarity(vectors: Tensor) -> Tensor:
    """Cosines over the temperature; gradients reach rows only."""
    z = vectors / vectors.norm(dim=1, keepdim=True)
    return z @ z.detach().T / TEMPERATURE


def pairs(vectors: Tensor, anchors: range) -> Tensor:
    """The sum of -log softmax over every ordered pair of an anchor and another view of its image."""
    n = len(vectors) // (3 if len(vectors) == 3 * N else 2)
    s = similarity(vectors)
    total = torch.zeros(())
    for u in anchors:
        others = [k for k in range(len(vectors)) if k != u]
        denominator = sum(s[u, k].exp() for k in others)
        for k in others:
            if k % n == u % n:
                total = total - (s[u, k].exp() / denominator).log()
    return total


def attack(a: Tensor, b: Tensor, w: Weights, noise: Tensor) -> Tensor:
    """Seven signed steps per group of half the batch, the target encoded again at every one, in eval mode."""
    adv = (a + EPS * (2 * noise - 1)).clamp(0, 1)
    for _ in range(7):
        moved = []
        for part in (slice(0, N // 2), slice(N // 2, N)):
            here = adv[part].detach().requires_grad_()
            loss = pairs(embed(torch.cat([here, b[part]]), w, training=False), range(N // 2))
            (gradient,) = torch.autograd.grad(loss, here)
            there = here.detach() + STEP * gradient.sign()
            moved.append(torch.max(torch.min(there.clamp(0, 1), a[part] + EPS), a[part] - EPS))
        adv = torch.cat(moved)
    return adv


def rate(epoch: int) -> float:
    """0.1 times a factor that rises from 1 to 15 over ten epochs; then a cosine whose period is all epochs."""
    if epoch < WARMUP:
        return 0.1 * (1 + 14 * (epoch + 1) / WARMUP)
    return 1.5 * 0.5 * (1 + math.cos(math.pi * (epoch - WARMUP) / EPOCHS))


def lars(w: Weights, momenta: Weights, gradients: Weights, lr: float) -> None:
    """Every tensor, norms and biases too."""
    for name, gradient in gradients.items():
        weight = w[name].detach()
        size, slope = weight.norm().item(), gradient.norm().item()
        local = 0.001 * size / (slope + DECAY * size + 1e-8) if size > 0 and slope > 0 else 1.0
        momenta[name] = 0.9 * momenta.get(name, torch.zeros_like(weight)) + local * (gradient + DECAY * weight)
        w[name] = weight - lr * momenta[name]


def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Two views and the numbers of the attack's start, for every step."""
    images = data.load("digits", Split.TRAIN, Path())
    kept, _ = data.hold_out(images, 1437 - N)
    for epoch in range(STEPS):
        ids = permutation(seed_of(0, "order", 0, epoch), N)
        x, spec = kept.x(ids), Augment("crop-flip", pad=1)
        a, b = (augment(x, spec, ImageGenerator(seed_of(0, 0, epoch, "view", view), ids)) for view in (0, 1))
        yield a, b, uniform(ImageGenerator(seed_of(0, 0, epoch, "attack"), ids), a.shape, "cpu").double()


def initial(run: Run) -> Weights:
    """The weights a run begins with."""
    images = data.load("digits", Split.TRAIN, Path())
    method = method_for("rocl", run.recipe.stage[0].options)
    nets = _with_heads(run, _initial_nets(run, images), method, State(), images)
    return {key: value.clone() for key, value in nets.state_dict().items() if value.is_floating_point()}


@pytest.mark.usefixtures("double")
def test_twenty_steps_of_the_preset_are_those_of_the_released_code(tmp_path: Path) -> None:
    run = Run(preset(), tmp_path / "run")
    w, momenta = initial(run), {}
    expected = []
    for epoch, (a, b, noise) in enumerate(batches()):
        learning = {key: w[key].requires_grad_() for key in w if "running" not in key}
        adv = attack(a, b, {key: value.detach() for key, value in w.items()}, noise)
        second = torch.stack(
            [
                pairs(z, range(N)) / N  # NT-Xent of a group of 8 images: 16 anchors
                for z in grouped(embed(torch.cat([adv, b]), w, training=True))
            ]
        ).mean()
        three = pairs(embed(torch.cat([a, b, adv]), w, training=True), range(3 * N)) / (3 * N)
        loss = three + second / LAMBDA
        gradients = dict(zip(learning, torch.autograd.grad(loss, list(learning.values())), strict=True))
        expected.append((three.item(), second.item() / LAMBDA))
        lars(w, momenta, gradients, rate(epoch))

    made = train(run)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == STEPS
    for row, (three_, second_) in zip(rows, expected, strict=True):
        assert row["contrastive"] == pytest.approx(three_, abs=1e-5)
        assert row["regulariser"] == pytest.approx(second_, abs=1e-7)
    assert abs(expected[0][0] - expected[-1][0]) > 0.02  # it learned: the losses compared are not one number
    reached = made.load().state_dict()
    for key, value in w.items():
        assert torch.allclose(reached[key].double(), value.detach(), rtol=1e-5, atol=1e-6), key


def grouped(vectors: Tensor) -> list[Tensor]:
    """The two views of each half of the batch."""
    first, second = vectors[:N], vectors[N:]
    return [torch.cat([first[part], second[part]]) for part in (slice(0, N // 2), slice(N // 2, N))]


def test_the_preset_says_what_the_released_code_does() -> None:
    found = recipe.load("rocl-2020")
    stage = found.stage[0]
    assert found.threat is not None
    assert (found.threat.eps, stage.batch, stage.epochs) == (0.0314, 512, 1000)
    assert stage.options["groups"] == 2
    method = method_for(stage.method, stage.options)
    assert method.step * found.threat.eps == pytest.approx(0.007, rel=1e-12)  # type: ignore[attr-defined]
