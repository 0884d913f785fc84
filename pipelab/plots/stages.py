"""Pictures of a split: what each stage costs, which layers it holds, and how far the slowest is from the mean."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.patches import Patch
from numpy.typing import NDArray

from pipelab.core.costs import Costs
from pipelab.core.profile import Affine, Profile
from pipelab.core.quantities import as_bytes, as_seconds
from pipelab.core.split import Split
from pipelab.plots.artists import add_legend, plain_axes, set_headline, show_rows, show_seconds
from pipelab.plots.figure import give_words, new_axes
from pipelab.plots.palette import BACKWARD, FORWARD, INK, WEIGHT
from pipelab.plots.wording import counted, literal

_PARTS = (("F forward", FORWARD), ("I input gradient", BACKWARD), ("W weight gradient", WEIGHT))
_ROOMY = 8  # stages
_RIGHT = 0.6  # inches: a total stands there
_MOST_TEXTS = 40  # stages; beyond, names and totals would be unreadable


def plot_stages(
    profile: Profile, split: Split, *, batch_size: int | None = None, ax: Axes | None = None
) -> Axes:
    """Draw what one micro-batch costs on each stage, and which layers form it.

    The slowest stage sets the pace of the whole pipeline; a dashed line marks the mean, which a perfectly balanced
    split would reach everywhere.

    Args:
        profile: costs of the layers.
        split: where the stages begin.
        batch_size: samples in a micro-batch; that of the profile when left out.
        ax: where to draw; a new figure sized to the stages when left out.

    Example:
        >>> import pipelab as pp
        >>> from pipelab.core.profile import Affine
        >>> layers = ("embed", "block", "head")
        >>> second = (Affine(0.0, 1.0),) * 3
        >>> profile = pp.Profile(layers, second, second, second, (8,) * 3, second, second, 1, (1, 2), "cpu")
        >>> print(pp.plot_stages(profile, pp.Split(["block"])).get_title().splitlines()[0])
        2 stages: the slowest is stage 1, 6 s a micro-batch, 1.33 × the mean
    """
    size = profile.batch_size if batch_size is None else batch_size
    parts = _seconds(drawn_profile(profile, size).costs(split, batch_size=size))
    stages, total = parts.shape[0], parts.sum(axis=1)
    labels = [f"stage {stage}" for stage in range(stages)]
    if ax is None:
        ax = stage_axes(stages)
        give_words(ax, describe_stages(profile, split, batch_size=size))
    stop = (float(total.max()) or 1.0) * 1.02
    ax.set_xlim(0.0, stop)
    ax.set_ylim(stages + 0.5, 0.5)
    plain_axes(ax)
    ax.add_collection(_bars(parts), autolim=False)
    ax.axvline(float(total.mean()), color=INK, linewidth=1.0, linestyle=(0, (4, 3)), zorder=4)
    show_rows(ax, np.arange(1, stages + 1), labels)
    show_seconds(ax, stop)
    if stages <= _MOST_TEXTS:
        _name_stages(ax, profile, split, total)
    set_headline(
        ax, f"{_headline(total)}\nmicro-batch of {size} on {literal(profile.device, 40)} · dashed: the mean"
    )
    add_legend(ax, [Patch(facecolor=colour, label=name) for name, colour in _PARTS])
    return ax


def stage_axes(stages: int, *, of_pyplot: bool = True) -> Axes:
    """Axes for so many stages in a new figure; a few get a row and a line of words each."""
    rows, labels = stages + min(stages, _ROOMY), [f"stage {stage}" for stage in range(stages)]
    return new_axes(rows, labels, title_lines=2, right=_RIGHT, of_pyplot=of_pyplot)


def drawn_profile(profile: Profile, batch_size: int) -> Profile:
    """The profile at one micro-batch size, where B was measured with I and W as its shares.

    A full backward mostly takes a little less than I and W apart. What `balance` and the timeline of most schedules
    count is B, so it is what bars and totals must add up to.
    """
    if profile.backward is None:
        return profile
    whole = np.array([line.at(batch_size) for line in profile.backward])
    input_grad = np.array([line.at(batch_size) for line in profile.input_grad])
    both = input_grad + np.array([line.at(batch_size) for line in profile.weight_grad])
    share = np.divide(input_grad, both, out=np.zeros_like(both), where=both > 0)
    return replace(
        profile,
        input_grad=tuple(map(Affine, (whole * share).tolist())),
        weight_grad=tuple(map(Affine, (whole * (1 - share)).tolist())),
        backward=None,
    )


def describe_stages(profile: Profile, split: Split, *, batch_size: int | None = None) -> str:
    """The picture of `plot_stages` in sentences."""
    size = profile.batch_size if batch_size is None else batch_size
    total = _seconds(drawn_profile(profile, size).costs(split, batch_size=size)).sum(axis=1)
    names = [_layers(profile.layers[part]) for part in profile.stages(split)]
    parts = [f"Stage {n}: {name}, {as_seconds(total[n])}." for n, name in enumerate(names[:16])]
    return " ".join([f"{_headline(total)}; micro-batch of {size} on {profile.device}.", *parts])


def _seconds(costs: Costs) -> NDArray[np.float64]:
    """Shape (stages, 3): forward, input gradient, weight gradient."""
    return np.column_stack([costs.forward, costs.input_grad, costs.weight_grad])


def _bars(parts: NDArray[np.float64]) -> PolyCollection:
    ends = np.cumsum(parts, axis=1)
    starts = ends - parts
    y = np.arange(1, len(parts) + 1)
    corners = np.empty((*parts.shape, 4, 2))
    corners[:, :, :2, 0], corners[:, :, 2:, 0] = starts[..., None], ends[..., None]
    corners[:, :, (0, 3), 1] = (y - 0.42)[:, None, None]
    corners[:, :, (1, 2), 1] = (y + 0.08)[:, None, None]
    colours = [colour for _, colour in _PARTS] * len(parts)
    boxes: list[Any] = list(corners.reshape(-1, 4, 2))
    return PolyCollection(boxes, facecolors=colours, edgecolors="white", linewidths=0.5, zorder=2)


def _name_stages(ax: Axes, profile: Profile, split: Split, total: NDArray[np.float64]) -> None:
    for stage, part in enumerate(profile.stages(split)):
        weights = as_bytes(sum(profile.parameter_bytes[part]))
        text = f"{literal(_layers(profile.layers[part]), 70)} · {as_seconds(total[stage])} · {weights} of parameters"
        ax.text(0.0, stage + 1.27, text, fontsize=7.5, color=INK, va="center", zorder=5)


def _layers(names: tuple[str, ...]) -> str:
    if len(names) <= 2:
        return ", ".join(names)
    return f"{names[0]} … {names[-1]} ({counted(len(names), 'layer')})"


def _headline(total: NDArray[np.float64]) -> str:
    slowest, mean = int(np.argmax(total)), float(total.mean())
    pace = f"{as_seconds(float(total[slowest]))} a micro-batch"
    ratio = f", {total[slowest] / mean:.2f} × the mean" if mean > 0 else ""
    return f"{counted(len(total), 'stage')}: the slowest is stage {slowest}, {pace}{ratio}"
