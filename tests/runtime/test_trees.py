"""Tensors inside the values that people hand in."""

from collections import UserDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import pipelab as pp
from pipelab.runtime.trees import map_tensors, marked_tensors, tensors, unwrapped


@dataclass(frozen=True, slots=True)
class Pair:
    first: object
    second: object = None


class Named(dict):
    pass


Point = namedtuple("Point", "x y")
ONE = torch.ones(3)


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ([ONE, (ONE, 5)], [3, (3, 5)]),
        ({"a": {1: ONE}}, {"a": {1: 3}}),
        (Point(ONE, None), Point(3, None)),
        (Pair(ONE, [Pair(ONE)]), Pair(3, [Pair(3)])),
        (UserDict(a=ONE), UserDict(a=3)),
        (Named(a=ONE), Named(a=3)),
        ("text", "text"),
    ],
)
def test_every_kind_of_container_is_looked_into_and_keeps_its_type(tree, expected):
    found = map_tensors(lambda tensor: len(tensor), tree, lambda value: value)
    assert found == expected and type(found) is type(tree)


def test_what_was_handed_in_is_left_as_it_was():
    inside, dictionary = Pair(ONE), UserDict(a=ONE)
    map_tensors(lambda tensor: 0, (inside, dictionary), lambda value: value)
    assert inside.first is ONE and dictionary["a"] is ONE


def test_marked_values_are_apart_from_the_rest():
    tree = (ONE, {"mask": pp.replicate([ONE * 2, pp.replicate(ONE * 3)])})
    assert [t.tolist()[0] for t in tensors(tree)] == [1]
    assert [t.tolist()[0] for t in marked_tensors(tree)] == [2, 3]


def test_the_model_never_sees_a_mark():
    seen = unwrapped((pp.replicate({"a": pp.replicate(ONE)}), [pp.replicate(None)]))
    assert seen[0]["a"] is ONE and seen[1] == [None]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.ones(4, 4), "replicate(<tensor 4 x 4>)"),
        ((torch.ones(2),), "replicate((<tensor 2>,))"),
        ({"a": [torch.tensor(1), None]}, "replicate({'a': [<tensor scalar>, None]})"),
        (3, "replicate(3)"),
    ],
)
def test_a_marked_value_shows_shapes_not_numbers(value, expected):
    assert repr(pp.replicate(value)) == expected


def test_modules_and_objects_pass_untouched():
    module, thing = nn.Linear(2, 2), object()
    assert map_tensors(len, [module, thing], lambda value: value) == [module, thing]
