"""The shapes that attacks, methods and monitors have; anything of the right shape fits, without inheritance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from robench.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from robench.models import Nets
    from robench.recipe import Recipe
    from robench.results import Subject
    from robench.threat import ThreatModel

Classifier: TypeAlias = "Callable[[Tensor], Tensor]"

GAIN = "attack gain"  # what a method calls the rise in loss that its attack reached; it must be positive


class Attack(Protocol):
    """Proposes adversarial images; the evaluator alone decides whether they count.

    An attack is a frozen dataclass with a field `threat`; its other fields are its options. What else it may say of
    itself, as class attributes or methods:

        whole = True        it wants all images in one call and makes its own batches.
        separable = True    though it is `whole`, an image's outcome does not depend on the others, so that ranges of images
                            may be run apart. Of attacks that are not `whole` this is taken for granted.
        finds(left, count)  texts about all images, from how many of `count` each of its members left unbroken.
        minimal = True      it looks for the smallest perturbation; what it returns may lie outside the threat's ball and
                            then counts as robust, and the evaluator keeps each image's norm.
        randomised = True   it is made for models that answer differently each time; others are refused there.
        cost(classes)       the most (forward, backward) passes an image may take.
        confirms = True     whatever it stops on it has asked `robench.door.fooled` about, which asks the model itself in float32;
                            only such attacks search on a faster twin of the model, or in 16 bits.
        exempt = {"I7": ..} laws of `robench.testing` it does not obey, each with the reason.
        notes(classes)      texts a reader of the result should know.
    """

    @property
    def threat(self) -> ThreatModel:
        """The ball it may move in."""
        ...

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Perturb a batch.

        Args:
            model: maps images to logits; in eval mode, parameters frozen.
            x: clean images, (n, channels, height, width), float32 in [0, 1].
            y: labels, (n,), int64.
            generator: the only source of randomness; `robench.noise` draws per image from it.

        Returns:
            Images of the same shape inside the threat's ball and inside [0, 1].
        """
        ...


class Target(Protocol):
    """What can be attacked: a checkpoint of ours, or a classifier from elsewhere (`robench.foreign`).

    Attributes:
        name: how tables call it.
        sha256: of what it is made of; equal digests answer alike.
        classes: how many logits it has.
        shape: channels, height and width of its images.
        dataset: what it is evaluated on unless another is named.
        threat: what it was trained against, if that is known.
        recipe: what trained it, if robench did.
        black_box: whether it has no gradients.
        unready: why it cannot be evaluated, and what to do; empty when it can.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def sha256(self) -> str: ...  # noqa: D102
    @property
    def classes(self) -> int: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, int, int]: ...  # noqa: D102
    @property
    def dataset(self) -> str: ...  # noqa: D102
    @property
    def threat(self) -> ThreatModel | None: ...  # noqa: D102
    @property
    def recipe(self) -> Recipe | None: ...  # noqa: D102
    @property
    def black_box(self) -> bool: ...  # noqa: D102
    @property
    def unready(self) -> str: ...  # noqa: D102

    def load(self, device: torch.device | str = "cpu") -> nn.Module:
        """The network, in eval mode."""
        ...

    def subject(self, dataset: str) -> Subject:
        """What tables need to know of it."""
        ...


@dataclass(frozen=True)
class Batch:
    """What a method sees of the data at one step.

    Attributes:
        views: one tensor per entry of the method's `views`, each (n, channels, height, width) in [0, 1].
        y: labels, (n,), int64. Self-supervised methods do not read it.
        generator: randomness for attacks, keyed by (seed, stage, epoch, image).
    """

    views: tuple[Tensor, ...]
    y: Tensor
    generator: torch.Generator


@dataclass(frozen=True)
class Moment:
    """Where training is: the epoch of how many, and the threat the recipe trains against."""

    epoch: int
    epochs: int
    recipe_threat: ThreatModel | None

    @property
    def threat(self) -> ThreatModel:
        """The threat to train against.

        Raises:
            UsageError: if the recipe names none.
        """
        if self.recipe_threat is None:
            raise UsageError("this method trains against a threat and the recipe names none: --set threat=linf-8/255")
        return self.recipe_threat


class Terms(dict[str, "Tensor"]):
    """Named scalar tensors whose sum is the loss, and what a method measured on the way.

    Args:
        terms: of the loss.
        measured: named scalar tensors that are logged and shown beside the terms, and enter no loss.
    """

    def __init__(self, terms: Mapping[str, Tensor], measured: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(terms)
        self.measured = dict(measured or {})


class Method(Protocol):
    """How to train: which views, which networks, and the terms whose sum is the loss.

    A method is a frozen dataclass whose fields are its options.

    Attributes:
        views: `augmented` or `original` for each view it wants.
        trains: names of the networks that learn; all others are frozen and in eval mode.
        supervised: whether it reads labels.
        select: what picks the best epoch on the validation split: `clean`, `robust`, or `last` for no choice.

    What else it may say of itself, as class attributes, properties or methods:

        adversarial = True   it needs a threat; methods that select by `robust` do anyway.
        fewest = 2           images it needs at each step, because it compares them.
        finetunes = True     it wants a trained encoder, although it trains it further.
        keeps = (NAME, ...)  heads to take along from an earlier stage or the encoder's checkpoint, instead of fresh ones.
        pseudo = 0.5         the share of each batch that is to have pseudo-labels. The classifier of the stage before gives them
                             to all images without labels, and then the networks start anew.
        exact = True         it is not stepped: `solve(nets, batches)` gets all training images, in parts of (x, y), sets the
                             weights, and returns named numbers for the log.
    """

    @property
    def views(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def trains(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def supervised(self) -> bool: ...  # noqa: D102
    @property
    def select(self) -> str: ...  # noqa: D102

    def heads(self, features: int, classes: int) -> dict[str, nn.Module]:
        """Fresh networks this stage adds on top of an encoder with that many features."""
        ...

    def terms(self, nets: Nets, batch: Batch, at: Moment) -> dict[str, Tensor]:
        """Named scalar tensors whose sum is the loss to minimise.

        A method that measures something on the way returns `Terms(terms, measured)`. What it measures as `attack gain`, how
        much its attack raised the loss, must be positive: training stops after an epoch in which it is not.
        """
        ...


@dataclass(frozen=True)
class Progress:
    """One moment of a running task, for whoever watches.

    Attributes:
        task: which task; equal texts are the same bar.
        done: units finished.
        total: units in all.
        values: what to show beside the bar, such as the current loss.
    """

    task: str
    done: float
    total: float
    values: Mapping[str, str] = field(default_factory=dict)


Monitor: TypeAlias = Callable[[Progress], None]


def unwatched(progress: Progress) -> None:
    """A monitor that shows nothing."""


def unheard(text: str) -> None:
    """A listener that does not listen."""
