"""The store: what is put is what is got, and neither a crash, an edit nor another process can change that quietly."""

import dataclasses
import errno
import json
import multiprocessing
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from robench import files
from robench.errors import StoreError
from robench.inference import Inference
from robench.results import Cell, Failure, Result, Store, Subject, column, pack, safe, unpack
from robench.spec import digest
from robench.threat import Norm, ThreatModel

LINF = ThreatModel.parse("linf-8/255")

CELL = Cell(
    checkpoint="c" * 64,
    source="",
    attack="pgd-20",
    version=1,
    options={"steps": 20, "step": None, "loss": "ce"},
    threat=LINF,
    data="d" * 64,
    count=11,
    seed=0,
)
SUBJECT = Subject("rocl", "rocl", "self-supervised", LINF, 0, "cifar10", CELL.checkpoint)


def result(cell: Cell = CELL, robust: int = 5, **changes: Any) -> Result:
    """A result of which the first images are robust."""
    fields: dict[str, Any] = {
        "cell": cell,
        "subject": SUBJECT,
        "source": None,
        "clean": tuple(i < 9 for i in range(cell.count)),
        "robust": tuple(i < robust for i in range(cell.count)),
        "largest": 8 / 255,
        "seconds": 1.5,
        "forwards": 231,
        "backwards": 220,
        "notes": ("targets 9 classes, all there are",),
        "provenance": {"robench": "0", "threads": 1, "command": ["robench", "evaluate"]},
    }
    return Result(**{**fields, **changes})


def failure(cell: Cell = CELL, reason: str = "the attack left the ball") -> Failure:
    return Failure(cell, SUBJECT, None, reason, {"threads": 1})


# bits


@given(bits=st.lists(st.booleans(), max_size=200))
@settings(deadline=None, derandomize=True)
def test_bits_survive_packing(bits: list[bool]) -> None:
    assert unpack(pack(bits), len(bits)) == tuple(bits)


def test_the_first_bit_is_the_highest() -> None:
    # the format is written down, so that others can read it: 0x80, and 0x01 0x80
    assert pack([True]) == "gA=="
    assert pack([False] * 7 + [True, True]) == "AYA="


@given(bits=st.lists(st.booleans(), max_size=40), count=st.integers(0, 60))
@settings(deadline=None, derandomize=True)
def test_another_number_of_bytes_is_refused(bits: list[bool], count: int) -> None:
    if -(-len(bits) // 8) != -(-count // 8):
        with pytest.raises(ValueError, match="cannot hold exactly"):
            unpack(pack(bits), count)


@pytest.mark.parametrize("text", ["gA", "g?==", "gA==\n", "é"])
def test_text_that_is_not_base64_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        unpack(text, 1)


# round trips

NAMES = st.text(max_size=20)
FLOATS = st.floats(0, 1e6, allow_nan=False)
THREATS = st.builds(ThreatModel, st.sampled_from(Norm), st.floats(0, 1))
SUBJECTS = st.builds(Subject, NAMES, NAMES, NAMES, st.none() | THREATS, st.integers(0), NAMES, NAMES)
OPTIONS = st.dictionaries(NAMES, st.none() | st.booleans() | st.integers() | FLOATS | NAMES, max_size=3)
CELLS = st.builds(
    Cell, NAMES, NAMES, NAMES, st.integers(), OPTIONS, THREATS, NAMES, st.integers(1, 20), st.integers(0, 2**63)
)


@st.composite
def records(draw: st.DrawFn) -> Result | Failure:
    cell = draw(CELLS)
    subjects = draw(SUBJECTS), draw(st.none() | SUBJECTS)
    if draw(st.booleans()):
        return Failure(cell, *subjects, draw(NAMES), draw(OPTIONS))
    bits = st.lists(st.booleans(), min_size=cell.count, max_size=cell.count).map(tuple)
    notes = tuple(draw(st.lists(NAMES, max_size=2)))
    counts = draw(st.integers(0)), draw(st.integers(0))
    norms = draw(st.none() | st.lists(st.none() | FLOATS, min_size=cell.count, max_size=cell.count).map(tuple))
    left = draw(st.dictionaries(NAMES, st.integers(0), max_size=3))
    largest, seconds = draw(FLOATS), draw(FLOATS)
    return Result(cell, *subjects, draw(bits), draw(bits), largest, seconds, *counts, notes, draw(OPTIONS), norms, left)


def test_the_median_norm_is_that_of_images_right_when_clean() -> None:
    found = replace(result(), clean=(True, True, True, False), robust=(False,) * 4, norms=(0.5, None, 0.25, 0.0))
    assert found.median_norm == 0.5
    assert replace(found, norms=None).median_norm is None
    assert replace(found, norms=(None, None, 0.25, 0.0)).median_norm == float("inf")


def test_norms_of_another_number_of_images_are_damage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(replace(result(), norms=(0.5,) * 9))
    with pytest.raises(StoreError, match="9 norms for"):
        store.get(result().cell)


@given(record=records())
@settings(deadline=None, derandomize=True, max_examples=50)
def test_any_record_comes_back_as_it_was(record: Result | Failure, tmp_path_factory: pytest.TempPathFactory) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    store.put(record)
    assert store.get(record.cell) == record
    assert list(store.records()) == [record]


def test_equal_records_are_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Store(tmp_path / name).put(result())
    path = Store(Path()).path(CELL)
    assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()


def test_what_was_never_asked_is_none(tmp_path: Path) -> None:
    assert Store(tmp_path).get(CELL) is None


# keys

OTHERS: dict[str, Any] = {
    "checkpoint": "e" * 64,
    "source": "e" * 64,
    "attack": "pgd-50",
    "version": 2,
    "options": {**CELL.options, "steps": 50},
    "threat": ThreatModel.parse("l2-8/255"),
    "data": "e" * 64,
    "count": 12,
    "seed": 1,
    "inference": Inference(draws=10),
    "precision": "bfloat16",
}


def test_every_field_of_a_cell_decides_its_key() -> None:
    assert set(OTHERS) == {field.name for field in dataclasses.fields(Cell)}
    keys = {CELL.key, *(replace(CELL, **{name: value}).key for name, value in OTHERS.items())}
    assert len(keys) == 1 + len(OTHERS)


def test_the_key_does_not_depend_on_the_order_of_options() -> None:
    assert replace(CELL, options=dict(reversed(CELL.options.items()))).key == CELL.key


def test_the_key_is_the_same_on_every_machine() -> None:
    # a change of this text makes every stored result unknown: raise FORMAT with it
    assert CELL.key == "fb94ff11c3c901e7838bcad207f0fe33"


def test_a_cell_that_looks_once_is_written_as_before_there_was_inference(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(result())
    written = json.loads(store.path(CELL).read_text())["cell"]
    assert not {"inference", "precision"} & set(written)
    assert CELL.inference is None


def test_a_search_in_another_precision_comes_back(tmp_path: Path) -> None:
    store, cell = Store(tmp_path), replace(CELL, precision="float16")
    store.put(replace(result(), cell=cell))
    found = store.get(cell)
    assert found is not None
    assert found.cell == cell
    assert store.get(CELL) is None


@pytest.mark.parametrize(
    "change", [{"draws": 29}, {"average": "votes"}, {"adaptive": True}, {"augment": {"area": 0.5}}], ids=str
)
def test_how_a_checkpoint_answers_decides_the_key_and_comes_back(change: dict[str, Any], tmp_path: Path) -> None:
    cell, other = (replace(CELL, inference=Inference(**options)) for options in ({}, change))
    assert len({CELL.key, cell.key, other.key}) == 3
    store = Store(tmp_path)
    store.put(result(other))
    assert store.get(other) == result(other)
    assert store.get(cell) is None


# damage


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.update(robust=pack([True] * 11)),
        lambda table: table.update(largest=0.0),
        lambda table: table["cell"].update(seed=1),
        lambda table: table["subject"].update(name="better"),
        lambda table: table.pop("digest"),
        lambda table: table.update(digest="0" * 64),
        lambda table: table.update(extra=1),
        lambda table: table.update(kind="failure"),
        lambda table: table.pop("cell"),
    ],
)
def test_an_edited_record_is_noticed(change: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(result())
    edit(store.path(CELL), change)
    for read in (lambda: store.get(CELL), lambda: list(store.records()), lambda: store.put(result())):
        with pytest.raises(StoreError, match=r"\.json is damaged: .*Move it away"):
            read()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"3", b"\xff\xfe", b"{}", b'{"digest": NaN}'])
def test_a_file_that_is_no_record_is_noticed(content: bytes, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(result())
    store.path(CELL).write_bytes(content)
    with pytest.raises(StoreError, match="is damaged") as caught:
        store.get(CELL)
    assert "\n" not in str(caught.value)


def test_a_record_under_another_name_is_noticed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(result())
    store.path(CELL).rename(store.path(replace(CELL, seed=1)))
    with pytest.raises(StoreError, match=f"describes the cell {CELL.key}: rename it to {CELL.key}.json"):
        store.get(replace(CELL, seed=1))


def test_an_empty_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no results in .*: robench evaluate --attack pgd-20, or robench demo"):
        list(Store(tmp_path / "absent").records())


# putting twice


@pytest.mark.parametrize(
    ("norms", "said"),
    [
        ((0.0, 0.5004, None), ""),  # what rounding does on another machine
        ((0.0, 0.51, None), "5 robust images there, 5 now, and image 1 is broken at 0.5 there, at 0.51 now"),
        ((0.0, 0.5, 2.0), "image 2 is broken at None there, at 2.0 now"),
        ((0.01, 0.5, None), "image 0 is broken at 0.0 there, at 0.01 now"),
        (None, "only one has the norms of single images"),
    ],
)
def test_norms_are_part_of_what_two_results_must_agree_on(
    norms: tuple[float | None, ...] | None, said: str, tmp_path: Path
) -> None:
    rest = (None,) * (CELL.count - 3)
    store = Store(tmp_path)
    store.put(result(norms=(0.0, 0.5, None, *rest)))
    other = result(norms=None if norms is None else (*norms, *rest))
    if said:
        with pytest.raises(StoreError, match=said):
            store.put(other)
    else:
        store.put(other)
    assert store.get(CELL) == result(norms=(0.0, 0.5, None, *rest))


def test_the_same_result_may_be_put_twice(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(result())
    store.put(result(seconds=99.0))
    assert store.get(CELL) == result()


@pytest.mark.parametrize("other", [{"robust": 4}, {"clean": (True,) * 11}], ids=["robust", "clean"])
def test_other_bits_for_the_same_cell_are_a_contradiction(other: dict[str, Any], tmp_path: Path) -> None:
    # equal cells have equal results, so one of the two is wrong and a person must look
    store = Store(tmp_path)
    store.put(result())
    with pytest.raises(StoreError, match=r"holds another result for the same cell: 5 robust .* [45] now"):
        store.put(result(**other))
    assert store.get(CELL) == result()


def test_a_result_replaces_a_failure(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(failure())
    store.put(failure(reason="another"))
    assert store.get(CELL) == failure(reason="another")
    store.put(result())
    assert store.get(CELL) == result()


def test_a_failure_does_not_replace_a_result(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(result())
    store.put(failure())
    assert store.get(CELL) == result()


# many writers


def put_some(folder: Path, seeds: list[int]) -> None:
    for seed in seeds:
        Store(folder).put(result(replace(CELL, seed=seed)))


@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_many_writers_lose_nothing(kind: str, tmp_path: Path) -> None:
    if kind == "processes":
        pool: Any = ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn"))
    else:
        pool = ThreadPoolExecutor(8)
    with pool:
        # overlapping, so that some records are written by two at once
        tasks = [pool.submit(put_some, tmp_path, list(range(4 * i, 4 * i + 8))) for i in range(8)]
        for task in tasks:
            task.result()
    found = list(Store(tmp_path).records())
    assert sorted(record.cell.seed for record in found) == list(range(36))
    assert all(record == result(record.cell) for record in found)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json"}


# whole files or none


def test_a_full_disk_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.put(failure())

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"cannot write .*No space left on device.*make room"):
        store.put(result())
    assert store.get(CELL) == failure()
    assert [path.name for path in (tmp_path / "cells").iterdir()] == [f"{CELL.key}.json"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write(tmp_path / "weights", b"many bytes")
    assert not list(tmp_path.iterdir())


def test_nothing_is_replaced_before_it_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    fsync, move = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("fsync"), fsync(handle)))
    monkeypatch.setattr(Path, "replace", lambda path, to: (events.append("replace"), move(path, to))[1])
    files.write(tmp_path / "file", b"content")
    assert events == ["fsync", "replace", "fsync"]
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot write"):
        Store(tmp_path / "file").put(result())


# names for people


def test_a_column_is_attack_and_threat() -> None:
    assert column("pgd-20", LINF) == "pgd-20 linf-8/255"


@given(text=st.text())
@example("a\u2028b\u2029c")  # the line and paragraph separators of Unicode
@example("a\x85b\x1b[31mc")
@example("a\udcffb")  # what a file name that is not UTF-8 becomes
@settings(deadline=None, derandomize=True)
def test_a_safe_name_is_one_line_that_can_be_seen(text: str) -> None:
    shown = safe(text)
    assert len(shown.encode().decode().splitlines()) <= 1
    assert not any(character in shown for character in "\x1b\x00\x07\r\n\u2028\u202e\u2066\u200f")


def test_a_harmless_name_stays_as_it_is() -> None:
    assert safe("rocl-größe 数字 [x]_y.z@last") == "rocl-größe 数字 [x]_y.z@last"


# formats and copies


def test_a_record_of_the_first_format_opens_as_it_was() -> None:
    # the committed file was written by the version before memory and energy were measured
    (old,) = Store(Path(__file__).parent / "golden" / "store-format-1").records()
    assert replace(old, provenance=result().provenance) == result()
    assert isinstance(old, Result)
    assert (old.peak_memory, old.joules) == (None, None)


@pytest.mark.parametrize("number", [0, 3, "2", None])
def test_an_unknown_format_is_named(tmp_path: Path, number: object) -> None:
    store = Store(tmp_path)
    store.put(result())
    table = json.loads(store.path(CELL).read_bytes())
    del table["digest"]
    table["format"] = number
    store.path(CELL).write_text(json.dumps({**table, "digest": digest(table)}))
    with pytest.raises(StoreError, match=re.escape(repr(number))):
        list(store.records())


def test_stores_merge_by_copying_their_files_together(tmp_path: Path) -> None:
    cells = [replace(CELL, seed=seed) for seed in range(4)]
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    for store, part in ((one, cells[:3]), (two, cells[2:])):
        for cell in part:
            store.put(result(cell))
    shutil.copytree(two.folder, one.folder, dirs_exist_ok=True)
    assert {record.cell.key for record in one.records()} == {cell.key for cell in cells}
    assert all(one.get(cell) == result(cell) for cell in cells)
