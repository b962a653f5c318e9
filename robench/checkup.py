"""A look at a classifier from elsewhere before anything expensive: what its numbers would mean, one sentence each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robench import verdict
from robench.data import Images
from robench.door import Door, frozen
from robench.errors import CheckpointError
from robench.foreign import Foreign, Wrapped
from robench.preprocess import layer, usual

LOOKED = 256  # images, spread evenly
BETTER = 0.1  # by how much another normalisation must raise clean accuracy to be spoken of


def checkup(model: Foreign, images: Images, device: torch.device | str = "cpu", batch: int = 500) -> list[str]:
    """Look at a classifier on some images.

    Args:
        model: the classifier.
        images: of the data set it will be evaluated on.
        device: where to compute.
        batch: the most images at once.

    Returns:
        Sentences about what a person should know or change; none when nothing stands out.

    Raises:
        CheckpointError: if it has other classes than the data set.
        AttackError: if its logits are not finite.
    """
    if model.classes != images.classes:
        raise CheckpointError(
            f"{model.name} has {model.classes} logits and {images.name} has {images.classes} classes: name the data set it "
            "was trained on (--dataset), or build it with as many classes"
        )
    some = images.take(torch.linspace(0, len(images) - 1, min(LOOKED, len(images))).long())
    x, y = some.x().to(device), some.y.to(device)
    network = model.load(device)
    with frozen(network), verdict.guarded(0), verdict.exact():
        found = verdict.probe(network, x, y, images.classes, batch)
        said = [*_mode(network), *map(_sentence, _findings(model, found))]
        if found.randomised:
            return said
        return said + _accuracy(model, x, y, batch)


def _mode(network: nn.Module) -> list[str]:
    """What stays in train mode although it was told not to."""
    network.eval()
    stuck = [name or type(module).__name__ for name, module in network.named_modules() if module.training]
    return [f"{stuck[0]} stays in train mode after eval(): results may depend on the batch"] if stuck else []


def _findings(model: Foreign, found: verdict.Probe) -> list[str]:
    texts = [text for _, text in found.findings]
    return [text for text in texts if not (model.black_box and "no gradient" in text)]  # which a black box never has


def _sentence(finding: str) -> str:
    """What a probe found, and what to do about it."""
    for part, more in _ADVICE.items():
        if part in finding:
            return more
    return finding


_ADVICE = {
    "answers differently": "two passes differ: a randomised defence. Use --attack eot-pgd or --attack autoattack-rand; other "
    "attacks overstate its robustness",
    "depend on the other images": "the same image gives different logits alone and in a batch: BatchNorm in train mode? "
    "robench set eval(); it still differs, so results depend on the batch",
    "returns probabilities": "outputs are non-negative and sum to 1: softmax inside the model. Attacks need logits; return "
    "what goes into the softmax",
}


def _accuracy(model: Foreign, x: Tensor, y: Tensor, batch: int) -> list[str]:
    """What clean accuracy says about normalisation, weights and labels."""
    body, channels, own = model.network.body, x.shape[1], model.origin.get("preprocess", "")

    def accuracy(network: nn.Module) -> float:
        return float(verdict.right(Door(network.eval(), model.classes, batch), x, y).float().mean())

    here = accuracy(model.network)
    others = {
        name: accuracy(Wrapped(body, layer(name, channels)).to(x.device))
        for name in usual(model.dataset, channels)
        if name != own
    }
    best = max(others, key=lambda name: others[name], default="")
    bare = accuracy(Wrapped(body, nn.Identity())) if own else 0.0
    if bare > here + BETTER and bare >= others.get(best, 0):
        return [
            f"clean accuracy is {100 * here:.0f} % with --preprocess {own}; without it is {100 * bare:.0f} %. "
            "Leave --preprocess away?"
        ]
    if best and others[best] > here + BETTER:
        verb = "Use" if own else "Add"
        return [
            f"clean accuracy is {100 * here:.0f} % here; with the usual {best} mean/std it is {100 * others[best]:.0f} %. "
            f"{verb} --preprocess {best}?"
        ]
    if here <= 1.5 / model.classes:
        return [
            f"clean accuracy is {100 * here:.0f} % on {len(x)} images, near chance: are these the right weights, data set and "
            "order of classes?"
        ]
    return []
