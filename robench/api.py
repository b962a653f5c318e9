"""The command line's five words for Python and notebooks: load_model, load_data, train, evaluate, report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor, nn

from robench import data, files, recipe, reporting, training
from robench.checkpoint import Checkpoint, open_checkpoint
from robench.checkup import checkup
from robench.data import Images, Split
from robench.device import chosen
from robench.door import moded
from robench.errors import UsageError
from robench.evaluation import Engine
from robench.foreign import Foreign, foreign, open_foreign
from robench.notebook import watching
from robench.protocols import Monitor, Target, unheard
from robench.registry import CLASSIFIERS
from robench.rendering.csv import tidy
from robench.rendering.markdown import markdown
from robench.rendering.notebook import notebook
from robench.results import Failure, Result, Store
from robench.run import Run
from robench.threat import ThreatModel

if TYPE_CHECKING:
    import pandas

Model: TypeAlias = "str | Target | Callable[[Tensor], Tensor]"
Data: TypeAlias = "str | Images | tuple[Any, Any] | Any"
Threat: TypeAlias = "str | ThreatModel"


@dataclass(frozen=True)
class Results:
    """What came of an evaluation: a record for each cell.

    Attributes:
        records: results, and failures with their reason.
        notes: what a look at the models showed.
    """

    records: tuple[Result | Failure, ...]
    notes: tuple[str, ...] = ()

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The cells that gave no result."""
        return tuple(record for record in self.records if isinstance(record, Failure))

    def tables(self, which: str = "all", intervals: bool = True) -> list[reporting.Table]:
        """The paper-style tables, `white-box`, `transfer` or `all`, as data, with 95 % intervals or without."""
        made = reporting.tables(self.records, which, intervals=intervals)
        first = [replace(made[0], notes=(*made[0].notes, *self.notes))] if made else []
        return first + made[1:]

    def table(self, which: str = "all", intervals: bool = True) -> str:
        """The same as Markdown."""
        return markdown(self.tables(which, intervals))

    def frame(self) -> pandas.DataFrame:
        """One row for each result; accuracies are fractions."""
        return tidy(self.records)

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        return notebook(self.tables()) if self.records else "<p>no cells</p>"

    def __str__(self) -> str:
        """The tables as text."""
        return self.table() if self.records else "no cells"


def load_data(source: Data, *, split: str = "test", root: str | Path = "data", count: int | None = None) -> Images:
    """Images and labels.

    Args:
        source: a name as `--dataset` takes it; a pair of images and labels as tensors or arrays; a torch data set; or
            `Images`, which stay as they are.
        split: `test` or `train`, of a name.
        root: where data sets are kept, or downloaded to.
        count: the first so many; all when None.

    Raises:
        UsageError: if nobody knows the name, or there are not that many.
        DataError: if the files are absent or damaged, or pixels are no pixels.
    """
    if split not in ("test", "train"):
        raise UsageError(
            f"split={split!r}: expected 'test' or 'train'; validation images are cut from those of training"
        )
    part = Split(split)
    if isinstance(source, str):
        found = replace(data.load(source, part, Path(root)), name=source)
    else:
        found = data.as_images(source, "data", part)
    if count is not None and not 1 <= count <= len(found):
        raise UsageError(f"count={count}: {found.name} has {len(found):,} images; use 1 to {len(found)}")
    return found if count is None else found.take(slice(count))


def load_model(
    model: Model,
    images: Data = None,
    *,
    weights: str | Path | None = None,
    preprocess: str = "",
    name: str = "",
    trained_against: Threat | None = None,
    checkpoints: str | Path = "checkpoints",
    root: str | Path = "data",
) -> Target:
    """A model to evaluate: a checkpoint of ours, or any classifier from elsewhere.

    Args:
        model: a run under `checkpoints` or its folder; what `--model` takes, such as `timm:resnet18` or `my.py:make_model`;
            a module, which is put into eval mode, or any function from images in [0, 1] to logits.
        images: what it will be evaluated on, which a classifier from elsewhere is tried on; see `load_data`.
        weights: a file to put into a classifier that a text names.
        preprocess: how it normalises: `cifar10`, `imagenet`, `0.5,0.5`; not at all when empty.
        name: how tables call it.
        trained_against: the threat it was trained against, if any.
        checkpoints: where training runs are.
        root: where data sets are kept.

    Raises:
        UsageError: for a name nobody knows, a package that is not installed, or missing images.
        CheckpointError: for weights that are absent, damaged or do not fit.
    """
    if isinstance(model, str) and not _is_foreign(model, Path(checkpoints)):
        return open_checkpoint(model, Path(checkpoints))
    if not isinstance(model, str) and not callable(model):
        return model
    if images is None:
        raise UsageError("a classifier from elsewhere needs the images it is for: load_model(model, 'cifar10')")
    found = load_data(images, root=root)
    threat = ThreatModel.parse(trained_against) if isinstance(trained_against, str) else trained_against
    if isinstance(model, str):
        stored = Path(weights) if weights is not None else None
        return open_foreign(
            model, found, dataset=found.name, stored=stored, preprocess=preprocess, name=name, threat=threat
        )
    if weights is not None:
        raise UsageError("weights= goes with a text that names a model; load them into yours before you hand it over")
    called = name or getattr(model, "__name__", type(model).__name__)
    return replace(foreign(model, found, name=called, preprocess=preprocess), threat=threat)


def _is_foreign(text: str, root: Path) -> bool:
    """Whether a text names a classifier from elsewhere, and not a run."""
    if any(path.is_dir() for path in (Path(text), root / text)):
        return False
    return ":" in text or text.partition("@")[0] in CLASSIFIERS.plugins()


def train(
    name: str,
    changes: Mapping[str, Any] | None = None,
    *,
    folder: str | Path | None = None,
    encoder: str | Checkpoint | None = None,
    seed: int = 0,
    steps: int | None = None,
    resume: bool = True,
    device: str = "",
    checkpoints: str | Path = "checkpoints",
    root: str | Path = "data",
    monitor: Monitor | None = None,
    tell: Callable[[str], None] = unheard,
) -> Checkpoint:
    """Train a recipe.

    Args:
        name: of the recipe, or the path of a TOML file.
        changes: values by path, such as `{"stage.0.epochs": 2}`.
        folder: the run's; `checkpoints`/NAME when None.
        encoder: a checkpoint whose encoder to start from.
        seed: of everything random.
        steps: only so many for each stage (a smoke run); all when None.
        resume: go on with an interrupted run; False to begin again.
        device: as torch calls it; the best there is when empty.
        checkpoints: where training runs are.
        root: where data sets are kept.
        monitor: told about every step; None draws bars in a notebook, and nothing elsewhere.
        tell: told in words what a person should know while it trains, such as `print`.

    Raises:
        UsageError: for a recipe that cannot be run, or a folder that holds another run.
        DataError: if the data is absent.
        TrainingError: if the loss stops being finite, or an attack inside a method gains nothing over an epoch.
    """
    wanted = recipe.load(name, list((changes or {}).items()))
    suffix = f"-seed{seed}" if seed else ""
    run = Run(
        recipe=wanted,
        folder=Path(folder) if folder is not None else Path(checkpoints) / f"{wanted.name}{suffix}",
        seed=seed,
        device=chosen(device or "auto"),
        data_root=Path(root),
        steps=steps,
        encoder=open_checkpoint(encoder, Path(checkpoints)) if isinstance(encoder, str) else encoder,
        tell=tell,
    )
    return training.train(run, resume=resume, monitor=monitor or watching())


def evaluate(
    models: Model | Sequence[Model],
    images: Data = None,
    attacks: str | Sequence[str] = "pgd-20",
    *,
    threats: Threat | Sequence[Threat] = (),
    sources: Model | Sequence[Model] = (),
    count: int | None = None,
    seed: int = 0,
    batch: int = 500,
    preprocess: str = "",
    results: str | Path | None = None,
    device: str = "",
    checkpoints: str | Path = "checkpoints",
    root: str | Path = "data",
    monitor: Monitor | None = None,
) -> Results:
    """Attack models and judge what comes out.

    Args:
        models: one or several; see `load_model`.
        images: what on; see `load_data`. Each checkpoint's own data set when None.
        attacks: one or several, as `--attack` takes them.
        threats: such as `linf-8/255`; the usual one of each model when empty.
        sources: craft on these (transfer); white-box when empty.
        count: how many test images; all when None.
        seed: of the attacks.
        batch: the most images at once.
        preprocess: how classifiers from elsewhere normalise that are handed over here; not at all when empty.
        results: the folder of results: what is there is not computed again. Nothing is kept when None.
        device: as torch calls it; the best there is when empty.
        checkpoints: where training runs are.
        root: where data sets are kept.
        monitor: told about every pass; None draws bars in a notebook, and nothing elsewhere.

    Raises:
        UsageError: for unknown names or options, or an attack that cannot be run on a model.
        CheckpointError: for a model that does not fit the images.
        DataError: for images no evaluation can use.
    """
    with _as_they_were([each for each in (*_several(models), *_several(sources)) if isinstance(each, nn.Module)]):
        engine = Engine(chosen(device or "auto"), Path(root), batch, monitor or watching())
        return _evaluated(
            engine, models, images, attacks, threats, sources, count, seed, preprocess, results, checkpoints
        )


def _evaluated(
    engine: Engine,
    models: Model | Sequence[Model],
    images: Data,
    attacks: str | Sequence[str],
    threats: Threat | Sequence[Threat],
    sources: Model | Sequence[Model],
    count: int | None,
    seed: int,
    preprocess: str,
    results: str | Path | None,
    checkpoints: str | Path,
) -> Results:
    """What `evaluate` does with an engine."""
    name, root = None, engine.data_root
    if images is not None:
        found = load_data(images, root=root)
        engine.give(found)
        images = found
        name = found.name

    def opened(model: Model) -> Target:
        return load_model(model, images, preprocess=preprocess, checkpoints=checkpoints, root=root)

    targets, crafted_on = (list(map(opened, _several(each))) for each in (models, sources))
    notes = [
        f"{target.name}: {said}"
        for target in targets
        if isinstance(target, Foreign)
        for said in checkup(target, engine.images(name or target.dataset, None), engine.device, engine.batch)
    ]
    jobs = engine.plan(
        targets,
        attacks=_several(attacks),
        threats=[each if isinstance(each, ThreatModel) else ThreatModel.parse(each) for each in _several(threats)],
        sources=crafted_on,
        count=count,
        seed=seed,
        dataset=name,
    )
    with files.scratch() as folder:
        store = Store(folder if results is None else Path(results))
        return Results(tuple(record for _, record, _ in engine.run(jobs, store)), tuple(notes))


def report(results: Results | str | Path = "results", *, dataset: str | None = None, which: str = "all") -> Results:
    """What is stored in a folder, to print, to show in a notebook or to ask for a table.

    Args:
        results: the folder, or what `evaluate` returned.
        dataset: only results on this one.
        which: not more than `white-box` or `transfer`.

    Raises:
        StoreError: if there is nothing there, or a record is damaged.
        UsageError: if the data set leaves nothing.
    """
    found = results if isinstance(results, Results) else Results(tuple(Store(Path(results)).records()))
    kept = tuple(record for record in found.records if dataset in (None, record.subject.dataset))
    if not kept:
        known = sorted({record.subject.dataset for record in found.records})
        raise UsageError(f"dataset={dataset!r} leaves none of the results; there are some on {', '.join(known)}")
    if which not in ("all", "white-box", "transfer"):
        raise UsageError(f"which={which!r}: expected all, white-box or transfer")
    parts = {"white-box": [r for r in kept if r.source is None], "transfer": [r for r in kept if r.source is not None]}
    return Results(kept if which == "all" else tuple(parts[which]), found.notes)


@contextmanager
def _as_they_were(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Give modules that were handed over their modes and their device back."""
    devices = [(each, tensor.device) for each in modules if (tensor := next(each.parameters(), None)) is not None]
    with moded(modules):
        try:
            yield
        finally:
            for each, device in devices:
                each.to(device)


def _several(given: Any) -> list[Any]:
    """One thing or several, as a list."""
    if isinstance(given, list | tuple):
        return list(given)
    return (
        list(given) if isinstance(given, Iterable) and not isinstance(given, str) and not callable(given) else [given]
    )
