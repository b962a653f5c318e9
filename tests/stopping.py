"""`robench ARGUMENTS` that gets SIGTERM after four steps of training."""

import os
import signal
import sys

import torch

from robench import training
from robench.cli import main
from robench.keeping import Health

torch.set_num_threads(1)
seen = iter(range(4))
note = Health.note


def noted(self: Health, loss: torch.Tensor) -> None:
    if next(seen, None) is None:
        os.kill(os.getpid(), signal.SIGTERM)
    note(self, loss)


assert training.Health is Health
Health.note = noted  # type: ignore[method-assign]
main(sys.argv[1:])
