"""Under the timelines of a CompareView: their numbers in a table, with differences to the first of the same clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anywidget
import traitlets as T

from pipelab.core.comparison import Comparison
from pipelab.core.differences import Measure, first_of_clock, measures
from pipelab.core.trace import Trace
from pipelab.plots.scene import scene
from pipelab.plots.wording import literal
from pipelab.widgets.assets import css, esm
from pipelab.widgets.timeline_columns import legend_of, plain

_FIRST = "the first: others are told against it"
_FIRST_OF_CLOCK = "the first of its clock: others of that clock are told against it"
_CLOCKS = "The clocks differ ({}): differences and the best are told only within a clock, to its first run."
_NAME = 90  # letters; the whole name is seen over it


class CompareTable(anywidget.AnyWidget):
    """A table and a legend; a button in each row wishes it away.

    Attributes:
        table: what is seen, as `compare_table` makes it.
        alert: a refusal or an error; "" when all is well.

    Args:
        remove: called with the number of a row when a person presses its button.
    """

    _esm = esm("element.js", "keys.js", "compare.js")
    _css = css("base.css", "compare.css")

    table = T.Dict().tag(sync=True)
    alert = T.Unicode("").tag(sync=True)

    def __init__(self, remove: Callable[[int], None]) -> None:
        super().__init__()
        self._remove = remove
        self.on_msg(self._asked)

    def show(self, traces: Sequence[Trace], comparison: Comparison) -> None:
        """Show other numbers, in one message."""
        with self.hold_sync():
            self.table, self.alert = compare_table(traces, comparison), ""

    def _asked(self, _: object, content: Mapping[str, Any], __: object) -> None:
        if isinstance(content, Mapping) and content.get("what") == "remove":
            row = content.get("row")
            if type(row) is int and 0 <= row < len(self.table["rows"]):
                self._remove(row)


def compare_table(traces: Sequence[Trace], comparison: Comparison) -> dict[str, Any]:
    """What the front end shows of some runs: texts, ready to be laid out."""
    found = measures(comparison)
    clocks = [trace.clock for trace in traces]
    is_one_clock = len(set(clocks)) == 1
    rows = [
        {
            "name": plain(literal(trace.label, _NAME)),
            "title": plain(literal(trace.label, 1000)),
            "clock": "" if is_one_clock else f"{trace.clock} clock",
            "cells": [_cell(measure, k) for measure in found],
            "remark": (_FIRST if is_one_clock else _FIRST_OF_CLOCK)
            if k == first and clocks.count(trace.clock) > 1
            else "",
        }
        for k, (trace, first) in enumerate(zip(traces, first_of_clock(clocks), strict=True))
    ]
    return {
        "runs": f"run ({traces[0].clock} clock)" if is_one_clock else "run",
        "columns": [measure.name for measure in found],
        "rows": rows,
        "note": "" if is_one_clock else _CLOCKS.format(", ".join(dict.fromkeys(clocks))),
        "legend": legend_of(scene(traces)),
        "removable": len(traces) > 1,
    }


def _cell(measure: Measure, k: int) -> dict[str, Any]:
    return {"text": measure.texts[k], "change": measure.change_texts[k], "best": measure.is_best[k]}
