"""The shape of the code: imports go downwards, light modules stay light, and only one file writes."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import robench

ROOT = Path(robench.__file__).parent
FILES = {
    ".".join(("robench", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}

# a module may import from lower layers, and from its own as long as no circle comes of it
LAYERS = (
    ("errors", "threat"),
    ("files", "spec", "names", "registry", "provenance", "protocols", "signals"),
    (
        *(
            "distributed",
            "noise",
            "device",
            "geometry",
            "losses",
            "door",
            "augment",
            "pixels",
            "data",
            "models",
            "recipe",
            "results",
        ),
        *("optimiser", "convex", "probe", "suite", "inference", "smoothed", "unlabelled", "meter", "tensors", "part"),
        *(
            "claim",
            "launch",
            "slurm",
            "watch",
            "inputs",
            "sealed",
            "outputs",
            "statistic",
            "fitting",
            "preprocess",
            "zoo",
            "blackbox",
            "gates",
            "twin",
            "winograd",
        ),
        *("arithmetic", "average", "stepping", "search", "bracket"),
    ),
    (
        "attacks",
        "diagnosis",
        "exhibits",
        "sameness",
        "signs",
        "standing",
        "doubt",
        "caption",
        "worst",
        "ranking",
        "seeds",
        "selection",
        "reference",
        "reporting",
        "panels",
        "perclass",
        "union",
        "paired",
        "figures",
        "gallery",
        "rendering",
        "publication",
        "entry",
        "comparison",
        "listing",
        "verification",
        "showing",
        "cost",
        "spending",
        "spending",
        "doctor",
        "leaderboard",
        "trackers",
        "notebook",
    ),
    ("methods",),
    (
        "checkpoint",
        "parallel",
        "run",
        "state",
        "keeping",
        "gain",
        "admission",
        "verdict",
        "indicators",
        "training",
        "job",
        "sharing",
        "planning",
        "evaluation",
        "launching",
        "handing",
        "trainings",
        "testing",
        "demo",
        "sweep",
        "pictures",
        "hub",
        "hub_model",
        "foreign",
        "checkup",
        "api",
        "embedding",
    ),
    ("terminal", "cli"),
    ("__main__",),
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
ORDERED = LAYERS[1]  # here each may import only what stands before it
LIGHT = (
    "errors",
    "threat",
    "files",
    "spec",
    "names",
    "registry",
    "provenance",
    "protocols",
    "signals",
    "notebook",
    "recipe",
    "inference",
    "suite",
    "results",
    "part",
    "claim",
    "launch",
    "slurm",
    "watch",
    "sealed",
    "statistic",
    "sameness",
    "signs",
    "standing",
    "doubt",
    "caption",
    "worst",
    "ranking",
    "seeds",
    "selection",
    "reference",
    "bracket",
    "diagnosis",
    "exhibits",
    "reporting",
    "panels",
    "perclass",
    "union",
    "paired",
    "figures",
    "gallery",
    *(
        f"rendering.{name}"
        for name in ("markdown", "csv", "latex", "json", "html", "drawing", "axes", "scatter", "look", "notebook")
    ),
    "publication",
    "entry",
    "comparison",
    "listing",
    "verification",
    "showing",
    "cost",
    "spending",
    "gates",
    "leaderboard",
    "trackers",
)


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere below a node, but for type checkers only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in node.orelse:
                yield from imports(other)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in FILES else str(node.module)
        else:
            yield from imports(node)


# `import robench` alone, for the version, is everybody's
GRAPH = {name: {i for i in imports(tree) if i in FILES} - {"robench"} for name, tree in TREES.items()}
EDGES = [(name, other) for name, others in GRAPH.items() for other in sorted(others)]


def part(module: str) -> str:
    """The word of the table a module belongs to: `robench.models.cnn` is `models`."""
    return module.split(".")[1]


def test_every_module_has_a_layer() -> None:
    assert {part(name) for name in FILES if name != "robench"} <= set(LAYER)


def test_the_package_itself_imports_nothing() -> None:
    assert set(imports(TREES["robench"])) == {"typing", "importlib"}


@pytest.mark.parametrize(("module", "other"), EDGES, ids=[f"{a}->{b}" for a, b in EDGES])
def test_imports_go_downwards(module: str, other: str) -> None:
    above, below = part(module), part(other)
    assert LAYER[above] >= LAYER[below]
    if above in ORDERED and below in ORDERED:
        assert ORDERED.index(above) > ORDERED.index(below)


def test_imports_form_no_circle() -> None:
    TopologicalSorter(GRAPH).prepare()  # raises CycleError, which names the circle


def test_only_the_command_line_uses_the_terminal() -> None:
    assert {part(name) for name, others in GRAPH.items() if "robench.terminal" in others} == {"cli"}


@pytest.mark.parametrize("library", ["pyautoattack", "torchattacks"])
def test_attack_libraries_are_imported_in_their_adapters_only(library: str) -> None:
    users = [name for name, tree in TREES.items() if library in {i.split(".")[0] for i in imports(tree)}]
    assert users
    assert all(part(name) == "attacks" for name in users)


EXTRAS = (
    "timm",
    "onnxruntime",
    "datasets",
    "huggingface_hub",
    "transformers",
    "robustbench",
    "tensorboard",
    "wandb",
    "mlflow",
)


@pytest.mark.parametrize(
    "library",
    ["pyautoattack", "torchattacks", "torchvision", "sklearn", "scipy", "statsmodels", "matplotlib", *EXTRAS],
)
def test_heavy_libraries_are_imported_when_used(library: str) -> None:
    # at the level of a module they would be paid for by whoever imports it
    for tree in TREES.values():
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert library not in {i.split(".")[0] for node in top for i in imports(ast.Module([node], []))}


def test_every_module_imports_without_the_extras() -> None:
    blocked = ("torchattacks", "matplotlib", *EXTRAS)
    names = [name for name in FILES if not name.endswith("__main__")]
    check = f"import sys, importlib; sys.modules.update(dict.fromkeys({blocked!r})); "
    check += f"[importlib.import_module(name) for name in {names!r}]"
    ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_light_modules_import_no_torch() -> None:
    names = [f"robench.{name}" for name in (*LIGHT, "terminal", "cli")]
    check = f"import sys, {', '.join(names)}; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in ran.stdout.split()}
    assert "robench" in loaded
    assert not loaded & {
        "torch",
        "torchvision",
        "numpy",
        "pandas",
        "sklearn",
        "scipy",
        "statsmodels",
        "pyautoattack",
        "torchattacks",
        "matplotlib",
    }


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the last part of what is called: `path.write_text(...)` is `write_text`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func).rsplit(".", 1)[-1], node


def argument(call: ast.Call, place: int, name: str) -> str:
    """The text of an argument, given by place or by name; empty when absent."""
    named = [ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == name]
    return named[0] if named else ast.unparse(call.args[place]) if place < len(call.args) else ""


UNPICKLERS = ("pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib")


def forbidden(name: str, call: ast.Call) -> str:
    """Why a call may stand nowhere in the package; nothing when it may."""
    whole = ast.unparse(call.func)
    # `nets.eval()` is torch's mode; a call of the builtin is a bare name
    if isinstance(call.func, ast.Name) and name in ("eval", "exec", "compile", "__import__"):
        return f"{name} runs text"
    if name in ("extractall", "unpack_archive") or (name == "extract" and call.args):
        return f"{name} writes where an archive says"
    if argument(call, 99, "shell") not in ("", "False") or whole in ("os.system", "os.popen"):
        return "a shell reads its text as a program"
    if argument(call, 99, "weights_only") not in ("", "True"):
        return "unpickling runs code"
    if whole == "torch.load" and argument(call, 99, "weights_only") != "True":
        return "torch.load without weights_only"
    if argument(call, 99, "allow_pickle") not in ("", "False"):
        return "unpickling runs code"
    if whole.split(".")[0] in UNPICKLERS or name == "read_pickle":
        return "unpickling runs code"
    return ""


CHANGES = ("unlink", "rmdir", "touch", "mkdir", "makedirs", "symlink_to", "hardlink_to", "rename", "rmtree", "truncate")
TEMPORARY = ("mkstemp", "mkdtemp", "NamedTemporaryFile", "TemporaryFile", "TemporaryDirectory")


def writes(name: str, call: ast.Call) -> str:
    """Why a call writes or takes away a file; nothing when it does not."""
    whole = ast.unparse(call.func)
    if name in ("write_text", "write_bytes", "to_json", "to_pickle", "tofile", *TEMPORARY, *CHANGES):
        return name
    if name == "replace" and "." in whole and len(call.args) == 1 and not call.keywords:
        return "Path.replace"  # that of a text has two arguments, and that of a dataclass is a bare name
    if whole.split(".")[0] == "shutil" or whole in ("os.open", "os.write", "os.replace", "os.remove", "np.save"):
        return whole
    if name == "savefig" and argument(call, 0, "fname") not in ("stream", "buffer"):
        return "savefig to a file"
    texts = [node.value for node in [*call.args, *(k.value for k in call.keywords)] if isinstance(node, ast.Constant)]
    modes = [
        text for text in texts if isinstance(text, str) and set(text) <= set("rwxabt+") and set(text) & set("wxa+")
    ]
    if name in ("open", "fdopen") and modes:
        return f"{name} {modes[0]}"
    if name in ("to_csv", "to_markdown", "to_html", "to_latex") and call.args:
        return f"{name} with a place to write to"
    if whole == "torch.save" and argument(call, 1, "f") not in ("stream", "buffer"):
        return "torch.save to a file"
    if name == "save_file":
        return "safetensors to a file"
    return ""


# the one that opens CIFAR's batches, once their digest fits, knows arrays and nothing else
@pytest.mark.parametrize("name", [name for name in FILES if name != "robench.data.archive"])
def test_nothing_imports_what_unpickles(name: str) -> None:
    assert not {found.split(".")[0] for found in imports(TREES[name])} & set(UNPICKLERS)


@pytest.mark.parametrize("name", FILES)
def test_nothing_starts_a_loader_of_data(name: str) -> None:
    assert not [whole for whole, _ in calls(TREES[name]) if whole.rsplit(".", 1)[-1] == "DataLoader"]


@pytest.mark.parametrize("name", FILES)
def test_nothing_runs_a_strangers_text(name: str) -> None:
    assert not [
        f"line {call.lineno}: {why}" for call_name, call in calls(TREES[name]) if (why := forbidden(call_name, call))
    ]


@pytest.mark.parametrize("name", [name for name in FILES if name != "robench.files"])
def test_only_one_file_writes(name: str) -> None:
    assert not [
        f"line {call.lineno}: {why}" for call_name, call in calls(TREES[name]) if (why := writes(call_name, call))
    ]


@pytest.mark.parametrize(
    "text",
    [
        *("eval(x)", "exec(x)", "a.extractall()", "a.extract(m)", "f(shell=True)", "os.system(x)", "pickle.load(s)"),
        *("torch.load(p)", "g(weights_only=False)", "np.load(p, allow_pickle=True)", "pandas.read_pickle(p)"),
    ],
)
def test_the_lint_finds_what_it_looks_for(text: str) -> None:
    assert any(forbidden(*found) for found in calls(ast.parse(text)))


@pytest.mark.parametrize(
    "text",
    [
        "open(p, 'w')",
        "p.open('wb')",
        "p.write_text(t)",
        "t.to_csv(p)",
        "torch.save(x, path)",
        "open(p, mode='a')",
        "os.fdopen(h, 'wb')",
        "figure.savefig(path)",
        "path.unlink()",
        "folder.mkdir()",
        "os.replace(a, b)",
        "a.replace(b)",
        "shutil.copy(a, b)",
        "tempfile.TemporaryDirectory()",
    ],
)
def test_the_lint_finds_what_writes(text: str) -> None:
    assert any(writes(*found) for found in calls(ast.parse(text)))


@pytest.mark.parametrize(
    "text",
    [
        "nets.eval()",
        "p.open()",
        "open(p)",
        "Image.open(path)",
        "t.to_csv(index=False)",
        "torch.save(x, stream)",
        "f.savefig(stream)",
        "text.replace('a', 'b')",
        "replace(stage, batch=2)",
    ],
)
def test_the_lint_lets_the_rest_stand(text: str) -> None:
    assert not any(forbidden(*found) or writes(*found) for found in calls(ast.parse(text)))
