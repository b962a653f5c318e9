"""A training run and the folder it owns: what decides its weights, and whether a folder holds it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from robench import files
from robench.checkpoint import Checkpoint, marker, open_checkpoint
from robench.errors import UsageError
from robench.protocols import unheard
from robench.provenance import provenance
from robench.recipe import Recipe
from robench.spec import digest, plain


@dataclass(frozen=True)
class Run:
    """One training run: the recipe and everything else it depends on.

    Attributes:
        recipe: what to train.
        folder: where its checkpoints go.
        seed: of initial weights, data order, augmentation and attacks.
        device: where it computes.
        data_root: where data sets are kept.
        steps: stop each epoch after that many steps and each stage after one epoch (a smoke run); None for all.
        encoder: a checkpoint whose encoder to start from.
        track: told the figures of every epoch; nothing depends on it.
        tell: told in words what a person should know while it trains; nothing depends on it.
        compile: whether to compile the encoder, which moves rounding only.
    """

    recipe: Recipe
    folder: Path
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    data_root: Path = Path("data")
    steps: int | None = None
    encoder: Checkpoint | None = None
    track: Callable[[Mapping[str, Any]], None] = field(default=lambda row: None, compare=False)
    tell: Callable[[str], None] = field(default=unheard, compare=False)
    compile: bool = False

    @property
    def identity(self) -> str:
        """A digest of what decides the weights."""
        return digest(_decisive(self))


def finished(run: Run) -> bool:
    """Whether the folder holds exactly this run, trained to its end.

    Raises:
        UsageError: if it holds another run.
    """
    if not holds(run) or not (run.folder / "last.json").exists() or (run.folder / "state.pt").exists():
        return False
    return open_checkpoint(f"{run.folder}@last", run.folder.parent).stages == len(run.recipe.stage)


def holds(run: Run) -> bool:
    """Whether the folder holds this run, finished or not; raises if it holds another."""
    there = marker(run.folder)
    if there is None:
        return False
    if there["identity"] != run.identity:
        now = _decisive(run)
        changes = _differences(there.get("recipe"), now.pop("recipe"))
        changes += [each for key, value in now.items() if key in there for each in _differences(there[key], value, key)]
        changes = changes or ["the seed, --smoke or --encoder"]
        raise UsageError(
            f"{run.folder} holds another run; it differs in {', '.join(changes[:3])}. Choose another folder with --out"
        )
    return True


def check_folder(run: Run, resume: bool) -> None:
    """Refuse a folder that holds another run, or a finished one that is to be begun again."""
    if run.steps and holds(run):
        return
    if finished(run):
        if not resume:
            raise UsageError(
                f"{run.folder} holds this run already, finished: robench evaluate {run.folder} --attack pgd-20, "
                "or train again into another folder with --out"
            )
    elif not holds(run) and any((run.folder / f"{kind}.json").exists() for kind in ("best", "last")):
        raise UsageError(
            f"{run.folder} holds a checkpoint that no run of this recipe left; choose another folder with --out"
        )


def clear(run: Run) -> None:
    """Take away everything an earlier process has left of this run; what says what it is goes last."""
    for name in (
        "state.pt",
        "metrics.jsonl",
        "best.json",
        "best.safetensors",
        "last.json",
        "last.safetensors",
        "run.json",
    ):
        files.remove(run.folder / name)


def moved(run: Run) -> list[str]:
    """What is not as it was when the run in the folder began, of that which a bit may depend on."""
    there = (marker(run.folder) or {}).get("provenance", {})
    now = provenance(str(run.device), torch.get_num_threads())
    keys = ("robench", "torch", "platform", "device", "threads")
    return [f"{key} {there[key]} then, {now[key]} now" for key in keys if key in there and there[key] != now[key]]


def _decisive(run: Run) -> dict[str, Any]:
    """What decides the weights, in words."""
    origin = run.encoder.sha256 if run.encoder else None
    return {"recipe": plain(run.recipe), "seed": run.seed, "steps": run.steps, "encoder": origin}


def mark(run: Run) -> None:
    """Write down which run this one is."""
    table = {
        "identity": run.identity,
        **_decisive(run),
        "provenance": provenance(str(run.device), torch.get_num_threads()),
    }
    files.write_json(run.folder / "run.json", {**table, "digest": digest(table)})


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    """The paths at which two plain values differ, with what stands there."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        paths = [_differences(old.get(k), new.get(k), f"{where}.{k}" if where else k) for k in {**old, **new}]
        return [path for found in paths for path in found]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = zip(old, new, strict=True)
        return [path for i, (a, b) in enumerate(pairs) for path in _differences(a, b, f"{where}.{i}")]
    return [] if old == new else [f"{where or 'the recipe'} ({_short(old)} there, {_short(new)} here)"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:36]} ..."
