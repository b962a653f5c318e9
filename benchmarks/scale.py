"""How the time and memory of an evaluation grow with images, steps, width and batch, against the pass-count model.

    python benchmarks/scale.py --out benchmarks/scale.json --plot docs/evaluation-scale.svg

PGD as the engine runs it on a ResNet-18 of reduced width, untrained, at a radius at which it breaks nothing, so that the passes
are those of `PGD.cost`. One thing varies over a factor of 8, the others stay. The model says

    time   = images * ((steps + 2) t + steps g)     t, g: a forward pass and a gradient, both as the operations of the network
    memory = images at once * what one of them takes

and is held to the measurement at the largest value. Time is CPU time of this process (wall time on a GPU), the least of several
repeats; memory is what the process grew by at its peak (on a GPU what its allocator gave out at most), the largest of them.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import measure
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from robench import verdict
from robench.attacks import attack_for
from robench.door import frozen
from robench.models import build_nets
from robench.provenance import provenance
from robench.threat import ThreatModel

NOTHING = ThreatModel.parse("linf-1e-6")
GROWS = {
    "images": (32, 64, 128, 256),
    "steps": (5, 10, 20, 40),
    "width": (4, 8, 16, 32),
    "batch": (16, 32, 64, 128),
}


@dataclass(frozen=True)
class Case:
    """What is run."""

    images: int = 32
    steps: int = 5
    width: int = 8
    batch: int = 32


@dataclass(frozen=True)
class Point:
    """What was measured at a value, and what the model says from the largest one."""

    value: int
    seconds: float
    predicted: float
    bytes: int
    predicted_bytes: float


def network(case: Case, device: torch.device) -> nn.Module:
    """Untrained, always the same."""
    torch.manual_seed(0)
    nets = build_nets(f"resnet18@width={case.width}", (3, 32, 32), "cifar10", normalise=False)
    nets.parts["head"] = nn.Linear(nets.encoder.features, 10)
    return nets.to(device).eval()


def operations(nets: nn.Module, x: Tensor) -> float:
    """Of a forward pass of one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        nets(x[:1])
    return float(counter.get_total_flops())


def run(case: Case, device: torch.device, repeats: int) -> tuple[float, int, float]:
    """Seconds, bytes and the operations of a pass."""
    nets, x = network(case, device), torch.rand(case.images, 3, 32, 32, device=device)
    with torch.no_grad():
        y = torch.cat([nets(part).argmax(1) for part in x.split(64)])
    attack = attack_for(f"pgd@steps={case.steps},short=true,step=0.1", NOTHING)
    every, ids = torch.ones(len(x), dtype=torch.bool, device=device), torch.arange(len(x), device=device)
    now, seconds, peaks = measure.clock(device), [], []
    for _ in range(repeats):
        with frozen(nets):
            door = verdict.white_box(nets, attack, x, verdict.Probe(False, ()), 10, case.batch)
        before, began = _reset(device), now()
        crafted = verdict.craft(door, attack, x, y, every, ids=ids, seed=0)
        seconds.append(now() - began)
        peaks.append(_peak(device) - before)
        if (crafted.forwards, crafted.backwards) != (case.images * case.steps, case.images * case.steps):
            sys.exit(f"{case}: {crafted.forwards} and {crafted.backwards} passes, so some image was broken")
    return min(seconds), max(peaks), operations(nets, x)


def _reset(device: torch.device) -> int:
    """Begin to watch the peak; the bytes in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    ctypes.CDLL(None).malloc_trim(0)  # so that what earlier runs freed is no room for this one
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def grown(what: str, device: torch.device, repeats: int) -> list[Point]:
    """Measure one thing over its values."""
    base = Case(images=128) if what == "batch" else Case()
    found = [run(replace(base, **{what: value}), device, repeats) for value in GROWS[what]]
    last_seconds, last_bytes, last_work = found[-1]
    points = []
    for value, (seconds, peak, work) in zip(GROWS[what], found, strict=True):
        part = value / GROWS[what][-1]
        times = {"images": part, "steps": part, "width": work / last_work, "batch": 1.0}[what]
        room = part if what in ("width", "batch") else 1.0
        points.append(Point(value, seconds, last_seconds * times, peak, last_bytes * room))
    return points


def table(found: dict[str, list[Point]]) -> str:
    """Markdown."""
    lines = ["| what grows | value | CPU s | model | peak MB | model |", "|---|---:|---:|---:|---:|---:|"]
    lines += [
        f"| {what} | {p.value} | {p.seconds:.2f} | {p.predicted:.2f} | {p.bytes / 1e6:.0f} | {p.predicted_bytes / 1e6:.0f} |"
        for what, points in found.items()
        for p in points
    ]
    return "\n".join(lines)


def plot(found: dict[str, list[Point]], path: Path) -> None:
    """Measured points on the model's lines, one panel for each thing that grows."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "robench"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(found), figsize=(3 * len(found), 5), layout="constrained", sharey="row")
    for column, (what, points) in enumerate(found.items()):
        values = [p.value for p in points]
        rows = (
            ("CPU seconds", [p.seconds for p in points], [p.predicted for p in points]),
            ("peak, MB", [p.bytes / 1e6 for p in points], [p.predicted_bytes / 1e6 for p in points]),
        )
        for ax, (name, measured, predicted) in zip(axes[:, column], rows, strict=True):
            ax.plot(values, predicted, color="0.6", label="model")
            ax.plot(values, measured, "o", color="tab:blue", label="measured")
            ax.set_xscale("log", base=2)
            ax.set_yscale("log", base=2)
            ax.set_xticks(values, [str(value) for value in values])
            ax.set_xlabel(what)
            ax.yaxis.set_major_formatter("{x:.3g}")
            if column == 0:
                ax.set_ylabel(name)
    axes[0, 0].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure, print, keep and plot; or plot what is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=GROWS, default=list(GROWS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--kept", type=Path, help="measure nothing, show what --out kept")
    given = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(given.device)
    if given.kept:
        kept = json.loads(given.kept.read_bytes())["points"]
        found = {what: [Point(**point) for point in points] for what, points in kept.items()}
    else:
        found = {what: grown(what, device, given.repeats) for what in given.only}
    print(table(found))
    if given.out and not given.kept:
        content = {
            "provenance": provenance(given.device, torch.get_num_threads()),
            "points": {what: [asdict(point) for point in points] for what, points in found.items()},
        }
        given.out.write_text(json.dumps(content, indent=1) + "\n")
    if given.plot:
        plot(found, given.plot)


if __name__ == "__main__":
    main()
