"""`robench report`, `robench plot` and `robench verify`: what follows from the files in results/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from robench.cli.option import Choice, checkpoints_option, results_option
from robench.errors import UsageError
from robench.suite import SUITES

if TYPE_CHECKING:
    from robench.diagnosis import Diagnosis
    from robench.exhibits import Exhibits
    from robench.reporting import Table
    from robench.results import Failure, Result


@click.command(short_help="Print the tables of results/.")
@click.option(
    "--format",
    "form",
    type=Choice(["terminal", "markdown", "csv", "latex", "json", "html"]),
    default="terminal",
    show_default=True,
    help="html is one file with figures; it needs pip install 'robench[plot]'.",
)
@click.option(
    "--table",
    type=Choice(["all", "white-box", "transfer", "cells", "cost", "classes", *SUITES]),
    default="all",
    show_default=True,
    help="A suite's table has ours beside the published; `classes` has the class that is worst off. CSV holds one table: "
    "`cells` (a row per result) unless named.",
)
@click.option("--dataset", help="Only results on this data set.")
@results_option
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write to a file instead of stdout.")
@click.option(
    "--checkpoints",
    type=click.Path(path_type=Path),
    help="For --format html: add the training curves of the runs there. For --table cost: where those are.",
)
def report(
    form: str, table: str, dataset: str | None, results: Path, out: Path | None, checkpoints: Path | None
) -> None:
    """Print the tables of everything in results/: a pure function of the files there.

    The table `cost` also reads what training cost, from the checkpoints.
    """
    if checkpoints and form != "html" and table != "cost":
        raise UsageError(f"--checkpoints is for --format html or --table cost; --format {form} has no figures")
    print_report(stored(results, dataset), form, table, out, results, checkpoints)
    if out is not None and table != "cost" and not checkpoints:  # which depend on more than the results
        from robench.verification import remember

        remember(results, out, {"form": form, "table": table, "dataset": dataset})


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
@click.option("--dataset", help="Only results on this data set.")
@results_option
@checkpoints_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE.(svg|png|pdf)",
    help="The file; its ending says the format.",
)
def plot(kind: str, dataset: str | None, results: Path, checkpoints: Path, out: Path) -> None:
    """Draw what is in results/ into a file: the same records give the same bytes. Needs pip install 'robench[plot]'.

    Results on other images, or by another seed, are other figures, one below the other.
    """
    from robench import diagnosis, exhibits, gallery
    from robench.figures import figures, training
    from robench.files import write
    from robench.rendering.drawing import FORMATS, draw

    form = out.suffix[1:].lower()
    if form not in FORMATS:
        raise UsageError(f"--out {out}: the name must end in {', '.join(f'.{each}' for each in FORMATS)}")
    if kind in gallery.KINDS:
        there = [] if kind == "features" else stored(results, dataset)
        drawn = gallery.figures(there, exhibits.load(results), kind, diagnosis.records(results), dataset)
    elif kind != "training":
        drawn = figures(stored(results, dataset), kind, diagnosis.records(results))
    elif dataset:
        raise UsageError("--dataset is for what is drawn from results; --kind training draws the runs in --checkpoints")
    elif not (drawn := training(checkpoints)):
        raise UsageError(f"no run in {checkpoints} has logged an epoch: robench train rocl, or robench demo")
    write(out, draw(drawn, form))


@click.command(short_help="Check results, and that tables follow from them.")
@click.argument("results", type=click.Path(path_type=Path), default="results")
@click.option("--check", is_flag=True, help="Make the tables of RESULTS/tables.json again and compare every byte.")
@click.option("--checkpoints", type=click.Path(path_type=Path), help="Compare weights there with what records name.")
def verify(results: Path, check: bool, checkpoints: Path | None) -> None:
    """Check every record in RESULTS: digest, key, bits, norms; list failures, flags and cells that are missing.

    Tables that `robench report --out RESULTS/NAME` wrote are listed in RESULTS/tables.json. Exit code 1 when anything is
    wrong; a missing cell is not.
    """
    from robench import verification
    from robench.rendering.markdown import markdown

    def render(records: Sequence[Result | Failure], options: Mapping[str, str | None]) -> str:
        kept = [r for r in records if options["dataset"] in (None, r.subject.dataset)]
        form, table = options["form"] or "markdown", options["table"] or "all"
        return _text(kept, form, table, file=True, results=results)

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

    records = list(Store(results).records())
    if not dataset:
        return records
    known = sorted({record.subject.dataset for record in records})
    chosen = [record for record in records if record.subject.dataset == dataset]
    if not chosen:
        raise UsageError(f"--dataset {dataset} leaves none of the results; there are some on {', '.join(known)}")
    return chosen


def print_report(
    records: Sequence[Result | Failure],
    form: str,
    table: str,
    out: Path | None,
    results: Path,
    checkpoints: Path | None = None,
) -> None:
    """Render records to stdout or a file."""
    from robench.files import write

    text = _text(records, form, table, file=out is not None, results=results, checkpoints=checkpoints)
    if out is not None:
        write(out, text.encode())
    else:
        click.echo(text, nl=False)


def _render(
    made: Sequence[Table],
    records: Sequence[Result | Failure],
    form: str,
    checkpoints: Path | None,
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

    if form == "latex":
        return latex(made)
    if form == "json":
        return json(made, records)
    if form == "html":
        drawn = figures(records, diagnoses=diagnoses) + (training(checkpoints) if checkpoints else [])
        datasets = {record.subject.dataset for record in records}
        kept = replace(shown, embeddings=tuple(e for e in shown.embeddings if e.subject.dataset in datasets))
        return html(made, drawn + gallery.figures(records, kept, diagnoses=diagnoses))
    return markdown(made)


def _text(
    records: Sequence[Result | Failure],
    form: str,
    table: str,
    *,
    file: bool,
    results: Path,
    checkpoints: Path | None = None,
) -> str:
    """What a report says, as text."""
    from robench import comparison, cost, diagnosis, exhibits, perclass, reporting, terminal
    from robench.rendering.csv import csv

    diagnoses, shown = diagnosis.records(results), exhibits.load(results)
    spent = cost.trained(checkpoints or Path("checkpoints")) if table == "cost" else {}
    if form == "csv" and table in SUITES:
        return comparison.csv(records, SUITES[table])
    if form == "csv" and table == "cost":
        return cost.csv(records, spent, diagnoses)
    if form == "csv" and table == "classes":
        return perclass.csv(records, shown.labels, diagnoses)
    if form == "csv":
        return csv(records, "cells" if table == "all" else table, diagnoses)
    if table == "cells":
        raise UsageError("--table cells is for --format csv")
    if table == "cost":
        made = cost.tables(records, spent, diagnoses)
    elif table in SUITES:
        made = comparison.tables(records, SUITES[table], diagnoses=diagnoses)
    elif table == "classes":
        made = perclass.tables(records, shown.labels, diagnoses)
    else:
        made = reporting.tables(records, table, diagnoses)
        if form == "html" and table == "all" and perclass.known(records, shown.labels):
            made += perclass.tables(records, shown.labels, diagnoses)
    if form == "terminal":
        return terminal.text(made, file=file)
    return _render(made, records, form, checkpoints, diagnoses, shown)
