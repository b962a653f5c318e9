"""What a device can do at most: matrix products in each precision, and copying.

python benchmarks/ceilings.py --device cuda --out FILE
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from robench.provenance import provenance

REPEATS = 10


def best(run: Callable[[], Any], device: torch.device) -> float:
    """The least wall seconds of several runs, each waited for."""
    found = []
    for _ in range(REPEATS):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - began)
    return min(found)


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    device = torch.device(given.device)
    side, elements = (8192, 1 << 28) if device.type == "cuda" else (512, 1 << 22)
    rows = {}
    for kind in (torch.float32, torch.bfloat16, torch.float16):
        a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
        rows[f"{kind} matrix product, TFLOP/s"] = 2 * side**3 / best(lambda a=a, b=b: a @ b, device) / 1e12  # type: ignore[misc]
    x = torch.randn(elements, device=device)
    rows["copy, GB/s"] = 2 * 4 * elements / best(x.clone, device) / 1e9
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    for row, value in rows.items():
        print(f"{row}: {value:,.1f}")
    if given.out:
        content = {"provenance": provenance(name, torch.get_num_threads()), "rows": rows}
        given.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
