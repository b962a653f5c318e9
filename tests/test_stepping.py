"""One step: parts of a batch sum to the batch, averages are means, and precision and compiling touch what they say."""

import dataclasses
import functools
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_training import StoppedError, after, remains, tiny
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from robench import keeping, training
from robench.arithmetic import Arithmetic, check_precision
from robench.average import Averaged
from robench.checkpoint import open_checkpoint
from robench.errors import UsageError
from robench.methods import method_for
from robench.models import Encoder, Nets, Normalise, Stem, build_nets
from robench.noise import ImageGenerator
from robench.protocols import Batch, Moment
from robench.recipe import Average, Optimiser, Recipe, Stage
from robench.run import Run
from robench.stepping import Stepper
from robench.threat import ThreatModel
from robench.training import train

LINF = ThreatModel.parse("linf-0.1")
N = 12


class Plain(Encoder):
    """An encoder without normalisation, so that images of a batch do not meet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.features = 16
        self.body = nn.Sequential(Stem(channels, 4, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.body(x)
        return found


def networks(model: str = f"{__file__}:Plain") -> Nets:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nets = build_nets(model, (1, 8, 8), "digits", normalise=False)
        nets.parts["head"] = nn.Linear(nets.encoder.features, 4)
    return nets


def part(first: int, last: int, step: int) -> Batch:
    """Some images of a batch; like the trainer's, their noise belongs to them."""
    x = torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(step))
    where = slice(first, last)
    return Batch((x[where],), (torch.arange(N) % 4)[where], ImageGenerator(step, range(N)[where]))


def stepped(method: str, cuts: list[int], **stage: Any) -> tuple[Nets, list[dict[str, Tensor]]]:
    """Three steps on batches cut at some places."""
    nets, spec = networks(), Stage(method, 1, N, Optimiser(0.5, weight_decay=1e-3), **stage)
    stepper, made = Stepper(spec, nets, list(nets.parameters())), method_for(method, {})
    edges = [0, *cuts, N]
    found = [
        stepper.step(
            made,
            nets,
            [functools.partial(part, a, b, step) for a, b in itertools.pairwise(edges)],
            Moment(0, 1, LINF),
        )
        for step in range(3)
    ]
    return nets, found


@pytest.mark.parametrize("method", ["standard", "pgd-at", "trades"])
@pytest.mark.parametrize("cuts", [[6], [4, 8], [5, 10]], ids=str)
def test_parts_of_a_batch_are_the_batch_where_images_do_not_meet(method: str, cuts: list[int]) -> None:
    (nets, terms), (whole, expected) = stepped(method, cuts), stepped(method, [])
    for name, value in whole.state_dict().items():
        assert (nets.state_dict()[name] - value).abs().max() < 1e-6
    for found, wanted in zip(terms, expected, strict=True):
        assert {name: term.item() for name, term in found.items()} == pytest.approx(
            {name: term.item() for name, term in wanted.items()}, abs=1e-6
        )


def test_a_stage_in_parts_is_the_stage(tmp_path: Path) -> None:
    found = []
    for parts in (1, 3):
        made = train(
            Run(tiny("pgd-at-digits", model=f"{__file__}:Plain", stage__0__accumulate=parts), tmp_path / str(parts))
        )
        found.append(made.load().state_dict())
    assert all((found[0][name] - found[1][name]).abs().max() < 1e-5 for name in found[0])


def test_methods_that_compare_images_take_no_parts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="parts of a batch are not the batch"):
        train(Run(tiny("rocl-digits", stage__0__accumulate=2), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ({"accumulate": 0}, "accumulate"),
        ({"accumulate": 65}, "1 to 64"),
        ({"average__name": "emma"}, "'emma' is not one of"),
        ({"average": {"name": "ema", "decay": 1.0}}, "decay"),
        ({"average": {"name": "swa", "start": 2}}, "leaves none of its 2 epochs"),
    ],
)
def test_bad_parts_and_averages_are_refused(bad: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        tiny(**{f"stage__0__{name}": value for name, value in bad.items()})


READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique_dim", "_unique2"}


class Deaf(TorchDispatchMode):
    """A device that never answers: on a real one, the host would wait for all work so far."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function.overloadpacket.__name__ not in READS, function
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimiser", ["sgd", "lars"])
@pytest.mark.parametrize(
    "name", ["pgd-at", "trades", "fgsm-rs", "n-fgsm", "simclr", "supcon", "rocl", "finetune-at-ss"]
)
def test_a_step_reads_nothing_from_the_device(name: str, optimiser: str) -> None:
    small = {"hidden": 16, "dimensions": 8} if name in ("simclr", "supcon", "rocl", "finetune-at-ss") else {}
    nets, method = networks("cnn@width=2"), method_for(name, small)
    nets.parts.update(method.heads(nets.encoder.features, 4))
    spec = Stage(name, 1, N, Optimiser(0.1, name=optimiser), average=Average("ema"))  # type: ignore[arg-type]
    stepper, arithmetic = Stepper(spec, nets, list(nets.parameters())), Arithmetic(nets, bfloat16(fold=True))
    views = part(0, N, 0).views * len(method.views)
    batch = Batch(views, torch.arange(N) % 4, ImageGenerator(0, range(N)))
    with arithmetic.applied(), Deaf():
        found = stepper.step(method, nets, [lambda: batch], Moment(0, 1, LINF))
    assert all(term.isfinite() for term in found.values())


# averages


def moved(nets: Nets, seed: int) -> None:
    """Other weights and statistics, as a step would leave them."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in nets.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator))
        else:
            tensor.add_(1)


def test_an_exponential_average_is_its_formula() -> None:
    nets = networks("cnn@width=2")
    average, mean = Averaged(nets, Average("ema", decay=0.5)), None
    for n in range(6):
        moved(nets, n)
        average.after_step(0)
        now = {name: t.clone() for name, t in nets.state_dict().items() if t.is_floating_point()}
        decay = min(0.5, (1 + n) / (10 + n))
        mean = now if mean is None else {name: decay * mean[name] + (1 - decay) * now[name] for name in now}
    average.exchange()
    assert mean is not None
    assert any("running_mean" in name for name in mean)  # statistics are averaged like weights
    assert all((nets.state_dict()[name] - value).abs().max() < 1e-6 for name, value in mean.items())


def test_an_equal_average_is_the_mean_of_epochs() -> None:
    nets = networks("cnn@width=2")
    average, seen = Averaged(nets, Average("swa", start=2)), []
    for epoch in range(6):
        for _ in range(2):
            average.after_step(epoch)
        moved(nets, epoch)
        average.after_epoch(epoch)
        seen.append({name: t.clone() for name, t in nets.state_dict().items()})
    average.exchange()
    for name, tensor in nets.state_dict().items():
        if tensor.is_floating_point():
            assert (tensor - torch.stack([each[name] for each in seen[2:]]).mean(0)).abs().max() < 1e-6
        else:
            assert torch.equal(tensor, seen[-1][name])
    average.exchange()
    assert all(torch.equal(tensor, seen[-1][name]) for name, tensor in nets.state_dict().items())


def test_a_state_saved_while_the_average_is_judged_goes_on_from_the_weights() -> None:
    nets, again = networks("cnn@width=2"), networks("cnn@width=2")
    average, other = Averaged(nets, Average("ema")), Averaged(again, Average("ema"))
    for n in range(3):
        moved(nets, n)
        average.after_step(0)
    weights = {name: tensor.clone() for name, tensor in nets.state_dict().items()}
    average.exchange()
    again.load_state_dict(nets.state_dict())
    other.load(average.state())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.state_dict().items())
    other.exchange()
    assert all(torch.equal(tensor, nets.state_dict()[name]) for name, tensor in again.state_dict().items())


AVERAGES = [{"name": "ema", "decay": 0.9}, {"name": "swa", "start": 1}]


@pytest.mark.parametrize("average", AVERAGES, ids=lambda each: str(each["name"]))
@pytest.mark.parametrize("steps", [1, 4, 7])
def test_an_interrupted_average_goes_on(
    steps: int, average: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "SAVE_EVERY", 0.0)
    wanted = tiny("simclr-digits", stage__0__epochs=3, stage__0__average=average, stage__1__epochs=2)
    train(Run(wanted, tmp_path / "whole"))
    with pytest.raises(StoppedError):
        train(Run(wanted, tmp_path / "run"), monitor=after(steps))
    train(Run(wanted, tmp_path / "run"), resume=True)
    assert remains(tmp_path / "run") == remains(tmp_path / "whole")


def test_the_average_is_kept_and_training_goes_on_from_the_weights(tmp_path: Path) -> None:
    def weights(epochs: int, **changes: Any) -> dict[str, Tensor]:
        folder = tmp_path / f"{epochs}{len(changes)}"
        train(Run(tiny(stage__0__epochs=epochs, stage__0__schedule__name="constant", **changes), folder))
        return load_file(folder / "last.safetensors")

    one, two = weights(1), weights(2)
    average = weights(2, stage__0__average={"name": "swa"})
    for name, tensor in average.items():
        if tensor.is_floating_point():
            assert (tensor - (one[name] + two[name]) / 2).abs().max() < 1e-5


def test_the_next_stage_begins_with_the_average(tmp_path: Path) -> None:
    wanted = tiny("simclr-digits", stage__0__epochs=2, stage__0__average={"name": "swa"}, stage__1__epochs=1)
    first = train(Run(dataclasses.replace(wanted, stage=wanted.stage[:1]), tmp_path / "first"))
    both = train(Run(wanted, tmp_path / "both"))
    theirs, ours = first.load().encoder.state_dict(), both.load().encoder.state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


# precision and compiling


def bfloat16(**changes: Any) -> Recipe:
    return tiny("pgd-at-digits", precision="bfloat16", **changes)


@pytest.mark.parametrize("fold", [False, True])
def test_bfloat16_keeps_images_stem_weights_and_losses_in_float32(fold: bool) -> None:
    nets = networks("cnn@width=4").train()
    arithmetic = Arithmetic(nets, bfloat16(fold=fold))
    kinds: dict[str, torch.dtype] = {}
    for name, module in nets.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _m, _x, y, name=name: kinds.__setitem__(name, y.dtype))
    x = part(0, N, 0).views[0]
    expected = nets(x).detach()
    with arithmetic.applied():
        found = nets(x)
        assert found.dtype is torch.float32
        assert kinds["encoder.body.0"] is torch.float32  # the stem
        assert kinds["encoder.body.3"] is torch.bfloat16
        assert kinds["parts.head"] is torch.float32
        twin = nets.twin.current() if nets.twin else nets
        attacked = twin(x)
        assert attacked.dtype is torch.float32
    assert all(tensor.dtype is not torch.bfloat16 for tensor in nets.state_dict().values())
    assert 0 < (found - expected).abs().max() < 0.1
    assert torch.equal(nets(x), expected)  # and afterwards in float32 again
    assert nets.twin is None


def test_training_in_bfloat16_repeats_and_is_evaluated_in_float32(tmp_path: Path) -> None:
    made = [train(Run(bfloat16(), tmp_path / name)) for name in ("a", "b")]
    full = train(Run(tiny("pgd-at-digits"), tmp_path / "full"))
    assert made[0].sha256 == made[1].sha256 != full.sha256
    nets = open_checkpoint(str(tmp_path / "a"), tmp_path).load()
    assert nets.precision is torch.float32
    assert made[0].metrics["ce"] == pytest.approx(full.metrics["ce"], rel=0.05)


def test_a_device_without_bfloat16_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Old Card")
    with pytest.raises(UsageError, match=r"Old Card has no bfloat16 arithmetic; use --precision float32"):
        check_precision(bfloat16(), torch.device("cuda"))
    check_precision(tiny("pgd-at-digits"), torch.device("cuda"))
    check_precision(bfloat16(), torch.device("cpu"))


def broken(module: nn.Module) -> Any:
    raise RuntimeError("no compiler\nand a long trace")


def test_compiling_that_fails_leaves_everything_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = train(Run(tiny("pgd-at-digits"), tmp_path / "plain"))
    monkeypatch.setattr(training, "Arithmetic", functools.partial(Arithmetic, compiler=broken))
    made = train(Run(tiny("pgd-at-digits"), tmp_path / "run", compile=True))
    assert made.provenance["compile"] == "failed: RuntimeError: no compiler"
    assert made.sha256 == expected.sha256
    assert "compile" not in expected.provenance


def test_compiled_encoders_are_asked_and_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def compiler(call: Any) -> Any:
        def run(*arguments: Any) -> Any:
            calls.append("trained" if any(p.requires_grad for p in call.__self__.parameters()) else "attacked")
            return call(*arguments)

        return run

    expected = train(Run(tiny("pgd-at-digits", fold=True), tmp_path / "plain"))
    monkeypatch.setattr(training, "Arithmetic", functools.partial(Arithmetic, compiler=compiler))
    made = train(Run(tiny("pgd-at-digits", fold=True), tmp_path / "run", compile=True))
    assert made.sha256 == expected.sha256
    assert made.provenance["compile"] == "yes"
    steps = 2 * 3  # epochs, steps an epoch
    assert calls.count("trained") == steps + 1  # one to try
    assert calls.count("attacked") == 7 * steps


@pytest.mark.filterwarnings("ignore")
def test_torchs_own_compiler_leaves_the_weights_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the graphs of torch.compile, computed op by op: what is compiled is really called, in both modes
    made = []
    for compiled in (False, True):
        monkeypatch.setattr(
            training,
            "Arithmetic",
            functools.partial(Arithmetic, compiler=functools.partial(torch.compile, backend="aot_eager")),
        )
        run = Run(tiny("pgd-at-digits", stage__0__epochs=1), tmp_path / str(compiled), steps=2, compile=compiled)
        made.append(train(run))
    assert made[1].provenance["compile"] == "yes"
    plain, others = (each.load().state_dict() for each in made)
    assert all((plain[name] - others[name]).abs().max() < 1e-4 for name in plain if plain[name].is_floating_point())


def test_the_command_line_sets_precision(run_cli: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("--smoke", "--precision", "bfloat16", "--checkpoints", tmp_path, "--out", out)
    assert run_cli("train", "pgd-at-digits", *options)[0] == 0
    assert json.loads((out / "last.json").read_text())["recipe"]["precision"] == "bfloat16"
    assert "Did you mean 'bfloat16'" in run_cli("train", "pgd-at-digits", "--precision", "bfloat")[2]


def test_normalise_stays_in_float32() -> None:
    nets = Nets(Plain(3), Normalise((0.5,) * 3, (0.5,) * 3))
    nets.precision = torch.bfloat16
    seen: list[torch.dtype] = []
    nets.encoder.register_forward_pre_hook(lambda _m, x: seen.append(x[0].dtype))
    nets.features(torch.rand(2, 3, 8, 8))
    assert seen == [torch.float32]
