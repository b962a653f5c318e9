"""What a training run must fulfil, said before anything is trained or written."""

from __future__ import annotations

from robench.checkpoint import Checkpoint
from robench.data import Images
from robench.errors import CheckpointError, UsageError
from robench.protocols import Method
from robench.recipe import Stage
from robench.run import Run


def pseudo_share(method: Method) -> float:
    """The share of each batch that a method wants pseudo-labels for."""
    return float(getattr(method, "pseudo", 0.0))


def check_extra(run: Run, methods: list[Method]) -> None:
    """Whether there are images without labels where a stage wants some, and only there; needs no data.

    Raises:
        UsageError: naming the stage, or what has no use.
    """
    wanting = [number for number, method in enumerate(methods) if pseudo_share(method)]
    if run.recipe.extra and not wanting:
        raise UsageError(
            f"extra={run.recipe.extra} names images without labels, and no stage makes pseudo-labels for them: "
            "train rst, or leave extra away"
        )
    if wanting and not run.recipe.extra and run.recipe.labels == 1 and not run.steps:
        raise UsageError(
            f"stage {wanting[0]} ({run.recipe.stage[wanting[0]].method}) needs images without labels: name some with "
            "--set extra=DATASET or --set extra=npz:FILE, or use fewer labels than there are: --set labels=0.1"
        )


def check_stages(run: Run, methods: list[Method], images: Images) -> None:
    """Look at every stage for what could only fail later.

    Args:
        run: with the recipe and the encoder it starts from.
        methods: of the stages, in their order.
        images: all training images.

    Raises:
        UsageError: for a stage that cannot be run as the recipe has it.
        CheckpointError: for an encoder that does not fit.
    """
    trained: set[str] = {"encoder"} if run.encoder else set()
    for number, method in enumerate(methods):
        if method.select not in ("clean", "robust", "last"):
            raise UsageError(f"stage {number}: its method's `select` is {method.select!r}; use clean, robust or last")
        builds = "encoder" in method.trains and not getattr(method, "finetunes", False)
        if not builds and "encoder" not in trained and not run.steps:
            does = "fine-tunes an encoder" if "encoder" in method.trains else "keeps the encoder as it is"
            raise UsageError(
                f"stage {number} ({run.recipe.stage[number].method}) {does}, and nothing has trained one: "
                "name a checkpoint with --encoder, or put a stage before it"
            )
        if "encoder" in method.trains:
            trained.add("encoder")
        if getattr(method, "exact", False):
            _check_exact(number, run.recipe.stage[number])
        if pseudo_share(method):
            _check_pseudo(number, run.recipe.stage[number], methods[:number])
        if min(run.recipe.stage[number].batch, len(images)) < (fewest := getattr(method, "fewest", 1)):
            raise UsageError(
                f"stage {number} ({run.recipe.stage[number].method}) compares images with each other and needs at least "
                f"{fewest} a step, not {min(run.recipe.stage[number].batch, len(images))}: --set stage.{number}.batch={fewest}"
            )
        if run.recipe.stage[number].accumulate > 1 and (fewest > 1 or getattr(method, "exact", False)):
            raise UsageError(
                f"stage {number} ({run.recipe.stage[number].method}) "
                f"{'compares the images of a batch' if fewest > 1 else 'takes no steps'}, so parts of a batch are not the "
                f"batch: --set stage.{number}.accumulate=1"
            )
        against = getattr(method, "adversarial", method.select == "robust")
        if against and run.recipe.threat is None:
            raise UsageError(
                f"stage {number} ({run.recipe.stage[number].method}) needs a threat: --set threat=linf-8/255"
            )
    if run.encoder and (run.encoder.recipe.model, run.encoder.shape) != (run.recipe.model, images.shape):
        raise CheckpointError(_unfit(run, run.encoder, images))
    if run.encoder and run.encoder.recipe.normalise != run.recipe.normalise:
        raise CheckpointError(
            f"the encoder of {run.encoder.name} was trained with normalise={run.encoder.recipe.normalise}; "
            f"--set normalise={str(run.encoder.recipe.normalise).lower()}"
        )


def _unfit(run: Run, encoder: Checkpoint, images: Images) -> str:
    """Why an encoder cannot be put before a recipe's heads, and what to change."""
    model, size = encoder.recipe.model, encoder.shape[1]
    theirs = f"{model} for {'x'.join(map(str, encoder.shape))} images"
    ours = f"{run.recipe.model} for {'x'.join(map(str, images.shape))} images"
    ways = [f"--model {model}"] if model != run.recipe.model else []
    if encoder.shape != images.shape:
        can = encoder.shape[0] == images.shape[0] and encoder.shape[1] == encoder.shape[2]
        ways.append(f"--resize {size}" if can else f"--dataset {encoder.recipe.dataset}")
    return f"the encoder of {encoder.name} is {theirs}; this recipe wants {ours}. Use {' '.join(ways)}"


def _check_exact(number: int, stage: Stage) -> None:
    """A stage that is solved at once has no use for epochs and cannot see more than one view of an image."""
    if stage.epochs != 1 or stage.augment.name != "none":
        raise UsageError(
            f"stage {number} ({stage.method}) computes features once and solves the rest at once: "
            f"--set stage.{number}.epochs=1 --set stage.{number}.augment.name=none"
        )


def _check_pseudo(number: int, stage: Stage, before: list[Method]) -> None:
    """A stage with pseudo-labels needs a classifier that gives them, and room for both kinds of images in a batch."""
    if not any("head" in method.trains for method in before):
        raise UsageError(
            f"stage {number} ({stage.method}) has its pseudo-labels from the classifier of an earlier stage, and none "
            "trains one: put a [[stage]] such as standard before it"
        )
    if stage.batch < 2:
        raise UsageError(
            f"stage {number} ({stage.method}) takes labelled and pseudo-labelled images at each step, so at least 2: "
            f"--set stage.{number}.batch=2"
        )
