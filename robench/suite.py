"""Suites: the columns of a paper's table as data, so that one word evaluates them and one word tabulates them.

Source: Kim, Tack & Hwang 2020 (RoCL, arXiv 2006.07589v1) and, for the step size, its released code.
"""

from __future__ import annotations

from dataclasses import dataclass

from robench.errors import unknown
from robench.threat import ThreatModel


@dataclass(frozen=True)
class Column:
    """One column: what to attack with, and how.

    Attributes:
        label: of the attack, as tables print it.
        attack: as `--attack` takes it.
        threat: the ball.
        source: craft on a checkpoint trained by this method alone (transfer); white-box when empty.
        draws: judge the classifier smoothed over so many random augmentations; 0 as `--inference` says, or not at all.
        adaptive: what a smoothed classifier is attacked with besides, since `attack` does not climb through the
            augmentations.
    """

    label: str
    attack: str
    threat: ThreatModel
    source: str = ""
    draws: int = 0
    adaptive: str = "eot-pgd@steps=20,step=0.1"


@dataclass(frozen=True)
class Suite:
    """The columns of one table.

    Attributes:
        name: what people type.
        summary: one line for `robench list suites`.
        columns: in the paper's order; clean accuracy comes with them.
        dataset: what the paper evaluates on; any other data set runs too.
        tables: where published figures are taken from, the first that has one; anywhere when empty.
        notes: what a reader of the table must know.
        clean: whether the table has a column of clean accuracy.
        whole: whether its published figures are of all test images.
    """

    name: str
    summary: str
    columns: tuple[Column, ...]
    dataset: str = "cifar10"
    tables: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    clean: bool = True
    whole: bool = True

    @property
    def roles(self) -> tuple[str, ...]:
        """The methods whose checkpoints images are crafted on, each once."""
        return tuple(dict.fromkeys(column.source for column in self.columns if column.source))

    @property
    def smooths(self) -> bool:
        """Whether its columns say themselves over how many draws the classifier is smoothed."""
        return any(column.draws for column in self.columns)


def pgd(steps: int = 20) -> str:
    """The paper's PGD: steps of eps/10, a single uniform start."""
    return f"pgd@steps={steps},step=0.1"


def threats(*texts: str) -> tuple[ThreatModel, ...]:
    """Several at once."""
    return tuple(map(ThreatModel.parse, texts))


SEEN, FAR = threats("linf-8/255", "linf-16/255")
GRID = (SEEN, FAR, *threats("l2-0.25", "l2-0.5", "l1-7.84", "l1-12"))
ROUNDED = (
    "The paper's 0.0314 and 0.0627 are evaluated as exactly 8/255 and 16/255, in steps of eps/10 as its code has them."
)
LAST = (
    "As in the paper: all test images, and the last epoch (NAME@best evaluates the one picked on the validation split)."
)
UNSTATED = "The paper states neither steps nor step size in l2 and l1; these have those of linf."
SOURCES = "Sources are checkpoints that AT (pgd-at) or TRADES alone trained; a source is not its own target."


def _grid(attack: str, label: str, balls: tuple[ThreatModel, ...] = GRID) -> tuple[Column, ...]:
    return tuple(Column(label, attack, ball) for ball in balls)


SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            "rocl-table1",
            "RoCL table 1: PGD-20 in linf, l2 and l1, white-box",
            _grid(pgd(), "PGD-20"),
            tables=("table 1", "table 4", "table 6"),
            notes=(LAST, ROUNDED, UNSTATED),
        ),
        Suite(
            "rocl-table2",
            "RoCL table 2: PGD-20 crafted on AT and TRADES, black-box",
            tuple(Column("PGD-20", pgd(), ball, source=role) for ball in (SEEN, FAR) for role in ("pgd-at", "trades")),
            tables=("table 2",),
            notes=(LAST, ROUNDED, SOURCES),
            clean=False,
        ),
        Suite(
            "rocl-table3",
            "RoCL table 3: robust transfer to another data set, PGD-20",
            _grid(pgd(), "PGD-20", (SEEN,)),
            tables=("table 3",),
            notes=(
                LAST,
                ROUNDED,
                "The paper's table does not print the radius; 8/255 is taken, as everywhere in its text.",
            ),
        ),
        Suite(
            "rocl-table5",
            "RoCL table 5: PGD with 20, 40 and 100 steps",
            tuple(
                Column(f"PGD-{steps}", pgd(steps), SEEN, adaptive=f"eot-pgd@steps={steps},step=0.1")
                for steps in (20, 40, 100)
            ),
            tables=("table 5", "table 1"),
            notes=(LAST, ROUNDED, "All three have steps of eps/10."),
        ),
        Suite(
            "rocl-table7",
            "RoCL table 7: table 1's columns on CIFAR-100",
            _grid(pgd(), "PGD-20"),
            dataset="cifar100",
            tables=("table 7",),
            notes=(LAST, ROUNDED, UNSTATED),
        ),
        Suite(
            "rocl-table8",
            "RoCL table 8: Carlini-Wagner",
            (Column("CW", "cw", GRID[3]), Column("PGD-20 on CW's loss", f"{pgd()},loss=cw-margin", SEEN)),
            tables=("table 8",),
            notes=(
                LAST,
                "The paper states no radius, steps or norm for CW: the smallest l2 perturbations are counted up to 0.5, and "
                "its margin is climbed in linf; neither need be the paper's attack.",
            ),
        ),
        Suite(
            "rocl-fig3c",
            "RoCL figure 3c: clean and PGD-20 accuracy, a row for each length of pre-training",
            _grid(pgd(), "PGD-20", (SEEN, FAR)),
            tables=("fig. 3c", "figure 3c"),
            notes=(
                LAST,
                ROUNDED,
                "Its rows are epochs of one run; robench sweep rocl --set stage.0.epochs=50,100,200 trains a run for each.",
            ),
        ),
        Suite(
            "rocl-fig3d",
            "RoCL figure 3d: PGD-20 crafted on AT against 1, 10 and 100 augmentation draws",
            tuple(
                Column("PGD-20", pgd(), ball, "pgd-at", draws)
                for draws in (1, 10, 100)
                for ball in threats("linf-2/255", "linf-4/255", "linf-8/255", "linf-16/255", "linf-32/255")
            ),
            tables=("fig. 3d", "figure 3d"),
            notes=(
                LAST,
                SOURCES,
                "A transfer is no adaptive attack: a smoothed classifier's robustness is what eot-pgd leaves.",
            ),
            clean=False,
        ),
        Suite(
            "rocl-strong",
            "table 1's threats under APGD-CE and AutoAttack, in each norm its own",
            tuple(
                Column(label, attack, ball, adaptive="autoattack-rand")
                for ball in GRID
                for label, attack in (("APGD-CE", "apgd-ce"), ("AutoAttack", "autoattack"))
            ),
            notes=(LAST, "The paper has neither attack; published figures are those that others measured."),
            whole=False,
        ),
    )
}


def suite(name: str) -> Suite:
    """A suite by its name.

    Raises:
        UsageError: if there is none; the message suggests the nearest.
    """
    if name not in SUITES:
        raise unknown("suite", name, SUITES, "robench list suites")
    return SUITES[name]
