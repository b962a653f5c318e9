"""How evaluation and training grow with processes: measured for 1 and 2 on this machine, modelled for 1 to 512 GPUs.

    python benchmarks/scaling.py measure CHECKPOINT   # evaluation by 1 and 2 local workers, a training step by 1 and 2 processes
    python benchmarks/scaling.py model --pace 20000   # hours, files and jobs; PACE: image passes a second of one GPU

The model takes image passes as the attacks list them, divides by the pace, cuts cells as the launcher does, and adds what a job
needs to start. It assumes that GPUs share nothing but the disk.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from robench import distributed, launch, parallel
from robench.attacks import attack_for
from robench.launch import Wanted
from robench.methods import method_for
from robench.models import build_nets
from robench.noise import ImageGenerator
from robench.protocols import Batch, Moment
from robench.threat import ThreatModel

GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
LEAST = 600.0  # seconds a job should last
START = 30.0  # seconds from the start of a job to its first pass: imports, data, weights
ARRAY = 1000  # jobs a cluster takes at once
STEPS, BATCH = 12, 64


@dataclass(frozen=True)
class Load:
    """Something to evaluate: cells of an attack on so many images, and the share of a CIFAR-10 ResNet-18's pace it has."""

    name: str
    cells: int
    images: int
    classes: int
    share: float = 1.0


LOADS = (
    Load("one table: 20 cells, CIFAR-10", 20, 10_000, 10),
    Load("10,000 cells, 1,000 images", 10_000, 1_000, 10),
    Load("20 cells, 50,000 images of ImageNet's size", 20, 50_000, 1000, 1 / 25),
)


def tasks(load: Load, pace: float, passes: float, batch: int = 500) -> list[float]:
    """Seconds of each job as the launcher cuts them."""
    cells = [Wanted(str(n), "", "", load.images, passes, 2 * batch) for n in range(load.cells)]
    image = passes / pace
    return [sum(p.stop - p.start for p in task) * image for task in launch.cut(cells, {}, pace, LEAST)]


def makespan(seconds: list[float], gpus: int) -> float:
    """When the last job ends, each beginning on the GPU that is free first."""
    free = [0.0] * gpus
    for each in seconds:
        first = min(range(gpus), key=free.__getitem__)
        free[first] += START + each
    return max(free)


def model(pace: float) -> None:
    """Print the tables of docs/scaling.md."""
    for load in LOADS:
        passes = float(attack_for("autoattack", ThreatModel.parse("linf-8/255")).cost(load.classes)[0])  # type: ignore[attr-defined]
        jobs = tasks(load, pace * load.share, passes)
        parts = load.cells * math.ceil(load.images / 1000)
        alone = makespan(jobs, 1)
        print(
            f"\n{load.name}: {passes:,.0f} passes an image at most, {len(jobs):,} jobs, {parts:,} parts, {load.cells:,} cells"
        )
        print(f"arrays of at most {ARRAY:,}: {math.ceil(len(jobs) / ARRAY)}\n")
        print("| GPUs | hours | speed-up | of ideal |\n|---:|---:|---:|---:|")
        for gpus in GPUS:
            took = makespan(jobs, gpus)
            print(f"| {gpus} | {took / 3600:.2f} | {alone / took:.1f} | {100 * alone / took / gpus:.0f} % |")
    print(
        "\nbytes a step that each process receives: RoCL, global batch 512, 128 dimensions, float32, seven attack steps\n"
    )
    print("| GPUs | embeddings | gradients of ResNet-18 |\n|---:|---:|---:|")
    gathers = 3 + 2 + 2 * 8  # views of the loss and of the second term; two views at each look of the attack
    for gpus in (2, 4, 8, 16, 32, 64):
        embeddings = gathers * 512 * 128 * 4 * (gpus - 1) / gpus
        print(f"| {gpus} | {embeddings / 2**20:.1f} MiB | {2 * 11_170_000 * 4 * (gpus - 1) / gpus / 2**20:.0f} MiB |")


def step() -> None:
    """Time training steps of this process's part of the batch; the first one prints the seconds of the best."""
    torch.set_num_threads(1)
    with distributed.joined(lambda: torch.device("cpu")):
        method = method_for("rocl", {})
        nets = build_nets("cnn", (1, 8, 8), "digits", True)
        for name, head in method.heads(nets.encoder.features, 10).items():
            nets.parts[name] = head
        nets.train()
        shared = parallel.shared(method, nets)
        times = []
        for number in range(STEPS):
            ids = distributed.own(torch.arange(BATCH)) + BATCH * number
            x = torch.rand(len(ids), 1, 8, 8)
            began = time.perf_counter()
            batch = Batch((x, x.flip(3)), torch.zeros(len(ids), dtype=torch.int64), ImageGenerator(0, ids))
            torch.stack(
                list(shared.terms(nets, batch, Moment(0, 1, ThreatModel.parse("linf-0.15"))).values())
            ).sum().backward()
            times.append(time.perf_counter() - began)
        if distributed.leads():
            print(min(times[2:]))
        del shared


def timed(line: list[str], env: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "robench", *line], env=env, check=True, capture_output=True, timeout=1500)
    return time.perf_counter() - began


def evaluated(checkpoint: Path, more: tuple[str, ...], env: dict[str, str], attack: str, count: int) -> float:
    """Seconds of an evaluation from the command to its end, in parts of few images that workers share."""
    line = ["evaluate", str(checkpoint), "--attack", attack, "--device", "cpu", "--threads", "1"]
    with tempfile.TemporaryDirectory() as results:
        return timed([*line, "--count", str(count), "--batch", "10", "--results", results, *more], env)


def measure(checkpoint: Path, repeats: int, attack: str) -> None:
    """Evaluation by one and two local workers, in pairs one after the other; a training step by one and two processes."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    one, two = (("--launcher", "local", "--jobs", jobs) for jobs in ("1", "2"))
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {attack}, 240 images in parts of 10")
    print("\n| pair | plain | 1 worker | 2 workers | 1 / 2 | load |\n|---:|---:|---:|---:|---:|---:|")
    ratios = []
    for number in range(repeats):
        plain, alone, both = (evaluated(checkpoint, more, env, attack, 240) for more in ((), one, two))
        ratios.append(alone / both)
        load = os.getloadavg()[0]
        print(
            f"| {number + 1} | {plain:.1f} s | {alone:.1f} s | {both:.1f} s | {ratios[-1]:.2f} | {load:.1f} |",
            flush=True,
        )
    print(f"median of 1 / 2: {statistics.median(ratios):.2f}")
    starts = [evaluated(checkpoint, more, env, "fgsm", 10) for more in ((), one)]
    print(
        f"of that start and end alone (fgsm on 10 images): plain {starts[0]:.1f} s, launched {starts[1]:.1f} s",
        flush=True,
    )
    print(f"\n| processes | seconds of a RoCL step, {BATCH} images in all | load |\n|---:|---:|---:|")
    found: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(repeats):
        for world, times in found.items():
            line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
            ran = subprocess.run(
                [*line, __file__, "step"], env=env, check=True, capture_output=True, text=True, timeout=600
            )
            times.append(float(ran.stdout.split()[-1]))
            print(f"| {world} | {times[-1]:.3f} | {os.getloadavg()[0]:.1f} |", flush=True)
    ratio = statistics.median(two / one for one, two in zip(found[1], found[2], strict=True))
    print(f"median of 2 / 1: {ratio:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("measure", "model", "step"))
    parser.add_argument("checkpoint", nargs="?", type=Path)
    parser.add_argument("--pace", type=float, default=20_000.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--attack", default="pgd-20@steps=1000")
    given = parser.parse_args()
    if given.what == "measure":
        measure(given.checkpoint, given.repeats, given.attack)
    elif given.what == "model":
        model(given.pace)
    else:
        step()
