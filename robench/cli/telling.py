"""What an evaluation says as it goes and at its end, and tables on stdout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from robench.gates import Judgement
    from robench.job import Job
    from robench.reporting import Table
    from robench.results import Failure, Result


SUSPECT = 6  # exit code of an evaluation whose numbers are there, and not to be trusted


def tell(ran: Iterable[tuple[Job, Result | Failure, bool]], quiet: bool = False) -> list[tuple[Result | Failure, bool]]:
    """Say what each cell gave, as it comes."""
    from robench.results import Failure, asked, named, safe
    from robench.terminal import say

    told = []
    for _, record, there in ran:
        told.append((record, there))
        via = f" from {record.source.name}" if record.source else ""
        name = named(record.subject, record.cell.inference)
        what = f"{name}{via}: {asked(record.cell)}"
        if isinstance(record, Failure):
            say(f"FAILED  {what}: {safe(record.reason)}")
        elif not quiet:
            n = record.cell.count
            note = "  (was there already)" if there else f"  {record.seconds:.1f} s"
            norm = "" if record.median_norm is None or record.source else f", median norm {record.median_norm:.3g}"
            accuracy = f"clean {100 * sum(record.clean) / n:.1f} %, robust {100 * sum(record.robust) / n:.1f} %"
            answers = record.cell.inference
            alone = ", not adaptive" if answers and not answers.adaptive and not record.source else ""
            say(f"{what}  {accuracy}{norm}, n {n}{alone}{note}")
    return told


def tell_gates(judged: Sequence[Judgement], quiet: bool = False) -> int:
    """Say which thresholds were met; how many were not."""
    from robench.results import safe
    from robench.terminal import say

    for each in judged:
        if not (quiet and each.passed):
            say(safe(each.text))
    return sum(not each.passed for each in judged)


def finish(
    told: Sequence[tuple[Result | Failure, bool]],
    results: Path,
    *,
    quiet: bool = False,
    missed: int = 0,
    strict: bool = False,
    doubts: Sequence[str] = (),
) -> None:
    """The summary of an evaluation, what its numbers suggest, and its exit code.

    Args:
        told: what each cell gave, and whether it was there already.
        results: where they are.
        quiet: say only what needs attention.
        missed: thresholds that were not met; exit code 1, as for a cell that failed.
        strict: exit code 6 if there is a flag, a suspicion or a doubt.
        doubts: what a look at a model has said.
    """
    from robench.doubt import beyond_flags, suspicions
    from robench.reporting import apart
    from robench.results import FLAG, Failure, Result, safe
    from robench.terminal import say

    records = apart(record for record, _ in told if isinstance(record, Result))
    flags = {f"{r.subject.name}: {FLAG}{flag}" for r in records for flag in r.flags}
    names = {r.cell.checkpoint: r.subject.name for r in records}
    failed_signs = [f"{names[who]}: unreliable {text}" for who, why in beyond_flags(records).items() for text in why]
    found = [*sorted(flags), *failed_signs, *suspicions(records)]
    for text in found:
        say(safe(text))

    skipped = sum(there for _, there in told)
    failed = sum(isinstance(record, Failure) for record, _ in told)
    if not quiet:
        cells = "1 cell" if len(told) == 1 else f"{len(told)} cells"
        new = len(told) - skipped - failed
        say(f"{cells}: {new} new, {skipped} already in {results}, {failed} failed")
        if records:
            say(f"indicators of masked gradients in them: robench report --table indicators --results {results}")
    if failed or missed:
        raise SystemExit(1)
    if strict and (found or doubts):
        say(f"--strict: {len(found) + len(doubts)} of the sentences above make these numbers suspect")
        raise SystemExit(SUSPECT)


def show_tables(made: Sequence[Table], form: str) -> None:
    """Print tables to stdout."""
    from robench import terminal
    from robench.rendering.markdown import markdown

    click.echo(markdown(made) if form == "markdown" else terminal.text(made), nl=False)
