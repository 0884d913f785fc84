"""What crosses the borders between stages, as a table."""

import pytest
import torch
import torch.nn.functional as F

import pipelab as pp
from pipelab.runtime.traffic import Crossing, Traffic
from tests.runtime.models import gpt, mlp, unet


def traffic_of(model, cuts, x, y, loss_fn, num_microbatches=4, virtual=True):
    schedule = pp.schedule("1f1b", num_ranks=len(cuts) + 1, num_microbatches=num_microbatches)
    devices = pp.virtual(schedule.num_ranks) if virtual else ["cpu"] * schedule.num_ranks
    with pp.Pipeline(model, pp.Split(cuts), schedule, loss_fn=loss_fn, devices=devices) as pipe:
        pipe.step(x, y)
        return pipe.traffic


def test_a_chain_sends_one_activation_down_and_its_gradient_up():
    model, x, y, loss_fn = mlp()
    tensor = 2 * 6 * 8  # two samples of width 6 in float64
    assert traffic_of(model, ["2", "4"], x, y, loss_fn).crossings == (
        Crossing(0, 1, "activation", 1, tensor),
        Crossing(1, 0, "gradient", 1, tensor),
        Crossing(1, 2, "activation", 1, tensor),
        Crossing(2, 1, "gradient", 1, tensor),
    )


def test_a_skip_connection_crosses_to_the_stage_that_reads_it():
    model, x, y, loss_fn = unet()
    pairs = {
        (c.source, c.target)
        for c in traffic_of(model, ["down.1", "up.0"], x, y, loss_fn).crossings
        if c.what == "activation"
    }
    assert pairs == {(0, 1), (1, 2), (0, 2)}


def test_a_tied_parameter_crosses_once_a_step_and_its_gradient_returns_once():
    model, x, y, loss_fn = gpt(tied=True)
    found = traffic_of(model, ["blocks.2"], x, y, loss_fn)
    once = [each for each in found.crossings if each.once_a_step]
    size = model.head.weight.numel() * 8
    assert once == [
        Crossing(0, 1, "parameter of another stage", 1, size, True),
        Crossing(1, 0, "gradient of that parameter", 1, size, True),
    ]
    assert found.bytes_once == 2 * size
    assert found.bytes_per_step == 4 * found.bytes_per_microbatch + 2 * size
    assert "once a step" in str(found)


def test_before_the_first_step_the_traffic_is_not_known():
    model, *_, loss_fn = mlp()
    schedule = pp.schedule("1f1b", num_ranks=2, num_microbatches=2)
    with (
        pp.Pipeline(model, pp.Split(["4"]), schedule, loss_fn=loss_fn, devices=pp.virtual(2)) as pipe,
        pytest.raises(pp.PipelabError, match="after the first step"),
    ):
        _ = pipe.traffic


def test_one_stage_sends_nothing_and_says_so():
    model, x, y, loss_fn = mlp()
    found = traffic_of(model, [], x, y, loss_fn)
    assert found.crossings == () and str(found) == "Nothing crosses a border."
    assert found.bytes_per_step == 0 and len(found.to_frame()) == 0


def test_the_table_can_be_narrowed_printed_and_made_a_frame():
    model, x, y, loss_fn = mlp()
    found = traffic_of(model, ["2", "4"], x, y, loss_fn)
    assert [each.what for each in found.between(1, 2).crossings] == ["activation"]
    assert str(found).startswith("from stage  to stage  what")
    assert "384 B for each micro-batch: 1.5 KiB in a step of 4 micro-batches." in str(found)
    frame = found.to_frame()
    assert frame["size [bytes]"].sum() == found.bytes_per_microbatch
    assert (frame["size [bytes]"] * frame["times in a step"]).sum() == found.bytes_per_step
    assert "<table>" in found._repr_html_()


def test_on_one_device_it_says_what_is_not_seen():
    assert "All stages share one device" in str(Traffic((Crossing(0, 1, "activation", 1, 8),), 2, True))
    assert "share" not in str(Traffic((Crossing(0, 1, "activation", 1, 8),), 2))


class OneOrTwo(torch.nn.Module):
    def __init__(self, two):
        super().__init__()
        self.a, self.b, self.two = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), two

    def forward(self, x):
        x = self.a(x)
        beside = x.exp() if self.two else 0
        return self.b(x) + beside


def test_each_value_that_crosses_counts_once():
    x = torch.ones(4, 4)
    one, two = (traffic_of(OneOrTwo(two), ["b"], x, x, F.mse_loss) for two in (False, True))
    assert [c.tensors for c in one.crossings] == [1, 1] and [c.tensors for c in two.crossings] == [2, 2]
    assert two.bytes_per_microbatch == 2 * one.bytes_per_microbatch


@pytest.mark.gpu
def test_values_without_gradients_show_where_devices_differ():
    model = torch.nn.TransformerEncoder(
        torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
    )
    x = pp.Args(torch.ones(4, 3, 8), src_key_padding_mask=torch.zeros(4, 3, dtype=torch.bool))
    schedule = pp.schedule("1f1b", num_ranks=2, num_microbatches=2)
    devices = ["cuda:0", "cpu"]
    with pp.Pipeline(model, pp.Split(["layers.1"]), schedule, loss_fn=F.mse_loss, devices=devices) as pipe:
        pipe.step(x, torch.ones(4, 3, 8))
        masks = [each for each in pipe.traffic.crossings if each.what.startswith("without gradient")]
        assert [(each.source, each.target) for each in masks] == [(0, 1)] and masks[0].bytes >= 2 * 3
        assert "share one device" not in str(pipe.traffic)
