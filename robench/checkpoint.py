"""Checkpoints: weights as safetensors, and beside them a JSON file that says what they are."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from robench import files, tensors
from robench.errors import CheckpointError, RobenchError, StoreError, UsageError, first_line, nearest
from robench.fitting import sniff
from robench.methods import method_for
from robench.models import Nets, build_nets
from robench.recipe import WEIGHTS, Recipe
from robench.registry import CLASSIFIERS
from robench.results import DAMAGE, Subject
from robench.spec import build, digest, plain
from robench.threat import ThreatModel

FORMAT = 2  # from which on the JSON has a digest of its own


@dataclass(frozen=True)
class Checkpoint:
    """One state of a training run, on disk.

    Attributes:
        folder: the run's folder.
        kind: `best` (picked on the validation split) or `last`.
        recipe: what trained it.
        seed: of the training run.
        stages: how many stages of the recipe it has been through.
        epoch: epochs finished in the last of them.
        classes: how many logits it has.
        shape: channels, height and width of its images.
        sha256: of the weights file.
        metrics: the figures of its epoch, on the validation split.
        provenance: where it came from.
        cost: of each stage so far, those of the encoder it started from first: `seconds` of wall time on the device,
            `device_seconds` the same of all devices together, `images` that gradient steps were taken on, images that passed
            the encoder `forwards` and `backwards`, `peak_memory` in bytes and `joules` where the device counts them, `head`
            for a stage that put a head on an encoder. Up to this epoch; work that an interruption lost is not in it. Empty
            in checkpoints of before it was measured.
    """

    folder: Path
    kind: str
    recipe: Recipe
    seed: int
    stages: int
    epoch: int
    classes: int
    shape: tuple[int, int, int]
    sha256: str
    metrics: Mapping[str, float]
    provenance: Mapping[str, Any]
    cost: tuple[Mapping[str, float], ...] = ()

    @property
    def name(self) -> str:
        """How tables call it: the run, with `@last` where that is not the default."""
        default = "best" if (self.folder / "best.json").is_file() else "last"
        name = self.folder.resolve().name
        return name if self.kind == default else f"{name}@{self.kind}"

    @property
    def dataset(self) -> str:
        """What it was trained on."""
        return self.recipe.dataset

    @property
    def threat(self) -> ThreatModel | None:
        """What it was trained against, if anything."""
        return self.recipe.threat

    @property
    def black_box(self) -> bool:
        """Never: its gradients are there."""
        return False

    @property
    def unready(self) -> str:
        """Why it is no classifier yet, and what to do; nothing when it is one."""
        recipe = self.recipe
        again = f"the same robench train command goes on in {self.folder}"
        if self.stages < len(recipe.stage):
            return f"{self.name} is not finished ({self.stages} of {len(recipe.stage)} stages): {again}"
        marker, end, state = (self.folder / name for name in ("run.json", "last.json", "state.pt"))
        if marker.exists() and (state.exists() or not end.exists()):
            return f"{self.name} is not finished: {again}"
        if "head" not in self._form().parts:
            return f"{self.name} is an encoder without a head: robench train linear --encoder {self.folder}"
        return ""

    @property
    def spent(self) -> tuple[Mapping[str, float], ...]:
        """What it cost to get here: the best epoch of a run is known when the run is over, so its whole cost counts."""
        if self.kind == "best" and (self.folder / "last.json").is_file():
            with suppress(CheckpointError):  # of weights that nobody asks for
                return open_checkpoint(f"{self.folder}@last", self.folder.parent).cost
        return self.cost

    @property
    def doubt(self) -> str:
        """What is wrong with `run.json` beside it, though its weights may be whole; nothing when all fits."""
        try:
            said = marker(self.folder)
            if said is None or (build(Recipe, said["recipe"]), said["seed"]) == (self.recipe, self.seed):
                return ""
        except (*DAMAGE, StoreError) as error:
            return f"{self.name} is attacked as its {self.kind}.json describes it, but {error}"
        return (
            f"{self.name} is attacked as its {self.kind}.json describes it, but run.json beside it is of another run (recipe "
            "or seed differ): one of them was copied here; find out which"
        )

    def subject(self, dataset: str) -> Subject:
        """What tables need to know of it."""
        return Subject(
            name=self.name,
            recipe=self.recipe.name,
            group=self.recipe.group,
            threat=self.recipe.threat,
            seed=self.seed,
            dataset=dataset,
            sha256=self.sha256,
        )

    def load(self, device: torch.device | str = "cpu") -> Nets:
        """The networks with these weights, in eval mode.

        Raises:
            CheckpointError: if the weights are absent, damaged, or of another architecture.
        """
        path = self.folder / f"{self.kind}.safetensors"
        try:
            content = files.read_vouched(path, self.sha256)
            if content is None:
                path.stat()
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror}; train it again, or restore the file") from None
        if content is None:
            sniff(path, self.sha256)
            raise CheckpointError(
                f"{path} is damaged: its SHA-256 is not the one in {path.with_suffix('.json').name}; "
                "restore the file or train it again"
            )
        stored = tensors.read(content, str(path))
        fitting(self._form(), stored, str(path))  # before memory is given for what the description claims
        nets = nets_after(self.recipe, self.stages, self.classes, self.shape)
        nets.load_state_dict(fitting(nets, stored, str(path)))
        return nets.to(device).eval()

    def _form(self) -> Nets:
        """Networks of this architecture, without memory for weights where the model can be made so."""
        shape = self.recipe, self.stages, self.classes, self.shape
        with suppress(NotImplementedError, RuntimeError, TypeError, UsageError), torch.device("meta"):
            return nets_after(*shape)
        return nets_after(*shape)


def nets_after(recipe: Recipe, stages: int, classes: int, shape: tuple[int, int, int]) -> Nets:
    """Fresh networks with every part that the first `stages` stages of a recipe have."""
    nets = build_nets(recipe.model, shape, recipe.dataset, recipe.normalise)
    for stage in recipe.stage[:stages]:
        for name, head in method_for(stage.method, stage.options).heads(nets.encoder.features, classes).items():
            nets.parts[name] = head
    return nets


def fitting(nets: Nets, stored: Mapping[str, Tensor], what: str) -> Mapping[str, Tensor]:
    """Stored weights, if they are those of such networks.

    Args:
        nets: networks of the stored architecture.
        stored: tensors by name.
        what: how messages call it.

    Raises:
        CheckpointError: if tensors are missing, left over, of another shape or type, or no numbers.
    """
    if not any(key.startswith("encoder.") for key in stored):
        raise CheckpointError(f"{what} holds no encoder, so no head can stand on it; train one: robench train RECIPE")
    tensors.check(stored, nets.state_dict(), what)
    return stored


def save(described: Checkpoint, nets: Nets) -> Checkpoint:
    """Write weights, then the JSON that vouches for them.

    Args:
        described: everything but the digest, which comes from the weights.
        nets: the weights.

    Returns:
        The same with the digest.

    Raises:
        StoreError: if the folder cannot be written.
    """
    content = save_tensors({key: tensor.detach().cpu().contiguous() for key, tensor in nets.state_dict().items()})
    made = replace(described, sha256=files.sha256(content))
    fields = {key: plain(value) for key, value in vars(made).items() if key not in ("folder", "kind")}
    table = {"format": FORMAT, **fields}
    files.write_vouched(
        made.folder / f"{made.kind}.safetensors",
        content,
        made.folder / f"{made.kind}.json",
        {**table, "digest": digest(table)},
    )
    return made


def marker(folder: Path) -> dict[str, Any] | None:
    """What `run.json` says of the run that a folder holds; None where there is none.

    Raises:
        StoreError: if it is damaged.
    """
    path = folder / "run.json"
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        sealed = found.pop("digest", None)  # which those of earlier versions had none of
        if sealed is not None and sealed != digest(found):
            raise ValueError("its content is not what was written: the digest differs")
        if not isinstance(found["identity"], str) or not all(
            isinstance(found.get(key, {}), dict) for key in ("recipe", "provenance")
        ):
            raise ValueError("it says of no run which it is")
    except FileNotFoundError:
        return None
    except DAMAGE as error:
        raise StoreError(
            f"{path} is damaged ({type(error).__name__}: {first_line(error)}): restore it, or train into another folder with "
            "--out"
        ) from None
    return found


def settle(folder: Path) -> None:
    """Bring the weights in place that a process which was killed has written and vouched for, and drop others."""
    for kind in ("best", "last"):
        try:
            said: str | None = open_checkpoint(f"{folder}@{kind}", folder.parent).sha256
        except CheckpointError:
            said = None
        files.settle(folder / f"{kind}.safetensors", said)


def open_checkpoint(text: str, root: Path) -> Checkpoint:
    """Find a checkpoint.

    Args:
        text: a run's folder or its name under `root`; `@last` or `@best` picks one, else best before last.
        root: where runs are.

    Raises:
        CheckpointError: if there is none there, or its JSON is damaged.
    """
    place, kind = text, ""
    if "@" in text and not any(path.is_dir() for path in (Path(text), root / text)):
        place, _, kind = text.rpartition("@")
        if kind not in ("best", "last"):
            raise CheckpointError(f"{text}: behind the @ stands best or last: {place}@last, or {place} alone")
    places = [path for path in (Path(place), root / place) if path.is_dir()]
    folder = next((path for path in places if _holds_one(path)), places[0] if places else None)
    if folder is None:
        known = sorted(run.name for run in runs(root))
        listed = f"runs there: {', '.join(known)}" if known else "nothing is trained there yet: robench train RECIPE"
        guess = _instead(place, known) or (f" Did you mean {match!r}?" if (match := nearest(place, known)) else "")
        raise CheckpointError(f"there is no checkpoint {place!r}, nor one of that name in {root} ({listed}).{guess}")
    kinds = [kind] if kind else ["best", "last"]
    path = next((folder / f"{k}.json" for k in kinds if (folder / f"{k}.json").is_file()), None)
    if path is None:
        inside = [run.name for run in runs(folder)]
        advice = f"it holds runs: name one, such as {folder / inside[0]}" if inside else "robench train RECIPE"
        raise CheckpointError(f"{folder} holds no {' or '.join(f'{k}.json' for k in kinds)}: {advice}")
    try:
        table = _unsealed(json.loads(path.read_bytes()), path)
        if table.keys() & {"folder", "kind"}:
            raise ValueError("it names its own folder")
        found: Checkpoint = build(Checkpoint, {**table, "folder": folder, "kind": path.stem})
        if min(found.classes, *found.shape) < 1 or not 0 <= found.stages <= len(found.recipe.stage):
            raise ValueError("classes, shape and stages do not fit together")
        return found
    except CheckpointError:
        raise
    except (*DAMAGE, RobenchError) as error:
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}: {error}); restore it or train it again"
        ) from None


def _instead(text: str, known: Collection[str]) -> str:
    """What to do with what was named in place of a training run; nothing if it looks like none of it."""
    path, parts = Path(text), re.split(r"[,\s]+", text)
    if len(parts) > 1 and set(parts) <= set(known):
        return f" Those are {len(parts)}, each a word of its own: {' '.join(parts)}"
    if path.is_file() and _holds_one(path.parent):
        return f" A checkpoint is named by its folder: {path.parent}"
    if path.suffix in WEIGHTS and ":" not in text:
        return f" Weights from elsewhere: robench evaluate --model my.py:make_model --weights {text}"
    entry = f"{text.partition(':')[0]}:"
    if entry in CLASSIFIERS.rows or path.suffix == ".py" or ".py:" in text:
        return f" A classifier from elsewhere: robench evaluate --model {text}"
    return ""


def _unsealed(table: dict[str, Any], path: Path) -> dict[str, Any]:
    """What a description says, if it is as it was written; those of format 1 had no digest.

    Raises:
        CheckpointError: if another version wrote it.
        ValueError: if its digest is not that of its content.
    """
    sealed = table.pop("digest", None)
    found = table["format"]
    if found not in (1, FORMAT) or isinstance(found, bool):
        raise CheckpointError(f"{path} was written by another version of robench; train it again")
    if (found != 1 or sealed is not None) and digest(table) != sealed:
        raise ValueError("its content is not what was written: the digest differs")
    del table["format"]
    return table


def at_hand(sha256: str, root: Path) -> Checkpoint:
    """The checkpoint with these weights.

    Raises:
        CheckpointError: if no run under `root` has it.
    """
    for folder in runs(root):
        for kind in ("best", "last"):
            if (folder / f"{kind}.json").is_file():
                found = open_checkpoint(f"{folder}@{kind}", root)
                if found.sha256 == sha256:
                    return found
    raise CheckpointError(f"no checkpoint in {root} has the weights {sha256}: restore it there, or name --checkpoints")


def runs(root: Path) -> list[Path]:
    """The folders under `root` that hold a finished checkpoint, by name."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if _holds_one(path))


def _holds_one(folder: Path) -> bool:
    return any((folder / f"{kind}.json").is_file() for kind in ("best", "last"))
