"""Robust self-training: TRADES on labelled images and on images that a first classifier has labelled."""

from __future__ import annotations

from dataclasses import dataclass

from robench.errors import UsageError
from robench.methods.trades import TRADES


@dataclass(frozen=True)
class RST(TRADES):
    """TRADES, with pseudo-labels for a share of each batch.

    The classifier that the stage before has trained labels every image without a label, once. Then all networks start
    anew. The images without labels are the recipe's `extra` ones and those that its share of `labels` leaves out. An epoch
    is as many steps as a pass over the data set's training images would take, were all labelled.

    Attributes:
        pseudo: the share of each batch that has pseudo-labels.

    Source: Carmon et al. 2019, section 4 and appendix B (`RST_adv`), with the TRADES loss.
    Differs: images without labels come in passes of random order, where the released code draws them with replacement.
    """

    pseudo: float = 0.5

    def __post_init__(self) -> None:
        """Refuse batches that would hold one kind of images only."""
        super().__post_init__()
        if not 0 < self.pseudo < 1:
            raise UsageError(
                f"pseudo must be a share above 0 and below 1, not {self.pseudo:g}; 0.5 is usual, and without "
                "pseudo-labels the method is trades"
            )
