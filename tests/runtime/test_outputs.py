"""Putting the micro-batches' outputs together."""

from dataclasses import dataclass

import torch

from pipelab.runtime.outputs import detach, join


@dataclass
class Answer:
    logits: torch.Tensor
    loss: torch.Tensor | None = None


def test_tensors_are_joined_along_the_batch():
    assert join([torch.ones(2, 3), torch.zeros(1, 3)], (2, 1)).shape == (3, 3)


def test_scalars_are_stacked_one_a_microbatch():
    assert join([torch.tensor(1.0), torch.tensor(2.0)], (2, 2)).tolist() == [1.0, 2.0]


def test_structures_keep_their_shape():
    joined = join([{"a": (torch.ones(1), None)}, {"a": (torch.ones(1), None)}], (1, 1))
    assert joined["a"][0].shape == (2,) and joined["a"][1] is None


def test_dataclasses_are_joined_field_by_field():
    joined = join(
        [Answer(torch.ones(2, 1), torch.tensor(1.0)), Answer(torch.ones(1, 1), torch.tensor(2.0))], (2, 1)
    )
    assert joined.logits.shape == (3, 1) and joined.loss.tolist() == [1.0, 2.0]


def test_what_changes_its_structure_between_microbatches_stays_a_list():
    parts = [(torch.ones(1),), (torch.ones(1), torch.ones(1))]
    assert join(parts, (1, 1)) == parts


def test_detached_outputs_hold_no_graph():
    x = torch.ones(2, requires_grad=True) * 2
    out = detach({"x": x, "d": Answer(x), "s": "text", "object": object()})
    assert out["x"].grad_fn is None and out["d"].logits.grad_fn is None
    assert out["s"] == "text" and out["object"] is None


def test_another_dimension_may_be_the_batch():
    assert join([torch.ones(5, 2, 3), torch.zeros(5, 1, 3)], (2, 1), (1,)).shape == (5, 3, 3)
    assert join([torch.ones(5, 2), torch.zeros(5, 1)], (2, 1), (-1,)).shape == (5, 3)


def test_the_first_dimension_that_fits_is_the_batch():
    assert join([torch.ones(5, 2, 7), torch.zeros(5, 1, 7)], (2, 1), (-1, 1)).shape == (5, 3, 7)


def test_microbatches_padded_to_other_lengths_stay_a_list():
    parts = [torch.ones(2, 3), torch.ones(2, 4)]
    assert join(parts, (2, 2)) == parts
