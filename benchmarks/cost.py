"""What the recipes and tables of RoCL cost, from floating-point operations counted on this code.

    python benchmarks/cost.py                 # ResNet-18 on CIFAR-10: a minute or two on one core
    python benchmarks/cost.py --rate 100      # hours at 100 TFLOP/s sustained instead of 25

Each training stage takes one real step of 8 images (attack, losses, backward pass and all), whose convolutions and matrix
products are counted; an attack is counted by its listed passes. Hours divide by a rate that is an assumption, named in the
table; nothing here was timed.
"""

from __future__ import annotations

import argparse
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
from robench.threat import ThreatModel

RECIPES = (
    *("standard", "pgd-at", "trades", "trades-rocl-augment", "rst", "supcon", "simclr", "rocl"),
    *("robust-linear", "finetune-at", "finetune-trades", "finetune-at-ss"),
)
ATTACKS = (("pgd@steps=20,step=0.1", 6), ("apgd-ce", 6), ("autoattack", 6), ("eot-pgd@draws=30", 6))
IMAGES, COUNT, SHAPE = 49_000, 8, (3, 32, 32)


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


def pass_flops() -> tuple[float, float]:
    """Operations of a forward pass of one image, and of the gradient with respect to it."""
    nets = nets_after(recipe.load("standard"), 1, 10, SHAPE)
    x = torch.rand(COUNT, *SHAPE).requires_grad_()
    with frozen(nets):
        with Counter() as forward:
            total = nets(x).sum()
        with Counter() as backward:
            torch.autograd.grad(total, x)
    return forward.total / COUNT, backward.total / COUNT


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=25.0, help="TFLOP/s that a GPU sustains")
    rate = parser.parse_args().rate
    torch.set_num_threads(1)
    print(f"| training, ResNet-18 on CIFAR-10 | PFLOP | hours at {rate:g} TFLOP/s |\n|---|---:|---:|")
    for name in RECIPES:
        wanted = recipe.load(name)
        work = sum(stage_flops(wanted, i) * images(stage) * stage.epochs for i, stage in enumerate(wanted.stage))
        print(f"| `{name}` | {work / 1e15:,.0f} | {work / rate / 3.6e15:.1f} |", flush=True)
    forward, backward = pass_flops()
    print(f"\n| attacking 10,000 images, at most | PFLOP | minutes at {rate:g} TFLOP/s |\n|---|---:|---:|")
    for name, threats in ATTACKS:
        attack = attack_for(name, ThreatModel.parse("linf-8/255"))
        forwards, backwards = attack.cost(10)  # type: ignore[attr-defined]
        work = 10_000 * (forwards * forward + backwards * backward)
        label = f"`{name}`, one threat ({threats} columns of table 1: x{threats})"
        print(f"| {label} | {work / 1e15:,.1f} | {work / rate / 6e13:.1f} |")


if __name__ == "__main__":
    main()
