"""Files that vouch for themselves: a dataclass as JSON beside its own digest, which shows a change by hand. No torch here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from robench import files
from robench.errors import StoreError
from robench.results import DAMAGE
from robench.spec import build, digest, plain

T = TypeVar("T")
FORMAT = 1


def put(path: Path, word: str, record: Any) -> Path:
    """Write a record; the same content again changes nothing.

    Args:
        path: of the file.
        word: under which the record stands in it.
        record: a dataclass.

    Raises:
        StoreError: if the file cannot be written.
    """
    table = {"format": FORMAT, "digest": digest(record), word: plain(record)}
    if not path.is_file() or path.read_bytes() != files.json_bytes(table):
        files.write_json(path, table)
    return path


def read(path: Path, word: str, kind: Callable[..., T], remedy: str) -> T:
    """The record in a file.

    Args:
        path: of the file.
        word: under which the record stands in it.
        kind: its dataclass.
        remedy: the command that makes such a file again.

    Raises:
        StoreError: if the file is damaged or was changed.
    """
    try:
        held = json.loads(path.read_bytes())
        if held["format"] != FORMAT:
            raise ValueError(f"it has format {held['format']!r}, and this version of robench knows {FORMAT}")
        if held["digest"] != digest(held[word]):
            raise ValueError("its content does not fit its digest")
        return build(kind, held[word])
    except DAMAGE as error:
        raise StoreError(f"{path} is damaged or was changed ({error}): delete it and run {remedy}") from error
