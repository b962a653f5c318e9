"""How fast training is, as ratios in one run: steps against plain transcriptions, augmentation against torchvision.

    python benchmarks/training.py --data DIR                       # DIR as robench's --data; minutes on one core
    python benchmarks/training.py --data DIR --width 16 --batch 64 # a narrow network
    python benchmarks/training.py --data DIR --only levers         # what each lever gives
    python benchmarks/training.py --data DIR --check FILE          # exit code 1 if a ratio fell by more than a tenth

One torch thread, CPU time of this process, variants interleaved, medians. Both sides get the same CIFAR-10 images and a
ResNet-18 of the same width and weights. Prints a Markdown table; --out keeps it as JSON.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
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
RECIPES = {"pgd-at": "PGD-AT-10 step", "trades": "TRADES-10 step", "rocl": "RoCL step"}


def nets_for(wanted: Recipe, width: int) -> Nets:
    """The recipe's networks at a width, with statistics that a few batches of noise have moved."""
    torch.manual_seed(0)
    nets = build_nets(f"resnet18@width={width}", (3, 32, 32), wanted.dataset, wanted.normalise)
    stage = wanted.stage[0]
    nets.parts.update(method_for(stage.method, stage.options).heads(nets.encoder.features, 10))
    return nets


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
    stage, nets = wanted.stage[0], nets_for(wanted, width)
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
    nets = nets_for(wanted, width).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
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
        wanted = recipe.load(name)
        batch = batch_of(wanted, images, torch.arange(arguments.batch))
        peers = {"plain transcription": theirs(wanted, arguments.width, batch)}
        if name == "pgd-at":
            peers["released loop, transcribed"] = theirs(wanted, arguments.width, batch, released=True)
        mine = {
            precision: ours(replace(wanted, precision=precision), arguments.width, batch, arguments.compile)
            for precision in arguments.precision
        }
        found = measure.timed({**peers, **mine}, arguments.repeats, now=measure.clock(images.pixels.device))
        for peer in peers:
            words = "" if peer == "plain transcription" else " against the released loop"
            rows += [measure.row(f"{title}{words}, {kind}", peer, found[kind], found[peer]) for kind in mine]
    return rows


def levers(arguments: argparse.Namespace, images: Images) -> list[measure.Row]:
    """What each lever adds to a PGD-AT-10 step, one after the other, against the plain transcription."""
    base = recipe.load("pgd-at")
    batch = batch_of(base, images, torch.arange(arguments.batch))
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
    found = measure.timed(variants, arguments.repeats)
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
    ids = torch.arange(512)
    pixels = images.pixels[ids].permute(0, 2, 3, 1).numpy()
    rows = []
    for name, (spec, transform) in pairs.items():
        found = measure.timed(
            {
                "ours": lambda spec=spec: augment(images.pixels[ids], spec, ImageGenerator(0, ids)),  # type: ignore[misc]
                "pil": lambda transform=transform: torch.stack([transform(Image.fromarray(p)) for p in pixels]),  # type: ignore[misc]
            },
            max(arguments.repeats, 15),
        )
        one = {key: [value / len(ids) for value in values] for key, values in found.items()}
        rate = f"{1 / sorted(one['ours'])[len(one['ours']) // 2]:,.0f} images/s/core"
        rows.append(measure.row(name, "torchvision, single PIL images", one["ours"], one["pil"], rate))
    return rows


def pipeline(arguments: argparse.Namespace, images: Images) -> list[measure.Row]:
    """How much of a training step its input takes: the step over the pipeline, so 20x is 5 %."""
    rows, ids = [], torch.arange(arguments.batch)
    for name, title in RECIPES.items():
        wanted = recipe.load(name)
        batch = batch_of(wanted, images, ids)
        found = measure.timed(
            {
                "input": lambda wanted=wanted: batch_of(wanted, images, ids),  # type: ignore[misc]
                "step": ours(wanted, arguments.width, batch),
            },
            arguments.repeats,
        )
        row = measure.row(f"input of a {title}", "the step", found["input"], found["step"])
        rows.append(replace(row, note=f"{100 / (1 + row.ratio):.2f} % of both"))
    return rows


def wall(arguments: argparse.Namespace, images: Images) -> list[measure.Row]:
    """What is left: how much of a step are convolutions, and what the machine makes of one in either precision."""
    shape, width = (64, 32, 32), 64
    layers: dict[str, Callable[[], Any]] = {}
    for kind in (torch.float32, torch.bfloat16):
        x = torch.randn(16, *shape, dtype=kind).to(memory_format=torch.channels_last)
        weight = torch.randn(width, width, 3, 3, dtype=kind).to(memory_format=torch.channels_last)
        layers[str(kind)] = lambda x=x, weight=weight: torch.nn.functional.conv2d(x, weight, padding=1)  # type: ignore[misc]
    found = measure.timed(layers, max(arguments.repeats, 9))
    work = 2 * 16 * 32 * 32 * width * width * 9 / 1e9
    rate = ", ".join(f"{work / sorted(times)[len(times) // 2]:.0f} GFLOP/s" for times in found.values())
    rows = [
        measure.row(
            "bfloat16 convolution",
            "float32",
            found["torch.bfloat16"],
            found["torch.float32"],
            f"float32, bfloat16: {rate}",
        )
    ]
    for name, title in RECIPES.items():
        wanted = recipe.load(name)
        step = ours(wanted, arguments.width, batch_of(wanted, images, torch.arange(arguments.batch)))
        step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            step()
        times = {event.key: event.self_cpu_time_total / 1e6 for event in seen.key_averages()}
        hard = sum(time for key, time in times.items() if "convolution" in key or key in ("aten::addmm", "aten::mm"))
        share = hard / sum(times.values())
        rows.append(
            measure.Row(
                f"convolutions of a {title}", "the step", hard, sum(times.values()), note=f"{100 * share:.0f} % of it"
            )
        )
    return rows


def main() -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="where CIFAR-10 is")
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
        images = data.load("cifar10", Split.TRAIN, arguments.data).take(slice(2048))
    except DataError as error:
        print(f"skipped: no CIFAR-10 images ({error})", file=sys.stderr)
        return 0
    rows: list[measure.Row] = []
    for name, part in zip(PARTS, (augmentation, steps, levers, pipeline, wall), strict=True):
        if not arguments.only or name in arguments.only:
            rows += part(arguments, images)
    settings = {key: getattr(arguments, key) for key in ("width", "batch", "repeats", "compile", "precision")}
    return measure.finish(rows, arguments, settings)


if __name__ == "__main__":
    sys.exit(main())
