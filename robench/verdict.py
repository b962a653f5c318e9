"""One attack against one classifier, judged: the attack proposes images, and what counts is decided here.

`craft` lets an attack work behind the door; `judge` measures what it returned and asks the model again. `probe` looks at a
model before anything expensive and says what would make its numbers mean less than they seem to.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

import numpy
import torch
from torch import Tensor, nn

from robench.device import exhausted
from robench.door import Door, frozen
from robench.errors import AttackError
from robench.geometry import exact_norm, inside, per_image
from robench.inputs import check_images
from robench.losses import cross_entropy, log_odds
from robench.noise import ImageGenerator, seed_of
from robench.outputs import STILL, Unrest, inner_gradients, suspicious, unrest
from robench.part import mean_note
from robench.protocols import Attack, Classifier
from robench.results import FLAG
from robench.search import check_attack, searched

PASSES = 20  # over which a model that answers differently each time is judged
PROBED = 128  # images a probe looks at
LOOKS = 5  # passes over them in which answers must not change


@dataclass(frozen=True)
class Crafted:
    """What an attack proposed, and what it took.

    Attributes:
        adv: images, (n, channels, height, width); those it was not asked about are the clean ones.
        forwards: images passed forward.
        backwards: images whose gradient was computed.
        notes: what the attack found out.
        left: how many images each member of an ensemble left unbroken.
    """

    adv: Tensor
    forwards: int
    backwards: int
    notes: tuple[str, ...]
    left: Mapping[str, int]


@dataclass(frozen=True)
class Verdict:
    """What came out, one row per image.

    Attributes:
        clean: whether the model is right, (n,).
        robust: whether it is right and stays right, (n,).
        adv: the images that were judged, all inside the threat.
        largest: the largest perturbation among images right when clean, in the threat's norm.
        norms: for an attack that looks for the smallest perturbation, its norm: 0 where the model is wrong anyway and
            infinity where none was found, (n,); else None.
        notes: what a reader should know.
        answers: of a model that answers differently each time, summed over images: passes, those that were right about the
            clean image, and the fewer of those and of the ones right about `adv`; else None.
    """

    clean: Tensor
    robust: Tensor
    adv: Tensor
    largest: float
    norms: Tensor | None
    notes: tuple[str, ...]
    answers: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Probe:
    """What a look at a model showed.

    Attributes:
        randomised: whether it answers differently each time.
        notes: what makes its numbers mean less than they seem to.
        findings: the same, each with the indicator of `indicators` it belongs to, or an empty one.
        unrest: how its answers to the same images differ.
        entangled: whether an image's logits depend on the other images of its batch.
    """

    randomised: bool
    notes: tuple[str, ...]
    findings: tuple[tuple[str, str], ...] = ()
    unrest: Unrest = STILL
    entangled: bool = False


def evaluate(
    model: Classifier,
    attack: Attack,
    x: Tensor,
    y: Tensor,
    *,
    classes: int,
    seed: int = 0,
    ids: Tensor | None = None,
    batch: int = 500,
    source: Classifier | None = None,
    precision: str = "float32",
) -> tuple[Verdict, Crafted]:
    """Probe, attack and judge a classifier.

    Args:
        model: maps images to logits; any callable.
        attack: what to attack with.
        x: clean images, (n, channels, height, width), float in [0, 1].
        y: labels, (n,), int64.
        classes: how many logits there are.
        seed: of the attack's randomness.
        ids: a number for each image, to which its randomness belongs; 0 to n - 1 when None.
        batch: the most images at once.
        source: craft on this model and judge on the other (transfer).
        precision: of a white-box search on networks of `robench.models`; the verdict is float32 whatever it is.

    Raises:
        UsageError: if the attack or the model cannot be searched in that precision.
        DataError: for images or labels no evaluation can use.
        AttackError: if the model or the attack breaks its contract.
    """
    check_images(x, y, classes)
    if torch.is_inference_mode_enabled():  # which no gradient passes, so outside it, with tensors from outside it
        with torch.inference_mode(False):
            return evaluate(
                model,
                attack,
                x.clone(),
                y.clone(),
                classes=classes,
                seed=seed,
                ids=ids,
                batch=batch,
                source=source,
                precision=precision,
            )
    x, target = x.detach(), as_module(model)
    if any(weight.is_inference() for weight in target.parameters()):
        raise AttackError(
            "the model's weights were made inside torch.inference_mode, so no gradient passes them: load it outside"
        )
    ids = torch.arange(len(x), device=x.device) if ids is None else ids.to(x.device)
    with frozen(target), guarded(seed), exact():
        found = probe(target, x, y, classes, batch)
        refuse_randomised(attack, found)
        clean = right(Door(target, classes, batch), x, y, found.randomised)
    which = clean if source is None else torch.ones_like(clean)
    if source is None:
        door = white_box(target, attack, x, found, classes, batch, precision=precision)
    else:
        door = Door(as_module(source), classes, batch)
    crafted = craft(door, attack, x, y, which, ids=ids, seed=seed)
    with frozen(target), guarded(seed), exact():
        verdict = judge(Door(target, classes, batch), attack, x, y, clean, crafted.adv, found)
    finds: Callable[..., Iterable[str]] = getattr(attack, "finds", lambda left, count: ())
    return verdict, replace(crafted, notes=(*crafted.notes, *finds(crafted.left, int(which.sum()))))


def white_box(
    model: nn.Module,
    attack: Attack,
    x: Tensor,
    found: Probe,
    classes: int,
    batch: int,
    watch: Callable[[Door], None] | None = None,
    precision: str = "float32",
) -> Door:
    """The door a white-box attack gets: to a twin that is faster where that is exact up to rounding, else to the model.

    Args:
        model: under attack.
        attack: which must confirm what it stops on, for a twin.
        x: images of its data set, (n, ...).
        found: what a probe of the model showed.
        classes: how many logits there are.
        batch: the most images at once.
        watch: as in `Door`.
        precision: of the search.

    Raises:
        UsageError: if that precision is not possible here.
    """
    check_attack(attack, type(attack).__name__, precision)
    alone = not (found.randomised or found.entangled)
    if getattr(attack, "confirms", False):
        model = searched(model, x, precision, plain=not alone)
    return Door(model, classes, batch, watch, exits=alone)


def probe(model: nn.Module, x: Tensor, y: Tensor, classes: int, batch: int = 500) -> Probe:
    """Look at a model on a few images: randomness, probabilities, zero gradients, neighbours, gradients inside a pass.

    Randomness is looked for on the first and the last of the images, since a model may count those it has seen.

    Args:
        model: frozen, in eval mode.
        x: clean images, (n, ...).
        y: labels, (n,).
        classes: how many logits there must be.
        batch: the most images at once.

    Raises:
        AttackError: if it does not return finite logits of the right shape.

    Source: the flags of Croce & Hein's AutoAttack and the indicators of Pintor et al. 2022, with thresholds of our own.
    """
    door = Door(model, classes, batch)
    last, x, y = x[-PROBED:], x[:PROBED], y[:PROBED]
    with torch.no_grad():
        logits = _first_pass(door, x)
        answers = [[logits, *(door(x) for _ in range(LOOKS - 1))], [door(last) for _ in range(LOOKS)]]
        others = [door(x[:16]), door(x.flip(0))[-16:].flip(0)] if len(x) > 1 else []
    either = [unrest(passes) for passes in answers]
    seen = Unrest(max(e.moved for e in either), max(e.verdicts for e in either), any(e.bits for e in either))
    if seen.randomised:
        said = "the model answers differently each time"
        return Probe(True, (said,), (("G13", said),), seen)
    found: list[tuple[str, str]] = []
    reach = logits.abs().amax().item()
    entangled = any((each - logits[:16]).abs().max().item() > 1e-3 * reach for each in others)
    if entangled:
        found.append(("", "an image's logits depend on the other images of its batch"))
    found += [("G15", text)] if (text := suspicious(logits)) else []
    found += _gradients(door, x, y)
    if calls := inner_gradients(door, x[:16]):
        found.append(
            ("G14", f"the forward pass computes {calls} gradients of its own, which hides what the model answers to")
        )
    return Probe(False, tuple(dict.fromkeys(f"{FLAG}{text}" for _, text in found)), tuple(found), seen, entangled)


def _first_pass(door: Door, x: Tensor) -> Tensor:
    """The logits of clean images, where a model that wants other images says so."""
    try:
        logits: Tensor = door(x)
    except RuntimeError as error:
        if exhausted(error):
            raise
        raise AttackError(
            f"the model stopped on clean images {tuple(x.shape)} {x.dtype}: {type(error).__name__}: {error}"
        ) from error
    return logits


def _gradients(door: Door, x: Tensor, y: Tensor) -> list[tuple[str, str]]:
    """What is wrong with the gradients of a model, in words."""
    x = x.detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            logits = door(x)
            slope = torch.autograd.grad(log_odds(logits, y).sum(), x, retain_graph=True)[0].flatten(1).abs().amax(1)
            usual = torch.autograd.grad(cross_entropy(logits, y).sum(), x)[0].flatten(1).abs().amax(1)
    except (RuntimeError, MemoryError) as error:
        if exhausted(error):
            if len(x) == 1:
                raise
            return _gradients(door, x[: len(x) // 2], y[: len(x) // 2])
        return [("G2", "the model has no gradient; only black-box attacks and transfer say anything about it")]
    clean = logits.detach().argmax(1) == y
    count = max(1, int(clean.sum()))
    flat, vanished = int((clean & (slope == 0)).sum()), int((clean & (usual == 0) & (slope != 0)).sum())
    notes = []
    if not bool((slope.isfinite() & usual.isfinite()).all()):
        notes.append(("G1", "some gradients are NaN or infinite"))
    if flat > count / 100:
        notes.append(("G1", f"zero gradients for {flat} of {count} images; white-box attacks see nothing there"))
    if vanished > count / 100:
        text = f"logits so large that the gradient of cross-entropy rounds to zero for {vanished} of {count} images"
        notes += [("G1", text), ("G15", text)]  # a zero gradient of cross-entropy, from saturated logits
    return notes


def refuse_randomised(attack: Attack, found: Probe) -> None:
    """Refuse to judge a randomised model by an attack that is not made for it.

    Raises:
        AttackError: naming those that are.
    """
    if found.randomised and not getattr(attack, "randomised", False):
        raise AttackError(
            "the model answers differently each time, so a single draw proves nothing; use eot-pgd or autoattack-rand"
        )


def right(door: Door, x: Tensor, y: Tensor, randomised: bool = False) -> Tensor:
    """Which images the model gets right, (n,); a randomised one by the majority of 20 passes."""
    with torch.no_grad():
        if not randomised:
            same: Tensor = door(x).argmax(1) == y
            return same
        return 2 * _times(door, x, y) > PASSES


def _times(door: Door, x: Tensor, y: Tensor) -> Tensor:
    """In how many of 20 passes a randomised model is right about each image, (n,)."""
    with torch.no_grad():
        return torch.stack([door(x).argmax(1) == y for _ in range(PASSES)]).sum(0)


def craft(door: Door, attack: Attack, x: Tensor, y: Tensor, which: Tensor, *, ids: Tensor, seed: int) -> Crafted:
    """Let an attack perturb some images; the model is afterwards what it was before.

    Args:
        door: to the model to craft on.
        attack: what proposes.
        x: clean images, (n, ...).
        y: labels, (n,).
        which: a mask of the images to attack; the others stay clean.
        ids: a number for each image, to which its randomness belongs, (n,).
        seed: of the randomness.

    Raises:
        AttackError: if the attack returns no images of the right shape, or changes the model.
    """
    kind = f"{type(attack).__module__}:{type(attack).__qualname__}"  # not its options: more restarts begin alike
    before = {key: (tensor._version, tensor.clone()) for key, tensor in _tensors(door.model).items()}

    def run(part: Tensor) -> Tensor:
        generator = ImageGenerator(seed_of(seed, kind), ids[part], x.device)
        generator.manual_seed(seed)
        try:
            adv = attack(door, x[part], y[part], generator=generator)
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
            raise AttackError(
                "the model has no gradient, which this attack needs; use a black-box attack such as square, or transfer"
            ) from error
        if not isinstance(adv, Tensor) or adv.shape != x[part].shape:
            raise AttackError(f"the attack returned {getattr(adv, 'shape', type(adv))}, not {tuple(x[part].shape)}")
        return adv.detach().to(x)

    adv = x.clone()
    todo = which.nonzero().squeeze(1)
    with frozen(door.model), guarded(seed, int(ids[0])), exact():
        try:
            if len(todo) and attack.threat.eps > 0:
                adv[todo] = run(todo) if getattr(attack, "whole", False) else door.each(run, todo)
        finally:
            now = _tensors(door.model)
            changed = [key for key, (version, _) in before.items() if now[key]._version != version]
            with torch.no_grad():
                for key in changed:
                    now[key].copy_(before[key][1])
    if changed:
        raise AttackError(f"the attack changed the weights or statistics of the model ({changed[0]})")
    return Crafted(adv, door.forwards, door.backwards, tuple(dict.fromkeys(door.noted)), dict(door.left))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def judge(door: Door, attack: Attack, x: Tensor, y: Tensor, clean: Tensor, adv: Tensor, found: Probe) -> Verdict:
    """Decide what counts: images inside ball and box, shown to the model once more.

    Args:
        door: to the model under attack; frozen, in eval mode.
        attack: what proposed the images.
        x: clean images, (n, ...).
        y: labels, (n,).
        clean: which of them the model gets right, (n,).
        adv: what was proposed, (n, ...).
        found: what a probe of the model showed.

    Raises:
        AttackError: if they are outside the contract.
    """
    threat = attack.threat
    _check_box(adv)
    notes, norms, answers = found.notes, None, None
    size = exact_norm(adv, x, threat.norm)
    outside = ~inside(size, threat)
    if getattr(attack, "minimal", False):
        fools = ~right(door, adv, y, found.randomised)
        norms = torch.where(clean, torch.where(fools & (size > 0), size, torch.inf), 0)
        adv = torch.where(per_image(outside, x), x, adv)
        robust = clean & ~(fools & ~outside)
    elif outside.any():
        raise AttackError(
            f"the attack left the ball: {threat.norm.value} norm {size.max():.8g}, allowed {threat.eps:.8g}"
        )
    elif found.randomised:
        before, after = _times(door, x, y), _times(door, adv, y)
        robust = clean & (2 * after > PASSES)
        answers = PASSES, int(before.sum()), int(torch.minimum(before, after).sum())
        notes = (*notes, mean_note(PASSES, *(right / PASSES / len(x) for right in answers[1:])))
    else:
        robust = clean & right(door, adv, y)
    kept = torch.where(outside, 0, size)[clean]
    return Verdict(clean, robust, adv, kept.max().item() if len(kept) else 0.0, norms, notes, answers)


def _check_box(adv: Tensor) -> None:
    if not bool(adv.isfinite().all()):
        bad = int((~adv.isfinite()).flatten(1).any(1).sum())
        raise AttackError(f"the attack returned NaN or infinite pixels in {bad} images")
    low, high = adv.aminmax()
    if low < 0 or high > 1:
        raise AttackError(f"the attack left [0, 1]: pixels from {low.item():.8g} to {high.item():.8g}")


def as_module(model: Classifier) -> nn.Module:
    """The model itself, the module a bound method belongs to, or any other callable as a module.

    A function that hides a module inside is called as it is: put that module into eval mode first.
    """
    if isinstance(model, nn.Module):
        return model
    owner = getattr(model, "__self__", None)
    return _Function(model, owner if isinstance(owner, nn.Module) else None)


class _Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor], owner: nn.Module | None) -> None:
        super().__init__()
        self.function = function
        self.owner = owner

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def exact() -> AbstractContextManager[None]:
    """Convolutions in full float32 by algorithms that repeat, where a GPU would otherwise round or choose."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


@contextmanager
def guarded(seed: int, first: int = 0) -> Iterator[None]:
    """Inside, the global random states are seeded; after, they are what they were, whatever drew from them.

    Args:
        seed: of the evaluation.
        first: the number of the first image, so that parts of an evaluation do not draw the same numbers.
    """
    seed = seed_of(seed, "from", first) if first else seed
    others = random.getstate(), numpy.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        for start in (torch.manual_seed, random.seed, lambda value: numpy.random.seed(value % 2**32)):
            start(seed)
        try:
            yield
        finally:
            random.setstate(others[0])
            numpy.random.set_state(others[1])
