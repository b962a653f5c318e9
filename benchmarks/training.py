"""How fast training is, as ratios in one run: steps against plain transcriptions, augmentation against torchvision.

    python benchmarks/training.py --data DIR                       # DIR as robench's --data; minutes on one core
    python benchmarks/training.py --data DIR --width 16 --batch 64 # a narrow network
    python benchmarks/training.py --data DIR --only levers         # what each lever gives
    python benchmarks/training.py --data DIR --check FILE          # exit code 1 if a ratio fell by more than a tenth
    python benchmarks/training.py --data DIR --device cuda --batch 128

One torch thread, CPU time of this process (on a GPU wall time, synchronised), variants interleaved, medians.
Both sides get the same images and a ResNet-18 of the same width and weights. Prints a Markdown table; --out keeps it as JSON.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import measure
import plain
import torch
from torch import Tensor

from robench import data, recipe
from robench.arithmetic import Arithmetic
from robench.augment import as_float, augment
from robench.data import Images, Split
from robench.errors import DataError
from robench.methods import method_for
from robench.models import Nets, build_nets
from robench.noise import ImageGenerator, seed_of
from robench.protocols import Batch, Moment
from robench.recipe import Augment, Recipe
from robench.stepping import Stepper

PARTS = ("augment", "steps", "levers", "pipeline", "wall")
HARD = ("aten::addmm", "aten::mm", "aten::bmm")  # and whatever has a convolution in its name
RECIPES = {"pgd-at": "PGD-AT-10 step", "trades": "TRADES-10 step", "rocl": "RoCL step"}


def nets_for(wanted: Recipe, width: int, like: Tensor) -> Nets:
    """The recipe's networks at a width, for images like these and where they are."""
    torch.manual_seed(0)
    shape = like.shape[1], like.shape[2], like.shape[3]
    nets = build_nets(f"resnet18@width={width}", shape, wanted.dataset, wanted.normalise)
    stage = wanted.stage[0]
    nets.parts.update(method_for(stage.method, stage.options).heads(nets.encoder.features, 10))
    return nets.to(like.device)


def named(name: str, images: Images) -> Recipe:
    """A recipe by name, for a data set."""
    return recipe.load(name if images.name == "cifar10" else f"{name}-{images.name}")


def first(images: Images, count: int) -> Tensor:
    """The numbers of the first images, where they are."""
    return torch.arange(count, device=images.pixels.device)


def timed(variants: dict[str, Callable[[], Any]], repeats: int, images: Images) -> dict[str, list[float]]:
    """Seconds of each variant, by the clock of the device that the images are on."""
    return measure.timed(variants, repeats, now=measure.clock(images.pixels.device))


def batch_of(wanted: Recipe, images: Images, ids: Tensor, epoch: int = 0) -> Batch:
    """What the trainer's input pipeline makes of some images."""
    stage = wanted.stage[0]
    x = images.pixels[ids]
    views = tuple(
        augment(x, stage.augment, ImageGenerator(seed_of(0, 0, epoch, "view", number), ids))
        if view == "augmented"
        else as_float(x)
        for number, view in enumerate(method_for(stage.method, stage.options).views)
    )
    return Batch(views, images.y[ids], ImageGenerator(seed_of(0, 0, epoch, "attack"), ids))


def ours(wanted: Recipe, width: int, batch: Batch, compiled: bool = False, tile: bool = True) -> Callable[[], None]:
    """A step as the trainer takes it; `tile` as in `Arithmetic`."""
    stage, nets = wanted.stage[0], nets_for(wanted, width, batch.views[0])
    method, at = method_for(stage.method, stage.options), Moment(0, 1, wanted.threat)
    stepper = Stepper(stage, nets, list(nets.parameters()))
    arithmetic = Arithmetic(nets, wanted, tuple(batch.views[0].shape) if compiled else None, tile=tile)
    if compiled and arithmetic.told["compile"] != "yes":
        sys.exit(f"--compile: {arithmetic.told['compile']}")

    def step() -> None:
        nets.train()
        stepper.rate(1e-3)
        with arithmetic.applied():
            stepper.step(method, nets, [lambda: replace(batch, generator=batch.generator.branch("again"))], at)  # type: ignore[attr-defined]

    return step


def theirs(wanted: Recipe, width: int, batch: Batch, released: bool = False) -> Callable[[], Any]:
    """A step of the plain transcription, NCHW; PGD-AT's with or without what the released loop does besides."""
    nets = nets_for(wanted, width, batch.views[0]).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    spec = wanted.stage[0].optimiser
    kind = plain.LARS if spec.name == "lars" else torch.optim.SGD
    optimiser = kind(nets.parameters(), lr=1e-4, momentum=spec.momentum, weight_decay=spec.weight_decay)
    views = [view.contiguous() for view in batch.views]
    if wanted.stage[0].method == "rocl":
        return lambda: plain.rocl(nets.project, nets, optimiser, views[0], views[1])
    attacks = plain.pgd_at_released if released else plain.pgd_at
    loop: Callable[..., Any] = {"pgd-at": attacks, "trades": plain.trades}[wanted.stage[0].method]
    return lambda: loop(nets, optimiser, views[0], batch.y)


def steps(arguments: argparse.Namespace, images: Images) -> list[measure.Row]:
    """Whole training steps, in each precision, against the plain transcriptions."""
    rows = []
    for name, title in RECIPES.items():
        wanted = named(name, images)
        batch = batch_of(wanted, images, first(images, arguments.batch))
        peers = {"plain transcription": theirs(wanted, arguments.width, batch)}
        if name == "pgd-at":
            peers["released loop, transcribed"] = theirs(wanted, arguments.width, batch, released=True)
        mine = {
            precision: ours(replace(wanted, precision=precision), arguments.width, batch, arguments.compile)
            for precision in arguments.precision
        }
        found = timed({**peers, **mine}, arguments.repeats, images)
        for peer in peers:
            words = "" if peer == "plain transcription" else " against the released loop"
            rows += [measure.row(f"{title}{words}, {kind}", peer, found[kind], found[peer]) for kind in mine]
    return rows


def levers(arguments: argparse.Namespace, images: Images) -> list[measure.Row]:
    """What each lever adds to a PGD-AT-10 step, one after the other, against the plain transcription."""
    base = named("pgd-at", images)
    batch = batch_of(base, images, first(images, arguments.batch))
    flat = replace(base, fold=False)

    def contiguous() -> Callable[[], None]:
        run = ours(flat, arguments.width, batch)
        cells = dict(zip(run.__code__.co_freevars, run.__closure__ or (), strict=True))
        cells["nets"].cell_contents.to(memory_format=torch.contiguous_format)
        return run

    variants: dict[str, Callable[[], Any]] = {
        "plain": theirs(base, arguments.width, batch),
        "no weight gradients in the attack": contiguous(),
        "+ channels-last": ours(flat, arguments.width, batch),
        "+ folded normalisations": ours(base, arguments.width, batch, tile=False),
        "+ convolutions in tiles": ours(base, arguments.width, batch),
        "bfloat16, folded": ours(replace(base, precision="bfloat16"), arguments.width, batch),
        "bfloat16, not folded": ours(replace(flat, precision="bfloat16"), arguments.width, batch),
    }
    if arguments.compile:
        variants["+ compiled, float32"] = ours(base, arguments.width, batch, True)
        variants["+ compiled, bfloat16"] = ours(replace(base, precision="bfloat16"), arguments.width, batch, True)
    found = timed(variants, arguments.repeats, images)
    return [
        measure.row(f"lever: {name}", "plain transcription", found[name], found["plain"])
        for name in variants
        if name != "plain"
    ]


def augmentation(arguments: argparse.Namespace, images: Images) -> list[measure.Row]:
    """Views an image, against torchvision's transforms of single PIL images."""
    from PIL import Image
    from torchvision import transforms

    to_tensor = transforms.ToTensor()
    pairs = {
        "augmentation simclr": (
            recipe.load("rocl").stage[0].augment,
            transforms.Compose(
                [
                    transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                    transforms.RandomGrayscale(p=0.2),
                    transforms.RandomHorizontalFlip(),
                    transforms.RandomResizedCrop(32, scale=(0.08, 1.0)),
                    to_tensor,
                ]
            ),
        ),
        "augmentation crop-flip": (
            Augment("crop-flip"),
            transforms.Compose([transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), to_tensor]),
        ),
    }
    ids = first(images, 512)
    pixels = images.pixels[ids].cpu().permute(0, 2, 3, 1).numpy()
    rows = []
    for name, (spec, transform) in pairs.items():
        found = timed(
            {
                "ours": lambda spec=spec: augment(images.pixels[ids], spec, ImageGenerator(0, ids)),  # type: ignore[misc]
                "pil": lambda transform=transform: torch.stack([transform(Image.fromarray(p)) for p in pixels]),  # type: ignore[misc]
            },
            max(arguments.repeats, 15),
            images,
        )
        one = {key: [value / len(ids) for value in values] for key, values in found.items()}
        rate = f"{1 / sorted(one['ours'])[len(one['ours']) // 2]:,.0f} images/s/core"
        rows.append(measure.row(name, "torchvision, single PIL images", one["ours"], one["pil"], rate))
    return rows


def pipeline(arguments: argparse.Namespace, images: Images) -> list[measure.Row]:
    """How much of a training step its input takes: the step over the pipeline, so 20x is 5 %."""
    rows, ids = [], first(images, arguments.batch)
    for name, title in RECIPES.items():
        wanted = named(name, images)
        batch = batch_of(wanted, images, ids)
        found = timed(
            {
                "input": lambda wanted=wanted: batch_of(wanted, images, ids),  # type: ignore[misc]
                "step": ours(wanted, arguments.width, batch),
            },
            arguments.repeats,
            images,
        )
        row = measure.row(f"input of a {title}", "the step", found["input"], found["step"])
        rows.append(replace(row, note=f"{100 / (1 + row.ratio):.2f} % of both"))
    return rows


def wall(arguments: argparse.Namespace, images: Images) -> list[measure.Row]:
    """What is left: what the machine makes of a layer in each precision, and how much of a step are convolutions."""
    rows = []
    for name, title in RECIPES.items():
        wanted = named(name, images)
        step = ours(wanted, arguments.width, batch_of(wanted, images, first(images, arguments.batch)))
        step()
        rows.append(profiled(step, title, images.pixels.device))
    return layers(max(arguments.repeats, 9), images) + rows


def layers(repeats: int, images: Images) -> list[measure.Row]:
    """A convolution of 64 channels with its input's gradient, and a matrix product, in 16 bits against float32."""
    device, rows = images.pixels.device, []
    work = {"convolution and its gradient": 4 * 16 * 32 * 32 * 64 * 64 * 9, "matrix product": 2 * 1024**3}
    for what, operations in work.items():
        runs: dict[str, Callable[[], Any]] = {}
        for kind in (torch.float32, torch.bfloat16, torch.float16):
            runs[str(kind).removeprefix("torch.")] = layer(what, kind, device)
        found = timed(runs, repeats, images)
        rate = {kind: f"{operations / sorted(times)[len(times) // 2] / 1e9:.0f}" for kind, times in found.items()}
        for kind in ("bfloat16", "float16"):
            note = f"{rate[kind]} and {rate['float32']} GFLOP/s"
            rows.append(measure.row(f"{kind} {what}", "float32", found[kind], found["float32"], note))
    return rows


def layer(what: str, kind: torch.dtype, device: torch.device) -> Callable[[], Any]:
    """One of `layers`, everything already in that precision and channels-last."""
    if what == "matrix product":
        a = torch.randn(1024, 1024, device=device).to(kind)
        return lambda: a @ a
    last = torch.channels_last
    x = torch.randn(16, 64, 32, 32, device=device).to(kind).to(memory_format=last).requires_grad_()
    weight = torch.randn(64, 64, 3, 3, device=device).to(kind).to(memory_format=last)
    back = torch.randn(16, 64, 32, 32, device=device).to(kind).to(memory_format=last)
    return lambda: torch.autograd.grad(torch.nn.functional.conv2d(x, weight, padding=1), x, back)


def profiled(step: Callable[[], None], title: str, device: torch.device) -> measure.Row:
    """How much of a step are convolutions and matrix products; on a GPU also, for how much of it the device is busy."""
    kinds = torch.profiler.ProfilerActivity
    now = measure.clock(device)
    gpu = device.type == "cuda"
    with torch.profiler.profile(activities=[kinds.CPU, *([kinds.CUDA] if gpu else [])]) as seen:
        began = now()
        step()
        took = now() - began
    field = "self_device_time_total" if gpu else "self_cpu_time_total"
    times = {event.key: getattr(event, field) / 1e6 for event in seen.key_averages()}
    hard = sum(time for key, time in times.items() if "convolution" in key or key in HARD)
    whole = sum(times.values())
    note = f"{100 * hard / whole:.0f} % of it" + (f"; the device is busy for {100 * whole / took:.0f} %" if gpu else "")
    return measure.Row(f"convolutions of a {title}", "the step", hard, whole, note=note)


def main() -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="where CIFAR-10 is")
    parser.add_argument("--dataset", choices=("cifar10", "digits"), default="cifar10")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=64, help="of the ResNet-18; 64 is the usual one")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", nargs="*", default=["float32", "bfloat16"], help="of our steps")
    parser.add_argument("--only", choices=PARTS, action="append", help="measure this part only; may repeat")
    parser.add_argument("--compile", action="store_true", help="compile our encoders")
    parser.add_argument("--out", type=Path, help="keep the table as JSON")
    parser.add_argument("--check", type=Path, help="hold the ratios to those kept in this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        images = data.load(arguments.dataset, Split.TRAIN, arguments.data).take(slice(2048)).to(arguments.device)
    except DataError as error:
        print(f"skipped: no images ({error})", file=sys.stderr)
        return 0
    functions = dict(zip(PARTS, (augmentation, steps, levers, pipeline, wall), strict=True))
    chosen = {name: part for name, part in functions.items() if not arguments.only or name in arguments.only}
    rows, again = measure.measured({name: partial(part, arguments, images) for name, part in chosen.items()})
    settings = {key: getattr(arguments, key) for key in ("width", "batch", "repeats", "compile", "precision", "device")}
    return measure.finish(rows, again, arguments, settings)


if __name__ == "__main__":
    sys.exit(main())
