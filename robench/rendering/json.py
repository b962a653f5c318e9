"""Tables and cells as JSON, for programs: names are exact, and the encoder makes them inert."""

from __future__ import annotations

import json as encoder
import math
from collections.abc import Iterable, Sequence

from robench.diagnosis import Diagnosis
from robench.rendering.csv import tidy
from robench.reporting import Table
from robench.results import Failure, Result

FORMAT = 1


def json(made: Sequence[Table], records: Iterable[Result | Failure] = (), diagnoses: Iterable[Diagnosis] = ()) -> str:
    """One object: `tables` as they are printed, `cells` (a row per result, as in CSV) and `failures`.

    Keys stand in a fixed order; everything beyond ASCII is escaped; what is absent is null and an infinite norm is "inf".
    """
    records = sorted(records, key=lambda record: record.cell.key)
    content = {
        "format": FORMAT,
        "tables": [_table(table) for table in made],
        "cells": _cells(records, diagnoses),
        "failures": [
            {
                "checkpoint": record.subject.name,
                "attack": record.cell.attack,
                "threat": str(record.cell.threat),
                "reason": record.reason,
                "cell": record.cell.key,
            }
            for record in records
            if isinstance(record, Failure)
        ],
    }
    return encoder.dumps(content, indent=1, allow_nan=False) + "\n"


def _table(table: Table) -> dict[str, object]:
    return {
        "title": table.title,
        "header": table.header,
        "rows": [{"group": group, "cells": cells} for group, *cells in table.rows],
        "bold": [{"row": row, "cell": place - 1} for row, place in sorted(table.bold)],
        "notes": table.notes,
    }


def _cells(records: Sequence[Result | Failure], diagnoses: Iterable[Diagnosis]) -> list[dict[str, object]]:
    if not any(isinstance(record, Result) for record in records):
        return []
    frame = tidy(records, diagnoses).astype(object)
    return [{str(key): _value(value) for key, value in row.items()} for row in frame.to_dict("records")]


def _value(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value
