"""Do our attacks find what the reference implementations find? Image by image, on robust networks trained here.

    python benchmarks/agreement.py digits              # 1,000 images of 8x8: about an hour on one core
    python benchmarks/agreement.py cifar10 --data DIR  # 1,000 test images of CIFAR-10 and a narrow network: hours

Compared are the images that are robust: ours and pyautoattack's APGD-CE, APGD-DLR, APGD-T, FAB-T, Square and AutoAttack, and
our PGD with torchattacks' and foolbox's (where installed: pip install torchattacks foolbox) at the same budget. Both sides
are judged by robench's evaluator. Prints a Markdown table; --out keeps the rows, each with its command and with every image
on which the sides disagree and the margin each reached (positive: fooled). `agreement.py table FILE...` prints what is kept.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robench import data, recipe, verdict
from robench.attacks import attack_for
from robench.attacks.reference import run_reference
from robench.checkpoint import open_checkpoint, runs
from robench.data import Split
from robench.door import frozen
from robench.losses import margin
from robench.protocols import Classifier
from robench.provenance import provenance
from robench.run import Run
from robench.threat import ThreatModel
from robench.training import train

THREATS = {"digits": ("linf-0.2", "l2-0.75", "l1-2"), "cifar10": ("linf-8/255", "l2-0.5", "l1-8")}
MEMBERS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square")


@dataclass(frozen=True)
class Reference:
    """Members of pyautoattack's standard version, one or all."""

    threat: ThreatModel
    members: tuple[str, ...]
    whole: bool = True

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        budget = {"steps": 100, "queries": 5000, "batch_size": 250, "version": "standard"}
        return run_reference(
            model, x, y, threat=self.threat, seed=generator.initial_seed(), members=self.members, **budget
        )


@dataclass(frozen=True)
class Library:
    """PGD of another library: 20 random-start steps of eps / 8."""

    threat: ThreatModel
    name: str
    steps: int = 20

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        torch.manual_seed(generator.initial_seed())
        step, linf = self.threat.eps / 8, self.threat.norm == "linf"
        if self.name == "torchattacks":
            import torchattacks

            cls = torchattacks.PGD if linf else torchattacks.PGDL2
            adv: Tensor = cls(_device(model), eps=self.threat.eps, alpha=step, steps=self.steps)(x, y)
            return adv
        import foolbox

        cls = foolbox.attacks.LinfPGD if linf else foolbox.attacks.L2PGD
        attack = cls(steps=self.steps, abs_stepsize=step, random_start=True)
        _, found, _ = attack(foolbox.PyTorchModel(_device(model), (0, 1)), x, y, epsilons=self.threat.eps)
        return found.detach()


def _device(model: Classifier) -> nn.Module:
    """A module with a parameter, which these libraries ask for its device."""
    module = nn.Sequential(model)
    module.place = nn.Parameter(torch.zeros(()), requires_grad=False)
    return module.eval()


@dataclass(frozen=True)
class Side:
    """What one implementation left, and what it cost."""

    robust: Tensor
    margins: Tensor
    seconds: float
    passes: float


def one_side(nets: nn.Module, attack: Any, x: Tensor, y: Tensor, classes: int, seed: int) -> Side:
    """Run one attack on the images that are right when clean, and judge it."""
    began = time.process_time()
    found, crafted = verdict.evaluate(nets, attack, x, y, classes=classes, seed=seed)
    seconds = time.process_time() - began
    with frozen(nets), torch.no_grad():
        margins = margin(nets(found.adv), y)
    return Side(found.robust, margins, seconds, (crafted.forwards + 2 * crafted.backwards) / len(x))


def cases(text: str) -> dict[str, tuple[Callable[[ThreatModel], Any], Callable[[ThreatModel], Any]]]:
    """What is compared at a threat, by name: ours and theirs."""
    norm = text.partition("-")[0]
    options = {"fab-t": "@early_stop=true,search=0"}  # as in AutoAttack, where only the verdict counts
    if norm == "l1":
        options |= {"apgd-ce": "@restarts=5", "apgd-dlr": "@restarts=5", "apgd-t": "@targets=5"}
    made: dict[str, Any] = {}
    for name in MEMBERS:
        made[f"{name}, pyautoattack"] = (
            lambda threat, name=name: attack_for(name + options.get(name, ""), threat),
            lambda threat, name=name: Reference(threat, (name,)),
        )
    made["autoattack, pyautoattack"] = (
        lambda threat: attack_for("autoattack", threat),
        lambda threat: Reference(threat, ("apgd-ce", "apgd-t", "fab-t", "square")),
    )
    for library in ("torchattacks", "foolbox"):
        if norm != "l1" and importlib.util.find_spec(library):
            made[f"pgd-20, {library}"] = (
                lambda threat: attack_for("pgd-20", threat),
                lambda threat, library=library: Library(threat, library),
            )
    return made


def trained(dataset: str, root: Path, folder: Path) -> tuple[nn.Module, Tensor, Tensor]:
    """A robust network of the data set and the images to attack; the network is kept in `folder`."""
    if dataset == "digits":
        wanted = recipe.load("pgd-at-digits")
    else:
        short = {"epochs": 3, "schedule": {"name": "cosine"}, "options": {"steps": 5, "step": 0.35}}
        wanted = recipe.load("pgd-at", [("model", "cnn"), *((f"stage.0.{key}", value) for key, value in short.items())])
    run = Run(wanted, folder / f"agreement-{dataset}", data_root=root)
    there = run.folder.name in {path.name for path in runs(folder)}
    checkpoint = open_checkpoint(run.folder.name, folder) if there else train(run)
    parts = [data.load(dataset, split, root) for split in (Split.TEST, Split.TRAIN)]
    # the agreement of attacks is no accuracy of a model, so where test images are few training images serve as well
    parts = parts if dataset == "digits" else parts[:1]
    return checkpoint.load(), torch.cat([part.x() for part in parts]), torch.cat([part.y for part in parts])


def compare(ours: list[Side], theirs: list[Side], n: int) -> dict[str, Any]:
    """The figures of one row."""
    differ = [
        {
            "seed": seed,
            "image": i,
            "broken_by": "theirs" if ours[seed].robust[i] else "ours",
            "margin_ours": round(ours[seed].margins[i].item(), 6),
            "margin_theirs": round(theirs[seed].margins[i].item(), 6),
        }
        for seed in range(len(ours))
        for i in (ours[seed].robust != theirs[seed].robust).nonzero().squeeze(1).tolist()
    ]
    counts = [[int(side.robust.sum()) for side in sides] for sides in (ours, theirs)]
    return {
        "robust_ours": counts[0],
        "robust_theirs": counts[1],
        "points": round(100 * (statistics.mean(counts[0]) - statistics.mean(counts[1])) / n, 3),
        "error": round(100 * sum(statistics.pvariance(c) / max(len(c) - 1, 1) for c in counts) ** 0.5 / n, 3),
        "cpu_ratio": round(sum(s.seconds for s in theirs) / sum(s.seconds for s in ours), 2),
        "pass_ratio": round(sum(s.passes for s in theirs) / sum(s.passes for s in ours), 2),
        "differ": differ,
    }


HEAD = (
    "| images | threat | attack | against | robust, ours | robust, theirs | points | differ | CPU | passes |\n"
    "|---|---|---|---|---|---|---:|---:|---:|---:|"
)


def line(row: dict[str, Any]) -> str:
    """One row of the table; robust images as a mean over seeds, with the least and most."""

    def spread(counts: list[int]) -> str:
        mean = f"{statistics.mean(counts):.1f}".removesuffix(".0")
        return mean + (f" ({min(counts)} to {max(counts)})" if len(counts) > 1 else "")

    error = f" +- {row['error']:.2f}" if len(row["robust_ours"]) > 1 else ""
    cells = [
        f"{row['dataset']} {row['n']:,}",
        row["threat"],
        row["attack"],
        row["against"],
        *(spread(row[key]) for key in ("robust_ours", "robust_theirs")),
        f"{row['points']:+.2f}{error}",
        str(len(row["differ"])),
        *(f"{row[key]:.1f}x" for key in ("cpu_ratio", "pass_ratio")),
    ]
    return f"| {' | '.join(cells)} |"


def keep(path: Path, row: dict[str, Any]) -> None:
    """Put a row into a file, in the place of an earlier one of the same name."""
    rows = json.loads(path.read_text()) if path.exists() else []
    names = ("dataset", "n", "threat", "attack", "against")
    places = [i for i, there in enumerate(rows) if all(there[key] == row[key] for key in names)]
    rows[places[0] if places else len(rows) : (places[0] + 1) if places else len(rows)] = [row]
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def main() -> None:
    """Compare, print, and keep; or print what is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*THREATS, "table"], help="images to compare on, or print the table of FILEs")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("ROBENCH_DATA", "data")), help="where CIFAR-10 is"
    )
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--count", type=int, default=1000, help="how many images")
    parser.add_argument("--images", help="only these of them, such as 15,94,681: the ones that are hard to tell")
    parser.add_argument("--only", action="append", default=[], help="rows whose name contains this")
    parser.add_argument("--norm", action="append", default=[], help="norms to compare; all by default")
    parser.add_argument("--out", type=Path, help="JSON to keep the rows in")
    given = parser.parse_args()
    print(HEAD, flush=True)
    if given.what == "table":
        for row in (row for path in given.files for row in json.loads(path.read_text())):
            print(line(row))
        return
    torch.set_num_threads(1)
    nets, x, y = trained(given.what, given.data, given.checkpoints)
    x, y = x[: given.count], y[: given.count]
    if given.images:
        some = [int(number) for number in given.images.split(",")]
        x, y = x[some], y[some]
    about = {**provenance("cpu", 1), "command": ["python", "benchmarks/agreement.py", *sys.argv[1:]]}
    for text in THREATS[given.what]:
        for name, makers in cases(text).items():
            left_out = given.only and not any(part in name for part in given.only)
            if left_out or (given.norm and text.partition("-")[0] not in given.norm):
                continue
            threat, (attack, against) = ThreatModel.parse(text), name.split(", ")
            sides = [[one_side(nets, make(threat), x, y, 10, seed) for seed in range(given.seeds)] for make in makers]
            names = {"dataset": given.what, "n": len(x), "threat": text, "attack": attack, "against": against}
            row = {**names, **compare(*sides, len(x)), "provenance": about}
            print(line(row), flush=True)
            if given.out:
                keep(given.out, row)


if __name__ == "__main__":
    main()
