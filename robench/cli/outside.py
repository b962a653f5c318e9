"""`--model` and what goes with it: a classifier from elsewhere on the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robench.cli import naming
from robench.cli.option import Threat
from robench.errors import UsageError
from robench.threat import ThreatModel

if TYPE_CHECKING:
    from robench.evaluation import Engine
    from robench.foreign import Foreign

DATASET = "cifar10"  # what a model without a --dataset is evaluated on


@dataclass(frozen=True)
class Outside:
    """A classifier from elsewhere as the command line names it.

    Attributes:
        model: the text that names it.
        weights: a file to put into it.
        preprocess: how it normalises.
        name: how tables call it.
        threat: what it was trained against.
    """

    model: str | None
    weights: Path | None
    preprocess: str | None
    name: str | None
    threat: ThreatModel | None

    def check(self) -> None:
        """Refuse options that would not be heard.

        Raises:
            UsageError: naming the first.
        """
        from robench import files
        from robench.names import seek
        from robench.registry import CLASSIFIERS

        given: dict[str, object] = {"--weights": self.weights, "--preprocess": self.preprocess}
        given |= {"--name": self.name, "--trained-against": self.threat}
        if self.model is None and (idle := [option for option, value in given.items() if value is not None]):
            raise UsageError(f"{idle[0]} goes with --model: --model my.py:make_model, or timm:NAME")
        entry = CLASSIFIERS.entry(self.model) if self.model is not None else None
        if self.model is not None:
            seek(CLASSIFIERS, self.model)
        named = (("--weights", "weights", self.weights), ("--model", "model", entry and entry.options.get("file")))
        for option, what, file in named:  # before images are fetched
            if file is not None and not Path(str(file)).is_file():
                raise UsageError(f"{option}: there is no file {file}; name the file of the {what}")
            if file is not None and (page := files.web_page(Path(str(file)), what)):
                raise UsageError(page)

    def opened(self, engine: Engine, dataset: str | None, quiet: bool = False) -> Foreign | None:
        """The classifier, looked at; what was noticed goes to stderr."""
        from robench.checkup import checkup
        from robench.foreign import open_foreign
        from robench.terminal import say

        if self.model is None:
            return None
        images = engine.images(dataset or DATASET, None)
        made = open_foreign(
            self.model,
            images,
            dataset=dataset or DATASET,
            stored=self.weights,
            preprocess=self.preprocess or "",
            name=self.name or "",
            threat=self.threat,
        )
        size = "x".join(map(str, made.shape))
        if not quiet:
            say(f"{made.name}: {made.classes} classes, {size} images of {made.dataset}, digest {made.sha256[:12]}")
        doubts = checkup(made, images, engine.device, engine.batch)
        for text in (*made.notes, *doubts):
            say(f"{made.name}: {text}")
        return replace(made, doubts=tuple(doubts))


def outside(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options for a classifier from elsewhere, as one `outside`."""

    @wraps(command)
    def told(
        model: str | None,
        weights: Path | None,
        preprocess: str | None,
        name: str | None,
        trained_against: ThreatModel | None,
        **others: Any,
    ) -> None:
        command(outside=Outside(model, weights, preprocess, name, trained_against), **others)

    options = (
        click.option(
            "--model",
            metavar="SPEC",
            shell_complete=naming.classifiers,
            help="A classifier from elsewhere: my.py:make_model, timm:NAME, torchvision:NAME, hf:OWNER/NAME, robustbench:NAME, "
            "torchscript:FILE, onnx:FILE (robench list classifiers). --dataset is cifar10 unless named.",
        ),
        click.option(
            "--weights",
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
            help="Its weights, for --model.",
        ),
        click.option(
            "--preprocess",
            metavar="NAME|MEAN,STD",
            help="For --model: how it normalises pixels of [0, 1], as its first layer: cifar10, imagenet, 0.5,0.5.",
        ),
        click.option("--name", help="For --model: how tables call it."),
        click.option(
            "--trained-against", type=Threat(), help="For --model: the threat it was trained against, if any."
        ),
    )
    made: Callable[..., None] = told
    for option in reversed(options):
        made = option(made)
    return made
