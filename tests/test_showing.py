"""`robench show`: a record in words that say what it holds, and pictures that are what the record claims."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_results import CELL, SUBJECT, failure, result

from robench import pictures
from robench.errors import UsageError
from robench.results import Result, Store
from robench.showing import broken, find, words
from robench.spec import digest

Cli = Callable[..., tuple[int, str, str]]


def test_the_words_hold_what_the_record_holds() -> None:
    record = result(notes=("flag: zero gradients", "one draw"), peak_memory=3 * 2**20, joules=12.0)
    text = words(record)
    for part in (
        *(
            CELL.key,
            "rocl",
            "self-supervised",
            "pgd-20",
            "steps 20",
            "linf-8/255",
            "white-box",
            CELL.data,
            CELL.checkpoint,
        ),
        *("81.8 % (9 of 11)", "45.5 % (5 of 11)", "231 images forward", "220 backward", "3 MiB", "12 J"),
        *("flag", "zero gradients", "one draw", "4: 5 6 7 8", "--count 11"),
    ):
        assert part in text


def test_what_was_not_measured_is_said() -> None:
    assert "peak memory not measured" in words(result())
    assert "energy not measured" in words(result())


def test_a_failure_and_a_transfer_are_explained() -> None:
    assert "the attack left the ball" in words(failure())
    other = replace(SUBJECT, name="other\x1b[31m", sha256="e" * 64)
    text = words(result(replace(CELL, source="e" * 64), source=other))
    assert "\x1b" not in text
    assert "--source" in text


def test_broken_images_are_right_when_clean() -> None:
    assert broken(result(robust=9)) == []
    assert broken(result(robust=5)) == [5, 6, 7, 8]


def test_cells_are_found_by_prefix_or_path(tmp_path: Path) -> None:
    store = Store(tmp_path)
    records = [result(replace(CELL, seed=seed)) for seed in range(20)]
    for record in records:
        store.put(record)
    for record in records:
        assert find(tmp_path, record.cell.key) == record
        assert find(tmp_path, str(store.path(record.cell))) == record
    with pytest.raises(UsageError, match="begins 20 keys"):
        find(tmp_path, "")
    key = records[0].cell.key
    with pytest.raises(UsageError, match=f"Did you mean {key}"):
        find(tmp_path, key[:-1] + ("0" if key[-1] != "0" else "1"))
    with pytest.raises(UsageError, match="no record"):
        find(tmp_path, "none.json")


def test_the_grid_shows_clean_adversarial_and_difference() -> None:
    clean = torch.full((2, 3, 8, 8), 0.5)
    adv = clean.clone()
    adv[:, :, 0, 0] += 0.1
    adv[:, :, 1, 1] -= 0.05
    shown = Image.open(io.BytesIO(pictures.grid(clean, adv)))
    side = 8 * pictures.SCALE
    assert shown.size == (3 * side + 2 * pictures.GAP, 2 * side + pictures.GAP)
    third = 2 * (side + pictures.GAP)
    assert shown.getpixel((0, 0)) == (128,) * 3
    assert shown.getpixel((side + pictures.GAP, 0)) == (153,) * 3
    assert shown.getpixel((third, 0)) == (255,) * 3
    assert shown.getpixel((third + pictures.SCALE, pictures.SCALE)) == (64,) * 3


@pytest.mark.parametrize("attack", ["pgd-20", "fgsm"])
def test_pictures_are_of_images_that_fall_again(trained: Path, tmp_path: Path, attack: str, run_cli: Cli) -> None:
    folder, out = tmp_path / "results", tmp_path / "broken.png"
    where = ("--checkpoints", trained, "--results", folder)
    asked = ("--attack", attack, "--threat", "linf-0.2", "--count", 40, "--device", "cpu")
    assert run_cli("evaluate", "standard-digits", *asked, *where)[0] == 0
    (record,) = Store(folder).records()
    code, text, told = run_cli("show", record.cell.key[:6], "--images", 3, "--out", out, "--device", "cpu", *where)
    assert code == 0, told
    assert "all of them are broken again" in told
    assert record.cell.key in text
    assert Image.open(io.BytesIO(out.read_bytes())).format == "PNG"


def test_a_record_that_claims_too_much_is_found_out(trained: Path, tmp_path: Path, run_cli: Cli) -> None:
    folder = tmp_path / "results"
    where = ("--checkpoints", trained, "--results", folder)
    asked = ("--attack", "pgd-20", "--threat", "linf-0.001", "--count", 20, "--device", "cpu")
    run_cli("evaluate", "pgd-at-digits", *asked, *where)
    (record,) = Store(folder).records()
    assert isinstance(record, Result)
    assert any(record.robust)
    path = Store(folder).path(record.cell)
    table = json.loads(path.read_bytes())
    del table["digest"]
    table["robust"] = "AAAA"
    path.write_text(json.dumps({**table, "digest": digest(table)}))
    code, _, told = run_cli("show", path, "--images", 2, "--out", tmp_path / "x.png", "--device", "cpu", *where)
    assert code == 1
    assert "NOT broken again" in told
    code, _, told = run_cli(
        "show", path, "--images", 2, "--out", tmp_path / "x.png", "--checkpoints", tmp_path / "results"
    )
    assert code == 2
    assert "no checkpoint in" in told
