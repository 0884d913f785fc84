from __future__ import annotations

import pytest
import torch
from torch import nn

import pipelab as pp
from pipelab.widgets.recipe import Call, recipe
from pipelab.widgets.setting import OFFERED, Setting
from tests.widgets.profiles import profile_of

SETTING = Setting.start(profile_of(12), batch_size=48, schedule="1f1b", num_ranks=4, num_microbatches=8)


def evaluated(code: str, **names):
    exec(code, names)
    return names


@pytest.mark.parametrize("name", OFFERED)
def test_the_lines_rebuild_the_plan_and_the_prediction(name):
    setting = SETTING.changed(schedule=name)
    made = evaluated(recipe(setting, None), profile=setting.profile)
    assert made["plan"] == setting.plan
    assert made["predicted"].start == pytest.approx(setting.predicted.start)


def test_a_searched_schedule_is_searched_again_for_the_same_costs():
    setting = SETTING.changed(schedule="zb-auto", num_ranks=3, split=["blocks.2", "blocks.9"])
    code = recipe(setting, None)
    assert "costs = pp.Costs(forward=" in code and "costs=costs)" in code and "0F0" not in code
    assert evaluated(code, profile=setting.profile)["plan"] == setting.plan


@pytest.mark.parametrize(
    "choices",
    [
        {"devices": pp.virtual(4, threads=2)},
        {"devices": ["cpu"] * 4, "links": pp.Links(1e-4, 1e9)},
        {"split": ["blocks.2", "blocks.5", "blocks.9"]},
        {"num_microbatches": 7},
    ],
)
def test_devices_links_and_cuts_are_part_of_it(choices):
    setting = Setting.start(
        profile_of(12),
        **{"batch_size": 48, "schedule": "gpipe", "num_ranks": 4, "num_microbatches": 8} | choices,
    )
    made = evaluated(recipe(setting, None), profile=setting.profile)
    assert made["plan"] == setting.plan
    assert made["predicted"].schedule == setting.predicted.schedule


def test_a_search_that_counts_bytes_is_made_again_with_them():
    links = pp.Links(1e-4, 1e9)
    setting = Setting.start(profile_of(12), batch_size=48, schedule="zb-auto", num_ranks=3, links=links)
    made = evaluated(recipe(setting, None), profile=setting.profile)
    assert made["plan"] == setting.plan
    assert made["predicted"].start == pytest.approx(setting.predicted.start)


@pytest.mark.parametrize("links", [None, pp.Links(1e-4, 1e9)])
@pytest.mark.parametrize("number", [5, 7, 31])
def test_uneven_micro_batches_are_predicted_as_the_lab_does(number, links):
    setting = Setting.start(profile_of(12), batch_size=48, num_ranks=4, num_microbatches=number, links=links)
    made = evaluated(recipe(setting, None), profile=setting.profile)
    assert made["predicted"].makespan == setting.predicted.makespan


def test_a_table_by_hand_is_written_out():
    mine = pp.schedule("1f1b", num_ranks=2, num_microbatches=2).swap("0F1", "0B0")
    setting = SETTING.changed(schedule=mine)
    assert evaluated(recipe(setting, None), profile=setting.profile)["plan"] == setting.plan


def test_the_lines_run():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 1))
    x, y, loss_fn = torch.randn(8, 8), torch.randn(8, 1), nn.functional.mse_loss
    profile = pp.profile(model, x[:2], y[:2], loss_fn=loss_fn, repeats=1, progress=False)
    setting = Setting.start(profile, batch_size=8, schedule="1f1b", devices=pp.virtual(2))
    made = evaluated(recipe(setting, Call()), model=model, x=x, y=y, loss_fn=loss_fn)
    assert made["step"].trace.schedule == setting.schedule
    forward = setting.changed(schedule="forward-only", stages_per_rank=1)
    made = evaluated(recipe(forward, Call()), model=model, x=x, y=y, loss_fn=loss_fn)
    assert torch.allclose(made["outputs"], model(x))


def test_what_the_lab_was_called_with_is_said_where_it_matters():
    code = recipe(SETTING, Call(has_target=False, has_loss=False, reduction="sum", batch_dim=1))
    assert "Pipeline(model, plan, reduction='sum', batch_dim=1)" in code and "pipe.step(x)" in code
