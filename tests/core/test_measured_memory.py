"""Measured memory as a value: curves, peaks, what is said about them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipelab.core.costs import Costs, StageBytes
from pipelab.core.measured_memory import AllocatorMemory, MeasuredMemory, Peak
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import schedule
from pipelab.core.simulation import simulate
from pipelab.errors import PipelabError

BYTES = StageBytes(parameters=(100, 200), activations=(8, 8), outputs=(0, 0))
ONE = schedule("1f1b", num_ranks=2, num_microbatches=3)
TRACE = simulate(ONE, Costs((1,) * 2, (1,) * 2, (1,) * 2, bytes=BYTES))


def measured(**changes):
    """Just what is predicted, looked at when actions end: 1F1B holds 2 micro-batches on rank 0 and 1 on rank 1."""
    held = np.zeros((len(TRACE.start), 2))
    for rank, order in enumerate(ONE.orders):
        flying = 0
        for n, action in enumerate(order):
            flying += 1 if action.kind == "F" else -1
            held[rank * len(ONE.orders[0]) + n, rank] = 8 * flying
    value = MeasuredMemory(TRACE, np.arange(len(held)), held, np.zeros_like(held), (0.0, 0.0))
    return replace(value, **changes)


def test_a_curve_is_weights_gradients_and_what_was_alive_when_actions_ended():
    first, last = measured().memory()
    assert first.value.tolist() == [200, 208, 216, 208, 216, 208, 200]
    assert first.time.tolist() == [0, *TRACE.end[:6]] and first.unit == "bytes"
    assert last.value.tolist() == [400, 408, 400, 408, 400, 408, 400]


def test_peaks_say_how_much_and_when():
    one = measured()
    assert one.rank_peaks == (Peak(216, 2), Peak(408, 2)) and one.stage_peaks == (Peak(16, 2), Peak(8, 2))
    assert one.predicted_peaks == (216, 408) and one.error == (0, 0)


def test_what_is_held_beyond_the_prediction_is_the_error():
    one = measured()
    more = replace(one, activations=one.activations + 54)
    assert more.error[0] == pytest.approx(54 / 216)
    assert "+25.0 %" in str(more) and "+13.2 %" in str(more)


def test_what_is_left_after_the_step_is_said():
    assert measured().notes == ()
    (note,) = measured(left=(0.0, 4096.0)).notes
    assert note.startswith("4 KiB that stage 1 made are still alive after the step") and note in str(
        measured(left=(0.0, 4096.0))
    )


def test_outputs_are_a_part_of_their_own():
    one = measured()
    outputs = np.zeros_like(one.outputs)
    outputs[-1, 1] = 1024
    kept = replace(one, outputs=outputs)
    assert "outputs" not in str(one).splitlines()[0] and "outputs" in str(kept).splitlines()[0]
    assert kept.memory()[1].value[-1] == 400 + 1024
    assert "1 KiB of outputs are kept for the caller; step(outputs=False) keeps none" in str(kept)


def test_what_the_allocator_says_is_said():
    gpu = AllocatorMemory("cuda:0", np.array([1.0]), np.array([2.0**20]), 2.0**21)
    (note,) = measured(allocators=(gpu,)).notes
    assert "cuda:0" in note and "2 MiB" in note


def test_after_each_member_of_an_overlap_it_is_looked():
    one = Schedule([["0F0", "(0F1;0B0)OVERLAP_F_B", "0B1"]])
    held = StageBytes((0,), (8,), (0,))
    trace = simulate(one, Costs((1,), (1,), (1,), bytes=held))
    looks = np.array([[8.0], [16.0], [8.0], [0.0]])
    value = MeasuredMemory(trace, np.array([0, 1, 1, 2]), looks, 0 * looks, (0.0,))
    assert value.rank_peaks == (Peak(16, trace.end[1]),) and value.error == (0,)
    assert value.to_frame()["after"].tolist() == ["0F0", *["(0F1;0B0)OVERLAP_F_B"] * 2, "0B1"]


def test_the_columns_have_a_row_for_each_cell_and_stage_of_its_rank():
    frame = measured().to_frame()
    assert len(frame) == 12 and list(frame["after"][:3]) == ["0F0", "0F1", "0B0"]
    assert frame.groupby("rank")["activations [bytes]"].max().tolist() == [16, 8]
    assert set(frame.columns) == {
        "rank",
        "stage",
        "after",
        "time [s]",
        "activations [bytes]",
        "outputs [bytes]",
    }


def test_several_stages_of_a_rank_are_listed_by_themselves():
    one = schedule("interleaved-1f1b", num_ranks=2, num_microbatches=2, stages_per_rank=2)
    held = StageBytes((10,) * 4, (8,) * 4, (0,) * 4)
    trace = simulate(one, Costs((1,) * 4, (1,) * 4, (1,) * 4, bytes=held))
    cells = np.zeros((len(trace.start), 4))
    cells[0] = 8
    value = MeasuredMemory(trace, np.arange(len(cells)), cells, 0 * cells, (0.0,) * 4)
    assert str(value).startswith("stage  rank") and value._repr_html_().count("<table") == 2
    assert value.rank_peaks[0].bytes == 2 * 20 + 2 * 8  # both of its stages


def test_it_prints_compares_and_shows_itself():
    one = measured()
    assert one == measured() and one != measured(left=(1.0, 0.0)) and hash(one) == hash(measured())
    assert "peak 408 B" in repr(one) and "simulated clock" in str(one)
    assert "<table" in one._repr_html_() and "predicted" in one._repr_html_()


def test_arrays_of_another_shape_are_refused():
    with pytest.raises(PipelabError, match="activations has shape"):
        measured(activations=np.zeros((3, 2)))
    with pytest.raises(PipelabError, match="left has 1"):
        measured(left=(0.0,))
    with pytest.raises(PipelabError, match="no bytes"):
        measured(trace=replace(TRACE, bytes=None, costs=None))
