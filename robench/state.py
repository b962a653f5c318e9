"""Where a training run is, as it is saved and taken up again: everything the next step depends on.

Data order, augmentation, noise, learning rate and the global random state are functions of (seed, stage, epoch, step, image),
so a position stands for them all.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robench import checkpoint, files
from robench.data import Images
from robench.errors import CheckpointError, DataError
from robench.models import Nets
from robench.run import Run
from robench.stepping import Stepper

FORMAT = 2


@dataclass
class State:
    """Where a run is.

    Attributes:
        stage: of the recipe.
        epoch: epochs finished in it.
        step: steps taken in the epoch that is under way.
        best: the best validation score of the stage.
        log: a row for each finished epoch.
        totals: sums of what the epoch under way has measured.
        pseudo: labels that an earlier stage's classifier gave.
        cost: of the stages so far, see `Checkpoint.cost`.
    """

    stage: int = 0
    epoch: int = 0
    step: int = 0
    best: float = -1.0
    log: list[dict[str, Any]] = field(default_factory=list)
    totals: dict[str, Tensor] = field(default_factory=dict)
    pseudo: Tensor | None = None
    cost: list[dict[str, float]] = field(default_factory=list)

    @property
    def fresh(self) -> bool:
        """Whether nothing of the stage has been done."""
        return self.epoch == 0 and self.step == 0

    def next_stage(self) -> None:
        """Move on."""
        self.stage, self.epoch, self.step, self.best, self.totals, self.pseudo = self.stage + 1, 0, 0, -1.0, {}, None


def path_of(run: Run) -> Path:
    """The file of a run's state, which is there as long as the run is unfinished."""
    return run.folder / "state.pt"


def save(run: Run, nets: Nets, optimiser: Stepper, state: State, images: Images) -> None:
    """Write everything a resumed run needs, in one step, behind its SHA-256.

    Raises:
        StoreError: if it cannot be written; the state saved before is whole.
    """
    stream = io.BytesIO()
    stream.write(bytes(32))
    torch.save(
        {
            "format": FORMAT,
            "identity": run.identity,
            "data": images.digest,
            "position": [state.stage, state.epoch, state.step],
            "best": state.best,
            "log": json.dumps(state.log),
            "cost": json.dumps(state.cost),
            "totals": state.totals,
            "nets": nets.state_dict(),
            "optimiser": optimiser.state_dict(),
            "pseudo": state.pseudo,
        },
        stream,
    )
    content = stream.getbuffer()  # which is large, so it is not copied
    content[:32] = hashlib.sha256(content[32:]).digest()
    files.write(path_of(run), content)


def restore(run: Run, nets: Nets, images: Images) -> tuple[State, dict[str, Any] | None]:
    """The state an earlier process saved, put into the networks; the beginning when it saved none.

    Returns:
        The state, and that of the optimiser.

    Raises:
        CheckpointError: if the file is damaged, or another version's.
        DataError: if the images are not those the run began with.
    """
    path = path_of(run)
    if not path.is_file():
        return State(), None
    content = memoryview(path.read_bytes())
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        raise CheckpointError(f"{path} is damaged; delete it to train from the beginning")
    saved = torch.load(io.BytesIO(content[32:]), map_location=run.device, weights_only=True)
    if saved.get("format") != FORMAT or saved["identity"] != run.identity:
        raise CheckpointError(f"{path} is of another version of robench, or of another run: begin again with --restart")
    if saved["data"] != images.digest:
        raise DataError(
            f"{images.name} holds other images than when this run began (digest {images.digest[:8]}, not "
            f"{saved['data'][:8]}): restore them, or begin again with --restart"
        )
    stage, epoch, step = saved["position"]
    state = State(
        stage,
        epoch,
        step,
        saved["best"],
        json.loads(saved["log"]),
        saved["totals"],
        saved["pseudo"],
        json.loads(saved["cost"]),
    )
    grown = checkpoint.nets_after(run.recipe, state.stage + 1, images.classes, images.shape)
    for name, part in grown.parts.items():
        nets.parts[name] = part.to(run.device)
    nets.load_state_dict(saved["nets"])
    return state, saved["optimiser"]
