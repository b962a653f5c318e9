"""What one of several processes makes of its part of a batch; `torchrun tests/ranks.py FILE` writes the first one's view."""

import sys
from functools import partial
from typing import Any

import torch

from robench import distributed, parallel
from robench.methods import method_for
from robench.models import Nets, build_nets
from robench.noise import ImageGenerator
from robench.protocols import Batch, Method, Moment
from robench.recipe import Average, Optimiser, Stage
from robench.stepping import Stepper
from robench.threat import ThreatModel

BATCH = 8
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "rocl": ("rocl", {"steps": 2, "hidden": 6, "dimensions": 4, "regularise": 0.5}),
    "rocl as the paper has it": (
        "rocl",
        {"steps": 2, "hidden": 6, "dimensions": 4, "positives": "in-log", "anchors": "first", "detach_keys": False},
    ),
    "rocl on batch statistics": ("rocl", {"steps": 2, "hidden": 6, "dimensions": 4, "attack_bn": "train"}),
    "rocl in groups": ("rocl", {"steps": 2, "hidden": 6, "dimensions": 4, "groups": 2}),
    "rocl in groups that processes cut": (
        "rocl",
        {"steps": 2, "hidden": 6, "dimensions": 4, "groups": 3, "detach_keys": False, "attack_bn": "train"},
    ),
    "supcon": ("supcon", {"hidden": 6, "dimensions": 4}),
    "simclr": ("simclr", {"hidden": 6, "dimensions": 4}),
    "pgd-at": ("pgd-at", {"steps": 2}),
    "trades": ("trades", {"steps": 2}),
}


AVERAGES = {"in parts, ema": (2, Average("ema", decay=0.7)), "in parts, swa": (2, Average("swa"))}


def networks(method: Method) -> Nets:
    """Small ones in float64, the same everywhere."""
    torch.manual_seed(3)
    nets: Nets = build_nets("cnn@width=2", (1, 8, 8), "digits", True)
    for part, head in method.heads(nets.encoder.features, 3).items():
        nets.parts[part] = head
    return nets.double().train()


def step(name: str) -> dict[str, torch.Tensor]:
    """Terms, gradients and running statistics of one step over eight images, in float64."""
    kind, options = CASES[name]
    method = method_for(kind, options)
    nets = networks(method)
    x, y = torch.rand(2, BATCH, 1, 8, 8, dtype=torch.float64), torch.arange(BATCH) % 3
    ids = distributed.own(torch.arange(BATCH))
    method = parallel.shared(method, nets)
    views = tuple(x[number][ids] for number, _ in enumerate(method.views))
    batch = Batch(views, y[ids], ImageGenerator(5, ids))
    terms = method.terms(nets, batch, Moment(0, 1, ThreatModel.parse("linf-0.15")))
    torch.stack(list(terms.values())).sum().backward()
    found = {f"term {key}": value.detach() for key, value in terms.items()}
    found |= {f"measured {key}": value.detach() for key, value in getattr(terms, "measured", {}).items()}
    found |= {f"gradient {key}": p.grad.clone() for key, p in nets.named_parameters() if p.grad is not None}
    return found | {f"buffer {key}": value.double().clone() for key, value in nets.named_buffers()}


def steps(name: str) -> dict[str, torch.Tensor]:
    """Weights, running statistics and their average after three steps over eight images in parts, in float64."""
    parts, average = AVERAGES[name]
    method = method_for("pgd-at", {"steps": 2})
    nets = networks(method)
    method = parallel.shared(method, nets)
    stage = Stage("pgd-at", epochs=3, batch=BATCH, optimiser=Optimiser(lr=0.1), accumulate=parts, average=average)
    stepper = Stepper(stage, nets, list(nets.parameters()))
    generator = torch.Generator().manual_seed(4)
    for number in range(3):
        x = torch.rand(BATCH, 1, 8, 8, dtype=torch.float64, generator=generator)

        def part(ids: torch.Tensor, x: torch.Tensor = x, number: int = number) -> Batch:
            return Batch((x[ids],), ids % 3, ImageGenerator(5 + number, ids))

        made = [partial(part, distributed.own(ids)) for ids in torch.arange(BATCH).chunk(parts)]
        stepper.step(method, nets, made, Moment(number, 3, ThreatModel.parse("linf-0.15")))
        stepper.after_epoch(number)
    found = {f"weights {key}": value.double().clone() for key, value in nets.state_dict().items()}
    stepper.exchange()
    return found | {f"average {key}": value.double().clone() for key, value in nets.state_dict().items()}


def every() -> dict[str, dict[str, torch.Tensor]]:
    return {name: step(name) for name in CASES} | {name: steps(name) for name in AVERAGES}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.joined(lambda: torch.device("cpu")):
        made = every()
        if distributed.leads():
            torch.save(made, sys.argv[1])
