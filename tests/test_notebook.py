"""Progress in notebooks: by a stand-in for IPython, and at night in a real kernel."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import robench
from robench.notebook import EVERY, watching
from robench.protocols import Progress, unwatched

ROOT = Path(robench.__file__).parent.parent


class Cell:
    """What stands below a cell of a notebook, drawing by drawing."""

    def __init__(self) -> None:
        self.drawn: list[dict[str, str]] = []

    def display(self, data: dict[str, str], *, raw: bool, display_id: bool) -> "Cell":
        assert raw
        assert display_id
        assert not self.drawn, "one display, which is updated"
        self.update(data, raw=True)
        return self

    def update(self, data: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.drawn.append(dict(data))


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Cell:
    made, ipython, display = Cell(), ModuleType("IPython"), ModuleType("IPython.display")
    shell = type("Shell", (), {"kernel": object()})()
    ipython.get_ipython = lambda: shell  # type: ignore[attr-defined]
    display.display = made.display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return made


def ticks(*times: float) -> Any:
    return iter(times).__next__


def test_bars_are_drawn_in_place_and_not_too_often(cell: Cell) -> None:
    clock = ticks(0.0, EVERY / 2, EVERY, EVERY * 1.1, EVERY * 1.2)
    monitor = watching(clock)
    for done in (1, 2, 3, 4):
        monitor(Progress("a <b>", done, 4, {"ce": "0.5", "cell": ""}))
    monitor(Progress("other", 1, 2))
    assert [data["text/plain"] for data in cell.drawn] == [
        "a <b>: 25 %  ce 0.5  cell",
        "a <b>: 75 %  ce 0.5  cell",
        "a <b>: 100 %  ce 0.5  cell",
        "a <b>: 100 %  ce 0.5  cell\nother: 50 %",
    ]
    assert all("<b>" not in data["text/html"] for data in cell.drawn)
    assert 'value="0.5000"' in cell.drawn[-1]["text/html"]


def test_outside_a_notebook_nothing_is_drawn(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: None)
    assert watching() is unwatched
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", object)  # a shell in a terminal has no kernel
    assert watching() is unwatched
    monkeypatch.delitem(sys.modules, "IPython")
    assert watching() is unwatched


def test_train_and_evaluate_draw(cell: Cell, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    robench.evaluate(model, "digits", "pgd-3", threats="linf-0.1", count=20)
    assert cell.drawn[-1]["text/plain"].startswith("evaluate: 100 %")
    cell.drawn.clear()
    robench.train("standard-digits", steps=2, folder=tmp_path / "run", device="cpu")
    assert "100 %" in cell.drawn[-1]["text/plain"]
    cell.drawn.clear()
    robench.evaluate(model, "digits", "pgd-3", threats="linf-0.1", count=20, monitor=unwatched)
    assert not cell.drawn


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_the_pages_examples_run_in_a_notebook(tmp_path: Path) -> None:
    """In a process of its own, since a kernel brings threads and sockets along."""
    pytest.importorskip("nbclient", reason="needs nbclient and ipykernel: pip install -e '.[dev]'")
    pytest.importorskip("ipykernel", reason="needs nbclient and ipykernel: pip install -e '.[dev]'")
    outputs = list(run(tmp_path))
    first, second = outputs[1:]
    assert any(output["output_type"] == "stream" and "White-box accuracy" in output["text"] for output in first)
    bars = [output for output in second if "<progress" in output.get("data", {}).get("text/html", "")]
    assert len(bars) == 2, "one for training, one for evaluation"
    assert all("100 %" in output["data"]["text/plain"] for output in bars)
    assert "robust_accuracy" in second[-1]["data"]["text/plain"]
    (shown,) = outputs[0]
    assert "<table><caption>White-box accuracy" in shown["data"]["text/html"]


def run(folder: Path) -> Iterator[list[dict[str, Any]]]:
    """The outputs of a notebook of a table, and of the page's two blocks."""
    import subprocess

    from documented import blocks

    kept = ROOT / "results" / "reference" / "demo"
    sources = [f"import robench\nrobench.report({str(kept)!r})"]
    sources += [block.text for block in blocks("docs/python.md") if block.language == "python"]
    code = """
import json, sys
import nbformat
from nbclient import NotebookClient
cells = [nbformat.v4.new_code_cell(source) for source in json.loads(sys.stdin.read())]
book = nbformat.v4.new_notebook(cells=cells)
NotebookClient(book, timeout=600, kernel_name="python3").execute()
print(json.dumps([cell.outputs for cell in book.cells]))
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    ran = subprocess.run(
        command, cwd=folder, env=env, input=json.dumps(sources), capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    yield from json.loads(ran.stdout.splitlines()[-1])
