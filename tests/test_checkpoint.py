"""Checkpoints: what is saved is what is loaded, bit for bit, and anything else is refused with a reason."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from robench import recipe
from robench.checkpoint import Checkpoint, nets_after, open_checkpoint, runs, save
from robench.errors import CheckpointError
from robench.evaluation import Engine
from robench.models import Nets
from robench.spec import digest, plain

TINY = recipe.load("standard-digits", [("model", "cnn@width=2")])


def made(folder: Path, kind: str = "best", seed: int = 0, **changes: Any) -> tuple[Checkpoint, Nets]:
    """Random weights of a tiny network, saved."""
    torch.manual_seed(seed)
    nets = nets_after(TINY, 1, 10, (1, 8, 8))
    fields = {"seed": 3, "stages": 1, "epoch": 2, "classes": 10, "shape": (1, 8, 8), "sha256": "", **changes}
    described = Checkpoint(
        folder=folder, kind=kind, recipe=TINY, metrics={"ce": 0.25}, provenance={"device": "cpu"}, **fields
    )
    return save(described, nets), nets


def edited(folder: Path, changes: dict[str, Any]) -> None:
    """Change the JSON of a checkpoint as a person would."""
    table = {**json.loads((folder / "best.json").read_text()), **changes}
    del table["digest"]
    (folder / "best.json").write_text(json.dumps({**table, "digest": digest(table)}))


def reseal(folder: Path) -> None:
    """Make the JSON vouch for the weights that are there now."""
    edited(folder, {"sha256": hashlib.sha256((folder / "best.safetensors").read_bytes()).hexdigest()})


# what stands beside it


RUN = {"identity": "a" * 64, "recipe": plain(TINY), "seed": 3}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, ""),
        (json.dumps(RUN), ""),
        (json.dumps({**RUN, "digest": digest(RUN)}), ""),
        (json.dumps({**RUN, "digest": "0" * 64}), "run.json is damaged .*digest differs.*: restore it, or train into"),
        ("", "run.json is damaged"),
        ("{", "run.json is damaged"),
        ("[]", "run.json is damaged"),
        ("null", "run.json is damaged"),
        ('{"identity": 3, "recipe": {}, "seed": 3}', "run.json is damaged"),
        ("[" * 100_000, "run.json is damaged"),
        (json.dumps({**RUN, "recipe": {"name": 1}}), "run.json|unknown|missing|name"),
        (json.dumps({**RUN, "seed": 4}), "run.json beside it is of another run"),
    ],
)
def test_what_run_json_says_is_held_against_the_checkpoint(content: str | None, said: str, tmp_path: Path) -> None:
    checkpoint, _ = made(tmp_path / "run")
    if content is not None:
        (tmp_path / "run" / "run.json").write_text(content)
    assert "\n" not in checkpoint.doubt
    assert bool(checkpoint.doubt) == bool(said)
    assert not said or re.search(said, checkpoint.doubt)
    told: list[str] = []
    engine = Engine(torch.device("cpu"), tell=told.append)
    engine.loaded(checkpoint)
    engine.loaded(checkpoint)
    assert told == ([f"note: {checkpoint.doubt}"] if said else [])


# round trips


def test_weights_and_buffers_come_back_bit_for_bit(tmp_path: Path) -> None:
    _, nets = made(tmp_path / "run")
    loaded = open_checkpoint("run", tmp_path).load()
    before, after = nets.state_dict(), loaded.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)
    assert not any(module.training for module in loaded.modules())


def test_the_description_comes_back(tmp_path: Path) -> None:
    saved, _ = made(tmp_path / "run")
    assert open_checkpoint(str(tmp_path / "run"), Path("elsewhere")) == saved


def test_equal_weights_are_equal_files(tmp_path: Path) -> None:
    (one, _), (two, _), (other, _) = made(tmp_path / "a"), made(tmp_path / "b"), made(tmp_path / "c", seed=1)
    assert one.sha256 == two.sha256 != other.sha256
    assert (tmp_path / "a" / "best.safetensors").read_bytes() == (tmp_path / "b" / "best.safetensors").read_bytes()


def test_the_logits_do_not_depend_on_having_been_saved(trained: Path) -> None:
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    nets = open_checkpoint("standard-digits", trained).load()
    again = open_checkpoint("standard-digits", trained).load()
    with torch.no_grad():
        assert torch.equal(nets(x), again(x))


# names


def test_best_comes_before_last(tmp_path: Path) -> None:
    made(tmp_path / "run", "last")
    assert open_checkpoint("run", tmp_path).kind == "last"
    made(tmp_path / "run", "best")
    assert open_checkpoint("run", tmp_path).kind == "best"


def test_a_kind_can_be_named(tmp_path: Path) -> None:
    made(tmp_path / "run", "best")
    made(tmp_path / "run", "last", seed=1)
    last = open_checkpoint("run@last", tmp_path)
    assert (last.kind, last.name) == ("last", "run@last")
    assert open_checkpoint("run@best", tmp_path).name == "run"


def test_the_only_state_of_a_run_bears_its_name(tmp_path: Path) -> None:
    made(tmp_path / "run", "last")
    assert open_checkpoint("run", tmp_path).name == "run"


@pytest.mark.parametrize("kind", ["best", "worst"])
def test_a_kind_that_is_not_there(tmp_path: Path, kind: str) -> None:
    made(tmp_path / "run", "last")
    with pytest.raises(CheckpointError, match=kind):
        open_checkpoint(f"run@{kind}", tmp_path)


def test_a_folder_may_have_an_at_in_its_path(tmp_path: Path) -> None:
    saved, _ = made(tmp_path / "me@home" / "run")
    assert open_checkpoint(str(tmp_path / "me@home" / "run"), tmp_path) == saved
    assert open_checkpoint(str(tmp_path / "me@home" / "run@best"), tmp_path) == saved
    assert open_checkpoint("run", tmp_path / "me@home") == saved


def test_the_folder_one_stands_in_has_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    assert open_checkpoint(".", tmp_path).name == "run"


def test_a_folder_without_a_checkpoint_does_not_hide_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # `robench evaluate rocl`, typed where a folder of source code is called rocl
    saved, _ = made(tmp_path / "checkpoints" / "rocl")
    (tmp_path / "rocl").mkdir()
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint("rocl", tmp_path / "checkpoints") == saved


def test_runs_lists_folders_with_a_checkpoint(tmp_path: Path) -> None:
    made(tmp_path / "b")
    made(tmp_path / "a", "last")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert [folder.name for folder in runs(tmp_path)] == ["a", "b"]
    assert runs(tmp_path / "absent") == []


# what is not there


def test_a_missing_run_lists_what_there_is(tmp_path: Path) -> None:
    made(tmp_path / "mine")
    with pytest.raises(CheckpointError, match=r"no checkpoint 'other'.*runs there: mine"):
        open_checkpoint("other", tmp_path)


def test_a_missing_run_where_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing is trained there yet: robench train"):
        open_checkpoint("other", tmp_path / "absent")


def test_a_folder_without_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no best\.json or last\.json: robench train"):
        open_checkpoint("run", tmp_path)


def test_missing_weights(tmp_path: Path) -> None:
    made(tmp_path / "run")
    (tmp_path / "run" / "best.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"No such file.*train it again, or restore"):
        open_checkpoint("run", tmp_path).load()


# damaged weights


@pytest.mark.parametrize("place", [0, 9, -1])
def test_one_flipped_bit_is_noticed(tmp_path: Path, place: int) -> None:
    made(tmp_path / "run")
    path = tmp_path / "run" / "best.safetensors"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is damaged: its SHA-256 is not the one in best.json"):
        open_checkpoint("run", tmp_path).load()


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_truncated_file_is_noticed(tmp_path: Path, kept: int) -> None:
    made(tmp_path / "run")
    path = tmp_path / "run" / "best.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="is damaged"):
        open_checkpoint("run", tmp_path).load()
    reseal(tmp_path / "run")
    with pytest.raises(CheckpointError, match="is not a safetensors file" if kept else "is empty"):
        open_checkpoint("run", tmp_path).load()


def test_a_web_page_is_called_one(tmp_path: Path) -> None:
    # what a download behind a login leaves
    made(tmp_path / "run")
    (tmp_path / "run" / "best.safetensors").write_bytes(b"\n<!DOCTYPE html><html><body>Sign in</body></html>")
    reseal(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"best\.safetensors is a web page, not weights"):
        open_checkpoint("run", tmp_path).load()


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "executed",)

    made(tmp_path / "run")
    torch.save(Evil(), tmp_path / "run" / "best.safetensors")
    reseal(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"would run \S+getattr when it is opened, so it was not"):
        open_checkpoint("run", tmp_path).load()
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    made(tmp_path / "run")
    path = tmp_path / "run" / "best.safetensors"
    tensors = load_file(path)
    tensors["parts.head.bias"][3] = value
    save_file(tensors, path)
    reseal(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"tensor parts\.head\.bias holds NaN or infinite"):
        open_checkpoint("run", tmp_path).load()


def test_a_left_over_tensor_is_refused(tmp_path: Path) -> None:
    made(tmp_path / "run")
    path = tmp_path / "run" / "best.safetensors"
    save_file({**load_file(path), "parts.other.bias": torch.zeros(2)}, path)
    reseal(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"parts\.other\.bias is \(2,\) in the file and absent in the model"):
        open_checkpoint("run", tmp_path).load()


# a description is as it was written


def test_a_changed_number_in_a_description_is_noticed(tmp_path: Path) -> None:
    made(tmp_path / "run")
    path = tmp_path / "run" / "best.json"
    path.write_text(path.read_text().replace('"seed": 3', '"seed": 2'))
    with pytest.raises(CheckpointError, match=r"best\.json is damaged .*the digest differs"):
        open_checkpoint("run", tmp_path)


def test_descriptions_of_the_first_format_open(tmp_path: Path) -> None:
    saved, _ = made(tmp_path / "run")
    path = tmp_path / "run" / "best.json"
    table = json.loads(path.read_text())
    del table["digest"]
    path.write_text(json.dumps({**table, "format": 1}))
    assert open_checkpoint("run", tmp_path) == saved
    path.write_text(json.dumps({**table, "format": 2}))
    with pytest.raises(CheckpointError, match="is damaged"):
        open_checkpoint("run", tmp_path)


# another model than the JSON says


def test_another_number_of_classes_names_the_first_tensor(tmp_path: Path) -> None:
    made(tmp_path / "run")
    edited(tmp_path / "run", {"classes": 12})
    with pytest.raises(CheckpointError, match=r"2 of \d+ tensors differ\. First: parts\.head\.weight is \(10, 32\)"):
        open_checkpoint("run", tmp_path).load()


def test_another_architecture_names_the_first_tensor(tmp_path: Path) -> None:
    made(tmp_path / "run")
    table = json.loads((tmp_path / "run" / "best.json").read_text())
    edited(tmp_path / "run", {"recipe": {**table["recipe"], "model": "cnn@width=3"}})
    with pytest.raises(CheckpointError, match=r"First: encoder\.body\.0\.weight is \(2, 1, 3, 3\) in the file"):
        open_checkpoint("run", tmp_path).load()


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    made(tmp_path / "run")
    edited(tmp_path / "run", {"stages": 0})
    with pytest.raises(CheckpointError, match=r"parts\.head\.\w+ is \(10.*\) in the file and absent"):
        open_checkpoint("run", tmp_path).load()


def test_a_description_that_claims_a_large_model_is_refused_before_memory_is_given(tmp_path: Path) -> None:
    made(tmp_path / "run")
    edited(tmp_path / "run", {"classes": 10**12})
    with pytest.raises(
        CheckpointError, match=r"parts\.head\.weight is \(10, 32\) in the file and \(1000000000000, 32\)"
    ):
        open_checkpoint("run", tmp_path).load()
    assert open_checkpoint("run", tmp_path).unready == ""  # nor does a look at what it is take memory


def test_weights_of_another_type_are_refused(tmp_path: Path) -> None:
    made(tmp_path / "run")
    path = tmp_path / "run" / "best.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "parts.head.bias": tensors["parts.head.bias"].double()}, path)
    reseal(tmp_path / "run")
    with pytest.raises(
        CheckpointError, match=r"parts\.head\.bias is \(10,\) float64 in the file and \(10,\) in the model"
    ):
        open_checkpoint("run", tmp_path).load()


# a damaged description


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '"text"', "{}", "\x00", '{"format": 1}'])
def test_a_description_that_is_none(tmp_path: Path, text: str) -> None:
    made(tmp_path / "run")
    (tmp_path / "run" / "best.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"best\.json is damaged"):
        open_checkpoint("run", tmp_path)


@pytest.mark.parametrize("other", [0, 3, "1", None])
def test_another_format_is_refused(tmp_path: Path, other: object) -> None:
    made(tmp_path / "run")
    edited(tmp_path / "run", {"format": other})
    with pytest.raises(CheckpointError, match="written by another version of robench"):
        open_checkpoint("run", tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": "10"},
        {"classes": -1},
        {"classes": None},
        {"shape": 8},
        {"shape": [1, 8]},
        {"shape": ["1", "8", "8"]},
        {"stages": "1"},
        {"stages": -1},
        {"epoch": "2"},
        {"seed": None},
        {"sha256": 5},
        {"recipe": "standard-digits"},
        {"recipe": {"name": "x"}},
        {"metrics": 3},
        {"folder": "elsewhere"},
        {"extra": 1},
    ],
    ids=str,
)
def test_an_edited_description_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    made(tmp_path / "run")
    edited(tmp_path / "run", changes)
    with pytest.raises(CheckpointError):
        open_checkpoint("run", tmp_path).load()


def test_a_copied_run_is_the_same_checkpoint(tmp_path: Path, trained: Path) -> None:
    shutil.copytree(trained / "standard-digits", tmp_path / "copy")
    copied, original = open_checkpoint("copy", tmp_path), open_checkpoint("standard-digits", trained)
    assert (copied.sha256, copied.recipe, copied.name) == (original.sha256, original.recipe, "copy")
