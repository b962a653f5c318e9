"""`check_model`: laws of the networks that recipes train (encoders), and of those that are only evaluated (classifiers)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from robench.data import Images, Split
from robench.door import frozen
from robench.errors import CheckpointError, RobenchError, UsageError, first_line
from robench.foreign import Foreign, open_foreign
from robench.models import build_nets
from robench.registry import CLASSIFIERS, MODELS
from robench.testing.laws import LawError
from robench.testing.suite import demand, first_broken, held

COUNT = 20
CLOSE = 1e-3  # by which share of the largest number rounding may move an answer


@dataclass
class Trial:
    """A model, random images, and what a law needs.

    Attributes:
        name: as a recipe or `--model` has it.
        shape: channels, height and width of the images.
        classes: how many; a classifier whose own number differs keeps it.
        encoder: whether it returns features instead of logits.
    """

    name: str
    shape: tuple[int, int, int]
    classes: int
    encoder: bool

    @cached_property
    def images(self) -> Images:
        """Random images with random labels."""
        dice = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (COUNT, *self.shape), generator=dice, dtype=torch.uint8)
        return Images("random", Split.TEST, pixels, torch.arange(COUNT) % self.classes, self.classes)

    def made(self) -> nn.Module:
        """A fresh network, the same each time, in eval mode."""
        if not self.encoder:
            return self.foreign().load()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build_nets(self.name, self.shape, "random", normalise=False).encoder.eval()

    def foreign(self) -> Foreign:
        """It as `--model` opens it."""
        return open_foreign(self.name, self.images)

    def answers(self, network: nn.Module, x: Tensor) -> Tensor:
        """What a network says, without a graph."""
        with frozen(network), torch.no_grad():
            found: Tensor = network(x)
        return found


def answers_with_rows(trial: Trial) -> None:
    """Each image gives one row of finite numbers: an encoder its `features`, a classifier its logits."""
    network, x = trial.made(), trial.images.x()
    found = trial.answers(network, x)
    demand(isinstance(found, Tensor) and found.is_floating_point(), f"it returned {type(found).__name__}")
    wide = getattr(network, "features", 0) if trial.encoder else trial.foreign().classes
    demand(found.shape == (len(x), wide), f"it returned {tuple(found.shape)}; expected {(len(x), wide)}")
    demand(found.isfinite().all(), "it returned NaN or infinite numbers")


def repeats(trial: Trial) -> None:
    """In eval mode the same images give the same answer twice."""
    network, x = trial.made(), trial.images.x()
    moved = (trial.answers(network, x) - trial.answers(network, x)).abs().max().item()
    demand(moved == 0, f"answers differ by up to {moved:.3g}; a randomised model needs eot-pgd or autoattack-rand")


def looks_at_one_image(trial: Trial) -> None:
    """In eval mode an image's answer does not depend on the others of its batch."""
    network, x = trial.made(), trial.images.x()
    whole = trial.answers(network, x)
    for part in (x[:3], x.flip(0)[-3:].flip(0)):
        moved = (trial.answers(network, part) - whole[:3]).abs().max().item()
        demand(moved <= CLOSE * whole.abs().max().item(), f"answers differ by up to {moved:.3g} in another batch")


def is_made_the_same(trial: Trial) -> None:
    """Made twice with the same global seed it has the same weights, and they can be stored and read again."""
    one, two = trial.made(), trial.made()
    states = one.state_dict(), two.state_dict()
    differ = [key for key in states[0] if not torch.equal(states[0][key], states[1][key])]
    demand(not differ and states[0].keys() == states[1].keys(), f"{differ or 'names'} differ the second time")
    stored = load_tensors(save_tensors({key: value.contiguous() for key, value in states[0].items()}))
    two.load_state_dict(stored)


def has_a_gradient(trial: Trial) -> None:
    """The gradient with respect to the pixels is finite and not zero; a black box says that it has none."""
    if not trial.encoder and trial.foreign().black_box:
        return
    network, x = trial.made(), trial.images.x().requires_grad_()
    with frozen(network):
        found = network(x)
    demand(found.requires_grad, "the graph is cut: does it detach, or leave torch?")
    slope = torch.autograd.grad(found.square().sum(), x)[0]
    demand(slope.isfinite().all(), "it is NaN or infinite")
    flat = int((slope.flatten(1).abs().amax(1) == 0).sum())
    demand(flat == 0, f"it is zero for {flat} of {len(x)} images")


def returns_logits(trial: Trial) -> None:
    """A classifier returns logits, not probabilities."""
    if trial.encoder:
        return
    found = trial.answers(trial.made(), trial.images.x())
    sums = found.sum(1)
    demand(found.min() < 0 or (sums - 1).abs().max() > 1e-3, "its rows sum to 1: return what goes into the softmax")


def follows_the_mode(trial: Trial) -> None:
    """Every part follows eval() and train()."""
    network = trial.made()
    stuck = [name or "it" for name, module in network.eval().named_modules() if module.training]
    demand(not stuck, f"{', '.join(stuck[:3])} stays in train mode after eval()")


LAWS: Mapping[str, Callable[[Trial], None]] = {
    "N1": answers_with_rows,
    "N2": repeats,
    "N3": looks_at_one_image,
    "N4": is_made_the_same,
    "N5": has_a_gradient,
    "N6": returns_logits,
    "N7": follows_the_mode,
}


def outcomes(
    model: str, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10, laws: Iterable[str] | None = None
) -> Iterator[tuple[str, str, LawError | None]]:
    """Every law with what came of it; see `suite.held`."""
    encoder = is_encoder(model)
    exempt = (MODELS if encoder else CLASSIFIERS).entry(model).exempt
    trial = Trial(model, shape, classes, encoder)
    _try(trial)
    return held("model", model, LAWS, trial, chosen=laws, exempt=exempt)


def _try(trial: Trial) -> None:
    """Make a model once: what cannot be made breaks no law, and is one error.

    Raises:
        UsageError: saying why.
    """
    try:
        trial.made()
    except CheckpointError as error:
        size = "x".join(map(str, trial.shape))
        why = str(error).partition(". Resize them")
        advice = f". Name the size it takes in place of {size}: --shape 3x224x224" if why[1] else ""
        raise UsageError(f"model {trial.name!r}: {why[0]}{advice}") from error
    except RobenchError:
        raise
    except (Exception, SystemExit) as error:  # whatever code from elsewhere does
        raise UsageError(f"model {trial.name!r} cannot be made: {type(error).__name__}: {first_line(error)}") from error


def is_encoder(model: str) -> bool:
    """Whether a name is that of an encoder; of a function from elsewhere, whether it asks for `channels` first.

    Raises:
        UsageError: if nobody knows the name.
    """
    name = model.partition("@")[0]
    if name in CLASSIFIERS.plugins() or f"{name.partition(':')[0]}:" in CLASSIFIERS.rows:
        return False
    entry = MODELS.entry(model)
    if ":" not in name:
        return True
    made = MODELS.load(entry)
    try:
        first = next(iter(inspect.signature(made).parameters), "") if callable(made) else ""
    except (TypeError, ValueError):
        first = ""
    return first == "channels" and not isinstance(made, nn.Module)


def check_model(
    model: str, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10, laws: Iterable[str] | None = None
) -> dict[str, str]:
    """Hold an encoder or a classifier to the laws.

    Args:
        model: as a recipe's `model` or `--model` has it.
        shape: channels, height and width of the random images it is tried on.
        classes: how many classes they have.
        laws: names of `LAWS`; all when None.

    Returns:
        For each law `obeyed`, or `exempt: ` and the reason, from its row in the registry.

    Raises:
        LawError: for the first law that is broken.
        UsageError: for an unknown model or law.
    """
    return first_broken(outcomes(model, shape, classes, laws))
