"""Data sets: splits that never move or meet, labels that fit, and messages that help when files are absent."""

import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import datasets

from robench import data
from robench.data import Images, Split, hold_out
from robench.errors import DataError, UsageError
from robench.registry import DATASETS

NOWHERE = Path("nowhere")


def images(count: int = 4, **changes: object) -> Images:
    pixels = torch.arange(count * 4, dtype=torch.uint8).view(count, 1, 2, 2)
    fields = {"name": "some", "split": Split.TRAIN, "pixels": pixels, "y": torch.arange(count) % 2, "classes": 2}
    return Images(**{**fields, **changes})  # type: ignore[arg-type]


def rows(some: Images) -> list[bytes]:
    return [bytes(image.numpy()) for image in some.pixels]


def draw(folder: Path, classes: tuple[str, ...] = ("cat", "dog"), size: tuple[int, int] = (6, 4)) -> Path:
    """A data set of two images a class; size is width and height."""
    for part in ("train", "test"):
        for label, name in enumerate(classes):
            (folder / part / name).mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", size, (10 * label, number, 0)).save(folder / part / name / f"{number}.png")
    return folder


# digits


def test_digits_have_the_sizes_the_list_says() -> None:
    train, test = (data.load("digits", split, NOWHERE) for split in (Split.TRAIN, Split.TEST))
    assert (len(train), len(test)) == (1437, 360)
    assert train.shape == test.shape == (1, 8, 8)
    assert train.classes == 10
    assert DATASETS.entry("digits").facts["images"] == "1,437 + 360"


def test_digits_are_split_without_loss_or_overlap() -> None:
    from sklearn.datasets import load_digits

    train, test = (data.load("digits", split, NOWHERE) for split in (Split.TRAIN, Split.TEST))
    everything = torch.from_numpy(load_digits().images).mul(255 / 16).round().to(torch.uint8)
    assert sorted(rows(train) + rows(test)) == sorted(bytes(image.numpy()) for image in everything)


def test_digits_never_change() -> None:
    # results name their images by this digest, so a release that changes it orphans every stored result
    digests = [data.load("digits", split, NOWHERE).digest[:16] for split in (Split.TRAIN, Split.TEST)]
    assert digests == ["a52d7fa7769e3ea9", "9b7c5eb6e7c03ecd"]


def test_pixels_become_fractions() -> None:
    x = data.load("digits", Split.TEST, NOWHERE).x()
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (0, 1)


# the validation split


@given(count=st.integers(0, 29))
@settings(deadline=None, derandomize=True)
def test_hold_out_cuts_disjoint_parts(count: int) -> None:
    whole = images(30)
    kept, held = hold_out(whole, count)
    assert len(kept) == 30 - count
    assert sorted(rows(kept) + (rows(held) if held else [])) == sorted(rows(whole))
    assert held is None or held.split is Split.VALIDATION


def test_hold_out_is_fixed_for_good() -> None:
    whole = data.load("digits", Split.TRAIN, NOWHERE)
    (_, first), (_, second) = hold_out(whole, 180), hold_out(whole, 180)
    assert first is not None
    assert second is not None
    assert first.digest == second.digest
    assert first.digest[:16] == "5036f92e62c483be"


def test_nothing_held_out_is_everything() -> None:
    whole = images()
    assert hold_out(whole, 0) == (whole, None)


@pytest.mark.parametrize("count", [-1, 4, 5])
def test_hold_out_leaves_something_to_train_on(count: int) -> None:
    with pytest.raises(DataError, match=f"cannot hold out {count} of 4"):
        hold_out(images(4), count)


# what no evaluation could use


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"y": torch.tensor([0, 1, 2, 1])}, "label 2 of image 2 is not in 0 to 1"),
        ({"y": torch.tensor([0, -1, 0, 1])}, "label -1 of image 1"),
        ({"y": torch.tensor([0, 1])}, r"4 images with labels \(2,\)"),
        ({"y": torch.zeros(4, 1, dtype=torch.int64)}, r"labels \(4, 1\)"),
        ({"y": torch.zeros(4)}, "float32"),
        ({"pixels": torch.zeros(4, 1, 2, 2)}, "expected uint8 images NCHW"),
        ({"pixels": torch.zeros(4, 2, 2, dtype=torch.uint8)}, "expected uint8 images NCHW"),
        ({"pixels": torch.zeros(0, 1, 2, 2, dtype=torch.uint8), "y": torch.zeros(0, dtype=torch.int64)}, "0 images"),
    ],
)
def test_bad_images_and_labels_are_refused(changes: dict[str, object], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        images(**changes)


def test_the_digest_sees_pixels_labels_and_classes() -> None:
    some = images()
    other = some.pixels.clone()
    other[3, 0, 1, 1] += 1
    changed = [images(pixels=other), images(y=1 - some.y), images(classes=3), images(3)]
    assert len({found.digest for found in [some, *changed]}) == 5
    assert images(name="other", split=Split.TEST).digest == some.digest


# imagefolder


def test_a_folder_of_images_is_a_data_set(tmp_path: Path) -> None:
    found = data.load(f"imagefolder:{draw(tmp_path)}", Split.TEST, NOWHERE)
    assert (len(found), found.shape, found.classes) == (4, (3, 4, 6), 2)
    assert found.y.tolist() == [0, 0, 1, 1]
    assert found.pixels[:, :, 0, 0].tolist() == [[0, 0, 0], [0, 1, 0], [10, 0, 0], [10, 1, 0]]


def test_images_of_two_sizes_are_refused(tmp_path: Path) -> None:
    draw(tmp_path)
    Image.new("RGB", (9, 8)).save(tmp_path / "train" / "dog" / "large.png")
    with pytest.raises(DataError, match=r"large\.png is 9x8, others are 6x4"):
        data.load(f"imagefolder:{tmp_path}", Split.TRAIN, NOWHERE)


def test_parts_with_different_classes_are_refused(tmp_path: Path) -> None:
    # labels are places in the sorted list of folders: with other folders they would mean something else
    draw(tmp_path)
    (tmp_path / "test" / "ape").mkdir()
    with pytest.raises(DataError, match="hold different classes"):
        data.load(f"imagefolder:{tmp_path}", Split.TEST, NOWHERE)


def test_a_class_without_images_is_refused(tmp_path: Path) -> None:
    draw(tmp_path)
    for part in ("train", "test"):
        (tmp_path / part / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        data.load(f"imagefolder:{tmp_path}", Split.TEST, NOWHERE)


def test_a_missing_folder_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no class folders; expected .*CLASS/IMAGE"):
        data.load(f"imagefolder:{tmp_path / 'absent'}", Split.TRAIN, NOWHERE)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    draw(tmp_path)
    (tmp_path / "train" / "cat" / "1.png").write_bytes(b"this is not a picture")
    with pytest.raises(DataError, match=r"1\.png"):
        data.load(f"imagefolder:{tmp_path}", Split.TRAIN, NOWHERE)


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    draw(tmp_path, size=(64, 64))
    path = tmp_path / "train" / "cat" / "1.png"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"1\.png"):
        data.load(f"imagefolder:{tmp_path}", Split.TRAIN, NOWHERE)


def test_imagefolder_needs_a_path() -> None:
    with pytest.raises(UsageError, match="write imagefolder:PATH"):
        data.load("imagefolder:", Split.TRAIN, NOWHERE)


# from outside


def outside(*, split: Split, root: Path) -> Images:
    return images(6, split=split)


def test_a_function_from_outside_is_a_data_set() -> None:
    found = data.load("test_data:outside", Split.TEST, NOWHERE)
    assert (found.name, found.split, len(found)) == ("test_data:outside", Split.TEST, 6)


# torchvision


class Offline:
    """A torchvision data set whose files are absent, on a machine without a network."""

    def __init__(self, root: str, download: bool, **_: object) -> None:
        raise OSError("no route to host") if download else RuntimeError("Dataset not found")


@pytest.mark.parametrize(
    ("name", "cls", "expected"),
    [
        ("cifar10", "CIFAR10", "cifar-10-python.tar.gz"),
        ("cifar100", "CIFAR100", "cifar-100-python.tar.gz"),
        ("svhn", "SVHN", "test_32x32.mat"),
        ("mnist", "MNIST", "train-images-idx3-ubyte.gz"),
        ("fashion-mnist", "FashionMNIST", "FashionMNIST"),
        ("stl10", "STL10", "stl10_binary.tar.gz"),
    ],
)
def test_absent_files_are_named_with_their_folder(
    name: str, cls: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, cls, Offline)
    with pytest.raises(DataError, match=f"{cls} is not in .*cannot be downloaded") as caught:
        data.load(name, Split.TEST, tmp_path)
    assert expected in str(caught.value)
    assert str(tmp_path.resolve()) in str(caught.value)
    assert "--data" in str(caught.value)
    assert "\n" not in str(caught.value)


def fake(monkeypatch: pytest.MonkeyPatch, cls: str, **found: object) -> list[dict[str, object]]:
    """Put a ready data set in place of a torchvision class; returns the arguments it will be called with."""
    calls: list[dict[str, object]] = []

    def make(root: str, **arguments: object) -> object:
        calls.append(arguments)
        return type("Found", (), found)

    monkeypatch.setattr(datasets, cls, make)
    return calls


def test_channels_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = numpy.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=numpy.uint8)
    calls = fake(monkeypatch, "CIFAR10", data=raw, targets=[3, 8])
    found = data.load("cifar10", Split.TEST, NOWHERE)
    assert numpy.array_equal(found.pixels.numpy(), raw.transpose(0, 3, 1, 2))
    assert found.y.tolist() == [3, 8]
    assert calls == [{"download": False, "train": False}]


def test_grey_images_get_a_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = torch.arange(2 * 28 * 28).view(2, 28, 28).to(torch.uint8)
    calls = fake(monkeypatch, "FashionMNIST", data=raw, targets=torch.tensor([7, 2]))
    found = data.load("fashion-mnist", Split.TRAIN, NOWHERE)
    assert torch.equal(found.pixels, raw[:, None])
    assert calls == [{"download": False, "train": True}]


def test_a_damaged_file_of_mnist_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # torchvision does not check the unpacked files itself
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (folder / f"{part}-{kind}-ubyte").write_bytes(b"not what was published")
    fake(monkeypatch, "MNIST", data=torch.zeros(1, 28, 28, dtype=torch.uint8), targets=torch.tensor([0]))
    with pytest.raises(DataError, match=r"ubyte is damaged .*fetch it again"):
        data.load("mnist", Split.TEST, tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "md5"),
    [
        ("cifar10", "cifar-10-batches-py/data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
        ("cifar100", "cifar-100-python/test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),
        ("svhn", "test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
        ("stl10", "stl10_binary/test_y.bin", "36f9794fa4beb8a2c72628de14fa638e"),
    ],
)
def test_a_damaged_file_is_named_and_neither_opened_nor_fetched(
    name: str, file: str, md5: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Runs:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(Runs()))
    monkeypatch.setattr("robench.data.torchvision._download", lambda *_: pytest.fail("it was fetched"))
    found = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(DataError, match=rf"{file} is damaged \(MD5 {found}, expected {md5}\): delete it"):
        data.load(name, Split.TEST, tmp_path)
    assert not (tmp_path / "ran").exists()


def cifar_archive(
    folder: Path, monkeypatch: pytest.MonkeyPatch, extra: dict[str, bytes] | None = None, known: bool = True
) -> numpy.ndarray:
    """A small CIFAR-10 in an archive, and torchvision's class with the digests of it; returns its training images."""
    generator = numpy.random.default_rng(0)
    contents, listed = {}, {"train": [], "test": []}
    pixels = generator.integers(0, 256, (6, 3072), dtype=numpy.uint8)
    for number, name in enumerate(("data_batch_1", "data_batch_2", "test_batch")):
        part = {"data": pixels[2 * number : 2 * number + 2], "labels": [number, number + 1]}
        contents[name] = pickle.dumps(part, protocol=2)
    contents |= extra or {}
    for name, content in contents.items():
        if "batch" in name:
            listed["test" if "test" in name else "train"].append((name, hashlib.md5(content).hexdigest()))
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as made:
        for name, content in {**contents, "../outside": b"escaped"}.items():
            member = tarfile.TarInfo(name if "/" in name else f"cifar-10-batches-py/{name}")
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    (folder / "cifar-10-python.tar.gz").write_bytes(stream.getvalue())
    digest = hashlib.md5(stream.getvalue()).hexdigest()
    for key, value in (("train_list", listed["train"]), ("test_list", listed["test"]), ("tgz_md5", digest)):
        if known:
            monkeypatch.setattr(datasets.CIFAR10, key, value)
    return pixels[:4].reshape(4, 3, 32, 32)


def test_an_archive_is_read_and_not_extracted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "data"
    root.mkdir()
    pixels = cifar_archive(root, monkeypatch)
    found = data.load("cifar10", Split.TRAIN, root)
    assert numpy.array_equal(found.pixels.numpy(), pixels)
    assert found.y.tolist() == [0, 1, 1, 2]
    assert data.load("cifar10", Split.TEST, root).y.tolist() == [2, 3]
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "cifar-10-python.tar.gz"]


def test_an_archive_that_is_not_the_published_one_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cifar_archive(tmp_path, monkeypatch, known=False)
    monkeypatch.setattr(tarfile, "open", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(DataError, match=r"tar\.gz is damaged \(MD5 \w+, expected c58f30108f718f92721af3b95e74349a\)"):
        data.load("cifar10", Split.TEST, tmp_path)


def test_a_member_that_is_not_made_of_arrays_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # even behind digests that fit

    class Runs:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    cifar_archive(tmp_path, monkeypatch, {"test_batch": pickle.dumps({"data": Runs()})})
    with pytest.raises(DataError, match=r"cannot be read: it would run posix\.system, and images are arrays"):
        data.load("cifar10", Split.TEST, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_member_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar_archive(tmp_path, monkeypatch)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [("other_batch", "0")])
    with pytest.raises(DataError, match=r"has no cifar-10-batches-py/other_batch"):
        data.load("cifar10", Split.TEST, tmp_path)


@pytest.mark.skipif("ROBENCH_DATA" not in os.environ, reason="needs CIFAR-10: set ROBENCH_DATA to a torchvision root")
def test_the_real_batches_open_from_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(os.environ["ROBENCH_DATA"])
    path = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as made:
        made.add(root / "cifar-10-batches-py" / "test_batch", "cifar-10-batches-py/test_batch")
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(path.read_bytes()).hexdigest())
    assert data.load("cifar10", Split.TEST, tmp_path).digest == data.load("cifar10", Split.TEST, root).digest


@pytest.mark.parametrize(("name", "cls", "size"), [("svhn", "SVHN", 32), ("stl10", "STL10", 96)])
def test_data_sets_with_named_splits(name: str, cls: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = numpy.zeros((1, 3, size, size), dtype=numpy.uint8)
    calls = fake(monkeypatch, cls, data=raw, labels=numpy.array([9]))
    found = data.load(name, Split.TEST, NOWHERE)
    assert found.pixels.shape == (1, 3, size, size)
    assert found.y.tolist() == [9]
    assert calls == [{"download": False, "split": "test"}]


@pytest.mark.skipif("ROBENCH_DATA" not in os.environ, reason="needs CIFAR-10: set ROBENCH_DATA to a torchvision root")
def test_cifar10_is_the_real_one() -> None:
    found = data.load("cifar10", Split.TEST, Path(os.environ["ROBENCH_DATA"]))
    assert (len(found), found.shape, found.classes) == (10_000, (3, 32, 32), 10)
    assert found.y[:5].tolist() == [3, 8, 8, 0, 6]
    assert found.y.bincount().tolist() == [1000] * 10


# shares of the labels


def unequal() -> Images:
    y = torch.tensor([0] * 40 + [1] * 20 + [2] * 10)[torch.randperm(70, generator=torch.Generator().manual_seed(3))]
    pixels = torch.arange(70, dtype=torch.uint8).view(70, 1, 1, 1)
    return Images("some", Split.TRAIN, pixels, y, 3)


@pytest.mark.parametrize(("share", "counts"), [(0.5, [20, 10, 5]), (0.1, [4, 2, 1]), (0.99, [40, 20, 10])])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_class_keeps_the_same_share(share: float, counts: list[int], seed: int) -> None:
    found = data.labelled(unequal(), share, seed)
    assert torch.bincount(found.y, minlength=3).tolist() == counts
    assert len(set(rows(found))) == len(found)
    whole = dict(zip(rows(unequal()), unequal().y.tolist(), strict=True))
    assert all(whole[row] == label for row, label in zip(rows(found), found.y.tolist(), strict=True))


def test_which_labels_depends_on_the_seed_alone() -> None:
    one, again, other = (data.labelled(unequal(), 0.3, seed) for seed in (0, 0, 1))
    assert rows(one) == rows(again)
    assert rows(one) != rows(other)
    # more labels are the same ones and others
    assert set(rows(one)) < set(rows(data.labelled(unequal(), 0.6, 0)))


def test_all_labels_are_the_images_as_they_are() -> None:
    whole = unequal()
    assert data.labelled(whole, 1.0, 0) is whole


def test_a_share_that_leaves_a_class_empty_is_refused() -> None:
    with pytest.raises(DataError, match=r"labels=0\.01 leaves no image of class 0 of some.*use more than 0\.013"):
        data.labelled(unequal(), 0.01, 0)
    with pytest.raises(DataError, match="no image of class 2"):
        data.labelled(unequal(), 0.04, 0)


# other sizes


def test_images_can_be_made_another_size() -> None:
    found = data.load("digits@resize=4", Split.TRAIN, NOWHERE)
    assert found.shape == (1, 4, 4)
    assert found.name == "digits"
    assert torch.equal(found.y, data.load("digits", Split.TRAIN, NOWHERE).y)


def test_resizing_keeps_flat_images_and_means() -> None:
    flat = torch.full((2, 3, 96, 96), 130, dtype=torch.uint8)
    assert (data.resized(flat, 32) == 130).all()
    noise = torch.randint(256, (2, 3, 96, 96), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    small = data.resized(noise, 32)
    assert small.shape == (2, 3, 32, 32)
    assert torch.allclose(small.float().mean(), noise.float().mean(), atol=1)
    assert small.float().std() < 0.6 * noise.float().std()  # antialiased: nine pixels make one


def test_the_own_size_changes_nothing() -> None:
    digits = data.load("digits", Split.TEST, NOWHERE)
    assert torch.equal(data.load("digits@resize=8", Split.TEST, NOWHERE).pixels, digits.pixels)


@pytest.mark.parametrize("size", [0, -3, 1.5, "big", True])
def test_a_size_that_is_none_is_refused(size: object) -> None:
    with pytest.raises(UsageError, match="resize must be a number of pixels of at least 1, such as 32"):
        data.resized(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), size)
