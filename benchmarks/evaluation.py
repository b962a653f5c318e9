"""How fast evaluation is, as ratios in one run against other libraries, with the robust accuracy of both sides beside it.

    python benchmarks/evaluation.py --data DIR                             # DIR as robench's --data; hours on one core
    python benchmarks/evaluation.py --data DIR --count 64 --steps 20 --queries 200 --only pgd autoattack
    python benchmarks/evaluation.py --data DIR --check FILE                # exit code 1 if a ratio fell by more than a tenth
    make bench BENCH_DATA=DIR                                              # with the budgets of the tables that are kept

One torch thread and CPU time of this process (on a GPU wall time, synchronised), variants interleaved in a shuffled order,
medians. Both sides attack the same images of CIFAR-10 on the same ResNet-18 of reduced width, which is trained adversarially
here (`--epochs`) and kept in a folder, and both sides' images are judged by one float32 forward pass of that network. Other
libraries get it as they would from a user: in eval mode, nothing frozen, in torch's usual layout (robench builds its networks
channels-last, which is one of the levers). Prints a Markdown table; --out keeps it as JSON.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import measure
import torch
from torch import Tensor, nn

from robench import data, recipe, verdict
from robench.attacks import attack_for
from robench.attacks.reference import run_reference
from robench.data import Split
from robench.door import Door
from robench.errors import DataError
from robench.run import Run
from robench.threat import ThreatModel
from robench.training import train

PARTS = ("pgd", "autoattack", "bracket", "levers")
TEXTS = {"cifar10": ("linf-8/255", "l2-0.5"), "digits": ("linf-0.2", "l2-0.75")}
BATCH = 250  # of the other libraries


@dataclass(frozen=True)
class Bench:
    """What everything here attacks, and the budgets."""

    nets: nn.Module
    theirs: nn.Module
    x: Tensor
    y: Tensor
    steps: int
    queries: int
    repeats: int
    precisions: tuple[str, ...]
    threats: dict[str, ThreatModel]
    pgd: tuple[int, ...]

    def judged(self, adv: Tensor) -> int:
        """How many images are right, and stay right inside ball and box, by a float32 forward pass."""
        with torch.no_grad():
            right = [(self.nets(a).argmax(1) == b) for a, b in zip(adv.split(BATCH), self.y.split(BATCH), strict=True)]
        return int(torch.cat(right).sum())


def trained(root: Path, folder: Path, dataset: str, width: int, epochs: int) -> nn.Module:
    """A robust ResNet-18 of that width, kept in `folder`."""
    short = {"epochs": epochs, "schedule": {"name": "cosine"}, "options": {"steps": 2, "step": 0.6}}
    changes = [("model", f"resnet18@width={width}"), ("validation", 500)]
    name = "pgd-at" if dataset == "cifar10" else f"pgd-at-{dataset}"
    wanted = recipe.load(name, [*changes, *((f"stage.0.{key}", value) for key, value in short.items())])
    run = Run(wanted, folder / f"evaluation-{dataset}-{width}", data_root=root)
    return train(run).load()


def ours(bench: Bench, text: str, threat: ThreatModel, precision: str = "float32") -> Callable[[], Tensor]:
    """An evaluation as robench runs it: the look at clean images, search and verdict."""
    attack = attack_for(text, threat)

    def run() -> Tensor:
        found, _ = verdict.evaluate(bench.nets, attack, bench.x, bench.y, classes=10, precision=precision)
        return found.adv

    return run


def reference(bench: Bench, threat: ThreatModel) -> Callable[[], Tensor]:
    """AutoAttack's standard version as pyautoattack runs it."""

    def run() -> Tensor:
        return run_reference(
            Door(bench.theirs, 10, BATCH),
            bench.x,
            bench.y,
            threat=threat,
            version="standard",
            steps=bench.steps,
            queries=bench.queries,
            seed=0,
            batch_size=BATCH,
        )

    return run


def library(bench: Bench, name: str, threat: ThreatModel, steps: int) -> Callable[[], Tensor]:
    """PGD of another library: random start, steps of eps / 8, all images, the last iterate."""
    linf, eps = threat.norm == "linf", threat.eps

    def attacked(x: Tensor, y: Tensor) -> Tensor:
        if name == "torchattacks":
            import torchattacks

            kind = torchattacks.PGD if linf else torchattacks.PGDL2
            found: Tensor = kind(bench.theirs, eps=eps, alpha=eps / 8, steps=steps)(x, y)
            return found
        import foolbox

        kind = foolbox.attacks.LinfPGD if linf else foolbox.attacks.L2PGD
        attack = kind(steps=steps, abs_stepsize=eps / 8, random_start=True)
        return attack(foolbox.PyTorchModel(bench.theirs, (0, 1)), x, y, epsilons=eps)[1].detach()

    return lambda: torch.cat([attacked(x, y) for x, y in zip(bench.x.split(BATCH), bench.y.split(BATCH), strict=True)])


def compared(
    bench: Bench, name: str, peers: dict[str, Callable[[], Tensor]], mine: dict[str, Callable[[], Tensor]]
) -> list[measure.Row]:
    """A row for each of ours against each of the others, with what both left robust."""
    left: dict[str, int] = {}

    def kept(which: str, run: Callable[[], Tensor]) -> Callable[[], None]:
        def timed() -> None:
            left[which] = bench.judged(run())

        return timed

    runs = {which: kept(which, run) for which, run in (peers | mine).items()}
    found = measure.timed(runs, bench.repeats, now=measure.clock(bench.x.device), warm=bench.repeats > 1)
    rows = []
    for peer in peers:
        for mode in mine:
            title = name if mode == "float32" else f"{name}, {mode}"
            title = "bracket linf, not AutoAttack" if mode == "bracket" else title
            note = f"robust {left[mode]} and {left[peer]} of {len(bench.x)}"
            rows.append(measure.row(title, peer, found[mode], found[peer], note))
            print(measure.table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    return rows


def pgd(bench: Bench) -> list[measure.Row]:
    """PGD-20 and PGD-50, any iterate, against torchattacks and foolbox."""
    rows = []
    for steps in bench.pgd:
        text = f"pgd@steps={steps},step=0.125"
        peers = {name: library(bench, name, bench.threats["linf"], steps) for name in ("torchattacks", "foolbox")}
        mine = {precision: ours(bench, text, bench.threats["linf"], precision) for precision in bench.precisions}
        rows += compared(bench, f"PGD-{steps} linf", peers, mine)
    return rows


def autoattack(bench: Bench) -> list[measure.Row]:
    """AutoAttack in linf and l2 against the reference implementation."""
    rows = []
    for norm, threat in bench.threats.items():
        budget = f"steps={bench.steps},queries={bench.queries}"
        mine = {precision: ours(bench, f"autoattack@{budget}", threat, precision) for precision in bench.precisions}
        rows += compared(bench, f"AutoAttack {norm}", {"pyautoattack": reference(bench, threat)}, mine)
    return rows


def bracket(bench: Bench) -> list[measure.Row]:
    """The bracket mode, which is not AutoAttack, against the reference's AutoAttack."""
    text = f"autoattack-bracket@steps={bench.steps},queries={bench.queries}"
    mine = {"bracket": ours(bench, text, bench.threats["linf"])}
    return compared(bench, "bracket linf", {"pyautoattack": reference(bench, bench.threats["linf"])}, mine)


def levers(bench: Bench) -> list[measure.Row]:
    """What each lever adds to a PGD-20 evaluation, one after the other, against none of them."""
    threat, every = bench.threats["linf"], torch.ones(len(bench.x), dtype=torch.bool, device=bench.x.device)
    attack, ids = attack_for("pgd-20", threat), torch.arange(len(bench.x), device=bench.x.device)
    with torch.no_grad():
        clean = bench.nets(bench.x).argmax(1) == bench.y
    from robench.search import Searched

    def run(model: nn.Module, which: Tensor, exits: bool) -> Callable[[], Tensor]:
        door = Door(model, 10, exits=exits)
        return lambda: verdict.craft(door, attack, bench.x, bench.y, which, ids=ids, seed=0).adv

    class Plain(nn.Module):
        def __init__(self, nets: nn.Module) -> None:
            super().__init__()
            self.nets = nets

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.nets(x)
            return found

    base, twin = Plain(bench.nets), Searched(bench.nets)  # type: ignore[arg-type]
    mine = {
        "channels-last": run(base, every, False),
        "and wrong images left out": run(base, clean, False),
        "and early exit": run(base, clean, True),
        "and a folded twin": run(twin, clean, True),
    }
    for precision in bench.precisions[1:]:
        mine[f"all of these, {precision}"] = run(Searched(bench.nets, precision), clean, True)  # type: ignore[arg-type]
    return compared(bench, "PGD-20 linf", {"our PGD-20 without": run(Plain(bench.theirs), every, False)}, mine)


def main() -> int:
    """Measure, print, and keep or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    parser.add_argument("--dataset", choices=TEXTS, default="cifar10")
    parser.add_argument("--pgd", type=int, nargs="*", default=[20, 50], help="steps of PGD")
    parser.add_argument("--width", type=int, default=16, help="of the ResNet-18; the usual one has 64")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--count", type=int, default=256, help="test images")
    parser.add_argument("--steps", type=int, default=100, help="of AutoAttack's gradient attacks")
    parser.add_argument("--queries", type=int, default=5000, help="of AutoAttack's Square")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", nargs="*", default=["float32", "bfloat16"], help="of our searches")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--check", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    began, device = time.perf_counter(), torch.device(given.device)
    try:
        data.load(given.dataset, Split.TEST, given.data)
    except DataError as error:
        print(f"skipped: no images ({error})", file=sys.stderr)
        return 0
    images = data.load(given.dataset, Split.TEST, given.data).take(slice(given.count)).to(device)
    nets = trained(given.data, given.checkpoints, given.dataset, given.width, given.epochs).to(device).eval()
    threats = dict(zip(("linf", "l2"), map(ThreatModel.parse, TEXTS[given.dataset]), strict=True))
    budgets = given.steps, given.queries, given.repeats, tuple(given.precision)
    plain = copy.deepcopy(nets).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    bench = Bench(nets, plain, images.x(), images.y, *budgets, threats, tuple(given.pgd))
    print(f"clean: {bench.judged(bench.x)} of {given.count} right", file=sys.stderr)
    rows, again = measure.measured({part: partial(globals()[part], bench) for part in given.only})
    names = ("dataset", "pgd", "width", "epochs", "count", "steps", "queries", "repeats", "precision", "device")
    settings = {name: getattr(given, name) for name in names}
    settings |= {"clean": bench.judged(bench.x), "wall seconds": round(time.perf_counter() - began)}
    return measure.finish(rows, again, given, settings)


if __name__ == "__main__":
    sys.exit(main())
