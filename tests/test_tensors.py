"""Files from strangers: what is whole opens to the same numbers, and nothing else opens, runs, or takes memory."""

import io
import json
import os
import pickle
import random
import resource
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from robench import files, recipe, tensors
from robench.checkpoint import Checkpoint, nets_after, open_checkpoint, save
from robench.errors import CheckpointError, RobenchError, UsageError
from robench.spec import build, plain

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([1.0, -2.0]), "n": torch.tensor(3)}


def pt(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def names(content: bytes) -> list[str]:
    return zipfile.ZipFile(io.BytesIO(content)).namelist()


def repacked(content: bytes, change: Callable[[str, bytes], bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    """An archive whose members were changed, with checksums that fit."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w", kind) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return stream.getvalue()


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.marker}",)


def one_line(error: RobenchError) -> None:
    assert "\n" not in str(error)


# what is whole opens


@pytest.mark.parametrize(
    "content",
    [
        save_tensors(TENSORS),
        pt(TENSORS),
        pt({"state_dict": TENSORS, "epoch": 3}),
        pt({"model": TENSORS}),
        pt({key: nn.Parameter(t, requires_grad=False) for key, t in TENSORS.items()}),
    ],
    ids=["safetensors", "pt", "nested", "model", "parameters"],
)
def test_weights_open(content: bytes, tmp_path: Path) -> None:
    assert same(tensors.read(content, "it"), TENSORS)
    path = tmp_path / "weights"
    path.write_bytes(content)
    assert same(tensors.read_file(path, files.sha256(content)), TENSORS)


def test_another_digest_is_refused_before_anything_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(pt(TENSORS))
    monkeypatch.setattr(tensors, "read", lambda *_: pytest.fail("it was parsed"))
    with pytest.raises(CheckpointError, match=rf"has the SHA-256 {files.sha256(path.read_bytes())}, not 0000"):
        tensors.read_file(path, "0000")


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"w\.pt: No such file"):
        tensors.read_file(tmp_path / "w.pt")


# what is none is called what it is


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"\n <!DOCTYPE html><title>Sign in</title>", "is a web page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "is a pointer of Git LFS"),
        (b"no weights at all, but some text", "is not a safetensors file"),
        (b"\x00" * 8, "is not a safetensors file"),
        (b"PK\x03\x04", "cannot be opened"),
        (b"\x80\x02.", "is a bare pickle"),
        (pt(TENSORS, _use_new_zipfile_serialization=False), "is a bare pickle, as torch before 1.6"),
        (pt([1, 2]), "holds no tensors by name, but a list"),
        (pt({}), "holds no tensors by name"),
        (pt({"a": 1}), "holds 'a', a int; save the state_dict alone"),
        (pt({1: torch.zeros(1)}), "holds 1, a Tensor"),
        (pt({"a": torch.eye(3).to_sparse()}), "tensor a is not a plain dense one"),
        (pt({"a": torch.zeros(2, device="meta")}), "tensor a is not a plain dense one|cannot be opened"),
    ],
)
def test_what_is_no_weights_is_called_what_it_is(content: bytes, expected: str) -> None:
    with pytest.raises(CheckpointError, match=rf"it\.pt:? ({expected})"):
        tensors.read(content, "it.pt")


@pytest.mark.parametrize("make", [pt, pickle.dumps, lambda x: pickle.dumps(x, protocol=0x2)], ids=["pt", "4", "2"])
def test_a_pickle_that_would_run_code_names_it_and_does_not_run(
    make: Callable[[object], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "ran"
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # what turns torch's own default off
    content = make({"a": torch.zeros(2), "b": Runs(marker)} if make is pt else {"b": Runs(marker)})
    with pytest.raises(CheckpointError, match=r"it would run (posix|nt)\.system when it is opened, so it was not"):
        tensors.read(content, "it")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Runs(marker)))  # it does run where nobody looks
    assert marker.exists()


def test_a_class_in_place_of_its_weights_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"would run torch\.nn\.modules\.linear\.Linear when it is opened"):
        tensors.read(pt(nn.Linear(2, 2)), "it")


def test_an_old_torch_opens_no_strangers_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(CheckpointError, match=r"this torch \(2\.9\.1\+cpu\) cannot open .pt files of others safely"):
        tensors.read(pt(TENSORS), "it")
    assert same(tensors.read(save_tensors(TENSORS), "it"), TENSORS)


# what claims more than it holds


def test_a_small_file_that_claims_a_large_tensor_is_refused_before_memory_is_given(tmp_path: Path) -> None:
    huge = pt({"a": torch.zeros(1).expand(10**12)})
    assert len(huge) < 2000
    with pytest.raises(CheckpointError, match=r"tensor a claims 4,000,000,000,000 bytes, and the file has 1,5"):
        tensors.read(huge, "it")
    (tmp_path / "huge.pt").write_bytes(huge)
    code = "import sys; from pathlib import Path; from robench import tensors; tensors.read_file(Path(sys.argv[1]))"
    ran = subprocess.run(  # a copy would be killed at once
        [sys.executable, "-c", code, str(tmp_path / "huge.pt")],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (8 * 2**30, 8 * 2**30)),
    )
    assert "robench.errors.CheckpointError" in ran.stderr


def test_a_table_of_contents_that_claims_more_is_refused() -> None:
    table = json.dumps({"a": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 8]}}).encode()
    with pytest.raises(CheckpointError, match=r"tensor a claims 1,000,000,000,000 numbers, and 8 bytes are there"):
        tensors.read(struct.pack("<Q", len(table)) + table + b"\x00" * 8, "it")
    with pytest.raises(CheckpointError, match="table of contents is cut off"):
        tensors.read(struct.pack("<Q", 2**62) + table, "it")


def test_bytes_that_no_tensor_claims_are_refused() -> None:
    with pytest.raises(CheckpointError, match="its tensors claim 40 bytes, and 43 are there"):
        tensors.read(save_tensors(TENSORS) + b"abc", "it")


def test_an_archive_that_unpacks_to_more_is_refused() -> None:
    bomb = repacked(pt({"a": torch.zeros(100_000)}), lambda _, content: content, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="claims to unpack to more than its"):
        tensors.read(bomb, "it")


def test_a_storage_that_is_shorter_than_its_tensor_says_is_refused() -> None:
    def cut(name: str, content: bytes) -> bytes:
        return content[:4] if "/data/" in name else content

    with pytest.raises(CheckpointError, match="cannot be opened"):
        tensors.read(repacked(pt(TENSORS), cut), "it")


def test_a_flipped_bit_in_an_archive_is_noticed() -> None:
    content = pt(TENSORS)  # torch alone would load other numbers
    place = content.index(TENSORS["a.weight"].numpy().tobytes()[4:8])
    with pytest.raises(CheckpointError, match=r"its member \S+ is damaged"):
        tensors.read(content[: place + 2] + bytes([content[place + 2] ^ 8]) + content[place + 3 :], "it")


# against a model


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"a.bias": torch.zeros(3)},
            r"1 of 3 tensors differ\. First: a\.bias is \(3,\) in the file and \(2,\) in the model",
        ),
        ({"a.bias": torch.zeros(2).half()}, r"First: a\.bias is \(2,\) float16 in the file and \(2,\) in the model"),
        ({"b": torch.zeros(3)}, r"1 of 4 tensors differ\. First: b is \(3,\) in the file and absent"),
        ({"a.bias": torch.tensor([1.0, torch.nan])}, r"tensor a\.bias holds NaN or infinite"),
    ],
)
def test_the_first_tensor_that_differs_is_named(change: dict[str, Tensor], expected: str) -> None:
    tensors.check(TENSORS, TENSORS, "it")
    with pytest.raises(CheckpointError, match=expected):
        tensors.check({**TENSORS, **change}, TENSORS, "it")


def test_a_missing_tensor_is_named() -> None:
    few = {key: tensor for key, tensor in TENSORS.items() if key != "n"}
    with pytest.raises(CheckpointError, match=r"First: n is absent in the file and \(\) int64 in the model"):
        tensors.check(few, TENSORS, "it")


# mutations


def mutated(content: bytes, chance: random.Random) -> bytes:
    """A file with a few bytes flipped, inserted, removed, repeated or moved, or cut off."""
    found = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 5))):
        place, length = chance.randrange(len(found) + 1), chance.choice((1, 1, 4, 40))
        kind = chance.randrange(6)
        if kind == 0 and place < len(found):
            found[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            found[place:place] = chance.randbytes(length)
        elif kind == 2:
            del found[place : place + length]
        elif kind == 3:
            found[place : place + length] = chance.randbytes(length)
        elif kind == 4:
            other = chance.randrange(len(found) + 1)
            found[place:place] = found[other : other + length]
        elif chance.random() < 0.3:
            del found[place:]
        if not found:
            break
    return bytes(found)


def _tensors_alone(count: int) -> dict[str, int]:
    """Open mutated files of weights; returns what became of them."""
    tally = {"refused": 0, "the same": 0, "other": 0}
    for number, content in enumerate((save_tensors(TENSORS), pt(TENSORS))):
        chance = random.Random(number)
        for _ in range(count // 2):
            try:
                found = tensors.read(mutated(content, chance), "it")
            except CheckpointError as error:
                one_line(error)
                tally["refused"] += 1
                continue
            tally["the same" if same(found, TENSORS) else "other"] += 1
            assert number == 0 or same(found, TENSORS)  # an archive has checksums of its own
    return tally


def _checkpoints(count: int, folder: Path) -> int:
    """Open mutated checkpoints, weights or description; returns how many were refused, and fails on any silent change."""
    small = recipe.load("standard-digits", [("model", "cnn@width=2")])
    nets = nets_after(small, 1, 10, (1, 8, 8))
    made = save(
        Checkpoint(folder / "run", "best", small, 3, 1, 2, 10, (1, 8, 8), "", {"ce": 0.25}, {"device": "cpu"}), nets
    )
    before, refused = made.load().state_dict(), 0
    for name in ("best.safetensors", "best.json"):
        path, chance = folder / "run" / name, random.Random(name)
        content = path.read_bytes()
        for _ in range(count // 2):
            path.write_bytes(mutated(content, chance))
            try:
                found = open_checkpoint("run", folder)
                assert found == made
                assert same(found.load().state_dict(), before)
            except CheckpointError as error:
                one_line(error)
                refused += 1
        path.write_bytes(content)
    return refused


def _recipes(count: int, folder: Path) -> int:
    """Read mutated recipes; returns how many were refused. What is read must be what is written in the file."""
    import tomllib

    root, refused, path = recipe.folder(), 0, folder / "mine.toml"
    chance = random.Random(0)
    texts = [
        (root / f"{name}.toml").read_bytes() for name in ("rocl-digits", "standard-digits", "trades", "rst-digits")
    ]
    for number in range(count):
        path.write_bytes(mutated(texts[number % len(texts)], chance))
        try:
            found = recipe.load(str(path))
        except UsageError:
            refused += 1
            continue
        table = tomllib.loads(path.read_text())
        assert table.keys() <= {*plain(found), "like", "change", "resize"}  # type: ignore[operator, misc]
        assert build(recipe.Recipe, plain(found)) == found  # type: ignore[arg-type]
    return refused


def test_a_mutated_file_of_weights_is_refused_or_the_same() -> None:
    # a safetensors file has no digest of its own: where none is known, other numbers may come of it
    tally = _tensors_alone(1000)
    assert tally["refused"] > 600


def test_a_mutated_checkpoint_is_refused_or_the_same(tmp_path: Path) -> None:
    assert _checkpoints(400, tmp_path) > 300


def test_a_mutated_recipe_is_refused_or_says_what_it_says(tmp_path: Path) -> None:
    assert _recipes(400, tmp_path) > 100


@pytest.mark.nightly
def test_ten_thousand_mutated_checkpoints(tmp_path: Path) -> None:
    assert _checkpoints(10_000, tmp_path) > 7_000


@pytest.mark.nightly
def test_ten_thousand_mutated_files_of_weights() -> None:
    assert _tensors_alone(10_000)["refused"] > 6_000


@pytest.mark.nightly
def test_ten_thousand_mutated_recipes(tmp_path: Path) -> None:
    assert _recipes(10_000, tmp_path) > 2_500
