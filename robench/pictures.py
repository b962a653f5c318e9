"""Pictures of broken images: an attack is run again on a few of them, and the model must fall for them again."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from robench import verdict
from robench.attacks import attack_for, options_of
from robench.data import Images
from robench.door import Ensemble
from robench.errors import UsageError
from robench.protocols import Attack, Target
from robench.registry import ATTACKS
from robench.results import Cell, Result
from robench.showing import broken
from robench.spec import plain

GAP = 2  # white pixels between pictures
SCALE = 4  # pictures of 32 pixels are small on a screen of today


def again(
    result: Result, checkpoint: Target, sources: Sequence[Target], images: Images, count: int
) -> tuple[Tensor, Tensor, list[int], list[int]]:
    """Attack the first `count` broken images of a result once more, as it was done then.

    Args:
        result: whose images.
        checkpoint: the one under attack.
        sources: what to craft on; empty for white-box.
        images: all of the result's, on the device to compute on.
        count: how many.

    Returns:
        Clean and adversarial images, (n, ...); their numbers; and those of them that were not broken again.

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
    return images.x(every[lost]), ran.adv[keep], lost, left


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
    difference = adv - clean
    reach = difference.abs().flatten(1).amax(1).clamp_min(1e-12).view(-1, 1, 1, 1)
    columns = [clean, adv, 0.5 + difference / (2 * reach)]
    large = [each.repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3) for each in columns]
    count, channels, height, width = large[0].shape
    sheet = torch.ones(channels, count * (height + GAP) - GAP, 3 * (width + GAP) - GAP)
    for column, part in enumerate(large):
        for row, image in enumerate(part.cpu().float()):
            top, left = row * (height + GAP), column * (width + GAP)
            sheet[:, top : top + height, left : left + width] = image
    shown = (sheet.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    picture = Image.fromarray(shown[..., 0].numpy() if channels == 1 else shown[..., :3].contiguous().numpy())
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()
