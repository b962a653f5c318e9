"""Whether a run of `rocl-2020` follows the loss of RoCL's released code, epoch by epoch.

    robench train rocl-2020 --device cuda                        # may be stopped after 11 epochs, or 22
    python benchmarks/loss_trace.py checkpoints/rocl-2020        # exit code 0: it follows; 1: it departs; 2: not to be compared

The reference is the training log that once stood in the released code's repository: ResNet-18 on CIFAR-10, two GPUs of 256 images
each, lambda 1/256. Its program divided sums over 98 batches by 97; the figures here have that undone. The three-view loss
(`contrastive`) is what is judged; the second term, before its weight, stands beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from robench.errors import RobenchError, UsageError
from robench.methods import method_for
from robench.recipe import Recipe, load
from robench.spec import build, plain

THREE_VIEWS = {0: 13.16, 1: 12.64, 5: 12.35, 10: 12.26, 15: 12.18, 21: 12.13}
SECOND_TERM = {0: 5.98, 5: 5.53, 10: 5.46, 21: 5.38}
TOLERANCE = 0.01
FREE = (
    "name",
    "summary",
    "published",
    "differs",
    "source",
    "group",
    "fold",
    "validation",
)  # which move no loss, or hardly


@dataclass(frozen=True)
class Point:
    """One epoch, counted from 0 as in the reference.

    Attributes:
        epoch: of it.
        loss: which: `three views` or `second term`.
        reference: what the released code logged.
        ours: what the run logged.
    """

    epoch: int
    loss: str
    reference: float
    ours: float

    @property
    def apart(self) -> float:
        """How far ours is from the reference, as a share of it."""
        return self.ours / self.reference - 1


def rows(folder: Path) -> list[dict[str, Any]]:
    """What a run logged of its RoCL stage, epoch by epoch.

    Raises:
        UsageError: if there is nothing.
    """
    path = folder / "metrics.jsonl" if folder.is_dir() else folder
    try:
        every = [json.loads(line) for line in path.read_text().splitlines()]
        return [row for row in every if row["stage"] == 0 and row["method"] == "rocl"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no log of a run of rocl-2020: {error}") from None


def points(logged: list[dict[str, Any]], weight: float) -> list[Point]:
    """The epochs that both sides have.

    Args:
        logged: rows of the log, whose epochs count from 1.
        weight: of the second term in the logged loss.
    """
    by_epoch = {row["epoch"] - 1: row for row in logged}
    found = [
        Point(epoch, "three views", value, by_epoch[epoch]["contrastive"])
        for epoch, value in THREE_VIEWS.items()
        if epoch in by_epoch
    ]
    return found + [
        Point(epoch, "second term", value, by_epoch[epoch]["regulariser"] / weight)
        for epoch, value in SECOND_TERM.items()
        if epoch in by_epoch and weight
    ]


def settings(trained: Recipe) -> dict[str, Any]:
    """All that moves the loss of a recipe's first stage, as plain values, with every default written out."""
    stage = trained.stage[0]
    method: Any = plain(method_for(stage.method, stage.options))
    whole, first = cast(dict[str, Any], plain(trained)), cast(dict[str, Any], plain(stage))
    found = {key: value for key, value in whole.items() if key not in (*FREE, "stage")}
    return {**found, **{key: value for key, value in first.items() if key not in ("options", "probe")}, **method}


def departures(run: Mapping[str, Any]) -> list[str]:
    """In what a run is another experiment than the reference, by the description in its folder."""
    ours, theirs = settings(build(Recipe, run["recipe"])), settings(load("rocl-2020"))
    return [f"{key} = {ours[key]} (not {theirs[key]})" for key in theirs if ours.get(key) != theirs[key]]


def verdict(found: list[Point], tolerance: float) -> bool:
    """Whether the three-view loss is within the tolerance at every epoch there is."""
    judged = [point for point in found if point.loss == "three views"]
    return bool(judged) and all(abs(point.apart) <= tolerance for point in judged)


def main(arguments: list[str] | None = None) -> int:
    """Compare, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="as a share of the reference")
    parser.add_argument("--out", type=Path, help="JSON to keep the comparison in")
    parser.add_argument("--report", action="store_true", help="exit with 0 whatever comes out")
    given = parser.parse_args(arguments)
    try:
        code = compare(given.run, given.tolerance, given.out)
    except RobenchError as error:
        print(f"not to be compared: {error}", file=sys.stderr)
        code = 2
    return 0 if given.report else code


def compare(folder: Path, tolerance: float, out: Path | None) -> int:
    """Print and keep the comparison of a run; returns the exit code."""
    try:
        run = json.loads((folder / "run.json").read_text())
        other = departures(run)
        weight = settings(build(Recipe, run["recipe"]))["regularise"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder} holds no run of rocl-2020: {error}") from None
    found = points(rows(folder), weight)
    print("| epoch | loss | reference | ours | apart |\n|---:|---|---:|---:|---:|")
    for point in found:
        print(
            f"| {point.epoch} | {point.loss} | {point.reference:.2f} | {point.ours:.2f} | {100 * point.apart:+.1f} % |"
        )
    epochs = sum(point.loss == "three views" for point in found)
    if other:
        said, code = f"not to be compared: another experiment, with {'; '.join(other)}", 2
    elif not epochs:
        said, code = "not to be compared: the log has no epoch that the reference has", 2
    elif verdict(found, tolerance):
        said, code = f"follows: the three-view loss is within {100 * tolerance:g} % at {epochs} epochs", 0
    else:
        worst = max((point for point in found if point.loss == "three views"), key=lambda point: abs(point.apart))
        said, code = f"departs: the three-view loss is {100 * worst.apart:+.1f} % apart at epoch {worst.epoch}", 1
    print(said)
    if out:
        table = [{**asdict(point), "apart": point.apart} for point in found]
        out.write_text(json.dumps({"said": said, "tolerance": tolerance, "rows": table}, indent=1) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
