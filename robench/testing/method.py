"""`check_method`: laws that every training method obeys, tried on a tiny network and through the real trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from robench import files
from robench.admission import pseudo_share
from robench.errors import UsageError
from robench.methods import method_for
from robench.models import Nets, build_nets
from robench.noise import ImageGenerator
from robench.protocols import Batch, Method, Moment
from robench.recipe import Recipe
from robench.registry import METHODS
from robench.run import Run
from robench.spec import build
from robench.testing.laws import LawError
from robench.testing.suite import demand, first_broken, held
from robench.threat import ThreatModel
from robench.training import train

CLASSES, SIDE, COUNT = 4, 8, 8
LINF = ThreatModel.parse("linf-0.1")
SELECTS, VIEWS = ("clean", "robust", "last"), ("augmented", "original")


@dataclass
class Trial:
    """A method and what a law needs of it.

    Attributes:
        name: as a recipe has it.
        options: its own.
    """

    name: str
    options: Mapping[str, Any]

    @cached_property
    def method(self) -> Method:
        """It."""
        return method_for(self.name, self.options)

    def nets(self) -> Nets:
        """A small random network, the same each time, as the trainer sets it up: only what learns is in train mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            nets = build_nets("cnn@width=4", (1, SIDE, SIDE), "digits", normalise=False)
            for name, head in self.method.heads(nets.encoder.features, CLASSES).items():
                nets.parts[name] = head
            with torch.no_grad():
                for _ in range(30):  # running statistics near those of a batch, as in training
                    nets.features(_images(9))
        nets.eval().requires_grad_(False)
        for name in self.method.trains:
            nets.named(name).train().requires_grad_(True)
        return nets

    def batch(self) -> Batch:
        """Random views with labels."""
        views = tuple(_images(number) for number in range(len(self.method.views)))
        return Batch(views, torch.arange(COUNT) % CLASSES, ImageGenerator(0, range(COUNT)))

    def terms(self, nets: Nets, batch: Batch | None = None) -> dict[str, Tensor]:
        """What it returns."""
        return self.method.terms(nets, self.batch() if batch is None else batch, Moment(0, 10, LINF))


def _images(seed: int) -> Tensor:
    return torch.rand(COUNT, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def says_what_it_is(trial: Trial) -> None:
    """It is a frozen dataclass; views, trains, supervised and select are of the kinds that the trainer knows."""
    method, cls = trial.method, type(trial.method)
    demand(is_dataclass(method) and cls.__dataclass_params__.frozen, f"{cls.__qualname__} is no frozen dataclass")
    bad = [view for view in method.views if view not in VIEWS]
    demand(method.views and not bad, f"views are {method.views}; expected some of {', '.join(VIEWS)}")
    demand(method.select in SELECTS, f"select is {method.select!r}; expected {', '.join(SELECTS)}")
    demand(isinstance(method.supervised, bool), f"supervised is {method.supervised!r}; expected True or False")
    there = {"encoder", *method.heads(16, CLASSES)}
    missing = [name for name in method.trains if name not in there]
    demand(method.trains and not missing, f"it trains {method.trains}, and there are {', '.join(sorted(there))}")


def refuses_unknown_options(trial: Trial) -> None:
    """An option it does not have is refused, by name."""
    odd = "no_such_option"
    try:
        method_for(trial.name, {**trial.options, odd: 1})
    except UsageError as error:
        demand(odd in str(error), f"the refusal does not name the option: {error}")
        return
    raise LawError("an unknown option was taken")


def heads_are_the_same(trial: Trial) -> None:
    """Heads have the same names and shapes each time, so that a checkpoint can be read again."""
    one, two = (_shapes(trial.method.heads(16, CLASSES)) for _ in range(2))
    demand(one == two, f"{sorted(set(one.items()) ^ set(two.items()))} differ")
    head = trial.method.heads(16, CLASSES).get("head")
    if isinstance(head, nn.Module):
        shape = tuple(head(torch.zeros(2, 16)).shape)
        demand(shape == (2, CLASSES), f"its head returns {shape} for 2 rows and {CLASSES} classes")


def _shapes(heads: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in some heads, by name."""
    every = [(f"{name}.{key}", t) for name, head in heads.items() for key, t in head.state_dict().items()]
    return {name: tuple(tensor.shape) for name, tensor in every}


def terms_are_finite(trial: Trial) -> None:
    """Terms are named scalars, finite, at least one."""
    terms = trial.terms(trial.nets())
    demand(isinstance(terms, dict) and terms, "it returned no terms")
    for name, term in terms.items():
        demand(isinstance(term, Tensor) and term.shape == (), f"{name} is no scalar tensor")
        demand(term.isfinite(), f"{name} is {term.item()}")


def gradients_reach(trial: Trial) -> None:
    """The gradient reaches every network it trains and no other, even when everything could learn."""
    nets = trial.nets()
    nets.requires_grad_(True)
    torch.stack(list(trial.terms(nets).values())).sum().backward()
    for part in ("encoder", *nets.parts):
        reached = any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in nets.named(part).parameters())
        trains = part in trial.method.trains
        demand(reached == trains, f"{part} {'gets no gradient' if trains else 'gets a gradient and is not trained'}")


def leaves_everything(trial: Trial) -> None:
    """Weights, modes, views and the global random state are afterwards what they were; nothing has a gradient."""
    nets, batch = trial.nets(), trial.batch()
    weights = {key: value.clone() for key, value in nets.named_parameters()}
    modes, views, state = [m.training for m in nets.modules()], [v.clone() for v in batch.views], torch.get_rng_state()
    trial.terms(nets, batch)
    for key, value in nets.named_parameters():
        demand(torch.equal(value, weights[key]), f"it changed {key}")
        demand(value.grad is None, f"it left a gradient in {key}")
    demand(modes == [m.training for m in nets.modules()], "it left a network in another mode")
    demand(all(map(torch.equal, batch.views, views)), "it changed a view")
    demand(torch.equal(state, torch.get_rng_state()), "it drew from the global generator; draw from batch.generator")


def repeats(trial: Trial) -> None:
    """The same batch and generator give the same terms, bit for bit."""
    one, two = (trial.terms(trial.nets()) for _ in range(2))
    differ = [name for name in one if not torch.equal(one[name], two[name])]
    demand(not differ, f"{', '.join(differ)} differ the second time; draw from batch.generator")


def reads_labels_if_supervised(trial: Trial) -> None:
    """A method that is not supervised does not read the labels."""
    if trial.method.supervised:
        return
    batch = trial.batch()
    other = Batch(batch.views, (batch.y + 1) % CLASSES, ImageGenerator(0, range(COUNT)))
    one, two = trial.terms(trial.nets(), batch), trial.terms(trial.nets(), other)
    differ = [name for name in one if not torch.equal(one[name], two[name])]
    demand(not differ, f"{', '.join(differ)} depend on the labels; say supervised = True")


def trains_and_repeats(trial: Trial) -> None:
    """Two steps by the real trainer on digits work, and give the same weights the second time."""
    runs = []
    with files.scratch() as folder:
        for name in ("one", "two"):
            made = train(Run(_recipe(trial), folder / name, steps=2))
            runs.append(files.sha256((made.folder / "last.safetensors").read_bytes()))
    demand(runs[0] == runs[1], "the weights differ the second time")


def _recipe(trial: Trial) -> Recipe:
    """A recipe of one stage, after a classifier where there must be one."""
    stage: dict[str, Any] = {
        "method": trial.name,
        "epochs": 1,
        "batch": max(16, getattr(trial.method, "fewest", 1)),
        "optimiser": {"lr": 0.01},
        "options": dict(trial.options),
    }
    before = [{**stage, "method": "standard", "options": {}}] if pseudo_share(trial.method) else []
    table = {
        "dataset": "digits",
        "model": "cnn@width=2",
        "threat": str(LINF),
        "validation": 64,
        "stage": [*before, stage],
    }
    return build(Recipe, {"name": "check", **table})


LAWS: Mapping[str, Callable[[Trial], None]] = {
    "M1": says_what_it_is,
    "M2": refuses_unknown_options,
    "M3": heads_are_the_same,
    "M4": terms_are_finite,
    "M5": gradients_reach,
    "M6": leaves_everything,
    "M7": repeats,
    "M8": reads_labels_if_supervised,
    "M9": trains_and_repeats,
}


def outcomes(
    method: str, options: Mapping[str, Any] | None = None, laws: Iterable[str] | None = None
) -> Iterator[tuple[str, str, LawError | None]]:
    """Every law with what came of it; see `suite.held`."""
    trial = Trial(method, options or {})
    exempt = {**METHODS.entry(method).exempt, **getattr(type(trial.method), "exempt", {})}
    return held("method", method, LAWS, trial, chosen=laws, exempt=exempt)


def check_method(
    method: str, options: Mapping[str, Any] | None = None, laws: Iterable[str] | None = None
) -> dict[str, str]:
    """Hold a training method to the laws.

    Args:
        method: as a recipe has it: a name, `module:object` or `path/to/file.py:object`.
        options: its own.
        laws: names of `LAWS`; all when None.

    Returns:
        For each law `obeyed`, or `exempt: ` and the reason, from the row in the registry or the class attribute `exempt`.

    Raises:
        LawError: for the first law that is broken.
        UsageError: for an unknown method, option or law.
    """
    return first_broken(outcomes(method, options, laws))
