"""Checking a schedule when it is made, and saying what is wrong with it.

A schedule that passes can run to its end on any engine: every action is there once, on the rank that holds
its stage, and the orders of the ranks never wait for each other in a circle. One that does not pass is an
error that shows the cell; it is never a hung kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelab.core.actions import CODES, MAX_CELLS, ActionTable, IntArray, Kind
from pipelab.core.deadlock import action_of, explain_deadlock, show_around
from pipelab.core.dependencies import RESULTS, Needs, Slots, StageGraph, needs
from pipelab.core.placement import Placement
from pipelab.core.recurrence import Predecessors, Recurrence, StuckError, compile_recurrence
from pipelab.errors import PipelabError

__all__ = ["Checked", "check", "check_size"]

_F, _I, _W, _B, _U = (CODES[kind] for kind in (Kind.F, Kind.I, Kind.W, Kind.B, Kind.U))


@dataclass(frozen=True, eq=False, repr=False)
class Checked:
    """What the check found out and the rest of pipelab needs again.

    Attributes:
        num_microbatches: m.
        has_backward: whether every stage runs backward, or none does.
        slots: where each action is.
        needs: what each row needs.
        givers: shape (needs,): the row that gives it.
        predecessors: what cells need from other ranks.
        recurrence: the cells in topological order, compiled for simulation.
    """

    num_microbatches: int
    has_backward: bool
    slots: Slots
    needs: Needs
    givers: IntArray
    predecessors: Predecessors
    recurrence: Recurrence


def check_size(what: str, num_cells: int) -> None:
    """Refuse a schedule of too many cells before memory is taken for it.

    Args:
        what: what would be built, for the message.
        num_cells: how many cells it would have.

    Raises:
        PipelabError: more than `MAX_CELLS`.
    """
    if num_cells > MAX_CELLS:
        raise PipelabError(f"{what} would have {num_cells:,} cells; the limit is {MAX_CELLS:,} (2**22).")


def check(
    name: str, table: ActionTable, placement: Placement, minibatches: int = 1, slices: int = 1
) -> Checked:
    """Check a whole table; see the messages below for what can be wrong.

    Args:
        name: the schedule's name, which begins every message.
        table: the actions.
        placement: the stages that there are, and where they are.
        minibatches: how many mini-batches follow each other, each ended by an update of every stage.
        slices: in how many causal slices each micro-batch runs.

    Raises:
        PipelabError: names the first action that is wrong and what to do.
    """
    if not table.num_rows:
        raise PipelabError(f"{name}: there are no actions. A schedule has at least one forward, such as 0F0.")
    _check_rows(name, table, placement)
    num_microbatches = int(table.microbatch.max()) + 1
    _check_numbering(name, placement, num_microbatches, minibatches, slices)
    slots = Slots(placement, num_microbatches)
    _check_chains(name, table, placement, slots)
    _check_all_forward(name, table, slots)
    _check_doubled(name, table, slots.fill(table))
    has_backward = _check_kinds(name, table, slots)
    if minibatches > 1:
        _check_updates(name, table, slots, num_microbatches // minibatches)

    graph = StageGraph(placement)
    wanted = needs(table.kind, table.stage, table.microbatch, graph, slices)
    givers = slots.givers(wanted.result, wanted.stage, wanted.microbatch)
    _check_given(name, table, wanted, givers)
    waiting, giving = table.cell[wanted.row], table.cell[givers]
    elsewhere = table.rank[wanted.row] != table.rank[givers]
    _check_own_order(name, table, wanted, givers, ~elsewhere & (giving >= waiting))
    predecessors = Predecessors(waiting[elsewhere], giving[elsewhere], wanted.hop[elsewhere])
    try:
        recurrence = compile_recurrence(table.cell_ranks, placement.num_ranks, predecessors)
    except StuckError as stuck:
        raise PipelabError(explain_deadlock(name, table, stuck.heads)) from None
    return Checked(num_microbatches, has_backward, slots, wanted, givers, predecessors, recurrence)


def _check_numbering(name: str, placement: Placement, count: int, minibatches: int, slices: int) -> None:
    """The numbers of the table can be read as mini-batches of micro-batches of slices."""
    for what, parts in (("minibatches", minibatches), ("slices", slices)):
        if parts < 1 or count % parts:
            raise PipelabError(
                f"{name}: {what} is {parts}, but the table has the micro-batch numbers 0 to {count - 1}. "
                f"It must divide {count}."
            )
    if minibatches > 1 and (placement.chains > 1 or slices > 1):
        other = "chains" if placement.chains > 1 else "slices"
        raise PipelabError(
            f"{name}: several mini-batches with several {other} are not supported; set minibatches=1 or {other}=1."
        )


def _check_updates(name: str, table: ActionTable, slots: Slots, per_minibatch: int) -> None:
    """Each stage is updated once for each mini-batch, when all its gradients are there and before later ones are."""
    there = slots.rows[_U] >= 0
    number = np.arange(slots.num_slots) % (int(slots.last_microbatch[0]) + 1)
    is_last = number % per_minibatch == per_minibatch - 1
    slot = _first(there != is_last)
    if slot is not None:
        s, i = slots.find(slot)
        last = i // per_minibatch * per_minibatch + per_minibatch - 1
        what = f"{s}U{i} is there" if there[slot] else f"{s}U{i} is missing"
        raise PipelabError(
            f"{name}: {what}. With mini-batches of {per_minibatch} micro-batches each stage is updated after the "
            f"last of each: {s}U{last} ends the mini-batch of micro-batch {i}."
        )
    gradient = np.flatnonzero((table.kind == _B) | (table.kind == _W))
    update = slots.rows[_U].reshape(-1, int(slots.last_microbatch[0]) + 1)[
        :, per_minibatch - 1 :: per_minibatch
    ]
    minibatch = table.microbatch[gradient] // per_minibatch
    late = table.cell[gradient] > table.cell[update[table.stage[gradient], minibatch]]
    before = np.maximum(minibatch - 1, 0)
    early = (minibatch > 0) & (table.cell[gradient] < table.cell[update[table.stage[gradient], before]])
    position = _first(late | early)
    if position is not None:
        row, n = int(gradient[position]), int(minibatch[position])
        other = int(update[table.stage[row], n if late[position] else n - 1])
        side = "before" if late[position] else "after"
        raise PipelabError(
            f"{name}: {action_of(table, row)} must come {side} {action_of(table, other)}, so that an update "
            f"applies the gradients of one mini-batch.\n{show_around(table, row)}"
        )


def _check_rows(name: str, table: ActionTable, placement: Placement) -> None:
    """Every action belongs to a stage that exists, and runs where that stage is."""
    row = _first(table.stage >= placement.num_stages)
    if row is not None:
        raise PipelabError(
            f"{name}: {action_of(table, row)} names stage {table.stage[row]}, but the placement has "
            f"{placement.num_stages} stages, counted from 0."
        )
    row = _first(table.rank >= placement.num_ranks)
    if row is not None:
        raise PipelabError(
            f"{name}: there is an order for rank {table.rank[row]}, but the placement gives it no stage."
        )
    ranks = np.array(placement.ranks, dtype=np.int32)
    row = _first(ranks[table.stage] != table.rank)
    if row is not None:
        stage = table.stage[row]
        raise PipelabError(
            f"{name}: {action_of(table, row)} is in the order of rank {table.rank[row]}, but stage {stage} "
            f"is placed on rank {ranks[stage]}. Move it there, or change the placement.\n"
            f"{show_around(table, row)}"
        )


def _check_chains(name: str, table: ActionTable, placement: Placement, slots: Slots) -> None:
    first, last = slots.first_microbatch[table.stage], slots.last_microbatch[table.stage]
    row = _first((table.microbatch < first) | (table.microbatch > last))
    if row is not None:
        chain = placement.chain_of_stage(int(table.stage[row]))
        raise PipelabError(
            f"{name}: {action_of(table, row)} runs in chain {chain}, which takes micro-batches "
            f"{first[row]} to {last[row]}."
        )


def _check_all_forward(name: str, table: ActionTable, slots: Slots) -> None:
    """Find a missing forward with memory for the rows that there are, not for those that there should be."""
    forward = np.flatnonzero(table.kind == _F)
    present = np.unique(slots.base[table.stage[forward]] + table.microbatch[forward])
    if len(present) == slots.num_slots:
        return
    gaps = np.flatnonzero(present != np.arange(len(present)))
    stage, microbatch = slots.find(int(gaps[0]) if len(gaps) else len(present))
    raise PipelabError(
        f"{name}: {stage}F{microbatch} is missing. Every stage runs the forward of every micro-batch "
        f"0 to {int(table.microbatch.max())} of its chain once."
    )


def _check_doubled(name: str, table: ActionTable, kept: IntArray) -> None:
    row = _first(kept != np.arange(table.num_rows))
    if row is not None:
        raise PipelabError(
            f"{name}: rank {table.rank[row]} has {action_of(table, row)} twice. Remove one.\n"
            f"{show_around(table, int(kept[row]))}"
        )


def _check_kinds(name: str, table: ActionTable, slots: Slots) -> bool:
    """Per stage and micro-batch: F alone, or F and B, or F, I and W; and the same for all."""
    there = slots.rows >= 0
    split, whole = there[_I] | there[_W], there[_B]
    slot = _first(split & whole)
    if slot is not None:
        s, i = slots.find(slot)
        other = "I" if there[_I, slot] else "W"
        raise PipelabError(
            f"{name}: both {s}B{i} and {s}{other}{i} are there. B is I and W in one; keep one form."
        )
    slot = _first(there[_I] != there[_W])
    if slot is not None:
        s, i = slots.find(slot)
        has, lacks = ("I", "W") if there[_I, slot] else ("W", "I")
        raise PipelabError(
            f"{name}: {s}{has}{i} is there but {s}{lacks}{i} is missing. Add it, or use {s}B{i}."
        )
    backward = split | whole
    if backward.any() and not backward.all():
        s, i = slots.find(int(np.argmin(backward)))
        t, j = _one_with_backward(slots, backward, i)
        raise PipelabError(
            f"{name}: {s}B{i} is missing (stage {s} has no backward for micro-batch {i}), though stage {t} "
            f"has one for micro-batch {j}. Give every stage and micro-batch a backward, or none."
        )
    slot = _first(there[_U] & ~backward)
    if slot is not None:
        s, i = slots.find(slot)
        raise PipelabError(
            f"{name}: {s}U{i} updates stage {s} after micro-batch {i}, which has no backward there."
        )
    return bool(backward.any())


def _one_with_backward(slots: Slots, backward: npt.NDArray[np.bool_], microbatch: int) -> tuple[int, int]:
    """A stage and micro-batch that have a backward; of the given micro-batch, if there is one."""
    found = [slots.find(int(slot)) for slot in np.flatnonzero(backward)[:1000]]
    return next((pair for pair in found if pair[1] == microbatch), found[0])


def _check_given(name: str, table: ActionTable, wanted: Needs, givers: IntArray) -> None:
    line = _first(givers < 0)
    if line is not None:
        kinds = " or ".join(
            f"{wanted.stage[line]}{kind}{wanted.microbatch[line]}"
            for kind in RESULTS[int(wanted.result[line])]
        )
        raise PipelabError(
            f"{name}: {action_of(table, int(wanted.row[line]))} needs {kinds}, which is missing."
        )


def _check_own_order(name: str, table: ActionTable, wanted: Needs, givers: IntArray, wrong: IntArray) -> None:
    lines = np.flatnonzero(wrong)
    if not len(lines):
        return
    line = lines[np.argmin(wanted.row[lines])]
    row, giver = int(wanted.row[line]), int(givers[line])
    action, need = action_of(table, row), action_of(table, giver)
    if table.cell[row] == table.cell[giver]:
        raise PipelabError(
            f"{name}: rank {table.rank[row]} overlaps {action} with {need}, which it needs first. "
            f"Put {need} into an earlier cell.\n{show_around(table, row)}"
        )
    raise PipelabError(
        f"{name}: rank {table.rank[row]} wants to run {action} but {need} never comes before it. "
        f"Put {need} earlier.\n{show_around(table, row)}"
    )


def _first(wrong: npt.NDArray[np.bool_]) -> int | None:
    """The first position where something is wrong."""
    position = int(np.argmax(wrong)) if len(wrong) else 0
    return position if len(wrong) and wrong[position] else None
