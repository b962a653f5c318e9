"""RobustBench's form of a result: the JSON its model zoo has for each entry. No torch here.

Source: RobustBench (Croce et al. 2021), `model_info/DATASET/THREAT/ID.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from robench.diagnosis import Diagnosis
from robench.doubt import beyond_flags, reasons
from robench.errors import UsageError
from robench.results import Failure, Result
from robench.threat import ThreatModel

# the leaderboards there are for l_p threats: data set and threat, and how many test images each looks at
BOARDS: Mapping[tuple[str, str], int] = {
    ("cifar10", "linf-8/255"): 10_000,
    ("cifar10", "l2-0.5"): 10_000,
    ("cifar100", "linf-8/255"): 10_000,
}
STANDARD = {"version": "standard", "steps": 100, "queries": 5000}  # of AutoAttack


@dataclass(frozen=True)
class About:
    """What only the author knows.

    Attributes:
        title: of the paper.
        link: to it.
        authors: as it prints them.
        venue: where and when.
        architecture: of the network.
        additional_data: whether other images were trained on.
        footnote: if any.
    """

    title: str
    link: str
    authors: str
    venue: str
    architecture: str
    additional_data: bool = False
    footnote: str = ""


def model_info(
    records: Iterable[Result | Failure],
    checkpoint: str,
    about: About,
    threat: ThreatModel,
    diagnoses: Iterable[Diagnosis] = (),
) -> str:
    """The JSON for one model and leaderboard.

    Args:
        records: of a folder of results.
        checkpoint: the name of the model in them.
        about: what they cannot say.
        threat: of the leaderboard.
        diagnoses: of some checkpoints; one that failed is refused.

    Raises:
        UsageError: if no result is what the leaderboard demands; it names everything that differs in the nearest one.
    """
    every = [r for r in records if isinstance(r, Result)]
    mine = [r for r in every if r.subject.name == checkpoint and r.cell.threat == threat]
    if not mine:
        raise UsageError(
            f"there is no result of {checkpoint} at {threat}: robench evaluate {checkpoint} --attack autoattack "
            f"--threat {threat}"
        )
    found = min(mine, key=lambda result: len(differences(result)))
    unreliable = [f"unreliable {why}" for why in reasons(found.subject, beyond_flags(every, diagnoses))]
    if wrong := [*differences(found), *unreliable]:
        raise UsageError(f"{checkpoint} at {threat} is not what RobustBench compares: {'; '.join(wrong)}")
    table = {
        "link": about.link,
        "name": about.title,
        "authors": about.authors,
        "additional_data": about.additional_data,
        "number_forward_passes": 1,
        "dataset": found.subject.dataset,
        "venue": about.venue,
        "architecture": about.architecture,
        "eps": str(threat).partition("-")[2],
        "clean_acc": _percent(found.clean),
        "reported": _percent(found.robust),
        "autoattack_acc": _percent(found.robust),
        **({"footnote": about.footnote} if about.footnote else {}),
    }
    return json.dumps(table, indent=2) + "\n"


def differences(result: Result) -> list[str]:
    """What keeps a result from being one of a leaderboard, in words."""
    cell = result.cell
    board = (result.subject.dataset, str(cell.threat))
    said = []
    if board not in BOARDS:
        known = ", ".join(f"{dataset} {threat}" for dataset, threat in BOARDS)
        said.append(f"there is no leaderboard for {' '.join(board)} (there are: {known})")
    elif cell.count != BOARDS[board]:
        said.append(f"{cell.count:,} images, not all {BOARDS[board]:,}")
    options = {key: cell.options.get(key) for key in STANDARD}
    if cell.attack.partition("@")[0] != "autoattack" or options != STANDARD:
        said.append(f"the attack is {cell.attack}, not the standard AutoAttack")
    if result.source is not None:
        said.append(f"it is a transfer from {result.source.name}")
    if cell.inference is not None:
        said.append("the model is smoothed over augmentations, more than one forward pass")
    return said + [f"flag: {flag}" for flag in result.flags]


def _percent(bits: tuple[bool, ...]) -> str:
    return f"{100 * sum(bits) / len(bits):.2f}"
