"""Features of clean and adversarial images in two dimensions, by t-SNE: what an attack does to an encoder, to look at."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robench import verdict
from robench.attacks import attack_for
from robench.checkpoint import Checkpoint
from robench.door import frozen
from robench.errors import UsageError
from robench.evaluation import Engine, check_shape, usual_threat
from robench.exhibits import Embedding
from robench.models import Nets
from robench.registry import ATTACKS
from robench.threat import ThreatModel

PERPLEXITY = 30.0
COUNT = 500


class _Headless(nn.Module):
    """An encoder that answers one class, whatever it sees, so that attacks on features never count as done."""

    def __init__(self, nets: Nets, classes: int) -> None:
        super().__init__()
        self.nets, self.classes = nets, classes

    def features(self, x: Tensor) -> Tensor:
        """What the encoder makes of images."""
        return self.nets.features(x)

    def forward(self, x: Tensor) -> Tensor:
        """Class 0 for every image."""
        return torch.eye(self.classes, device=x.device, dtype=x.dtype)[0].expand(len(x), -1)


def embedded(
    engine: Engine,
    checkpoint: Checkpoint,
    *,
    attack: str | None = None,
    threat: ThreatModel | None = None,
    count: int | None = None,
    seed: int = 0,
) -> Embedding:
    """The features of the first test images, clean and adversarial, in one embedding.

    Args:
        engine: has the data and the networks.
        checkpoint: whose encoder; it needs no head.
        attack: what perturbs the images; `pgd-20`, and `feature-pgd` for an encoder without a head.
        threat: the ball; what the checkpoint was trained against, or its data set's usual one, when None.
        count: how many images; 500, or all if there are fewer, when None.
        seed: of the attack and of t-SNE.

    Raises:
        UsageError: for an attack on labels of an encoder that has no head, or fewer than 4 images.
        CheckpointError: for a checkpoint of other images than the data set's.

    Source: van der Maaten & Hinton 2008, by scikit-learn; the start is the first principal components, not random.
    """
    dataset = checkpoint.recipe.dataset
    images = engine.images(dataset, min(COUNT, len(engine.images(dataset, None))) if count is None else count)
    if len(images) < 4:
        raise UsageError(f"--count {len(images)}: t-SNE needs at least 4 images")
    check_shape(checkpoint, images)
    nets = checkpoint.load(engine.device)
    whole = "head" in nets.parts
    name = attack or ("pgd-20" if whole else "feature-pgd")
    if not whole and name.partition("@")[0] != "feature-pgd":
        raise UsageError(f"{checkpoint.name} is an encoder without a head, which only --attack feature-pgd can attack")
    ball = threat or usual_threat(checkpoint.recipe, checkpoint.name)
    judged, _ = verdict.evaluate(
        nets if whole else _Headless(nets, images.classes),
        attack_for(name, ball),
        images.x(),
        images.y if whole else torch.zeros_like(images.y),
        classes=images.classes,
        seed=seed,
        batch=engine.batch,
    )
    perplexity = min(PERPLEXITY, (2 * len(images) - 1) / 3)
    places, divergence = tsne(_features(nets, torch.cat([images.x(), judged.adv]), engine.batch), perplexity, seed)
    return Embedding(
        subject=checkpoint.subject(dataset),
        attack=name,
        version=ATTACKS.entry(name).version,
        threat=ball,
        data=images.digest,
        count=len(images),
        seed=seed,
        perplexity=perplexity,
        divergence=divergence,
        classes=images.classes,
        labels=tuple(images.y.tolist()),
        clean=places[: len(images)],
        adversarial=places[len(images) :],
        clean_accuracy=_share(judged.clean) if whole else None,
        robust_accuracy=_share(judged.robust) if whole else None,
    )


def tsne(features: Tensor, perplexity: float, seed: int) -> tuple[tuple[tuple[float, float], ...], float]:
    """Points in two dimensions, four digits each, and the divergence that is left.

    Args:
        features: (n, d).
        perplexity: about how many neighbours count.
        seed: of what is random in it.
    """
    from sklearn.manifold import TSNE

    values = features.detach().cpu().double().numpy()
    start = "pca" if min(values.shape) >= 2 else "random"
    machine = TSNE(perplexity=perplexity, init=start, random_state=seed % 2**32)
    points = tuple((float(f"{x:.4g}"), float(f"{y:.4g}")) for x, y in machine.fit_transform(values).tolist())
    return points, float(f"{machine.kl_divergence_:.4g}")


def _features(nets: Nets, x: Tensor, batch: int) -> Tensor:
    with frozen(nets), verdict.exact(), torch.no_grad():
        return torch.cat([nets.features(part).flatten(1) for part in x.split(batch)])


def _share(bits: Tensor) -> float:
    return bits.double().mean().item()
