"""Pictures of broken images: an attack is run again on a few of them, and the model must fall for them again."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from robench import verdict
from robench.attacks import attack_for, options_of
from robench.data import Images
from robench.door import Door, Ensemble, frozen
from robench.errors import UsageError
from robench.exhibits import Example, Pictures
from robench.protocols import Attack, Target
from robench.registry import ATTACKS
from robench.results import Cell, Result
from robench.showing import broken
from robench.spec import plain

GAP = 2  # white pixels between pictures
SCALE = 4  # pictures of 32 pixels are small on a screen of today


@dataclass(frozen=True)
class Again:
    """Images that were attacked once more.

    Attributes:
        numbers: which of the result's, n of them.
        clean: the images, (n, ...).
        adv: what the attack made of them, (n, ...).
        labels: their classes.
        answers: what the model says of the adversarial ones.
        left: the numbers of those that were not broken again.
    """

    numbers: list[int]
    clean: Tensor
    adv: Tensor
    labels: list[int]
    answers: list[int]
    left: list[int]


def again(result: Result, checkpoint: Target, sources: Sequence[Target], images: Images, count: int) -> Again:
    """Attack the first `count` broken images of a result once more, as it was done then.

    Args:
        result: whose images.
        checkpoint: the one under attack.
        sources: what to craft on; empty for white-box.
        images: all of the result's, on the device to compute on.
        count: how many.

    Raises:
        UsageError: if the record is of other images, or of an attack that is no longer the same.
    """
    cell, lost = result.cell, broken(result)[:count]
    if images.digest != cell.data:
        raise UsageError(
            f"the images at hand are not those of the record (digest {images.digest[:8]}, not {cell.data[:8]})"
        )
    if cell.inference is not None:
        raise UsageError(
            "pictures of a smoothed classifier's images are not made: its draws belong to the whole evaluation"
        )
    attack = _attack(cell)
    nets = checkpoint.load(images.pixels.device)
    members = [source.load(images.pixels.device) for source in sources] or [nets]
    crafted_on = members[0] if len(members) == 1 else Ensemble(members)
    every = torch.arange(len(images), device=images.pixels.device)
    whole = bool(getattr(attack, "whole", False))  # it shares work between images, so it needs all it had then
    ids = every if whole else every[lost]
    keep = torch.tensor(lost) if whole else torch.arange(len(lost))
    ran, _ = verdict.evaluate(
        nets,
        attack,
        images.x(ids),
        images.y[ids],
        classes=images.classes,
        seed=cell.seed,
        ids=ids,
        source=None if not sources else crafted_on,
    )
    left = [number for number, robust in zip(lost, ran.robust[keep].tolist(), strict=True) if robust]
    with frozen(nets), verdict.exact(), torch.no_grad():
        answers = Door(nets, images.classes)(ran.adv[keep]).argmax(1).tolist()
    return Again(lost, images.x(every[lost]), ran.adv[keep], images.y[lost].tolist(), answers, left)


def _attack(cell: Cell) -> Attack:
    """The attack of a cell with exactly its options.

    Raises:
        UsageError: if today's attack of that name has another version or other options.
    """
    version = ATTACKS.entry(cell.attack).version
    if version != cell.version:
        raise UsageError(
            f"the record is of version {cell.version} of {cell.attack}, and this robench has version {version}"
        )
    for changes in ({}, {"early_stop": cell.options["early_stop"]} if "early_stop" in cell.options else {}):
        attack = attack_for(cell.attack, cell.threat, **changes)
        if plain(options_of(attack)) == plain(cell.options):
            return attack
    raise UsageError(f"{cell.attack} has other options today than in the record; install the version that made it")


def grid(clean: Tensor, adv: Tensor) -> bytes:
    """A PNG with a row for each image: clean, adversarial, and their difference about grey, amplified to full range."""
    columns = [clean, adv, amplified(clean, adv)]
    large = [each.repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3) for each in columns]
    count, channels, height, width = large[0].shape
    sheet = torch.ones(channels, count * (height + GAP) - GAP, 3 * (width + GAP) - GAP)
    for column, part in enumerate(large):
        for row, image in enumerate(part.cpu().float()):
            top, left = row * (height + GAP), column * (width + GAP)
            sheet[:, top : top + height, left : left + width] = image
    return png(sheet)


def amplified(clean: Tensor, adv: Tensor) -> Tensor:
    """The difference of images about grey, (n, ...), each amplified until it is half the range."""
    difference = adv - clean
    return 0.5 + difference / (2 * difference.abs().flatten(1).amax(1).clamp_min(1e-12).view(-1, 1, 1, 1))


def png(image: Tensor) -> bytes:
    """A PNG of an image in [0, 1], (channels, height, width): grey for one channel, else the first three as colours."""
    shown = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu()
    if shown.shape[2] == 2:
        raise UsageError("images of two channels cannot be drawn")
    picture = Image.fromarray(shown[..., 0].numpy() if shown.shape[2] == 1 else shown[..., :3].contiguous().numpy())
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()


def kept(result: Result, made: Again) -> Pictures:
    """The images that were broken again, for reports."""
    parts = [made.clean, made.adv, amplified(made.clean, made.adv)]
    columns = [[base64.b64encode(png(image.float())).decode() for image in part] for part in parts]
    every = zip(made.numbers, made.labels, made.answers, *columns, strict=True)
    found = [Example(*each) for each in every]
    return Pictures(result.cell.key, tuple(each for each in found if each.number not in made.left))
