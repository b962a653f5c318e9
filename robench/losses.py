"""Losses as pure functions of logits or embeddings, one value per image, so that a sum never mixes images by scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from robench import distributed
from robench.errors import UsageError

Positives = Literal["per-pair", "in-log"]
Distance = Literal["mse", "l1", "cosine"]


def cross_entropy(logits: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
    """-log softmax(logits)[y] for each image, (n,).

    With smoothing s the label's share of the target is 1 - s + s / classes, and every other class has s / classes (Szegedy et al.
    2016, section 7).
    """
    return F.cross_entropy(logits, y, reduction="none", label_smoothing=smoothing)


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """log((1 - p) / p) with p = softmax(logits)[y]: the logarithm of the odds that the model errs, (n,).

    Cross-entropy is its softplus, log(1 + exp(log_odds)): both rise together and their gradients point the same way, but
    this one's never rounds to zero on a confident model. So an attack that takes signs or unit steps climbs it instead.
    """
    wrong = logits.scatter(1, y[:, None], -torch.inf).logsumexp(1)
    return wrong - logits.gather(1, y[:, None]).squeeze(1)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The largest wrong logit minus the right one, (n,); positive where the model errs.

    Source: Carlini & Wagner 2017, f6.
    """
    right = logits.gather(1, y[:, None]).squeeze(1)
    wrong = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    return wrong - right


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """The difference-of-logits ratio, invariant to shifts and scales of the logits, (n,).

    Source: Croce & Hein 2020, eq. 6.
    Differs: it needs three classes; with two this is the margin.
    """
    if logits.shape[1] < 3:
        return margin(logits, y)
    ranked = logits.sort(dim=1).values
    return margin(logits, y) / (ranked[:, -1] - ranked[:, -3] + 1e-12)


def dlr_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The difference-of-logits ratio towards one class, (n,); positive where the target beats the right class.

    Source: Croce & Hein 2020, eq. 7.
    Differs: it needs four classes; with fewer it is the target's rise over the right class, undivided, since with three
        the ratio would be flat wherever the target ranks last.
    """
    rise = (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)
    if logits.shape[1] < 4:
        return rise
    ranked = logits.sort(dim=1).values
    return rise / (ranked[:, -1] - (ranked[:, -3] + ranked[:, -4]) / 2 + 1e-12)


LOSSES = {"ce": log_odds, "cw-margin": margin, "dlr": dlr}  # what attacks on labels climb, by name


def few_classes(loss: str, classes: int) -> tuple[str, ...]:
    """What a reader should know where a loss of `LOSSES` needs more classes than there are."""
    return ("dlr needs three classes; climbs the margin",) if loss == "dlr" and classes < 3 else ()


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) for each image, (n,); gradients flow into both."""
    return F.kl_div(F.log_softmax(student, 1), F.log_softmax(teacher, 1), reduction="none", log_target=True).sum(1)


def contrastive(
    views: Sequence[Tensor],
    *,
    temperature: float,
    positives: Positives = "per-pair",
    anchors: Sequence[int] | None = None,
    detach_keys: bool = False,
    groups: int = 1,
) -> Tensor:
    """The contrastive loss of each anchor, for any number of views of the same n images.

    With s the cosine similarity over the temperature, an anchor u of image i, P its other views, and K every vector but u:

        per-pair:  sum over p in P of  -log( exp s(u,p) / sum over k in K of exp s(u,k) )
        in-log:    -log( sum over p in P of exp s(u,p) / sum over k in K of exp s(u,k) )

    With two views both are NT-Xent.

    Args:
        views: V embeddings (n, d), not normalised, row i of each from image i; softmax at least in float32. Where several
            processes train, each has its own images as anchors, and those of all as keys.
        temperature: the divisor of the cosine similarity.
        positives: whether the sum over positives stands outside or inside the logarithm.
        anchors: which views serve as anchors; all when None.
        detach_keys: let gradients reach anchors only, not the vectors they are compared with.
        groups: into how many consecutive parts the batch of all processes falls, K being those of the image's own part.

    Returns:
        The loss of each anchor, (len(anchors) * n,): part by part, and view by view in each.

    Raises:
        UsageError: for a batch of one image, which has nothing to be told apart from.

    Source: Chen et al. 2020 (SimCLR), eq. 1; Kim et al. 2020 (RoCL), eq. 3 and 6.
    Differs: the RoCL paper has "in-log" with the first view as anchor; its released code has "per-pair", every view an
        anchor, and detached keys.
    """
    chosen = list(range(len(views)) if anchors is None else anchors)
    n, first = len(views[0]), len(views[0]) * distributed.rank()
    z = [_unit(view) for view in views]
    keys = [distributed.gathered(view) for view in z]
    found, start = [], 0
    for part in zip(*(view.tensor_split(groups) for view in keys), strict=True):
        stop = start + len(part[0])
        _refuse_one(stop - start)
        low, high = max(start, first), min(stop, first + n)  # the images of this process in this part
        if low < high:
            mine = [z[view][low - first : high - first] for view in chosen]
            log_all, friends, absent = _compared(mine, chosen, part, low - start, temperature, detach_keys)
            if positives == "in-log":
                found.append(log_all - friends.masked_fill(absent, -torch.inf).logsumexp(1))
            else:
                found.append((len(views) - 1) * log_all - friends.masked_fill(absent, 0).sum(1))
        start = stop
    return torch.cat(found)


def _compared(
    anchors: Sequence[Tensor],
    chosen: Sequence[int],
    keys: Sequence[Tensor],
    offset: int,
    temperature: float,
    detach_keys: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Anchors beside keys: the log of the sum over K, s with all views of the own image, and which of these is the anchor.

    Args:
        anchors: unit vectors (n, d) for each chosen view.
        chosen: which views they are.
        keys: unit vectors (m, d) for each view.
        offset: the row of `keys` that is the first image of `anchors`.
        temperature: the divisor of the cosine similarity.
        detach_keys: as in `contrastive`.
    """
    n, every = len(anchors[0]), len(keys[0])
    others = torch.cat(list(keys))
    similarity = torch.cat(list(anchors)) @ (others.detach() if detach_keys else others).T / temperature
    row = torch.arange(len(chosen) * n, device=others.device)
    image = offset + row % n
    own = torch.as_tensor(chosen, device=others.device).repeat_interleave(n) * every + image
    itself = torch.zeros_like(similarity, dtype=torch.bool)
    itself[row, own] = True
    log_all = similarity.masked_fill(itself, -torch.inf).logsumexp(1)
    places = image[:, None] + every * torch.arange(len(keys), device=others.device)
    return log_all, similarity.gather(1, places), places == own[:, None]


def supervised_contrastive(views: Sequence[Tensor], y: Tensor, *, temperature: float) -> Tensor:
    """The supervised contrastive loss of each anchor: every other vector of its class is a positive.

    With s the cosine similarity over the temperature, K every vector but the anchor u, and P those of K in its class:

        mean over p in P of  -log( exp s(u,p) / sum over k in K of exp s(u,k) )

    Args:
        views: V embeddings (n, d), not normalised, row i of each from image i; two or more, so that nobody is alone. Where
            several processes train, each has its own images as anchors, and those of all as keys.
        y: labels, (n,).
        temperature: the divisor of the cosine similarity.

    Returns:
        The loss of each anchor, (V * n,), view by view.

    Raises:
        UsageError: for a batch of one image.

    Source: Khosla et al. 2020, eq. 2 (L_out).
    """
    n, v = len(views[0]), len(views)
    every = n * distributed.world()
    _refuse_one(every)
    z = [_unit(view) for view in views]
    keys = torch.cat([distributed.gathered(view) for view in z])
    row = torch.arange(v * n, device=keys.device)
    itself = torch.zeros(v * n, v * every, dtype=torch.bool, device=keys.device)
    itself[row, row // n * every + distributed.rank() * n + row % n] = True
    similarity = torch.cat(z) @ keys.T / temperature
    log_all = similarity.masked_fill(itself, -torch.inf).logsumexp(1)
    friends = (y.repeat(v)[:, None] == distributed.gathered(y).repeat(v)) & ~itself
    return log_all - (similarity * friends).sum(1) / friends.sum(1)


def distance(a: Tensor, b: Tensor, kind: Distance) -> Tensor:
    """How far each embedding is from its partner, (n,); it rises as they move apart, whatever the kind.

        mse:     mean over coordinates of (a - b)^2
        l1:      mean over coordinates of |a - b|
        cosine:  1 - <a, b> / (|a| |b|)

    Args:
        a: embeddings, (n, d), not normalised: normalised, mse would be twice the cosine distance over d.
        b: their partners, (n, d).
        kind: which.
    """
    if kind == "cosine":
        return 1 - (_unit(a) * _unit(b)).sum(1)
    apart = _wide(a) - _wide(b)
    return (apart.square() if kind == "mse" else apart.abs()).mean(1)


def _refuse_one(n: int) -> None:
    if n < 2:
        raise UsageError("a contrastive loss needs at least two images a step: raise stage.N.batch")


def _unit(view: Tensor) -> Tensor:
    return F.normalize(_wide(view), dim=1)


def _wide(view: Tensor) -> Tensor:
    """At least float32: exponentials and small differences do not fit into half precision."""
    return view.float() if view.dtype in (torch.float16, torch.bfloat16) else view
