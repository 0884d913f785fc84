from __future__ import annotations

import numpy as np
import pytest

import pipelab as pp
from pipelab.core.actions import KINDS
from pipelab.core.trace import Trace
from pipelab.plots.palette import BACKWARD_PAINT, FORWARD_PAINT, OTHER_PAINT, WEIGHT_PAINT
from pipelab.plots.scene import HALF, scene
from tests.plots.sizes import OVERLAPPED, SIZES, SPLIT_BACKWARD, of_orders, trace


@pytest.mark.parametrize(("ranks", "microbatches"), SIZES)
def test_boxes_begin_and_end_when_the_actions_do(ranks, microbatches):
    one = trace(ranks, microbatches)
    corners = scene([one]).boxes()
    assert corners[:, 0, 0].tolist() == one.start.tolist()
    assert corners[:, 2, 0].tolist() == one.end.tolist()


@pytest.mark.parametrize(("ranks", "microbatches"), SIZES)
def test_every_rank_has_a_row_and_its_boxes_lie_in_it(ranks, microbatches):
    one = trace(ranks, microbatches)
    shown = scene([one])
    assert shown.row_labels == tuple(f"rank {rank}" for rank in range(ranks))
    middle = shown.boxes()[:, :, 1].mean(axis=1)
    assert middle == pytest.approx(shown.row_y[one.rank])


def test_traces_lie_below_one_another_with_a_header_each():
    first, second = trace(2, 3), trace(3, 3)
    shown = scene([first, second])
    assert len(shown.row_y) == 5
    assert shown.header_y[0] < shown.row_y[0] < shown.row_y[1] < shown.header_y[1] < shown.row_y[2]
    assert shown.start.tolist() == [*first.start, *second.start]


def test_idle_time_reaches_to_the_end_of_the_own_step_only():
    first, second = trace(2, 3), trace(2, 9)
    spans = scene([first, second]).spans()
    assert spans[:2, 2, 0].tolist() == [first.makespan] * 2
    assert spans[2:, 2, 0].tolist() == [second.makespan] * 2


def test_split_backwards_and_updates_have_paints_of_their_own():
    one = of_orders(SPLIT_BACKWARD)
    paint = scene([one]).paint[:7].tolist()
    f, i, w, u = FORWARD_PAINT, BACKWARD_PAINT, WEIGHT_PAINT, OTHER_PAINT
    assert paint == [f, f, i, w, i, w, u]


def test_an_overlap_shows_both_members_in_one_row():
    one = of_orders(OVERLAPPED)
    shown = scene([one])
    cell = next(n for n, action in enumerate(one.schedule.orders[0]) if action.members)
    both = np.flatnonzero((shown.start == one.start[cell]) & (shown.row == 0))
    assert sorted(shown.paint[both].tolist()) == sorted([FORWARD_PAINT, BACKWARD_PAINT])
    assert shown.number[both].tolist() == [2, 0]
    assert shown.top[both].tolist() == pytest.approx([-HALF, 0.0])
    assert shown.bottom[both].tolist() == pytest.approx([0.0, HALF])
    assert len(shown.row) == len(one.start) + 1


def with_lanes(names: tuple[str, ...]) -> Trace:
    one = trace(2, 2)
    extra = {"rank": [1, 0], "lane": [1, 2], "kind": [0, 0], "stage": [0, 0], "microbatch": [0, 1]}
    columns = {name: np.append(getattr(one, name), more) for name, more in extra.items()}
    start, end = np.append(one.start, [0.0, 1.0]), np.append(one.end, [2.0, 1.5])
    return Trace(one.schedule, **columns, start=start, end=end, lanes=("compute", *names))


def test_other_lanes_get_rows_beside_their_rank_and_a_paint_of_their_own():
    shown = scene([with_lanes(("copy", "load:0"))])
    assert shown.row_labels == ("load:0", "rank 0", "rank 1", "copy")
    assert shown.row[-2:].tolist() == [3, 0]
    assert shown.paint[-2:].tolist() == [OTHER_PAINT] * 2


def test_names_of_lanes_are_taken_literally():
    assert scene([with_lanes(("$x$", "y\nz"))]).row_labels[3] == r"\$x\$"


def test_a_step_that_takes_no_time_still_has_an_axis():
    one = trace(2, 2)
    nothing = Trace.from_times(one.schedule, one.start * 0, one.end * 0, clock="simulated")
    assert scene([nothing]).stop > 0


def rich():
    """A run with every kind of lane."""
    order = pp.schedule("1f1b", num_ranks=2, num_microbatches=4)
    costs = pp.Costs((1, 1), (1, 1), (1, 1), update=(1, 1), links=pp.Links(0.5, serial=True))
    return pp.simulate(order, costs, feed=pp.Feed(load=0.5, prepare=2, workers=2))


def test_what_feeds_a_rank_stands_above_it_and_what_leaves_it_below():
    labels = scene([rich()]).row_labels
    assert labels == ("load:0", "prepare:0", "prepare:1", "rank 0", "copy", "rank 1", "copy")


def test_an_update_is_drawn_in_the_row_of_its_rank():
    one, drawn = rich(), scene([rich()])
    updates = one.rows_of("update")
    assert [drawn.row_labels[row] for row in drawn.row[updates]] == ["rank 0", "rank 1"]
    assert set(drawn.paint[updates]) == {OTHER_PAINT}


def test_copies_of_outputs_and_of_gradients_never_cover_each_other():
    one, drawn = rich(), scene([rich()])
    copies = one.rows_of("copy")
    kinds = np.array([kind.value for kind in KINDS])[one.kind[copies]]
    assert set(kinds) == {"F", "B"}
    assert (drawn.bottom[copies[kinds == "F"]] <= 0).all() and (drawn.top[copies[kinds == "B"]] >= 0).all()


@pytest.mark.parametrize(("name", "later"), [("1f1b", 0), ("zb-v", 1 / 2), ("dualpipe", 1 / 2)])
def test_the_later_stages_of_a_rank_are_told_from_the_first(name, later):
    order = pp.schedule(name, num_ranks=4, num_microbatches=8)
    drawn = scene([pp.simulate(order, pp.Costs.uniform(order.num_model_stages))])
    assert drawn.later.mean() == later
