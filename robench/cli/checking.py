"""`robench check`: hold an attack, a method, a data set or a model to the laws."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import click

from robench.cli.option import Choice, data_option, refuse
from robench.errors import UsageError

KINDS = ("attack", "method", "dataset", "model")


@click.command(short_help="Hold an attack, method, data set or model to the laws.")
@click.argument("kind", type=Choice(KINDS))
@click.argument("name")
@click.option("--law", "laws", multiple=True, help="Only this law. May repeat.")
@click.option("--shape", default="3x32x32", show_default=True, help="For a model: the images it is tried on.")
@click.option("--classes", type=click.IntRange(min=2), default=10, show_default=True, help="For a model: how many.")
@data_option
@click.pass_context
def check(
    context: click.Context, kind: str, name: str, laws: Sequence[str], shape: str, classes: int, data_root: Path
) -> None:
    """Hold a KIND called NAME to the public laws: a name, my.py:object, or an installed plug-in.

    \b
    robench check attack my_attacks.py:Corner
    robench check method my_methods.py:Mine
    robench check dataset folder:pictures
    robench check model timm:resnet18 --shape 3x32x32 --classes 10

    One line for each law: obeyed, exempt (and why), or broken (and how). Exit code 1 when one is broken.
    """  # noqa: D301 (to click the escape means: keep these lines)
    from robench.terminal import rows

    if kind != "model":
        refuse(context, ["--shape", "--classes"], f"is for robench check model, and this is robench check {kind}")
    if kind != "dataset":
        refuse(context, ["--data"], f"is for robench check dataset, and this is robench check {kind}")
    size = _shape(shape)
    lines, broken = [], 0
    with redirect_stdout(sys.stderr):  # what is held to the laws may print, and that is no outcome
        for law, outcome, demands in _outcomes(kind, name, list(dict.fromkeys(laws)) or None, size, classes, data_root):
            broken += outcome.startswith("broken")
            lines.append([law, outcome, demands])
    rows(["law", "outcome", "what it demands"], lines)
    if broken:
        click.echo(f"{broken} of {len(lines)} laws broken by {kind} {name}", err=True)
        raise SystemExit(1)


def _shape(text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
        raise UsageError(f"--shape {text}: expected CHANNELSxHEIGHTxWIDTH, such as 3x32x32")
    channels, height, width = map(int, parts)
    return channels, height, width


def _outcomes(
    kind: str, name: str, laws: list[str] | None, shape: tuple[int, int, int], classes: int, root: Path
) -> Iterator[tuple[str, str, str]]:
    """Every law, its outcome, and what it demands."""
    from robench import testing
    from robench.testing import dataset, method, model

    if kind == "attack":
        for law in laws or testing.LAWS:
            try:
                (outcome,) = testing.check_attack(name, laws=[law]).values()
            except testing.LawError as error:
                outcome = f"broken: {str(error).partition(' (the law')[0]}"
            yield law, outcome, (testing.LAWS[law].__doc__ or "").splitlines()[0]
        return
    found: dict[str, Iterator[tuple[str, str, Exception | None]]] = {
        "method": method.outcomes(name, laws=laws) if kind == "method" else iter(()),
        "dataset": dataset.outcomes(name, root, laws) if kind == "dataset" else iter(()),
        "model": model.outcomes(name, shape, classes, laws) if kind == "model" else iter(()),
    }
    demands: dict[str, object] = {**method.LAWS, **dataset.LAWS, **model.LAWS}
    for law, outcome, _ in found[kind]:
        yield law, outcome.partition(" (the law")[0], (demands[law].__doc__ or "").splitlines()[0]
