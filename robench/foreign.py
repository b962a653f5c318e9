"""Classifiers that robench did not train: any that Python can call, as something to attack."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robench import files, fitting, hub_model
from robench.blackbox import BlackBox
from robench.data import Images
from robench.errors import CheckpointError, RobenchError, UsageError, first_line
from robench.names import Entry
from robench.preprocess import layer
from robench.registry import CLASSIFIERS
from robench.results import Subject, safe
from robench.threat import ThreatModel

GROUP = "outside"  # how tables group them
SEEN = 2  # images shown to learn how many logits there are


class Wrapped(nn.Module):
    """A classifier behind its normalisation; what returns its logits under a name is unwrapped."""

    def __init__(self, body: nn.Module, entrance: nn.Module) -> None:
        super().__init__()
        self.entrance = entrance
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (n, classes)."""
        found = self.body(self.entrance(x))
        logits: Tensor = getattr(found, "logits", found)
        return logits


@dataclass(frozen=True)
class Foreign:
    """A classifier from elsewhere.

    Attributes:
        name: how tables call it.
        dataset: what it is evaluated on.
        classes: how many logits it has.
        shape: channels, height and width of its images.
        sha256: of its tensors, its code and how it normalises.
        origin: the text that names it, its file of weights, how it normalises.
        network: what answers, normalisation included.
        threat: what it was trained against, if somebody said so.
        notes: what was done to make it fit, for whoever named it.
        doubts: what a look at it has found.
    """

    name: str
    dataset: str
    classes: int
    shape: tuple[int, int, int]
    sha256: str
    origin: Mapping[str, str]
    network: Wrapped = field(repr=False, compare=False)
    threat: ThreatModel | None = None
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = field(default=(), compare=False)

    @property
    def recipe(self) -> None:
        """None: nobody here knows how it was trained."""
        return

    @property
    def black_box(self) -> bool:
        """Whether it has no gradients."""
        return any(isinstance(module, BlackBox) for module in self.network.modules())

    @property
    def unready(self) -> str:
        """Nothing: it has answered before it became one."""
        return ""

    def load(self, device: torch.device | str = "cpu") -> nn.Module:
        """The network on a device, in eval mode."""
        return self.network.to(device).eval()

    def subject(self, dataset: str) -> Subject:
        """What tables need to know of it."""
        return Subject(
            name=self.name,
            recipe=self.origin["model"],
            group=GROUP,
            threat=self.threat,
            seed=0,
            dataset=dataset,
            sha256=self.sha256,
            origin=self.origin,
        )


class Called(nn.Module):
    """Any callable as a module; of a bound method, the module it belongs to moves and changes mode with it."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        owner = getattr(function, "__self__", None)
        self.function = function
        self.owner = owner if isinstance(owner, nn.Module) else None

    def forward(self, x: Tensor) -> Tensor:
        """What the callable returns."""
        return self.function(x)


def open_foreign(
    text: str,
    images: Images,
    *,
    dataset: str = "",
    stored: Path | None = None,
    preprocess: str = "",
    name: str = "",
    threat: ThreatModel | None = None,
) -> Foreign:
    """Make a classifier that a text names.

    Args:
        text: `timm:NAME`, `my.py:make_model` and what else `robench list classifiers` shows; options after an `@`.
        images: what it will be evaluated on; some are shown to it.
        dataset: how the command line called them.
        stored: a file of weights to put in.
        preprocess: how it normalises, as `preprocess.statistics` reads it; not at all when empty.
        name: how tables call it.
        threat: what it was trained against.

    Raises:
        UsageError: for a name nobody knows, or a package that is not installed.
        CheckpointError: for weights that do not fit, or a network that does not take the images.
    """
    entry = CLASSIFIERS.entry(text)
    network = as_network(_made(entry, images), text)
    origin, notes = {"model": text}, []
    if stored is not None:
        if any(isinstance(module, BlackBox) for module in network.modules()):
            raise UsageError(f"--weights {stored}: {text} is a file with its weights inside; leave --weights away")
        taken = fitting.fit(network, fitting.read(stored), entry.name)
        notes += [f"names of weights start with '{taken}': stripped"] if taken else []
        origin |= {"weights": str(stored), "weights_sha256": files.sha256(stored.read_bytes())}
    if not preprocess and entry.name.startswith("hf:") and (own := hub_model.normalisation(**entry.options)):
        notes += [f"its own files normalise by {own}: add --preprocess {own}?"]
    details = ", ".join(filter(None, [stored.stem if stored else "", preprocess]))
    called = name or entry.name.rpartition("/")[2] + (f" ({details})" if details else "")
    made = foreign(network, images, name=called, origin=origin, preprocess=preprocess, code=_file(entry))
    return replace(made, dataset=dataset or images.name, threat=threat, notes=tuple(notes))


def foreign(
    model: Callable[[Tensor], Tensor],
    images: Images,
    *,
    name: str,
    origin: Mapping[str, str] | None = None,
    preprocess: str = "",
    code: bytes = b"",
) -> Foreign:
    """Any callable that maps images to logits, as something to attack.

    Args:
        model: gets float images in [0, 1], (n, channels, height, width).
        images: what it will be evaluated on; some are shown to it.
        name: how tables call it.
        origin: where it comes from; its name when None.
        preprocess: how it normalises, as `preprocess.statistics` reads it; not at all when empty.
        code: more of what its answers depend on, for its digest.

    Raises:
        CheckpointError: if it does not answer these images with logits.
    """
    entrance = layer(preprocess, images.shape[0]) if preprocess else nn.Identity()
    network = Wrapped(as_network(model, name), entrance).eval()
    told = {**(origin or {"model": name}), **({"preprocess": preprocess} if preprocess else {})}
    return Foreign(
        name=safe(name),
        dataset=images.name,
        classes=_classes(network, images, name),
        shape=images.shape,
        sha256=digest_of(network, code),
        origin=told,
        network=network,
    )


def as_network(made: Any, text: str) -> nn.Module:
    """A module, or another callable as one.

    Raises:
        UsageError: if it is neither.
    """
    if isinstance(made, nn.Module):
        return made
    if callable(made):
        return Called(made)
    raise UsageError(f"model {text!r} gave a {type(made).__name__}; expected a module, or a function of images")


def _made(entry: Entry, images: Images) -> Any:
    """What a row makes: families are told classes and channels, what a person wrote is called as it is."""
    make = CLASSIFIERS.load(entry)
    given = {key: value for key, value in entry.options.items() if isinstance(key, str)}
    if isinstance(make, nn.Module):
        if given:
            raise UsageError(f"model {entry.name!r} is a module already and takes no options ({', '.join(given)})")
        return make
    if not callable(make):
        raise UsageError(f"model {entry.name!r} is a {type(make).__name__}; expected a function that returns a module")
    try:
        known = inspect.signature(make).parameters
    except (TypeError, ValueError):
        known = {}  # type: ignore[assignment]
    told = {"classes": images.classes, "channels": images.shape[0]}
    told = {key: value for key, value in told.items() if key in known and key not in given}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # a model without weights is the same one each time
            return make(**told, **given)
    except RobenchError:
        raise
    except (Exception, SystemExit) as error:  # whatever code from elsewhere does
        raise UsageError(f"model {entry.name!r} cannot be made: {type(error).__name__}: {error}") from error


def _file(entry: Entry) -> bytes:
    """The script that a row names, for the digest: helpers beside the network decide its answers too."""
    path = Path(entry.target.rpartition(":")[0])
    return path.read_bytes() if path.suffix == ".py" and path.is_file() else _bytes(entry.options.get("file"))


def _bytes(file: object) -> bytes:
    return Path(file).read_bytes() if isinstance(file, str) and Path(file).is_file() else b""


def _classes(network: nn.Module, images: Images, name: str) -> int:
    """How many logits a network gives for these images.

    Raises:
        CheckpointError: if it stops, or returns no logits.
    """
    x = images.x(slice(SEEN)).cpu()
    try:
        with torch.no_grad():
            logits = network(x)
    except (Exception, SystemExit) as error:  # whatever code from elsewhere does
        raise CheckpointError(
            f"{name} does not take images {'x'.join(map(str, images.shape))} of {images.name}: {type(error).__name__}: "
            f"{first_line(error)}. Resize them (--dataset NAME@resize=224), or name other images"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        seen = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise CheckpointError(f"{name} returned {seen} for {len(x)} images; expected logits ({len(x)}, classes)")
    return logits.shape[1]


def digest_of(network: nn.Module, code: bytes = b"") -> str:
    """SHA-256 of what decides a network's answers: its tensors, how it is put together, and its classes' code."""
    found = hashlib.sha256(code)
    for key, tensor in sorted(network.state_dict().items()):
        found.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    found.update(re.sub(r"0x[0-9a-f]+", "", repr(network)).encode())
    for text in sorted(set(_sources(network))):
        found.update(text.encode())
    return found.hexdigest()


def _sources(network: nn.Module) -> Iterable[str]:
    """The code of every class and function in a network that is not torch's or ours."""
    for module in network.modules():
        if isinstance(module, Called):
            yield _source(module.function)
        elif not type(module).__module__.startswith(("torch.", "robench.")):
            yield _source(type(module))


def _source(thing: Any) -> str:
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        return getattr(thing, "__qualname__", type(thing).__qualname__)
