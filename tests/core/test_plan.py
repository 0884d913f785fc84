"""Plans: parts that fit, saved whole, read strictly."""

from __future__ import annotations

import json
import os

import pytest

import pipelab
from pipelab.core.costs import Costs, Links
from pipelab.core.interchange.json_files import load
from pipelab.core.placement import Placement
from pipelab.core.plan import Plan, VirtualDevices, virtual
from pipelab.core.schedule import Schedule
from pipelab.core.schedules import SCHEDULES, schedule
from pipelab.core.split import Split
from pipelab.errors import PipelabError


def smallest(name):
    """Any schedule: two ranks and four micro-batches are enough for all of them."""
    return schedule(name, num_ranks=2, num_microbatches=4)


ONE = schedule("1f1b", num_ranks=2, num_microbatches=2)
PLANS = [
    Plan(Split(["b"]), ONE),
    Plan(Split(["b"]), ONE, devices=("cuda:0", "cuda:1"), links=Links(1e-5, 1e9)),
    Plan(Split(["b"]), ONE, devices=virtual(2, threads=3), links=Links(((0, 1), (1, 0)))),
    Plan(Split(["b"]), Schedule([["0F0", "3F1"], ["2F1", "1F0"]], Placement((0, 1, 1, 0), 2, {2: 0, 3: 1}))),
    *(Plan(Split(map(str, range(one.num_model_stages - 1))), one) for one in map(smallest, SCHEDULES)),
]


@pytest.mark.parametrize("plan", PLANS)
def test_a_loaded_plan_equals_the_saved_one(plan, tmp_path):
    path = tmp_path / "plan.json"
    plan.save(path)
    assert load(path) == plan and hash(load(path)) == hash(plan)


def test_a_large_plan_round_trips(tmp_path):
    one = schedule("interleaved-1f1b", num_ranks=32, num_microbatches=256, stages_per_rank=4)
    plan = Plan(Split(map(str, range(127))), one)
    plan.save(tmp_path / "plan.json")
    assert load(tmp_path / "plan.json") == plan


def test_the_file_holds_the_cells_as_text(tmp_path):
    PLANS[0].save(tmp_path / "plan.json")
    data = json.loads((tmp_path / "plan.json").read_text())
    assert data["schedule"]["orders"] == ["0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1"] and data["devices"] == "auto"


def evaluated(text):
    """What the text means to someone who has imported all of pipelab, and nothing else."""
    return eval(text, {name: getattr(pipelab, name) for name in pipelab.__all__})


@pytest.mark.parametrize("plan", PLANS)
def test_the_repr_evaluates_to_the_plan(plan):
    assert evaluated(repr(plan)) == plan
    assert "<" not in repr(plan)


@pytest.mark.parametrize(
    "plan",
    [
        Plan(
            Split(['it\'s "b"\n$\\']), ONE, devices=("cpu", "it's"), links=Links(((0, 1e-5), (0.1, 0)), 1e9)
        ),
        Plan(Split(["b"]), ONE.swap("0F1", "0B0"), devices=virtual(2, device="cuda:0")),
        Plan(Split(["b"]), ONE.with_name("gpipe")),
        Plan(
            Split(["a", "b", "c"]),
            schedule("interleaved-1f1b", num_ranks=2, num_microbatches=4, stages_per_rank=2),
        ),
        Plan(
            Split(["b"]),
            schedule("zb-auto", num_ranks=2, num_microbatches=4, costs=Costs.uniform(2, latency=3)),
        ),
    ],
)
def test_what_no_name_says_is_written_out(plan):
    assert evaluated(repr(plan)) == plan


def test_a_schedule_that_a_name_says_is_not_written_out():
    one = schedule("1f1b", num_ranks=8, num_microbatches=64)
    said = repr(Plan(Split(map(str, range(7))), one))
    assert "schedule('1f1b', num_ranks=8, num_microbatches=64)" in said and "0F0" not in said


def test_the_print_shows_split_devices_and_grid():
    assert str(PLANS[2]).startswith(
        "plan: 2 stages, beginning at the start, b; devices: 2 virtual devices on cpu\n1f1b: 2 ranks"
    )


def test_saving_does_not_overwrite_unasked(tmp_path):
    PLANS[0].save(tmp_path / "plan.json")
    with pytest.raises(PipelabError, match=r"exists. Pass overwrite=True"):
        PLANS[1].save(tmp_path / "plan.json")
    PLANS[1].save(tmp_path / "plan.json", overwrite=True)
    assert load(tmp_path / "plan.json") == PLANS[1] and os.listdir(tmp_path) == ["plan.json"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((Split([]), ONE), PipelabError, "The split has 1 stages, but 1f1b wants 2. Use a split with 1 cuts"),
        ((Split(["b"]), ONE, ("cpu",)), PipelabError, "devices names 1 devices, but 1f1b has 2 ranks"),
        ((Split(["b"]), ONE, virtual(3)), PipelabError, "devices names 3 devices, but 1f1b has 2 ranks"),
        (
            (Split(["b"]), ONE, "cuda"),
            PipelabError,
            "devices is 'cuda'; it must be \"auto\", one name a rank",
        ),
        ((Split(["b"]), ONE, ("cpu", "a\nb")), PipelabError, "is not the name of a device"),
        (
            (Split(["b"]), ONE, "auto", Links(((0,),))),
            PipelabError,
            "links are for 1 ranks, but the schedule has 2",
        ),
        ((["b"], ONE), TypeError, "split must be a Split, not list"),
        ((Split(["b"]), "1f1b"), TypeError, "schedule must be a Schedule, not str"),
        ((Split(["b"]), ONE, "auto", 0.5), TypeError, "links must be Links or None, not float"),
    ],
)
def test_parts_that_do_not_fit_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Plan(*arguments)


@pytest.mark.parametrize(("count", "threads"), [(0, 1), (1, 0), (2**21, 1)])
def test_impossible_virtual_devices_are_refused(count, threads):
    with pytest.raises(PipelabError, match="it must be from 1 to"):
        VirtualDevices(count, threads)


CHANGES = [
    ({"pipelab": "split"}, "split.cuts is missing"),
    ({"version": 2}, "plan.json is a plan of version 2; this pipelab reads version 1"),
    ({"devices": {"virtual": 2, "speed": 9}}, "plan.devices has the unknown key 'speed'"),
    ({"devices": {"virtual": 10**12}}, "count is 1000000000000"),
    ({"devices": [1, 2]}, r"plan.devices\[0\] must be text"),
    ({"devices": "../../etc/passwd"}, "devices is '../../etc/passwd'"),
    ({"extra": 1}, "plan has the unknown key 'extra'"),
    ({"split": {"cuts": ["a", "a"]}}, "there twice"),
    ({"links": {"latency": -1}}, "latency is -1"),
    (
        {"schedule": {"name": "x", "placement": {"ranks": [0, 1]}, "orders": ["0F0", "1F1000000000000"]}},
        "is refused",
    ),
    ({"schedule": "1f1b"}, "plan.schedule must be an object"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
@pytest.mark.timeout(5)
def test_wrong_files_are_refused_by_field(change, message, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"pipelab": "plan", "version": 1, **PLANS[0].to_dict(), **change}))
    with pytest.raises(PipelabError, match=message):
        load(path)


def test_a_file_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.json")
