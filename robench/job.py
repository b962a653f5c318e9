"""A job: a cell with what is needed to run it, and what tables and messages call it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from robench.protocols import Attack, Target
from robench.results import Cell, Subject, asked, named


@dataclass(frozen=True)
class Source:
    """What images are crafted on for a transfer: a checkpoint, or several as one ensemble."""

    members: tuple[Target, ...]

    @property
    def name(self) -> str:
        """The names of all."""
        return "+".join(sorted(member.name for member in self.members))

    @property
    def sha256(self) -> str:
        """The digests of all; a checkpoint's own when it is alone."""
        return "+".join(sorted(member.sha256 for member in self.members))


@dataclass(frozen=True)
class Job:
    """A cell and what is needed to run it."""

    cell: Cell
    checkpoint: Target
    source: Source | None
    attack: Attack
    dataset: str

    @property
    def passes(self) -> float:
        """About how many image passes it takes per image, for progress."""
        cost: Callable[[int], tuple[int, int]] | None = getattr(self.attack, "cost", None)
        return float(cost(self.checkpoint.classes)[0]) if cost else 100.0

    @property
    def label(self) -> str:
        """What to call it."""
        cell, via = self.cell, f" from {self.source.name}" if self.source else ""
        return f"{named(self.checkpoint.subject(self.dataset), cell.inference)}{via}: {asked(cell)}"

    @property
    def subjects(self) -> tuple[Subject, Subject | None]:
        """What tables need to know of the checkpoint, and of what images are crafted on."""
        made = source_subject(self.source, self.dataset) if self.source else None
        return self.checkpoint.subject(self.dataset), made

    @property
    def divisible(self) -> bool:
        """Whether ranges of its images can be run apart: where the attack needs all in one call, they cannot."""
        return not getattr(self.attack, "whole", False) or bool(getattr(self.attack, "separable", False))

    def size(self, batch: int) -> int:
        """How many images to run as a part, on a machine that takes `batch` at once.

        An attack that makes its own batches gets two, since it fills them up as images drop out.
        """
        if not self.divisible:
            return self.cell.count
        return 2 * batch if getattr(self.attack, "whole", False) else batch

    def finds(self, left: Mapping[str, int], attacked: int) -> list[str]:
        """What the attack has to say about all images, from how many each of its members left."""
        found: Callable[[Mapping[str, int], int], Iterable[str]] | None = getattr(self.attack, "finds", None)
        return self.told(found(left, attacked)) if found else []

    def told(self, notes: Iterable[str]) -> list[str]:
        """What an attack noted; in a transfer that is about the source, not about the checkpoint."""
        return [f"on {self.source.name}: {note}" if self.source else note for note in notes]


def source_subject(source: Source, dataset: str) -> Subject:
    """What tables need to know of what images were crafted on."""
    first = source.members[0].subject(dataset)
    if len(source.members) == 1:
        return first
    recipe = "+".join(sorted(member.subject(dataset).recipe for member in source.members))
    return replace(
        first, name=source.name, recipe=recipe, group="ensemble", threat=None, sha256=source.sha256, origin={}
    )


def in_order(jobs: Sequence[Job]) -> list[Job]:
    """Jobs without repetition, white-box first; those whose images were crafted alike stand together."""
    ordered = sorted(
        jobs, key=lambda job: (job.cell.source, job.cell.attack, str(job.cell.threat)) if job.source else ("",)
    )
    return list({job.cell.key: job for job in ordered}.values())
