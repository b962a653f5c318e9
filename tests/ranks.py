"""What one of several processes makes of its part of a batch; `torchrun tests/ranks.py FILE` writes the first one's view."""

import sys
from typing import Any

import torch

from robench import distributed, parallel
from robench.methods import method_for
from robench.models import Nets, build_nets
from robench.noise import ImageGenerator
from robench.protocols import Batch, Moment
from robench.threat import ThreatModel

BATCH = 8
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "rocl": ("rocl", {"steps": 2, "hidden": 6, "dimensions": 4, "regularise": 0.5}),
    "rocl as the paper has it": (
        "rocl",
        {"steps": 2, "hidden": 6, "dimensions": 4, "positives": "in-log", "anchors": "first", "detach_keys": False},
    ),
    "rocl on batch statistics": ("rocl", {"steps": 2, "hidden": 6, "dimensions": 4, "attack_bn": "train"}),
    "simclr": ("simclr", {"hidden": 6, "dimensions": 4}),
    "pgd-at": ("pgd-at", {"steps": 2}),
    "trades": ("trades", {"steps": 2}),
}


def step(name: str) -> dict[str, torch.Tensor]:
    """Terms, gradients and running statistics of one step over eight images, in float64."""
    kind, options = CASES[name]
    method = method_for(kind, options)
    torch.manual_seed(3)
    nets: Nets = build_nets("cnn@width=2", (1, 8, 8), "digits", True)
    for part, head in method.heads(nets.encoder.features, 3).items():
        nets.parts[part] = head
    nets.double()
    x, y = torch.rand(2, BATCH, 1, 8, 8, dtype=torch.float64), torch.arange(BATCH) % 3
    ids = distributed.own(torch.arange(BATCH))
    nets.train()
    method = parallel.shared(method, nets)
    views = tuple(x[number][ids] for number, _ in enumerate(method.views))
    batch = Batch(views, y[ids], ImageGenerator(5, ids))
    terms = method.terms(nets, batch, Moment(0, 1, ThreatModel.parse("linf-0.15")))
    torch.stack(list(terms.values())).sum().backward()
    found = {f"term {key}": value.detach() for key, value in terms.items()}
    found |= {f"measured {key}": value.detach() for key, value in getattr(terms, "measured", {}).items()}
    found |= {f"gradient {key}": p.grad.clone() for key, p in nets.named_parameters() if p.grad is not None}
    return found | {f"buffer {key}": value.double().clone() for key, value in nets.named_buffers()}


def every() -> dict[str, dict[str, torch.Tensor]]:
    return {name: step(name) for name in CASES}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.joined(lambda: torch.device("cpu")):
        made = every()
        if distributed.leads():
            torch.save(made, sys.argv[1])
