"""Classifiers of other packages by name; each is imported only when one of its models is asked for."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from robench.errors import CheckpointError, UsageError, first_line, missing, nearest
from robench.fitting import sniff


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
    timm = timm_library(f"timm:{name}")
    if not timm.is_model(name):
        known = timm.list_models()
        raise UsageError(f"timm knows no model {name!r}.{_guess(name, known)} ({len(known)} known: timm.list_models())")
    usual = {} if options.get("pretrained") else {"num_classes": classes}
    made: nn.Module = timm.create_model(name, **{**usual, "in_chans": channels, **options})
    return made


def timm_library(what: str) -> Any:
    """The package timm.

    Args:
        what: needs it, for messages.

    Raises:
        UsageError: if it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise missing(what, "timm", "timm", error) from None
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


def robustbench_model(
    *, name: str, threat_model: str = "Linf", dataset: str = "cifar10", model_dir: str = "models"
) -> nn.Module:
    """A model of RobustBench, which fetches it unless its file is there; it normalises by itself.

    Args:
        name: as the leaderboard calls it.
        threat_model: Linf, L2 or corruptions.
        dataset: cifar10, cifar100 or imagenet.
        model_dir: where RobustBench keeps its files, as DATASET/THREAT/NAME.pt.

    Raises:
        UsageError: if RobustBench is not installed, or knows no such model.
        CheckpointError: if it cannot load the model.
    """
    try:
        with _autoattack():
            from robustbench import utils
    except ImportError as error:
        raise missing(f"robustbench:{name}", "robustbench", "robustbench", error) from None
    known = _known(utils, dataset, threat_model)
    if known and name not in known:
        raise UsageError(
            f"robustbench knows no {dataset} model {name!r} for {threat_model}.{_guess(name, known)} ({len(known)} known)"
        )
    file = Path(model_dir) / dataset / threat_model / f"{name}.pt"
    if file.is_file():
        sniff(file)
    try:
        made: nn.Module = utils.load_model(
            model_name=name, dataset=dataset, threat_model=threat_model, model_dir=model_dir
        )
    except Exception as error:
        if file.is_file():
            sniff(file)  # a download that was refused
        raise CheckpointError(
            f"robustbench:{name} ({dataset}, {threat_model}) cannot be loaded: {type(error).__name__}: {first_line(error)}"
        ) from error
    return made


def _known(utils: Any, dataset: str, threat_model: str) -> list[str]:
    """The names that RobustBench knows; none if it does not know the data set or threat, or does not say."""
    try:
        return sorted(utils.all_models[utils.BenchmarkDataset(dataset)][utils.ThreatModel(threat_model)])
    except (AttributeError, KeyError, ValueError):
        return []


@contextlib.contextmanager
def _autoattack() -> Iterator[None]:
    """Inside, `autoattack` is what is published as `pyautoattack`: RobustBench imports the one and depends on the other."""
    names = {"autoattack": "pyautoattack", "autoattack.state": "pyautoattack.state"}
    if importlib.util.find_spec("autoattack") is not None or importlib.util.find_spec("pyautoattack") is None:
        yield
        return
    try:
        sys.modules.update({name: importlib.import_module(other) for name, other in names.items()})
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)
