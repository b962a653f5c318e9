"""`robench report`, `robench plot` and `robench verify`: what follows from the files in results/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from robench.cli.asked import Asked, again
from robench.cli.option import BY, UNITS, Choice, filtered, format_of, refuse, results_option, runs_option, there
from robench.errors import UsageError
from robench.suite import SUITES

if TYPE_CHECKING:
    from robench.diagnosis import Diagnosis
    from robench.exhibits import Exhibits, Training
    from robench.panels import Figure
    from robench.reference import Reference
    from robench.reporting import Table
    from robench.results import Failure, Result
    from robench.selection import Selection


@click.command(short_help="Print the tables of results/.")
@click.option(
    "--format",
    "form",
    type=Choice(["terminal", "markdown", "csv", "latex", "json", "html"]),
    default="terminal",
    show_default=True,
    help="Unless named, what the ending of --out says. html is one file with figures; it needs pip install 'robench[plot]'.",
)
@click.option(
    "--table",
    type=Choice(["all", "white-box", "transfer", "union", "cells", "cost", "classes", "indicators", *SUITES]),
    default="all",
    show_default=True,
    help="A suite's table has ours beside the published; union: what attacks leave together, and what each adds; "
    "classes: the class that is worst off; indicators: signs of masked gradients. CSV holds one table: `cells` (a row per "
    "result) unless named.",
)
@click.option(
    "--intervals/--no-intervals",
    default=None,
    help="95 % intervals beside every accuracy, or their width below the table. By default in markdown, html and json.",
)
@filtered
@click.option(
    "--reference",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.toml",
    help="Figures that others measured, as rows of their own: docs/tables.md has the format.",
)
@results_option
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write to a file instead of stdout.")
@click.option(
    "--checkpoints",
    type=click.Path(path_type=Path),
    callback=there,
    help="For --format html: add the training curves of the runs there. For --table cost: what they cost, where the results do "
    "not hold it.",
)
@click.option("--by", type=Choice(list(BY)), help="For --table cost and html: whose cost the Pareto marks are about.")
@click.option("--unit", type=Choice(list(UNITS)), help="Of that cost; seconds by default.")
def report(
    form: str,
    table: str,
    intervals: bool | None,
    results: Path,
    out: Path | None,
    checkpoints: Path | None,
    reference: Path | None,
    selection: Selection,
    by: str | None,
    unit: str | None,
) -> None:
    """Print the tables of everything in results/: a pure function of the files there."""
    from robench.selection import selected

    form = format_of(form, out)
    if intervals is not None and form == "csv" and table not in ("white-box", "transfer"):
        raise UsageError(
            "--intervals in CSV is for --table white-box or transfer; other tables always have their columns"
        )
    if checkpoints and form != "html" and table != "cost":
        raise UsageError(f"--checkpoints is for --format html or --table cost; --format {form} has no figures")
    if reference and table not in ("all", "white-box", *SUITES):
        raise UsageError(f"--reference is for --table white-box or a suite's; {table} has no row for it")
    if (by or unit) and table != "cost" and form != "html":
        raise UsageError("--by and --unit are for --table cost or --format html; no other has Pareto marks")
    asked = Asked(form, table, selection, intervals, reference, checkpoints, by or "training", unit or "seconds")
    print_report(selected(stored(results, None), selection), asked, out, results)
    if out is not None and (options := asked.options(results)):
        from robench.verification import remember

        remember(results, out, options)


@click.command(short_help="Draw results/: curves, transfer, union, cost, classes, images.")
@click.option(
    "--kind",
    type=Choice(["curves", "transfer", "union", "pareto", "training", "classes", "examples", "features"]),
    default="curves",
    show_default=True,
    help="Accuracy against eps; transfer matrices; which attacks broke which images; seconds against accuracy left; what "
    "each run in --checkpoints logged; accuracy by class; adversarial images of robench show --keep; t-SNE of robench "
    "features.",
)
@filtered
@click.option(
    "--by",
    type=Choice(["attack", *BY]),
    help="For --kind pareto: what each attack costs (the default), or each checkpoint in training, evaluation or total.",
)
@click.option("--unit", type=Choice(list(UNITS)), help="For --kind pareto: of the cost; seconds by default.")
@results_option
@runs_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE.(svg|png|pdf)",
    help="The file; its ending says the format.",
)
@click.pass_context
def plot(
    context: click.Context,
    kind: str,
    selection: Selection,
    by: str | None,
    unit: str | None,
    results: Path,
    checkpoints: Path,
    out: Path,
) -> None:
    """Draw what is in results/ into a file: the same records give the same bytes. Needs pip install 'robench[plot]'.

    Results on other images, or by another seed, are other figures, one below the other.
    """
    from robench.files import write
    from robench.rendering.drawing import FORMATS, draw

    if kind != "training":
        refuse(context, ["--checkpoints"], f"is for --kind training; --kind {kind} is drawn from results")
    form = out.suffix[1:].lower()
    if form not in FORMATS:
        raise UsageError(f"--out {out}: the name must end in {', '.join(f'.{each}' for each in FORMATS)}")
    if (by or unit) and kind != "pareto":
        raise UsageError(f"--by and --unit are for --kind pareto; {kind} has no axis of costs")
    if kind == "training":
        drawn = _runs(selection, checkpoints)
    else:
        drawn = _drawn(kind, selection, results, by or "attack", unit or "seconds")
    write(out, draw(drawn, form))


def _runs(selection: Selection, checkpoints: Path) -> list[Figure]:
    """The training curves of runs, which no filter of results is about."""
    from robench.figures import training

    if any(vars(selection).values()):
        raise UsageError(
            "--dataset, --attack, --threat, --source and --seed are for what is drawn from results; --kind training draws the "
            "runs in --checkpoints"
        )
    if not (drawn := training(checkpoints)):
        raise UsageError(f"no run in {checkpoints} has logged an epoch: robench train rocl, or robench demo")
    return drawn


def _drawn(kind: str, selection: Selection, results: Path, by: str, unit: str) -> list[Figure]:
    """The figures of one kind, of what a selection leaves."""
    from robench import cost, diagnosis, exhibits, gallery
    from robench.figures import figures
    from robench.selection import selected

    diagnoses, shown = diagnosis.records(results), exhibits.load(results)
    if kind == "features":
        return gallery.figures([], shown, kind, diagnoses, selection=selection)
    records = selected(stored(results, None), selection)
    if kind in gallery.KINDS:
        return gallery.figures(records, shown, kind, diagnoses)
    if kind == "pareto" and by != "attack":
        return cost.figures(records, shown.training, by, unit, diagnoses)
    return figures(records, kind, diagnoses, unit)


@click.command(short_help="Check results, and that tables follow from them.")
@click.argument("results", type=click.Path(path_type=Path), default="results")
@click.option("--check", is_flag=True, help="Make the tables of RESULTS/tables.json again and compare every byte.")
@click.option(
    "--checkpoints",
    type=click.Path(path_type=Path),
    callback=there,
    help="Compare weights there with what records name.",
)
def verify(results: Path, check: bool, checkpoints: Path | None) -> None:
    """Check every record in RESULTS: digest, key, bits, norms; list failures, flags and cells that are missing.

    Tables that `robench report --out RESULTS/NAME` wrote are listed in RESULTS/tables.json. Exit code 1 when anything is
    wrong; a missing cell is not.
    """
    from robench import verification
    from robench.rendering.markdown import markdown
    from robench.selection import selected

    def render(records: Sequence[Result | Failure], options: Mapping[str, str | None]) -> str:
        asked = again(options, results)
        return _text(selected(records, asked.selection), asked, file=True, results=results)

    checks, records = verification.verify(results, checkpoints)
    if check:
        checks.append(verification.rederive(results, records, render))
    click.echo(markdown(verification.tables(checks)), nl=False)
    if any(each.wrong for each in checks):
        raise SystemExit(1)


def stored(results: Path, dataset: str | None) -> list[Result | Failure]:
    """What is stored, on one data set if one is named.

    Raises:
        UsageError: if the data set leaves nothing.
    """
    from robench.results import Store
    from robench.selection import Selection, selected

    return selected(Store(results).records(), Selection(dataset=(dataset,) if dataset else ()))


def print_report(records: Sequence[Result | Failure], asked: Asked, out: Path | None, results: Path) -> None:
    """Render records to stdout or a file."""
    from robench.files import write

    text = _text(records, asked, file=out is not None, results=results)
    if out is not None:
        write(out, text.encode())
    else:
        click.echo(text, nl=False)


def _render(
    made: Sequence[Table],
    records: Sequence[Result | Failure],
    asked: Asked,
    diagnoses: Sequence[Diagnosis],
    shown: Exhibits,
) -> str:
    """Tables in a format for files; HTML has the figures of the records too, and the training curves of runs."""
    from robench import gallery
    from robench.figures import figures, training
    from robench.rendering.html import html
    from robench.rendering.json import json
    from robench.rendering.latex import latex
    from robench.rendering.markdown import markdown

    if asked.form == "latex":
        return latex(made)
    if asked.form == "json":
        return json(made, records, diagnoses)
    if asked.form == "html":
        drawn = figures(records, diagnoses=diagnoses, unit=asked.unit) + _worth(records, asked, diagnoses, shown)
        drawn += training(asked.checkpoints) if asked.checkpoints else []
        datasets = {record.subject.dataset for record in records}
        kept = replace(shown, embeddings=tuple(e for e in shown.embeddings if e.subject.dataset in datasets))
        return html(made, drawn + gallery.figures(records, kept, diagnoses=diagnoses))
    return markdown(made)


def _worth(
    records: Sequence[Result | Failure], asked: Asked, diagnoses: Sequence[Diagnosis], shown: Exhibits
) -> list[Figure]:
    """What checkpoints cost and are worth, where that is known."""
    from robench import cost
    from robench.errors import StoreError

    try:
        return cost.figures(records, _costs(asked, shown), asked.by, asked.unit, diagnoses)
    except StoreError:
        return []


def _costs(asked: Asked, shown: Exhibits) -> tuple[Training, ...]:
    """What training cost: as stored with the results, and of runs at hand where that is not."""
    from robench.spending import trained

    at_hand = trained(asked.checkpoints) if asked.checkpoints else {}
    return tuple({**at_hand, **{each.checkpoint: each for each in shown.training}}.values())


def _text(records: Sequence[Result | Failure], asked: Asked, *, file: bool, results: Path) -> str:
    """What a report says, as text."""
    from robench import diagnosis, exhibits, reference, terminal
    from robench.rendering.csv import csv

    diagnoses, shown = diagnosis.records(results), exhibits.load(results)
    if asked.form == "csv" and asked.table in ("all", "cells"):
        if asked.reference:
            raise UsageError("--reference needs --table white-box or a suite's in CSV, where all means cells")
        return csv(records, "cells", diagnoses)
    if asked.table == "cells":
        raise UsageError("--table cells is for --format csv")
    references = reference.load(asked.reference) if asked.reference else ()
    datasets = sorted({record.subject.dataset for record in records})
    if references and not any(each.dataset in datasets for each in references):
        raise UsageError(f"--reference {asked.reference}: none of its figures is on {', '.join(datasets)}")
    if asked.form == "csv":
        return _csv(records, asked, diagnoses, references, shown)
    made = _tables(records, asked, diagnoses, references, shown)
    if asked.form == "terminal":
        return terminal.text(made, file=file)
    return _render(made, records, asked, diagnoses, shown)


def _tables(
    records: Sequence[Result | Failure],
    asked: Asked,
    diagnoses: Sequence[Diagnosis],
    references: Sequence[Reference],
    shown: Exhibits,
) -> list[Table]:
    from robench import comparison, cost, perclass, reporting, standing, union
    from robench.results import Result

    if asked.table == "cost":
        return cost.tables(records, _costs(asked, shown), diagnoses, asked.spelled, asked.by, asked.unit)
    if asked.table == "classes":
        return perclass.tables(records, shown.labels, diagnoses, asked.spelled)
    if asked.table == "indicators":
        return standing.tables(records, diagnoses)
    if asked.table == "union":
        return union.tables(records, diagnoses, asked.spelled)
    if asked.table in SUITES:
        return comparison.tables(
            records, SUITES[asked.table], diagnoses=diagnoses, intervals=asked.spelled, references=references
        )
    made = reporting.tables(records, asked.table, diagnoses, asked.spelled, references)
    if asked.form == "html" and asked.table == "all" and perclass.known(records, shown.labels):
        made += perclass.tables(records, shown.labels, diagnoses, asked.spelled)
    if asked.form == "html" and asked.table == "all" and any(isinstance(record, Result) for record in records):
        made += cost.tables(records, _costs(asked, shown), diagnoses, asked.spelled, asked.by, asked.unit)
        if any(record.cell.inference is None for record in records if isinstance(record, Result)):
            made += standing.tables(records, diagnoses)
    return made


def _csv(
    records: Sequence[Result | Failure],
    asked: Asked,
    diagnoses: Sequence[Diagnosis],
    references: Sequence[Reference],
    shown: Exhibits,
) -> str:
    from robench import comparison, cost, perclass, standing, union
    from robench.rendering.csv import csv

    if asked.table == "cost":
        return cost.csv(records, _costs(asked, shown), diagnoses, asked.by, asked.unit)
    if asked.table == "classes":
        return perclass.csv(records, shown.labels, diagnoses)
    if asked.table == "indicators":
        return standing.csv(records, diagnoses)
    if asked.table == "union":
        return union.csv(records, diagnoses)
    if asked.table in SUITES:
        return comparison.csv(records, SUITES[asked.table], references=references)
    return csv(records, asked.table, diagnoses, asked.spelled, references)
