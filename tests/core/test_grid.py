"""The grid of characters where a rank does more than its cells."""

from __future__ import annotations

from dataclasses import replace

from pipelab.core.costs import Costs, Links
from pipelab.core.schedules import schedule


def test_updates_stand_behind_the_cells_and_transfers_do_not_change_the_scale():
    one = schedule("1f1b", num_ranks=2, num_microbatches=2)
    costs = replace(Costs.uniform(2, update=2), links=Links(0.5, serial=True))
    assert one.grid(costs).splitlines() == [
        "given costs; one column is 500 ms: makespan 12 s, bubble fraction 33.3 %",
        "rank 0 | 0F0 --- 0F1 ---  .   .   .   .   .   .  0B0 --- --- ---  .   .  0B1 --- --- --- 0U1 --- --- ---",
        "rank 1 |  .   .   .  1F0 --- 1B0 --- --- --- 1F1 --- 1B1 --- --- --- 1U1 --- --- ---  .   .   .   .   .",
    ]


def test_updates_that_take_no_time_take_no_column_and_the_headline_says_so():
    text = str(schedule("pipedream", num_ranks=2, num_microbatches=2))
    assert "updates take no time and are not drawn" in text and "0U0" not in text
    timed = schedule("pipedream", num_ranks=2, num_microbatches=2).grid(Costs.uniform(2, update=1.0))
    assert "not drawn" not in timed and "0U0" in timed
