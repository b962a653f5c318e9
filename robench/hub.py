"""The Hugging Face Hub: models as it keeps them, and checkpoints of robench to and from it.

A checkpoint there is `model.safetensors`, and `robench.json`, which holds the checkpoint's own description and its name. Nothing
goes up but by `push`, and nothing that comes down is run: weights are safetensors and descriptions are JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robench import __version__, files
from robench.checkpoint import Checkpoint, open_checkpoint
from robench.errors import CheckpointError, RobenchError, UsageError, missing
from robench.fitting import sniff
from robench.results import Failure, Result, asked, safe
from robench.spec import digest
from robench.statistic import interval

DESCRIPTION, WEIGHTS, CARD = "robench.json", "model.safetensors", "README.md"
FORMAT = 1
# what is fetched of a model: its description, in whichever form, and weights that can run nothing
WANTED = ("*.json", "model*.safetensors")


@dataclass(frozen=True)
class Parcel:
    """What goes to the Hub, or came from it.

    Attributes:
        name: of the run, and of its folder in checkpoints/.
        table: the checkpoint's description, as its JSON file has it.
        weights: the content of its safetensors file.
    """

    name: str
    table: Mapping[str, Any]
    weights: bytes

    @property
    def description(self) -> bytes:
        """The content of `robench.json`."""
        whole = {"format": FORMAT, "robench": __version__, "name": self.name, "checkpoint": self.table}
        return (json.dumps(whole, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def parcel(checkpoint: Checkpoint) -> Parcel:
    """A checkpoint as the Hub keeps it.

    Raises:
        CheckpointError: if its weights are absent or not those that its description vouches for.
    """
    weights = checkpoint.folder / f"{checkpoint.kind}.safetensors"
    try:
        content = files.read_vouched(weights, checkpoint.sha256)
        table = json.loads((checkpoint.folder / f"{checkpoint.kind}.json").read_bytes())
    except OSError as error:
        raise CheckpointError(f"{weights}: {error.strerror}; train it again, or restore the file") from None
    if content is None:
        raise CheckpointError(
            f"{weights} is damaged: its SHA-256 is not the one in its JSON; restore the file or train again"
        )
    return Parcel(checkpoint.folder.resolve().name, table, content)


def card(checkpoint: Checkpoint, at: str, records: Sequence[Result | Failure]) -> str:
    """The page that the Hub shows: what it is, how it is used, and what was measured here.

    Args:
        checkpoint: that goes up.
        at: OWNER/NAME.
        records: results, of which those of the same weights are listed.
    """
    recipe, name = checkpoint.recipe, safe(checkpoint.folder.resolve().name)
    lines = [
        *("---", "library_name: robench", "tags:", "- adversarial-robustness", "- image-classification", "---", ""),
        *(f"# {name}", "", safe(recipe.summary), ""),
        f"Recipe `{safe(recipe.name)}` ({safe(recipe.source)}), data set `{safe(recipe.dataset)}`, architecture "
        f"`{safe(recipe.model)}`, trained against {recipe.threat or 'nothing'}, seed {checkpoint.seed}.",
        *("", "```", f"robench pull {safe(at)}"),
        *(f"robench evaluate {name} --attack autoattack", "```", ""),
    ]
    mine = [r for r in records if isinstance(r, Result) and r.cell.checkpoint == checkpoint.sha256 and r.source is None]
    if mine:
        lines += ["| attack | images | clean | robust | 95 % interval |", "|---|---:|---:|---:|---|"]
        lines += [*sorted(map(_row, mine)), ""]
    return "\n".join(lines)


def _row(record: Result) -> str:
    count = len(record.robust)
    low, high = interval(sum(record.robust), count)
    clean, robust = (100 * sum(bits) / count for bits in (record.clean, record.robust))
    what = safe(asked(record.cell)).replace("|", "\\|")
    return f"| {what} | {count:,} | {clean:.1f} | {robust:.1f} | [{100 * low:.1f}, {100 * high:.1f}] |"


def push(
    sent: Parcel, name: str, page: str, *, public: bool = False, message: str = "", revision: str | None = None
) -> str:
    """Send a checkpoint to the Hub.

    Args:
        sent: the checkpoint.
        name: OWNER/NAME there; made if it is not there yet.
        page: the README.
        public: make a new one public; one that is there already stays as it is.
        message: of the commit.
        revision: a branch that is there, rather than main.

    Returns:
        The address of the commit.

    Raises:
        UsageError: if huggingface_hub is not installed, or the Hub refuses.
    """
    if name.count("/") != 1 or not all(name.split("/")):
        raise UsageError(f"{name!r} is no name on the Hub; write OWNER/NAME")
    hub = _library(f"robench push {name}")
    client = hub.HfApi(endpoint=_endpoint())
    content = {DESCRIPTION: sent.description, WEIGHTS: sent.weights, CARD: page.encode()}
    steps = [hub.CommitOperationAdd(path_in_repo=path, path_or_fileobj=each) for path, each in content.items()]
    try:
        client.create_repo(name, private=not public, exist_ok=True)
        made = client.create_commit(
            name, steps, commit_message=message or f"{sent.name}, by robench {__version__}", revision=revision
        )
    except Exception as error:  # its errors are of many kinds, also those of the network below it
        raise UsageError(
            f"{name} cannot be pushed ({_said(error)}): log in with hf auth login, or set HF_TOKEN to a token "
            "that may write there"
        ) from error
    return str(made.commit_url)


def pull(name: str, root: Path, *, called: str = "", revision: str | None = None) -> tuple[Checkpoint, bool]:
    """A checkpoint from the Hub into a folder of runs.

    Args:
        name: OWNER/NAME there, or a folder with the same files.
        root: where runs are.
        called: another name for the run.
        revision: a branch, tag or commit.

    Returns:
        The checkpoint, and whether it was there already.

    Raises:
        UsageError: if it cannot be fetched, or another run has its name.
        CheckpointError: if it is no checkpoint of robench, or not what its description vouches for.
    """
    folder = located(name, revision, f"robench pull {name}")
    found = opened(folder, name)
    run = called or found.name
    if run != Path(run).name or run in ("", ".", ".."):
        raise UsageError(f"{run!r} is no name of a run: name it yourself, with --name")
    target = root / run
    if any(target.glob("*.json")):  # a pull that was cut off leaves none
        try:
            there = open_checkpoint(str(target), root)
        except CheckpointError:
            there = None
        if there is None or there.sha256 != found.table["sha256"]:
            raise UsageError(f"{target} is another run: give this one another name, with --name")
        return there, True
    files.write_vouched(target / "best.safetensors", found.weights, target / "best.json", found.table)
    return open_checkpoint(str(target), root), False


def opened(folder: Path, name: str) -> Parcel:
    """What lies in a folder that was fetched.

    Args:
        folder: that holds the files.
        name: how messages call it.

    Raises:
        CheckpointError: if it is no checkpoint of robench, was damaged, or is by a later version.
    """
    path = folder / DESCRIPTION
    try:
        whole = json.loads(path.read_bytes())
        form, run, table = whole["format"], whole["name"], dict(whole["checkpoint"])
    except FileNotFoundError:
        raise CheckpointError(
            f"{name} holds no {DESCRIPTION}, so robench did not train it; evaluate it with --model hf:{name}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}: {error}); fetch it again") from None
    if form != FORMAT:
        raise CheckpointError(f"{name} was pushed by another version of robench (format {form!r}): update robench")
    unsealed = {key: value for key, value in table.items() if key != "digest"}
    if table.get("digest", digest(unsealed)) != digest(unsealed):
        raise CheckpointError(f"{path} is damaged: its digest is not that of its content; fetch it again")
    weights = _weights(folder, str(table.get("sha256")))
    return Parcel(str(run), table, weights)


def _weights(folder: Path, expected: str) -> bytes:
    path = folder / WEIGHTS
    sniff(path, expected)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; fetch it again") from None
    if files.sha256(content) != expected:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one in {DESCRIPTION}; fetch it again")
    return content


def programs(checkpoint: Checkpoint) -> list[str]:
    """The code that a checkpoint names as model, data set or method: `module:object` and `file.py:object` texts."""
    from robench.registry import DATASETS, METHODS, MODELS

    recipe = checkpoint.recipe
    named = [(MODELS, recipe.model), (DATASETS, recipe.dataset), *((METHODS, each.method) for each in recipe.stage)]
    texts = [(kind, text.partition("@")[0]) for kind, text in named]
    found = [text for kind, text in texts if ":" in text and f"{text.partition(':')[0]}:" not in kind.rows]
    return list(dict.fromkeys(found))


def located(name: str, revision: str | None, what: str) -> Path:
    """The folder with the files of a model: named itself, a folder of the Hub's cache, or fetched, now or before.

    Args:
        name: OWNER/NAME on the Hub, or a folder.
        revision: a branch, tag or commit on the Hub.
        what: how messages call it.

    Raises:
        UsageError: if huggingface_hub is not installed, or it cannot be fetched.
    """
    if Path(name).is_dir():
        return _snapshot(Path(name), revision)
    hub = _library(what)

    def fetch(**how: bool) -> Path:
        return Path(
            hub.snapshot_download(name, revision=revision, allow_patterns=list(WANTED), endpoint=_endpoint(), **how)
        )

    try:
        return fetch()
    except Exception as error:  # its errors are of many kinds, also those of the network below it
        with suppress(Exception):  # which say in another way that nothing was fetched before
            return fetch(local_files_only=True)
        raise UsageError(
            f"hf:{name} is no folder here and cannot be fetched ({_said(error)}): check the name, or fetch it where "
            "there is a network and name its folder"
        ) from error


def _snapshot(folder: Path, revision: str | None) -> Path:
    """A folder, or of a folder of the Hub's cache (`models--OWNER--NAME`) the snapshot that a revision names."""
    snapshots = folder / "snapshots"
    if not snapshots.is_dir() or (folder / "config.json").is_file():
        return folder
    ref = folder / "refs" / (revision or "main")
    commit = ref.read_text().strip() if ref.is_file() else revision
    every = sorted(each.name for each in snapshots.iterdir())
    if commit is None and len(every) == 1:
        commit = every[0]
    if commit is None or commit not in every:
        raise UsageError(f"{folder} has no snapshot {revision or 'main'!r} (snapshots: {', '.join(every)})")
    return snapshots / commit


def _endpoint() -> str | None:
    """Where the Hub is, if it is another than the public one: a mirror, or one of a company."""
    return os.environ.get("HF_ENDPOINT") or None


def _library(what: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise missing(what, "huggingface_hub", "hub", error) from None
    return huggingface_hub


def _said(error: Exception) -> str:
    """An error of elsewhere in a line."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}" if text and not isinstance(error, RobenchError) else type(error).__name__
