"""The named schedules: their laws over grids of sizes, the textbook's orders, and torch's tables."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

import pytest

from pipelab.core.costs import Costs
from pipelab.core.report import Report
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import SCHEDULES, schedule
from pipelab.core.simulation import simulate
from pipelab.errors import PipelabError

SIZES = list(product((1, 2, 3, 4, 7, 8), (1, 2, 3, 5, 8, 13)))
CHUNKED = [(p, m, v) for p, m in SIZES for v in (1, 2, 3)]


def make(name: str, p: int, m: int, v: int = 1) -> Schedule:
    return schedule(name, num_ranks=p, num_microbatches=m, stages_per_rank=v)


def report(name: str, p: int, m: int, v: int = 1, **costs: float) -> Report:
    """By default F = 1, I = W = 1, B = 2."""
    return simulate(make(name, p, m, v), Costs.uniform(p * v, **costs)).report()


def cells(one: Schedule) -> list[str]:
    return [" ".join(map(str, order)) for order in one.orders]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("p", "m", "v"), CHUNKED)
def test_every_size_runs_and_has_each_action_once(name, p, m, v):
    if v > 1 and SCHEDULES[name].stages_per_rank[1] is not None:
        return
    one = make(name, p, m, v)
    kinds = "F" if name == "forward-only" else "FB"
    assert (one.num_ranks, one.num_stages, one.num_microbatches, one.stages_per_rank) == (p, p * v, m, v)
    assert sorted(" ".join(cells(one)).split()) == sorted(
        f"{s}{k}{i}" for s in range(p * v) for k in kinds for i in range(m)
    )


def test_naive_takes_one_micro_batch_at_a_time():
    assert cells(make("naive", 2, 2)) == ["0F0 0B0 0F1 0B1", "1F0 1B0 1F1 1B1"]


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_naive_takes_m_p_times_a_stage(p, m):
    assert report("naive", p, m).makespan == m * p * 3
    assert report("naive", p, m).peak_in_flight == (1,) * p


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_gpipe_runs_all_forwards_then_all_backwards_ascending(p, m):
    wanted = [" ".join([f"{r}F{i}" for i in range(m)] + [f"{r}B{i}" for i in range(m)]) for r in range(p)]
    assert cells(make("gpipe", p, m)) == wanted


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_1f1b_is_the_textbooks(p, m):
    """Narayanan et al. 2021: min(p - 1 - r, m) forwards, then one forward and one backward, then the backwards left."""
    for r, line in enumerate(cells(make("1f1b", p, m))):
        w = min(p - 1 - r, m)
        wanted = [f"{r}F{i}" for i in range(w)]
        for i in range(m - w):
            wanted += [f"{r}F{w + i}", f"{r}B{i}"]
        wanted += [f"{r}B{i}" for i in range(m - w, m)]
        assert line.split() == wanted


def test_the_last_rank_of_1f1b_starts_with_micro_batch_0():
    assert cells(make("1f1b", 4, 3))[-1] == "3F0 3B0 3F1 3B1 3F2 3B2"


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "eager-1f1b"])
@pytest.mark.parametrize(("p", "m"), SIZES)
@pytest.mark.parametrize(("F", "B"), [(1, 2), (2, 2), (3, 1)])
def test_linear_schedules_idle_p_minus_1_stages_whatever_their_order(name, p, m, F, B):
    found = report(name, p, m, forward=F, input_grad=B / 2, weight_grad=B / 2)
    assert found.makespan == (m + p - 1) * (F + B)
    assert found.bubble_time == ((p - 1) * (F + B),) * p
    assert found.bubble_fraction == pytest.approx((p - 1) / (m + p - 1), rel=1e-12)
    assert found.bubble_ratio == pytest.approx((p - 1) / m, rel=1e-12)
    assert found.span_bubble == pytest.approx(found.bubble_fraction, rel=1e-12)  # rank 0 spans the step


@pytest.mark.parametrize(
    ("name", "v", "makespans"),
    [("gpipe", 1, (33, 213, 813)), ("1f1b", 1, (33, 213, 813)), ("interleaved-1f1b", 2, (57, 405, 1581))],
)
def test_makespans_on_which_independent_tools_agree(name, v, makespans):
    found = tuple(report(name, p, m, v).makespan for p, m in ((4, 8), (8, 64), (16, 256)))
    assert found == makespans


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_peaks_tell_the_linear_schedules_apart(p, m):
    assert make("gpipe", p, m).peak_in_flight == (m,) * p
    assert make("1f1b", p, m).peak_in_flight == tuple(min(m, p - r) for r in range(p))
    assert make("eager-1f1b", p, m).peak_in_flight == tuple(min(m, 2 * (p - 1 - r) + 1) for r in range(p))


@pytest.mark.parametrize(("name", "makespan"), [("gpipe", 36.0), ("1f1b", 41.0), ("eager-1f1b", 36.0)])
def test_latency_costs_1f1b_more(name, makespan):
    assert report(name, 4, 8, latency=0.5).makespan == makespan


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_latency_costs_gpipe_two_hops_a_rank_whatever_m(p, m):
    assert report("gpipe", p, m, latency=0.25).makespan == (m + p - 1) * 3 + 2 * (p - 1) * 0.25


@pytest.mark.parametrize(
    ("p", "m", "hops"), [(4, 8, 16), (4, 16, 28), (8, 16, 40), (8, 32, 68), (8, 64, 124)]
)
def test_latency_costs_1f1b_more_with_every_micro_batch(p, m, hops):
    assert report("1f1b", p, m, latency=2**-6).makespan == (m + p - 1) * 3 + hops * 2**-6


@pytest.mark.parametrize(("p", "k", "v"), list(product((1, 2, 3, 4, 8), (1, 2, 3), (1, 2, 3, 4))))
def test_interleaving_divides_the_bubble_by_v(p, k, v):
    m = k * p
    found = report("interleaved-1f1b", p, m, v)
    assert found.makespan == m * v * 3 + (p - 1) * 3
    assert found.bubble_ratio == pytest.approx((p - 1) / (m * v), rel=1e-12)
    assert found.peak_in_flight == tuple(min(m * v, (v - 1) * p + 2 * (p - 1 - r) + 1) for r in range(p))


@pytest.mark.parametrize(("p", "k", "v"), list(product((2, 4), (1, 2, 3), (2, 3))))
def test_latency_costs_interleaving_two_hops_a_stage(p, k, v):
    free, slow = (report("interleaved-1f1b", p, k * p, v, latency=c).makespan for c in (0, 2**-6))
    assert slow - free == 2 * (p * v - 1) * 2**-6


def test_interleaving_over_one_chunk_is_eager_1f1b():
    for p, m in SIZES:
        assert make("interleaved-1f1b", p, m).orders == make("eager-1f1b", p, m).orders


@pytest.mark.parametrize(("p", "m", "v"), CHUNKED)
def test_interleaving_any_number_of_micro_batches_beats_no_pipeline_and_is_no_worse_than_one_late_group(
    p, m, v
):
    """Where m is no multiple of p: at most the time of the next multiple."""
    whole = -(-m // p) * p
    assert report("interleaved-1f1b", p, m, v).makespan <= whole * v * 3 + (p - 1) * 3


@pytest.mark.parametrize(("p", "k", "v"), list(product((1, 2, 3, 4), (1, 2, 3), (1, 2, 3))))
def test_forward_only_idles_p_minus_1_forwards(p, k, v):
    found = report("forward-only", p, k * p, v)
    assert found.makespan == k * p * v + p - 1
    assert found.peak_in_flight == (1,) * p
    assert not make("forward-only", p, k * p, v).has_backward


def torch_order(name: str, p: int, m: int, v: int) -> list[str] | None:
    """The table that torch builds, without a process group: its stages need only say where they are."""
    from torch.distributed.pipelining.schedules import get_schedule_class

    stages = [
        SimpleNamespace(
            group_rank=0, group_size=p, num_stages=p * v, stage_index=chunk * p, has_backward=True
        )
        for chunk in range(v)
    ]
    for stage in stages:
        vars(stage).update(is_first=False, is_last=False, submod=None, device="cpu")
    try:
        made = get_schedule_class(name)(stages if name.startswith("Interleaved") else stages[0], m)
    except ValueError:
        return None  # sizes that torch does not take
    rows = [made.pipeline_order[rank] for rank in range(p)]
    return [" ".join(str(c) for c in row if c is not None and "REDUCE_GRAD" not in str(c)) for row in rows]


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_gpipe_is_torchs(p, m):
    assert cells(make("gpipe", p, m)) == torch_order("GPipe", p, m, 1)


@pytest.mark.parametrize("p", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("v", [1, 2, 3])
def test_interleaved_is_torchs_wherever_torch_takes_the_sizes(p, v):
    taken = 0
    for m in range(1, 4 * p + 2):
        wanted = torch_order("Interleaved1F1B", p, m, v)
        if wanted is not None:
            taken += 1
            assert cells(make("interleaved-1f1b", p, m, v)) == wanted, (p, m, v)
    assert taken >= 4  # also sizes with m mod p != 0


def test_every_schedule_says_where_it_comes_from():
    for name, info in SCHEDULES.items():
        assert info.name == name and info.family and info.formulas and info.description.endswith(".")
        assert info.paper or name in ("naive", "forward-only")
        assert make(name, 2, 2).name == name


def test_the_registry_is_read_only():
    with pytest.raises(TypeError):
        SCHEDULES["mine"] = None


def test_the_registry_prints_as_a_table():
    assert [line.split()[0] for line in str(SCHEDULES).splitlines()] == ["schedule", *SCHEDULES]
    assert repr(SCHEDULES).startswith("<SCHEDULES: naive, gpipe, ")
    assert "<td>GPipe, arXiv 1811.06965</td>" in SCHEDULES._repr_html_()


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(PipelabError, match=r"schedule is '1f1'; did you mean '1f1b'\?"):
        make("1f1", 2, 2)


def test_a_linear_schedule_with_chunks_says_which_schedules_take_them():
    with pytest.raises(
        PipelabError, match=r"gpipe takes stages_per_rank=1, not 2.*interleaved-1f1b"
    ) as caught:
        make("gpipe", 2, 2, 2)
    assert "1f1b, " not in str(caught.value).replace("interleaved-1f1b", "")


def test_an_unknown_option_is_a_type_error():
    with pytest.raises(TypeError, match=r"schedule 'gpipe'\(\) got an unexpected keyword 'warmup'"):
        schedule("gpipe", num_ranks=2, num_microbatches=2, warmup=3)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("p", "m"), [(0, 1), (1, 0), (-3, 4)])
def test_sizes_below_1_are_refused(name, p, m):
    with pytest.raises(PipelabError, match="it must be at least 1"):
        make(name, p, m)


@pytest.mark.parametrize("size", [1.5, "2", None, True])
def test_sizes_that_are_no_integers_are_type_errors(size):
    with pytest.raises(TypeError, match="num_microbatches must be an integer"):
        make("gpipe", 2, size)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("p", "m"), [(4, 10**12), (10**12, 4), (2**11, 2**11 + 1), (1, 10**30)])
@pytest.mark.timeout(5)
def test_huge_sizes_are_refused_at_once(name, p, m):
    with pytest.raises(PipelabError, match=r"the limit is 4,194,304"):
        make(name, p, m)


def test_the_limit_counts_backwards_too():
    with pytest.raises(PipelabError, match=r"limit is 4,194,304"):
        make("gpipe", 2**11, 2**11 - 1)
