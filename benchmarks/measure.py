"""Ratios that a busy machine cannot spoil: CPU time of this process, variants interleaved in one run, medians.

python benchmarks/measure.py FILE...   # the tables that were kept
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from robench.provenance import provenance

DROP = 0.10  # the share by which a ratio may fall below the recorded one


@dataclass(frozen=True)
class Row:
    """One line of a table: how many times faster ours is.

    Attributes:
        name: what was measured; the same name is the same measurement in every run.
        against: what it was measured against.
        ours: seconds of CPU time, the median.
        theirs: likewise of the other side.
        spread: half the distance between quartiles of the ratio over repeats, as a share of the ratio.
        note: what else matters.
    """

    name: str
    against: str
    ours: float
    theirs: float
    spread: float = 0.0
    note: str = ""

    @property
    def ratio(self) -> float:
        """Theirs over ours."""
        return self.theirs / self.ours


def clock(device: torch.device) -> Callable[[], float]:
    """Seconds: of CPU time on a CPU, else of wall time when the device has done all it was told."""
    if device.type == "cpu":
        return time.process_time

    def now() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


def timed(
    variants: Mapping[str, Callable[[], Any]],
    repeats: int,
    *,
    seed: int = 0,
    now: Callable[[], float] = time.process_time,
    warm: bool = True,
) -> dict[str, list[float]]:
    """Seconds of each variant, `repeats` times, in an order shuffled at each repeat; each runs once before if `warm`."""
    for run in variants.values() if warm else ():
        run()
    shuffle, found = random.Random(seed), {name: [] for name in variants}
    for _ in range(repeats):
        for name in shuffle.sample(sorted(variants), len(variants)):
            began = now()
            variants[name]()
            found[name].append(now() - began)
    return found


def row(name: str, against: str, ours: list[float], theirs: list[float], note: str = "") -> Row:
    """A line from the times of two variants of one run."""
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    spread = (quartiles[2] - quartiles[0]) / 2 / quartiles[1]
    return Row(name, against, statistics.median(ours), statistics.median(theirs), spread, note)


def table(rows: Iterable[Row]) -> str:
    """Markdown."""
    lines = ["| what | against | ours | theirs | ratio | |", "|---|---|---:|---:|---:|---|"]
    lines += [
        f"| {r.name} | {r.against} | {_time(r.ours)} | {_time(r.theirs)} | "
        f"**{r.ratio:.2f}x** +- {100 * r.spread:.0f} % | {r.note} |"
        for r in rows
    ]
    return "\n".join(lines)


def _time(seconds: float) -> str:
    return (
        f"{seconds:.2f} s"
        if seconds >= 1
        else f"{1e3 * seconds:.1f} ms"
        if seconds >= 1e-3
        else f"{1e6 * seconds:.0f} us"
    )


def write(path: Path, rows: Iterable[Row], settings: Mapping[str, Any]) -> None:
    """Keep rows with their versions, device, command and settings."""
    named = {"--data": "DIR", "--checkpoints": "DIR", "--out": "FILE"}  # where things lie here says nothing elsewhere
    words = [named.get(before, word) for before, word in zip(["", *sys.argv], sys.argv, strict=False)]
    made = provenance("cpu", torch.get_num_threads())
    command = " ".join(["python", *words])
    content = {
        "provenance": {name: value for name, value in made.items() if name != "command"},
        "cpu": _cpu(),
        "command": command,
        "settings": dict(settings),
        "rows": [asdict(each) | {"ratio": each.ratio} for each in rows],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def kept(path: Path) -> str:
    """What a kept file says, as Markdown."""
    content = json.loads(path.read_bytes())
    settings = ", ".join(f"{name} {value}" for name, value in content["settings"].items())
    made = content["provenance"]
    return f"`{content['command']}`: {settings}; torch {made['torch']}, {content['cpu']}\n\n{table(read(path))}\n"


def read(path: Path) -> list[Row]:
    """Kept rows."""
    kept = json.loads(path.read_bytes())["rows"]
    return [Row(**{key: value for key, value in each.items() if key != "ratio"}) for each in kept]


def fallen(recorded: Iterable[Row], now: Iterable[Row]) -> list[str]:
    """The ratios that are more than a tenth below the recorded ones, as lines to print."""
    before = {each.name: each.ratio for each in recorded}
    return [
        f"{each.name}: {each.ratio:.2f}x, recorded {before[each.name]:.2f}x"
        for each in now
        if each.name in before and each.ratio < (1 - DROP) * before[each.name]
    ]


def finish(rows: list[Row], arguments: argparse.Namespace, settings: Mapping[str, Any]) -> int:
    """Print the table, then keep it (`--out`) or hold it to what is kept (`--check`); the exit code."""
    print(table(rows))
    if arguments.out:
        write(arguments.out, rows, settings)
    if arguments.check:
        lines = fallen(read(arguments.check), rows)
        there = json.loads(arguments.check.read_bytes())["cpu"]
        if there != _cpu():
            print(f"note: recorded on {there}, this is {_cpu()}; ratios of another CPU may differ for that alone")
        print("\n".join([f"fell by more than {100 * DROP:.0f} %:", *lines] if lines else ["no ratio fell"]))
        return 1 if lines else 0
    return 0


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (
        f"{found[0]}, {torch.backends.cpu.get_cpu_capability()}" if found else torch.backends.cpu.get_cpu_capability()
    )


if __name__ == "__main__":
    print("\n".join(kept(Path(name)) for name in sys.argv[1:]), end="")
