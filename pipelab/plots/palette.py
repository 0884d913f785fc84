"""The colours: one meaning each, told apart by colour-blind eyes and in grey."""

from __future__ import annotations

import numpy as np

from pipelab.core.actions import KINDS, Kind

FORWARD = "#8CCBEF"
BACKWARD = "#08306B"  # B, and I: the gradient that the stage before waits for
WEIGHT = "#D55E00"
OTHER = "#999999"  # optimizer updates and whatever runs on a lane of its own: copies, loaders
IDLE = "#FFFFFF"
HATCH = "#D4D4D4"  # the strokes over idle time
MEMORY = "#009E73"
BUSY = "#7D93A6"  # work of any kind, where kinds are not told apart
PATH = "#F0E442"  # the critical path, always within a dark edge
INK = "#222222"

# Lines of many schedules: the colours of Okabe and Ito less yellow, which white paper swallows. There are more
# schedules than colours, so markers and strokes tell them apart too, and each line is named where it ends.
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
STROKES = ("-", "--", ":")

PAINTS = (FORWARD, BACKWARD, WEIGHT, OTHER)
INKS = ("#000000", "#FFFFFF", "#000000", "#000000")  # the number in a box of each paint
LEGEND = (
    ("F forward", FORWARD),
    ("B, I backward", BACKWARD),
    ("W weights", WEIGHT),
    ("updates, other lanes", OTHER),
)

FORWARD_PAINT, BACKWARD_PAINT, WEIGHT_PAINT, OTHER_PAINT = range(len(PAINTS))

_PAINT_OF_KIND = {
    Kind.F: FORWARD_PAINT,
    Kind.B: BACKWARD_PAINT,
    Kind.I: BACKWARD_PAINT,
    Kind.W: WEIGHT_PAINT,
    Kind.U: OTHER_PAINT,
}

# Index with a column of kind codes. An overlapped forward and backward has no paint of its own: it shows both.
PAINT_OF_CODE = np.array([_PAINT_OF_KIND.get(kind, OTHER_PAINT) for kind in KINDS])
OVERLAP_CODE = KINDS.index(Kind.OVERLAP)


def rgb(paints: tuple[str, ...] = PAINTS) -> np.ndarray:
    """The colours as numbers in [0, 255], one row each.

    Example:
        >>> rgb(("#FFFFFF", "#08306B")).tolist()
        [[255.0, 255.0, 255.0], [8.0, 48.0, 107.0]]
    """
    return np.array([[int(paint[at : at + 2], 16) for at in (1, 3, 5)] for paint in paints], dtype=float)
