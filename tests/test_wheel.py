"""Only the core dependencies: modules import without extras, and at night the wheel runs the demo in an empty environment."""

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

import robench
from robench.doctor import EXTRAS
from robench.recipe import names

ROOT = Path(__file__).parent.parent
# installs a finder that refuses what only extras bring, then runs what follows
CORE_ONLY = f"""
import sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {(*EXTRAS, "huggingface_hub", "onnx", "IPython", "pynvml")!r}:
            raise ImportError(f"no module named {{name}}", name=name)
sys.meta_path.insert(0, Refused())
"""
CALLED = "from robench.cli import main; main(sys.argv[1:])"


def core_only(code: str, *arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code where no extra can be imported."""
    env = {**os.environ, "PYTHONPATH": str(Path(robench.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CORE_ONLY + code, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.mark.timeout(900)
def test_every_module_imports_without_an_extra(tmp_path: Path) -> None:
    package = Path(robench.__file__).parent
    modules = [
        ".".join(("robench", *path.relative_to(package).with_suffix("").parts)).removesuffix(".__init__")
        for path in sorted(package.rglob("*.py"))
        if path.name != "__main__.py"
    ]
    assert len(modules) > 100
    ran = core_only(
        "import importlib\nfor name in sys.argv[1:]: importlib.import_module(name)", *modules, folder=tmp_path
    )
    assert ran.returncode == 0, ran.stderr


NEEDED = [  # what is asked for, and the extra that it takes
    ("evaluate --model timm:resnet18 --dataset digits --attack fgsm", "timm"),
    ("evaluate --model onnx:m.onnx --dataset digits --attack square", "onnx"),
    ("evaluate --model robustbench:Standard --dataset digits --attack fgsm", "robustbench"),
    ("evaluate --model my.py:net --dataset hf:mnist --attack fgsm", "hf"),
    ("evaluate --model my.py:net --dataset digits --attack torchattacks:FGSM", "torchattacks"),
    ("evaluate --model my.py:net --dataset digits --attack fgsm --track tensorboard", "tensorboard"),
    ("evaluate --model my.py:net --dataset digits --attack fgsm --track wandb", "wandb"),
    ("evaluate --model my.py:net --dataset digits --attack fgsm --track mlflow", "mlflow"),
    ("report --format html", "plot"),
    ("plot --out a.svg", "plot"),
    ("evaluate --attack fgsm --launcher local", "cluster"),
]


def prepared(folder: Path) -> Path:
    """A folder with a model, a file that is no network, and results."""
    code = "import torch\n\ndef net():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    (folder / "my.py").write_text(code)
    (folder / "m.onnx").write_bytes(b"")
    (folder / "results").symlink_to(ROOT / "results" / "reference" / "demo")
    return folder


@pytest.mark.timeout(900)
def test_what_an_extra_brings_is_named_with_its_line(tmp_path: Path) -> None:
    """All in one process, since importing torch takes long."""
    folder = prepared(tmp_path)
    code = """
from robench.cli import main
for line in sys.argv[1:]:
    try:
        main(line.split())
    except SystemExit as stopped:
        sys.stderr.write(f"exit {stopped.code}\\n")
"""
    ran = core_only(code, *(line for line, _ in NEEDED), folder=folder)
    said = re.split(r"exit (\d+)\n", ran.stderr)
    assert said[1::2] == ["2"] * len(NEEDED), ran.stderr
    for (line, extra), text in zip(NEEDED, said[::2], strict=False):
        assert re.search(rf"pip install ['\"]robench\[{extra}\]['\"]", text), f"{line}: {text}"


@pytest.mark.parametrize("line", ["--help", "list attacks", "list recipes", "report --format markdown"])
def test_the_everyday_commands_need_no_extra(line: str, tmp_path: Path) -> None:
    ran = core_only(CALLED, *line.split(), folder=prepared(tmp_path))
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout) > 500


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="needs hatchling, to build: pip install -e '.[dev]'")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT)], check=True)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_has_the_recipes_and_nothing_else_beside_the_package(wheel: Path) -> None:
    inside = zipfile.ZipFile(wheel).namelist()
    kept = [name for name in inside if ".dist-info/" not in name]
    assert all(name.startswith("robench/") for name in kept)
    recipes = {Path(name).stem for name in kept if name.endswith(".toml")}
    assert recipes == set(names())
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "robench").rglob("*.py")}
    assert {name for name in kept if name.endswith(".py")} == sources
    assert "robench/py.typed" in kept


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_the_wheel_runs_the_demo_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """Needs the package index, or its mirror; minutes, of which torch takes the most."""
    run([sys.executable, "-m", "venv", str(tmp_path / "venv")], tmp_path)
    binary = tmp_path / "venv" / "bin"
    run(
        [str(binary / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel)], tmp_path
    )
    said = run([str(binary / "robench"), "--help"], tmp_path)
    assert "robench evaluate --attack autoattack" in said
    assert "autoattack-bracket" in run([str(binary / "robench"), "list", "attacks"], tmp_path)
    told = run([str(binary / "robench"), "doctor"], tmp_path)
    for package, extra in EXTRAS.items():
        assert re.search(rf"absent +{package} +pip install 'robench\[{extra}\]'", told), told
    where = run([str(binary / "python"), "-c", "import robench; print(robench.__file__)"], tmp_path)
    assert where.startswith(str(tmp_path))
    said = run([str(binary / "robench"), "demo"], tmp_path)
    assert "White-box accuracy, digits, 240 test images" in said
    assert "Black-box transfer" in said
    run([str(binary / "robench"), "verify", "--check"], tmp_path)


def run(command: Sequence[str], folder: Path) -> str:
    """What a command prints, away from this checkout."""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    ran = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout
