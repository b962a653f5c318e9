"""Training in several processes: the loss and gradient of one, one writer, and errors that say which world would do."""

import json
import os
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import ranks
import torch
from processes import LIMIT, ROOT, ran, started
from safetensors.torch import load_file

from robench import distributed, parallel
from robench.errors import UsageError
from robench.methods import method_for

ALONE = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}  # one thread a process


def torchrun(world: int, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run a program in several processes, and leave none behind."""
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    return ran([*line, *map(str, arguments)], ALONE)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.timeout(600)
def test_loss_and_gradient_are_those_of_one_process(world: int, tmp_path: Path) -> None:
    made_by = torchrun(world, "tests/ranks.py", tmp_path / "made.pt")
    assert made_by.returncode == 0, made_by.stderr
    made = torch.load(tmp_path / "made.pt", weights_only=True)
    alone = ranks.every()
    for name, expected in alone.items():
        assert made[name].keys() == expected.keys()
        assert sum(key.startswith(("gradient", "average")) for key in expected) > 5
        for key, value in expected.items():
            torch.testing.assert_close(made[name][key], value, rtol=0, atol=1e-10, msg=f"{name}: {key}")


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_two_machines_are_two_processes(tmp_path: Path) -> None:
    """Two launchers of torchrun that meet at a port, as on two machines that share a disk."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    there = ("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}")
    line = [sys.executable, "-m", "torch.distributed.run", *there, "--rdzv-id", "1", "-m", "robench", *SMALL]
    line += ["--out", str(tmp_path / "run")]
    with started(line, ALONE) as one, started(line, ALONE) as two:
        said = [process.communicate(timeout=LIMIT)[1] for process in (one, two)]
    assert (one.returncode, two.returncode) == (0, 0), said
    assert "".join(said).count("done: ") == 1
    assert json.loads((tmp_path / "run" / "last.json").read_text())["provenance"]["processes"] == 2


def test_own_normalisation_is_torchs_in_one_process() -> None:
    torch.manual_seed(0)
    for training in (True, False):
        theirs, ours = (torch.nn.BatchNorm2d(3).double().train(training) for _ in range(2))
        parallel.synchronise(ours)
        for _ in range(2):
            a = torch.randn(4, 3, 5, 5, dtype=torch.float64, requires_grad=True)
            b = a.detach().clone().requires_grad_()
            weights = torch.randn_like(a)
            (theirs(a) * weights).sum().backward()
            (ours(b) * weights).sum().backward()
            torch.testing.assert_close(b.grad, a.grad)
        for key, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[key], value)


@pytest.mark.parametrize(
    ("world", "batch", "parts", "said"),
    [
        (3, 64, 1, r"3 processes do not divide a batch of 64: use 1, 2, 4, 8, 16, 32, 64 processes, or .*batch=63"),
        (4, 24, 3, None),
        (4, 20, 3, r"in 3 parts \(of 6 and 7\): use 1 processes, or .*batch=12"),
        (2, 64, 1, None),
        (1, 63, 2, None),
    ],
)
def test_what_cannot_be_spread(
    world: int, batch: int, parts: int, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "world", lambda: world)
    method = method_for("pgd-at", {})
    if said is None:
        parallel.check(0, "pgd-at", method, batch, parts)
    else:
        with pytest.raises(UsageError, match=said):
            parallel.check(0, "pgd-at", method, batch, parts)


@pytest.mark.parametrize(("world", "compiled", "refused"), [(2, True, True), (2, False, False), (1, True, False)])
def test_several_processes_compile_nothing(
    world: int, compiled: bool, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "world", lambda: world)
    with pytest.raises(UsageError, match="--compile is for one process") if refused else nullcontext():
        parallel.check_compiled(compiled)


SMALL = (
    *("train", "simclr-digits", "--device", "cpu"),
    *(
        "--set",
        "model=cnn@width=2",
        "--set",
        "validation=1200",
        "--set",
        "stage.0.epochs=3",
        "--set",
        "stage.0.batch=64",
    ),
    *("--set", "stage.1.epochs=2", "--set", "stage.1.batch=64"),
)


@pytest.mark.timeout(900)
def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    alone = torchrun(1, "-m", "robench", *SMALL, "--out", tmp_path / "one")
    assert alone.returncode == 0, alone.stderr
    stopped = ran([sys.executable, "tests/stopping.py", *SMALL, "--out", str(tmp_path / "two")], ALONE)
    assert stopped.returncode == 143, stopped.stderr
    assert (tmp_path / "two" / "state.pt").is_file()
    went = torchrun(2, "-m", "robench", *SMALL, "--out", tmp_path / "two")
    assert went.returncode == 0, went.stderr
    assert went.stderr.count("done: ") == 1  # one process talks
    one, two = (load_file(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key].double(), value.double(), rtol=1e-2, atol=1e-3, msg=key)
    made = json.loads((tmp_path / "two" / "last.json").read_text())
    assert made["provenance"]["processes"] == 2


@pytest.mark.timeout(600)
def test_a_world_that_does_not_divide_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    refused = torchrun(3, "-m", "robench", *SMALL, "--out", tmp_path / "run")
    assert refused.returncode != 0
    assert "3 processes do not divide a batch of 64" in refused.stderr
    assert not (tmp_path / "run").exists()
