"""AutoAttack through its reference implementation, with guards for what that leaves behind."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robench.door import Door
from robench.errors import AttackError, UsageError
from robench.protocols import Classifier
from robench.threat import ThreatModel

_NEEDS = {"apgd-t": 4, "apgd-dlr": 3}
_SUITES = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


@dataclass(frozen=True)
class AutoAttack:
    """The parameter-free ensemble: APGD-CE, targeted APGD-DLR, targeted FAB and Square, each on what is left.

    The code is the package `pyautoattack`, the original under another name; with the same seed, images and batch its
    tensors are the original's.

    Attributes:
        version: `standard`, `plus` or `rand`.
        batch_size: images per batch inside the ensemble (the original's default); its noise depends on it.

    Source: Croce & Hein 2020 (linf, l2) and 2021 (l1).
    Differs: with fewer than 10 classes it aims at the classes there are (the original stops with an error); with
        fewer than four, APGD-T, whose loss needs four, is left out.
    """

    whole: ClassVar[bool] = True
    passes: ClassVar[int] = 5000  # about: an image that survives takes 7,800, one that falls early takes 100

    threat: ThreatModel
    version: Literal["standard", "plus", "rand"] = "standard"
    batch_size: int = 250

    def __post_init__(self) -> None:
        """Refuse an empty batch."""
        if self.batch_size < 1:
            raise UsageError(f"attack autoattack: batch_size must be at least 1, not {self.batch_size}")

    def notes(self, classes: int) -> tuple[str, ...]:
        """What is reduced on a data set with few classes."""
        left_out = [name for name, needs in _NEEDS.items() if classes < needs and name in _SUITES[self.version]]
        reduced = classes < (6 if self.threat.norm == "l1" else 10)
        notes = [f"targets {classes - 1} classes, all there are"] if reduced else []
        return tuple(notes + [f"leaves out {name}, which needs {_NEEDS[name]} classes" for name in left_out])

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Perturb all images; the seed is the generator's."""
        import pyautoattack

        if not isinstance(model, Door):
            model = Door(model, classes=model(x[:1]).shape[1])  # type: ignore[arg-type]
        with _guarded(model):
            suite = pyautoattack.AutoAttack(
                model,
                norm=_NORMS[self.threat.norm],
                eps=self.threat.eps,
                version=self.version,
                seed=generator.initial_seed(),
                device=x.device,
            )
            _fit(suite, model.classes)
            adv: Tensor = suite.run_standard_evaluation(x, y, batch_size=self.batch_size)[0]
        return adv


def _fit(suite: object, classes: int) -> None:
    """Adapt the suite to the number of classes, as the class's docstring says."""
    targets = classes - 1
    if targets < 1:
        raise AttackError("AutoAttack needs at least two classes")
    suite.apgd_targeted.n_target_classes = min(suite.apgd_targeted.n_target_classes, targets)  # type: ignore[attr-defined]
    suite.fab.n_target_classes = min(suite.fab.n_target_classes, targets)  # type: ignore[attr-defined]
    kept = [name for name in suite.attacks_to_run if classes >= _NEEDS.get(name, 2)]  # type: ignore[attr-defined]
    suite.attacks_to_run = kept  # type: ignore[attr-defined]


@contextmanager
def _guarded(door: Door) -> Iterator[None]:
    """Give back the global random state and the trace hook, which the package overwrites, and pass its log on."""
    logger = logging.getLogger("auto-attack")
    level, propagate = logger.level, logger.propagate

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            door.say(record.getMessage())

    handler = Handler()
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    trace = sys.gettrace()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        sys.settrace(trace)
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
