"""One record in words: what was attacked by what, what came out, what it cost, and how to repeat it. No torch here."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from robench.caption import accuracy, percent
from robench.errors import StoreError, UsageError, nearest
from robench.results import FLAG, Cell, Failure, Result, Subject, named, nothing, read, safe
from robench.statistic import interval


def find(folder: Path, text: str) -> Result | Failure:
    """The record that a path, a key or the beginning of a key names.

    Args:
        folder: of the results.
        text: what names it.

    Raises:
        UsageError: if nothing has that name, or several have.
        StoreError: if the record is damaged.
    """
    path = Path(text)
    if path.suffix == ".json" and path.is_file():
        _check_kind(path)
        return read(path)
    if "/" in text or path.suffix == ".json":
        what = f"{text} is {_kind(path)}" if path.exists() else f"there is no record {text}"
        raise UsageError(f"{what}: {_NAMED}")
    paths = {path.stem: path for path in sorted((folder / "cells").glob("*.json"))}
    if not paths:
        raise nothing(folder)
    found = [key for key in paths if key.startswith(text)]
    if len(found) > 1:
        listed = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        raise UsageError(f"{text!r} begins {len(found)} keys: {listed}. Name more of one")
    if not found:
        match = nearest(text, paths)
        guess = f" Did you mean {match}?" if match else ""
        what = f" {text} is {_kind(path)}." if path.exists() else _of_checkpoint(paths.values(), text)
        raise UsageError(
            f"no cell in {folder} begins {text!r}.{what or guess} ({len(paths)} there: robench list results)"
        )
    return read(paths[found[0]])


_NAMED = "name a cell by its key or the beginning of it, as robench list results shows it, or by the path of its record"
_OTHERS = {  # keys that only such a file has, and what it is
    "pictures": "a file of adversarial images, which robench report --format html draws",
    "labels": "a file of the labels of test images, which robench report --table classes reads",
    "features": "a file of features, which robench plot --kind features draws",
    "diagnosis": "a diagnosis, which robench report tells of",
    "stages": "the description of a checkpoint, which robench evaluate attacks",
    "stop": "a part of an unfinished cell; the robench evaluate that made it goes on",
}


def _check_kind(path: Path) -> None:
    """Refuse a file that was never a record, as something else than a damaged one.

    Raises:
        UsageError: saying what it is.
    """
    try:
        table = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return
    if not isinstance(table, dict) or ({"cell", "kind"} <= table.keys() and "stop" not in table):
        return
    what = next((said for key, said in _OTHERS.items() if key in table), "no record of a cell")
    raise UsageError(f"{path} is {what}: {_NAMED}")


def _kind(path: Path) -> str:
    """What a path is that is no record."""
    if not path.is_dir():
        return "a file of another kind"
    if any((path / f"{kind}.json").is_file() for kind in ("best", "last")):
        return "a training run"
    return "a folder of results (--results)" if (path / "cells").is_dir() else "a folder"


def _of_checkpoint(paths: Iterable[Path], name: str) -> str:
    """The cells of a checkpoint that was named in place of one; nothing if no checkpoint here has that name."""
    found = []
    with suppress(StoreError):
        found = [path.stem[:8] for path in paths if read(path).subject.name == name]
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f" That is a checkpoint, with the cells {', '.join(found[:3])}{more}." if found else ""


def broken(result: Result) -> list[int]:
    """The numbers of the images that were right when clean and were fooled."""
    return [
        i for i, (clean, robust) in enumerate(zip(result.clean, result.robust, strict=True)) if clean and not robust
    ]


def words(record: Result | Failure) -> str:
    """A record, explained line by line; names cannot act in a terminal."""
    lines = [*_asked(record), *(_came(record) if isinstance(record, Result) else [("failed", record.reason)])]
    about = record.provenance
    lines += [("made by", ", ".join(f"{k} {v}" for k, v in sorted(about.items()) if k not in ("command", "time")))]
    lines += [("at", str(about["time"]))] if "time" in about else []
    if isinstance(about.get("command"), list):
        lines.append(("by the command", shlex.join(map(str, about["command"]))))
    lines.append(("to repeat it", command(record)))
    width = max(len(name) for name, _ in lines)
    return "".join(f"{name.ljust(width)}  {safe(text)}\n" for name, text in lines)


def command(record: Result | Failure) -> str:
    """The command that evaluates this one cell again, into a folder of its own."""
    cell, subject = record.cell, record.subject
    parts = ["robench", "evaluate", *_named(subject), "--attack", cell.attack, "--threat", str(cell.threat)]
    parts += ["--source", record.source.name] if record.source else []
    parts += ["--dataset", subject.dataset, "--count", str(cell.count), "--seed", str(cell.seed)]
    if cell.inference:
        parts += ["--inference", "tsi", "--draws", str(cell.inference.draws), "--average", cell.inference.average]
    return shlex.join([*parts, "--results", "again"])


def _named(subject: Subject) -> list[str]:
    """How a command line names what was attacked."""
    origin = subject.origin
    if not origin:
        return [subject.name]
    parts = ["--model", origin["model"]]
    for option in ("weights", "preprocess"):
        parts += [f"--{option}", origin[option]] if option in origin else []
    parts += ["--trained-against", str(subject.threat)] if subject.threat else []
    return [*parts, "--name", subject.name]


def _asked(record: Result | Failure) -> Iterator[tuple[str, str]]:
    cell: Cell = record.cell
    yield "cell", cell.key
    yield "checkpoint", _who(record.subject)
    if cell.inference:
        look = ", ".join(f"{key} {value}" for key, value in sorted(cell.inference.augment.items()))
        yield (
            "answers as",
            f"{named(record.subject, cell.inference)}: {cell.inference.average} over {cell.inference.draws} of {look}",
        )
    yield "attack", f"{cell.attack}, version {cell.version}, seed {cell.seed}"
    yield "options", ", ".join(f"{key} {value}" for key, value in sorted(cell.options.items())) or "none"
    yield "threat", f"{cell.threat}: perturbations of {cell.threat.norm.value} norm up to {cell.threat.eps:.6g}"
    yield "crafted on", _who(record.source) if record.source else "the checkpoint itself (white-box)"
    yield "images", f"the first {cell.count:,} test images of {record.subject.dataset}, digest {cell.data}"


def _who(subject: Subject) -> str:
    if subject.origin:
        told = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in sorted(subject.origin.items()))
        known = f", trained against {subject.threat}" if subject.threat else ""
        return f"{subject.name}, from outside ({told}){known}, digest {subject.sha256}"
    trained = f"against {subject.threat}" if subject.threat else "against no threat"
    return (
        f"{subject.name}, recipe {subject.recipe} ({subject.group}), trained {trained}, seed {subject.seed}, "
        f"weights {subject.sha256}"
    )


def _came(result: Result) -> Iterator[tuple[str, str]]:
    lost = broken(result)
    yield "clean accuracy", _share(result.clean)
    yield "robust accuracy", f"{_share(result.robust)}; an upper bound"
    yield "largest found", f"{result.largest:.6g} of {result.cell.threat.eps:.6g}"
    if result.median_norm is not None:
        yield "median norm", f"{result.median_norm:.4g} of the smallest perturbation found"
    if result.left:
        yield "left unbroken by", ", ".join(f"{member} {count}" for member, count in result.left.items())
    yield "cost", ", ".join(_cost(result))
    for note in result.notes:
        yield ("flag", note.removeprefix(FLAG)) if note.startswith(FLAG) else ("note", note)
    yield "images broken", f"{len(lost)}: {' '.join(map(str, lost))}" if lost else "none"


def _share(bits: Sequence[bool]) -> str:
    n, (low, high) = len(bits), interval(sum(bits), len(bits))
    return f"{accuracy([bits])} % ({sum(bits)} of {n}), 95 % interval {percent(low, n)} to {percent(high, n)}"


def _cost(result: Result) -> Iterator[str]:
    yield f"{result.seconds:.1f} s"
    yield f"{result.forwards:,} images forward"
    yield f"{result.backwards:,} backward"
    yield (
        "peak memory not measured"
        if result.peak_memory is None
        else f"peak memory {result.peak_memory / 2**20:,.0f} MiB"
    )
    yield "energy not measured" if result.joules is None else f"{result.joules:,.0f} J"
