"""benchmarks/gpu.sh: calls that go on where the last one ended; and all of it at a tiny size on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
PYTHON = """#!/usr/bin/env bash
echo "$*" >>{log}
case "$*" in *{bad}*) {does} ;; esac
exit 0
"""

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a script for bash")


def call(folder: Path, **environment: str) -> tuple[int, str]:
    ran = subprocess.run(
        ["bash", str(SCRIPT), str(folder / "data"), str(folder / "out")],
        env={**os.environ, "DEVICE": "cpu", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.returncode, ran.stdout + ran.stderr


def stand_in(folder: Path, bad: str, does: str) -> str:
    """A python that only notes what it was asked, and stumbles over one thing."""
    path = folder / "python"
    path.write_text(PYTHON.format(log=folder / "asked", bad=bad, does=does))
    path.chmod(0o755)
    return str(path)


def asked(folder: Path) -> list[str]:
    return (folder / "asked").read_text().splitlines()


def test_each_step_runs_once_and_training_goes_on(tmp_path: Path) -> None:
    python = stand_in(tmp_path, "trades-fast", f"mkdir -p {tmp_path}/out/checkpoints/trades-fast; exit 130")
    code, said = call(tmp_path, PYTHON=python)
    assert code == 75, said
    first = asked(tmp_path)
    assert "ceilings" in first[0]
    assert "train pgd-at-fast" in first[1]
    assert "train trades-fast" in first[2]
    python = stand_in(tmp_path, "nothing", "exit 0")
    code, said = call(tmp_path, PYTHON=python)
    assert code == 0, said
    again = asked(tmp_path)[len(first) :]
    assert "train trades-fast" in again[0]
    assert again[0] == first[2]  # the same command goes on
    assert not any("ceilings" in line or "train pgd-at-fast" in line for line in again)
    assert any("--suite rocl-table1" in line for line in again)
    trained = next(number for number, line in enumerate(again) if "train rocl-2020" in line)
    assert "loss_trace.py" in again[trained + 1]
    assert "checkpoints/trace --report" in again[trained + 1]
    count = len(asked(tmp_path))
    assert call(tmp_path, PYTHON=python)[0] == 0
    assert len(asked(tmp_path)) == count  # all is done


def test_a_step_that_fails_is_named_and_stops(tmp_path: Path) -> None:
    code, said = call(tmp_path, PYTHON=stand_in(tmp_path, "autoattack", "echo because; exit 2"))
    assert code == 1
    assert "because" in said
    assert "attack-autoattack failed (2)" in said
    assert not (tmp_path / "out" / "done" / "attack-autoattack").exists()


def test_no_step_begins_that_cannot_end_in_time(tmp_path: Path) -> None:
    code, said = call(tmp_path, PYTHON=stand_in(tmp_path, "nothing", "exit 0"), LIMIT="59")
    assert code == 75
    assert "Call again" in said
    assert not (tmp_path / "asked").exists()


def test_without_arguments_it_says_what_it_wants() -> None:
    ran = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "gpu.sh DATA OUT" in ran.stdout


@pytest.mark.nightly
def test_all_of_it_at_a_tiny_size(tmp_path: Path) -> None:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    code, said = call(tmp_path, TINY="1", PYTHON=sys.executable, LIMIT="3000", PYTHONPATH=path, OMP_NUM_THREADS="1")
    assert code == 0, said
    out = tmp_path / "out"
    assert {row["against"] for row in json.loads((out / "ratios-autoattack.json").read_text())["rows"]} == {
        "pyautoattack"
    }
    names = {row["name"] for path in out.glob("ratios-*.json") for row in json.loads(path.read_text())["rows"]}
    for text in (
        "TRADES-10 step, bfloat16",
        "RoCL step, float32",
        "lever: + folded normalisations",
        "float16 matrix product",
    ):
        assert text in names
    assert "not to be compared: another experiment" in json.loads((out / "loss-trace.json").read_text())["said"]
    table = (out / "tables.md").read_text()
    for text in ("pgd-at-digits", "robust-linear-digits", "autoattack-bracket", "bfloat16", " to "):
        assert text in table
