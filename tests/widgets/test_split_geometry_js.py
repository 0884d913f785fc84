"""The geometry of the split editor, run by node where node is."""

from __future__ import annotations

from tests.widgets.node import assert_tests_pass, needs_node

pytestmark = needs_node


def test_the_geometry_holds(tmp_path):
    assert_tests_pass("split_geometry", tmp_path)
