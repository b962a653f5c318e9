"""Encoders have the size of the papers' and return what they say; normalisation is part of the model."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robench.errors import UsageError
from robench.models import Encoder, Nets, Normalise, build_nets
from robench.models.resnet import Block, PreActBlock
from robench.registry import MODELS

# parameters of the encoder for colour images; a head of 10 classes adds 10 * (features + 1). The published networks:
# ResNet-18 11,173,962, ResNet-50 23,520,842, PreAct-ResNet-18 11,172,170, WRN-28-10 36,479,194, WRN-34-10 46,160,474
PARAMETERS = {
    "resnet18": 11_173_962 - 5_130,
    "resnet50": 23_520_842 - 20_490,
    "preact-resnet18": 11_172_170 - 5_130,
    "wrn-28-10": 36_479_194 - 6_410,
    "wrn-34-10": 46_160_474 - 6_410,
}


def make(name: str, channels: int = 3) -> Encoder:
    encoder: Encoder = MODELS.load(MODELS.entry(name))(channels)
    return encoder.eval()


def images(channels: int = 3, size: int = 8) -> Tensor:
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", MODELS.rows)
def test_an_encoder_is_what_it_says(name: str) -> None:
    encoder = make(name)
    with torch.no_grad():
        found = encoder(images())
    assert found.shape == (2, encoder.features)
    assert found.isfinite().all()
    assert encoder.features == int(MODELS.rows[name].facts["features"])
    if name in PARAMETERS:
        assert sum(parameter.numel() for parameter in encoder.parameters()) == PARAMETERS[name]


def test_every_published_network_is_counted() -> None:
    assert set(PARAMETERS) == set(MODELS.rows) - {"cnn"}


@pytest.mark.parametrize(("name", "channels", "size"), [("resnet18", 3, 32), ("cnn", 1, 28), ("cnn", 3, 32)])
def test_sizes_of_data_sets_fit(name: str, channels: int, size: int) -> None:
    encoder = make(name, channels)
    with torch.no_grad():
        assert encoder(images(channels, size)).shape == (2, encoder.features)


@pytest.mark.parametrize("name", ["cnn", "resnet18", "preact-resnet18"])
def test_an_image_is_seen_alone_in_eval_mode(name: str) -> None:
    encoder, x = make(name), images()
    with torch.no_grad():
        assert torch.allclose(encoder(x)[:1], encoder(x[:1]), atol=1e-5)


def test_resnet18_halves_the_map_three_times() -> None:
    # the CIFAR stem keeps 32x32; the published network ends at 4x4
    sizes: list[int] = []
    encoder = make("resnet18")
    encoder.body.register_forward_hook(lambda _module, _inputs, output: sizes.append(output.shape[-1]))
    with torch.no_grad():
        encoder(images(size=32))
    assert sizes == [4]


def bn(norm: nn.Module, x: Tensor) -> Tensor:
    """Batch normalisation in eval mode, by its formula."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, var, scale, shift = (
        v.view(1, -1, 1, 1) for v in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / (var + norm.eps).sqrt() * scale + shift


def stirred(block: nn.Module) -> Any:
    """The block in eval mode, with norms that change what passes."""
    generator = torch.Generator().manual_seed(0)
    for norm in block.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
                assert tensor is not None
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return block.eval()


@pytest.mark.parametrize(("inside", "stride"), [(8, 1), (4, 1), (4, 2)])
def test_a_basic_block_is_that_of_the_paper(inside: int, stride: int) -> None:
    block = stirred(Block(inside, 8, stride, bottleneck=False))
    x = torch.randn(2, inside, 6, 6, generator=torch.Generator().manual_seed(1))
    (first, second), norms = block.convolutions, block.norms
    short = x if isinstance(block.short, nn.Identity) else bn(block.short[1], block.short[0](x))
    expected = (bn(norms[1], second(bn(norms[0], first(x)).relu())) + short).relu()
    assert isinstance(block.short, nn.Identity) == ((inside, stride) == (8, 1))
    assert torch.allclose(block(x), expected, atol=1e-5)


@pytest.mark.parametrize(("inside", "stride"), [(8, 1), (4, 1), (4, 2)])
def test_a_pre_activation_block_is_that_of_the_paper(inside: int, stride: int) -> None:
    block = stirred(PreActBlock(inside, 8, stride))
    x = torch.randn(2, inside, 6, 6, generator=torch.Generator().manual_seed(1))
    ready = bn(block.norm1, x).relu()
    short = x if block.short is None else block.short(ready)
    expected = block.conv2(bn(block.norm2, block.conv1(ready)).relu()) + short
    assert (block.short is None) == ((inside, stride) == (8, 1))
    assert torch.allclose(block(x), expected, atol=1e-5)


def test_normalise_shifts_and_scales_each_channel() -> None:
    x = images()
    found = Normalise((0.1, 0.2, 0.3), (1.0, 2.0, 0.5))(x)
    for channel, (mean, std) in enumerate([(0.1, 1.0), (0.2, 2.0), (0.3, 0.5)]):
        assert torch.allclose(found[:, channel], (x[:, channel] - mean) / std)


def test_normalise_learns_nothing_and_is_stored() -> None:
    nets = build_nets("cnn", (3, 8, 8), "cifar10", normalise=True)
    assert not list(nets.entrance.parameters())
    assert {"entrance.mean", "entrance.std"} <= set(nets.state_dict())
    assert nets.state_dict()["entrance.mean"].flatten().tolist() == pytest.approx([0.4914, 0.4822, 0.4465])


def test_an_unknown_data_set_is_centred() -> None:
    nets = build_nets("cnn", (1, 8, 8), "mine:load", normalise=True)
    assert nets.entrance(torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1)).flatten().tolist() == [-1, 0, 1]


def test_nets_are_a_classifier_of_images() -> None:
    nets = build_nets("cnn", (1, 8, 8), "digits", normalise=False).eval()
    nets.parts["head"] = nn.Linear(nets.encoder.features, 10)
    nets.parts["projector"] = nn.Linear(nets.encoder.features, 4)
    x = images(1)
    assert torch.equal(nets(x), nets.parts["head"](nets.encoder(x)))
    assert torch.equal(nets.project(x), nets.parts["projector"](nets.features(x)))
    assert nets.named("encoder") is nets.encoder
    assert nets.named("head") is nets.parts["head"]


def test_one_state_dict_is_the_state_of_everything() -> None:
    nets = build_nets("cnn", (1, 8, 8), "digits", normalise=False)
    nets.parts["head"] = nn.Linear(nets.encoder.features, 10)
    assert {key.split(".")[0] for key in nets.state_dict()} == {"encoder", "parts"}


def no_encoder(channels: int) -> nn.Module:
    return nn.Conv2d(channels, 1, 3)


def test_a_model_without_features_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robench.models.cnn.cnn", no_encoder)
    with pytest.raises(UsageError, match="needs an attribute `features`"):
        build_nets("cnn", (3, 8, 8), "digits", normalise=False)


def test_options_of_a_model_reach_it() -> None:
    nets: Nets = build_nets("cnn@width=4", (1, 8, 8), "digits", normalise=False)
    assert nets.encoder.features == 64
