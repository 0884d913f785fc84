"""A trace as plain values, ready for JSON: columns as arrays, and nothing twice that the schedule says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipelab.core import strict_json
from pipelab.core.costs import Costs, StageBytes
from pipelab.core.feed import Feed
from pipelab.core.schedule import Schedule
from pipelab.core.trace_fit import ranges
from pipelab.errors import PipelabError

if TYPE_CHECKING:
    from pipelab.core.trace import Trace

__all__ = ["cell_columns", "dump", "load"]

_COLUMNS = ("rank", "lane", "kind", "stage", "microbatch")
_REQUIRED = ("schedule", "clock", "label", "devices", "notes", "lanes", "start", "end", "others")
_VALUES: dict[str, Any] = {"bytes": StageBytes, "costs": Costs, "feed": Feed}


def cell_columns(schedule: Schedule) -> dict[str, npt.NDArray[Any]]:
    """What the schedule says of the first rows of a trace: one for each of its cells."""
    table = schedule.table
    return {
        "rank": table.cell_ranks,
        "lane": np.zeros(table.num_cells, dtype=np.uint8),
        "kind": table.cell_kinds,
        "stage": table.cell_stages,
        "microbatch": table.cell_microbatches,
    }


def dump(trace: Trace) -> dict[str, Any]:
    """See `Trace.to_dict`."""
    cells = trace.schedule.table.num_cells
    data: dict[str, Any] = {
        "schedule": trace.schedule.to_dict(),
        "clock": trace.clock,
        "label": trace.label,
        "devices": list(trace.devices),
        "notes": list(trace.notes),
        "lanes": list(trace.lanes),
        "start": trace.start.tolist(),
        "end": trace.end.tolist(),
        "others": {name: getattr(trace, name)[cells:].tolist() for name in _COLUMNS},
    }
    values = {name: getattr(trace, name) for name in _VALUES}
    return data | {name: value.to_dict() for name, value in values.items() if value is not None}


def load(data: object, where: str) -> dict[str, Any]:
    """What a `Trace` is made from, by the names of its attributes; see `Trace.from_dict`."""
    found = strict_json.fields(data, where, required=_REQUIRED, optional=tuple(_VALUES))
    schedule = Schedule.from_dict(found["schedule"], f"{where}.schedule")
    others = strict_json.fields(found["others"], f"{where}.others", required=_COLUMNS)
    extra = {name: strict_json.integer_column(others[name], f"{where}.others.{name}") for name in others}
    texts = {n: strict_json.texts(found[n], f"{where}.{n}") for n in ("lanes", "devices", "notes")}
    for name, (lowest, limit) in ranges(schedule, len(texts["lanes"])).items():
        if len(extra[name]) and not (extra[name].min() >= lowest and extra[name].max() < limit):
            raise PipelabError(f"{where}.others.{name} holds a number out of range.")
    rows = {
        name: np.append(column, extra[name].astype(column.dtype))
        for name, column in cell_columns(schedule).items()
    }
    times = {name: strict_json.column(found[name], f"{where}.{name}") for name in ("start", "end")}
    words = {name: strict_json.text(found[name], f"{where}.{name}") for name in ("clock", "label")}
    values = {n: kind.from_dict(found[n], f"{where}.{n}") for n, kind in _VALUES.items() if n in found}
    return {"schedule": schedule, **rows, **times, **texts, **words, **values}
