"""The split editor as a matplotlib figure: what a saved notebook keeps of it."""

from __future__ import annotations

from matplotlib.figure import Figure

from pipelab.core.profile import Profile
from pipelab.core.split import Split
from pipelab.plots.figure import BOTTOM, TITLE_LINE, WIDTH, left_inches, row_inches
from pipelab.plots.stages import plot_stages

_RIGHT = 0.6  # inches: a legend stands there
_ROOMY = 8  # so many stages are given a row and a line of words each


def still_stages(profile: Profile, split: Split, batch_size: int) -> Figure:
    """Draw the stages into a figure of its own, which pyplot knows nothing of.

    Args:
        profile: costs of the layers.
        split: where the stages begin.
        batch_size: samples in a micro-batch.
    """
    stages = split.num_stages
    height = row_inches(stages + min(stages, _ROOMY))
    total = BOTTOM + height + 0.12 + 2 * TITLE_LINE
    left = left_inches([f"stage {stages - 1}"])
    figure = Figure(figsize=(WIDTH, total))
    axes = figure.add_axes((left / WIDTH, BOTTOM / total, 1 - (left + _RIGHT) / WIDTH, height / total))
    plot_stages(profile, split, batch_size=batch_size, ax=axes)
    return figure
