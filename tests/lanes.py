"""A demo of one small recipe and few cells, for tests that run it in several processes."""

from dataclasses import dataclass
from pathlib import Path

import torch

from robench import demo, launch, recipe
from robench.evaluation import Engine
from robench.protocols import unwatched

RECIPE = """
summary = "standard training, for a test"
dataset = "digits"
model = "cnn@width=2"
validation = 1200
[[stage]]
method = "standard"
epochs = {epochs}
batch = 64
optimiser = {{ lr = 0.1 }}
"""


def cells(engine: Engine, models: list[demo.Checkpoint]) -> list[demo.Job]:
    """Two white-box cells of each model."""
    return engine.plan(models, attacks=["fgsm", "autoattack"], threats=[demo.SEEN], count=6)


def small(folder: Path) -> None:
    """Make the demo of this process small."""
    names = ("one", "two")
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        if not (folder / f"{name}.toml").exists():
            (folder / f"{name}.toml").write_text(RECIPE.format(epochs=number + 1))
    torch.set_num_threads(1)
    recipe.folder = lambda: folder
    demo.RECIPES, demo.COUNT, demo.white_box = names, 6, cells  # type: ignore[assignment]


@dataclass(frozen=True)
class Lane:
    """What a process of a launched small demo runs."""

    place: str
    folder: str

    def __call__(self) -> None:
        place = Path(self.folder)
        small(place / "recipes")
        made, pieces = launch.task(self.place)
        list(demo.work(place / "c", place / "r", torch.device("cpu"), unwatched, made, pieces))
