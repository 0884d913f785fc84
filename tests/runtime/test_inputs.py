"""How a batch is given, checked and cut."""

import pytest
import torch

import pipelab as pp
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
