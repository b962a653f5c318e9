"""Models of the Hub as something to attack: of robench, of timm, and image classifiers of transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from robench import hub, tensors
from robench.checkpoint import Checkpoint, fitting, nets_after
from robench.errors import CheckpointError, RobenchError, first_line, missing
from robench.fitting import fit, read, sniff
from robench.preprocess import KNOWN
from robench.results import DAMAGE
from robench.spec import build
from robench.zoo import timm_library

OWN = "build the network yourself: --model my.py:make_model --weights FILE.safetensors"


def hub_model(*, name: str, revision: str | None = None) -> nn.Module:
    """A model as the Hub keeps it: a description, which names the architecture, and `model.safetensors`.

    Args:
        name: OWNER/NAME on the Hub, or a folder that holds the files: also one of the Hub's cache.
        revision: a branch, tag or commit on the Hub.

    Raises:
        UsageError: if a package is not installed, or it cannot be fetched.
        CheckpointError: if it is laid out in another way, is no image classifier, or its weights do not fit.
    """
    what = f"hf:{name}"
    folder = hub.located(name, revision, what)
    if (folder / hub.DESCRIPTION).is_file():
        return _ours(folder, what)
    config = _config(folder, what)
    if isinstance(config.get("architecture"), str):
        return _timm(folder, config, what)
    if config.get("architectures"):
        return _transformers(folder, config, what)
    raise CheckpointError(
        f"{what} has a config.json that names neither an architecture of timm nor one of transformers; {OWN}"
    )


def _config(folder: Path, what: str) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_bytes())
        if not isinstance(found, dict):
            raise TypeError("it is no table")
    except FileNotFoundError:
        raise CheckpointError(f"{what} has neither {hub.DESCRIPTION} nor config.json; {OWN}") from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{what} has a config.json that cannot be read ({error}); fetch it again") from None
    return found


def _ours(folder: Path, what: str) -> nn.Module:
    """A checkpoint of robench, unless it names programs of a stranger."""
    found = hub.opened(folder, what)
    table = {key: value for key, value in found.table.items() if key not in ("digest", "format")}
    try:
        checkpoint: Checkpoint = build(Checkpoint, {**table, "folder": folder, "kind": "best"})
    except (*DAMAGE, RobenchError) as error:
        raise CheckpointError(f"{what} is damaged ({type(error).__name__}: {error}); fetch it again") from None
    if programs := hub.programs(checkpoint):
        raise CheckpointError(
            f"{what} names {', '.join(programs)}, which is code and was not run; robench pull it, read it, and evaluate "
            "the checkpoint if you trust it"
        )
    nets = nets_after(checkpoint.recipe, checkpoint.stages, checkpoint.classes, checkpoint.shape)
    nets.load_state_dict(fitting(nets, tensors.read(found.weights, what), what))
    if "head" not in nets.parts:
        raise CheckpointError(
            f"{what} is an encoder without a head: robench pull it, then robench train linear --encoder it"
        )
    return nets


def _timm(folder: Path, config: Mapping[str, Any], what: str) -> nn.Module:
    timm = timm_library(what)
    architecture = config["architecture"]
    if not timm.is_model(architecture):
        raise CheckpointError(f"{what} is a {architecture!r}, which timm {timm.__version__} does not know: update timm")
    stored = read(folder / hub.WEIGHTS)
    options = {key: config[key] for key in ("num_classes", "global_pool") if key in config}
    made: nn.Module = timm.create_model(architecture, **{**options, **(config.get("model_args") or {})})
    fit(made, stored, f"timm:{architecture}")
    return made


def _transformers(folder: Path, config: Mapping[str, Any], what: str) -> nn.Module:
    """An image classifier of transformers; code that lies beside its weights is not run."""
    architecture = str(config["architectures"][0])
    if not architecture.endswith("ForImageClassification"):
        raise CheckpointError(f"{what} is a {architecture}; expected an image classifier (...ForImageClassification)")
    if config.get("auto_map"):
        raise CheckpointError(f"{what} brings code of its own, which was not run; {OWN}")
    try:
        from transformers import AutoModelForImageClassification
    except ImportError as error:
        raise missing(what, "transformers", "transformers", error) from None
    stored = sorted(folder.glob("model*.safetensors"))
    if not stored:
        raise CheckpointError(
            f"{what} has no model.safetensors, and other files of weights may run code; ask for one, or {OWN}"
        )
    for path in stored:
        sniff(path)
    try:
        with _silent():
            made, told = AutoModelForImageClassification.from_pretrained(
                str(folder),
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # which is then said of all that differ, below
                output_loading_info=True,
            )
    except Exception as error:  # whatever the library makes of a stranger's files
        raise CheckpointError(
            f"{what} cannot be loaded by transformers: {type(error).__name__}: {first_line(error)}"
        ) from error
    _check_whole(told, architecture, len(made.state_dict()), what)
    network: nn.Module = made
    return network


@contextmanager
def _silent() -> Iterator[None]:
    """Inside, transformers draws no bar and warns of nothing: what it would say is looked at and said in a line."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _check_whole(told: Mapping[str, Any], architecture: str, total: int, what: str) -> None:
    """Refuse a model of which a part was not in the file: transformers gives it random weights.

    Raises:
        CheckpointError: naming the first tensor.
    """
    differ = [
        f"{key} is {tuple(have)}, the model has {tuple(want)}" for key, have, want in told.get("mismatched_keys") or ()
    ]
    differ += [f"{key} is missing" for key in told.get("missing_keys") or ()]
    differ += [f"{key} is none of the model's" for key in told.get("unexpected_keys") or ()]
    if differ:
        raise CheckpointError(
            f"the weights of {what} do not fit {architecture}: {len(differ)} of {total} tensors differ. First: {min(differ)}; "
            f"fetch it again, or {OWN}"
        )


def normalisation(name: str, revision: str | None = None) -> str:
    """What a model's own files say about normalising, as `--preprocess` has it; nothing when they say nothing.

    Args:
        name: OWNER/NAME on the Hub, or a folder; it has been opened already.
        revision: a branch, tag or commit on the Hub.
    """
    folder = hub.located(name, revision, f"hf:{name}")
    if (folder / hub.DESCRIPTION).is_file():
        return ""  # whose normalisation is a layer
    for file, inner, mean, std in (
        ("preprocessor_config.json", None, "image_mean", "image_std"),
        ("config.json", "pretrained_cfg", "mean", "std"),
    ):
        try:
            table = json.loads((folder / file).read_bytes())
            table = table[inner] if inner else table
            if table.get("do_normalize", True):
                return _named([float(value) for value in table[mean]], [float(value) for value in table[std]])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return ""


def _named(mean: list[float], std: list[float]) -> str:
    """Means and deviations as `--preprocess` has them, by a name if they have one."""
    for name, known in KNOWN.items():
        if all(
            len({*given}) == 1 and given[0] == own[0] if len(own) == 1 else (*given,) == own
            for given, own in zip((mean, std), known, strict=True)
        ):
            return name
    return ",".join(f"{value:g}" for value in (*mean, *std))
