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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from robench.provenance import provenance

DROP = 0.10  # the share by which a ratio may fall below the recorded one
TRIES = 3  # how often what seems to have fallen is measured in all
Again = Callable[[set[str]], list["Row"]]


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
        pairs: the ratio of each repeat, whose two sides were measured one soon after the other.
    """

    name: str
    against: str
    ours: float
    theirs: float
    spread: float = 0.0
    note: str = ""
    pairs: tuple[float, ...] = ()

    @property
    def ratio(self) -> float:
        """Theirs over ours: the median of pairs, which a disturbance that both sides met does not touch."""
        return statistics.median(self.pairs) if self.pairs else self.theirs / self.ours


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
    return Row(name, against, statistics.median(ours), statistics.median(theirs), spread, note, tuple(ratios))


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
    kept = [
        {key: value for key, value in each.items() if key != "ratio"} for each in json.loads(path.read_bytes())["rows"]
    ]
    return [Row(**{**each, "pairs": tuple(each.get("pairs", ()))}) for each in kept]


def fallen(recorded: Iterable[Row], now: Iterable[Row]) -> dict[str, str]:
    """The ratios that are more than a tenth below the recorded ones, by name, as lines to print."""
    before = {each.name: each for each in recorded}
    return {
        each.name: f"{each.name}: {each.ratio:.2f}x, recorded {before[each.name].ratio:.2f}x +- "
        f"{100 * before[each.name].spread:.0f} %"
        for each in now
        if each.name in before and each.ratio < (1 - DROP) * before[each.name].ratio
    }


def held(recorded: list[Row], now: list[Row], again: Again) -> dict[str, str]:
    """What fell, and is still below when it is measured twice more and all pairs are taken together.

    One pair on a busy machine is off by a tenth now and then, the median of three times as many hardly ever, while a real drop
    shows in all of them.

    Args:
        recorded: the rows to hold to.
        now: the rows of this run.
        again: measures rows anew, those of these names and maybe others with them.
    """
    found = {each.name: each for each in now}
    for _ in range(TRIES - 1):
        lines = fallen(recorded, found.values())
        if not lines:
            break
        print("\n".join(["again:", *lines.values()]), file=sys.stderr)
        for each in again(set(lines)):
            if each.name in lines:
                found[each.name] = together(found[each.name], each)
    return fallen(recorded, found.values())


def together(first: Row, second: Row) -> Row:
    """Two measurements of the same as one."""
    return replace(first, pairs=tuple(sorted(_pairs(first) + _pairs(second))))


def _pairs(each: Row) -> tuple[float, ...]:
    return each.pairs or (each.ratio,)


def measured(parts: Mapping[str, Callable[[], list[Row]]]) -> tuple[list[Row], Again]:
    """The rows of all parts, and what measures the parts again that some rows belong to."""
    made = {name: run() for name, run in parts.items()}

    def again(names: set[str]) -> list[Row]:
        wanted = [name for name, rows in made.items() if names & {each.name for each in rows}]
        return [each for name in wanted for each in parts[name]()]

    return [each for rows in made.values() for each in rows], again


def finish(rows: list[Row], again: Again, arguments: argparse.Namespace, settings: Mapping[str, Any]) -> int:
    """Print the table, then keep it (`--out`) or hold it to what is kept (`--check`); the exit code."""
    print(table(rows))
    if arguments.out:
        write(arguments.out, rows, settings)
    if arguments.check:
        lines = held(read(arguments.check), rows, again)
        there = json.loads(arguments.check.read_bytes())["cpu"]
        if there != _cpu():
            print(f"note: recorded on {there}, this is {_cpu()}; ratios of another CPU may differ for that alone")
        print("\n".join([f"fell by more than {100 * DROP:.0f} %:", *lines.values()] if lines else ["no ratio fell"]))
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
