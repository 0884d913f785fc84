"""What a micro-batch's loss counts for in the batch's."""

import pytest
import torch

import pipelab as pp
from pipelab.runtime.batch_dims import BatchDims
from pipelab.runtime.inputs import Batch
from pipelab.runtime.loss_weights import Weight, reduced, weigh

TARGET = torch.tensor([[1, -1], [1, 1], [-1, -1], [1, -1]])


def batch(target=TARGET, m=2, dims=0):
    size = len(target) if dims == 0 else target.shape[dims]
    return Batch.cut(torch.zeros(size, 1), target, m, BatchDims.of((0, dims, 0)))


def shares(reduction, loss_weight, of=None):
    return [weight.share for weight in weigh(of or batch(), reduction, loss_weight)]


def test_a_mask_with_more_numbers_than_one_a_sample_is_summed():
    assert shares("mean", TARGET >= 0) == [3 / 4, 1 / 4]


def test_a_mask_has_its_batch_where_the_target_has_it():
    mask = TARGET.t() >= 0
    assert shares("mean", mask, batch(TARGET.t(), dims=1)) == [3 / 4, 1 / 4]


@pytest.mark.parametrize(
    "function",
    [lambda t: int((t >= 0).sum()), lambda t: (t >= 0).sum(), lambda t: t >= 0, lambda t: (t >= 0).sum(1)],
)
def test_a_function_gives_numbers_or_their_sum(function):
    assert shares("mean", function) == [3 / 4, 1 / 4]


def test_without_a_target_the_function_sees_the_inputs():
    inputs = {"x": torch.zeros(4, 1), "labels": TARGET}
    found = weigh(Batch.cut(inputs, None, 2), "mean", lambda inputs: (inputs["labels"] >= 0).sum())
    assert [weight.share for weight in found] == [3 / 4, 1 / 4]


def test_what_the_users_function_raises_keeps_its_type_and_says_where():
    with pytest.raises(ZeroDivisionError) as caught:
        weigh(batch(), "mean", lambda target: 1 / 0)
    assert "loss_weight for micro-batch 0" in caught.value.__notes__[0]


def test_a_sum_takes_no_weights():
    with pytest.raises(pp.PipelabError, match="reduction='sum' every loss counts as it is"):
        weigh(batch(), "sum", TARGET >= 0)


@pytest.mark.parametrize(
    ("loss_weight", "message"),
    [
        (torch.ones(2, 4), r"shape \(2, 4\); .*\(4,\), or more with the batch of 4 as dimension 0"),
        (torch.tensor(1.0), r"shape \(\)"),
        (torch.zeros(4, 0), "no number for micro-batch 0"),
        (lambda target: torch.ones(0), "no number for micro-batch 0"),
        (lambda target: float("nan"), "finite"),
        (lambda target: torch.tensor([2.0, -1.0]), "smallest weight is -1"),
    ],
)
def test_weights_that_do_not_fit_are_refused(loss_weight, message):
    with pytest.raises(pp.PipelabError, match=message):
        weigh(batch(), "mean", loss_weight)


def test_something_else_is_a_wrong_call():
    with pytest.raises(TypeError, match="not float"):
        weigh(batch(), "mean", 1.0)


@pytest.mark.parametrize("losses", [torch.arange(4.0), torch.arange(8.0).reshape(4, 2)])
@pytest.mark.parametrize(
    "weights", [None, torch.tensor([1.0, 2, 0, 1]), lambda target: torch.arange(1.0, len(target) + 1)]
)
def test_one_loss_a_sample_becomes_the_weighted_mean_of_the_batch(losses, weights):
    whole = batch(m=1)
    parts = batch(m=3)
    (at_once,) = weigh(whole, "none", weights)
    found = [
        reduced(part, weight, parts, i) * weight.share
        for i, (part, weight) in enumerate(
            zip(losses.split(parts.sizes), weigh(parts, "none", weights), strict=True)
        )
        if weight.share
    ]
    if callable(weights):  # it restarts in each micro-batch
        expected = (losses.reshape(4, -1).mean(1) * torch.tensor([1.0, 2, 1, 1])).sum() / 5
    else:
        expected = reduced(losses, at_once, whole, 0)
        each = torch.ones(4) if weights is None else weights
        assert torch.isclose(expected, (losses.reshape(4, -1).mean(1) * each).sum() / each.sum())
    assert torch.isclose(sum(found), expected)


def test_one_weight_an_element_makes_a_token_mean():
    losses = torch.arange(8.0).reshape(4, 2)
    parts = batch()
    found = weigh(parts, "none", TARGET >= 0)
    total = sum(reduced(losses[2 * i : 2 * i + 2], w, parts, i) * w.share for i, w in enumerate(found))
    assert torch.isclose(total, losses[TARGET >= 0].mean())


def test_losses_with_more_numbers_have_their_batch_where_the_target_has_it():
    parts = batch(TARGET.t(), dims=1)
    (first, _) = weigh(parts, "none", torch.tensor([1.0, 0, 1, 1]))
    assert reduced(torch.tensor([[1.0, 9], [3, 9]]), first, parts, 0) == 2.0


def test_half_precision_counts_tokens_exactly():
    parts = Batch.cut(torch.zeros(1, 1), None, 1)
    (weight,) = weigh(parts, "none", torch.ones(1, 5001))
    assert reduced(torch.ones(1, 5001, dtype=torch.bfloat16), weight, parts, 0) == 1.0


@pytest.mark.parametrize(
    ("losses", "elements", "message"),
    [
        (torch.ones(3), None, r"each of the 2 samples .* as dimension 0; it has the shape \(3,\)"),
        (torch.tensor(1.0), None, r"shape \(\)"),
        (
            torch.ones(2, 3),
            torch.ones(2, 4),
            r"\(2, 4\) for a micro-batch whose losses have the shape \(2, 3\)",
        ),
    ],
)
def test_losses_that_do_not_fit_are_refused_with_their_shapes(losses, elements, message):
    with pytest.raises(pp.PipelabError, match=message):
        reduced(losses, Weight(1.0, True, elements), batch(), 0)


def test_one_number_from_a_function_does_not_say_what_each_sample_counts():
    with pytest.raises(pp.PipelabError, match="one number for micro-batch 0, which has 2 samples"):
        weigh(batch(), "none", lambda target: 3)
