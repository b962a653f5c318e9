"""AutoAttack as its reference implementation runs it, with guards for what that leaves behind."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from robench.door import Door
from robench.errors import AttackError
from robench.protocols import Classifier
from robench.threat import ThreatModel

NEEDS = {"apgd-t": 4, "apgd-dlr": 3}  # classes, for the losses of the package
ROUNDING = 1e-6  # how far from [0, 1] a pixel may be and be put back
_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def run_reference(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    version: str,
    steps: int,
    queries: int,
    seed: int,
    batch_size: int,
    members: Sequence[str] = (),
) -> Tensor:
    """The suite as the package `pyautoattack` runs it, the original code under another name.

    Args:
        model: maps images to logits.
        x: clean images, (n, channels, height, width).
        y: labels, (n,).
        threat: the ball.
        version: `standard`, `plus` or `rand`.
        steps: of its gradient attacks; 100 in the standard.
        queries: of Square; 5,000 in the standard.
        seed: of its randomness, which it draws from the global generator for every batch anew.
        batch_size: images per batch, on which its noise depends.
        members: only these of its attacks; all of the version's when empty.

    Returns:
        Its images; the clean ones where it found nothing.

    Raises:
        AttackError: if it stops with an error.
    """
    import pyautoattack

    x = x.contiguous()
    if not isinstance(model, Door):
        model = Door(model, classes=model(x[:1]).shape[1])  # type: ignore[arg-type]
    with _guarded(model, x.device):
        suite = pyautoattack.AutoAttack(
            model, norm=_NORMS[threat.norm], eps=threat.eps, version=version, seed=seed, device=x.device
        )
        suite.attacks_to_run = list(members) or suite.attacks_to_run
        _fit(suite, model.classes, steps, queries)
        try:
            adv: Tensor = suite.run_standard_evaluation(x, y, batch_size=batch_size)[0]
        except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError) as error:
            hint = " (its Square needs images of at least 5 pixels)" if isinstance(error, ArithmeticError) else ""
            raise AttackError(f"pyautoattack stopped: {type(error).__name__}: {error}{hint}") from error
    # its Square in l1 leaves the box by a rounding; anything larger is left for the evaluator to refuse
    return torch.where((adv - adv.clamp(0, 1)).abs() <= ROUNDING, adv.clamp(0, 1), adv)


def _fit(suite: Any, classes: int, steps: int, queries: int) -> None:
    """Adapt the suite to the number of classes (where the original stops with an error) and to the budget."""
    targets = classes - 1
    if targets < 1:
        raise AttackError("AutoAttack needs at least two classes")
    suite.apgd_targeted.n_target_classes = min(suite.apgd_targeted.n_target_classes, targets)
    suite.fab.n_target_classes = min(suite.fab.n_target_classes, targets)
    suite.attacks_to_run = [name for name in suite.attacks_to_run if classes >= NEEDS.get(name, 2)]
    suite.square.n_queries = queries
    suite.fab.n_iter = steps
    for each in (suite.apgd, suite.apgd_targeted):
        each.n_iter = each.n_iter_orig = steps
        each.n_iter_2, each.n_iter_min, each.size_decr = (max(int(part * steps), 1) for part in (0.22, 0.06, 0.03))


@contextmanager
def _guarded(door: Door, device: torch.device) -> Iterator[None]:
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
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        sys.settrace(trace)
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
