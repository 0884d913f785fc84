"""Which version of the weights each mini-batch sees, in a schedule with several mini-batches.

Version 0 is what training starts with; the n-th update of a stage makes its version n. A mini-batch runs its
forward and its backward with one version of each stage, and its update is applied to the newest one. The
staleness is how many updates came in between.

    PipeDream (SOSP 2019): a stage takes the newest version that it has when the mini-batch arrives there
                           (weight stashing): stage s of p keeps p - s versions, staleness p - 1 - s.
    2BW (arXiv 2006.09503): all stages take the version that the first stage has when the mini-batch enters the
                           pipeline: two versions, staleness 1. With several micro-batches a mini-batch, the newest
                           version of each stage would change in the middle of a mini-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelab.core.actions import CODES, IntArray, Kind
from pipelab.core.schedule import Schedule
from pipelab.core.tables import html_table, pretty, text_table
from pipelab.errors import PipelabError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["WeightVersions"]

_F, _W, _B, _U = (CODES[kind] for kind in (Kind.F, Kind.W, Kind.B, Kind.U))


@dataclass(frozen=True, eq=False, repr=False)
class WeightVersions:
    """The version of the weights that every mini-batch sees on every stage.

    Attributes:
        version: shape (stages, mini-batches): which version the forwards and backwards use.
        staleness: shape (stages, mini-batches): updates between that version and the one that the update of this
            mini-batch is applied to.
        kept: shape (stages,): the most versions that a stage holds at once, the newest included.
        is_consistent: whether a mini-batch sees the same version on every stage by construction.
    """

    version: IntArray
    staleness: IntArray
    kept: IntArray
    is_consistent: bool

    @classmethod
    def of(cls, schedule: Schedule, consistent: bool | None = None) -> WeightVersions:
        """Work the versions out; see `Schedule.weight_versions`."""
        n = schedule.minibatches
        updates, first, last = _positions(schedule)
        made = np.stack([np.searchsorted(updates[s], first[s]) for s in range(schedule.num_stages)])
        consistent = schedule.num_microbatches > n if consistent is None else consistent
        version = np.broadcast_to(made[0], made.shape) if consistent else made
        late = np.argwhere(version > made)
        if len(late):
            s, k = late[0]
            raise PipelabError(
                f"{schedule.name}: mini-batch {k} enters stage {s} after {made[s, k]} updates there, but stage 0 "
                f"admitted it with version {version[s, k]}. Use consistent=False."
            )
        return cls(version, np.arange(n) - version, _most_kept(version, updates, last), consistent)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, WeightVersions):
            return NotImplemented
        return np.array_equal(self.version, other.version) and np.array_equal(self.kept, other.kept)

    def __hash__(self) -> int:
        return hash((self.version.tobytes(), self.kept.tobytes()))

    def columns(self) -> dict[str, Any]:
        """One row for each stage and mini-batch."""
        stages, minibatches = self.version.shape
        return {
            "stage": np.repeat(np.arange(stages), minibatches),
            "mini-batch": np.tile(np.arange(minibatches), stages),
            "version": self.version.ravel(),
            "staleness": self.staleness.ravel(),
        }

    def to_frame(self) -> pd.DataFrame:
        """The columns as a pandas table."""
        import pandas as pd

        return pd.DataFrame(self.columns())

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        shown = min(self.version.shape[1], 12)
        more = ["..."] if shown < self.version.shape[1] else []
        header = ["stage", *(f"batch {n}" for n in range(shown)), *more, "most stale", "versions kept"]
        rows = [
            list(map(str, (s, *self.version[s, :shown], *more, self.staleness[s].max(), self.kept[s])))
            for s in range(len(self.version))
        ]
        return header, rows

    def __str__(self) -> str:
        return text_table(
            *self._rows(),
            "The version of the weights that forward and backward of each mini-batch use on each stage; training "
            "starts with 0.",
        )

    def __repr__(self) -> str:
        return (
            f"<WeightVersions: {self.version.shape[0]} stages, {self.version.shape[1]} mini-batches, "
            f"at most {int(self.kept.max())} kept>"
        )

    _repr_pretty_ = pretty

    def _repr_html_(self) -> str:
        return html_table(*self._rows(), "versions of the weights")


def _positions(schedule: Schedule) -> tuple[IntArray, IntArray, IntArray]:
    """For each stage and mini-batch the cell of its update, of its first forward, and of its last backward."""
    table, shape = schedule.table, (schedule.num_stages, schedule.minibatches)
    minibatch = table.microbatch // (schedule.num_microbatches // schedule.minibatches)
    updates = np.full(shape, -1, dtype=np.int64)
    first, last = np.full(shape, table.num_cells, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
    for place, kinds, ufunc in (
        (updates, (_U,), np.maximum),
        (first, (_F,), np.minimum),
        (last, (_B, _W), np.maximum),
    ):
        rows = np.flatnonzero(np.isin(table.kind, kinds))
        ufunc.at(place, (table.stage[rows], minibatch[rows]), table.cell[rows])
    if (updates < 0).any():
        raise PipelabError(
            f"{schedule.name} has no update (U) of every stage after every mini-batch, so its weights have no "
            f"versions. Asynchronous schedules have them."
        )
    return updates, first, last


def _most_kept(version: IntArray, updates: IntArray, last: IntArray) -> IntArray:
    """Shape (stages,): the most versions alive at once: the newest, and older ones that are used once more.

    Version w is old from update w + 1 on, up to the last update before its last use.
    """
    stages, count = version.shape
    kept = np.ones(stages, dtype=np.int64)
    for s in range(stages):
        last_use = np.full(count, -1, dtype=np.int64)
        np.maximum.at(last_use, version[s], last[s])
        until = np.searchsorted(updates[s], last_use)  # so many updates before the last use
        old = np.flatnonzero(until > np.arange(count))
        changes = np.bincount(old + 1, minlength=count + 2)[: count + 2]
        changes -= np.bincount(until[old] + 1, minlength=count + 2)[: count + 2]
        kept[s] += int(np.cumsum(changes).max())
    return kept
