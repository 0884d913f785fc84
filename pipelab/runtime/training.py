"""What training with updates in flight leaves: losses, trace, and the version of the weights that each action saw."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipelab.core.actions import Action, IntArray, Kind
from pipelab.core.quantities import counted
from pipelab.core.schedule import Schedule
from pipelab.core.tables import html_table, pretty, text_table
from pipelab.core.trace import Trace

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class SeenVersions:
    """The version of its stage's weights that every action worked on, noted while it ran.

    Version 0 is what training starts with; an update turns version n into n + 1, and is listed with n. What should
    be seen is `schedule.weight_versions()`.

    Attributes:
        actions: in the order of the schedule's table; members of an overlap by themselves.
        minibatch: shape (actions,).
        version: shape (actions,).
    """

    actions: tuple[Action, ...]
    minibatch: IntArray
    version: IntArray

    @classmethod
    def of(cls, schedule: Schedule, seen: Iterable[tuple[Action, int]]) -> SeenVersions:
        """From pairs (action, version) in any order."""
        found = dict(seen)
        members = (part for order in schedule.orders for cell in order for part in cell.parts)
        actions = tuple(action for action in members if action in found)
        per_minibatch = schedule.num_microbatches // schedule.minibatches
        minibatch = np.array([action.microbatch // per_minibatch for action in actions], dtype=np.int64)
        return cls(actions, minibatch, np.array([found[action] for action in actions], dtype=np.int64))

    @property
    def of_stages(self) -> IntArray:
        """Shape (stages, mini-batches): the version that the forwards of each mini-batch saw on each stage."""
        forwards = np.array([action.kind is Kind.F for action in self.actions], dtype=bool)
        stage = np.array([action.stage for action in self.actions], dtype=np.int64)[forwards]
        minibatch = self.minibatch[forwards]
        table = np.full((stage.max(initial=-1) + 1, minibatch.max(initial=-1) + 1), -1, dtype=np.int64)
        table[stage, minibatch] = self.version[forwards]
        return table

    @property
    def staleness(self) -> IntArray:
        """Shape (actions,): updates between the version that an action saw and the one its mini-batch's update changed.

        An update itself has 0. As `schedule.weight_versions().staleness` plans it.
        """
        pairs = list(zip(self.actions, self.minibatch.tolist(), self.version.tolist(), strict=True))
        changed = {(action.stage, n): version for action, n, version in pairs if action.kind is Kind.U}
        # Updates come in the order of the mini-batches: the n-th changes version n.
        return np.array(
            [changed.get((action.stage, n), n) - version for action, n, version in pairs], dtype=np.int64
        )

    def columns(self) -> dict[str, Any]:
        """One row for each action."""
        return {
            "action": np.array([str(action) for action in self.actions], dtype=object),
            "stage": np.array([action.stage for action in self.actions], dtype=np.int64),
            "mini-batch": self.minibatch,
            "version": self.version,
            "staleness": self.staleness,
        }

    def to_frame(self) -> pd.DataFrame:
        """The columns as a pandas table."""
        import pandas as pd

        return pd.DataFrame(self.columns())

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        table = self.of_stages
        shown = min(table.shape[1], 12)
        more = ["..."] if shown < table.shape[1] else []
        header = ["stage", *(f"batch {n}" for n in range(shown)), *more, "most stale"]
        stage, staleness = np.array([action.stage for action in self.actions]), self.staleness
        stalest = [staleness[stage == s].max(initial=0) for s in range(len(table))]
        rows = [[*map(str, (s, *row[:shown], *more, stalest[s]))] for s, row in enumerate(table)]
        return header, rows

    def __str__(self) -> str:
        return text_table(
            *self._rows(),
            "The version of the weights that the forwards of each mini-batch worked on; most stale: updates between it "
            "and the version that the mini-batch's own update changed.",
        )

    def __repr__(self) -> str:
        return f"<SeenVersions of {counted(len(self.actions), 'action')}>"

    _repr_pretty_ = pretty

    def _repr_html_(self) -> str:
        return html_table(*self._rows(), "versions of the weights, as seen")


@dataclass(frozen=True, eq=False, repr=False)
class Training:
    """What `pp.train` did. The weights are in the model; its gradients are None.

    Attributes:
        losses: the loss of each mini-batch, in order, shape (mini-batches,), on the CPU.
        trace: when each action ran, over all mini-batches; updates are the actions U.
        versions: the version of the weights that every action worked on.
        optimizers: each stage's own, with its state; None for a stage without parameters to train. Pass them on to
            go on training: `pp.train(pipe, more, optimizer=run.optimizers)`.
    """

    losses: Tensor
    trace: Trace
    versions: SeenVersions
    optimizers: tuple[torch.optim.Optimizer | None, ...]

    def __repr__(self) -> str:
        return f"<Training: {self._summary()}>"

    def __str__(self) -> str:
        return f"{self._summary()}\n{self.trace}"

    def _summary(self) -> str:
        losses = self.losses.tolist()
        line = (
            f"{counted(len(losses), 'mini-batch', 'mini-batches')}, loss {losses[0]:.6g} -> {losses[-1]:.6g}"
        )
        bad = [n for n, loss in enumerate(losses) if not np.isfinite(loss)]
        if bad:
            line += f" (not finite, first in mini-batch {bad[0]})"
        return line

    _repr_pretty_ = pretty

    def _repr_html_(self) -> str:
        return f"<div>{self._summary()}</div>{self.trace._repr_html_()}"
