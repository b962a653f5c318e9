"""`robench report`, `robench plot` and `robench verify`: what follows from the files in results/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from robench.cli.asked import Asked, again
from robench.cli.option import Choice, format_of, refuse, results_option, runs_option, there
from robench.errors import UsageError
from robench.suite import SUITES

if TYPE_CHECKING:
    from robench.diagnosis import Diagnosis
    from robench.exhibits import Exhibits
    from robench.reference import Reference
    from robench.reporting import Table
    from robench.results import Failure, Result


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
    type=Choice(["all", "white-box", "transfer", "union", "cells", "cost", "classes", *SUITES]),
    default="all",
    show_default=True,
    help="A suite's table has ours beside the published; union: what attacks leave together, and what each adds; "
    "classes: the class that is worst off. CSV holds one table: `cells` (a row per result) unless named.",
)
@click.option(
    "--intervals/--no-intervals",
    default=None,
    help="95 % intervals beside every accuracy, or their width below the table. By default in markdown, html and json.",
)
@click.option("--dataset", help="Only results on this data set.")
@click.option("--attack", multiple=True, metavar="NAME", help="Only these attacks. May repeat.")
@click.option("--threat", multiple=True, metavar="NORM[-EPS]", help="Only these norms or threats. May repeat.")
@click.option(
    "--source", multiple=True, metavar="CHECKPOINT", help="Only crafted on these, or on none: white-box. May repeat."
)
@click.option("--seed", multiple=True, metavar="N", help="Only these seeds of attacks. May repeat.")
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
    help="For --format html: add the training curves of the runs there. For --table cost: where those are.",
)
def report(
    form: str,
    table: str,
    intervals: bool | None,
    results: Path,
    out: Path | None,
    checkpoints: Path | None,
    reference: Path | None,
    dataset: str | None,
    **filters: tuple[str, ...],
) -> None:
    """Print the tables of everything in results/: a pure function of the files there.

    The table `cost` also reads what training cost, from the checkpoints.
    """
    from robench.selection import Selection, selected

    form = format_of(form, out)
    if intervals is not None and form == "csv" and table not in ("white-box", "transfer"):
        raise UsageError(
            "--intervals in CSV is for --table white-box or transfer; other tables always have their columns"
        )
    if checkpoints and form != "html" and table != "cost":
        raise UsageError(f"--checkpoints is for --format html or --table cost; --format {form} has no figures")
    if reference and table not in ("all", "white-box", *SUITES):
        raise UsageError(f"--reference is for --table white-box or a suite's; {table} has no row for it")
    selection = Selection(dataset=(dataset,) if dataset else (), **filters)
    asked = Asked(form, table, selection, intervals, reference, checkpoints)
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
@click.option("--dataset", help="Only results on this data set.")
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
def plot(context: click.Context, kind: str, dataset: str | None, results: Path, checkpoints: Path, out: Path) -> None:
    """Draw what is in results/ into a file: the same records give the same bytes. Needs pip install 'robench[plot]'.

    Results on other images, or by another seed, are other figures, one below the other.
    """
    from robench import diagnosis, exhibits, gallery
    from robench.figures import figures, training
    from robench.files import write
    from robench.rendering.drawing import FORMATS, draw

    if kind != "training":
        refuse(context, ["--checkpoints"], f"is for --kind training; --kind {kind} is drawn from results")
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
        return json(made, records)
    if asked.form == "html":
        drawn = figures(records, diagnoses=diagnoses) + (training(asked.checkpoints) if asked.checkpoints else [])
        datasets = {record.subject.dataset for record in records}
        kept = replace(shown, embeddings=tuple(e for e in shown.embeddings if e.subject.dataset in datasets))
        return html(made, drawn + gallery.figures(records, kept, diagnoses=diagnoses))
    return markdown(made)


def _text(records: Sequence[Result | Failure], asked: Asked, *, file: bool, results: Path) -> str:
    """What a report says, as text."""
    from robench import diagnosis, exhibits, reference, terminal
    from robench.rendering.csv import csv

    diagnoses, shown = diagnosis.records(results), exhibits.load(results)
    if asked.form == "csv" and asked.table in ("all", "cells"):
        if asked.reference:
            raise UsageError("--reference needs --table white-box or a suite's in CSV, where all means cells")
        return csv(records, "cells")
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
    from robench import comparison, cost, perclass, reporting, union

    if asked.table == "cost":
        return cost.tables(records, cost.trained(asked.checkpoints or Path("checkpoints")), diagnoses, asked.spelled)
    if asked.table == "classes":
        return perclass.tables(records, shown.labels, diagnoses, asked.spelled)
    if asked.table == "union":
        return union.tables(records, diagnoses, asked.spelled)
    if asked.table in SUITES:
        return comparison.tables(
            records, SUITES[asked.table], diagnoses=diagnoses, intervals=asked.spelled, references=references
        )
    made = reporting.tables(records, asked.table, diagnoses, asked.spelled, references)
    if asked.form == "html" and asked.table == "all" and perclass.known(records, shown.labels):
        made += perclass.tables(records, shown.labels, diagnoses, asked.spelled)
    return made


def _csv(
    records: Sequence[Result | Failure],
    asked: Asked,
    diagnoses: Sequence[Diagnosis],
    references: Sequence[Reference],
    shown: Exhibits,
) -> str:
    from robench import comparison, cost, perclass, union
    from robench.rendering.csv import csv

    if asked.table == "cost":
        return cost.csv(records, cost.trained(asked.checkpoints or Path("checkpoints")), diagnoses)
    if asked.table == "classes":
        return perclass.csv(records, shown.labels, diagnoses)
    if asked.table == "union":
        return union.csv(records, diagnoses)
    if asked.table in SUITES:
        return comparison.csv(records, SUITES[asked.table], references=references)
    return csv(records, asked.table, diagnoses, asked.spelled, references)
