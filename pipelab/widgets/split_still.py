"""The split editor as a matplotlib figure: what a saved notebook keeps of it."""

from __future__ import annotations

from matplotlib.figure import Figure

from pipelab.core.profile import Profile
from pipelab.core.split import Split
from pipelab.plots.figure import own_figure
from pipelab.plots.stages import plot_stages, stage_axes


def still_stages(profile: Profile, split: Split, batch_size: int) -> Figure:
    """Draw the stages into a figure of its own, which pyplot knows nothing of.

    Args:
        profile: costs of the layers.
        split: where the stages begin.
        batch_size: samples in a micro-batch.
    """
    axes = stage_axes(split.num_stages, of_pyplot=False)
    plot_stages(profile, split, batch_size=batch_size, ax=axes)
    return own_figure(axes)
