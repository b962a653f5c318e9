"""`robench verify`: whatever is changed in a folder of results is found and named; an untouched one passes."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_results import CELL, LINF, SUBJECT, failure, result

from robench import diagnosis
from robench.files import sha256
from robench.results import Store
from robench.spec import digest
from robench.verification import absent, inconsistent, verify

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = Store(tmp_path / "results")
    store.put(result())
    store.put(result(replace(CELL, attack="fgsm")))
    return store.folder


def test_an_untouched_folder_passes(folder: Path) -> None:
    checks, records = verify(folder)
    assert [check for check in checks if check.wrong] == []
    assert len(records) == 2


@pytest.mark.parametrize("place", range(40, 1000, 97))
def test_any_changed_byte_is_found(folder: Path, place: int, run_cli: Cli) -> None:
    path = sorted(folder.glob("cells/*.json"))[0]
    content = bytearray(path.read_bytes())
    while not chr(content[place]).isalnum():
        place += 1
    content[place] = ord("0") if content[place] != ord("0") else ord("1")
    path.write_bytes(content)
    code, out, _ = run_cli("verify", folder)
    assert code == 1
    assert path.name in out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clean": (False,) * 11}, "5 images are robust that were wrong"),
        ({"largest": 0.04}, "largest perturbation"),
        ({"largest": -1.0}, "largest perturbation"),
        ({"seconds": -1.0}, "negative cost"),
        ({"subject": replace(SUBJECT, sha256="e" * 64)}, "not the checkpoint"),
        ({"source": SUBJECT}, "not that of its cell"),
        ({"norms": (0.0,) * 11}, "image 0 is right when clean"),
    ],
)
def test_numbers_that_cannot_be_are_named(changes: dict[str, Any], words: str) -> None:
    (text,) = inconsistent(result(**changes))
    assert words in text
    assert inconsistent(result()) == []


def test_two_values_for_one_cell_are_both_named(folder: Path, tmp_path: Path) -> None:
    other = Store(tmp_path / "other")
    other.put(result(robust=4))
    shutil.copytree(other.folder / "cells", folder / "cells" / "machine-2")
    wrong = [text for check in verify(folder)[0] for text in check.wrong]
    assert len(wrong) == 1
    assert str(Store(folder).path(CELL)) in wrong[0]
    assert "machine-2" in wrong[0]
    assert "5 robust images there, 4 now" in wrong[0]


def test_missing_cells_failures_flags_and_leftovers_are_told_and_not_wrong(folder: Path, run_cli: Cli) -> None:
    store = Store(folder)
    other = replace(SUBJECT, name="other", sha256="e" * 64)
    store.put(result(replace(CELL, checkpoint="e" * 64), subject=other, notes=("flag: zero gradients",)))
    store.put(failure(replace(CELL, attack="square")))
    (folder / "cells" / ".writing-x").touch()
    code, out, _ = run_cli("verify", folder)
    assert code == 0
    for words in ("other: fgsm", "the attack left the ball", "flag: zero gradients", ".writing-x"):
        assert words in out


def test_diagnoses_are_looked_at(folder: Path, run_cli: Cli) -> None:
    rows = (diagnosis.Row("G1", "zero", 1.0, "rule", "fail", "seen"),)
    made = diagnosis.Diagnosis(SUBJECT.sha256, "rocl", CELL.threat, CELL.data, 11, 9, 0, (), rows)
    path = diagnosis.put(made, folder)
    code, out, _ = run_cli("verify", folder)
    assert code == 0
    assert "G1 failed" in out
    code, out, _ = run_cli("report", "--results", folder, "--format", "markdown")
    assert "rocl !" in out
    path.write_text(path.read_text().replace('"fail"', '"pass"'))
    code, out, _ = run_cli("verify", folder)
    assert code == 1
    assert path.name in out


def test_the_grid_of_a_transfer_leaves_out_a_model_on_itself() -> None:
    other = replace(SUBJECT, name="other", sha256="e" * 64)
    crossed = result(replace(CELL, source="e" * 64), source=other)
    own = result(replace(CELL, checkpoint="e" * 64), subject=other)
    assert absent([result(), crossed, own]) == []
    assert len(absent([crossed, own])) == 1


@pytest.mark.parametrize("form", ["markdown", "csv", "terminal"])
def test_a_table_is_derived_again_and_its_first_changed_line_named(folder: Path, form: str, run_cli: Cli) -> None:
    out = folder / "table.txt"
    assert run_cli("report", "--results", folder, "--format", form, "--out", out)[0] == 0
    assert run_cli("verify", folder, "--check")[0] == 0
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join([*lines[:1], "x" + lines[1], *lines[2:]]))
    code, text, _ = run_cli("verify", folder, "--check")
    assert code == 1
    assert "table.txt, line 2" in text
    out.unlink()
    assert run_cli("verify", folder, "--check")[0] == 1
    assert run_cli("verify", folder)[0] == 0  # tables are looked at only when asked


def test_a_new_record_makes_an_old_table_wrong(folder: Path, run_cli: Cli) -> None:
    run_cli("report", "--results", folder, "--format", "csv", "--out", folder / "cells.csv")
    Store(folder).put(result(replace(CELL, attack="cw")))
    assert run_cli("verify", folder, "--check")[0] == 1


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"a.md": {}}', '{"../a.md": {"form": "csv", "table": "all", "dataset": null}}']
)
def test_a_bad_manifest_is_wrong(folder: Path, content: str, run_cli: Cli) -> None:
    (folder / "tables.json").write_text(content)
    assert run_cli("verify", folder, "--check")[0] == 1


def test_a_table_nobody_listed_is_told(folder: Path, run_cli: Cli) -> None:
    (folder / "mine.md").write_text("99.9")
    code, out, _ = run_cli("verify", folder, "--check")
    assert code == 0
    assert "mine.md is not listed" in out


def test_weights_are_compared_with_what_vouches_for_them(folder: Path, tmp_path: Path, run_cli: Cli) -> None:
    run = tmp_path / "checkpoints" / "rocl"
    run.mkdir(parents=True)
    (run / "last.safetensors").write_bytes(b"weights")
    (run / "last.json").write_text(json.dumps({"sha256": sha256(b"weights")}))
    code, out, _ = run_cli("verify", folder, "--checkpoints", run.parent)
    assert code == 0
    assert "its weights are not in" in out
    (run / "last.safetensors").write_bytes(b"weightz")
    assert run_cli("verify", folder, "--checkpoints", run.parent)[0] == 1


def test_an_empty_folder_says_what_to_do(tmp_path: Path, run_cli: Cli) -> None:
    code, _, err = run_cli("verify", tmp_path)
    assert code == 2
    assert "robench evaluate" in err


def test_a_sealed_lie_is_still_found(folder: Path) -> None:
    # whoever edits a record and seals it again still has to make its numbers agree
    path = Store(folder).path(CELL)
    table = json.loads(path.read_bytes())
    del table["digest"]
    table["largest"] = 1.0
    path.write_text(json.dumps({**table, "digest": digest(table)}))
    wrong = [text for check in verify(folder)[0] for text in check.wrong]
    assert len(wrong) == 1
    assert f"eps is {LINF.eps:.6g}" in wrong[0]
