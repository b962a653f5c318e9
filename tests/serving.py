"""Answers calls of `robench`, `python` and `pip install ./FOLDER`, a fork of a process that has everything imported for each.

`python serving.py FOLDER` puts these words into FOLDER and answers until its standard input is closed. A call has the
caller's folder and its three standard streams; what takes hours or gigabytes is made small by options that `robench --help`
names, and says so on standard error.
"""

import contextlib
import importlib
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from itertools import pairwise
from pathlib import Path

import torch

import robench.cli
from robench import recipe
from robench.results import Result, Store
from robench.showing import broken
from robench.spec import assignment

# what commands import when they need it, here once for every fork
for each in (
    *(
        "torch._dynamo",
        "torch.distributed",
        "torchvision.datasets",
        "torchvision.models",
        "matplotlib.backends.backend_agg",
    ),
    *("pandas", "scipy.optimize", "scipy.stats", "sklearn.datasets", "sklearn.manifold", "statsmodels.stats.multitest"),
    *("robench.api", "robench.attacks.autoattack", "robench.figures", "robench.methods.rocl", "robench.testing"),
):
    with contextlib.suppress(ImportError):  # of an extra
        importlib.import_module(each)
COUNT = "9"  # images: one of each kind that the stand-ins have
LARGE = ("cifar10", "cifar100", "stl10", "svhn")
CALLER = """#!{python} -ISE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as door:
    door.connect({door!r})
    socket.send_fds(door, [json.dumps([sys.argv, os.getcwd(), os.environ.get("HOME")]).encode()], [0, 1, 2])
    sys.exit(int(door.recv(16) or b"70"))
"""


def smaller(words: list[str]) -> list[str]:
    """The same call with fewer images, shorter stages and a small network."""
    if not words or {"--help", "-h", "--plan"} & set(words) or (words[0] not in SMALLER):
        return words
    return SMALLER[words[0]](words)


def _training(words: list[str]) -> list[str]:
    if words[1].startswith("-"):
        return words
    found = recipe.load(words[1], [assignment(text) for text in _values(words, "--set")])
    dataset = (_values(words, "--dataset") or [found.dataset])[0].partition("@")[0]
    if dataset not in LARGE:
        return [*words, *(each for key, value in _short(found) for each in ("--set", f"{key}={value}"))]
    size = [] if "--model" in words else ["--model", "cnn@width=4"]
    out = (
        [] if "--out" in words else ["--out", f"{tempfile.mkdtemp(dir=Path.cwd())}/{found.name}"]
    )  # not to be attacked
    return [*words, "--smoke", *size, *out, "--set", "validation=32"]


def _short(found: recipe.Recipe) -> list[tuple[str, object]]:
    return [(f"stage.{i}.epochs", 2) for i, stage in enumerate(found.stage) if stage.epochs > 2]


def _sweep(words: list[str]) -> list[str]:
    found = recipe.load(words[1])
    size = [] if found.dataset == "digits" else [("model", "cnn"), ("validation", 32)]
    size += [] if found.dataset == "digits" else [(f"stage.{i}.batch", 64) for i in range(len(found.stage))]
    size += [(f"stage.{i}.schedule.warmup", 0) for i in range(len(found.stage))]
    return [*words, *(each for key, value in (*_short(found), *size) for each in ("--set", f"{key}={value}")), *FEW]


FEW = ["--count", COUNT]


def _counted(words: list[str]) -> list[str]:
    if "--count" not in words:
        return [*words, *FEW]
    place = words.index("--count") + 1
    return [*words[:place], COUNT, *words[place + 1 :]]


def _shown(words: list[str]) -> list[str]:
    """The key of a record that is there, for the key of a reader's."""
    if not re.fullmatch("[0-9a-f]{4}", words[1]):
        return words
    there = [each for each in Store(Path("results")).records() if isinstance(each, Result) and not each.source]
    found = min(each.cell.key for each in there if len(broken(each)) > 1 and each.subject.dataset == "cifar10")
    return [words[0], found, *words[2:]]


SMALLER = {
    "train": _training,
    "sweep": _sweep,
    "evaluate": _counted,
    "diagnose": _counted,
    "features": _counted,
    "show": _shown,
}


def _values(words: list[str], option: str) -> list[str]:
    return [value for name, value in pairwise(words) if name == option]


def _install(words: list[str]) -> None:
    """`pip install ./FOLDER` into a folder that every later call finds; there is no network."""
    if len(words) != 2 or words[0] != "install" or not words[1].startswith("./"):
        raise SystemExit("pip: there is no network here")
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index")
    command = [sys.executable, "-m", "pip", "install", *options, "--target", "site", words[1]]
    raise SystemExit(subprocess.run(command, check=False).returncode)


def _answer(words: list[str]) -> None:
    """Do what was called for; ends by SystemExit or not."""
    name, *rest = Path(words[0]).name, *words[1:]
    sys.path[:0] = ["", str(Path("site").resolve())]
    if name != "robench" and rest[:2] == ["-m", "robench"]:
        name, rest = "robench", rest[2:]
    if name == "robench":
        small = smaller(rest)
        if small != rest:
            sys.stderr.write(f"(as: robench {' '.join(small)})\n")
        sys.argv = ["robench", *small]
        robench.cli.main(small)
    if name == "pip":
        _install(rest)
    if rest[0] == "-m":
        sys.argv = rest[1:]
        runpy.run_module(rest[1], run_name="__main__", alter_sys=True)
    if rest[0] == "-c":
        sys.argv = rest
        exec(compile(rest[1], "-c", "exec"), {"__name__": "__main__"})
        return
    sys.argv = rest
    runpy.run_path(rest[0], run_name="__main__")


def _child(door: socket.socket, words: list[str], folder: str, home: str, streams: list[int]) -> None:
    code = 70
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for place, stream in enumerate(streams):
            os.dup2(stream, place)
        os.chdir(folder)
        os.environ["HOME"] = home
        code = 0
        _answer(words)
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        door.sendall(str(code).encode())
        os._exit(0)


def _serve(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)  # what pages make without a seed is the same each time
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "door"))
        listening.listen()
        for name in ("robench", "python", "pip"):
            path = folder / name
            path.write_text(CALLER.format(python=sys.executable, door=str(folder / "door")))
            path.chmod(0o755)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            door, _ = listening.accept()
            text, streams, _, _ = socket.recv_fds(door, 65536, 3)
            if os.fork() == 0:
                listening.close()
                _child(door, *json.loads(text), streams)
            door.close()
            for stream in streams:
                os.close(stream)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
