"""What safety costs, as shares of the work it keeps safe.

    python benchmarks/safety.py                       # a few minutes on one core
    python benchmarks/safety.py --folder DIR          # saved states go there: name the disk that matters

CPU seconds and seconds on the clock are medians of several rounds. The share is one of CPU seconds on one thread, which other
work on the machine hardly moves; what waits for a disk shows on the clock alone.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from robench import data, recipe, training, verdict
from robench import state as states
from robench.attacks import attack_for
from robench.checkpoint import nets_after
from robench.data import Images, Split
from robench.door import Door, frozen
from robench.geometry import norm_of
from robench.models import Nets
from robench.optimiser import optimiser_for
from robench.run import Run
from robench.state import State
from robench.threat import ThreatModel

EVERY = 60.0  # seconds between saved states
HEADER = "| what | of what | clock | CPU | CPU of the whole | share | goal |\n|---|---|---:|---:|---:|---:|---:|"

Times = tuple[float, float]


def times(work: Callable[[], object], rounds: int) -> Times:
    """Seconds of some work, on the clock and of the CPU."""
    clock, cpu = [], []
    for _ in range(rounds):
        began = time.perf_counter(), time.process_time()
        work()
        clock.append(time.perf_counter() - began[0])
        cpu.append(time.process_time() - began[1])
    return statistics.median(clock), statistics.median(cpu)


def row(what: str, of: str, spent: Times, whole: float, goal: str) -> str:
    return f"| {what} | {of} | {spent[0]:.4f} s | {spent[1]:.4f} s | {whole:.2f} s | {100 * spent[1] / whole:.3f} % | {goal} |"


def images(shape: tuple[int, int, int], count: int = 32) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, *shape), generator=generator).to(torch.uint8)
    return Images("ResNet-18", Split.TRAIN, pixels, torch.randint(10, (count,), generator=generator), 10)


def nets_of(name: str, model: str, shape: tuple[int, int, int]) -> Nets:
    torch.manual_seed(0)
    return nets_after(recipe.load(name, [("model", model)]), 1, 10, shape)


def judging(nets: Nets, some: Images, text: str, ball: ThreatModel) -> list[str]:
    """Checking what an attack returned, and judging it, as shares of the attack."""
    x, attack, found = some.x(), attack_for(text, ball), []
    with frozen(nets):
        door, every = Door(nets, 10), torch.ones(len(some), dtype=torch.bool)
        with torch.no_grad():
            y = door(x).argmax(1)  # all are right, so all are attacked
        seen = verdict.probe(nets, x, y, 10)
        ids = torch.arange(len(x))
        _, whole = times(lambda: found.append(verdict.craft(door, attack, x, y, every, ids=ids, seed=0).adv), 1)
        adv = found[0]
        checks = times(lambda: (adv.isfinite().all(), adv.aminmax(), norm_of(adv - x, ball.norm)), 100)
        judged = times(lambda: verdict.judge(door, attack, x, y, every, adv, seen), 10)
    of = f"{text} in {ball} on {some.name}, {len(x)} images"
    goal = "< 1 %" if text == "autoattack" else "< 3 %"
    return [row("ball, box, finite", of, checks, whole, goal), row("whole verdict", of, judged, whole, goal)]


def robust(folder: Path) -> tuple[Nets, Images]:
    """A network that some attacks take long to break, and images of digits."""
    run = Run(recipe.load("pgd-at-digits", [("stage.0.epochs", 10)]), folder / "robust")
    return training.train(run).load(), data.load("digits", Split.TEST, Path()).take(slice(128))


def saving(model: str, folder: Path) -> list[str]:
    """A saved state, and what making it safe adds to writing it, as shares of a minute of training."""
    shape, some = (3, 32, 32), images((3, 32, 32))
    wanted = recipe.load("pgd-at", [("model", model)])
    nets = nets_of("pgd-at", model, shape)
    optimiser = optimiser_for(replace(wanted.stage[0].optimiser, lr=0.1), list(nets.parameters()))
    for parameter in nets.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()  # now there are momenta
    run = Run(wanted, folder)

    def plain() -> None:
        stream = io.BytesIO()
        torch.save({"nets": nets.state_dict(), "optimiser": optimiser.state_dict()}, stream)
        (folder / "plain.pt").write_bytes(stream.getvalue())

    rounds = [(times(plain, 1), times(lambda: states.save(run, nets, optimiser, State(), some), 1)) for _ in range(9)]
    safe = statistics.median(s[0] for _, s in rounds), statistics.median(s[1] for _, s in rounds)
    more = statistics.median(s[0] - p[0] for p, s in rounds), statistics.median(s[1] - p[1] for p, s in rounds)
    size = states.path_of(run).stat().st_size / 2**20
    of = f"a minute of training {model}"
    return [
        row(f"a saved state of {size:.0f} MiB", of, safe, EVERY, ""),
        row("of it for safety", of, more, EVERY, "< 0.5 %"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to save; the system's temporary folder by default")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(HEADER, flush=True)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        nets, digits = robust(Path(folder))
        for text in ("pgd-20", "autoattack"):
            print(*judging(nets, digits, text, ThreatModel.parse("linf-0.2")), sep="\n", flush=True)
        large = nets_of("pgd-at", "resnet18", (3, 32, 32)).eval()
        print(*judging(large, images((3, 32, 32)), "pgd-20", ThreatModel.parse("linf-8/255")), sep="\n", flush=True)
        for model in ("resnet18", "wrn-34-10"):
            print(*saving(model, Path(folder)), sep="\n", flush=True)


if __name__ == "__main__":
    main()
