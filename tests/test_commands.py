"""Every command of README and docs does what it says: each is run, small, in a folder with what its page names."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from documented import PAGES, Block, blocks

pytestmark = pytest.mark.timeout(3600)  # a page is many commands, and machines are shared
HERE = Path(__file__).parent
# at that threat every attack ends soon, and the last epoch of nearly clean images is right on most
SMALL = "model=cnn@width=4 stage.0.batch=20 threat=linf-0.25 validation=0 stage.0.options.steps=1"
HEAD = "stage.1.epochs=10 stage.1.batch=20 stage.1.schedule.drops=[8] stage.1.schedule.warmup=0"
TRAINED = {  # runs by the names that the pages use, and what makes them small
    "rocl": f"{SMALL} stage.0.epochs=2 {HEAD}",
    "pgd-at": f"{SMALL} stage.0.epochs=10 stage.0.options.step=0.001",
    "trades": f"{SMALL} stage.0.epochs=10 stage.0.options.beta=0",
    "rocl-cifar100": f"{SMALL} stage.0.epochs=1 stage.1.epochs=1",
    "rocl-digits": "stage.0.epochs=1 stage.0.batch=256 stage.0.options.steps=1 stage.1.epochs=1",
}
EVALUATED = ("rocl", "pgd-at", "trades")
MATERIALS = ("my.py", "my_attacks.py", "w.pt", "w.safetensors", "model.onnx", "images.npz", "pictures")


class Shell:
    """A shell in which `robench` and `python` are answered at once; nothing else of the environment is there."""

    def __init__(self, words: Path) -> None:
        self.words = words

    def __call__(self, text: str, folder: Path, limit: float = 1200) -> tuple[int, str]:
        """Exit code, and what was said."""
        home = folder / "home"
        (home / ".config" / "fish" / "completions").mkdir(parents=True, exist_ok=True)
        path = f"{self.words}{os.pathsep}/usr/bin{os.pathsep}/bin"
        command = ["bash", "-e", "-o", "pipefail", "-c", text]
        ran = subprocess.run(
            command,
            cwd=folder,
            env={"PATH": path, "HOME": str(home), "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit,
            check=False,
        )
        return ran.returncode, ran.stdout


@pytest.fixture(scope="module")
def shell() -> Iterator[Shell]:
    with tempfile.TemporaryDirectory(prefix="robench-") as made:  # a short path, for a socket
        words = Path(made)
        path = os.pathsep.join(map(str, (HERE / "standin", HERE.parent)))
        env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "PYTHONWARNINGS": ""}
        env.pop("ROBENCH_DATA", None)
        serving = subprocess.Popen(
            [sys.executable, str(HERE / "serving.py"), str(words)],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with serving:
            assert serving.stdout is not None
            assert serving.stdin is not None
            assert serving.stdout.readline() == "ready\n"
            yield Shell(words)
            serving.stdin.close()


@pytest.fixture(scope="module")
def standin(shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small runs and results by the names that the pages use."""
    folder = tmp_path_factory.mktemp("standin")
    code, said = shell(f"python {HERE / 'standin' / 'materials.py'}", folder)
    assert code == 0, said
    (folder / "make.py").write_text("import sys; from robench.cli import main; main(sys.argv[1:])\n")
    for name, settings in TRAINED.items():
        sets = " ".join(f"--set {each}" for each in (*settings.split(), "stage.0.schedule.warmup=0"))
        code, said = shell(f"python make.py train {name} --out checkpoints/{name} {sets}", folder)
        assert code == 0, said
    attacks = "--attack pgd-20 --attack apgd-ce --attack square@queries=50"
    line = f"robench evaluate {' '.join(EVALUATED)} {attacks} --threat linf-8/255 --threat linf-16/255"
    code, said = shell(f"{line}\nrobench evaluate {' '.join(EVALUATED)} --attack pgd-20 --source all", folder)
    assert code == 0, said
    return folder


def prepared(page: str, standin: Path, folder: Path) -> Path:
    """A copy of what the page names, and results."""
    text = PAGES[page].read_text()
    if "from an empty folder" in text:
        return folder
    for name in TRAINED:
        asked = (command for block in blocks(page) for command in block.commands)
        if name in EVALUATED or any(re.search(rf"\b{name}\b(?!-)", command) for command in asked):
            shutil.copytree(standin / "checkpoints" / name, folder / "checkpoints" / name)
    for name in ("results", *MATERIALS):
        if name == "results" or name in text:
            if not (there := standin / name).exists():
                continue
            (shutil.copytree if there.is_dir() else shutil.copy)(there, folder / name)
    if "cifar10-c:" in text:
        shutil.copytree(standin / "CIFAR-10-C", folder / "data" / "CIFAR-10-C")
    return folder


def run(block: Block, shell: Shell, folder: Path, night: bool) -> list[str]:
    """Run a block; what went wrong."""
    if block.file:
        (folder / block.file).parent.mkdir(exist_ok=True)
        (folder / block.file).write_text(block.text)
    elif block.language == "python":
        (folder / "block.py").write_text(block.text)
    if block.language == "toml":
        tomllib.loads(block.text)
    failures = []
    for command in block.commands:
        packages = filter(None, block.marked("needs", command).split(" and "))
        absent = any(find_spec(package) is None for package in packages)
        if absent or block.marked("not run", command) or (block.marked("nightly", command) and not night):
            continue
        code, said = shell(command, folder)
        if code not in ((0, 1) if block.marked("may exit 1", command) else (0,)):
            failures.append(f"{block.place}: exit code {code}\n$ {command}\n{said}")
    return failures


def everything(page: str, shell: Shell, folder: Path, night: bool) -> None:
    """Run a page from its beginning to its end."""
    failures = [failure for block in blocks(page) for failure in run(block, shell, folder, night)]
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_page_runs(page: str, shell: Shell, standin: Path, tmp_path: Path) -> None:
    everything(page, shell, prepared(page, standin, tmp_path), night=False)


def nightly() -> list[str]:
    """Pages with commands that are run at night alone."""
    return [page for page in PAGES if any(mark[0] == "nightly" for block in blocks(page) for mark in block.marks)]


@pytest.mark.nightly
@pytest.mark.parametrize("page", nightly())
def test_every_command_of_the_page_runs_at_night(page: str, shell: Shell, standin: Path, tmp_path: Path) -> None:
    everything(page, shell, prepared(page, standin, tmp_path), night=True)
