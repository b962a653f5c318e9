"""Whether the attack inside training climbs: what it gains must be positive, or the method trains against nothing."""

from __future__ import annotations

from collections.abc import Mapping

from robench import distributed
from robench.errors import TrainingError
from robench.keeping import LOOK_EVERY
from robench.protocols import GAIN
from robench.recipe import Stage
from robench.run import Run
from robench.state import State


class Gain:
    """Watches what the attack of a stage gains: says once when that is not positive, and stops after an epoch of it.

    The mean over the epoch so far is what counts, since a step of few images may go either way. A ball of radius 0 leaves
    nothing to gain, so there nothing is watched. A method that measures no gain is not watched either.

    Args:
        run: whose.
        stage: of it.
        state: where the run is.
    """

    def __init__(self, run: Run, stage: Stage, state: State) -> None:
        self.run, self.stage, self.state = run, stage, state
        self.watches = run.recipe.threat is not None and run.recipe.threat.eps > 0
        self.told = not distributed.leads()

    def note(self) -> None:
        """Look at the epoch so far; on a device that runs ahead, every ten steps."""
        total = self.state.totals.get(GAIN)
        if total is None or self.told or not self.watches or (total.is_cuda and self.state.step % LOOK_EVERY):
            return
        if float(total) <= 0:
            self.told = True
            self.run.tell(f"warning: {self._found(float(total) / self.state.step, 'so far in')}. {self._check()}")

    def check(self, means: Mapping[str, float]) -> None:
        """Look at a whole epoch.

        Raises:
            TrainingError: if the attack gained nothing in it.
        """
        if self.watches and GAIN in means and means[GAIN] <= 0:
            raise TrainingError(
                f"{self._found(means[GAIN], 'over the whole of')}: its images are no harder than random ones, so nothing is "
                f"trained against. {self._check()}"
            )

    def _found(self, gain: float, when: str) -> str:
        number, epoch = self.state.stage, self.state.epoch + 1
        attack = f"the attack of stage {number} ({self.stage.method})"
        return f"{attack} gains {gain:.3g} {when} epoch {epoch}, and must gain more than 0"

    def _check(self) -> str:
        return (
            "Check the sign of the attack's loss (it is to rise), the network's batch statistics (attack_bn), and whether the "
            "embeddings of all images have become one"
        )
