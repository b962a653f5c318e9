"""Every attack of torchattacks that has an eps runs through the adapter and is judged like any other."""

import inspect
from typing import Any

import pytest
import torch
from torch import nn

from robench import verdict
from robench.attacks import attack_for
from robench.models import build_nets
from robench.threat import Norm, ThreatModel

torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is an extra")
OTHERS = {"AutoAttack", "MultiAttack", "Attack", "LGV", "VANILA"}
NAMES = sorted(
    name
    for name, cls in vars(torchattacks).items()
    if inspect.isclass(cls)
    and issubclass(cls, torchattacks.attack.Attack)
    and name not in OTHERS
    and {"eps", "max_epsilon"} & set(inspect.signature(cls).parameters)
)


def test_there_are_some() -> None:
    assert len(NAMES) > 20


@pytest.mark.parametrize("name", NAMES)
def test_it_is_judged_like_any_other(name: str) -> None:
    parameters = inspect.signature(getattr(torchattacks, name)).parameters
    few = {"steps": 2, "num_iter_set": 2, "n_queries": 10, "nb_iter": 2, "nb_sample": 8, "max_batch_size": 8}
    options = {key: value for key, value in few.items() if key in parameters}
    threat = ThreatModel(Norm.L2, 0.5) if name.endswith("L2") else ThreatModel(Norm.LINF, 8 / 255)
    attack: Any = attack_for(f"torchattacks:{name}", threat, options=options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nets = build_nets("cnn@width=2", (3, 32, 32), "cifar10", normalise=True)
        nets.parts["head"] = nn.Linear(nets.encoder.features, 10)
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    y = nets.eval()(x).argmax(1)
    found, crafted = verdict.evaluate(nets, attack, x, y, classes=10)
    assert found.clean.all()
    assert crafted.forwards > 0
    assert found.largest <= threat.eps * (1 + 1e-5)
