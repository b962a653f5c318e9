"""Recipes: what to train, on what, stage by stage, and what the paper published; read from TOML."""

from __future__ import annotations

import copy
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from robench.errors import UsageError, unknown
from robench.files import web_page
from robench.registry import DATASETS, METHODS, MODELS
from robench.spec import assign, build
from robench.threat import ThreatModel


@dataclass(frozen=True)
class Optimiser:
    """How weights move. `lr` is the peak of the schedule."""

    lr: float
    name: Literal["sgd", "lars"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        """Refuse what no optimiser takes."""
        for name in ("lr", "momentum", "weight_decay"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise UsageError(f"optimiser.{name} must be a finite number of at least 0, not {getattr(self, name)}")
        if self.nesterov and (not self.momentum or self.name == "lars"):
            raise UsageError("optimiser.nesterov is for sgd with a momentum above 0")


@dataclass(frozen=True)
class Schedule:
    """How the learning rate moves, as a pure function of progress.

    Attributes:
        name: `constant`, `cosine` (to zero), `step`, or `one-cycle`: the warm-up, then a straight fall to zero.
        warmup: epochs of linear rise to the peak; step counts epochs from the start of the stage.
        start: the share of the peak at which the warm-up starts.
        period: for `cosine`, what half a wave takes: the `rest` of the stage after the warm-up, so that it ends at zero, or
            the `whole` stage, so that the warm-up cuts off its end (RoCL's code).
        every: whether the rate moves at every `step` or once an `epoch`.
        drops: for `step`, the epochs from which the rate is multiplied by `factor` once more.
        factor: for `step`.
    """

    name: Literal["constant", "cosine", "step", "one-cycle"] = "constant"
    warmup: float = 0.0
    start: float = 0.0
    period: Literal["rest", "whole"] = "rest"
    every: Literal["step", "epoch"] = "step"
    drops: tuple[int, ...] = ()
    factor: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what would be no schedule."""
        if not (0 <= self.warmup < math.inf and 0 <= self.start <= 1 and 0 <= self.factor < math.inf):
            raise UsageError(
                f"schedule: warmup ({self.warmup}) and factor ({self.factor}) must be finite and at least 0, "
                f"and start ({self.start}) between 0 and 1"
            )
        if self.name == "one-cycle" and not self.warmup:
            raise UsageError(
                "schedule: one-cycle rises before it falls, so it needs a warmup of some epochs: warmup = 5"
            )

    def rate(self, epoch: float, epochs: int) -> float:
        """The share of the peak learning rate at a moment.

        Args:
            epoch: epochs passed, the current step included, so that the last step of epoch 0 is at 1.0.
            epochs: of the stage.
        """
        if self.every == "epoch":  # constant within an epoch: the warm-up as at its end, the rest as at its beginning
            index = max(math.ceil(epoch) - 1, 0)
            epoch = index + 1 if index < self.warmup else index
            rising = index < self.warmup
        else:
            rising = epoch < self.warmup
        if rising:
            return min(1.0, self.start + (1 - self.start) * epoch / self.warmup)
        if self.name == "cosine":
            period = epochs - self.warmup if self.period == "rest" else epochs
            return 0.5 * (1 + math.cos(math.pi * (epoch - self.warmup) / max(period, 1e-9)))
        if self.name == "one-cycle":
            return max(0.0, (epochs - epoch) / max(epochs - self.warmup, 1e-9))
        if self.name == "step":
            return self.factor ** sum(epoch >= drop for drop in self.drops)
        return 1.0


@dataclass(frozen=True)
class Augment:
    """How an augmented view is made; see `robench.augment`.

    Attributes:
        name: `none`, `crop-flip` or `simclr`.
        flip: mirror half of the images.
        pad: for `crop-flip`, how far a crop may shift, in pixels.
        area: for `simclr`, the smallest share of the image a crop may have.
        jitter: for `simclr`, the strength of brightness, contrast and saturation.
        hue: for `simclr`, the strength of the hue shift.
        grey: for `simclr`, the probability of a grey image.
    """

    name: Literal["none", "crop-flip", "simclr"] = "none"
    flip: bool = True
    pad: int = 4
    area: float = 0.08
    jitter: float = 0.4
    hue: float = 0.1
    grey: float = 0.2

    def __post_init__(self) -> None:
        """Refuse strengths that mean nothing."""
        for name, low, high in (("pad", 0, 1000), ("area", 1e-6, 1), ("jitter", 0, 1), ("hue", 0, 0.5), ("grey", 0, 1)):
            if not low <= getattr(self, name) <= high:
                raise UsageError(f"augment.{name} must be between {low:g} and {high:g}, not {getattr(self, name)}")


@dataclass(frozen=True)
class Average:
    """Which average of the weights is judged and kept; see `robench.average`.

    Attributes:
        name: `none`, `ema` (exponential, after each step) or `swa` (equal, after each epoch).
        decay: for `ema`, the share of the average that stays at each step.
        start: epochs of the stage that pass before averaging begins.
    """

    name: Literal["none", "ema", "swa"] = "none"
    decay: float = 0.999
    start: int = 0

    def __post_init__(self) -> None:
        """Refuse what would average nothing."""
        if not 0 <= self.decay < 1 or self.start < 0:
            raise UsageError(
                f"average: decay ({self.decay}) must be at least 0 and below 1, and start ({self.start}) a number of epochs"
            )


@dataclass(frozen=True)
class Stage:
    """One method for some epochs.

    Attributes:
        method: a registered method or `module:object`.
        epochs: how many.
        batch: images a step.
        optimiser: how weights move.
        schedule: how the learning rate moves.
        augment: what `augmented` means for the method's views.
        options: the method's own fields.
        probe: after how many epochs to look at the features of a stage that trains no classifier, by nearest neighbours and
            a ridge classifier on the validation split (and after its last epoch); 0 for never. Nothing depends on it.
        accumulate: into how many parts a batch is cut that does not fit into memory; their gradients are summed. For networks
            without batch normalisation that is the same step; with it each part has statistics of its own.
        average: which average of the weights is judged and kept.
    """

    method: str
    epochs: int
    batch: int
    optimiser: Optimiser
    schedule: Schedule = field(default_factory=Schedule)
    augment: Augment = field(default_factory=Augment)
    options: Mapping[str, Any] = field(default_factory=dict)
    probe: int = 10
    accumulate: int = 1
    average: Average = field(default_factory=Average)

    def __post_init__(self) -> None:
        """Refuse stages that train nothing."""
        if self.probe < 0:
            raise UsageError(f"stage {self.method!r}: probe ({self.probe}) is a number of epochs, or 0 for never")
        if self.epochs < 1 or self.batch < 1:
            raise UsageError(
                f"stage {self.method!r}: epochs ({self.epochs}) and batch ({self.batch}) must be at least 1"
            )
        if not 1 <= self.accumulate <= self.batch:
            raise UsageError(
                f"stage {self.method!r}: accumulate ({self.accumulate}) is how many parts a batch of {self.batch} falls into: "
                f"1 to {self.batch}"
            )
        if self.average.name != "none" and self.average.start >= self.epochs:
            raise UsageError(
                f"stage {self.method!r}: average.start ({self.average.start}) leaves none of its {self.epochs} epochs to "
                "average"
            )


@dataclass(frozen=True)
class Published:
    """One figure of a paper.

    Attributes:
        table: where it stands.
        attack: how it was attacked, or `clean`.
        accuracy: as a fraction.
        threat: the threat, if any.
        note: what else matters, such as why it is suspect.
    """

    table: str
    attack: str
    accuracy: float
    threat: ThreatModel | None = None
    note: str = ""


@dataclass(frozen=True)
class Recipe:
    """Everything a training run depends on besides the seed.

    Attributes:
        name: of the recipe, and by default of the run.
        summary: one line for `robench list recipes`.
        group: how tables group it: `supervised` or `self-supervised`.
        dataset: a registered data set; `resize = 32` beside it in TOML is short for `@resize=32` after it.
        model: a registered encoder.
        stages: what happens, in order; `[[stage]]` in TOML.
        threat: what it trains against, if anything.
        normalise: whether the model begins by normalising pixels.
        validation: training images held out for every choice made while training.
        labels: the share of labels that stages may read which read labels, in (0, 1]; the same share of every class.
        extra: images to use without their labels, by stages that make pseudo-labels: a data set of the same shape, or
            `npz:FILE` with an array `image` (images, height, width, channels) of uint8.
        precision: of the encoder's arithmetic in training: `bfloat16` keeps images, stem, weights, heads and losses in float32.
            Evaluation is in float32 whatever this says.
        fold: whether attacks inside training ask a twin whose batch normalisations are folded into convolutions: the same
            network up to rounding, and faster.
        source: the paper.
        differs: where this recipe departs from it.
        published: the paper's figures.
    """

    name: str
    dataset: str
    model: str
    stage: tuple[Stage, ...]
    summary: str = ""
    group: Literal["supervised", "self-supervised"] = "supervised"
    threat: ThreatModel | None = None
    normalise: bool = False
    validation: int = 1000
    labels: float = 1.0
    extra: str = ""
    precision: Literal["float32", "bfloat16"] = "float32"
    fold: bool = True
    source: str = ""
    differs: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()

    def __post_init__(self) -> None:
        """Refuse recipes without stages, names nobody knows, and a name of its own that is no folder's."""
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"the name {self.name!r} is to name a folder: 1 to 200 visible characters, no / or \\, and no dot in front"
            )
        if not self.stage:
            raise UsageError(f"recipe {self.name!r} has no [[stage]]")
        if not 0 < self.labels <= 1:
            raise UsageError(f"labels must be a share above 0 and up to 1, such as 0.1 or 1/100, not {self.labels:g}")
        DATASETS.entry(self.dataset)
        if self.extra:
            DATASETS.entry(self.extra)
        if self.extra.partition("@")[0] == self.dataset.partition("@")[0]:
            raise UsageError(
                f"extra={self.extra} names the training images themselves; to use some of them without their labels: "
                "--set labels=0.1"
            )
        MODELS.entry(self.model)
        for stage in self.stage:
            METHODS.entry(stage.method)


# a run's folder is named after its recipe, which may be a stranger's
_NAME = re.compile(r"(?!\.)[^/\\\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]{1,200}")
WEIGHTS = (".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".tar", ".onnx")  # endings of files that people name instead
_OWN = ("name", "summary", "published")  # never taken from another recipe: they speak of that one alone


def folder() -> Path:
    """Where the recipes that come with robench are: in the package, or beside it in a checkout."""
    inside = Path(__file__).parent / "baselines"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "baselines"


def names() -> list[str]:
    """The recipes that come with robench."""
    return sorted(path.stem for path in folder().glob("*.toml"))


def read(name: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """The table of a recipe, by its name or the path of a TOML file.

    A recipe that begins with `like = "rocl"` has that recipe's keys wherever it gives none itself, all but its name, summary
    and published figures. A table `change` then sets single values as `--set` does: `"stage.0.epochs" = 500`.

    Args:
        name: of the recipe; `like` may also name a TOML file, by its path from where robench runs.
        above: the recipes that led here through `like`.

    Raises:
        UsageError: if there is no such recipe, it is not TOML, or it is like itself.
    """
    path = Path(name) if name.endswith(".toml") else folder() / f"{name}.toml"
    if not path.is_file():
        if name.endswith(".toml"):
            raise UsageError(f"there is no recipe file {name}; recipes by name: robench list recipes")
        if what := _instead(Path(name)):
            raise UsageError(f"{name} is {what}; a recipe is a name (robench list recipes) or a TOML file")
        raise unknown("recipe", name, names(), "robench list recipes")
    try:
        if page := web_page(path, "a recipe"):
            raise UsageError(page)
        table = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
    return {"name": path.stem, **_completed(table, (*above, name))}


def _instead(path: Path) -> str:
    """What was named in place of a recipe, and what to do with it; nothing if it is not there."""
    if path.suffix in WEIGHTS:
        return f"a file of weights: robench evaluate --model my.py:make_model --weights {path} --attack pgd-20 attacks them"
    if any((path / f"{kind}.json").is_file() for kind in ("best", "last")):
        return (
            f"a training run: robench evaluate {path} --attack pgd-20 attacks it, and robench train linear --encoder {path} "
            "starts from its encoder"
        )
    return "a folder" if path.is_dir() else "a file of another kind" if path.is_file() else ""


def _completed(table: dict[str, Any], chain: tuple[str, ...]) -> dict[str, Any]:
    """A table with the keys of the recipe it is like, and its changes made."""
    base, changes = table.pop("like", None), table.pop("change", {})
    if base in chain:
        raise UsageError(f"recipe {chain[0]} is like itself: {' -> '.join((*chain, base))}; take one `like` away")
    if base is not None and not isinstance(base, str):
        raise UsageError(f'recipe {chain[-1]}: like: expected the name of a recipe, such as "rocl", not {base!r}')
    if not isinstance(changes, dict):
        raise UsageError(f'recipe {chain[-1]}: change: expected a table such as {{ "stage.0.epochs" = 500 }}')
    if base is not None:
        inherited = {key: value for key, value in read(base, chain).items() if key not in _OWN}
        table = {**inherited, **table}
    _spell(table)
    for path, value in changes.items():
        assign(table, _spelled(table, path), value)
    return table


def spelled(name: str, path: str) -> str:
    """A path in a recipe by the names of its own: `stage.0.options.lambda` of `rocl` is `stage.0.options.regularise`."""
    return _spelled(read(name), path)


def _spelled(table: Mapping[str, Any], path: str) -> str:
    parts = path.split(".")
    if len(parts) > 3 and (parts[0], parts[2]) == ("stage", "options"):
        with suppress(KeyError, IndexError, TypeError, ValueError, UsageError):  # which `assign` or `build` reports
            parts[3] = METHODS.entry(table["stage"][int(parts[1])]["method"]).aliases.get(parts[3], parts[3])
    return ".".join(parts)


def _spell(table: dict[str, Any]) -> None:
    """Give the options of every stage their own names."""
    for stage in table["stage"] if isinstance(table.get("stage"), list) else ():
        if isinstance(stage, dict) and isinstance(stage.get("method"), str) and isinstance(stage.get("options"), dict):
            try:
                entry = METHODS.entry(stage["method"])
            except UsageError:  # which `build` reports
                continue
            stage["options"] = entry.spelled(stage["options"])


def load(name: str, changes: Iterable[tuple[str, Any]] = ()) -> Recipe:
    """A recipe, with some values changed.

    Args:
        name: its name, or the path of a TOML file.
        changes: pairs of a path, such as `stage.0.epochs`, and a value.

    Raises:
        UsageError: for an unknown name, key, or value; key errors carry their TOML path.
    """
    table = copy.deepcopy(read(name))
    for path, value in changes:
        assign(table, _spelled(table, path), value)
    try:
        _spell(table)
    except UsageError as error:
        raise UsageError(f"recipe {name}: {error}") from None
    size = table.pop("resize", None)
    if size is not None:
        table["dataset"] = f"{table.get('dataset', '')}{',' if '@' in str(table.get('dataset')) else '@'}resize={size}"
    try:
        return build(Recipe, table)
    except UsageError as error:
        raise UsageError(f"recipe {name}: {error}") from None
