"""How good features are, cheaply: nearest neighbours and a ridge classifier, for a look at training that has no labels."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from robench.data import Images
from robench.device import halving
from robench.door import frozen
from robench.models import Nets


def probe(nets: Nets, kept: Images, held: Images, *, batch: int = 500) -> dict[str, float]:
    """Accuracy of two quick classifiers on the features of a frozen encoder, as fractions.

    Args:
        nets: whose encoder to look at; its modes and weights stay as they are.
        kept: training images, with the labels that may be used.
        held: validation images.
        batch: images in a pass.

    Returns:
        `validation knn` (20 neighbours by cosine) and `validation ridge`.
    """
    with frozen(nets), torch.no_grad():
        train, test = (halving(partial(_features, nets, part), batch)[0] for part in (kept, held))
        found = {
            "validation knn": neighbours(train, kept.y, test, kept.classes),
            "validation ridge": ridge(train, kept.y, test, kept.classes),
        }
        return {name: (guess == held.y).float().mean().item() for name, guess in found.items()}


def _features(nets: Nets, images: Images, batch: int) -> Tensor:
    return torch.cat([nets.features(images.x(slice(first, first + batch))) for first in range(0, len(images), batch)])


def neighbours(features: Tensor, y: Tensor, queries: Tensor, classes: int, *, k: int = 20) -> Tensor:
    """The class most frequent among the k nearest features by cosine, (m,); a tie goes to the nearer class.

    Args:
        features: (n, d), with labels y (n,).
        y: labels.
        queries: (m, d).
        classes: how many there are.
        k: how many neighbours vote, each once; all n when there are fewer.
    """
    keys, guesses = F.normalize(features.float(), dim=1), []
    for part in F.normalize(queries.float(), dim=1).split(256):
        near, index = (part @ keys.T).topk(min(k, len(keys)), dim=1)
        votes = F.one_hot(y[index], classes) * (1 + near / (4 * k))[:, :, None]
        guesses.append(votes.sum(1).argmax(1))
    return torch.cat(guesses)


def ridge(features: Tensor, y: Tensor, queries: Tensor, classes: int, *, penalty: float = 1e-3) -> Tensor:
    """The largest output of the linear least-squares fit to one-hot labels, (m,).

    Args:
        features: (n, d), with labels y (n,).
        y: labels.
        queries: (m, d).
        classes: how many there are.
        penalty: added to the diagonal of the features' covariance, as a share of their mean variance.
    """
    x, device = features.double() if features.device.type != "mps" else features.cpu().double(), features.device
    target = F.one_hot(y.to(x.device), classes).double()
    centre, mean = x.mean(0), target.mean(0)
    x = x - centre
    covariance = x.T @ x / len(x)
    size = covariance.diagonal().mean().clamp_min(1e-12)
    covariance.diagonal().add_(penalty * size)
    weight: Tensor = torch.linalg.solve(covariance, x.T @ (target - mean) / len(x))
    return ((queries.to(x.device, x.dtype) - centre) @ weight + mean).argmax(1).to(device)
