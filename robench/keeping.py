"""What keeps a training run: its state and log on disk as it goes, its cost, and an eye on whether losses are numbers."""

from __future__ import annotations

import json
import math
import signal
import time

import torch
from torch import Tensor

from robench import distributed, files
from robench import state as states
from robench.data import Images
from robench.errors import StoppedError, TrainingError
from robench.meter import Cost, Meter, Passes, Work, spend
from robench.models import Nets
from robench.recipe import Stage
from robench.run import Run
from robench.signals import Asked
from robench.state import State
from robench.stepping import Stepper

SAVE_EVERY = 60.0  # seconds between saved states
SHARE = 0.005  # of the time goes into saved states at most
LOOK_EVERY = 10  # steps between looks at numbers on a device that runs ahead of Python


class Keeper:
    """Keeps what a run has reached: on a clock, when it is asked to, and at the end of a stage; and measures its cost.

    Args:
        run: whose.
        nets: its networks.
        optimiser: of the stage.
        state: where the run is.
        images: all it may train on.
        asked: by signals.
        head: whether the stage puts a head on an encoder that was there.
    """

    def __init__(
        self, run: Run, nets: Nets, optimiser: Stepper, state: State, images: Images, asked: Asked, head: bool = False
    ) -> None:
        self.run, self.nets, self.optimiser = run, nets, optimiser
        self.state, self.images, self.asked = state, images, asked
        self.first = state.fresh
        self.counted = state.step  # steps of the epoch under way whose cost is counted
        self.meter, self.head = Meter(run.device), head
        self.passes = nets.counter = Passes()
        self.saved, self.pause = time.monotonic(), SAVE_EVERY

    def account(self, images: int) -> None:
        """Add the time since the last call, in which so many images were trained on, to the cost of the stage."""
        devices, (forwards, backwards) = distributed.world(), self.passes.take()
        work = Work(self._spent(), images, forwards * devices, backwards * devices, devices, self.head)
        spend(self.state.cost, self.state.stage, work, first=self.first)
        self.meter = Meter(self.run.device)

    def _spent(self) -> Cost:
        """What was spent since the last call: this process's time, the largest memory and the energy of all."""
        cost = self.meter.read()
        if distributed.world() == 1:
            return cost
        counted = [math.nan if value is None else float(value) for value in (cost.peak_memory, cost.joules)]
        every = distributed.gathered(torch.tensor([counted], dtype=torch.float64, device=self.run.device))
        peak, joules = float(every[:, 0].max()), float(every[:, 1].sum())
        return Cost(cost.seconds, None if math.isnan(peak) else int(peak), None if math.isnan(joules) else joules)

    @property
    def due(self) -> bool:
        """Whether it is time to save; all processes agree on it, on a GPU every ten steps only."""
        late = time.monotonic() - self.saved > self.pause
        if distributed.world() > 1:
            if self.run.device.type == "cuda" and self.state.step % LOOK_EVERY:
                return False
            said = [float(self.asked.stop), float(self.asked.save), float(late and distributed.leads())]
            stop, save, late_ = distributed.agreed(torch.tensor(said))
            self.asked.stop, self.asked.save, late = int(stop), bool(save), bool(late_)
        return bool(self.asked.stop) or self.asked.save or late

    def save(self) -> None:
        """Write the log and the state, then stop if that was asked for.

        Raises:
            StoppedError: as asked.
        """
        began = time.monotonic()
        self.asked.save = False
        if distributed.leads():
            log(self.run, self.state)
            states.save(self.run, self.nets, self.optimiser, self.state, self.images)
        self.saved = time.monotonic()
        self.pause = max(SAVE_EVERY, (self.saved - began) / SHARE)
        if self.asked.stop:
            at = f"stage {self.state.stage}, epoch {self.state.epoch + 1}, step {self.state.step}"
            raise StoppedError(
                f"stopped by {signal.Signals(self.asked.stop).name} at {at}, which is saved in {self.run.folder}: "
                "the same command goes on from there",
                self.asked.stop,
            )


def log(run: Run, state: State) -> None:
    """Write a row for each finished epoch."""
    lines = "".join(json.dumps(entry) + "\n" for entry in state.log)
    files.write(run.folder / "metrics.jsonl", lines.encode())


class Health:
    """Watches that losses are numbers, without waiting for a device that runs ahead.

    Differs: on a GPU the first bad step is noted there and read every ten steps, and before anything is saved, so a few more
    steps may run before training stops. It is named all the same, and nothing they did is kept.
    """

    def __init__(self, run: Run, stage: Stage, state: State) -> None:
        self.run, self.stage, self.state = run, stage, state
        self.first = torch.full((), torch.inf, device=run.device)

    def note(self, loss: Tensor) -> None:
        """Look at a loss before it moves anything; on a device that runs ahead, every ten steps."""
        step = self.state.step
        self.first = torch.where(loss.detach().isfinite(), self.first, self.first.clamp(max=step))
        if not loss.is_cuda or step % LOOK_EVERY == 0:
            self._look()

    def check(self, nets: Nets) -> None:
        """Look at all losses so far, at what was measured and at the weights, before they are kept."""
        self._look()
        if bad := [name for name, total in self.state.totals.items() if not bool(total.isfinite())]:
            raise self._error(self.state.step, f"{', '.join(bad)} became NaN or infinite in this epoch")
        if not all(bool(t.isfinite().all()) for t in nets.state_dict().values() if t.is_floating_point()):
            raise self._error(self.state.step, "this step left weights that are no numbers")

    def _look(self) -> None:
        if self.first.isfinite():
            raise self._error(int(self.first) + 1, "it is NaN or infinite")

    def _error(self, step: int, what: str) -> TrainingError:
        number = self.state.stage
        return TrainingError(
            f"the loss is no longer finite in epoch {self.state.epoch + 1} at step {step} of stage {number} "
            f"({self.stage.method}, seed {self.run.seed}): {what}. The last good state is kept; try "
            f"--set stage.{number}.optimiser.lr={self.stage.optimiser.lr / 2:g}, with another folder as --out"
        )
