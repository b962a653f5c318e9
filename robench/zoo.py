"""Classifiers of other packages by name; each is imported only when one of its models is asked for."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from torch import nn

from robench.errors import CheckpointError, UsageError, missing, nearest
from robench.fitting import fit, read


def timm_model(*, name: str, classes: int, channels: int, **options: Any) -> nn.Module:
    """A model of timm with random weights, or with `pretrained=true` those that timm fetches.

    Args:
        name: as timm calls it.
        classes: how many logits, unless `num_classes` says otherwise; pretrained weights keep their own.
        channels: of the images.
        options: of `timm.create_model`.

    Raises:
        UsageError: if timm is not installed, or knows no such model.
    """
    timm = _timm(f"timm:{name}")
    if not timm.is_model(name):
        known = timm.list_models()
        raise UsageError(f"timm knows no model {name!r}.{_guess(name, known)} ({len(known)} known: timm.list_models())")
    usual = {} if options.get("pretrained") else {"num_classes": classes}
    made: nn.Module = timm.create_model(name, **{**usual, "in_chans": channels, **options})
    return made


def _timm(what: str) -> Any:
    try:
        import timm
    except ImportError:
        raise missing(what, "timm", "timm") from None
    return timm


def torchvision_model(*, name: str, classes: int, **options: Any) -> nn.Module:
    """A model of torchvision with random weights, or with `weights="DEFAULT"` those that torchvision fetches.

    Args:
        name: as torchvision calls it.
        classes: how many logits, unless `num_classes` says otherwise; fetched weights keep their own.
        options: of `torchvision.models.get_model`.

    Raises:
        UsageError: if torchvision knows no such model.
    """
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise UsageError(
            f"torchvision knows no model {name!r}.{_guess(name, known)} ({len(known)} known: torchvision.models.list_models())"
        )
    usual = {} if options.get("weights") else {"num_classes": classes}
    if name in ("googlenet", "inception_v3") and not options.get("weights"):
        usual = {**usual, "init_weights": False}
    made: nn.Module = models.get_model(name, **{**usual, **options})
    return made


def _guess(name: str, known: list[str]) -> str:
    match = nearest(name, known)
    return f" Did you mean {match!r}?" if match else ""


def hub_model(*, name: str, revision: str | None = None) -> nn.Module:
    """A timm model as the Hub keeps it: `config.json`, which names the architecture, and `model.safetensors`.

    Args:
        name: OWNER/NAME on the Hub, or a folder that holds the two files.
        revision: a branch, tag or commit on the Hub.

    Raises:
        UsageError: if timm is not installed, or it cannot be fetched.
        CheckpointError: if it is laid out in another way.
    """
    timm = _timm(f"hf:{name}")
    folder = Path(name) if Path(name).is_dir() else _fetched(name, revision)
    try:
        config = json.loads((folder / "config.json").read_bytes())
        architecture = config["architecture"]
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"hf:{name} has no config.json that names a timm architecture; build the network yourself: "
            "--model my.py:make_model --weights FILE.safetensors"
        ) from None
    if not timm.is_model(architecture):
        raise CheckpointError(
            f"hf:{name} is a {architecture!r}, which timm {timm.__version__} does not know: update timm"
        )
    stored = read(folder / "model.safetensors")
    options = {key: config[key] for key in ("num_classes", "global_pool") if key in config} | config.get(
        "model_args", {}
    )
    made: nn.Module = timm.create_model(architecture, **options)
    fit(made, stored, f"timm:{architecture}")
    return made


def _fetched(name: str, revision: str | None) -> Path:
    """The files of a model on the Hub: those that were fetched before, or else fetched now."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise missing(f"hf:{name}", "huggingface_hub", "timm") from None
    wanted = ["config.json", "model.safetensors"]
    with contextlib.suppress(Exception):  # not there yet, in any of the ways the library has of saying so
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, local_files_only=True))
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:  # its errors are of many kinds, also those of the network below it
        raise UsageError(
            f"hf:{name} is no folder here and cannot be fetched ({type(error).__name__}): check the name, or fetch it where "
            "there is a network and name its folder"
        ) from error


def robustbench_model(*, name: str, threat_model: str = "Linf", dataset: str = "cifar10") -> nn.Module:
    """A model of RobustBench, which fetches it; it normalises by itself.

    Raises:
        UsageError: if RobustBench is not installed.
        CheckpointError: if it cannot load the model.
    """
    try:
        from robustbench.utils import load_model
    except ImportError:
        raise missing(f"robustbench:{name}", "robustbench", "robustbench") from None
    try:
        made: nn.Module = load_model(model_name=name, dataset=dataset, threat_model=threat_model)
    except Exception as error:
        raise CheckpointError(
            f"robustbench:{name} ({dataset}, {threat_model}) cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    return made
