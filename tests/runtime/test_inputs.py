"""How a batch is given, checked and cut."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import pipelab as pp
from pipelab.runtime.batch_dims import BatchDims
from pipelab.runtime.inputs import Args, Batch, enlarge
from pipelab.runtime.loss_weights import weigh

CPU = torch.device("cpu")


def shares(batch, reduction, loss_weight=None):
    return [weight.share for weight in weigh(batch, reduction, loss_weight)]


@pytest.mark.parametrize(
    ("given", "args", "kwargs"),
    [
        (torch.ones(2), 1, 0),
        ((torch.ones(2), torch.ones(2)), 2, 0),
        ({"a": torch.ones(2)}, 0, 1),
        (Args(torch.ones(2), b=torch.ones(2)), 1, 1),
    ],
)
def test_inputs_come_as_tensor_tuple_dict_or_args(given, args, kwargs):
    made = Args.of(given)
    assert (len(made.args), len(made.kwargs)) == (args, kwargs)


def test_other_inputs_are_a_wrong_call():
    with pytest.raises(TypeError, match=r"tensor, a tuple .*not list"):
        Args.of([torch.ones(2)])


@pytest.mark.parametrize(("size", "m"), [(8, 4), (7, 3), (5, 5), (9, 4), (1, 1)])
def test_microbatches_cover_the_batch_and_differ_by_one_at_most(size, m):
    x = torch.arange(size)
    batch = Batch.cut(x, x, m)
    parts = [batch.arguments(i, CPU)[0][0] for i in range(m)]
    assert torch.cat(parts).tolist() == list(range(size))
    assert max(batch.sizes) - min(batch.sizes) <= 1
    assert [len(part) for part in parts] == list(batch.sizes)


def test_a_mean_is_weighed_by_samples_and_a_sum_is_not():
    batch = Batch.cut(torch.zeros(5, 1), None, 2)
    assert shares(batch, "mean") == [3 / 5, 2 / 5]
    assert shares(batch, "sum") == [1.0, 1.0]


def test_loss_weight_counts_what_the_user_says():
    target = torch.tensor([[1, -1], [1, 1], [-1, -1], [1, -1]])
    batch = Batch.cut(torch.zeros(4, 1), target, 2)
    valid = (target >= 0).sum(1)
    assert shares(batch, "mean", valid) == [3 / 4, 1 / 4]
    assert shares(batch, "mean", lambda part: (part >= 0).sum()) == [3 / 4, 1 / 4]


@pytest.mark.parametrize(
    "bad", [torch.ones(3), torch.zeros(4), torch.tensor([1.0, 1, 1, float("nan")]), -torch.ones(4)]
)
def test_impossible_loss_weights_are_refused(bad):
    with pytest.raises(pp.PipelabError, match="loss_weight"):
        weigh(Batch.cut(torch.zeros(4, 1), None, 2), "mean", bad)


def test_a_batch_smaller_than_the_number_of_microbatches_says_what_fits():
    with pytest.raises(
        pp.PipelabError, match=r"8 micro-batches need at least 8 samples, but the batch has 4.*<= 4"
    ):
        Batch.cut(torch.zeros(4, 1), None, 8)


def test_an_empty_batch_is_refused():
    with pytest.raises(pp.PipelabError, match="empty"):
        Batch.cut(torch.zeros(0, 3), None, 1)


def test_tensors_that_disagree_about_the_batch_are_refused_with_their_shapes():
    with pytest.raises(pp.PipelabError, match=r"inputs are \[\(4, 2\)\], of the target \[\(5,\)\]"):
        Batch.cut(torch.zeros(4, 2), torch.zeros(5), 2)


def test_inputs_without_a_batch_dimension_are_refused():
    with pytest.raises(pp.PipelabError, match="No tensor with a batch dimension"):
        Batch.cut((1, "a"), None, 1)


def test_an_input_with_a_graph_of_its_own_is_refused():
    x = torch.ones(4, 2, requires_grad=True) * 2
    with pytest.raises(pp.PipelabError, match=r"detach\(\)"):
        Batch.cut(x, None, 2)


def test_values_without_a_batch_pass_through():
    batch = Batch.cut(Args(torch.zeros(4, 1), torch.tensor(3.0), flag=True), None, 2)
    (part, scalar), keyword = batch.arguments(1, CPU)
    assert part.shape == (2, 1) and scalar == 3.0 and keyword == {"flag": True}


def test_enlarging_repeats_the_samples_in_turn():
    args, target = enlarge(torch.arange(2), torch.arange(2), 5)
    assert args.args[0].tolist() == target.tolist() == [0, 1, 0, 1, 0]


def test_args_show_shapes_not_values():
    assert repr(Args(torch.zeros(4, 3), mask=torch.tensor(1))) == "Args(<tensor 4 x 3>, mask=<tensor scalar>)"


def test_an_argument_is_read_by_its_place_or_its_name():
    args = Args(1, b=2)
    assert args[0] == 1 and args["b"] == 2


def test_a_dict_whose_keys_are_no_names_is_a_wrong_call_that_says_how_to_pass_it():
    with pytest.raises(TypeError, match=r"one key is 0\. .*pp\.Args\(inputs\)"):
        Args.of({0: torch.ones(2)})
    assert Batch.cut(Args({0: torch.arange(4)}), None, 2).arguments(1, CPU)[0][0][0].tolist() == [2, 3]


def test_a_replicated_value_reaches_every_microbatch_whole_wherever_it_stands():
    mask = torch.eye(3)
    batch = Batch.cut(Args({"x": torch.zeros(4, 1), "m": [pp.replicate(mask)]}), pp.replicate((mask, 1)), 2)
    for index in range(2):
        (state,), _ = batch.arguments(index, CPU)
        assert len(state["x"]) == 2 and state["m"][0] is mask
        assert batch.targets(index, CPU) == (mask, 1)


def test_inputs_that_are_all_replicated_have_no_batch():
    with pytest.raises(pp.PipelabError, match="No tensor with a batch dimension"):
        Batch.cut(pp.replicate(torch.ones(4)), None, 1)


def test_a_replicated_value_that_wants_a_gradient_gets_a_node_of_its_own_in_each_microbatch():
    table = torch.ones(3, requires_grad=True)
    (part,), _ = Batch.cut(Args(pp.replicate(table)), torch.zeros(4), 2).arguments(0, CPU)
    assert part.grad_fn is not None and part.data_ptr() == table.data_ptr()


@pytest.mark.parametrize("make", [pp.replicate, lambda value: value])
def test_what_all_microbatches_share_may_not_be_changed_in_place(make):
    scalar = torch.tensor(1.0)
    batch = Batch.cut(Args(torch.zeros(4, 1), make(scalar)), None, 2)
    batch.arguments(0, CPU)[0][1].add_(1)
    with pytest.raises(pp.PipelabError, match=r"changes in place .*<tensor scalar>"):
        batch.check_unchanged()


def test_inference_tensors_are_inputs_too():
    with torch.inference_mode():
        x, mask = torch.zeros(4, 1), torch.ones(2)
    batch = Batch.cut(Args(x, pp.replicate(mask)), None, 2)
    batch.check_unchanged()
    assert batch.sizes == (2, 2)


@pytest.mark.parametrize("dim", [1, -2])
def test_another_dimension_may_be_the_batch(dim):
    x = torch.arange(12).reshape(2, 3, 2)
    batch = Batch.cut(x, x, 2, BatchDims.of(dim))
    assert batch.sizes == (2, 1)
    assert torch.equal(torch.cat([batch.targets(i, CPU) for i in range(2)], 1), x)
    assert batch.arguments(1, CPU)[0][0].shape == (2, 1, 2)


def test_inputs_and_target_may_have_their_batch_in_different_places():
    batch = Batch.cut(torch.zeros(5, 4, 2), torch.zeros(4), 2, BatchDims.of((1, 0, 0)))
    assert batch.arguments(0, CPU)[0][0].shape == (5, 2, 2) and batch.targets(0, CPU).shape == (2,)


def test_a_tensor_without_the_batch_dimension_is_refused_with_its_shape_and_what_to_do():
    with pytest.raises(pp.PipelabError, match=r"shapes are \[\(4,\)\].*pp\.replicate.*batch_dim.*a tuple"):
        Batch.cut(torch.zeros(5, 4), torch.zeros(4), 2, BatchDims.of(1))


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (1.0, TypeError, "not 1.0"),
        (True, TypeError, "not True"),
        ((0, 1), pp.PipelabError, "three numbers"),
        ((0, 1, None), TypeError, "tuple of three"),
    ],
)
def test_a_batch_dim_that_is_none_is_refused_when_the_pipeline_is_made(bad, error, message):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    schedule = pp.schedule("gpipe", num_ranks=2, num_microbatches=2)
    with pytest.raises(error, match=message):
        pp.Pipeline(model, pp.Split(["1"]), schedule, devices=["cpu", "cpu"], batch_dim=bad)


def test_enlarging_follows_the_batch_dimension_and_leaves_whole_values_whole():
    table = torch.ones(7)
    args, _ = enlarge(Args(torch.arange(2)[None], pp.replicate(table)), None, 3, BatchDims.of(1))
    assert args.args[0].tolist() == [[0, 1, 0]] and args.passed_to(lambda x, t: t) is table


@dataclass
class Sample:
    x: torch.Tensor
    name: str = "sample"


def test_dataclasses_are_cut_inside():
    (part,), _ = Batch.cut(Args(Sample(torch.arange(4))), None, 2).arguments(1, CPU)
    assert part.x.tolist() == [2, 3] and part.name == "sample"


class Opaque:
    def __init__(self):
        self.x = torch.ones(4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.ones(4), r"numpy, of shape \(4,\).*torch\.from_numpy"),
        (["a", "b", "c", "d"], r"4 texts, as many as samples.*pp\.replicate"),
        (nn.utils.rnn.pack_sequence([torch.ones(2)] * 4), "PackedSequence holds tensors"),
        (Opaque(), "Opaque holds tensors"),
        (torch.eye(4).to_sparse(), "sparse_coo and cannot be cut"),
        (torch.ones(4, device="meta"), "on the meta device"),
        (torch.nested.nested_tensor([torch.ones(2)] * 4, layout=torch.jagged), "nested and cannot be cut"),
    ],
)
def test_what_looks_like_a_batch_but_cannot_be_cut_is_refused(given, message):
    with pytest.raises(pp.PipelabError, match=message):
        Batch.cut(Args(torch.zeros(4, 1), given), None, 2)


@pytest.mark.parametrize("given", [np.ones(4), ["a", "b", "c", "d"], Opaque(), torch.eye(4).to_sparse()])
def test_marked_as_replicated_it_is_handed_over(given):
    batch = Batch.cut(Args(torch.zeros(4, 1), pp.replicate(given)), None, 2)
    got = batch.arguments(0, CPU)[0][1]
    assert got is given or got == given


@pytest.mark.parametrize("value", [3, 2.5, True, "mean", None, (2, 2), ["a", "b"], torch.float32, nn.ReLU()])
def test_settings_pass_whole(value):
    batch = Batch.cut(Args(torch.zeros(4, 1), value), None, 2)
    assert batch.arguments(1, CPU)[0][1] == value


def test_a_target_with_a_graph_of_its_own_is_refused():
    with pytest.raises(pp.PipelabError, match=r"An input or a target .*detach\(\)"):
        Batch.cut(torch.zeros(4, 1), torch.ones(4, requires_grad=True) * 2, 2)
