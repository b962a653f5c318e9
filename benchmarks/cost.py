"""What the recipes and tables of RoCL cost, from floating-point operations counted on this code.

    python benchmarks/cost.py --out benchmarks/cost.json        # counts: a few minutes on one core
    python benchmarks/cost.py --read benchmarks/cost.json       # prints the tables again from what was counted
    python benchmarks/cost.py --rate 100                        # hours at 100 TFLOP/s sustained instead of 25

Each training stage takes one real step of 8 images (attack, losses, backward pass and all), whose convolutions and matrix
products are counted; an attack is counted by its listed passes. Hours divide by a rate that is an assumption, named in the
table; nothing here was timed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from robench import recipe
from robench.attacks import attack_for
from robench.checkpoint import nets_after
from robench.door import frozen
from robench.methods import method_for
from robench.noise import ImageGenerator
from robench.protocols import Batch, Moment
from robench.suite import suite
from robench.threat import ThreatModel

RECIPES = (
    *("standard", "pgd-at", "trades", "trades-rocl-augment", "rst", "supcon", "simclr", "rocl"),
    *("robust-linear", "finetune-at", "finetune-trades", "finetune-at-ss"),
)
ATTACKS = (("pgd@steps=20,step=0.1", 6), ("apgd-ce", 6), ("autoattack", 6), ("eot-pgd@draws=30", 6))
IMAGES, COUNT, SHAPE = 49_000, 8, (3, 32, 32)
TESTED = 10_000
SECONDS = 3600 * 1e12  # an hour at 1 TFLOP/s
HEADS = RECIPES[-4:]

Counts = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One row of the page's list of tables.

    Attributes:
        name: as the page has it.
        recipes: what it trains that no row above has trained.
        epochs: of the first stage of runs of `rocl` that a sweep trains, with a head of `head` epochs each.
        head: epochs of those heads.
        cells: how many checkpoints are evaluated, in which suite.
        draws: of a smoothed classifier.
        model: of what is evaluated.
    """

    name: str
    recipes: tuple[str, ...] = ()
    epochs: tuple[int, ...] = ()
    head: int = 0
    cells: tuple[tuple[int, str], ...] = ()
    draws: int = 0
    model: str = "resnet18"


def rows() -> tuple[Row, ...]:
    """The tables in the page's order; CIFAR-100 costs what CIFAR-10 does."""
    others = tuple(name for name in RECIPES if name != "rocl")  # whose CIFAR-100 half table 3 has trained
    return (
        Row("table 1, ResNet-18", RECIPES, cells=((12, "rocl-table1"),)),
        Row(
            "table 1, ResNet-50",
            tuple(f"{name}-resnet50" for name in RECIPES),
            cells=((12, "rocl-table1"),),
            model="resnet50",
        ),
        Row("table 1, smoothed rows", cells=((3, "rocl-table1"),), draws=30),
        Row("table 2, black box", cells=((2, "rocl-table2"),)),  # four columns of one, two of each of two
        Row("table 3, robust transfer", ("rocl", "transfer-cifar10", "transfer-cifar100"), cells=((2, "rocl-table3"),)),
        Row("table 4, attack target", ("rocl",), cells=((1, "rocl-table1"),)),
        Row("table 5, steps", cells=((1, "rocl-table5"),)),
        Row("table 6, attack loss", ("rocl",) * 3, cells=((3, "rocl-table1"),)),
        Row("table 7, CIFAR-100", others, cells=((12, "rocl-table7"),)),
        Row("table 8, CW", cells=((4, "rocl-table8"),)),
        Row("table 9, views", epochs=(500,) * 8, head=100, cells=((8, "rocl-table3"),)),
        Row("table 10, lambda", epochs=(500,) * 6, head=100, cells=((6, "rocl-table3"),)),
        Row("table 11, batch", epochs=(500,) * 4, head=100, cells=((4, "rocl-table3"),)),
        Row("figure 3c, epochs", epochs=(50, 100, 200, 500, 1000), head=150, cells=((5, "rocl-table3"),)),
        Row("figure 3d, draws", cells=((1, "rocl-fig3d"),)),
        Row("none: the same under stronger attacks", cells=((12, "rocl-strong"),)),
    )


class Counter(TorchDispatchMode):
    """Counts the operations of convolutions and matrix products; torch's own mode cannot follow an attack's gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        count = flop_registry.get(function.overloadpacket)
        self.total += count(*args, **(kwargs or {}), out_val=found) if count else 0
        return found


def images(stage: recipe.Stage) -> float:
    """How many images an epoch takes: the labelled ones, and the share of each batch that has pseudo-labels."""
    return IMAGES / (1 - getattr(method_for(stage.method, stage.options), "pseudo", 0.0))


def stage_flops(wanted: recipe.Recipe, number: int) -> float:
    """Operations of one image in one step of a stage."""
    stage = wanted.stage[number]
    method = method_for(stage.method, stage.options)
    nets = nets_after(wanted, number + 1, 10, SHAPE)
    if "projector" not in nets.parts and "projector" in method.trains:
        nets.parts["projector"] = method_for("simclr", {}).heads(nets.encoder.features, 10)["projector"]
    nets.eval()
    for parameter in nets.parameters():
        parameter.requires_grad_(False)
    for name in method.trains:
        nets.named(name).train().requires_grad_(True)
    x = torch.rand(COUNT, *SHAPE)
    batch = Batch(tuple(x.clone() for _ in method.views), torch.arange(COUNT) % 10, ImageGenerator(0, range(COUNT)))
    with Counter() as counter:
        found = method.terms(nets, batch, Moment(0, 1, wanted.threat))
        terms = getattr(found, "terms", found)
        torch.stack(list(terms.values())).sum().backward()
    return counter.total / COUNT


def pass_flops(name: str) -> tuple[float, float]:
    """Operations of a forward pass of one image through a recipe's network, and of the gradient with respect to it."""
    nets = nets_after(recipe.load(name), 1, 10, SHAPE)
    x = torch.rand(COUNT, *SHAPE).requires_grad_()
    with frozen(nets):
        with Counter() as forward:
            total = nets(x).sum()
        with Counter() as backward:
            torch.autograd.grad(total, x)
    return forward.total / COUNT, backward.total / COUNT


def counted() -> Counts:
    """Operations of an image in a step of each stage of each recipe, and in a pass through each network."""
    named = dict.fromkeys(name for row in rows() for name in row.recipes)
    stages = {}
    for name in named:
        wanted = recipe.load(name)
        stages[name] = [stage_flops(wanted, number) for number in range(len(wanted.stage))]
    passes = {model: pass_flops(name) for model, name in (("resnet18", "standard"), ("resnet50", "standard-resnet50"))}
    return {"stages": stages, "passes": passes}


def training(counts: Counts, name: str) -> float:
    """Operations that a recipe takes."""
    flops = counts["stages"][name]
    return sum(work * images(stage) * stage.epochs for work, stage in zip(flops, recipe.load(name).stage, strict=True))


def attacking(counts: Counts, model: str, attack: str, threat: ThreatModel, draws: int = 0) -> float:
    """Operations that attacking all test images takes at most, and judging them where that takes draws."""
    forward, backward = counts["passes"][model]
    forwards, backwards = attack_for(attack, threat).cost(10)  # type: ignore[attr-defined]
    return TESTED * ((forwards + draws) * forward + backwards * backward)


def of(counts: Counts, row: Row) -> tuple[float, float]:
    """Operations of a row's training, and of its evaluation at most."""
    trained = sum(training(counts, name) for name in row.recipes)
    rocl, head = counts["stages"]["rocl"]
    trained += IMAGES * sum(rocl * epochs + head * row.head for epochs in row.epochs)
    evaluated = 0.0
    for models, name in row.cells:
        for column in suite(name).columns:
            draws = column.draws or row.draws
            evaluated += models * attacking(counts, row.model, column.attack, column.threat, draws)
            if draws and not column.source:
                evaluated += models * attacking(counts, row.model, column.adaptive, column.threat, draws)
    return trained, evaluated


def hours(work: float, rate: float) -> str:
    """Operations as hours; a dash for none."""
    found = work / rate / SECONDS
    return "-" if not work else f"{found:,.0f}" if found >= 10 else f"{found:.1f}" if found >= 0.05 else "< 0.1"


def by_recipe(counts: Counts, rate: float) -> Iterator[str]:
    """The first table: what each recipe takes."""
    yield f"| training, ResNet-18 on CIFAR-10 | PFLOP | hours at {rate:g} TFLOP/s |"
    yield "|---|---:|---:|"
    for name in RECIPES:
        work = training(counts, name)
        yield f"| `{name}` | {work / 1e15:,.0f} | {work / rate / SECONDS:.1f} |"


def by_attack(counts: Counts, rate: float) -> Iterator[str]:
    """The second: what each attack takes."""
    yield f"| attacking 10,000 images, at most | PFLOP | minutes at {rate:g} TFLOP/s |"
    yield "|---|---:|---:|"
    for name, threats in ATTACKS:
        work = attacking(counts, "resnet18", name, ThreatModel.parse("linf-8/255"))
        label = f"`{name}`, one threat ({threats} columns of table 1: x{threats})"
        yield f"| {label} | {work / 1e15:,.1f} | {60 * work / rate / SECONDS:.1f} |"


def by_table(counts: Counts, rate: float) -> Iterator[str]:
    """The third: what each of the paper's tables takes."""
    yield f"| paper | hours of training at {rate:g} TFLOP/s | of evaluation, at most |"
    yield "|---|---:|---:|"
    for row in rows():
        trained, evaluated = of(counts, row)
        yield f"| {row.name} | {hours(trained, rate)} | {hours(evaluated, rate)} |"


def main() -> None:
    """Count or read, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=25.0, help="TFLOP/s that a GPU sustains")
    parser.add_argument("--read", type=Path, help="take the counts from this file")
    parser.add_argument("--out", type=Path, help="keep the counts in this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    counts = json.loads(given.read.read_text()) if given.read else counted()
    if given.out:
        given.out.write_text(json.dumps(counts, indent=1) + "\n")
    for table in (by_recipe, by_attack, by_table):
        print("\n".join(table(counts, given.rate)) + "\n")


if __name__ == "__main__":
    main()
