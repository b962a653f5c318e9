"""Robust self-training: what a batch holds, who labels the images without labels, and that nobody reads their labels."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from robench import data, keeping, recipe, training, unlabelled
from robench.checkpoint import open_checkpoint
from robench.data import Images, Split
from robench.errors import DataError, RobenchError, UsageError
from robench.methods.rst import RST
from robench.methods.trades import TRADES
from robench.models import Nets
from robench.noise import permutation
from robench.protocols import Batch, Moment, Progress
from robench.recipe import Recipe
from robench.run import Run
from robench.training import train
from robench.unlabelled import Mixed, order, pixels_like, pseudo_labels

KEPT = 237  # training images beside 1,200 for validation


def tiny(**changes: Any) -> Recipe:
    """`rst-digits` on 237 images, few of them labelled, with a network of few weights."""
    small = {"model": "cnn@width=2", "validation": 1200, "stage__0__epochs": 3, "stage__1__epochs": 2}
    small |= {"stage__1__batch": 32, "stage__1__options__steps": 1}
    return recipe.load("rst-digits", [(key.replace("__", "."), value) for key, value in {**small, **changes}.items()])


def noise(labels: Callable[[Tensor], Tensor], classes: int = 10) -> Images:
    """100 images of noise, each bright at one corner where no digit is, with labels made of their numbers."""
    pixels = torch.randint(0, 256, (100, 1, 8, 8), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    pixels[:, :, 0, 0] = 255
    return Images("more", Split.TRAIN, pixels, labels(torch.arange(100)), classes)


def more(*, split: Split, root: Path) -> Images:
    assert split is Split.TRAIN
    return noise(lambda numbers: numbers % 10)


def more_otherwise(*, split: Split, root: Path) -> Images:
    return noise(lambda numbers: (numbers * 7 + 3) % 10)


def more_of_many_classes(*, split: Split, root: Path) -> Images:
    return noise(lambda numbers: numbers, classes=100)


SEEN: list[tuple[Batch, list[Tensor]]] = []


@dataclass(frozen=True)
class Recorder(RST):
    """RST that remembers its batches and the weights it began with."""

    views = ("original",)

    def terms(self, nets: Nets, batch: Batch, at: Moment) -> dict[str, Tensor]:
        SEEN.append((batch, [p.detach().clone() for p in nets.encoder.parameters()]))
        return super().terms(nets, batch, at)


RECORDED = {"stage__1__method": "test_unlabelled:Recorder"}


@pytest.fixture(autouse=True)
def forget() -> None:
    SEEN.clear()


def key(image: Tensor) -> bytes:
    return bytes((image * 255).round().to(torch.uint8).numpy())


def parts(found: Recipe, seed: int = 0) -> tuple[dict[bytes, int], Tensor]:
    """The labelled digits of a recipe with their labels, and the pixels of the others."""
    kept, _ = data.hold_out(data.load("digits", Split.TRAIN, Path()), found.validation)
    few = data.labelled(kept, found.labels, seed)
    own = {bytes(image.numpy()): int(y) for image, y in zip(few.pixels, few.y, strict=True)}
    rest = [image for image in kept.pixels if bytes(image.numpy()) not in own]
    return own, torch.stack(rest)


# what an epoch and a batch hold


def test_half_of_each_batch_is_labelled_and_half_is_labelled_by_the_first_stage(tmp_path: Path) -> None:
    found = tiny(**RECORDED)
    train(Run(found, tmp_path / "run"))
    own, rest = parts(found)
    first = open_checkpoint(str(_first_stage(found, tmp_path)), tmp_path).load()
    with torch.no_grad():
        guesses = first(rest.float() / 255).argmax(1)
    pseudo = {bytes(image.numpy()): int(y) for image, y in zip(rest, guesses, strict=True)}
    assert len(own) + len(pseudo) == KEPT
    assert len(SEEN) == 2 * (KEPT // 16)  # as many steps as all training images would take, were they labelled
    for batch, _ in SEEN:
        images = [key(image) for image in batch.views[0]]
        assert len(images) == 32
        assert [own[image] for image in images[:16]] == batch.y[:16].tolist()
        assert [pseudo[image] for image in images[16:]] == batch.y[16:].tolist()
    truth = {bytes(i.numpy()): int(y) for i, y in _all_digits()}
    assert any(truth[image] != label for image, label in pseudo.items())  # else true labels would pass unnoticed


def _all_digits() -> list[tuple[Tensor, Tensor]]:
    images = data.load("digits", Split.TRAIN, Path())
    return list(zip(images.pixels, images.y, strict=True))


def _first_stage(found: Recipe, root: Path) -> Path:
    """The folder of a run of the first stage alone; its last epoch is what the second stage goes on from."""
    alone = Recipe(**{**vars(found), "stage": found.stage[:1]})
    made = train(Run(alone, root / "first"))
    return Path(f"{made.folder}@last")


@pytest.mark.parametrize(("share", "expected"), [(0.5, (16, 16)), (0.25, (24, 8)), (0.01, (31, 1)), (0.99, (1, 31))])
def test_a_share_is_a_number_of_images_and_never_all_or_none(share: float, expected: tuple[int, int]) -> None:
    assert mixture(10, 40, share=share).parts(32) == expected


def mixture(labelled: int, others: int, *, share: float = 0.5, whole: int = 60) -> Mixed:
    pixels = torch.zeros(labelled + others, 1, 2, 2, dtype=torch.uint8)
    few = Images("some", Split.TRAIN, pixels[:labelled], torch.zeros(labelled, dtype=torch.int64), 2)
    labels = torch.ones(others, dtype=torch.int64)
    return unlabelled.mixed(few, pixels[labelled:], labels, share=share, whole=whole)


@pytest.mark.parametrize(("labelled", "others"), [(7, 50), (50, 7), (60, 500), (1, 1)])
def test_images_of_a_kind_come_equally_often(labelled: int, others: int) -> None:
    images = mixture(labelled, others)
    rows = order(images, 8, 0, "order", 1, 0)
    assert rows.shape == (15, 8)
    assert bool((rows[:, :4] % len(images) < labelled).all())
    assert bool((rows[:, 4:] % len(images) >= labelled).all())
    for kind, count in ((rows[:, :4], labelled), (rows[:, 4:], others)):
        times = Counter((kind % len(images)).flatten().tolist())
        assert max(times.values()) - (min(times.values()) if len(times) == count else 0) <= 1
    assert len(rows.unique()) == rows.numel()  # so what comes again is augmented and attacked in another way


def test_the_order_depends_on_its_place_alone() -> None:
    images = mixture(7, 50)
    assert torch.equal(order(images, 8, 0, "order", 1, 0), order(images, 8, 0, "order", 1, 0))
    assert not torch.equal(order(images, 8, 0, "order", 1, 0), order(images, 8, 0, "order", 1, 1))


def test_images_that_are_not_mixed_come_as_ever() -> None:
    images = Images("plain", Split.TRAIN, torch.zeros(10, 1, 2, 2, dtype=torch.uint8), torch.zeros(10).long(), 2)
    expected = permutation(data.seed_of(3, "order", 0, 1), 10)[:8].view(2, 4)
    assert torch.equal(order(images, 4, 3, "order", 0, 1), expected)


# who labels


def test_pseudo_labels_are_the_classifiers_own_and_leave_it_as_it_was() -> None:
    nets = training._initial_nets(Run(tiny(), Path("none")), data.load("digits", Split.TRAIN, Path()))
    nets.parts["head"] = torch.nn.Linear(nets.encoder.features, 10)
    nets.train()
    state = {name: value.clone() for name, value in nets.state_dict().items()}
    pixels = data.load("digits", Split.TRAIN, Path()).pixels[:50]
    found = pseudo_labels(nets, pixels, batch=7)
    assert nets.training
    assert all(torch.equal(value, state[name]) for name, value in nets.state_dict().items())
    assert torch.equal(found, nets.eval()(pixels.float() / 255).argmax(1))


def test_the_networks_start_anew(tmp_path: Path) -> None:
    found = tiny(**RECORDED)
    train(Run(found, tmp_path / "run"))
    first = open_checkpoint(str(_first_stage(found, tmp_path)), tmp_path).load()
    before = training._initial_nets(Run(found, tmp_path), data.load("digits", Split.TRAIN, Path()))
    for other in (first, before):  # neither the weights of the first stage nor those it began with
        assert not any(
            torch.equal(a, b) for a, b in zip(SEEN[0][1], other.encoder.parameters(), strict=True) if a.ndim > 1
        )


def test_the_loss_is_that_of_trades() -> None:
    assert RST.terms is TRADES.terms
    assert issubclass(RST, TRADES)


# labels that nobody reads


def test_labels_of_extra_images_change_nothing(tmp_path: Path) -> None:
    runs = [tiny(extra=f"test_unlabelled:{name}") for name in ("more", "more_otherwise", "more_of_many_classes")]
    made = {train(Run(run, tmp_path / str(number))).sha256 for number, run in enumerate(runs)}
    assert len(made) == 1
    assert train(Run(tiny(), tmp_path / "without")).sha256 not in made


def test_labels_beyond_the_share_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tiny(validation=0)
    whole = data.load("digits", Split.TRAIN, Path())
    told = data._chosen(whole, found.labels, 0)
    hidden = torch.ones(len(whole), dtype=torch.bool)
    hidden[told] = False
    made = {train(Run(found, tmp_path / "true")).sha256}
    monkeypatch.setattr(data, "labelled", lambda images, share, seed: images.take(told))
    monkeypatch.setattr(data, "unlabelled", lambda images, share, seed: images.pixels[hidden])
    y = torch.where(hidden, (whole.y + 1) % 10, whole.y)
    monkeypatch.setattr(data, "load", lambda *_: Images("digits", Split.TRAIN, whole.pixels, y, 10))
    made.add(train(Run(found, tmp_path / "false")).sha256)
    assert len(made) == 1


def test_what_a_share_of_labels_leaves_out_is_the_rest() -> None:
    images = data.load("digits", Split.TRAIN, Path())
    few, rest = data.labelled(images, 0.1, 3), data.unlabelled(images, 0.1, 3)
    assert len(few) + len(rest) == len(images)
    both = sorted(bytes(image.numpy()) for image in torch.cat([few.pixels, rest]))
    assert both == sorted(bytes(image.numpy()) for image in images.pixels)
    assert len(data.unlabelled(images, 1.0, 3)) == 0


def test_extra_images_and_the_rest_of_a_share_are_used_together(tmp_path: Path) -> None:
    train(Run(tiny(extra="test_unlabelled:more", stage__1__epochs=20, **RECORDED), tmp_path / "run"))
    known = {bytes(image.numpy()) for image in noise(lambda numbers: numbers % 10).pixels}
    seen = {key(image) for batch, _ in SEEN for image in batch.views[0][16:]}
    _, rest = parts(tiny())
    assert seen == known | {bytes(image.numpy()) for image in rest}


def test_all_labels_and_extra_images(tmp_path: Path) -> None:
    train(Run(tiny(labels=1.0, extra="test_unlabelled:more", **RECORDED), tmp_path / "run"))
    assert all(bool((batch.views[0][:16, 0, 0, 0] < 1).all()) for batch, _ in SEEN)
    assert all(bool((batch.views[0][16:, 0, 0, 0] == 1).all()) for batch, _ in SEEN)


# files of images


def test_a_file_of_images_is_the_same_as_a_data_set_of_them(tmp_path: Path) -> None:
    pixels = noise(lambda numbers: numbers % 10).pixels
    np.savez(tmp_path / "grey.npz", image=pixels[:, 0].numpy())
    np.savez(tmp_path / "last.npz", image=pixels.permute(0, 2, 3, 1).numpy(), label=np.arange(100))
    like = data.load("digits", Split.TRAIN, Path())
    for name in ("grey", "last"):
        assert torch.equal(pixels_like(f"npz:{tmp_path}/{name}.npz", like, tmp_path), pixels)
    one = train(Run(tiny(extra=f"npz:{tmp_path}/grey.npz"), tmp_path / "file"))
    assert one.sha256 == train(Run(tiny(extra="test_unlabelled:more"), tmp_path / "set")).sha256


def test_colours_of_a_file_stay_in_place(tmp_path: Path) -> None:
    image = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    np.savez(tmp_path / "rgb.npz", image=image)
    like = Images("rgb", Split.TRAIN, torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.zeros(1).long(), 2)
    found = pixels_like(f"npz:{tmp_path}/rgb.npz", like, tmp_path)
    assert int(found[1, 2, 3, 0]) == image[1, 3, 0, 2]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((2, 8, 8), np.uint8)}, "holds no array `image`"),
        ({"image": np.zeros((2, 8, 8), np.float32)}, r"must be uint8 .* not float32 \(2, 8, 8\)"),
        ({"image": np.zeros((0, 8, 8), np.uint8)}, "must be uint8"),
        ({"image": np.zeros((8, 8), np.uint8)}, "must be uint8"),
        ({"image": np.array([{}, {}], dtype=object)}, "cannot be read"),
        ({"image": np.zeros((2, 9, 8), np.uint8)}, "has 1x9x8 images, and digits has 1x8x8: name others"),
        ({"image": np.zeros((2, 8, 8, 3), np.uint8)}, "has 3x8x8 images, and digits has 1x8x8"),
    ],
)
def test_a_file_of_something_else_is_refused(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "file.npz", **arrays)
    refused(tiny(extra=f"npz:{tmp_path}/file.npz"), tmp_path, message)


@pytest.mark.parametrize("content", [b"", b"no such thing", b"PK\x03\x04 broken", None])
def test_no_file_and_a_damaged_one_are_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "file.npz").write_bytes(content)
    refused(tiny(extra=f"npz:{tmp_path}/file.npz"), tmp_path, r"file\.npz cannot be read")


def refused(found: Recipe, folder: Path, message: str) -> None:
    with pytest.raises(RobenchError, match=message):
        train(Run(found, folder / "run"))
    assert not (folder / "run").exists()


# what cannot be trained


def test_extra_images_of_another_size_are_refused_with_the_way_out(tmp_path: Path) -> None:
    like = data.load("digits", Split.TRAIN, Path())
    with pytest.raises(
        DataError, match="has 1x9x9 images, and digits has 1x8x8: --set extra=test_unlabelled:large@resize=8"
    ):
        pixels_like("test_unlabelled:large", like, tmp_path)
    assert pixels_like("test_unlabelled:large@resize=8", like, tmp_path).shape == (4, 1, 8, 8)


def large(*, split: Split, root: Path) -> Images:
    return Images("large", split, torch.zeros(4, 1, 9, 9, dtype=torch.uint8), torch.zeros(4).long(), 10)


def test_no_images_without_labels_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    refused(tiny(labels=1.0), tmp_path, r"stage 1 \(rst\) needs images without labels: .*extra=DATASET.*labels=0\.1")


def test_a_smoke_run_needs_no_images_without_labels(tmp_path: Path) -> None:
    assert train(Run(tiny(labels=1.0), tmp_path / "run", steps=2)).stages == 2


def test_extra_images_that_nothing_reads_are_refused(tmp_path: Path) -> None:
    found = recipe.load("standard-digits", [("extra", "test_unlabelled:more")])
    refused(found, tmp_path, "no stage makes pseudo-labels")


def test_a_first_stage_has_nobody_to_ask(tmp_path: Path) -> None:
    found = tiny()
    refused(Recipe(**{**vars(found), "stage": found.stage[1:]}), tmp_path, "put a .* such as standard before it")


def test_a_batch_holds_both_kinds(tmp_path: Path) -> None:
    refused(tiny(stage__1__batch=1), tmp_path, r"--set stage\.1\.batch=2")


@pytest.mark.parametrize("extra", ["digits", "digits@resize=8"])
def test_the_training_images_are_not_extra(extra: str) -> None:
    with pytest.raises(UsageError, match=r"names the training images themselves.*labels"):
        tiny(extra=extra)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no dataset 'cifar11'|unknown dataset|cifar10"):
        tiny(extra="cifar11")


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, float("nan")])
def test_a_share_of_all_or_none_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match="pseudo must be a share above 0 and below 1"):
        RST(pseudo=share)


# the same run again


class StoppedError(Exception):
    """Stands for the end of a process."""


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".safetensors", ".jsonl")}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(Run(tiny(), folder))
    return content(folder)


@pytest.mark.parametrize("every", [0.0, 1e9], ids=["saves each epoch", "saves each stage"])
@pytest.mark.parametrize("epoch", [1, 3, 4, 5])  # of three in the first stage and two in the second
def test_a_resumed_run_is_the_uninterrupted_one(
    epoch: int, every: float, tmp_path: Path, uninterrupted: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "SAVE_EVERY", every)
    finished = 0
    tasks: dict[str, float] = {}

    def monitor(progress: Progress) -> None:
        nonlocal finished
        tasks[progress.task] = progress.done / progress.total
        finished = sum(round(share * total) for share, total in zip(tasks.values(), (3, 2), strict=False))
        if sum(share * total for share, total in zip(tasks.values(), (3, 2), strict=False)) > epoch - 0.5:
            raise StoppedError

    run = Run(tiny(), tmp_path / "run")
    with pytest.raises(StoppedError):
        train(run, monitor=monitor)
    train(run, resume=True)
    assert content(run.folder) == uninterrupted


def test_a_run_that_stands_in_its_second_stage_labels_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "SAVE_EVERY", 0.0)

    def monitor(progress: Progress) -> None:
        if "rst" in progress.task and progress.done > 0.75 * progress.total:
            raise StoppedError

    run = Run(tiny(), tmp_path / "run")
    with pytest.raises(StoppedError):
        train(run, monitor=monitor)
    monkeypatch.setattr(unlabelled, "pseudo_labels", None)
    assert train(run, resume=True).stages == 2


# what it is for


@pytest.mark.nightly
def test_images_without_labels_help(tmp_path: Path) -> None:
    """On a tenth of the labels: robust and clean accuracy on test images, beside TRADES for as many steps on that tenth."""
    steps = [("labels", 0.1), ("stage.0.epochs", 475), ("stage.0.batch", 64)]
    recipes = {"rst": recipe.load("rst-digits"), "alone": recipe.load("trades-digits", steps)}
    test = data.load("digits", Split.TEST, Path())
    figures = {}
    for name, found in recipes.items():
        nets = train(Run(found, tmp_path / name)).load()
        figures[name] = training.validate(nets, test, found.threat, seed=0)
    assert figures["rst"]["validation robust"] > figures["alone"]["validation robust"] + 0.03
    assert figures["rst"]["validation clean"] > figures["alone"]["validation clean"] - 0.02


def test_a_share_of_labels_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    wanted = recipe.load("rst-digits", [("labels", 0.99999)])
    with pytest.raises(UsageError, match="leaves no image without a label"):
        train(Run(wanted, tmp_path / "a"))
    assert not (tmp_path / "a").exists()
