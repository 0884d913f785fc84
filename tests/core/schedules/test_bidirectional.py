"""Chimera and DualPipe: their published rules, their closed forms, and where these stop to hold."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product

import pytest

from pipelab.core.actions import Action
from pipelab.core.costs import Costs
from pipelab.core.report import Report
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import schedule
from pipelab.core.simulation import simulate
from pipelab.core.theory import closed_form
from pipelab.errors import PipelabError

CHIMERA = [(p, units * p) for p in (2, 4, 6, 8) for units in (1, 2, 3, 5)]
DUALPIPE = [(p, m) for p in (2, 4, 6, 8, 10) for m in (2 * p, 2 * p + 2, 3 * p + 2, 5 * p)]


def make(name: str, p: int, m: int) -> Schedule:
    return schedule(name, num_ranks=p, num_microbatches=m)


def report(one: Schedule, F: float, B: float, W: float | None = None, overlap: float | None = None) -> Report:
    p = one.num_ranks
    W = B / 2 if W is None else W
    costs = Costs((F,) * p, (B - W,) * p, (W,) * p, overlap=None if overlap is None else (overlap,) * p)
    return simulate(one, costs).report()


def even_and_2p(p: int, m: int) -> int:
    return max(2 * p, m + m % 2)


def cells(one: Schedule) -> list[str]:
    return [" ".join(map(str, order)) for order in one.orders]


@pytest.mark.parametrize(("name", "p", "m"), [("chimera", 6, 12), ("dualpipe", 6, 14), ("dualpipe", 8, 16)])
def test_the_mirrored_rank_does_the_same_for_the_other_chain(name, p, m):
    one = make(name, p, m)

    def other(text: str) -> str:
        return re.sub(
            r"(\d+)([FIWB])(\d+)",
            lambda found: f"{(int(found[1]) + p) % (2 * p)}{found[2]}{(int(found[3]) + m // 2) % m}",
            text,
        )

    lines = cells(one)
    assert [other(line) for line in lines] == lines[::-1]
    assert [other(other(line)) for line in lines] == lines  # the map is its own inverse


def test_chimera_is_the_papers_picture():
    """Figure 2 of arXiv 2107.06925; its micro-batches 0 and 1 run down the stages, 2 and 3 up."""
    assert cells(make("chimera", 4, 4)) == [
        "0F0 0F1 7F2 7B2 7F3 7B3 0B0 0B1",
        "1F0 6F2 1F1 6F3 6B2 1B0 6B3 1B1",
        "5F2 2F0 5F3 2F1 2B0 5B2 2B1 5B3",
        "4F2 4F3 3F0 3B0 3F1 3B1 4B2 4B3",
    ]


@pytest.mark.parametrize(("p", "m"), CHIMERA)
def test_chimera_keeps_the_slots_of_its_rule(p, m):
    """At F = B = 1 every action can end by the end of its slot, and the order is that of the slots."""
    one, slots = make("chimera", p, m), {}
    for rank, unit, i in product(range(p), range(m // p), range(p // 2)):
        first, number = 2 * p * unit + 2 * i, unit * p // 2 + i
        down, up = 2 * p - 1 - rank, rank
        slots[f"{up}F{number}"] = first + rank
        slots[f"{up}B{number}"] = first + 2 * p - 1 - rank
        slots[f"{down}F{m // 2 + number}"] = first + p - 1 - rank
        slots[f"{down}B{m // 2 + number}"] = first + p + rank
    for line in cells(one):
        assert sorted(line.split(), key=slots.__getitem__) == line.split()
    trace = simulate(one, Costs.uniform(p, 1, 0.5, 0.5))
    for action, start in zip(one.table.texts(), trace.start.tolist(), strict=True):
        assert start <= slots[action]
    assert trace.makespan == 2 * m + p - 2  # p - 2 slots, for every m


@pytest.mark.parametrize(("p", "m"), CHIMERA)
@pytest.mark.parametrize(("F", "B"), [(1, 1), (1, 2), (2, 1), (2, 3), (3, 0), (0, 1)])
def test_chimera_idles_as_its_closed_form_says_at_any_cost(p, m, F, B):
    one, form = make("chimera", p, m), closed_form("chimera")
    found = report(one, F, B)
    assert found.bubble_time == ((p - 2) * (max(F, B) + (m // p - 1) * abs(B - F)),) * p
    assert found.bubble_time == (form.bubble_time(p, m, F=F, B=B),) * p
    assert found.makespan == form.makespan(p, m, F=F, B=B)
    assert form.holds(p, m, F=F, B=B) == ""


@pytest.mark.parametrize("p", [4, 6, 8, 16])
def test_chimera_has_less_than_half_of_1f1bs_bubble_at_F_B_and_more_than_all_of_it_at_B_2F_and_many_micro_batches(
    p,
):
    for units in (1, 4, 16):
        chimera, one = (
            [
                simulate(schedule(name, num_ranks=p, num_microbatches=units * p), costs)
                .report()
                .bubble_time[0]
                for costs in (Costs.uniform(p, 1, 0.5, 0.5), Costs.uniform(p, 1, 1, 1))
            ]
            for name in ("chimera", "1f1b")
        )
        assert chimera[0] < one[0] / 2
        assert (chimera[1] > one[1]) == (units > 3)


@pytest.mark.parametrize(("p", "units"), list(product((4, 6, 8, 16), (1, 2, 3))))
def test_chimeras_published_bubble_at_B_2F_holds_for_one_unit_only(p, units):
    """(D-2)/(3N/2 + D-2); each further unit adds (p-2)(B-F) of idle time, which the formula forgets."""
    m = units * p
    published = (p - 2) / (3 * m / 2 + p - 2)
    found = report(make("chimera", p, m), 1, 2).bubble_fraction
    if units == 1:
        assert found == pytest.approx(published, rel=1e-12)
    else:
        assert found > 1.2 * published


@pytest.mark.parametrize(("p", "m"), CHIMERA)
def test_chimera_holds_half_of_the_micro_batches_at_the_ends_and_all_in_the_middle(p, m):
    wanted = tuple(p // 2 + 1 + min(r, p - 1 - r) for r in range(p))
    assert make("chimera", p, m).peak_in_flight == wanted == closed_form("chimera").peak_in_flight(p, m)
    assert (wanted[0], wanted[p // 2]) == (p // 2 + 1, p)


def eight_phases(p: int, m: int) -> list[str]:
    """DualPipe as its phases read, one rank and one action after the other."""
    orders = []
    for r in range(p):
        h = min(r, p - 1 - r)
        n = p // 2 - 1 - h
        chains = (0, 1) if r < p // 2 else (1, 0)  # the chain that begins at this end, and the other one
        count = {"F": [0, 0], "B": [0, 0]}
        late: list[str] = []

        def take(
            kind: str, direction: int, r: int = r, chains: tuple[int, int] = chains, count: dict = count
        ) -> str:
            chain = chains[direction]
            number = count["F" if kind == "F" else "B"]
            number[direction] += 1
            return f"{(r, 2 * p - 1 - r)[chain]}{kind}{chain * m // 2 + number[direction] - 1}"

        def both(forward: int, backward: int, take: Callable = take) -> str:
            return f"({take('F', forward)};{take('B', backward)})OVERLAP_F_B"

        order = [take("F", 0) for _ in range(2 * n)]
        for _ in range(h + 1):
            order += [take("F", 0), take("F", 1)]
        for _ in range(n):
            order.append(take("I", 1))
            order += [order[-1].replace("I", "W"), take("F", 1)]
        for turn in range(m // 2 - p + h + 1):
            order += [take("F", 0), take("B", 1)] if n == turn == 0 else [both(0, 1)]
            order.append(both(1, 0))
        for _ in range(n):
            order += [take("B", 1), both(1, 0)]
        for turn in range(2 * h + 2):
            order.append(take("B" if turn <= h else "I", 1 - turn % 2))
            late += [order[-1].replace("I", "W")] if turn > h else []
        for _ in range(n):
            order += [late.pop(0), take("I", 0)]
            late.append(order[-1].replace("I", "W"))
        orders.append(" ".join(order + late))
    return orders


@pytest.mark.parametrize(("p", "m"), DUALPIPE)
def test_dualpipe_runs_its_eight_phases(p, m):
    assert cells(make("dualpipe", p, m)) == eight_phases(p, m)


def test_dualpipe_on_four_ranks_reads_as_published():
    first, second, *_ = cells(make("dualpipe", 4, 8))
    assert first == (
        "0F0 0F1 0F2 7F4 7I4 7W4 7F5 (0F3;7B5)OVERLAP_F_B (7F6;0B0)OVERLAP_F_B 7B6 (7F7;0B1)OVERLAP_F_B "
        "7B7 0I2 0W2 0I3 0W3"
    )
    assert second == (
        "1F0 6F4 1F1 6F5 1F2 6B4 (6F6;1B0)OVERLAP_F_B (1F3;6B5)OVERLAP_F_B (6F7;1B1)OVERLAP_F_B "
        "6B6 1B2 6I7 1I3 6W7 1W3"
    )


@pytest.mark.parametrize(("p", "m"), DUALPIPE)
@pytest.mark.parametrize(("F", "W"), [(1, 1), (2, 1), (4, 3), (1, 0)])
@pytest.mark.parametrize("saved", [0, 0.5, 1])
def test_dualpipes_worst_rank_idles_as_published(p, m, F, W, saved):
    """t_F = t_I, W <= F; overlapping saves nothing, half of F, or all of F, so that F&B = B."""
    B, overlap = F + W, F + (F + W) - saved * F
    found, form = report(make("dualpipe", p, m), F, B, W, overlap), closed_form("dualpipe")
    costs = {"F": F, "I": F, "W": W, "overlap": overlap}
    assert max(found.bubble_time) == (p / 2 - 1) * (overlap + B - 3 * W) == form.bubble_time(p, m, **costs)
    assert found.makespan == form.makespan(p, m, **costs)
    assert form.holds(p, m, **costs) == ""
    if not saved:
        assert found.bubble_time == (max(found.bubble_time),) * p


@pytest.mark.parametrize(("p", "m"), DUALPIPE)
def test_dualpipe_holds_p_plus_1_micro_batches_on_every_rank(p, m):
    assert (
        make("dualpipe", p, m).peak_in_flight == (p + 1,) * p == closed_form("dualpipe").peak_in_flight(p, m)
    )


@pytest.mark.parametrize(("p", "F", "I", "W"), [(4, 2, 1, 1), (4, 1, 2, 1), (8, 1, 3, 1), (8, 1, 1, 2)])
def test_dualpipes_formula_fails_where_F_is_not_I_or_W_is_longer(p, F, I, W):  # noqa: E741
    m, form = 3 * p, closed_form("dualpipe")
    found = max(report(make("dualpipe", p, m), F, I + W, W).bubble_time)
    promised = form.bubble_time(p, m, F=F, I=I, W=W)
    assert promised != found
    assert ("F = I" if F != I else "W <= F") in form.holds(p, m, F=F, I=I, W=W)
    if F == I:  # W is longer than F: what the last ranks wait for is F and I, not W
        assert found == (p / 2 - 1) * (F + I) > promised


def test_where_overlapping_saves_time_the_outer_ranks_of_dualpipe_idle_less_than_the_formula():
    found = report(make("dualpipe", 8, 16), 1, 2, 1, overlap=2)
    assert found.bubble_time == (1, 2, 3, 3, 3, 3, 2, 1)
    assert closed_form("dualpipe").bubble_time(8, 16, F=1, I=1, W=1, overlap=2) == 3


@pytest.mark.parametrize(("I", "overlap", "gain"), [(1, 3, 0), (2, 4, 1), (1, 2, -1)])
def test_the_middle_ranks_first_pair_apart_helps_where_I_is_longer_than_F(I, overlap, gain):  # noqa: E741
    """And costs what the overlap would have saved."""
    p, one = 6, make("dualpipe", 6, 14)
    orders = [list(order) for order in one.orders]
    for rank in (p // 2 - 1, p // 2):
        first = next(at for at, action in enumerate(orders[rank]) if action.members)
        orders[rank][first - 2 : first] = [Action.overlap(*orders[rank][first - 2 : first])]
    together = Schedule(orders, one.placement)
    apart = report(one, 1, I + 1, 1, overlap).makespan
    assert report(together, 1, I + 1, 1, overlap).makespan - apart == gain


@pytest.mark.parametrize("overlap", [1.5, 3.5])
def test_an_overlap_shorter_than_B_or_longer_than_F_and_B_is_outside_the_formula(overlap):
    found, form = report(make("dualpipe", 6, 14), 1, 2, 1, overlap), closed_form("dualpipe")
    assert max(found.bubble_time) != form.bubble_time(6, 14, F=1, I=1, W=1, overlap=overlap)
    assert "overlap" in form.holds(6, 14, F=1, I=1, W=1, overlap=overlap)


@pytest.mark.parametrize(("p", "m"), [(1, 2), (2, 4), (3, 6), (4, 8), (4, 13), (8, 64)])
def test_dualpipe_folds_into_dualpipev(p, m):
    """DualPipe's first p of 2p ranks, with 2m micro-batches, are DualPipeV's p ranks with m."""
    if m < 2 * p:
        return

    def folded(text: str) -> str:
        return re.sub(
            r"(\d+)([FIWB])(\d+)",
            lambda found: f"{int(found[1]) % (2 * p)}{found[2]}{int(found[3]) % m}",
            text,
        )

    both, v = make("dualpipe", 2 * p, 2 * m), schedule("dualpipev", num_ranks=p, num_microbatches=m)
    # a stage s of the second chain is stage s - 2p of the model
    assert [folded(line) for line in cells(both)[:p]] == cells(v)


@pytest.mark.parametrize(("p", "m", "makespan"), [(8, 16, 54), (16, 128, 398), (32, 512, 1566)])
def test_dualpipe_takes_as_long_as_dualpipev_on_half_the_ranks(p, m, makespan):
    assert report(make("dualpipe", p, m), 1, 2).makespan == makespan


@pytest.mark.parametrize(
    ("name", "whole"), [("chimera", lambda p, m: -(-m // p) * p), ("dualpipe", even_and_2p)]
)
@pytest.mark.parametrize("p", [2, 4, 6, 8])
def test_of_other_numbers_of_micro_batches_the_order_is_that_of_more_without_those_that_there_are_not(
    name, whole, p
):
    """An odd number has one more upwards, as the chains of the placement have."""
    for m in range(1, 3 * p):
        many, upwards = whole(p, m), m - m // 2

        def kept(cell: str, p: int = p, m: int = m, many: int = many, upwards: int = upwards) -> str:
            actions = []
            for stage, kind, number in re.findall(r"(\d+)([FIWB])(\d+)", cell):
                down = int(stage) >= p
                turn = int(number) - down * (many // 2)
                if turn < (m // 2 if down else upwards):
                    actions.append(f"{stage}{kind}{turn + down * upwards}")
            return f"({';'.join(actions)})OVERLAP_F_B" if len(actions) == 2 else "".join(actions)

        left = [[kept(cell) for cell in line.split()] for line in cells(make(name, p, many))]
        assert cells(make(name, p, m)) == [" ".join(filter(None, line)) for line in left]


@pytest.mark.parametrize("name", ["chimera", "dualpipe"])
def test_what_the_closed_form_does_not_cover_is_said_by_it(name):
    form, other = closed_form(name), 0
    for p, m in product((2, 4, 6), range(1, 16)):
        found = report(make(name, p, m), 1, 2)
        exact = found.makespan == form.makespan(p, m) and found.peak_in_flight == form.peak_in_flight(p, m)
        assert exact or "here " in form.holds(p, m)
        other += not exact
    assert other >= 15


@pytest.mark.parametrize(("p", "options"), [(1, [2]), (3, [2, 4]), (5, [4, 6])])
@pytest.mark.parametrize("name", ["chimera", "dualpipe"])
def test_an_odd_number_of_ranks_is_refused_with_its_neighbours(name, p, options):
    named = " and ".join(f"num_ranks={q}" for q in options)
    with pytest.raises(
        PipelabError, match=rf"{name} takes an even num_ranks, not num_ranks={p} .* work: {named}\.$"
    ):
        make(name, p, 4)
    assert [make(name, q, 4).num_ranks for q in options] == options


@pytest.mark.parametrize("name", ["chimera", "dualpipe"])
@pytest.mark.timeout(20)
def test_one_micro_batch_on_many_ranks_takes_no_memory_of_ranks_squared(name):
    assert make(name, 2**15, 1).table.kind.size <= 3 * 2**15


@pytest.mark.parametrize(("name", "p", "m"), [("chimera", 4, 8), ("dualpipe", 6, 12)])
def test_a_swapped_pair_changes_the_numbers_or_is_refused(name, p, m):
    """No two neighbours on a rank may be exchanged without a check or the makespan noticing, but some are free."""
    one = make(name, p, m)
    least = report(one, 1, 2).makespan
    noticed = 0
    for rank, at in product(range(p), range(len(one.orders[0]) - 1)):
        orders = [list(order) for order in one.orders]
        orders[rank][at : at + 2] = reversed(orders[rank][at : at + 2])
        try:
            changed = Schedule(orders, one.placement)
        except PipelabError:
            noticed += 1
            continue
        assert report(changed, 1, 2).makespan >= least
        noticed += report(changed, 1, 2).makespan > least
    assert noticed > p * len(one.orders[0]) / 4


def test_overlaps_put_the_forward_first_as_torch_writes_them():
    for order in make("dualpipe", 6, 12).orders:
        for action in order:
            if action.members:
                forward, backward = action.members
                assert (forward.kind, backward.kind) == ("F", "B")
                assert Action.parse(str(action)) == action
