"""`check_dataset`: laws that every data set obeys."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from robench import data
from robench.data import Images, Split
from robench.errors import DataError
from robench.registry import DATASETS
from robench.testing.laws import LawError
from robench.testing.suite import demand, first_broken, held

FIRST = 200  # images that `--count` may take
SHARED = 0.01  # the share of test images that may also be training images, as some well-known sets have


@dataclass
class Trial:
    """A data set and what a law needs of it.

    Attributes:
        name: as `--dataset` has it.
        root: where data sets are kept.
    """

    name: str
    root: Path

    @cached_property
    def test(self) -> Images:
        """Its test images."""
        return data.load(self.name, Split.TEST, self.root)

    @cached_property
    def train(self) -> Images | None:
        """Its training images; None where it refuses to have any."""
        try:
            return data.load(self.name, Split.TRAIN, self.root)
        except DataError:
            return None


def is_images(trial: Trial) -> None:
    """Test images are uint8 NCHW with 1 or 3 channels and labels of at least two classes."""
    images = trial.test
    demand(isinstance(images, Images), f"it gave a {type(images).__name__}")
    demand(images.split is Split.TEST, f"asked for test it gave {images.split}")
    demand(images.shape[0] in (1, 3), f"its images have {images.shape[0]} channels; expected 1 or 3")
    demand(images.classes >= 2, f"it has {images.classes} classes")


def repeats(trial: Trial) -> None:
    """Loading it again gives the same pixels and labels in the same order."""
    again = data.load(trial.name, Split.TEST, trial.root)
    demand(again.digest == trial.test.digest, "pixels, labels or their order differ the second time")


def images_differ(trial: Trial) -> None:
    """Images are pictures: hardly any is of one colour, and not all are the same."""
    pixels = trial.test.pixels.flatten(1)
    flat = int((pixels.amax(1) == pixels.amin(1)).sum())
    demand(flat <= len(pixels) / 10, f"{flat} of {len(pixels)} images are of one colour")
    demand(len(pixels) == 1 or bool((pixels != pixels[0]).any()), "all images are the same")


def is_mixed(trial: Trial) -> None:
    """The first images are of several classes, since `--count N` takes the first N."""
    y = trial.test.y[:FIRST]
    demand(
        len(y) < FIRST or len(y.unique()) > 1,
        f"the first {FIRST} images are all of class {int(y[0])}: shuffle them once, by a fixed seed",
    )


def parts_fit(trial: Trial) -> None:
    """Training images have the shape and the classes of the test images; a set without any refuses with a DataError."""
    if trial.train is None:
        return
    one, two = ((part.shape, part.classes) for part in (trial.train, trial.test))
    demand(one == two, f"training images have shape and classes {one}, test images {two}")
    demand(trial.train.split is Split.TRAIN, f"asked for train it gave {trial.train.split}")


def parts_are_apart(trial: Trial) -> None:
    """Test images are not among the training images."""
    if trial.train is None:
        return
    seen = _digests(trial.train)
    shared = sum(each in seen for each in _digests(trial.test))
    count = len(trial.test)
    demand(shared <= SHARED * count, f"{shared} of {count} test images are among the training images")


def _digests(images: Images) -> set[bytes]:
    return {hashlib.blake2b(each.tobytes(), digest_size=16).digest() for each in images.pixels.contiguous().numpy()}


LAWS: Mapping[str, Callable[[Trial], None]] = {
    "D1": is_images,
    "D2": repeats,
    "D3": images_differ,
    "D4": is_mixed,
    "D5": parts_fit,
    "D6": parts_are_apart,
}


def outcomes(
    dataset: str, root: Path = Path("data"), laws: Iterable[str] | None = None
) -> Iterator[tuple[str, str, LawError | None]]:
    """Every law with what came of it; see `suite.held`."""
    exempt = DATASETS.entry(dataset).exempt
    trial = Trial(dataset, root)
    trial.test  # noqa: B018 (what cannot be loaded breaks no law, and is one error)
    return held("dataset", dataset, LAWS, trial, chosen=laws, exempt=exempt)


def check_dataset(dataset: str, root: Path = Path("data"), laws: Iterable[str] | None = None) -> dict[str, str]:
    """Hold a data set to the laws.

    Args:
        dataset: as `--dataset` has it: a name, a family such as `folder:PATH`, `module:object` or `my.py:make_dataset`.
        root: where data sets are kept.
        laws: names of `LAWS`; all when None.

    Returns:
        For each law `obeyed`, or `exempt: ` and the reason, from its row in the registry.

    Raises:
        LawError: for the first law that is broken.
        UsageError: for an unknown data set or law.
    """
    return first_broken(outcomes(dataset, root, laws))
