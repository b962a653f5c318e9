"""Images from elsewhere: every way in gives the same pixels, and what is no image is told why."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from robench import data
from robench.data import Images, Split
from robench.errors import DataError, UsageError
from robench.pixels import labels_of, pixels_of, stacked
from robench.registry import DATASETS

Cli = Callable[..., tuple[int, str, str]]
TEST, TRAIN = Split.TEST, Split.TRAIN
DICE = np.random.default_rng(0)
PIXELS = DICE.integers(0, 256, (10, 6, 8, 3), dtype=np.uint8)  # not square, so that an axis in the wrong place shows
NCHW = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
Y = np.arange(10) % 3


def load(name: str, split: Split = TEST, root: Path = Path("nowhere")) -> Images:
    return data.load(name, split, root)


def same(found: Images, classes: int = 3) -> None:
    assert torch.equal(found.pixels, NCHW)
    assert found.y.tolist() == Y.tolist()
    assert found.classes == classes


def saved(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


# arrays


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("first", [False, True])
def test_pixels_of_any_kind_are_the_same(kind: Any, first: bool) -> None:
    array = PIXELS.transpose(0, 3, 1, 2) if first else PIXELS
    array = array.astype(kind) / 255 if issubclass(kind, np.floating) else array.astype(kind)
    assert torch.equal(pixels_of(array.astype(kind), "mine"), NCHW)
    assert torch.equal(pixels_of(torch.from_numpy(np.ascontiguousarray(array.astype(kind))), "mine"), NCHW)


def test_grey_images_get_a_channel() -> None:
    assert torch.equal(pixels_of(PIXELS[..., 0], "mine"), NCHW[:, :1])


@given(st.integers(0, 255), st.floats(-9e-7, 9e-7))
def test_a_hair_beyond_the_box_is_rounding(value: int, hair: float) -> None:
    array = torch.full((1, 1, 2, 2), value / 255, dtype=torch.float64) + hair
    assert (pixels_of(array, "mine") == value).all()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            torch.tensor([-2.43, 2.75]).view(1, 1, 1, 2),
            "mine: images span [-2.43, 2.75]: they look normalised with mean/std. eps 8/255 has no meaning there. Remove "
            "Normalize from the data and give --preprocess cifar10 (or MEAN,STD) so that it becomes part of the model",
        ),
        (
            torch.tensor([0.0, 255.0]).view(1, 1, 1, 2),
            "mine: images span [0.00, 255.00]: save them as uint8, or divide them by 255",
        ),
        (torch.tensor([0.0, torch.nan]).view(1, 1, 1, 2), "mine: some pixels are NaN or infinite"),
        (
            torch.tensor([0.0, 0.3]).view(1, 1, 1, 2),
            "mine: pixels are not multiples of 1/255, as those of files are; save them as uint8: (x * 255).round()",
        ),
        (torch.tensor([0, 256]).view(1, 1, 1, 2), "mine: pixels go from 0 to 256; expected 0 to 255"),
        (torch.zeros(2, 5), "mine: images are (2, 5); expected (n, height, width, channels) or NCHW"),
        (torch.zeros(0, 3, 4, 4), "mine: images are (0, 3, 4, 4); expected (n, height, width, channels) or NCHW"),
        (
            torch.zeros(2, 3, 4, 3),
            "mine: images (2, 3, 4, 3) have 1 or 3 channels on both sides; give them as NCHW through a function: "
            "my.py:make_dataset",
        ),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_is_no_image(array: Tensor, message: str) -> None:
    with pytest.raises(DataError) as caught:
        pixels_of(array, "mine")
    assert str(caught.value) == message


@pytest.mark.parametrize("array", [np.eye(3), np.array([0.5]), np.array([True]), np.zeros((2, 2))])
def test_what_is_no_label(array: Any) -> None:
    with pytest.raises(DataError, match="expected a class number for each image"):
        labels_of(array, "mine")


def test_labels_may_stand_in_a_column() -> None:
    assert labels_of(np.array([[2], [0]], dtype=np.uint8), "mine").tolist() == [2, 0]
    assert labels_of(np.array([2.0, 0.0]), "mine").tolist() == [2, 0]


# npz


@pytest.mark.parametrize("names", [("x", "y"), ("x_test", "y_test"), ("images", "labels")])
def test_a_file_of_arrays(names: tuple[str, str], tmp_path: Path) -> None:
    same(load(f"npz:{saved(tmp_path / 'a.npz', **{names[0]: PIXELS, names[1]: Y})}"))


def test_both_parts_have_the_same_classes(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", x_test=PIXELS, y_test=Y, x_train=PIXELS[:2], y_train=np.array([7, 0]))
    same(load(f"npz:{path}"), 8)
    assert load(f"npz:{path}", TRAIN).classes == 8
    assert load(f"npz:{path}@classes=11").classes == 11


def test_what_a_file_of_arrays_lacks(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", x=PIXELS, y=Y)
    with pytest.raises(DataError, match="holds x, y; expected arrays x_train and y_train"):
        load(f"npz:{path}", TRAIN)
    with pytest.raises(DataError, match="holds z; expected arrays x_test and y_test, or x and y"):
        load(f"npz:{saved(tmp_path / 'b.npz', z=Y)}")
    with pytest.raises(DataError, match=r"c\.npz cannot be read"):
        load(f"npz:{saved(tmp_path / 'c.npz', x=np.array([None]), y=Y)}")
    (tmp_path / "d.npz").write_text("<html>")
    for name, why in (("absent", "cannot be read"), ("d", "is a web page, not images")):
        with pytest.raises(DataError, match=rf"{name}\.npz {why}"):
            load(f"npz:{tmp_path / name}.npz")


# folders


def draw(folder: Path) -> Path:
    for index, (pixels, label) in enumerate(zip(PIXELS, Y, strict=True)):
        (folder / f"c{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"c{label}" / f"{index}.png")
    return folder


def test_a_folder_without_parts_is_a_test_set(tmp_path: Path) -> None:
    found = load(f"folder:{draw(tmp_path)}")
    together = {(x.numpy().tobytes(), int(y)) for x, y in zip(found.pixels, found.y, strict=True)}
    assert together == {(x.numpy().tobytes(), int(y)) for x, y in zip(NCHW.contiguous(), Y, strict=True)}
    assert found.y.tolist() != sorted(Y.tolist())  # mixed, since --count takes the first
    assert found.digest == load(f"folder:{tmp_path}").digest
    with pytest.raises(DataError, match="holds test images only"):
        load(f"folder:{tmp_path}", TRAIN)


def test_a_folder_with_parts(tmp_path: Path) -> None:
    draw(tmp_path / "test")
    draw(tmp_path / "train")
    assert len(load(f"folder:{tmp_path}", TRAIN)) == len(load(f"folder:{tmp_path}")) == 10
    assert load(f"folder:{tmp_path}@resize=4").shape == (3, 4, 4)


def test_sizes_that_differ_need_one(tmp_path: Path) -> None:
    draw(tmp_path)
    Image.new("L", (20, 10)).save(tmp_path / "c0" / "z.png")
    with pytest.raises(
        DataError, match=r"z\.png is 1x10x20 \(channels, height, width\), others are 3x6x8; add @resize=32"
    ):
        load(f"folder:{tmp_path}")
    Image.new("RGB", (20, 10), (7, 8, 9)).save(tmp_path / "c0" / "z.png")
    found = load(f"folder:{tmp_path}@resize=5")
    assert found.shape == (3, 5, 5)
    assert (found.pixels == torch.tensor([7, 8, 9])[:, None, None]).flatten(1).all(1).any()


def test_the_centre_is_kept() -> None:
    wide = torch.zeros(3, 4, 12, dtype=torch.uint8)
    wide[:, :, 4:8] = 200
    assert (stacked([wide], ["wide"], 4) == 200).all()
    assert (stacked([wide.transpose(1, 2)], ["high"], 4) == 200).all()


def test_a_damaged_or_missing_picture_is_named(tmp_path: Path) -> None:
    draw(tmp_path)
    (tmp_path / "c1" / "bad.png").write_text("no picture")
    with pytest.raises(DataError, match=r"bad\.png cannot be read as an image"):
        load(f"folder:{tmp_path}")
    (tmp_path / "c1" / "bad.png").unlink()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no images"):
        load(f"folder:{tmp_path}")
    with pytest.raises(DataError, match="absent holds no class folders"):
        load(f"folder:{tmp_path / 'absent'}")


# functions


FUNCTIONS = """
import numpy as np
import torch
from PIL import Image

with np.load({path!r}) as found:
    data = dict(found)


def arrays():
    return data["x"], data["y"]


def parts(split):
    return (data["x"], data["y"], 5) if split == "test" else (data["x"][:4], data["y"][:4], 5)


class Dataset(torch.utils.data.Dataset):
    classes = ["a", "b", "c"]

    def __len__(self):
        return len(data["x"])

    def __getitem__(self, index):
        return torch.from_numpy(data["x"][index]).permute(2, 0, 1) / 255, int(data["y"][index])


def pictures():
    return [(Image.fromarray(x), y) for x, y in zip(data["x"], data["y"])]


def normalised():
    return (data["x"] / 255 - 0.5) / 0.25, data["y"]


def text():
    return "cat"


def stops(size=1):
    raise ValueError("no such file")
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = saved(tmp_path / "a.npz", x=PIXELS, y=Y)
    (tmp_path / "my.py").write_text(FUNCTIONS.format(path=str(path)))
    return tmp_path / "my.py"


@pytest.mark.parametrize("name", ["arrays", "Dataset", "pictures"])
def test_functions_return_what_they_like(name: str, script: Path) -> None:
    same(load(f"{script}:{name}"))
    with pytest.raises(DataError, match="takes no `split`, so its images are test images"):
        load(f"{script}:{name}", TRAIN)
    assert load(f"{script}:{name}@resize=4").shape == (3, 4, 4)


def test_a_function_with_parts(script: Path) -> None:
    same(load(f"{script}:parts"), 5)
    assert len(load(f"{script}:parts", TRAIN)) == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("normalised", "they look normalised with mean/std"),
        ("text", "gave a str; expected"),
        ("stops", "cannot be made: ValueError: no such file"),
        ("arrays@depth=3", "takes no option 'depth' (options: resize)"),
    ],
)
def test_functions_that_give_nothing(name: str, message: str, script: Path) -> None:
    with pytest.raises((DataError, UsageError)) as caught:
        load(f"{script}:{name}")
    assert message in str(caught.value)


# torchvision by class


def test_a_data_set_of_torchvision_without_files() -> None:
    found = load("torchvision:FakeData@size=6,image_size=[3, 5, 7],num_classes=4")
    assert (found.shape, len(found), found.classes) == ((3, 5, 7), 6, int(found.y.max()) + 1)
    assert found.pixels.float().std() > 50
    with pytest.raises(DataError, match="has no parts for training and test"):
        load("torchvision:FakeData", TRAIN)


class Parted:
    """As most of torchvision's are."""

    classes = ("a", "b", "c")

    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        if not download:
            raise RuntimeError("Dataset not found")
        self.train = train

    def __len__(self) -> int:
        return 2 if self.train else 10

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return Image.fromarray(PIXELS[index]), int(Y[index])


def test_parts_and_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    monkeypatch.setattr(datasets, "Parted", Parted, raising=False)
    same(load("torchvision:Parted"))
    assert len(load("torchvision:Parted", TRAIN)) == 2
    with pytest.raises(UsageError, match="takes no option 'depth'"):
        load("torchvision:Parted@depth=1")
    with pytest.raises(UsageError, match="Did you mean 'KMNIST'"):
        load("torchvision:KMNISTT")

    def offline(root: str, train: bool, download: bool = False) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(
        datasets, "Parted", type("Parted", (), {"__init__": lambda self, root, train, download: offline(root, train)})
    )
    with pytest.raises(DataError, match=r"is not in nowhere and cannot be downloaded \(OSError: no route to host\)"):
        load("torchvision:Parted")


# the Hub


class ClassLabel:
    num_classes = 3


class Value:
    pass


Picture = type("Image", (), {})


class Table:
    """As much of a table of the package `datasets` as is asked for."""

    def __init__(self) -> None:
        self.features: dict[str, Any] = {"img": Picture(), "fine": ClassLabel(), "id": Value()}

    def __len__(self) -> int:
        return len(Y)

    def __getitem__(self, column: str) -> list[Any]:
        return [Image.fromarray(x) for x in PIXELS] if column == "img" else [int(y) for y in Y]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    parts = {"validation": Table(), "train": Table()}

    def load_dataset(name: str, config: str | None, cache_dir: str) -> Any:
        if name == "absent/name":
            raise ConnectionError("no route to host")
        return parts

    fake = ModuleType("datasets")
    fake.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    return parts


def test_a_data_set_of_the_hub(hub: dict[str, Any]) -> None:
    same(load("hf:owner/name"))
    same(load("hf:owner/name@part=train,image=img,label=fine"))
    with pytest.raises(DataError, match="has no part 'tests'"):
        load("hf:owner/name@part=tests")
    with pytest.raises(DataError, match="has no column 'pixels'"):
        load("hf:owner/name@image=pixels")
    with pytest.raises(DataError, match=r"cannot be loaded \(ConnectionError: no route to host\)"):
        load("hf:absent/name")
    hub["validation"].features = {"img": Picture(), "mask": Picture(), "fine": ClassLabel()}
    with pytest.raises(DataError, match="has 2 columns of kind Image"):
        load("hf:owner/name")


def test_the_hub_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError) as caught:
        load("hf:owner/name")
    assert str(caught.value) == (
        "'hf:owner/name' comes with datasets, which is not installed: pip install 'robench[hf]'"
    )


def test_what_the_package_itself_reads(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="needs datasets: pip install 'robench[hf]'")
    for part in ("train", "test"):
        draw(tmp_path / "kept" / part)
    found = load(f"hf:{tmp_path / 'kept'}", root=tmp_path)
    order = torch.from_numpy(np.argsort(Y, kind="stable"))
    assert torch.equal(found.pixels.flatten(1).sort(0).values, NCHW[order].flatten(1).sort(0).values)
    assert (sorted(found.y.tolist()), found.classes) == (sorted(Y.tolist()), 3)


# corruptions


@pytest.fixture
def corrupted(tmp_path: Path) -> Path:
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    np.save(folder / "fog.npy", PIXELS)
    np.save(folder / "labels.npy", Y)
    return tmp_path


@pytest.mark.parametrize("severity", range(1, 6))
def test_a_severity_is_a_fifth(severity: int, corrupted: Path) -> None:
    found = load(f"cifar10-c:fog@severity={severity}", root=corrupted)
    part = slice(2 * (severity - 1), 2 * severity)
    assert torch.equal(found.pixels, NCHW[part])
    assert found.y.tolist() == Y[part].tolist()
    assert found.classes == 10


def test_all_severities_and_labels_that_stand_once(corrupted: Path) -> None:
    same(load("cifar10-c:fog", root=corrupted), 10)
    np.save(corrupted / "CIFAR-10-C" / "labels.npy", Y[:2])
    assert load("cifar10-c:fog", root=corrupted).y.tolist() == Y[:2].tolist() * 5
    same_file = load(f"corruptions:{corrupted}/CIFAR-10-C/fog@severity=2")
    assert torch.equal(same_file.pixels, NCHW[2:4])


def test_corruptions_that_are_not_there(corrupted: Path) -> None:
    with pytest.raises(DataError, match=r"there is no fogg\.npy in .*CIFAR-10-C\. Did you mean 'fog'\? \(there: fog\)"):
        load("cifar10-c:fogg", root=corrupted)
    with pytest.raises(DataError, match="Unpack the archive"):
        load("cifar100-c:fog", root=corrupted)
    with pytest.raises(UsageError, match="severity must be 1 to 5"):
        load("cifar10-c:fog@severity=6", root=corrupted)
    with pytest.raises(DataError, match="for tests only"):
        load("cifar10-c:fog", TRAIN, corrupted)
    np.save(corrupted / "CIFAR-10-C" / "labels.npy", Y[:3])
    with pytest.raises(DataError, match="expected five severities of equal size"):
        load("cifar10-c:fog", root=corrupted)


def test_a_corruption_is_evaluated(corrupted: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(corrupted)
    (corrupted / "my.py").write_text(
        "from torch import nn\n\ndef make(): return nn.Sequential(nn.Flatten(), nn.Linear(144, 10))\n"
    )
    line = "evaluate --model my.py:make --dataset cifar10-c:fog@severity=3 --attack fgsm --threat linf-0 --data ."
    code, _, err = run_cli(*line.split())
    assert code == 0, err
    code, out, _ = run_cli("report", "--format", "markdown")
    assert code == 0
    assert "cifar10-c:fog@severity=3, 2 test images" in out


# the registry


@pytest.mark.parametrize("name", [name for name, row in DATASETS.rows.items() if row.family])
def test_every_family_says_what_it_wants(name: str) -> None:
    row = DATASETS.rows[name]
    with pytest.raises(UsageError, match=f"write {name}{row.family.upper()}"):
        load(name)
